//! Bounds-checked reading of network bytes: every failure names the message, the field and the offset.
//!
//! In: a slice of one message. Out: integers, strings and sub-slices of it. Nothing here panics on any input.

use postgres_types::PgLsn;

/// A message of the replication stream that is not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends inside a field.
    #[error("{message}: {field} at byte {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Name of the message, as in the manual.
        message: &'static str,
        /// Name of the field, as in the manual.
        field: &'static str,
        /// Where the field begins, in bytes from the start of the message.
        offset: usize,
        /// How many bytes the field needs.
        needed: usize,
        /// How many bytes the message still has there.
        left: usize,
    },
    /// A string without its closing zero byte.
    #[error("{message}: {field} at byte {offset} has no terminating zero")]
    Unterminated {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Where the string begins.
        offset: usize,
    },
    /// A tag or a length that the protocol does not know.
    #[error("{message}: {field} at byte {offset} has the unknown value {found}")]
    Unknown {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Where the field begins.
        offset: usize,
        /// What stands there.
        found: i64,
    },
    /// Bytes behind the message's last field.
    #[error("{message}: {left} bytes behind the last field, from byte {offset}")]
    Trailing {
        /// Name of the message.
        message: &'static str,
        /// Where the message should have ended.
        offset: usize,
        /// How many bytes are too many.
        left: usize,
    },
    /// A message that cannot come at this place.
    #[error("{message} came {place}")]
    Misplaced {
        /// Name of the message.
        message: &'static str,
        /// Where it came.
        place: &'static str,
    },
}

/// A cursor over one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    message: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Reader {
            message,
            bytes,
            offset: 0,
        }
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Gives the message the name that its tag has told.
    pub(crate) fn named(mut self, message: &'static str) -> Self {
        self.message = message;
        self
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.offset..]
    }

    #[inline]
    pub(crate) fn take(
        &mut self,
        field: &'static str,
        count: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let rest = self.rest();
        match rest.get(..count) {
            Some(taken) => {
                self.offset += count;
                Ok(taken)
            }
            None => Err(DecodeError::Truncated {
                message: self.message,
                field,
                offset: self.offset,
                needed: count,
                left: rest.len(),
            }),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let taken = self.take(field, N)?;
        Ok(taken
            .try_into()
            .expect("take returns as many bytes as asked for"))
    }

    #[inline]
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    #[inline]
    pub(crate) fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        Ok(i16::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(crate) fn lsn(&mut self, field: &'static str) -> Result<PgLsn, DecodeError> {
        Ok(PgLsn::from(u64::from_be_bytes(self.array(field)?)))
    }

    /// A count or a length: an i16 or i32 that may not be negative.
    pub(crate) fn length(
        &mut self,
        field: &'static str,
        offset: usize,
        value: i64,
    ) -> Result<usize, DecodeError> {
        usize::try_from(value).map_err(|_| self.unknown(field, offset, value))
    }

    /// A string without its closing zero byte, in the session's encoding.
    pub(crate) fn string(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let offset = self.offset;
        let rest = self.rest();
        let end = memchr::memchr(0, rest).ok_or(DecodeError::Unterminated {
            message: self.message,
            field,
            offset,
        })?;
        self.offset += end + 1;
        Ok(&rest[..end])
    }

    pub(crate) fn unknown(&self, field: &'static str, offset: usize, found: i64) -> DecodeError {
        DecodeError::Unknown {
            message: self.message,
            field,
            offset,
            found,
        }
    }

    #[inline]
    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        if self.offset == self.bytes.len() {
            return Ok(());
        }
        Err(DecodeError::Trailing {
            message: self.message,
            offset: self.offset,
            left: self.bytes.len() - self.offset,
        })
    }
}
