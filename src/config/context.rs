//! A context of the NATS command line: servers and credentials that people have already.
//!
//! In: `nats.context`, a name or a path, and the environment. Out: the values of the context's file as a layer below the
//! configuration file. Guarantee: what walrelay does not know how to use is an error, never left out in silence.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value};
use super::origin::ValueOrigin;
use crate::environment::Environment;

/// The file of a context, as far as it is about connecting; empty texts mean nothing.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    tls_first: bool,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
    nsc: String,
    socks_proxy: String,
    user_jwt: String,
    user_seed: String,
    windows_cert_store: String,
}

/// Adds the context's values, where one is named.
///
/// # Errors
/// The file cannot be read, or asks for what walrelay does not do.
pub(super) fn add(layers: &mut Layers, environment: &Environment) -> Result<(), ConfigError> {
    let Some(named) = layers.get(Key::NatsContext).cloned() else {
        return Ok(());
    };
    let failed = |problem: String| ConfigError::Context {
        name: named.text.clone(),
        origin: named.source.clone(),
        problem,
    };
    let path = path(&named, environment).map_err(failed)?;
    let text = fs::read_to_string(&path)
        .map_err(|error| failed(format!("{} cannot be read: {error}", path.display())))?;
    // The parser's error could show a part of the text.
    let context: Context = serde_json::from_str(&text).map_err(|error| {
        failed(format!(
            "{}:{}: not the JSON of a context",
            path.display(),
            error.line()
        ))
    })?;
    for (field, value) in [
        ("nsc", &context.nsc),
        ("socks_proxy", &context.socks_proxy),
        ("windows_cert_store", &context.windows_cert_store),
    ] {
        if !value.is_empty() {
            return Err(failed(format!(
                "{} uses {field}, which walrelay does not know: give a credentials file (creds) there, or the keys of [nats]",
                path.display()
            )));
        }
    }
    let home = environment.get("HOME").map(PathBuf::from);
    let expanded = |text: &str| match (text.strip_prefix("~/"), &home) {
        (Some(rest), Some(home)) => home.join(rest).display().to_string(),
        _ => text.to_owned(),
    };
    let first = if context.tls_first { "true" } else { "" };
    for (key, value) in [
        (Key::NatsUrl, context.url.clone()),
        (Key::NatsToken, context.token.clone()),
        (Key::NatsUser, context.user.clone()),
        (Key::NatsPassword, context.password.clone()),
        (Key::NatsCredentials, expanded(&context.creds)),
        (Key::NatsNkeySeed, expanded(&context.nkey)),
        // In place of files, their contents.
        (Key::NatsJwt, context.user_jwt.clone()),
        (Key::NatsNkeySeed, context.user_seed.clone()),
        (Key::NatsTlsCert, expanded(&context.cert)),
        (Key::NatsTlsKey, expanded(&context.key)),
        (Key::NatsTlsCa, expanded(&context.ca)),
        (Key::NatsTlsFirst, first.to_owned()),
        (Key::NatsDomain, context.jetstream_domain.clone()),
        (Key::NatsApiPrefix, context.jetstream_api_prefix.clone()),
        (Key::NatsInboxPrefix, context.inbox_prefix.clone()),
    ] {
        if !value.is_empty() {
            layers.set(key, value, ValueOrigin::Context(path.clone()));
        }
    }
    Ok(())
}

/// `<config>/nats/context/<name>.json`, or the path itself.
fn path(named: &Value, environment: &Environment) -> Result<PathBuf, String> {
    let name = named.text.trim();
    if name.contains('/') {
        return Ok(Path::new(name).to_owned());
    }
    let config = match (environment.get("XDG_CONFIG_HOME"), environment.get("HOME")) {
        (Some(config), _) => PathBuf::from(config),
        (None, Some(home)) => Path::new(home).join(".config"),
        (None, None) => {
            return Err(
                "neither XDG_CONFIG_HOME nor HOME is set: give the path of its file".to_owned(),
            );
        }
    };
    let path = config.join("nats/context").join(format!("{name}.json"));
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "there is no {}: `nats context ls` lists those that there are",
            path.display()
        )),
    }
}
