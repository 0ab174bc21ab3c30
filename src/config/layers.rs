//! The raw configuration: the text of each key and where it was given.
//!
//! In: flags, environment and file. Out: for each key the value of the highest layer (flag over
//! environment over file over default). Guarantee: nothing is interpreted here, and nothing that
//! may be secret is printed.

use std::collections::BTreeMap;
use std::path::Path;

use zeroize::Zeroize;

use super::error::ConfigError;
use super::keys::{Entry, KEYS, Key, Secrecy};
use super::origin::ValueOrigin;
use crate::environment::Environment;
use crate::nats::address::mask_urls;
use crate::nats::login::is_secret;
use crate::nearest::nearest;
use crate::postgres::conninfo;
use crate::secret::{self, MASK};

/// How all variables begin.
const PREFIX: &str = "WALRELAY_";

/// Variables that are no key's.
const OTHER_VARIABLES: &[&str] = &["WALRELAY_CONFIG", "WALRELAY_LOG_FORMAT"];

/// The text of a key and where it was given. No `Debug`: it may be secret.
#[derive(Clone)]
pub struct Value {
    /// As it was written; a list of URLs is joined by commas.
    pub text: String,
    /// Where.
    pub source: ValueOrigin,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// For each key the value of the highest layer that has one, defaults included.
#[derive(Clone, Default)]
pub struct Layers {
    values: BTreeMap<Key, Value>,
}

impl Layers {
    /// The defaults alone.
    pub(crate) fn of_defaults() -> Self {
        let defaults = KEYS.iter().filter_map(|entry| {
            Some((
                entry.key,
                Value {
                    text: entry.default?.to_owned(),
                    source: ValueOrigin::Default,
                },
            ))
        });
        Layers {
            values: defaults.collect(),
        }
    }

    /// The key's value, if it has one.
    pub fn get(&self, key: Key) -> Option<&Value> {
        self.values.get(&key)
    }

    /// Sets a value unless a higher layer already has.
    pub fn set(&mut self, key: Key, text: String, source: ValueOrigin) {
        if self
            .values
            .get(&key)
            .is_none_or(|present| present.source.rank() <= source.rank())
        {
            self.values.insert(key, Value { text, source });
        }
    }

    /// Changes a value where it was given.
    pub(super) fn rewrite(&mut self, key: Key, change: impl FnOnce(&str) -> String) {
        if let Some(value) = self.values.get_mut(&key) {
            value.text = change(&value.text);
        }
    }

    /// As if nobody had given a value.
    pub(super) fn forget(&mut self, key: Key) {
        self.values.remove(&key);
        if let Some(default) = key.entry().default {
            self.set(key, default.to_owned(), ValueOrigin::Default);
        }
    }

    /// Whether somebody has given a value.
    pub(super) fn is_given(&self, key: Key) -> bool {
        self.get(key).is_some_and(|value| value.source.rank() > 0)
    }

    /// Adds what the environment says, and warnings about variables that say nothing. Errors: a variable that is set twice,
    /// or a secret's file that cannot be read.
    pub(super) fn add_environment(
        &mut self,
        environment: &Environment,
        warnings: &mut Vec<String>,
        errors: &mut Vec<ConfigError>,
    ) {
        for entry in KEYS {
            let mut add = |variable: &str, origin: fn(String) -> ValueOrigin| match read_variable(
                entry,
                variable,
                environment,
            ) {
                Ok(Some((text, variable))) => self.set(entry.key, text, origin(variable)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            };
            if let Some(fallback) = entry.fallback {
                add(fallback, ValueOrigin::Fallback);
            }
            add(&entry.variable(), ValueOrigin::Variable);
        }
        warn_of_unknown(environment, warnings);
    }
}

/// A value as it may be shown.
pub(crate) fn mask(key: Key, text: &str) -> String {
    match key.entry().secrecy {
        Secrecy::Open => text.to_owned(),
        Secrecy::Secret => MASK.to_owned(),
        Secrecy::PostgresUrl => conninfo::mask(text),
        Secrecy::NatsUrls => mask_urls(text),
        Secrecy::SecretFile if is_secret(text) => MASK.to_owned(),
        Secrecy::SecretFile => text.to_owned(),
        Secrecy::Command => mask_arguments(text),
    }
}

/// A command's program, with a mask for its arguments.
fn mask_arguments(text: &str) -> String {
    match command_words(text).as_deref() {
        Some([program]) => program.clone(),
        Some([program, ..]) => format!("{program} {MASK}"),
        _ => MASK.to_owned(),
    }
}

/// A command as a list (JSON, as TOML writes it too), or else as words.
pub(super) fn command_words(text: &str) -> Option<Vec<String>> {
    match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text).ok(),
        false => Some(text.split_whitespace().map(str::to_owned).collect()),
    }
}

