//! Text in the encoding of its database, as UTF-8.
//!
//! In: bytes of a text column as the database stores them. Out: the same text in UTF-8, or that it is none. Where the server
//! converts, one value that it cannot convert ends the stream in front of its row, at each attempt; here that row alone is
//! rejected. Text of a UTF-8 database is passed on as it is.

use super::pgoutput::Column;
use std::ops::Range;

/// How the database's text comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// As UTF-8, by the server's word.
    Utf8,
    /// As whatever bytes were stored: SQL_ASCII.
    Unchecked,
    /// A character a byte: what the bytes from 0x80 on mean; none for one that means nothing.
    SingleByte(Box<[Option<char>; 128]>),
}

/// What a value is in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Converted {
    /// What it was.
    Same,
    /// This part of the buffer.
    At(Range<usize>),
    /// No text.
    Not,
}

impl Encoding {
    /// A column's text in UTF-8, of which `buffer` keeps what had to be written anew; [`Column::NoText`] where it is none.
    pub(crate) fn column<'a>(&self, column: Column<'a>, buffer: &'a mut Vec<u8>) -> Column<'a> {
        let Column::Text(text) = column else {
            return column;
        };
        match self.utf8(text, buffer) {
            Converted::Same => column,
            Converted::At(range) => Column::Text(&buffer[range]),
            Converted::Not => Column::NoText(text),
        }
    }

    /// A text in UTF-8, written to the end of `buffer` where it is another one then.
    pub(crate) fn utf8(&self, text: &[u8], buffer: &mut Vec<u8>) -> Converted {
        if text.is_ascii() {
            return Converted::Same;
        }
        let begin = buffer.len();
        match self {
            Encoding::Utf8 => return Converted::Same,
            Encoding::Unchecked => match std::str::from_utf8(text) {
                Ok(_) => return Converted::Same,
                Err(_) => return Converted::Not,
            },
            Encoding::SingleByte(table) => {
                for &byte in text {
                    let Some(character) = character(table, byte) else {
                        buffer.truncate(begin);
                        return Converted::Not;
                    };
                    buffer.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        Converted::At(begin..buffer.len())
    }

    /// A name of the catalog; what is no text in it becomes U+FFFD.
    pub fn name(&self, name: &[u8]) -> String {
        match self {
            Encoding::Utf8 | Encoding::Unchecked => String::from_utf8_lossy(name).into_owned(),
            Encoding::SingleByte(table) => name
                .iter()
                .map(|&byte| character(table, byte).unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect(),
        }
    }
}

fn character(table: &[Option<char>; 128], byte: u8) -> Option<char> {
    match byte.checked_sub(0x80) {
        None => Some(byte.into()),
        Some(index) => table[usize::from(index)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_text_is_rejected() {
        let mut table = [None; 128];
        table[0] = Some('€');
        table[0x7c] = Some('ü');
        let windows = Encoding::SingleByte(Box::new(table));
        let zueri = "Züri €";
        let written = Converted::At(1..1 + zueri.len());
        for (encoding, bytes, expected) in [
            (&Encoding::Utf8, zueri.as_bytes(), Converted::Same),
            (&Encoding::Unchecked, zueri.as_bytes(), Converted::Same),
            (&Encoding::Unchecked, b"Z\xfcri", Converted::Not),
            (&windows, b"Bern", Converted::Same),
            (&windows, b"Z\xfcri \x80", written.clone()),
            (&windows, b"Z\xfcri \x81", Converted::Not),
        ] {
            let mut buffer = b"-".to_vec();
            assert_eq!(encoding.utf8(bytes, &mut buffer), expected);
            match expected {
                Converted::At(range) => assert_eq!(&buffer[range], zueri.as_bytes()),
                _ => assert_eq!(buffer, b"-"),
            }
        }
        assert_eq!(windows.name(b"Gr\xfc\x81e"), "Grü\u{fffd}e");
    }
}
