//! Why a configuration cannot be used.

use std::io;
use std::path::PathBuf;

use super::keys::{KEYS, Key};
use super::origin::ValueOrigin;
use crate::pipeline::subject::TemplateError;
use crate::postgres::conninfo::ConninfoError;

/// Why a configuration cannot be used; all of them end a command with exit code 2. None shows a
/// secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for, or that is there, cannot be read.
    #[error("configuration file {} cannot be read{}", path.display(), who_may(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The parser's, without the line itself, which may hold a secret.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}:{line}: unknown key `{key}`{}", path.display(), did_you_mean(.nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// With its section.
        key: String,
        /// The key that was probably meant, with its section.
        nearest: Option<String>,
    },
    /// The same in an entry of `source.tables`.
    #[error("unknown key `{key}`{}", did_you_mean(.nearest))]
    UnknownEntryKey {
        /// With its table in the entry.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A value of a type that the key does not take.
    #[error("{}:{line}: `{key}` must be {expected}", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// With its section.
        key: String,
        /// What it takes.
        expected: &'static str,
    },
    /// A value outside what the key takes.
    #[error("{key} = \"{shown}\" ({origin}) must be {expected}")]
    Value {
        /// With its section.
        key: String,
        /// The value, masked.
        shown: String,
        /// Where it was given.
        origin: ValueOrigin,
        /// The range or the syntax.
        expected: String,
    },
    /// A subject that NATS, or walrelay, does not permit.
    #[error("nats.subject = \"{shown}\" ({origin})")]
    Subject {
        /// The template.
        shown: String,
        /// Where it was given.
        origin: ValueOrigin,
        /// What is wrong with it.
        source: TemplateError,
    },
    /// A further table of the lane.
    #[error("source.tables, {table}")]
    Table {
        /// As it is named there.
        table: String,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
    /// The Postgres connection string, or the PG* variables.
    #[error("postgres.url ({origin})")]
    Conninfo {
        /// Where the string was given.
        origin: ValueOrigin,
        /// What is wrong with it.
        source: ConninfoError,
    },
    /// A context of the NATS command line.
    #[error("nats.context = \"{name}\" ({origin}): {problem}")]
    Context {
        /// Its name, or its file.
        name: String,
        /// Where it was named.
        origin: ValueOrigin,
        /// What is wrong with it.
        problem: String,
    },
    /// Two keys that say the same.
    #[error("{first} and {second} both say where the JetStream API listens: remove one")]
    ApiTwice {
        /// With its source.
        first: String,
        /// With its source.
        second: String,
    },
    /// One of several shares is needed.
    #[error("this command is about one share: say which with --share, 0 to {last}")]
    WhichShare {
        /// The highest number.
        last: usize,
    },
    /// A variable and its `…_FILE` are both set.
    #[error("{variable} and {variable}_FILE are both set: remove one")]
    Twice {
        /// Without `_FILE`.
        variable: String,
    },
    /// A file that should hold a secret.
    #[error("the file of {key} ({origin}) {problem}")]
    SecretFile {
        /// With its section.
        key: String,
        /// Where the file's name was given.
        origin: ValueOrigin,
        /// What is wrong with it.
        problem: String,
    },
    /// Two ways to authenticate.
    #[error("{first} and {second} are two ways to authenticate at NATS: remove one")]
    AuthTwice {
        /// With its source.
        first: String,
        /// With its source.
        second: String,
    },
    /// Two sources of the Postgres password.
    #[error("{first} and {second} both give the password of Postgres: remove one")]
    PasswordTwice {
        /// With its source.
        first: String,
        /// With its source.
        second: String,
    },
    /// More than one of them: a line each.
    #[error("{}", lines(.0))]
    Several(Vec<ConfigError>),
    /// Half of a user and password.
    #[error("{given} is given without {missing}")]
    AuthHalf {
        /// The key that is there.
        given: String,
        /// The key that is not.
        missing: String,
    },
}

impl ConfigError {
    /// All that was found, at least one.
    pub(super) fn all(mut errors: Vec<ConfigError>) -> Self {
        match errors.len() {
            1 => errors.remove(0),
            _ => ConfigError::Several(errors),
        }
    }

    /// Whether it is the same fault as another, or comes of it: one of a PG* variable stays where the URL is left out.
    pub(super) fn repeats(&self, other: &ConfigError) -> bool {
        match (self, other) {
            (
                ConfigError::Conninfo { source, .. },
                ConfigError::Conninfo { source: before, .. },
            ) => source.to_string() == before.to_string(),
            // The default that stands where a value was left out.
            (
                ConfigError::Value {
                    key,
                    origin: ValueOrigin::Default,
                    ..
                },
                before,
            ) => before.keys().iter().any(|left_out| left_out.path() == *key),
            _ => false,
        }
    }

    /// The keys without which one can see what else is wrong.
    pub(super) fn keys(&self) -> Vec<Key> {
        match self {
            ConfigError::SecretFile { key, .. } if *key == Key::NatsTlsCert.path() => {
                vec![Key::NatsTlsCert, Key::NatsTlsKey]
            }
            ConfigError::Value { key, .. } | ConfigError::SecretFile { key, .. } => {
                let entry = KEYS.iter().find(|entry| entry.path() == *key);
                entry.map(|entry| entry.key).into_iter().collect()
            }
            ConfigError::Subject { .. } => vec![Key::NatsSubject],
            ConfigError::Table { .. } => vec![Key::SourceTables],
            ConfigError::Conninfo { .. } => vec![Key::PostgresUrl],
            ConfigError::Context { .. } => vec![Key::NatsContext],
            ConfigError::ApiTwice { .. } => vec![Key::NatsDomain, Key::NatsApiPrefix],
            ConfigError::PasswordTwice { .. } => {
                vec![Key::PostgresPassword, Key::PostgresPasswordCommand]
            }
            ConfigError::AuthHalf { given, .. } if given.starts_with("nats.tls_") => {
                vec![Key::NatsTlsCert, Key::NatsTlsKey]
            }
            ConfigError::AuthTwice { .. } | ConfigError::AuthHalf { .. } => vec![
                Key::NatsUser,
                Key::NatsPassword,
                Key::NatsToken,
                Key::NatsCredentials,
                Key::NatsNkeySeed,
            ],
            ConfigError::Unreadable { .. }
            | ConfigError::Syntax { .. }
            | ConfigError::UnknownKey { .. }
            | ConfigError::UnknownEntryKey { .. }
            | ConfigError::Type { .. }
            | ConfigError::Twice { .. }
            | ConfigError::WhichShare { .. }
            | ConfigError::Several(_) => Vec::new(),
        }
    }
}

/// A package's file may hold a password, and not everybody may read it.
fn who_may(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            " by this user (run walrelay as root or as its own user, or give --config FILE)"
        }
        _ => "",
    }
}

/// Each with its causes, which the message of the whole does not repeat.
fn lines(errors: &[ConfigError]) -> String {
    let line = |error: &ConfigError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|key| format!("; did you mean `{key}`?"))
        .unwrap_or_default()
}
