//! A bytea as it is sent, `\\x0102` (manual, 8.4.1).
//!
//! In: its text. Out: bytes, base64, a UUID. Guarantee: total; a text in another format is taken as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;

/// A bytea in base64.
pub fn base64(text: &[u8]) -> Vec<u8> {
    STANDARD.encode(bytes_of(text)).into_bytes()
}

/// The bytes of a bytea, sent as `\x0102`; its text where `bytea_output` has another form.
pub(crate) fn bytes_of(text: &[u8]) -> Cow<'_, [u8]> {
    let nibble = |digit: u8| (digit as char).to_digit(16);
    let bytes = text.strip_prefix(br"\x").and_then(|digits| {
        let pairs = digits.chunks_exact(2);
        pairs.remainder().is_empty().then_some(())?;
        pairs
            .map(|pair| Some((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8))
            .collect::<Option<Vec<u8>>>()
    });
    bytes.map_or(Cow::Borrowed(text), Cow::Owned)
}

/// An id: a UUID's text where it has 16 bytes, else base64.
pub(crate) fn id_of_bytes(text: &[u8]) -> Vec<u8> {
    match uuid::Uuid::from_slice(&bytes_of(text)) {
        Ok(id) => id.to_string().into_bytes(),
        Err(_) => base64(text),
    }
}