/// The value of a variable, or of the file that `<variable>_FILE` names.
fn read_variable(
    entry: &Entry,
    variable: &str,
    environment: &Environment,
) -> Result<Option<(String, String)>, ConfigError> {
    // Empty turns the listener and messages off, and says that no column has a field; otherwise it is how compose files spell "not set".
    let direct = match (entry.key, entry.section) {
        (Key::HttpListen | Key::SourceMessages, _) | (_, Some("columns")) => {
            environment.get_even_empty(variable)
        }
        _ => environment.get(variable),
    };
    let file_variable = format!("{variable}_FILE");
    let path = environment
        .get(&file_variable)
        .filter(|_| entry.has_file_variable());
    match (direct, path) {
        (Some(_), Some(_)) => Err(ConfigError::Twice {
            variable: variable.to_owned(),
        }),
        (Some(text), None) => Ok(Some((text.to_owned(), variable.to_owned()))),
        (None, Some(path)) => {
            let origin = ValueOrigin::Variable(file_variable.clone());
            let text = read_secret_file(entry.key, Path::new(path), &origin)?;
            Ok(Some((text, file_variable)))
        }
        (None, None) => Ok(None),
    }
}

/// Reads a small text file that holds a secret, without the line end that editors add.
pub(super) fn read_secret_file(
    key: Key,
    path: &Path,
    origin: &ValueOrigin,
) -> Result<String, ConfigError> {
    const BYTES_MAX: u64 = 64 * 1024;
    let failure = |problem: String| ConfigError::SecretFile {
        key: key.path(),
        origin: origin.clone(),
        problem,
    };
    let text = secret::read_file(path, BYTES_MAX)
        .map_err(|error| failure(format!("cannot be read: {error}")))?;
    let text = text.trim_end_matches(['\r', '\n']);
    match text.is_empty() {
        true => Err(failure("is empty".to_owned())),
        false => Ok(text.to_owned()),
    }
}

fn warn_of_unknown(environment: &Environment, warnings: &mut Vec<String>) {
    let known: Vec<String> = KEYS
        .iter()
        .flat_map(|entry| {
            let file = entry
                .has_file_variable()
                .then(|| format!("{}_FILE", entry.variable()));
            [Some(entry.variable()), file]
        })
        .flatten()
        .chain(
            OTHER_VARIABLES
                .iter()
                .map(|variable| (*variable).to_owned()),
        )
        .collect();
    let unknown = environment
        .names()
        .filter(|name| name.starts_with(PREFIX) && !known.iter().any(|known| known == name));
    let (links, others): (Vec<&str>, Vec<&str>) = unknown.partition(|name| is_service_link(name));
    for name in others {
        let hint = nearest(own_part(name), known.iter().map(|known| own_part(known)))
            .map(|known| format!("; did you mean {PREFIX}{known}?"))
            .unwrap_or_default();
        warnings.push(format!(
            "the environment variable {name} is not known and is ignored{hint}"
        ));
    }
    if !links.is_empty() {
        warnings.push(format!(
            "{} look like Kubernetes' service links and are ignored (`enableServiceLinks: false` ends them)",
            links.join(", ")
        ));
    }
}

/// A variable's name without what all have in common, which would make any two of them near.
fn own_part(variable: &str) -> &str {
    variable.strip_prefix(PREFIX).unwrap_or(variable)
}

/// Whether Kubernetes injects a variable of this name beside a service (`{SVC}_SERVICE_HOST`,
/// `{SVC}_SERVICE_PORT…`, `{SVC}_PORT`, `{SVC}_PORT_<number>_TCP…`).
fn is_service_link(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT")
    {
        return true;
    }
    let Some((_, rest)) = name.split_once("_PORT_") else {
        return false;
    };
    let mut words = rest.split('_');
    words
        .next()
        .is_some_and(|number| number.parse::<u16>().is_ok())
        && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
}
