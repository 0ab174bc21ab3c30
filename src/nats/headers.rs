//! The header block of a NATS message.
//!
//! In: the header bytes of an HMSG operation, or of a stored message. Out: the inline status, and values by name.
//! Lookup takes names as they are written (NATS does not fold case) and never copies. Malformed lines are skipped, never a panic.
//!
//! ```text
//! NATS/1.0[ <status>[ <description>]]\r\n
//! <name>:[ ]<value>\r\n
//! \r\n
//! ```

use bytes::BytesMut;
use memchr::memchr;

/// First bytes of every header block.
const VERSION: &[u8] = b"NATS/1.0";

/// Status of an answer that says that nobody listens on the subject.
pub(crate) const STATUS_NO_RESPONDERS: u16 = 503;

/// A view of one header block.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    first_line: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Looks at a header block; `None` where it does not begin with the version line.
    ///
    /// An empty block is no block.
    #[must_use]
    pub fn parse(block: &'a [u8]) -> Option<Self> {
        let (first_line, rest) = split_line(block)?;
        let first_line = first_line.strip_prefix(VERSION)?;
        Some(Self { first_line, rest })
    }

    /// The inline status code, such as 503; `None` for an ordinary message.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        let digits = self.first_line.trim_ascii_start().get(..3)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// The text behind the status code; empty where there is none.
    #[must_use]
    pub fn description(&self) -> &'a [u8] {
        let line = self.first_line.trim_ascii_start();
        line.get(3..).unwrap_or_default().trim_ascii()
    }

    /// The first value of `name`, without the blanks around it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.iter()
            .find(|(found, _)| *found == name.as_bytes())
            .map(|(_, value)| value)
    }

    /// All pairs of name and value, in the order of the block.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut rest = self.rest;
        std::iter::from_fn(move || {
            loop {
                let (line, behind) = split_line(rest)?;
                rest = behind;
                if let Some(colon) = memchr(b':', line) {
                    return Some((&line[..colon], line[colon + 1..].trim_ascii()));
                }
            }
        })
    }
}

/// The first line without its end, and what follows; a last line without an end counts.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.is_empty() {
        return None;
    }
    let (line, rest) = match memchr(b'\n', bytes) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    Some((line.strip_suffix(b"\r").unwrap_or(line), rest))
}

/// Appends a whole header block of the given pairs.
///
/// # Panics
/// Where a name or a value holds a line break, or a name a colon: that would write headers nobody asked for.
pub fn write_block(out: &mut BytesMut, pairs: &[(&str, &str)]) {
    out.extend_from_slice(b"NATS/1.0\r\n");
    for (name, value) in pairs {
        assert!(
            !name.contains([':', '\r', '\n']),
            "header name {name:?} is not legal"
        );
        assert!(
            !value.contains(['\r', '\n']),
            "value of header {name:?} holds a line break"
        );
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_inline_status() {
        let headers = Headers::parse(b"NATS/1.0 503\r\n\r\n").expect("a block");
        assert_eq!(headers.status(), Some(STATUS_NO_RESPONDERS));
        assert_eq!(headers.description(), b"");
        let headers =
            Headers::parse(b"NATS/1.0 404 Message Not Found\r\nA: b\r\n\r\n").expect("a block");
        assert_eq!(headers.status(), Some(404));
        assert_eq!(headers.description(), b"Message Not Found");
        assert_eq!(headers.get("A"), Some(&b"b"[..]));
    }

    #[test]
    fn looks_names_up_as_they_are_written() {
        let block = b"NATS/1.0\r\nWalrelay-Position: w 16/B374D848:3\r\nX:1\r\nX: 2\r\nno colon\r\nEmpty:\r\n\r\n";
        let headers = Headers::parse(block).expect("a block");
        assert_eq!(headers.status(), None);
        assert_eq!(
            headers.get("Walrelay-Position"),
            Some(&b"w 16/B374D848:3"[..])
        );
        assert_eq!(headers.get("walrelay-position"), None);
        assert_eq!(headers.get("X"), Some(&b"1"[..]));
        assert_eq!(headers.get("Empty"), Some(&b""[..]));
        assert_eq!(headers.iter().count(), 4);
    }

    #[test]
    fn refuses_what_is_no_block() {
        assert!(Headers::parse(b"").is_none());
        assert!(Headers::parse(b"HTTP/1.1 200\r\n").is_none());
    }

    #[test]
    fn written_blocks_read_back() {
        let mut out = BytesMut::new();
        write_block(&mut out, &[("A", "1"), ("B", "two words")]);
        let headers = Headers::parse(&out).expect("a block");
        assert_eq!(headers.get("A"), Some(&b"1"[..]));
        assert_eq!(headers.get("B"), Some(&b"two words"[..]));
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in any::<bool>()) {
            if version {
                bytes.splice(0..0, *b"NATS/1.0");
            }
            if let Some(headers) = Headers::parse(&bytes) {
                let _ = (headers.status(), headers.description(), headers.get("A"), headers.iter().count());
            }
        }
    }
}
