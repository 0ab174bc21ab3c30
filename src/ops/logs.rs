//! Logs: human lines or JSON on standard error.
//!
//! In: a format and a filter. Out: the process' subscriber. Guarantee: nothing is logged to
//! standard output, which is for data; other crates' debug output, which may quote queries, is off
//! unless a directive names them.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// The field that a share's span has.
const SLOT: &str = "slot";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line of text, in colour on a terminal
    Human,
    /// A JSON object a line
    Json,
}

/// Which events are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

/// Why a format or filter cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Neither `human` nor `json`.
    #[error("`{0}` is not a log format: use human or json")]
    Format(String),
    /// Neither a level nor directives.
    #[error(
        "`{0}` is not a log level: use error, warn, info, debug, trace, off, or directives such as walrelay=debug"
    )]
    Filter(String),
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(LogError::Format(text.to_owned())),
        }
    }
}

impl Default for LogFilter {
    /// What an operator wants to know: starts, stops, epochs, rejects.
    fn default() -> Self {
        "info".parse().expect("a level")
    }
}

/// Each try of async-nats is logged there, once more.
const TOLD: &str = "async_nats::connector=off";

impl FromStr for LogFilter {
    type Err = LogError;

    /// A bare level is walrelay's; the other crates stay at `warn`, or below where it is lower. What keeps async-nats from
    /// connecting is told by whoever connects.
    fn from_str(text: &str) -> Result<Self, LogError> {
        let wrong = || LogError::Filter(text.to_owned());
        match text.trim().to_ascii_lowercase().as_str() {
            "off" => Ok(LogFilter("off".to_owned())),
            level @ ("error" | "warn") => Ok(LogFilter(format!("{level},{TOLD}"))),
            level @ ("info" | "debug" | "trace") => {
                Ok(LogFilter(format!("warn,{TOLD},walrelay={level}")))
            }
            // A mistyped level would be taken for the name of a crate, and log nothing.
            word if !word.contains(['=', ',', ':', '[']) => Err(wrong()),
            _ => match EnvFilter::builder().parse(text) {
                Ok(_) => Ok(LogFilter(text.to_owned())),
                Err(_) => Err(wrong()),
            },
        }
    }
}

/// The form of the log that [`init`] has started.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Puts another filter in the place of the one that [`init`] has started with.
static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Logs what ends a command, where whoever reads the log reads nothing else: as JSON. Returns whether it did; a person
/// is told in plain words instead, and so is whoever has turned the log off.
pub(crate) fn log_end(message: &str) -> bool {
    let logs = FORMAT.get() == Some(&LogFormat::Json) && tracing::enabled!(tracing::Level::ERROR);
    if logs {
        tracing::error!("{message}");
    }
    logs
}

/// Starts the log, once in a process; a subscriber that is there already, as in an application that
/// embeds the relay, stays.
pub(crate) fn init(format: LogFormat, filter: &LogFilter) {
    let colour = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(io::stderr)
        .with_ansi(colour && format == LogFormat::Human)
        // It would print to standard error that standard error is closed, and panic.
        .log_internal_errors(false);
    // Nobody else sets what is set here: a process has one subscriber.
    let started = match format {
        LogFormat::Human => {
            let builder = builder.compact().fmt_fields(HumanFields);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = SET_FILTER.set(Box::new(move |filter| {
                let _ = handle.reload(filter);
            }));
            builder.try_init()
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_span_list(false);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = SET_FILTER.set(Box::new(move |filter| {
                let _ = handle.reload(filter);
            }));
            builder.try_init()
        }
    };
    match started {
        Ok(()) => {
            let _ = FORMAT.set(format);
        }
        Err(_) => tracing::debug!("a log subscriber is set already and stays"),
    }
}

/// A share's thread has its slot in a span, which stands in each of its lines: an event that tells it too does not say it twice.
/// JSON has the two under names of their own.
#[derive(Debug)]
struct HumanFields;

impl<'w> FormatFields<'w> for HumanFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let span = tracing::Span::current();
        let span_has = |name| span.metadata()?.fields().field(name);
        let mut visitor = Unsaid {
            visitor: DefaultVisitor::new(writer, true),
            is_slot_said: span_has(SLOT).is_some(),
        };
        fields.record(&mut visitor);
        visitor.visitor.finish()
    }
}

/// Passes on what the span has not said.
struct Unsaid<'w> {
    visitor: DefaultVisitor<'w>,
    is_slot_said: bool,
}

impl Unsaid<'_> {
    fn is_said(&self, field: &Field) -> bool {
        self.is_slot_said && field.name() == SLOT
    }
}

impl Visit for Unsaid<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !self.is_said(field) {
            self.visitor.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        if !self.is_said(field) {
            self.visitor.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !self.is_said(field) {
            self.visitor.record_debug(field, value);
        }
    }
}

/// Logs by another filter from now on, where `init` has started the log.
pub fn set_filter(filter: &LogFilter) {
    if let Some(set) = SET_FILTER.get() {
        set(EnvFilter::new(&filter.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_walrelays_and_directives_are_anyones() {
        for (text, expected) in [
            ("off", "off"),
            ("error", "error,async_nats::connector=off"),
            ("WARN", "warn,async_nats::connector=off"),
            ("debug", "warn,async_nats::connector=off,walrelay=debug"),
            ("walrelay::nats=trace,warn", "walrelay::nats=trace,warn"),
        ] {
            assert_eq!(text.parse(), Ok(LogFilter(expected.to_owned())), "{text}");
        }
        assert_eq!("info".parse(), Ok(LogFilter::default()));
        for text in ["", "verbose", "walrelay=loud", "dbug"] {
            assert!(
                matches!(text.parse::<LogFilter>(), Err(LogError::Filter(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "xml".parse::<LogFormat>(),
            Err(LogError::Format(_))
        ));
    }
}
