//! Rows of `COPY … TO STDOUT`, in its text format.
//!
//! In: what the server sends. Out: each row's columns, as their types' output functions write them, which is how the WAL has them
//! too. Manual: COPY, Text Format. Guarantee: a wait for the server ends; what has come is not waited for.

use std::ops::Range;
use std::pin::Pin;
use std::str::FromStr;
use std::vec;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::ReadyChunks;
use memchr::memchr;
use tokio_postgres::CopyOutStream;

use crate::postgres::client::{Client, SqlError};

/// Rows that are taken from the connection at once.
const AT_ONCE: usize = 256;

/// Rows on their way.
pub(crate) struct CopyRows<'c> {
    sql: &'c Client,
    coming: Pin<Box<ReadyChunks<CopyOutStream>>>,
    come: vec::IntoIter<Result<Bytes, tokio_postgres::Error>>,
    row: CopyRow,
}

impl<'c> CopyRows<'c> {
    /// What that client's server sends.
    pub(crate) fn new(sql: &'c Client, rows: CopyOutStream) -> Self {
        CopyRows {
            sql,
            coming: Box::pin(rows.ready_chunks(AT_ONCE)),
            come: Vec::new().into_iter(),
            row: CopyRow::default(),
        }
    }

    /// The next row; none at the end.
    ///
    /// # Errors
    /// As [`Client::answer`].
    pub(crate) async fn next(&mut self) -> Result<Option<&CopyRow>, SqlError> {
        loop {
            if let Some(bytes) = self.come.next() {
                self.row.read(&bytes?);
                return Ok(Some(&self.row));
            }
            let coming = async { Ok(self.coming.next().await) };
            match self.sql.answer(coming).await? {
                Some(come) => self.come = come.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

/// A row's columns; its buffers serve one row after the other.
#[derive(Debug, Default)]
pub(crate) struct CopyRow {
    bytes: Vec<u8>,
    columns: Vec<Option<Range<usize>>>,
}

impl CopyRow {
    /// Takes the next row.
    fn read(&mut self, row: &[u8]) {
        self.bytes.clear();
        self.columns.clear();
        let mut rest = row.strip_suffix(b"\n").unwrap_or(row);
        loop {
            let end = memchr(b'\t', rest).unwrap_or(rest.len());
            let column = self.column(&rest[..end]);
            self.columns.push(column);
            match rest.get(end + 1..) {
                Some(next) => rest = next,
                None => return,
            }
        }
    }

    /// A column; none where it is null, or the row has none there.
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let range = self.columns.get(index)?.clone()?;
        Some(&self.bytes[range])
    }

    /// The same as UTF-8.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn text(&self, index: usize) -> anyhow::Result<Option<&str>> {
        let text = self.get(index).map(std::str::from_utf8);
        text.transpose()
            .with_context(|| format!("column {index} of a query is no UTF-8"))
    }

    /// What a column's text stands for.
    ///
    /// # Errors
    /// It is null, or stands for nothing of that type.
    pub(crate) fn parse<T: FromStr>(&self, index: usize) -> anyhow::Result<T> {
        let value = self.text(index)?.and_then(|text| text.parse().ok());
        value.with_context(|| format!("column {index} of a query has an unexpected value"))
    }

    /// How many bytes its values have.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How many columns it has.
    pub(crate) fn len(&self) -> usize {
        self.columns.len()
    }

    fn column(&mut self, mut text: &[u8]) -> Option<Range<usize>> {
        if text == b"\\N" {
            return None;
        }
        let begin = self.bytes.len();
        while let Some(at) = memchr(b'\\', text) {
            self.bytes.extend_from_slice(&text[..at]);
            let escaped = text.get(at + 1).copied().unwrap_or(b'\\');
            self.bytes.push(match escaped {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                other => other,
            });
            text = text.get(at + 2..).unwrap_or_default();
        }
        self.bytes.extend_from_slice(text);
        Some(begin..self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_without_their_escapes() {
        let mut row = CopyRow::default();
        for (line, expected) in [
            (
                &b"7\torder\t\\N\n"[..],
                &[Some(&b"7"[..]), Some(b"order"), None][..],
            ),
            (b"\n", &[Some(b"")]),
            (b"\t\n", &[Some(b""), Some(b"")]),
            (
                b"a\\tb\\nc\\\\d\\r\\b\\f\\v\t{\"a\": \"\\\\u0007\"}\n",
                &[
                    Some(b"a\tb\nc\\d\r\x08\x0c\x0b"),
                    Some(b"{\"a\": \"\\u0007\"}"),
                ],
            ),
            // A text that looks like a null.
            (b"\\\\N\n", &[Some(b"\\N")]),
            // In an encoding of one byte a character.
            (b"caf\xe9\n", &[Some(b"caf\xe9")]),
        ] {
            row.read(line);
            let found: Vec<_> = (0..row.len()).map(|index| row.get(index)).collect();
            assert_eq!(found, expected);
        }
        assert_eq!(row.get(1), None);
        assert!(row.text(0).is_err());
        row.read(b"-7\tx\t\\N\n");
        assert_eq!(row.parse::<i64>(0).ok(), Some(-7));
        assert!(row.parse::<i64>(1).is_err() && row.parse::<i64>(2).is_err());
    }
}
