//! Which files have a secret.
//!
//! In: where values were given. Out: paths. Guarantee: nothing is read.

use std::path::PathBuf;

use super::Shown;
use super::keys::{Key, Secrecy};
use super::origin::ValueOrigin;
use crate::environment::Environment;

/// Where a value has a secret.
pub(super) fn of(shown: &Shown, environment: &Environment) -> Option<PathBuf> {
    let is_path = match shown.key.entry().secrecy {
        Secrecy::SecretFile => true,
        Secrecy::Open => shown.key == Key::NatsCredentials,
        _ => false,
    };
    let is_secret = match shown.key.entry().secrecy {
        Secrecy::Secret => true,
        // A path, or an address without a login, is shown as it is.
        _ => shown.text != shown.given.expose(),
    };
    match &shown.source {
        _ if is_path && !is_secret => Some(PathBuf::from(shown.given.expose())),
        ValueOrigin::File { path, .. } | ValueOrigin::Context(path) if is_secret => {
            Some(path.clone())
        }
        ValueOrigin::Variable(name) | ValueOrigin::Fallback(name)
            if is_secret && name.ends_with("_FILE") =>
        {
            environment.get(name).map(PathBuf::from)
        }
        _ => None,
    }
}
