//! An event's id as a number, by which table, slot and stream are compared.
//!
//! In: the id's text. Out: 128 bits, and the name again. Guarantee: two ids share a number only where they
//! share a name, or one is a UUID that begins like a marker here.

use uuid::Uuid;

use crate::postgres::id_column::HASHED;
use crate::postgres::id_name::{Plain, name_of};

/// The upper half of a whole number's key. A UUID with it is of no version that anything makes (RFC 9562, 4.2).
const WHOLE_NUMBER: u64 = 0x77_61_6c_72_65_6c_f0_00;
/// The upper quarter of the key of any other text; its hash follows.
const OTHER_TEXT: u32 = 0x77_61_6c_74;

/// The number of an id.
pub(in crate::cli) fn key(id: &str) -> u128 {
    match Plain::of(id) {
        Some(Plain::Uuid(uuid)) => uuid.as_u128(),
        Some(Plain::Number(number)) => {
            u128::from(WHOLE_NUMBER) << 64 | u128::from(number.cast_unsigned())
        }
        None => hash(&name_of(id)).expect("what is not plain is named by its hash"),
    }
}

fn hash(name: &str) -> Option<u128> {
    let digits = name.strip_prefix(HASHED)?;
    let hash = u128::from_str_radix(digits, 16).ok()?;
    (hash >> 96 == 0).then_some(u128::from(OTHER_TEXT) << 96 | hash)
}

/// The id's name again: see [`name_of`].
pub(in crate::cli) fn text(key: u128) -> String {
    match ((key >> 96) as u32, (key >> 64) as u64) {
        (OTHER_TEXT, _) => format!("{HASHED}{:024x}", key & (u128::MAX >> 32)),
        (_, WHOLE_NUMBER) => (key as u64).cast_signed().to_string(),
        _ => Uuid::from_u128(key).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for id in [
            "0192f7a0-0000-7000-8000-000000000001",
            "00000000-0000-0000-0000-000000000001",
            "1",
            "0",
            "-1",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert_eq!(text(key(id)), id);
        }
        for id in ["", "x", "abc", "9223372036854775808", "1.0", "007"] {
            assert_eq!(text(key(id)), name_of(id));
        }
        // An id may look like a name.
        let name = text(key("abc"));
        assert_eq!(name, "sha256:ba7816bf8f01cfea414140de");
        assert_ne!(key(&name), key("abc"));
        assert_ne!(key("1"), key("00000000-0000-0000-0000-000000000001"));
        assert_ne!(key("7"), key("007"));
    }
}
