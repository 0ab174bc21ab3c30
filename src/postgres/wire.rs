//! Whole messages over a socket, with a bounded buffer on either side.
//!
//! In: a connected [`Socket`]. Out: tag and body of each message, borrowed from the read buffer. Guarantees: reading
//! and writing are cancel-safe (bytes are either in a buffer here or not taken from the socket), the read buffer
//! never grows beyond what it was made for, and nothing is allocated per message.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::postgres::error::{Problem, ProtocolError, ReplicationError};
use crate::postgres::socket::Socket;

/// Most bytes that one read takes: a quarter of a megabyte keeps the number of system calls small at full speed and
/// stays in the processor's cache.
pub(crate) const READ_BYTES_MAX: usize = 256 * 1024;
/// Largest message other than CopyData, in bytes: errors and rows of the catalog are far below.
pub(crate) const CONTROL_BYTES_MAX: usize = 256 * 1024;
/// Tag and length.
pub(crate) const HEADER_BYTES: usize = 5;

/// Bytes that have arrived and are not yet handed out.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Everything before it has been handed out.
    taken: usize,
    /// Everything before it has been read. `taken <= filled <= bytes.len()`.
    filled: usize,
}

impl Inbox {
    /// Room for a message of `message_bytes_max` and a full read beside it. Pages that are never used cost nothing.
    fn new(message_bytes_max: usize) -> Inbox {
        Inbox {
            bytes: vec![0; message_bytes_max + HEADER_BYTES + READ_BYTES_MAX],
            taken: 0,
            filled: 0,
        }
    }

    /// Changes the largest message, keeping what has arrived.
    fn resize(&mut self, message_bytes_max: usize) {
        let mut wider = Inbox::new(message_bytes_max.max(self.unread().len()));
        wider.filled = self.unread().len();
        wider.bytes[..wider.filled].copy_from_slice(self.unread());
        *self = wider;
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.taken..self.filled]
    }

    /// Hands out the next `count` bytes, which must have arrived.
    pub(crate) fn take(&mut self, count: usize) -> Range<usize> {
        assert!(
            count <= self.filled - self.taken,
            "only bytes that have arrived can be handed out"
        );
        let range = self.taken..self.taken + count;
        self.taken = range.end;
        range
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Tag and body length of the next message, once its header is here.
    pub(crate) fn header(&self) -> Result<Option<(u8, usize)>, ProtocolError> {
        let Some(&[tag, a, b, c, d]) = self.unread().first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        // The length counts itself.
        match usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(4))
        {
            Some(body) => Ok(Some((tag, body))),
            None => Err(header_error(Problem::Length(i64::from(length)))),
        }
    }

    /// The body of the next message if all of it is here, handed out.
    pub(crate) fn take_message(&mut self) -> Result<Option<(u8, Range<usize>)>, ProtocolError> {
        let Some((tag, body)) = self.header()? else {
            return Ok(None);
        };
        if body > CONTROL_BYTES_MAX {
            return Err(header_error(Problem::Length(body as i64)));
        }
        if self.unread().len() < HEADER_BYTES + body {
            return Ok(None);
        }
        self.take(HEADER_BYTES);
        Ok(Some((tag, self.take(body))))
    }

    /// Free bytes for the next read, after moving what is unread to the front if the end is near. What moves is at
    /// most one incomplete message as long as the reader hands out all complete ones first.
    fn room(&mut self) -> &mut [u8] {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.taken > 0 && self.bytes.len() - self.filled < READ_BYTES_MAX {
            self.bytes.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
        }
        let end = self.bytes.len().min(self.filled + READ_BYTES_MAX);
        &mut self.bytes[self.filled..end]
    }

    pub(crate) fn has_room(&self) -> bool {
        self.taken > 0 || self.filled < self.bytes.len()
    }
}

fn header_error(problem: Problem) -> ProtocolError {
    ProtocolError {
        message: "message header",
        field: "length",
        offset: 1,
        problem,
    }
}

/// A socket with its two buffers.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    pub(crate) inbox: Inbox,
    /// What is still to be sent. Whoever fills it keeps it bounded.
    pub(crate) outbox: BytesMut,
}

impl Wire {
    pub(crate) fn new(socket: Socket) -> Wire {
        Wire {
            socket,
            inbox: Inbox::new(CONTROL_BYTES_MAX),
            outbox: BytesMut::with_capacity(1024),
        }
    }

    /// What a channel binding binds to, where there can be one.
    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.socket.end_point()
    }

    pub(crate) fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.inbox.resize(message_bytes_max.max(CONTROL_BYTES_MAX));
    }

    /// Reads what fits. Ready with the number of bytes, never zero: an ended stream is `UnexpectedEof`. Pending for as
    /// long as there is no room.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.inbox.has_room() {
            return Poll::Pending;
        }
        let mut room = ReadBuf::new(self.inbox.room());
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        if count == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )));
        }
        self.inbox.filled += count;
        Poll::Ready(Ok(count))
    }

    /// Writes until the outbox is empty.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outbox))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.advance(count);
        }
        // TLS may still hold what it has taken.
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Sends what waits, reads, and is ready when something has been read. A failed write counts only when nothing
    /// more can be read: the server's last words explain it better.
    pub(crate) fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let sent = self.poll_send(cx);
        match (self.poll_fill(cx), sent) {
            (Poll::Ready(read), _) => Poll::Ready(read),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Pending, _) => Poll::Pending,
        }
    }

    /// Sends what waits and returns the next whole message.
    pub(crate) async fn message(&mut self) -> Result<(u8, &[u8]), ReplicationError> {
        loop {
            if let Some((tag, body)) = self.inbox.take_message()? {
                return Ok((tag, self.inbox.slice(body)));
            }
            std::future::poll_fn(|cx| self.poll_exchange(cx)).await?;
        }
    }

    /// Sends what waits, then ends the sending side.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx)).await?;
        std::future::poll_fn(|cx| Pin::new(&mut self.socket).poll_shutdown(cx)).await
    }
}
