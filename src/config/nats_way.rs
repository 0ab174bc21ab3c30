//! The way to NATS beside address and login: TLS, and the subjects by which JetStream is reached.
//!
//! In: the keys `nats.tls_…`, `nats.domain`, `nats.api_prefix`, `nats.inbox_prefix`. Out: the values of
//! [`ConnectionSettings`](crate::nats::settings::ConnectionSettings).

use super::auth::file_path;
use super::checked::{checked, required};
use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value};
use crate::nats::address::NatsAddress;
use crate::nats::api::DEFAULT_PREFIX;
use crate::nats::settings::NatsTls;
use crate::tls::{self, Identity, Roots, TlsError};

/// What a prefix of subjects looks like.
const SUBJECT: &str = "a subject without wildcards, such as _INBOX.walrelay";

/// How to encrypt. Who names roots or a certificate wants TLS, whatever the URL says.
pub(super) fn tls(layers: &Layers, servers: &[NatsAddress]) -> Result<NatsTls, ConfigError> {
    let path = |key| {
        let value: Option<&Value> = layers.get(key);
        value.map(|value| file_path(key, value)).transpose()
    };
    let half = |given: Key, missing: Key| ConfigError::AuthHalf {
        given: given.path(),
        missing: missing.path(),
    };
    let identity = match (path(Key::NatsTlsCert)?, path(Key::NatsTlsKey)?) {
        (Some(certificate), Some(key)) => Some(Identity {
            certificate,
            key,
            key_password: None,
        }),
        (Some(_), None) => return Err(half(Key::NatsTlsCert, Key::NatsTlsKey)),
        (None, Some(_)) => return Err(half(Key::NatsTlsKey, Key::NatsTlsCert)),
        (None, None) => None,
    };
    let roots = path(Key::NatsTlsCa)?;
    let first = checked(layers, Key::NatsTlsFirst, "true or false", |text| {
        text.parse().ok()
    })?;
    let required =
        first || identity.is_some() || roots.is_some() || servers.iter().any(|server| server.tls);
    // As sslrootcert=system says it of Postgres.
    let roots = match roots {
        Some(path) if path.as_os_str() != "system" => Roots::File(path),
        _ => Roots::System,
    };
    readable(layers, Key::NatsTlsCa, tls::check_files(&roots, None))?;
    readable(
        layers,
        Key::NatsTlsCert,
        tls::check_files(&Roots::System, identity.as_ref()),
    )?;
    Ok(NatsTls {
        required,
        first,
        roots,
        identity,
    })
}

/// What is wrong with a file that is there to be read at each connect, told before the first one.
fn readable(layers: &Layers, key: Key, checked: Result<(), TlsError>) -> Result<(), ConfigError> {
    checked.map_err(|error| ConfigError::SecretFile {
        key: key.path(),
        origin: required(layers, key).source.clone(),
        problem: format!("cannot be used: {error}"),
    })
}

/// Where the JetStream API listens.
pub(super) fn api_prefix(layers: &Layers) -> Result<String, ConfigError> {
    let rank = |key| layers.get(key).map(|value| value.source.rank());
    let (domain, prefix) = (rank(Key::NatsDomain), rank(Key::NatsApiPrefix));
    if domain.is_none() && prefix.is_none() {
        return Ok(DEFAULT_PREFIX.to_owned());
    }
    if domain == prefix {
        let shown = |key: Key| match layers.get(key) {
            Some(value) => format!("{} ({})", key.path(), value.source),
            None => key.path(),
        };
        return Err(ConfigError::ApiTwice {
            first: shown(Key::NatsDomain),
            second: shown(Key::NatsApiPrefix),
        });
    }
    if domain < prefix {
        return checked(layers, Key::NatsApiPrefix, SUBJECT, subject);
    }
    let domain = checked(
        layers,
        Key::NatsDomain,
        "the name of a JetStream domain, without dots",
        |text| subject(text).filter(|text| !text.contains('.')),
    )?;
    Ok(format!("$JS.{domain}.API"))
}

/// Where answers come to.
pub(super) fn inbox_prefix(layers: &Layers) -> Result<String, ConfigError> {
    checked(layers, Key::NatsInboxPrefix, SUBJECT, subject)
}

fn subject(text: &str) -> Option<String> {
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.contains(['*', '>'])
            && !word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    text.split('.').all(is_word).then(|| text.to_owned())
}
