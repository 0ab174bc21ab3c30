//! A key's text, and the error that says what is wrong with it.
//!
//! In: the layers. Out: the value, or an error that names the key, the value (masked), where it was given and what is
//! allowed.

use super::error::ConfigError;
use super::keys::Key;
use super::layers::{Layers, Value, mask};

/// The value of a key that has a default, or was derived.
pub(super) fn required(layers: &Layers, key: Key) -> &Value {
    layers
        .get(key)
        .expect("the key has a default, or resolve() derived it")
}

pub(super) fn checked<T>(
    layers: &Layers,
    key: Key,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    let value = required(layers, key);
    parse(&value.text).ok_or_else(|| invalid(key, value, expected.to_owned()))
}

pub(super) fn invalid(key: Key, value: &Value, expected: String) -> ConfigError {
    ConfigError::Value {
        key: key.path(),
        shown: mask(key, &value.text),
        origin: value.source.clone(),
        expected,
    }
}
