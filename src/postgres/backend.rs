//! Bounds-checked reading of the server's messages.
//!
//! In: the body of one message. Out: its fields. Guarantees: never panics on bytes from the network, and an error
//! names message, field and offset. All numbers are big-endian.
//!
//! Why not `postgres_protocol::message::backend`: it takes a message off the buffer before it finds out that it does
//! not know `CopyBothResponse`, its errors do not say where, and it makes a reference-counted buffer of each frame.
//!
//! Manual: 54.7 "Message Formats".

use crate::postgres::error::{Problem, ProtocolError, ServerError};

/// Tags of the messages that a replication connection can get.
pub mod tag {
    /// AuthenticationOk and its relatives.
    pub(crate) const AUTHENTICATION: u8 = b'R';
    /// BackendKeyData.
    pub(crate) const BACKEND_KEY_DATA: u8 = b'K';
    /// CommandComplete.
    pub(crate) const COMMAND_COMPLETE: u8 = b'C';
    /// CopyBothResponse.
    pub(crate) const COPY_BOTH_RESPONSE: u8 = b'W';
    /// CopyData.
    pub(crate) const COPY_DATA: u8 = b'd';
    /// CopyDone.
    pub(crate) const COPY_DONE: u8 = b'c';
    /// DataRow.
    pub(crate) const DATA_ROW: u8 = b'D';
    /// EmptyQueryResponse.
    pub(crate) const EMPTY_QUERY_RESPONSE: u8 = b'I';
    /// ErrorResponse.
    pub(crate) const ERROR_RESPONSE: u8 = b'E';
    /// NoticeResponse.
    pub(crate) const NOTICE_RESPONSE: u8 = b'N';
    /// ParameterStatus.
    pub(crate) const PARAMETER_STATUS: u8 = b'S';
    /// ReadyForQuery.
    pub(crate) const READY_FOR_QUERY: u8 = b'Z';
    /// RowDescription.
    pub(crate) const ROW_DESCRIPTION: u8 = b'T';
}

/// Reads the fields of one message in turn.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    message: &'static str,
    body: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the body's first byte; `message` is the name for errors.
    pub fn new(message: &'static str, body: &'a [u8]) -> Reader<'a> {
        Reader {
            message,
            body,
            at: 0,
        }
    }

    /// An error about `field` at the current byte.
    pub fn error(&self, field: &'static str, problem: Problem) -> ProtocolError {
        ProtocolError {
            message: self.message,
            field,
            offset: self.at,
            problem,
        }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Problem::Truncated`] if there are fewer; so for all the readers below.
    pub fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let rest = &self.body[self.at..];
        let taken = rest
            .get(..count)
            .ok_or_else(|| self.error(field, Problem::Truncated))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ProtocolError> {
        let bytes = self.bytes(N, field)?;
        Ok(bytes
            .try_into()
            .expect("bytes() returned as many as were asked for"))
    }

    /// One byte.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, ProtocolError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// Int16.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    pub fn i16(&mut self, field: &'static str) -> Result<i16, ProtocolError> {
        Ok(i16::from_be_bytes(self.array(field)?))
    }

    /// Int32.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    pub fn i32(&mut self, field: &'static str) -> Result<i32, ProtocolError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    /// A string up to its NUL, which is passed over.
    ///
    /// # Errors
    /// [`Problem::Truncated`] without a NUL.
    pub fn cstr(&mut self, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let rest = &self.body[self.at..];
        let end = memchr::memchr(0, rest).ok_or_else(|| self.error(field, Problem::Truncated))?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    /// A string up to its NUL that is UTF-8.
    ///
    /// # Errors
    /// As [`Reader::cstr`], and [`Problem::Encoding`].
    pub fn str(&mut self, field: &'static str) -> Result<&'a str, ProtocolError> {
        let at = self.clone();
        std::str::from_utf8(self.cstr(field)?).map_err(|_| at.error(field, Problem::Encoding))
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.body[self.at..];
        self.at = self.body.len();
        rest
    }

    /// Whether everything has been read.
    pub fn is_at_end(&self) -> bool {
        self.at == self.body.len()
    }
}

/// The columns of a `DataRow` in text form; `None` is SQL's null.
///
/// # Errors
/// [`ProtocolError`] if lengths and body disagree or a value is not UTF-8.
pub(crate) fn data_row(body: &[u8]) -> Result<Vec<Option<String>>, ProtocolError> {
    let mut reader = Reader::new("DataRow", body);
    let count = reader.i16("column count")?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let length = reader.i32("column length")?;
        if length == -1 {
            columns.push(None);
            continue;
        }
        let count = usize::try_from(length)
            .map_err(|_| reader.error("column length", Problem::Length(i64::from(length))))?;
        let value = reader.bytes(count, "column value")?;
        let text = std::str::from_utf8(value)
            .map_err(|_| reader.error("column value", Problem::Encoding))?;
        columns.push(Some(text.to_owned()));
    }
    Ok(columns)
}

impl ServerError {
    /// Reads the fields of an `ErrorResponse` or `NoticeResponse` body.
    ///
    /// # Errors
    /// [`ProtocolError`] if the body ends early. Text that is not UTF-8 (before the session has an encoding) is
    /// shown with replacement characters rather than refused: the error behind it matters more.
    pub fn parse(body: &[u8]) -> Result<ServerError, ProtocolError> {
        let mut reader = Reader::new("ErrorResponse", body);
        let mut error = ServerError::default();
        let mut localized_severity = String::new();
        loop {
            let field = reader.u8("field type")?;
            if field == 0 {
                break;
            }
            let value = String::from_utf8_lossy(reader.cstr("field value")?).into_owned();
            match field {
                b'V' => error.severity = value,
                b'S' => localized_severity = value,
                b'C' => error.code = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                b'R' => error.routine = Some(value),
                _ => {}
            }
        }
        if error.severity.is_empty() {
            error.severity = localized_severity;
        }
        Ok(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";

    #[test]
    fn reads_a_row() {
        assert_eq!(
            data_row(ROW).unwrap(),
            [Some("ab".to_owned()), None, Some(String::new())]
        );
    }

    #[test]
    fn a_row_cut_at_any_byte_is_truncated() {
        for end in 0..ROW.len() {
            assert_eq!(
                data_row(&ROW[..end]).unwrap_err().problem,
                Problem::Truncated,
                "at {end}"
            );
        }
    }

    #[test]
    fn an_impossible_length_is_named_with_its_place() {
        let error = data_row(b"\0\x01\xff\xff\xff\xfe").unwrap_err();
        assert_eq!(
            (error.message, error.field, error.offset, error.problem),
            ("DataRow", "column length", 6, Problem::Length(-2))
        );
    }
}
