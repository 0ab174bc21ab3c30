//! What a command was started with: flags and environment, from which its configuration can be loaded again.
//!
//! In: the command line, the process' environment. Out: a configuration, and the log that it asks for.

use std::path::PathBuf;

use super::GlobalArgs;
use super::exit::UsageError;
use crate::config::{self, Flags, Key, Loaded};
use crate::environment::Environment;
use crate::ops::logs::{self, LogError, LogFilter, LogFormat};

/// libpq's variables that say where to connect.
const LIBPQ: [&str; 5] = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE"];

/// Flags and environment of this process.
#[derive(Clone)]
pub struct Given {
    config: Option<PathBuf>,
    /// `--log-level` or `-v`.
    log_level: Option<String>,
    values: Vec<(Key, String)>,
    environment: Environment,
}

impl Given {
    /// Starts the log as flags and environment want it: the file is read later, and what is wrong there is logged too.
    pub(super) fn start(global: GlobalArgs, environment: Environment) -> Result<Self, UsageError> {
        let format = match (global.log_format, environment.get("WALRELAY_LOG_FORMAT")) {
            (Some(format), _) => format,
            (None, Some(text)) => text
                .parse()
                .map_err(|error| UsageError(format!("WALRELAY_LOG_FORMAT: {error}")))?,
            (None, None) => LogFormat::Human,
        };
        let log_level = global.log_level.or(match global.verbose {
            0 => None,
            1 => Some("debug".to_owned()),
            _ => Some("trace".to_owned()),
        });
        let variable = Key::LogLevel.entry().variable();
        let filter = match (&log_level, environment.get(&variable)) {
            (Some(text), _) => text.parse(),
            (None, Some(text)) => text.parse(),
            (None, None) => Ok(LogFilter::default()),
        };
        let filter: LogFilter =
            filter.map_err(|error: LogError| UsageError(format!("{variable}: {error}")))?;
        logs::init(format, &filter);
        Ok(Given {
            config: global.config,
            log_level,
            values: Vec::new(),
            environment,
        })
    }

    /// The environment of this process.
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// With the command's own flags.
    pub(super) fn with(mut self, values: Vec<(Key, String)>) -> Self {
        self.values = values;
        let level = self.log_level.take();
        self.values
            .extend(level.map(|level| (Key::LogLevel, level)));
        self
    }

    /// Loads the configuration, and logs as it says from now on.
    pub(super) fn load_with_log(&self) -> Result<Loaded, anyhow::Error> {
        let loaded = self.load()?;
        logs::set_filter(&self.filter(&loaded)?);
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(loaded)
    }

    /// The same for a command that connects: one that nobody has told where tries what is nobody's.
    pub(super) fn load_to_connect(&self) -> Result<Loaded, anyhow::Error> {
        let loaded = self.load_with_log()?;
        if !self.names_a_database(&loaded) {
            tracing::warn!(
                "nothing names a database: there is no ./walrelay.toml, no /etc/walrelay/walrelay.toml and no WALRELAY_POSTGRES_URL; \
                 trying what a client of Postgres tries by itself. `walrelay config show` has every key"
            );
        }
        Ok(loaded)
    }

    /// Whether somebody has said which one: a file, the URL, or libpq's variables.
    fn names_a_database(&self, loaded: &Loaded) -> bool {
        let is_set = |name: &&str| self.environment.get(name).is_some();
        loaded.file.is_some()
            || loaded.shown(Key::PostgresUrl).is_some()
            || LIBPQ.iter().any(is_set)
    }

    /// The configuration as it is now.
    pub(super) fn load(&self) -> Result<Loaded, anyhow::Error> {
        let flags = Flags {
            config: self.config.clone(),
            values: self.values.clone(),
        };
        Ok(config::load(&flags, &self.environment)?)
    }

    /// What it wants to be logged.
    pub(super) fn filter(&self, loaded: &Loaded) -> Result<LogFilter, anyhow::Error> {
        let level = loaded.shown(Key::LogLevel).expect("the key has a default");
        let filter = level.text.parse();
        Ok(filter.map_err(|error: LogError| {
            UsageError(format!("log.level ({}): {error}", level.source))
        })?)
    }
}
