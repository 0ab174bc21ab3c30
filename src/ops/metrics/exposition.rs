//! How metrics are written: Prometheus' text format, and OpenMetrics.
//!
//! In: families of samples. Out: the body of an answer. Guarantee: each family once, its help and type before its samples, in both
//! formats, with every label value escaped; a family that is begun again goes on where it was.

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

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rises only; the name ends in `_total`.
    Counter,
    Gauge,
    Histogram,
}

/// A body that is being written.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    /// Labels of every sample from now on, as written.
    common: String,
    families: Vec<Family>,
    /// Index of the one whose samples follow.
    current: usize,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    /// Its lines.
    text: String,
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Exposition {
            format,
            common: String::new(),
            families: Vec::new(),
            current: 0,
        }
    }

    /// Labels of every sample from now on.
    pub(super) fn label_all<'l>(&mut self, labels: impl IntoIterator<Item = (&'l str, &'l str)>) {
        self.common.clear();
        for pair in labels {
            label(&mut self.common, pair);
        }
    }

    /// Begins a family, or goes on with it; its samples follow.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let known = (self.families.iter()).position(|family| family.name == name);
        self.current = known.unwrap_or_else(|| {
            let text = self.head(name, kind, help);
            self.families.push(Family { name, text });
            self.families.len() - 1
        });
    }

    fn head(&self, name: &str, kind: Kind, help: &str) -> String {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // OpenMetrics names a counter without the end that its sample has.
        let shown = match self.format {
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            Format::Prometheus => name,
        };
        format!("# HELP {shown} {help}\n# TYPE {shown} {kind}\n")
    }

    /// A family of one sample.
    pub(super) fn one(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// A gauge that is absent where nothing is known.
    pub(super) fn known(&mut self, name: &'static str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.one(name, Kind::Gauge, help, value);
        }
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.suffixed("", labels, value);
    }

    /// A histogram: how many at or below each bound and above the one before, the last of them above all; and their sum.
    pub(super) fn histogram(&mut self, bounds: &[f64], counts: &[u64], sum: f64) {
        let mut so_far = 0;
        for (index, count) in counts.iter().enumerate() {
            so_far += count;
            let bound = bounds
                .get(index)
                .map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
            self.suffixed("_bucket", &[("le", &bound)], so_far);
        }
        self.suffixed("_sum", &[], sum);
        self.suffixed("_count", &[], so_far);
    }

    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let Some(Family { name, text }) = self.families.get_mut(self.current) else {
            return;
        };
        let mut all = self.common.clone();
        for pair in labels {
            label(&mut all, *pair);
        }
        let _ = writeln!(text, "{name}{suffix}{{{all}}} {value}");
    }

    pub(super) fn finish(self) -> String {
        let end = match self.format {
            Format::OpenMetrics => "# EOF\n",
            Format::Prometheus => "",
        };
        let texts = self.families.into_iter().map(|family| family.text);
        texts.chain([end.to_owned()]).collect()
    }
}

/// Adds a label.
fn label(text: &mut String, (name, value): (&str, &str)) {
    if !text.is_empty() {
        text.push(',');
    }
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

    fn written(format: Format) -> String {
        let mut exposition = Exposition::new(format);
        exposition.label_all([("relay", "a \"b\"\\\n")]);
        exposition.one("x_total", Kind::Counter, "Things", 7);
        exposition.family("y_seconds", Kind::Histogram, "Times");
        exposition.histogram(&[0.5, 1.0], &[2, 0, 1], 9.5);
        exposition.known("z", "Nothing", None::<u64>);
        exposition.finish()
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
