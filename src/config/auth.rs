//! How to authenticate at NATS: one way out of several keys.
//!
//! In: `nats.url`'s credentials, `nats.user` and `nats.password`, `nats.token`, `nats.credentials`,
//! `nats.nkey_seed`. Out: one [`NatsAuth`]. Guarantee: the way from the highest layer is taken; two
//! from the same layer are an error, never a guess.

use std::path::Path;

use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value, read_secret_file};
use super::origin::ValueOrigin;
use crate::nats::address::NatsAuth;
use crate::secret::Secret;

/// The ways that keys of their own give, in the order of messages.
const WAYS: &[&[Key]] = &[
    &[Key::NatsToken],
    &[Key::NatsUser, Key::NatsPassword],
    &[Key::NatsCredentials],
    &[Key::NatsNkeySeed],
];

/// Chooses the way to authenticate; `of_url` is what `nats.url` carries.
pub(super) fn choose(layers: &Layers, of_url: NatsAuth) -> Result<NatsAuth, ConfigError> {
    // (rank, first key that is given)
    let mut given: Vec<(u8, Key)> = Vec::new();
    if of_url != NatsAuth::None
        && let Some(url) = layers.get(Key::NatsUrl)
    {
        given.push((url.source.rank(), Key::NatsUrl));
    }
    for way in WAYS {
        let values = way
            .iter()
            .filter_map(|key| Some((layers.get(*key)?.source.rank(), *key)));
        given.extend(values.max_by_key(|(rank, _)| *rank));
    }
    let Some(rank) = given.iter().map(|(rank, _)| *rank).max() else {
        return Ok(NatsAuth::None);
    };
    let mut highest = given
        .iter()
        .filter(|(other, _)| *other == rank)
        .map(|(_, key)| *key);
    let Some(key) = highest.next() else {
        return Ok(NatsAuth::None);
    };
    if let Some(other) = highest.next() {
        let describe = |key: Key| match layers.get(key) {
            Some(value) => format!("{} ({})", key.path(), value.source),
            None => key.path(),
        };
        return Err(ConfigError::AuthTwice {
            first: describe(key),
            second: describe(other),
        });
    }
    match (key, layers.get(key)) {
        (Key::NatsToken, Some(value)) => Ok(NatsAuth::Token(Secret::new(&*value.text))),
        (Key::NatsUser | Key::NatsPassword, _) => user_password(layers),
        (Key::NatsCredentials, Some(value)) => credentials(value),
        (Key::NatsNkeySeed, Some(value)) => nkey_seed(value),
        _ => Ok(of_url),
    }
}

fn user_password(layers: &Layers) -> Result<NatsAuth, ConfigError> {
    let half = |given: Key, missing: Key| ConfigError::AuthHalf {
        given: given.path(),
        missing: missing.path(),
    };
    match (layers.get(Key::NatsUser), layers.get(Key::NatsPassword)) {
        (Some(user), Some(password)) => Ok(NatsAuth::UserPassword {
            user: user.text.clone(),
            password: Secret::new(&*password.text),
        }),
        (Some(_), None) => Err(half(Key::NatsUser, Key::NatsPassword)),
        _ => Err(half(Key::NatsPassword, Key::NatsUser)),
    }
}

/// Reads a credentials file as `nsc` writes it: a user JWT and its seed, each between its marks.
fn credentials(value: &Value) -> Result<NatsAuth, ConfigError> {
    let text = read_path(Key::NatsCredentials, value)?;
    match (
        between_marks(&text, "NATS USER JWT"),
        between_marks(&text, "USER NKEY SEED"),
    ) {
        (Some(jwt), Some(seed)) if is_user_seed(seed) => Ok(NatsAuth::Jwt {
            jwt: Secret::new(jwt),
            seed: Secret::new(seed),
        }),
        _ => Err(failure(
            Key::NatsCredentials,
            &value.source,
            "is no credentials file: it has no NATS USER JWT or no valid USER NKEY SEED",
        )),
    }
}

fn nkey_seed(value: &Value) -> Result<NatsAuth, ConfigError> {
    let text = read_path(Key::NatsNkeySeed, value)?;
    let seed = between_marks(&text, "USER NKEY SEED").unwrap_or(text.trim());
    match is_user_seed(seed) {
        true => Ok(NatsAuth::NKey {
            seed: Secret::new(seed),
        }),
        false => Err(failure(
            Key::NatsNkeySeed,
            &value.source,
            "holds no seed of a user (SU…)",
        )),
    }
}

/// Reads the file that a key names. A secret that was put in the name's place is not printed.
fn read_path(key: Key, value: &Value) -> Result<String, ConfigError> {
    let text = value.text.trim();
    if text.contains('\n')
        || text.starts_with("-----BEGIN")
        || is_user_seed(text)
        || text.starts_with("eyJ")
    {
        return Err(failure(
            key,
            &value.source,
            "is given by its content: give the file's path",
        ));
    }
    read_secret_file(key, Path::new(text), &value.source)
}

fn is_user_seed(text: &str) -> bool {
    text.starts_with("SU") && nkeys::KeyPair::from_seed(text).is_ok()
}

/// The line between `-----BEGIN <what>-----` and `------END <what>------`.
fn between_marks<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {what}")))?;
    lines
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with("---"))
}

fn failure(key: Key, origin: &ValueOrigin, problem: &str) -> ConfigError {
    ConfigError::SecretFile {
        key: key.path(),
        origin: origin.clone(),
        problem: problem.to_owned(),
    }
}
