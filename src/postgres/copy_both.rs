//! The running replication stream: frames in, status updates out.
//!
//! In: a connection on which START_REPLICATION has been answered. Out: [`Frame`]s that borrow from the read buffer;
//! back to the server [`StatusUpdate`]s. Guarantees: [`CopyBoth::fill`] and [`CopyBoth::write_some`] are cancel-safe, so
//! they can stand in a select loop; memory is bounded by `frame_bytes_max` and half a megabyte, whatever the server
//! sends; nothing is allocated per frame; dropping it closes the socket at once.
//!
//! ```text
//! CopyData:      'd' | i32 length | payload
//! StatusUpdate:  'd' | i32 38 | 'r' | i64 write | i64 flush | i64 apply | i64 µs since 2000-01-01 | u8 reply_requested
//! ```
//! Manual: 54.4 "Streaming Replication Protocol".

use std::future::poll_fn;
use std::io;
use std::time::Duration;

pub use crate::pipeline::copy_both::StatusUpdate;
use bytes::BufMut;
use futures_util::FutureExt;
use postgres_protocol::message::frontend;

use crate::postgres::backend::{Reader, tag};
use crate::postgres::error::{Problem, ReplicationError, ServerError};
use crate::postgres::wire::{HEADER_BYTES, Wire};

/// What came next in the stream. Slices are valid until the next call on the [`CopyBoth`].
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The payload of a whole CopyData message: it begins with `w` or `k`.
    CopyData(&'a [u8]),
    /// A CopyData message whose payload of `total_len` bytes is above `frame_bytes_max` begins. Its bytes follow as
    /// [`Frame::Chunk`]s and in nothing else.
    Oversized {
        /// Length of the payload in bytes.
        total_len: usize,
    },
    /// The next bytes of an oversized payload, at least one. The cuts fall anywhere. The frame ends when the chunks
    /// add up to its `total_len`.
    Chunk(&'a [u8]),
    /// The server ends the stream; it sends no more CopyData.
    CopyDone,
    /// The command is over: after CopyDone from both sides, or at once when the server shuts down.
    CommandComplete,
    /// The server ends the stream with an error; the socket closes after FATAL.
    Error(Box<ServerError>),
    /// A notice or warning. One says that the publication did not exist at this point of the WAL and rows were skipped
    /// (Postgres 18, see [`ServerError::notice`]); older servers send [`Frame::Error`] with 42704.
    Notice(Box<ServerError>),
}

/// A status update as a CopyData message, in bytes.
const STATUS_BYTES: usize = 1 + 4 + 34;
/// Updates without a confirmation that may wait for the socket.
const STATUSES_WAITING_MAX: usize = 4;

/// A replication stream.
#[derive(Debug)]
pub struct CopyBoth {
    wire: Wire,
    frame_bytes_max: usize,
    /// Bytes of an oversized payload that have not been handed out.
    oversized_left: usize,
    copy_done_wanted: bool,
    backend_pid: i32,
}

impl CopyBoth {
    pub(crate) fn new(wire: Wire, frame_bytes_max: usize, backend_pid: i32) -> CopyBoth {
        CopyBoth {
            wire,
            frame_bytes_max,
            oversized_left: 0,
            copy_done_wanted: false,
            backend_pid,
        }
    }

    /// The server process at the other end; what `pg_stat_replication` calls `pid`.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Reads as much as fits, up to 256 KiB, and sends what waits while it waits for bytes. Returns the number of
    /// bytes read, never 0. Cancel-safe. Pending for as long as the buffer has no room, which cannot be when
    /// [`CopyBoth::next_frame`] has returned `None` since the last fill.
    ///
    /// # Errors
    /// The socket's error; `UnexpectedEof` when the server has closed the connection.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.encode_output();
        poll_fn(|cx| self.wire.poll_exchange(cx)).await
    }

    /// The next frame of what has been read, or `None` if it takes another [`CopyBoth::fill`].
    ///
    /// # Errors
    /// [`ReplicationError::Protocol`] for a message that has no place here. The stream is of no more use then.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        if self.oversized_left > 0 {
            return Ok(self.chunk());
        }
        loop {
            let Some((tag, length)) = self.wire.inbox.header()? else {
                return Ok(None);
            };
            if tag != tag::COPY_DATA {
                let Some((tag, body)) = self.wire.inbox.take_message()? else {
                    return Ok(None);
                };
                match control(tag, self.wire.inbox.slice(body))? {
                    Some(frame) => return Ok(Some(frame)),
                    None => continue,
                }
            }
            if length > self.frame_bytes_max {
                self.wire.inbox.take(HEADER_BYTES);
                self.oversized_left = length;
                return Ok(Some(Frame::Oversized { total_len: length }));
            }
            if self.wire.inbox.unread().len() < HEADER_BYTES + length {
                return Ok(None);
            }
            self.wire.inbox.take(HEADER_BYTES);
            let payload = self.wire.inbox.take(length);
            return Ok(Some(Frame::CopyData(self.wire.inbox.slice(payload))));
        }
    }

    fn chunk(&mut self) -> Option<Frame<'_>> {
        let count = self.oversized_left.min(self.wire.inbox.unread().len());
        if count == 0 {
            return None;
        }
        self.oversized_left -= count;
        let piece = self.wire.inbox.take(count);
        Some(Frame::Chunk(self.wire.inbox.slice(piece)))
    }

    /// Puts a status update in line. `clock_us` is µs since 2000-01-01 UTC. While the socket takes nothing, updates
    /// that confirm nothing are dropped beyond a few: the next one says as much.
    pub fn queue_status(&mut self, update: StatusUpdate, clock_us: i64) {
        let waiting = self.wire.outbox.len() / STATUS_BYTES;
        if u64::from(update.flush_lsn) == 0 && waiting >= STATUSES_WAITING_MAX {
            return;
        }
        self.wire.outbox.put_u8(tag::COPY_DATA);
        self.wire.outbox.put_i32(STATUS_BYTES as i32 - 1);
        update.encode(clock_us, &mut self.wire.outbox);
    }

    /// Puts CopyDone in line, after the status update if one waits.
    pub(crate) fn queue_copy_done(&mut self) {
        self.copy_done_wanted = true;
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        self.copy_done_wanted || !self.wire.outbox.is_empty()
    }

    /// Sends what waits, as far as the socket takes it now. Returns whether everything has left.
    ///
    /// # Errors
    /// The socket's error.
    pub fn try_write(&mut self) -> io::Result<bool> {
        match self.write_some().now_or_never() {
            Some(sent) => sent.map(|()| true),
            None => Ok(false),
        }
    }

    /// Sends everything that waits. Cancel-safe.
    ///
    /// # Errors
    /// The socket's error.
    pub async fn write_some(&mut self) -> io::Result<()> {
        while self.has_output() {
            self.encode_output();
            poll_fn(|cx| self.wire.poll_send(cx)).await?;
        }
        Ok(())
    }

    /// CopyDone goes behind everything else.
    fn encode_output(&mut self) {
        if std::mem::take(&mut self.copy_done_wanted) {
            frontend::copy_done(&mut self.wire.outbox);
        }
    }

    /// Ends the stream in good order: the waiting status update, CopyDone, then everything up to the server's
    /// CommandComplete is read and thrown away, Terminate. Queue the final status update before it: without one the
    /// server sends the last interval's transactions again.
    ///
    /// # Errors
    /// [`ReplicationError::Timeout`] after `limit` (a server in the middle of a large transaction finishes it first),
    /// or what broke the connection. The socket is closed in any case.
    pub async fn finish(mut self, limit: Duration) -> Result<(), ReplicationError> {
        self.queue_copy_done();
        within(limit, "the end of replication", async {
            self.drain().await?;
            frontend::terminate(&mut self.wire.outbox);
            // The server closes its side at Terminate; whether that is seen does not matter.
            let _ = self.wire.shutdown().await;
            Ok(())
        })
        .await
    }

    /// Closes our side of the socket: the server ends the stream as soon as it sees that, in whatever it is.
    pub async fn close(&mut self) {
        // A socket that is gone is closed as well.
        let _gone = self.wire.shutdown().await;
    }

    async fn drain(&mut self) -> Result<(), ReplicationError> {
        loop {
            while let Some(frame) = self.next_frame()? {
                match frame {
                    Frame::CommandComplete => return Ok(()),
                    Frame::Error(error) => return Err(ReplicationError::Server(error)),
                    _ => {}
                }
            }
            self.fill().await?;
        }
    }
}

