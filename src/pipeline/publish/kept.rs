//! The rows without an acknowledgement, kept so that another connection can bring them again.
//!
//! In: what a row's message is made of. Out: the same, in the same order. The bytes stand one behind the other in a single
//! buffer that is used again as rows are acknowledged; the window bounds it.

use super::Message;
use super::frame::Body;
use bytes::{Buf, BytesMut};

/// Lengths of the parts of one row, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    subject: usize,
    headers: usize,
    body: usize,
}

impl Parts {
    pub(super) fn of(message: &Message<'_>, body: usize) -> Self {
        Parts {
            subject: message.subject.len(),
            headers: message.headers.len(),
            body,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.subject + self.headers + self.body
    }
}

/// The bytes of the rows, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: BytesMut,
}

impl Kept {
    /// Keeps a row behind all others; its body is the end of `frame`, but for the last CR LF.
    #[inline]
    pub(super) fn push(&mut self, subject: &[u8], headers: &[u8], body_bytes: usize, frame: &[u8]) {
        let end = frame.len() - 2;
        self.bytes.extend_from_slice(subject);
        self.bytes.extend_from_slice(headers);
        self.bytes.extend_from_slice(&frame[end - body_bytes..end]);
    }

    /// Forgets the oldest row.
    #[inline]
    pub(super) fn pop(&mut self, parts: Parts) {
        self.bytes.advance(parts.len());
    }

    /// The row behind so many bytes of older ones.
    pub(super) fn at(&self, offset: usize, parts: Parts) -> Message<'_> {
        let (subject, rest) = self.bytes[offset..].split_at(parts.subject);
        let (headers, rest) = rest.split_at(parts.headers);
        Message {
            subject,
            headers,
            body: Body::Bytes(&rest[..parts.body]),
        }
    }
}
