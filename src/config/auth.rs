//! How to authenticate at NATS: one way out of several keys.
//!
//! In: `nats.url`'s credentials, `nats.user` and `nats.password`, `nats.token`, `nats.credentials`,
//! `nats.nkey_seed` with or without `nats.jwt`. Out: one [`Login`]. Guarantee: the way from the highest layer is taken; two
//! from the same layer are an error, and so is one beside a login in the address, never a guess.

use std::path::PathBuf;

use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value};
use super::origin::ValueOrigin;
use crate::environment::Environment;
use crate::nats::address::NatsAuth;
use crate::nats::login::{Login, LoginError, is_secret, is_user_seed};
use crate::secret::Secret;

/// The ways that keys of their own give, in the order of messages.
const WAYS: &[&[Key]] = &[
    &[Key::NatsToken],
    &[Key::NatsUser, Key::NatsPassword],
    &[Key::NatsCredentials],
    &[Key::NatsNkeySeed, Key::NatsJwt],
];

/// Chooses the way to authenticate; `of_url` is what `nats.url` carries.
pub(super) fn choose(
    layers: &Layers,
    of_url: NatsAuth,
    environment: &Environment,
) -> Result<Login, ConfigError> {
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
        return Ok(NatsAuth::None.into());
    };
    let mut highest = given
        .iter()
        .filter(|(other, _)| *other == rank)
        .map(|(_, key)| *key);
    let Some(key) = highest.next() else {
        return Ok(NatsAuth::None.into());
    };
    // Who changes the address for a moment would log in as somebody else.
    let beside_url = given.get(1).map(|(_, key)| *key);
    let beside_url = beside_url.filter(|_| given[0].1 == Key::NatsUrl);
    if let Some(other) = highest.next().or(beside_url) {
        let key = if beside_url.is_some() {
            Key::NatsUrl
        } else {
            key
        };
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
        (Key::NatsToken, Some(value)) => Ok(match file(value, environment) {
            Some(path) => Login::TokenFile(path),
            None => NatsAuth::Token(Secret::new(&*value.text)).into(),
        }),
        (Key::NatsUser | Key::NatsPassword, _) => user_password(layers, environment),
        (Key::NatsCredentials, Some(value)) => of_file(key, value, Login::Credentials),
        (Key::NatsNkeySeed | Key::NatsJwt, _) => by_seed(layers),
        _ => Ok(of_url.into()),
    }
}

fn user_password(layers: &Layers, environment: &Environment) -> Result<Login, ConfigError> {
    let half = |given: Key, missing: Key| ConfigError::AuthHalf {
        given: given.path(),
        missing: missing.path(),
    };
    match (layers.get(Key::NatsUser), layers.get(Key::NatsPassword)) {
        (Some(user), Some(password)) => Ok(match file(password, environment) {
            Some(path) => Login::PasswordFile {
                user: user.text.clone(),
                path,
            },
            None => Login::Given(NatsAuth::UserPassword {
                user: user.text.clone(),
                password: Secret::new(&*password.text),
            }),
        }),
        (Some(_), None) => Err(half(Key::NatsUser, Key::NatsPassword)),
        _ => Err(half(Key::NatsPassword, Key::NatsUser)),
    }
}

/// By the seed alone, or by a JWT that it goes with.
fn by_seed(layers: &Layers) -> Result<Login, ConfigError> {
    let Some(seed) = layers.get(Key::NatsNkeySeed) else {
        return Err(ConfigError::AuthHalf {
            given: Key::NatsJwt.path(),
            missing: Key::NatsNkeySeed.path(),
        });
    };
    if let Some(jwt) = layers.get(Key::NatsJwt)
        && let (ValueOrigin::Context(_), ValueOrigin::Context(_)) = (&seed.source, &jwt.source)
    {
        if !is_user_seed(&seed.text) {
            return Err(failure(
                Key::NatsNkeySeed,
                &seed.source,
                "is no seed of a user (SU…)",
            ));
        }
        return Ok(Login::Given(NatsAuth::Jwt {
            jwt: Secret::new(&*jwt.text),
            seed: Secret::new(&*seed.text),
        }));
    }
    let login = of_file(Key::NatsNkeySeed, seed, Login::NkeySeed)?;
    let Some(jwt) = layers.get(Key::NatsJwt) else {
        return Ok(login);
    };
    let seed = PathBuf::from(seed.text.trim());
    of_file(Key::NatsJwt, jwt, |jwt| Login::JwtAndSeed { jwt, seed })
}

/// The file that a secret came from: it is read again at each connect.
fn file(value: &Value, environment: &Environment) -> Option<PathBuf> {
    match &value.source {
        ValueOrigin::Variable(variable) if variable.ends_with("_FILE") => {
            environment.get(variable).map(PathBuf::from)
        }
        _ => None,
    }
}

/// The path of a file; what stands in the file is not printed where it is given instead.
pub(super) fn file_path(key: Key, value: &Value) -> Result<PathBuf, ConfigError> {
    let text = value.text.trim();
    match is_secret(text) {
        true => Err(failure(
            key,
            &value.source,
            "is given by its content: give the file's path",
        )),
        false => Ok(PathBuf::from(text)),
    }
}

/// The login of the file that a key names, which must be readable now already. A secret that was put in the name's place
/// is not printed.
fn of_file(
    key: Key,
    value: &Value,
    login: impl FnOnce(PathBuf) -> Login,
) -> Result<Login, ConfigError> {
    let login = login(file_path(key, value)?);
    match login.read() {
        Ok(_) => Ok(login),
        Err(LoginError::File { problem, .. }) => Err(failure(key, &value.source, &problem)),
        Err(error) => Err(failure(key, &value.source, &error.to_string())),
    }
}

fn failure(key: Key, origin: &ValueOrigin, problem: &str) -> ConfigError {
    ConfigError::SecretFile {
        key: key.path(),
        origin: origin.clone(),
        problem: problem.to_owned(),
    }
}
