//! What the `OTEL_…` variables say (OpenTelemetry specification: environment variables, OTLP exporter).
//!
//! In: the environment. Out: where metrics and spans go, how often, and as whose. Guarantees: what is not understood of a number
//! or a name is warned of and has its default; where an export could not work as asked for, it is an error; no header is printed.

use super::Signal;
use crate::environment::Environment;
use crate::relay::span_queue::SpanLimits;
use crate::tls::{Identity, Roots};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use std::time::Duration;

/// Where OTLP over HTTP is listened to (specification: OTLP exporter).
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
/// The one of the three that is spoken.
const PROTOCOL: &str = "http/protobuf";

/// A variable by which no export can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct OtlpError {
    variable: String,
    problem: String,
}

/// Where a signal goes.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) uri: Uri,
    /// Credentials, as a rule.
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) roots: Roots,
    pub(super) identity: Option<Identity>,
}

/// All that an export is told.
#[derive(Debug, Clone)]
pub struct OtlpSettings {
    pub(super) metrics: Option<Target>,
    pub(super) traces: Option<Target>,
    /// Between two exports of the metrics.
    pub(super) metrics_interval: Duration,
    /// How long a span may wait for others.
    pub(super) spans_delay: Duration,
    pub(super) spans: SpanLimits,
    /// Attributes of the resource.
    pub(super) resource: Vec<(String, String)>,
}

impl OtlpSettings {
    /// What the environment says, and warnings; none where it asks for no export.
    ///
    /// # Errors
    /// An endpoint, a protocol or headers that cannot be used.
    pub fn of(
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>, OtlpError> {
        let mut read = Read {
            environment,
            warnings,
        };
        let mut target = |signal: Signal| {
            let asked = signal.asked_by(environment);
            asked.map(|_| read.target(signal)).transpose()
        };
        let (metrics, traces) = (target(Signal::Metrics)?, target(Signal::Traces)?);
        if metrics.is_none() && traces.is_none() {
            return Ok(None);
        }
        let queue_max = read.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, 1..=1_000_000);
        Ok(Some(OtlpSettings {
            metrics,
            traces,
            metrics_interval: read.millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
            spans_delay: read.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            spans: SpanLimits {
                queue_max: queue_max as usize,
                batch_max: read.number(
                    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                    512.min(queue_max),
                    1..=queue_max,
                ) as usize,
                links_max: read.number("OTEL_SPAN_LINK_COUNT_LIMIT", 128, 0..=100_000) as usize,
                share: read.share(),
            },
            resource: read.resource(),
        }))
    }

    /// Where spans of the batches go.
    pub fn span_limits(&self) -> SpanLimits {
        match self.traces {
            Some(_) => self.spans,
            // Nobody would take them.
            None => SpanLimits {
                share: 0.0,
                ..self.spans
            },
        }
    }
}

struct Read<'a> {
    environment: &'a Environment,
    warnings: &'a mut Vec<String>,
}

impl<'a> Read<'a> {
    /// The signal's own variable, else the common one.
    fn exporter(&self, signal: Signal, name: &str) -> Option<(String, &'a str)> {
        let own = match signal {
            Signal::Metrics => "METRICS_",
            Signal::Traces => "TRACES_",
        };
        [own, ""].into_iter().find_map(|signal| {
            let variable = format!("OTEL_EXPORTER_OTLP_{signal}{name}");
            let value = self.environment.get(&variable)?;
            Some((variable, value))
        })
    }

