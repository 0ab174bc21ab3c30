//! The id of the event that a stored message carries, whatever its format.
//!
//! In: the message's headers and body. Out: the id's text, as the row had it. Guarantee: a payload that has an `id` of its
//! own is not taken for an envelope where a header tells the event's id.

use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

/// Headers that tell an event's id where the body does not: of a payload alone, of a CloudEvent in binary mode.
pub const ID_HEADERS: [&str; 2] = ["id", "ce-id"];

/// The id that the values of [`ID_HEADERS`] tell.
pub(crate) fn of_headers(values: [Option<&str>; 2]) -> Option<String> {
    match values {
        [Some(id), _] if id.starts_with(JSON_BEGINS) => of_json(id),
        [Some(id), _] => Some(id.to_owned()),
        [None, Some(id)] => Some(of_attribute(id)),
        [None, None] => None,
    }
}

/// The value of a CloudEvent's attribute in a header.
pub(crate) fn of_attribute(value: impl AsRef<str>) -> String {
    percent_decode_str(value.as_ref())
        .decode_utf8_lossy()
        .into_owned()
}

/// A header's value that begins so is JSON: where headers are JSON, or where the id itself begins so or has blanks at its ends.
pub(crate) const JSON_BEGINS: [char; 2] = ['"', '{'];

/// A string, or one with its schema, as Debezium writes it by default.
fn of_json(id: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Id {
        Plain(String),
        WithSchema { payload: String },
    }
    Some(match serde_json::from_str(id).ok()? {
        Id::Plain(id) | Id::WithSchema { payload: id } => id,
    })
}

/// The `id` of an envelope, a CloudEvent or a dead letter: a string, or a number as it is written.
pub(crate) fn of_body(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Id<'b> {
        #[serde(borrow)]
        id: &'b RawValue,
    }
    // An array would be read as the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let id = serde_json::from_slice::<Id<'_>>(body).ok()?.id.get();
    match id.as_bytes().first()? {
        b'"' => serde_json::from_str(id).ok(),
        b'-' | b'0'..=b'9' => Some(id.to_owned()),
        _ => None,
    }
}

/// Whether an id is a UUID: it is of one event then, wherever its row is copied, and is not given out again.
#[cfg(feature = "relay")]
pub(crate) fn is_uuid(id: &str) -> bool {
    uuid::Uuid::try_parse(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_attribute_is_percent_encoded() {
        let id = Some("a%20b");
        assert_eq!(of_headers([id, None]).as_deref(), Some("a%20b"));
        assert_eq!(of_headers([None, id]).as_deref(), Some("a b"));
        assert_eq!(of_headers([None, None]), None);
        let quoted = of_headers([Some(r#""a\"b""#), None]);
        assert_eq!(quoted.as_deref(), Some("a\"b"));
        let with_schema = r#"{"schema":{"type":"string","optional":false},"payload":"a"}"#;
        assert_eq!(of_headers([Some(with_schema), None]).as_deref(), Some("a"));
        assert_eq!(of_headers([Some("\"a"), None]), None);
    }

    #[test]
    fn ids_in_bodies_are_strings_or_numbers() {
        for (body, expected) in [
            (r#"{"id":"a\"b","x":1}"#, Some("a\"b")),
            (r#"{"x":{"id":"no"},"id": 42}"#, Some("42")),
            (r#"{"id":null}"#, None),
            (r#"{"id":{}}"#, None),
            (r#"{"x":1}"#, None),
            ("[1]", None),
            ("no JSON", None),
        ] {
            assert_eq!(of_body(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }
}
