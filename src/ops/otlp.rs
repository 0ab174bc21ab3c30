//! Export by OTLP: the metrics of `/metrics`, and a span for each batch.
//!
//! In: the environment's `OTEL_…` variables, as OpenTelemetry specifies them; boards and spans of the relay. Out: requests to a
//! collector, by a thread of its own. Guarantees: a collector that is away, slow or wrong costs the relay nothing; no value of a
//! row leaves the machine.
//!
//! Without the feature `otlp` this only tells that the environment asks for it.

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
mod exporter;
#[cfg(feature = "otlp")]
mod request;
#[cfg(feature = "otlp")]
mod settings;
#[cfg(feature = "otlp")]
mod spans;

#[cfg(feature = "otlp")]
pub use exporter::Exporter;
#[cfg(feature = "otlp")]
pub use settings::{OtlpError, OtlpSettings};

use crate::environment::Environment;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// What `/metrics` has.
    Metrics,
    /// A span for each batch.
    Traces,
}

impl Signal {
    /// The variable that says where the signal goes, by the name of the exporter.
    fn exporter_variable(self) -> &'static str {
        match self {
            Signal::Metrics => "OTEL_METRICS_EXPORTER",
            Signal::Traces => "OTEL_TRACES_EXPORTER",
        }
    }

    fn endpoint_variable(self) -> &'static str {
        match self {
            Signal::Metrics => "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            Signal::Traces => "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        }
    }

    /// The variable by which the signal is asked for; none where it is not.
    fn asked_by(self, environment: &Environment) -> Option<&'static str> {
        let is_disabled = environment.get("OTEL_SDK_DISABLED");
        if is_disabled.is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        match environment.get(self.exporter_variable()) {
            Some(names) => (names.split(','))
                .any(|name| name.trim() == "otlp")
                .then(|| self.exporter_variable()),
            None => [self.endpoint_variable(), "OTEL_EXPORTER_OTLP_ENDPOINT"]
                .into_iter()
                .find(|variable| environment.get(variable).is_some()),
        }
    }
}

/// The variable by which the environment asks for an export; none where it does not.
pub fn asked_by(environment: &Environment) -> Option<&'static str> {
    let signals = [Signal::Metrics, Signal::Traces];
    signals
        .into_iter()
        .find_map(|signal| signal.asked_by(environment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_or_an_exporters_name_asks_and_none_does_not() {
        let asked =
            |variables: &[(&str, &str)]| asked_by(&Environment::new(variables.iter().copied()));
        assert_eq!(asked(&[]), None);
        // A name of the service alone sends nothing anywhere.
        assert_eq!(asked(&[("OTEL_SERVICE_NAME", "orders")]), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(asked(&[endpoint]), Some(endpoint.0));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost/t");
        assert_eq!(asked(&[traces]), Some(traces.0));
        let exporter = ("OTEL_TRACES_EXPORTER", "otlp");
        assert_eq!(asked(&[exporter]), Some(exporter.0));
        let none = [
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_METRICS_EXPORTER", "prometheus"),
        ];
        assert_eq!(asked(&[endpoint, none[0], none[1]]), None);
        assert_eq!(asked(&[endpoint, none[0]]), Some(endpoint.0));
        assert_eq!(asked(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(asked(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
    }
}
