//! An event's id as a number, by which table, slot and stream are compared.
//!
//! In: the id's text. Out: 128 bits, and the text again. Guarantee: two ids share a number only where they are the same.

use uuid::Uuid;

/// The upper half of a whole number's key. A UUID with it is of no version that anything makes (RFC 9562, 4.2).
const WHOLE_NUMBER: u64 = 0x77_61_6c_72_65_6c_f0_00;

/// The id's number: of a UUID, or a whole number that a bigint holds. Other texts have none.
pub(in crate::cli) fn key(id: &str) -> Option<u128> {
    if let Ok(id) = Uuid::try_parse(id) {
        return Some(id.as_u128());
    }
    let number: i64 = id.parse().ok()?;
    Some(u128::from(WHOLE_NUMBER) << 64 | u128::from(number.cast_unsigned()))
}

/// The id again.
pub(in crate::cli) fn text(key: u128) -> String {
    match (key >> 64) as u64 {
        WHOLE_NUMBER => (key as u64).cast_signed().to_string(),
        _ => Uuid::from_u128(key).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back() {
        for id in [
            "0192f7a0-0000-7000-8000-000000000001",
            "00000000-0000-0000-0000-000000000001",
            "1",
            "0",
            "-1",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert_eq!(key(id).map(text).as_deref(), Some(id));
        }
        assert_ne!(key("1"), key("00000000-0000-0000-0000-000000000001"));
        for id in ["", "x", "9223372036854775808", "1.0"] {
            assert_eq!(key(id), None, "{id}");
        }
    }
}
