//! As [`super::text`], of what may not be there.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt::Display;
use std::str::FromStr;

pub(super) fn serialize<T: Display, S: Serializer>(
    value: &Option<T>,
    s: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(s)
}

pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Option::<String>::deserialize(d)?
        .map(|text| {
            text.parse()
                .map_err(|_| D::Error::custom(format!("{text:?} cannot be read")))
        })
        .transpose()
}
