//! How metrics are written: Prometheus' text format, and OpenMetrics.
//!
//! In: families of samples. Out: the body of an answer. Guarantee: help and type of a family before its samples, in both formats,
//! with every label value escaped.

use super::families::{Family, Kind, Number, Value};
use std::fmt::{Display, Write as _};

/// Media types without their parameters.
const OPEN_METRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Version 0.0.4, which everything reads.
    Prometheus,
    /// Version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The one that `Accept` prefers (RFC 9110, 12.5.1): by its weights, and of two with the same weight OpenMetrics where it is named.
    /// Who takes neither has Prometheus' all the same.
    pub fn asked_for(accept: &str) -> Self {
        let ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::read).collect();
        let is_named = |range: &Range<'_>| range.media.eq_ignore_ascii_case(OPEN_METRICS);
        let (open, plain) = (weight(&ranges, OPEN_METRICS), weight(&ranges, PLAIN));
        match open > plain || (open == plain && open > 0 && ranges.iter().any(is_named)) {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// The answer's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// An element of `Accept`.
struct Range<'a> {
    /// `type/subtype`, `type/*` or `*/*`.
    media: &'a str,
    /// Its weight in thousandths; 0 is "not this".
    weight: u16,
}

impl<'a> Range<'a> {
    /// None of what is no element. Parameters of the type, as the version, choose nothing here.
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().filter(|media| media.contains('/'))?;
        let named = |part: &'a str| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
        };
        let weight = match parts.find_map(named) {
            None => 1_000,
            Some(text) => {
                let weight: f32 = text.parse().ok()?;
                (0.0..=1.0)
                    .contains(&weight)
                    .then(|| (weight * 1_000.0).round() as u16)?
            }
        };
        Some(Range { media, weight })
    }

    /// How closely it names a type; none where it does not.
    fn closeness(&self, wanted: &str) -> Option<u8> {
        let family = wanted.split('/').next().unwrap_or_default();
        match self.media.split_once('/') {
            _ if self.media.eq_ignore_ascii_case(wanted) => Some(2),
            Some((of, "*")) if of.eq_ignore_ascii_case(family) => Some(1),
            Some(("*", "*")) => Some(0),
            _ => None,
        }
    }
}

/// The weight of a type: that of the range that names it most closely.
fn weight(ranges: &[Range<'_>], wanted: &str) -> u16 {
    let named = ranges
        .iter()
        .filter_map(|range| Some((range.closeness(wanted)?, range.weight)));
    named.max().map_or(0, |(_, weight)| weight)
}

/// The body of an answer.
pub(super) fn write(families: &[Family], format: Format) -> String {
    let mut text = String::new();
    for family in families {
        head(&mut text, family, format);
        for sample in &family.samples {
            let mut line = Line {
                text: &mut text,
                name: family.name,
                labels: &sample.labels,
            };
            match &sample.value {
                Value::Number(number) => line.write("", None, number),
                Value::Histogram {
                    bounds,
                    counts,
                    sum,
                } => histogram(&mut line, bounds, counts, *sum),
            }
        }
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn head(text: &mut String, family: &Family, format: Format) {
    let Family { name, help, .. } = family;
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // OpenMetrics names a counter without the end that its sample has.
    let shown = match format {
        Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        Format::Prometheus => name,
    };
    let _ = write!(text, "# HELP {shown} {help}\n# TYPE {shown} {kind}\n");
}

/// Each bucket has all of those below it.
fn histogram(line: &mut Line<'_>, bounds: &[f64], counts: &[u64], sum: f64) {
    let mut so_far = 0;
    for (index, count) in counts.iter().enumerate() {
        so_far += count;
        let bound = bounds
            .get(index)
            .map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
        line.write("_bucket", Some(("le", &bound)), so_far);
    }
    line.write("_sum", None, sum);
    line.write("_count", None, so_far);
}

/// The lines of one sample.
struct Line<'a> {
    text: &'a mut String,
    name: &'a str,
    labels: &'a [(String, String)],
}

impl Line<'_> {
    fn write(&mut self, suffix: &str, last: Option<(&str, &str)>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}{{", self.name);
        let labels = self.labels.iter();
        let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
        for (index, pair) in labels.chain(last).enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            label(self.text, pair);
        }
        let _ = writeln!(self.text, "}} {value}");
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Whole(value) => value.fmt(f),
            Number::Signed(value) => value.fmt(f),
            Number::Real(value) => value.fmt(f),
        }
    }
}

/// Adds a label.
fn label(text: &mut String, (name, value): (&str, &str)) {
    let _ = write!(text, "{name}=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            character => text.push(character),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::metrics::families::Families;

    fn written(format: Format) -> String {
        let mut families = Families::default();
        families.label_all([("relay", "a \"b\"\\\n")]);
        families.one("x_total", Kind::Counter, "Things", 7_u64);
        families.family("y_seconds", Kind::Histogram, "Times");
        families.histogram(&[0.5, 1.0], &[2, 0, 1], 9.5);
        families.known("z", "Nothing", None::<u64>);
        write(&families.finish(), format)
    }

    #[test]
    fn both_formats_have_what_their_readers_want() {
        let relay = "relay=\"a \\\"b\\\"\\\\\\n\"";
        let samples = format!(
            "y_seconds_bucket{{{relay},le=\"0.5\"}} 2\ny_seconds_bucket{{{relay},le=\"1.0\"}} 2\n\
             y_seconds_bucket{{{relay},le=\"+Inf\"}} 3\ny_seconds_sum{{{relay}}} 9.5\ny_seconds_count{{{relay}}} 3\n"
        );
        let histogram = format!("# HELP y_seconds Times\n# TYPE y_seconds histogram\n{samples}");
        assert_eq!(
            written(Format::Prometheus),
            format!(
                "# HELP x_total Things\n# TYPE x_total counter\nx_total{{{relay}}} 7\n{histogram}"
            )
        );
        assert_eq!(
            written(Format::OpenMetrics),
            format!("# HELP x Things\n# TYPE x counter\nx_total{{{relay}}} 7\n{histogram}# EOF\n")
        );
    }

    #[test]
    fn the_format_is_the_readers_choice() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5";
        for (accept, expected) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "text/plain, Application/OpenMetrics-Text; version=0.0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;q=0.1,text/plain;q=0.9",
                Format::Prometheus,
            ),
            ("application/openmetrics-text; Q=0, */*", Format::Prometheus),
            ("application/*;q=0.8, text/plain;q=0.3", Format::OpenMetrics),
            (
                "text/plain;q=0.2, text/*;q=0.9, application/openmetrics-text;q=0.5",
                Format::OpenMetrics,
            ),
            ("*/*", Format::Prometheus),
            (
                "text/html, application/xhtml+xml, */*;q=0.8",
                Format::Prometheus,
            ),
            ("", Format::Prometheus),
            ("nonsense;q=2", Format::Prometheus),
            (
                "application/openmetrics-text;q=2, text/plain;q=0.1",
                Format::Prometheus,
            ),
        ] {
            assert_eq!(Format::asked_for(accept), expected, "{accept}");
        }
    }
}
