//! Text in the encoding of its database, as UTF-8.
//!
//! In: bytes of a text column as the database stores them. Out: the same text in UTF-8, or that it is none. Where the server
//! converts, one value that it cannot convert ends the stream in front of its row, at each attempt; here that row alone is
//! rejected. Text of a UTF-8 database is passed on as it is.

use super::pgoutput::Column;
use super::row::Row;
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
enum Converted {
    Same,
    /// This part of the buffer.
    At(Range<usize>),
    Not,
}

impl Encoding {
    /// The row with all its text in UTF-8, of which `buffer` keeps what had to be written anew. What is no text becomes
    /// [`Column::NoText`].
    #[inline]
    pub fn convert<'a>(&self, row: Row<'a>, buffer: &'a mut Vec<u8>) -> Row<'a> {
        match self {
            Encoding::Utf8 => row,
            _ => self.convert_values(row, buffer),
        }
    }

    fn convert_values<'a>(&self, mut row: Row<'a>, buffer: &'a mut Vec<u8>) -> Row<'a> {
        let converted: Vec<Converted> = row
            .columns_mut()
            .map(|column| match column {
                Column::Text(text) => self.utf8(text, buffer),
                _ => Converted::Same,
            })
            .collect();
        let buffer: &'a [u8] = buffer;
        for (column, converted) in row.columns_mut().zip(converted) {
            match (converted, *column) {
                (Converted::At(range), _) => *column = Column::Text(&buffer[range]),
                (Converted::Not, Column::Text(bytes)) => *column = Column::NoText(bytes),
                _ => {}
            }
        }
        row
    }

    fn utf8(&self, text: &[u8], buffer: &mut Vec<u8>) -> Converted {
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
    use super::super::fields::{Field, Fields};
    use super::super::kind::Kind;
    use super::*;

    fn row(payload: &[u8]) -> Row<'_> {
        let values = Fields {
            payload: Column::Text(payload),
            id: Column::Text(b"1"),
            ..Fields::default()
        };
        let extras = vec![(Kind::Text, Column::Text(payload))];
        Row::new(values, Fields::default(), extras, 0)
    }

    fn converted<'a>(
        encoding: &Encoding,
        payload: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> Column<'a> {
        let row = encoding.convert(row(payload), buffer);
        assert_eq!(row.get(Field::Id), Column::Text(b"1"));
        assert_eq!(row.get(Field::AggregateId), Column::Null);
        assert_eq!(row.extras()[0].1, row.get(Field::Payload));
        row.get(Field::Payload)
    }

    #[test]
    fn only_what_is_no_text_is_rejected() {
        let mut table = [None; 128];
        table[0] = Some('€');
        table[0x7c] = Some('ü');
        let windows = Encoding::SingleByte(Box::new(table));
        let (bern, zueri) = (b"Bern".as_slice(), "Züri €".as_bytes());
        for (encoding, bytes, expected) in [
            (&Encoding::Utf8, zueri, Column::Text(zueri)),
            (&Encoding::Unchecked, zueri, Column::Text(zueri)),
            (&Encoding::Unchecked, b"Z\xfcri", Column::NoText(b"Z\xfcri")),
            (&windows, bern, Column::Text(bern)),
            (&windows, b"Z\xfcri \x80", Column::Text(zueri)),
            (&windows, b"Z\xfcri \x81", Column::NoText(b"Z\xfcri \x81")),
        ] {
            let mut buffer = Vec::new();
            assert_eq!(converted(encoding, bytes, &mut buffer), expected);
        }
        assert_eq!(windows.name(b"Gr\xfc\x81e"), "Grü\u{fffd}e");
    }
}
