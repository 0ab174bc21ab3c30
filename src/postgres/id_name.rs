//! Names by which ids are told apart, whatever their length.
//!
//! In: an id's text. Out: the text itself, or a hash. Guarantee: two ids share a name only where they are the same.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::id_column::{HASH_DIGITS, HASHED};

/// An id that is its own name.
pub(crate) enum Plain {
    /// A UUID, as Postgres writes it.
    Uuid(Uuid),
    /// A whole number that a bigint holds, as Postgres writes it.
    Number(i64),
}

impl Plain {
    /// The id, where it is one.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let mut written = Uuid::encode_buffer();
        let uuid = Uuid::try_parse(id).ok();
        let uuid = uuid.filter(|uuid| uuid.hyphenated().encode_lower(&mut written) == id);
        let number = || {
            let number: i64 = id.parse().ok()?;
            (itoa::Buffer::new().format(number) == id).then_some(Plain::Number(number))
        };
        uuid.map(Plain::Uuid).or_else(number)
    }
}

/// An id as it is where it is plain, else a name for it.
pub(crate) fn name_of(id: &str) -> Cow<'_, str> {
    if Plain::of(id).is_some() {
        return Cow::Borrowed(id);
    }
    let digits = Sha256::digest(id.as_bytes())
        .iter()
        .take(HASH_DIGITS / 2)
        .fold(HASHED.to_owned(), |name, byte| format!("{name}{byte:02x}"));
    Cow::Owned(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_postgres_writes_so_is_its_own_name() {
        for id in [
            "0192f7a0-0000-7000-8000-000000000001",
            "7",
            "-9223372036854775808",
        ] {
            assert_eq!(name_of(id), id);
        }
        // As `sha256sum` has it.
        assert_eq!(name_of("abc"), "sha256:ba7816bf8f01cfea414140de");
        for id in [
            "0192F7A0-0000-7000-8000-000000000001",
            "0192f7a0000070008000000000000001",
            "007",
            "+7",
            "9223372036854775808",
            "",
            "order/7",
        ] {
            assert!(name_of(id).starts_with(HASHED), "{id}");
        }
    }
}
