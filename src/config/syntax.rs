//! The syntax of names: slot, publication, stream, listener.
//!
//! In: a key's text. Out: whether the server will take it. Guarantee: what passes here is refused
//! by no server for its form.

use std::net::{Ipv4Addr, SocketAddr};

use crate::table_name::IDENTIFIER_BYTES_MAX;

/// Longest name of a stream, in bytes: it becomes a folder on the server.
const STREAM_BYTES_MAX: usize = 255;

/// Whether a text can be the relay's name: 1 to 63 letters, digits, `_`, `-` and `.`, the first a
/// letter or digit.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= IDENTIFIER_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// The slot and publication of a relay of this name: lower case, `_` for `-` and `.`, since slots
/// take nothing else. `my-app` gives `my_app`.
pub(crate) fn slot_of_name(name: &str) -> String {
    name.to_ascii_lowercase().replace(['-', '.'], "_")
}

/// Whether Postgres takes a slot of this name (manual, 26.2.6.1).
pub(crate) fn is_slot(text: &str) -> bool {
    (1..=IDENTIFIER_BYTES_MAX).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Whether Postgres keeps a publication of this name as it is.
pub(crate) fn is_publication(text: &str) -> bool {
    (1..=IDENTIFIER_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// What a stream's name must be, as an error says it.
pub(crate) const STREAM_FORM: &str = "1 to 255 bytes without spaces and . * > / \\";

/// A stream's name on the command line.
///
/// # Errors
/// What it must be.
pub fn parse_stream(text: &str) -> Result<String, String> {
    match is_stream(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("a stream's name is {STREAM_FORM}")),
    }
}

/// Whether JetStream takes a stream of this name (ADR-6).
pub(crate) fn is_stream(text: &str) -> bool {
    (1..=STREAM_BYTES_MAX).contains(&text.len())
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c))
}

/// Reads where to listen; an empty text is `None`, off. `localhost` is 127.0.0.1.
pub(crate) fn parse_listen(text: &str) -> Option<Option<SocketAddr>> {
    if text.is_empty() {
        return Some(None);
    }
    if let Some(number) = text.strip_prefix("localhost:") {
        return Some(Some(SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            number.parse::<u16>().ok()?,
        ))));
    }
    text.parse().ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_slots_that_postgres_takes() {
        for (name, slot) in [
            ("walrelay", "walrelay"),
            ("my-app", "my_app"),
            ("Shop.EU-1", "shop_eu_1"),
            ("9", "9"),
        ] {
            assert!(is_name(name), "{name}");
            assert_eq!(slot_of_name(name), slot);
            assert!(is_slot(slot) && is_publication(slot));
        }
        let long = "a".repeat(64);
        for name in ["", "-a", ".", "a b", "a/b", "é", long.as_str()] {
            assert!(!is_name(name), "{name}");
        }
        for slot in ["", "My", "a-b", "é", long.as_str()] {
            assert!(!is_slot(slot), "{slot}");
        }
        assert!(is_publication("My publication") && !is_publication("a\0b") && !is_publication(""));
    }

    #[test]
    fn streams_have_no_separators_and_wildcards() {
        assert!(is_stream("OUTBOX") && is_stream("outbox-1_é"));
        for text in ["", "a b", "a.b", "a*", ">", "a/b", "a\\b", "a\tb"] {
            assert!(!is_stream(text), "{text}");
        }
    }

    #[test]
    fn listeners() {
        assert_eq!(parse_listen(""), Some(None));
        for (text, expected) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("localhost:80", "127.0.0.1:80"),
            ("[::]:1", "[::]:1"),
        ] {
            assert_eq!(
                parse_listen(text),
                Some(Some(expected.parse().unwrap())),
                "{text}"
            );
        }
        for text in ["7187", ":7187", "h:1", "127.0.0.1", "127.0.0.1:65536"] {
            assert_eq!(parse_listen(text), None, "{text}");
        }
    }
}