    fn target(&mut self, signal: Signal) -> Result<Target, OtlpError> {
        let file = |name| {
            let given = self.exporter(signal, name);
            given.map(|(_, path)| PathBuf::from(path))
        };
        let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate,
                key,
                key_password: None,
            }),
            (None, None) => None,
            (certificate, _) => {
                let missing = match certificate {
                    Some(_) => "CLIENT_KEY",
                    None => "CLIENT_CERTIFICATE",
                };
                return Err(OtlpError {
                    variable: format!("OTEL_EXPORTER_OTLP_{missing}"),
                    problem: "is missing beside the other half of the pair".to_owned(),
                });
            }
        };
        let roots = file("CERTIFICATE").map_or(Roots::System, Roots::File);
        self.check_protocol(signal)?;
        if let Some((variable, text)) = self.exporter(signal, "COMPRESSION")
            && text != "none"
        {
            self.warn(
                &variable,
                &format!("{text:?} is not there: what is sent is not compressed"),
            );
        }
        let timeout = match self.exporter(signal, "TIMEOUT") {
            Some((variable, _)) => self.millis(&variable, 10_000),
            None => Duration::from_secs(10),
        };
        Ok(Target {
            uri: self.uri(signal)?,
            headers: self.headers(signal)?,
            timeout,
            roots,
            identity,
        })
    }

    fn check_protocol(&self, signal: Signal) -> Result<(), OtlpError> {
        match self.exporter(signal, "PROTOCOL") {
            Some((variable, text)) if text != PROTOCOL => Err(OtlpError {
                variable,
                problem: format!(
                    "{text:?} is not spoken: set it to {PROTOCOL}, and the endpoint to where a collector listens for that, port 4318 as a rule"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// A signal's own endpoint is used as it is, the common one with the signal's path behind it.
    fn uri(&self, signal: Signal) -> Result<Uri, OtlpError> {
        let own = signal.endpoint_variable();
        let (variable, text) = match self.environment.get(own) {
            Some(text) => (own, text.to_owned()),
            None => {
                let variable = "OTEL_EXPORTER_OTLP_ENDPOINT";
                let base = self.environment.get(variable).unwrap_or(DEFAULT_ENDPOINT);
                let path = match signal {
                    Signal::Metrics => "v1/metrics",
                    Signal::Traces => "v1/traces",
                };
                (variable, format!("{}/{path}", base.trim_end_matches('/')))
            }
        };
        let error = |problem: &str| OtlpError {
            variable: variable.to_owned(),
            problem: problem.to_owned(),
        };
        let form = "is not a URL such as http://localhost:4318 or https://collector.example:4318";
        let uri: Uri = text.trim().parse().map_err(|_| error(form))?;
        let authority = uri.authority().ok_or_else(|| error(form))?;
        if authority.as_str().contains('@') {
            return Err(error(
                "has a user: put credentials into OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        match uri.scheme_str() {
            Some("http" | "https") => Ok(uri),
            _ => Err(error(form)),
        }
    }

    /// `name=value` pairs, with values as in a URL.
    fn headers(&self, signal: Signal) -> Result<HeaderMap, OtlpError> {
        let mut headers = HeaderMap::new();
        let Some((variable, text)) = self.exporter(signal, "HEADERS") else {
            return Ok(headers);
        };
        for (name, value) in pairs(text).map_err(|number| OtlpError {
            variable: variable.clone(),
            problem: format!("its header {number} is not name=value"),
        })? {
            let parsed = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(&value),
            );
            let (Ok(name), Ok(mut value)) = parsed else {
                return Err(OtlpError {
                    variable,
                    problem: format!("HTTP allows no such header as {name}, or not this value"),
                });
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// Who tells all this.
    fn resource(&mut self) -> Vec<(String, String)> {
        let variable = "OTEL_RESOURCE_ATTRIBUTES";
        let mut attributes = match pairs(self.environment.get(variable).unwrap_or_default()) {
            Ok(attributes) => attributes,
            Err(number) => {
                self.warn(
                    variable,
                    &format!("its attribute {number} is not name=value: none of them is used"),
                );
                Vec::new()
            }
        };
        if let Some(name) = self.environment.get("OTEL_SERVICE_NAME") {
            attributes.retain(|(key, _)| key != "service.name");
            attributes.push(("service.name".to_owned(), name.to_owned()));
        }
        for (key, value) in [
            ("service.name", "walrelay".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id", uuid::Uuid::new_v4().to_string()),
        ] {
            if attributes.iter().all(|(known, _)| known != key) {
                attributes.push((key.to_owned(), value));
            }
        }
        attributes
    }

    /// A batch has no parent, so a sampler that asks it comes to its root's.
    fn share(&mut self) -> f64 {
        let variable = "OTEL_TRACES_SAMPLER";
        let name = self.environment.get(variable).unwrap_or("always_on");
        match name.strip_prefix("parentbased_").unwrap_or(name) {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => {
                let variable = "OTEL_TRACES_SAMPLER_ARG";
                let text = self.environment.get(variable).unwrap_or("1");
                let share = text
                    .parse()
                    .ok()
                    .filter(|share| (0.0..=1.0).contains(share));
                share.unwrap_or_else(|| {
                    self.warn(
                        variable,
                        "is not a number from 0 to 1: all batches are told of",
                    );
                    1.0
                })
            }
            _ => {
                self.warn(variable, "is not known: all batches are told of");
                1.0
            }
        }
    }

    fn millis(&mut self, variable: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(variable, default, 1..=86_400_000))
    }

    fn number(
        &mut self,
        variable: &str,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let Some(text) = self.environment.get(variable) else {
            return default;
        };
        let number = text.trim().parse().ok();
        number
            .filter(|number| allowed.contains(number))
            .unwrap_or_else(|| {
                let (min, max) = (allowed.start(), allowed.end());
                self.warn(
                    variable,
                    &format!("is not a number from {min} to {max}: it is {default}"),
                );
                default
            })
    }

    fn warn(&mut self, variable: &str, problem: &str) {
        let warning = format!("{variable}: {problem}");
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// `name=value` pairs behind commas, values percent-encoded (W3C Baggage without its properties).
///
/// # Errors
/// The number of the first that is none, from 1.
fn pairs(text: &str) -> Result<Vec<(String, String)>, usize> {
    let parts = text.split(',').map(str::trim).zip(1..);
    parts
        .filter(|(part, _)| !part.is_empty())
        .map(|(part, number)| {
            let (name, value) = part.split_once('=').ok_or(number)?;
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .map_err(|_| number)?;
            match name.trim() {
                "" => Err(number),
                name => Ok((name.to_owned(), value.into_owned())),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = (Result<Option<OtlpSettings>, OtlpError>, Vec<String>);

    fn read(variables: &[(&str, &str)]) -> Read {
        let mut warnings = Vec::new();
        let environment = Environment::new(variables.iter().copied());
        (OtlpSettings::of(&environment, &mut warnings), warnings)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    fn settings(variables: &[(&str, &str)]) -> OtlpSettings {
        let all: Vec<_> = [ENDPOINT].iter().chain(variables).copied().collect();
        let (settings, warnings) = read(&all);
        assert_eq!(warnings, [""; 0]);
        settings.expect("usable").expect("asked for")
    }

    #[test]
    fn the_common_endpoint_has_a_path_for_each_signal_and_an_own_one_is_used_as_it_is() {
        let own = (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://t.example/in?k=v",
        );
        let settings = settings(&[own]);
        let uri = |target: Option<Target>| target.expect("wanted").uri.to_string();
        assert_eq!(uri(settings.metrics), "http://collector:4318/v1/metrics");
        assert_eq!(uri(settings.traces), "https://t.example/in?k=v");
        let (by_name, _) = read(&[("OTEL_TRACES_EXPORTER", "otlp")]);
        let by_name = by_name.expect("usable").expect("asked for");
        assert!(by_name.metrics.is_none() && by_name.span_limits().share == 1.0);
        assert_eq!(uri(by_name.traces), "http://localhost:4318/v1/traces");
        assert!(read(&[]).0.expect("usable").is_none());
    }

    #[test]
    fn headers_are_decoded_and_not_shown() {
        let headers = (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Basic%20czM=, x-scope = a%3Db ,",
        );
        let target = settings(&[headers]).metrics.expect("wanted");
        assert_eq!(target.headers["authorization"], "Basic czM=");
        assert_eq!(target.headers["x-scope"], "a=b");
        assert!(!format!("{target:?}").contains("czM"));
        for bad in ["secret", "a b=secret", "a=secret%0A"] {
            let (error, _) = read(&[ENDPOINT, (headers.0, bad)]);
            let error = error.expect_err(bad).to_string();
            assert!(
                error.starts_with(headers.0) && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_could_not_work_is_an_error() {
        for (variable, bad) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://localhost:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:secret@localhost"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
        ] {
            let error = read(&[ENDPOINT, (variable, bad)]).0.expect_err(bad);
            assert_eq!(error.variable, variable);
            assert!(!error.to_string().contains("secret"));
        }
        let half = ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k");
        let error = read(&[ENDPOINT, half]).0.expect_err("half of a pair");
        assert_eq!(error.variable, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
    }

    #[test]
    fn what_is_not_understood_otherwise_is_warned_of_and_has_its_default() {
        for (variable, bad) in [
            ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ] {
            let (settings, warnings) = read(&[ENDPOINT, (variable, bad)]);
            let settings = settings.expect("usable").expect("asked for");
            assert_eq!(settings.metrics_interval, Duration::from_secs(60));
            assert_eq!(
                (settings.spans.queue_max, settings.spans.share),
                (2048, 1.0)
            );
            let [warning] = &warnings[..] else {
                panic!("one warning of {variable}: {warnings:?}");
            };
            assert!(warning.starts_with(variable), "{warning}");
        }
    }

    #[test]
    fn the_resource_is_who_the_environment_says_and_batches_are_sampled_as_it_says() {
        let settings = settings(&[
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=a,deployment.environment.name=prod%2C1",
            ),
            ("OTEL_SERVICE_NAME", "orders"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ]);
        let value = |key: &str| {
            let mut found = settings.resource.iter().filter(|(known, _)| known == key);
            let value = found.next().map(|(_, value)| value.as_str());
            assert!(found.next().is_none(), "{key} twice");
            value
        };
        assert_eq!(value("service.name"), Some("orders"));
        assert_eq!(value("deployment.environment.name"), Some("prod,1"));
        assert_eq!(value("service.version"), Some(env!("CARGO_PKG_VERSION")));
        let limits = settings.span_limits();
        assert_eq!(
            (limits.share, limits.queue_max, limits.batch_max),
            (0.25, 100, 100)
        );
    }
}
