//! How metrics are written: Prometheus' text format, and OpenMetrics.
//!
//! In: families of samples. Out: the body of an answer. Guarantee: help and type of a family before its samples, in both formats,
//! with every label value escaped.

use super::families::{Family, Kind, Number, Value};
use std::fmt::{Display, Write as _};

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Version 0.0.4, which everything reads.
    Prometheus,
    /// Version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The one that the value of an `Accept` header asks for.
    pub fn asked_for(accept: Option<&str>) -> Self {
        match accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
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
        assert_eq!(Format::asked_for(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::asked_for(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::asked_for(None), Format::Prometheus);
    }
}