/// A message other than CopyData; `None` for those that mean nothing to a stream.
fn control(tag: u8, body: &[u8]) -> Result<Option<Frame<'static>>, ReplicationError> {
    Ok(match tag {
        tag::COPY_DONE => Some(Frame::CopyDone),
        tag::COMMAND_COMPLETE => Some(Frame::CommandComplete),
        tag::ERROR_RESPONSE => Some(Frame::Error(Box::new(ServerError::parse(body)?))),
        tag::NOTICE_RESPONSE => Some(Frame::Notice(Box::new(ServerError::parse(body)?))),
        // A reload of the server's configuration reports changed parameters at any time.
        tag::PARAMETER_STATUS | tag::READY_FOR_QUERY => None,
        other => {
            let error =
                Reader::new("replication stream", &[]).error("tag", Problem::UnexpectedTag(other));
            return Err(error.into());
        }
    })
}

/// Runs `future` for at most `limit`.
async fn within<T>(
    limit: Duration,
    during: &'static str,
    future: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, ReplicationError> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result,
        Err(_) => Err(ReplicationError::Timeout {
            during,
            after: limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::socket::Socket;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn stream(frame_bytes_max: usize) -> (CopyBoth, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(Socket::unix(ours));
        wire.set_message_bytes_max(frame_bytes_max);
        (CopyBoth::new(wire, frame_bytes_max, 1), theirs)
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    /// Payloads, whole or in chunks, in order.
    async fn payloads(copy: &mut CopyBoth) -> Result<Vec<Vec<u8>>, ReplicationError> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut left = 0;
        loop {
            while let Some(frame) = copy.next_frame()? {
                match frame {
                    Frame::CopyData(payload) => all.push(payload.to_vec()),
                    Frame::Oversized { total_len } => {
                        assert_eq!(left, 0);
                        left = total_len;
                        all.push(Vec::new());
                    }
                    Frame::Chunk(piece) => {
                        assert!(!piece.is_empty() && piece.len() <= left);
                        left -= piece.len();
                        all.last_mut().unwrap().extend_from_slice(piece);
                    }
                    Frame::CopyDone => return Ok(all),
                    other => panic!("not sent: {other:?}"),
                }
            }
            copy.fill().await?;
        }
    }

    proptest! {
        /// Frames of any size, written in pieces of any size, come out as they went in.
        #[test]
        fn frames_survive_any_cut(
            lengths in proptest::collection::vec(0usize..6000, 0..20),
            piece in 1usize..3000,
        ) {
            block_on(async {
                let (mut copy, mut server) = stream(1000);
                let sent: Vec<Vec<u8>> =
                    lengths.iter().map(|&n| (0..n).map(|i| (i * 31 + n) as u8).collect()).collect();
                let mut bytes: Vec<u8> = sent.iter().flat_map(|body| message(b'd', body)).collect();
                bytes.extend(message(b'c', b""));
                let writer = async {
                    for piece in bytes.chunks(piece) {
                        server.write_all(piece).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                };
                let ((), got) = tokio::join!(writer, payloads(&mut copy));
                assert_eq!(got.unwrap(), sent);
            });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..2000)) {
            block_on(async {
                let (mut copy, mut server) = stream(1000);
                server.write_all(&bytes).await.unwrap();
                drop(server);
                loop {
                    while let Ok(Some(_)) = copy.next_frame() {}
                    if copy.next_frame().is_err() || copy.fill().await.is_err() {
                        break;
                    }
                }
            });
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_never_gathered() {
        block_on(async {
            let (mut copy, mut server) = stream(1000);
            let capacity = 8 << 20;
            let writer = async move {
                server.write_all(b"d").await.unwrap();
                server
                    .write_all(&(capacity + 4_i32).to_be_bytes())
                    .await
                    .unwrap();
                for _ in 0..128 {
                    server.write_all(&[7; 65536]).await.unwrap();
                }
                server.write_all(&message(b'c', b"")).await.unwrap();
                server
            };
            let (_server, got) = tokio::join!(writer, payloads(&mut copy));
            assert_eq!(got.unwrap()[0].len(), 8 << 20);
        });
    }

    #[test]
    fn status_updates_leave_in_order_and_copy_done_comes_last() {
        block_on(async {
            let (mut copy, mut server) = stream(1000);
            let at = |write: u64, flush: u64| StatusUpdate {
                write_lsn: write.into(),
                flush_lsn: flush.into(),
                apply_lsn: 0.into(),
                reply_requested: false,
            };
            copy.queue_copy_done();
            copy.queue_status(at(2, 1), 10);
            for _ in 0..100 {
                copy.queue_status(at(2, 0), 20);
            }
            copy.queue_status(at(3, 3), 30);
            assert!(copy.try_write().unwrap() && !copy.has_output());
            let updates = 1 + (STATUSES_WAITING_MAX - 1) + 1;
            let mut sent = vec![0; updates * STATUS_BYTES + 5];
            server.read_exact(&mut sent).await.unwrap();
            let flushes: Vec<u8> = sent
                .chunks(STATUS_BYTES)
                .take(updates)
                .map(|update| update[5 + 1 + 8 + 7])
                .collect();
            assert_eq!(flushes, [1, 0, 0, 0, 3]);
            assert_eq!(sent[updates * STATUS_BYTES], b'c');
        });
    }

    #[test]
    fn an_ended_stream_is_an_error_after_its_last_words() {
        block_on(async {
            let (mut copy, mut server) = stream(1000);
            server
                .write_all(&message(b'E', b"VFATAL\0C57P01\0Mbye\0\0"))
                .await
                .unwrap();
            drop(server);
            copy.fill().await.unwrap();
            assert!(
                matches!(copy.next_frame().unwrap(), Some(Frame::Error(error)) if error.is_transient())
            );
            assert_eq!(
                copy.fill().await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        });
    }

    #[test]
    fn a_control_message_that_claims_gigabytes_is_refused() {
        block_on(async {
            let (mut copy, mut server) = stream(1000);
            server
                .write_all(&[b'E', 0x7f, 0xff, 0xff, 0xff])
                .await
                .unwrap();
            copy.fill().await.unwrap();
            assert!(
                matches!(copy.next_frame(), Err(ReplicationError::Protocol(error))
                if matches!(error.problem, Problem::Length(_)))
            );
        });
    }
}
