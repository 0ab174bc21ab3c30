//! The export by OTLP of a relay that runs.
//!
//! In: the environment, the relays' boards. Out: an exporter where it is asked for and built in. Guarantee: what is asked for and
//! not built in is refused, before anything is begun.

use crate::cli::exit::UsageError;
use crate::environment::Environment;
use crate::ops::otlp;
use crate::relay::board::Board;

/// What is to be exported.
pub(super) struct Telemetry {
    #[cfg(feature = "otlp")]
    settings: Option<otlp::OtlpSettings>,
}

/// An export under way, where there is one.
pub(super) struct Exporting {
    #[cfg(feature = "otlp")]
    exporter: Option<otlp::Exporter>,
}

/// What the environment asks for.
///
/// # Errors
/// It cannot be done as it is asked for.
#[cfg(feature = "otlp")]
pub(super) fn of(environment: &Environment) -> Result<Telemetry, UsageError> {
    let mut warnings = Vec::new();
    let settings = otlp::OtlpSettings::of(environment, &mut warnings);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let settings = settings.map_err(|error| UsageError(error.to_string()))?;
    Ok(Telemetry { settings })
}

/// What the environment asks for: nothing, in this build.
///
/// # Errors
/// It asks.
#[cfg(not(feature = "otlp"))]
pub(super) fn of(environment: &Environment) -> Result<Telemetry, UsageError> {
    match otlp::asked_by(environment) {
        None => Ok(Telemetry {}),
        Some(variable) => Err(UsageError(format!(
            "{variable} asks for an export by OTLP, and this walrelay is built without the cargo feature otlp: build it with \
             `cargo build --release --features otlp`, or set OTEL_SDK_DISABLED=true to run it without"
        ))),
    }
}

impl Telemetry {
    /// Begins.
    ///
    /// # Errors
    /// A file of certificates cannot be used.
    pub(super) fn start(self, boards: Vec<Board>) -> Result<Exporting, anyhow::Error> {
        #[cfg(not(feature = "otlp"))]
        drop(boards);
        Ok(Exporting {
            #[cfg(feature = "otlp")]
            exporter: (self.settings)
                .map(|settings| otlp::Exporter::start(settings, boards))
                .transpose()?,
        })
    }
}

impl Exporting {
    /// Exports what is left.
    pub(super) async fn flush(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.flush().await;
        }
    }
}
