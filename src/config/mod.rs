//! Configuration: flags, environment, file and defaults → [`Settings`].
//!
//! In: the command line's [`Flags`], the [`Environment`], a TOML file. Out: [`Loaded`]: the resolved
//! [`Settings`], each value with its source for `config show`, and warnings. Guarantee: flag over
//! environment over file over default, key by key; an unknown key is an error; every value has
//! passed its check; no secret is printed.
//!
//! Two types hold a configuration: [`layers::Layers`] is the text of each key and where it was
//! given, [`Settings`] is what the relay and the commands take.

#[cfg(feature = "cli")]
mod about;
mod auth;
mod checked;
mod context;
pub mod error;
pub mod file;
pub mod keys;
pub mod layers;
mod mapping;
mod nats_way;
pub mod origin;
pub mod quantity;
mod resolve;
mod secret_files;
mod shares;
pub mod syntax;
mod tables;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use error::ConfigError;
pub use keys::Key;
use keys::Secrecy;
use layers::Layers;
use origin::ValueOrigin;
#[cfg(feature = "cli")]
pub(crate) use shares::SHARES_MAX;

use crate::environment::Environment;
use crate::relay::settings::Settings;
use crate::secret::Secret;

/// What the command line says about the configuration. No `Debug`: it may hold secrets.
#[derive(Clone, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// The keys that have a flag of their own and were given.
    pub values: Vec<(Key, String)>,
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the relay and the commands take: one lane, or one for each share of this process.
    pub lanes: Vec<Settings>,
    /// Lanes that this process may have at once.
    pub lanes_max: usize,
    /// `[http]`
    pub http: HttpSettings,
    /// The keys that have a value, in the order of [`keys::KEYS`].
    pub values: Vec<Shown>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Files that have a secret.
    pub secret_files: Vec<PathBuf>,
    /// What people should know, without secrets.
    pub warnings: Vec<String>,
}

/// `[http]`: metrics, health and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen; `None` is off.
    pub listen: Option<SocketAddr>,
    /// Somebody chose the address; the default one gives way where another relay of this machine has it.
    pub chosen: bool,
}

/// A value as `config show` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Which key.
    pub key: Key,
    /// Its text, masked.
    pub text: String,
    /// Its text.
    pub given: Secret,
    /// Where it was given.
    pub source: ValueOrigin,
}

impl Loaded {
    /// The only lane.
    ///
    /// # Errors
    /// There are several shares: somebody has to say which.
    pub fn lane(&self) -> Result<&Settings, ConfigError> {
        match &self.lanes[..] {
            [lane] => Ok(lane),
            lanes => Err(ConfigError::WhichShare {
                last: lanes.len() - 1,
            }),
        }
    }

    /// The value of a key, where it has one.
    pub fn shown(&self, key: Key) -> Option<&Shown> {
        self.values.iter().find(|shown| shown.key == key)
    }

    /// The keys that have another value in `now`, and that nothing reads again while it runs.
    pub fn changed(&self, now: &Loaded) -> impl Iterator<Item = Key> {
        let value = |loaded: &Loaded, key| loaded.shown(key).cloned();
        let changed = keys::KEYS.iter().filter(move |entry| {
            let [old, new] = [self, now].map(|loaded| value(loaded, entry.key));
            let text = |shown: &Option<Shown>| shown.as_ref().map(|shown| shown.given.clone());
            text(&old) != text(&new) && !new.is_some_and(|new| new.is_read_again())
        });
        changed.map(|entry| entry.key)
    }
}

impl Shown {
    /// The log level by SIGHUP, and a secret's file at each connect.
    fn is_read_again(&self) -> bool {
        let is_file =
            matches!(&self.source, ValueOrigin::Variable(name) if name.ends_with("_FILE"));
        self.key == Key::LogLevel || is_file && self.key.entry().secrecy == Secrecy::Secret
    }
}

/// Loads the configuration from the file that `--config` or `WALRELAY_CONFIG` names, else from the
/// first of [`file::PLACES`] that is there.
///
/// # Errors
/// [`ConfigError`]: exit code 2.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Loaded, ConfigError> {
    let places: Vec<PathBuf> = file::PLACES.iter().map(PathBuf::from).collect();
    load_from(flags, environment, &places)
}

/// As [`load`], with other places for the file.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_from(
    flags: &Flags,
    environment: &Environment,
    places: &[PathBuf],
) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::of_defaults();
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let asked = flags
        .config
        .clone()
        .or_else(|| environment.get("WALRELAY_CONFIG").map(PathBuf::from));
    let found = file::find(asked.as_deref(), places)?;
    if let Some((path, text)) = &found {
        file::add(&mut layers, path, text, &mut errors);
    }
    layers.add_environment(environment, &mut warnings, &mut errors);
    for (key, text) in &flags.values {
        let flag = key
            .entry()
            .flag
            .expect("only keys with a flag of their own can be given by one");
        layers.set(*key, text.clone(), ValueOrigin::Flag(flag));
    }
    let resolved = resolve_all(&mut layers, environment, &mut warnings, errors)?;
    let values = keys::KEYS.iter().filter_map(|entry| {
        let value = layers.get(entry.key)?;
        Some(Shown {
            key: entry.key,
            text: layers::mask(entry.key, &value.text),
            given: Secret::new(&*value.text),
            source: value.source.clone(),
        })
    });
    let values: Vec<Shown> = values.collect();
    let secret_files = values.iter();
    let secret_files = secret_files.filter_map(|shown| secret_files::of(shown, environment));
    let resolve::Resolved {
        lanes,
        lanes_max,
        http,
    } = resolved;
    Ok(Loaded {
        lanes,
        lanes_max,
        http,
        secret_files: secret_files.collect(),
        values,
        file: found.map(|(path, _)| path),
        warnings,
    })
}

/// Resolves the layers. What is wrong is told together: without the value that one error is about, the next is looked for.
fn resolve_all(
    layers: &mut Layers,
    environment: &Environment,
    warnings: &mut Vec<String>,
    mut errors: Vec<ConfigError>,
) -> Result<resolve::Resolved, ConfigError> {
    loop {
        let (mut resolved, mut told) = (layers.clone(), Vec::new());
        let attempt = context::add(&mut resolved, environment)
            .and_then(|()| resolve::resolve(&mut resolved, environment, &mut told));
        match attempt {
            Ok(lanes) if errors.is_empty() => {
                *layers = resolved;
                warnings.append(&mut told);
                return Ok(lanes);
            }
            Ok(_) => return Err(ConfigError::all(errors)),
            Err(error) => {
                let keys = error.keys();
                if !errors.iter().any(|before| error.repeats(before)) {
                    errors.push(error);
                }
                if !keys.iter().any(|key| layers.is_given(*key)) {
                    return Err(ConfigError::all(errors));
                }
                keys.into_iter().for_each(|key| layers.forget(key));
            }
        }
    }
}

impl Settings {
    /// Defaults for everything but the two servers: what an application needs that runs the relay in itself. No variable of
    /// the environment counts, and no file: neither `WALRELAY_…` nor libpq's `PG…` and password file. Any other setting can
    /// be changed afterwards, or read by [`load`].
    ///
    /// # Errors
    /// A URL that cannot be read.
    pub fn of_urls(postgres: &str, nats: &str) -> Result<Settings, ConfigError> {
        let flags = Flags {
            config: None,
            values: vec![
                (Key::PostgresUrl, postgres.to_owned()),
                (Key::NatsUrl, nats.to_owned()),
            ],
        };
        let loaded = load_from(&flags, &Environment::without_variables(), &[])?;
        loaded.lane().cloned()
    }
}
