//! The hot lane's own connection: one socket, one epoch, no reconnection.
//!
//! In: addresses and authentication; frames that the pipeline appends to [`LaneConnection::outgoing`].
//! Out: the server's operations, in order. Guarantees: every await is cancel-safe, so all of it fits in one select loop;
//! an inbox that no other connection ever had; nothing is ever sent again; dropping it resets the socket, so that bytes of
//! an abandoned epoch which are still on this side never reach the server.
//!
//! A select loop costs one write per filled buffer and one read per arrival:
//! [`LaneConnection::exchange`] writes what is pending before it waits, and reads only when the socket is known to be readable.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use chrono::Utc;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::address::NatsAddress;
use super::admin::ENABLE_JETSTREAM;
use super::api::leader_elected_subject;
use super::denial::Denial;
use super::encode;
use super::headers::STATUS_NO_RESPONDERS;
use super::protocol::{LEADER_SID, Msg, Op, Parser, ProtocolError, ServerInfo};
use super::settings::ConnectionSettings;

mod handshake;
mod socket;

pub use handshake::ConnectError;
use handshake::Greeting;
use socket::Socket;

/// Room made for one read: an ack has about 100 bytes, so this takes hundreds of them at once.
const READ_BYTES: usize = 64 * 1024;

/// Below this much spare room the read buffer grows or is reclaimed.
const READ_BYTES_MIN: usize = 8 * 1024;

/// Number of the inbox' subscription.
const INBOX_SID: u64 = 1;

/// An open, authenticated connection with its inbox subscribed.
pub struct LaneConnection {
    socket: Socket,
    server: NatsAddress,
    /// Name of the server for its certificate.
    tls_name: String,
    info: ServerInfo,
    inbox: String,
    received: BytesMut,
    parser: Parser,
    outgoing: BytesMut,
    requests: u64,
    /// Set by [`LaneConnection::close`]; otherwise drop resets the socket.
    closed: bool,
}

/// A server that another one, or the configuration, has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// Where it is.
    pub address: NatsAddress,
    /// The name that its certificate must have.
    pub(crate) tls_name: String,
}

/// What one [`LaneConnection::exchange`] moved, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchanged {
    /// Bytes handed to the kernel.
    pub written: usize,
    /// Bytes received.
    pub read: usize,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens on the subject.
    #[error("nobody answers on {subject}: {}", ENABLE_JETSTREAM)]
    NoResponders {
        /// Subject of the request.
        subject: String,
    },
    /// No answer in time; whether the server acted on it is unknown.
    #[error("no answer on {subject} within {after:?}")]
    Timeout {
        /// Subject of the request.
        subject: String,
        /// How long was waited.
        after: Duration,
    },
    /// The user may not ask, or may not hear the answer.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The server complained of the connection.
    #[error("the server answered -ERR to a request on {subject}: {text}")]
    Server {
        /// Subject of the request.
        subject: String,
        /// The server's text.
        text: String,
    },
    /// The connection broke, or the server closed it.
    #[error("connection to the NATS server lost")]
    Io(#[from] io::Error),
    /// The server does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl RequestError {
    /// Whether a new connection may cure it; unknown means no.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // Without a JetStream leader there are no responders either, and an election passes.
        matches!(
            self,
            Self::NoResponders { .. } | Self::Timeout { .. } | Self::Io(_)
        )
    }
}

impl LaneConnection {
    /// Connects to the first server that lets us in, and subscribes to a fresh inbox.
    ///
    /// Tries the servers of the settings in turn, then those that were `advertised` by one of them; `connect_timeout` limits
    /// each attempt, handshake included. Credentials and certificates are read anew.
    ///
    /// # Errors
    /// [`ConnectError`]: a refusal of the credentials where no server takes them; else a transient error of any server where
    /// there was one, since waiting may help; else the last error.
    pub async fn open(
        settings: &ConnectionSettings,
        name: &str,
        advertised: &[Advertised],
    ) -> Result<Self, ConnectError> {
        let auth = settings.login.read()?;
        let given = settings.servers.iter().map(|server| Advertised {
            address: server.clone(),
            tls_name: server.host.clone(),
        });
        let (mut refusal, mut failure) = (None, ConnectError::NoServer);
        for server in given.chain(advertised.iter().cloned()) {
            let address = server.address.clone();
            tracing::debug!(server = %address, "connecting to NATS");
            let attempt = handshake::run(server, settings, &auth, name);
            let after = settings.connect_timeout;
            let error = match timeout(after, attempt).await {
                Ok(Ok(connection)) => {
                    connection.tell_opened();
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => ConnectError::Timeout {
                    server: address,
                    after,
                },
            };
            tracing::debug!(%error, "this NATS server does not serve");
            match error {
                ConnectError::Login(_) => return Err(error),
                // They may be changed on one server after the other.
                ConnectError::Auth { server, text } => {
                    let text = format!("{text}; {}", settings.login.what_to_check(Utc::now()));
                    refusal = refusal.or(Some(ConnectError::Auth { server, text }));
                }
                _ if error.is_transient() || !failure.is_transient() => failure = error,
                _ => {}
            }
        }
        Err(refusal.unwrap_or(failure))
    }

    /// A connection on which the server has said what it is.
    fn greeted(socket: Socket, server: Advertised, greeting: Greeting, inbox_prefix: &str) -> Self {
        Self {
            socket,
            server: server.address,
            tls_name: server.tls_name,
            info: greeting.info,
            inbox: fresh_inbox(inbox_prefix),
            received: greeting.received,
            parser: greeting.parser,
            outgoing: BytesMut::new(),
            requests: 0,
            closed: false,
        }
    }

    fn tell_opened(&self) {
        let info = &self.info;
        tracing::debug!(
            server = %self.server,
            version = %info.version,
            id = info.server_id,
            cluster = info.cluster,
            encrypted = self.is_encrypted(),
            max_payload = info.max_payload,
            "connected to NATS"
        );
    }

    /// The servers of the cluster, as the server tells of them: for when those of the settings are gone.
    #[must_use]
    pub fn advertised(&self) -> Vec<Advertised> {
        let urls = self.info.connect_urls.iter();
        urls.filter_map(|url| url.parse::<NatsAddress>().ok())
            .map(|address| Advertised {
                // A cluster tells addresses, and its certificates have names.
                tls_name: match address.host.parse::<IpAddr>() {
                    Ok(_) => self.tls_name.clone(),
                    Err(_) => address.host.clone(),
                },
                address,
            })
            .collect()
    }

    /// Whether nobody between can read along.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.socket.is_encrypted()
    }

    /// The server that we are connected to.
    #[must_use]
    pub fn server(&self) -> &NatsAddress {
        &self.server
    }

    /// What the server says of itself, as of the last INFO that [`Self::next_op`] returned.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// The inbox of this connection, `_INBOX.<random>`; everything below `<inbox>.` reaches us.
    #[must_use]
    pub fn inbox(&self) -> &str {
        &self.inbox
    }

    /// The frames that wait to be written; the pipeline appends whole frames here.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.outgoing.len()
    }

    /// Appends a PING; [`Op::Pong`] comes when the server has handled everything before it.
    pub fn queue_ping(&mut self) {
        encode::ping(&mut self.outgoing);
    }

    /// Subscribes to this stream's advisory of a new leader, where the server belongs to a cluster. What comes and what is
    /// denied comes from [`Self::next_op`], so this is for when no request is on its way any more.
    pub(crate) fn queue_leader_subscription(&mut self, stream: &str) {
        if self.info.cluster.is_some() {
            encode::subscribe(
                &mut self.outgoing,
                &leader_elected_subject(stream),
                LEADER_SID,
            );
        }
    }

    /// The next operation that was received, without waiting; PING is answered here and not returned.
    ///
    /// INFO and -ERR are returned like all others. One INFO always follows the handshake; the one that matters has
    /// `lame_duck_mode`: the server will hang up.
    ///
    /// # Errors
    /// [`ProtocolError`]; the connection must be closed then.
    pub fn next_op(&mut self) -> Result<Option<Op>, ProtocolError> {
        loop {
            match self.parser.next(&mut self.received)? {
                Some(Op::Ping) => encode::pong(&mut self.outgoing),
                Some(Op::Info(info)) => {
                    // The nonce comes only at the start; nothing asks for it later.
                    self.info = (*info).clone();
                    tracing::debug!(lame_duck = info.lame_duck_mode, "NATS tells of itself anew");
                    return Ok(Some(Op::Info(info)));
                }
                Some(Op::Err(text)) => {
                    tracing::debug!("NATS answers -ERR {text}");
                    return Ok(Some(Op::Err(text)));
                }
                other => return Ok(other),
            }
        }
    }

    /// Writes what is pending and reads what is there; waits until either moved at least a byte. Cancel-safe.
    ///
    /// With nothing pending it just waits for bytes.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` where the server closed it.
    pub async fn exchange(&mut self) -> io::Result<Exchanged> {
        poll_fn(|context| {
            let written = match self.poll_write(context) {
                Poll::Ready(result) => result?,
                Poll::Pending => 0,
            };
            let read = match self.poll_fill(context) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(result) => result?,
                Poll::Pending => 0,
            };
            if written + read == 0 {
                return Poll::Pending;
            }
            tracing::trace!(written, read, "bytes to and from NATS");
            Poll::Ready(Ok(Exchanged { written, read }))
        })
        .await
    }

    /// Reads once into the buffer, waiting for bytes; 0 where the server closed the connection. Cancel-safe.
    ///
    /// # Errors
    /// The socket's.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    /// Writes once, as much as the kernel takes, waiting for room; returns at once with nothing pending. Cancel-safe.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_some(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            if self.outgoing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.poll_write(context).map_ok(|_| ())
        })
        .await
    }

    /// Sends a request and waits for its answer. Only before streaming begins: other messages that arrive are discarded.
    ///
    /// `headers` is a whole header block.
    ///
    /// # Errors
    /// [`RequestError`]. After a time-out the late answer is discarded by the next request.
    ///
    /// # Panics
    /// Where the subject holds a blank or a control character.
    pub async fn request(
        &mut self,
        subject: &str,
        headers: Option<&[u8]>,
        payload: &[u8],
        after: Duration,
    ) -> Result<Msg, RequestError> {
        self.requests += 1;
        let reply = format!("{}.r{}", self.inbox, self.requests);
        encode::request(&mut self.outgoing, subject, &reply, headers, payload);
        tracing::trace!(subject, bytes = payload.len(), "request");
        let answer = match timeout(after, self.answer(subject, reply.as_bytes())).await {
            Ok(result) => result,
            Err(_) => Err(RequestError::Timeout {
                subject: subject.to_owned(),
                after,
            }),
        };
        match &answer {
            Ok(msg) => tracing::trace!(subject, bytes = msg.payload.len(), "answer"),
            Err(error) => tracing::debug!(subject, %error, "no answer"),
        }
        answer
    }

    async fn answer(&mut self, subject: &str, reply: &[u8]) -> Result<Msg, RequestError> {
        loop {
            while let Some(op) = self.next_op()? {
                match op {
                    Op::Msg(msg) if msg.subject == reply => {
                        if msg.status() == Some(STATUS_NO_RESPONDERS) {
                            let subject = subject.to_owned();
                            return Err(RequestError::NoResponders { subject });
                        }
                        return Ok(msg);
                    }
                    Op::Err(text) => {
                        if let Some(denial) = Denial::parse(&text) {
                            return Err(denial.into());
                        }
                        let subject = subject.to_owned();
                        return Err(RequestError::Server { subject, text });
                    }
                    _ => {}
                }
            }
            self.exchange().await?;
        }
    }

    /// Closes in good order: the server still gets what the kernel took. What is pending here is lost.
    pub async fn close(mut self) {
        self.closed = true;
        self.socket.close().await;
        tracing::debug!(server = %self.server, "connection to NATS closed");
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.received.capacity() - self.received.len() < READ_BYTES_MIN {
            let missing = self.parser.missing_bytes(&self.received);
            // Doubling, so that a large message is not gathered in thousands of small steps,
            // and the server's word for its size is not paid for before its bytes come.
            let bytes = missing.clamp(READ_BYTES, READ_BYTES.max(self.received.len()));
            self.received.reserve(bytes);
        }
        // Made anew for each poll: it holds no state. After a short read tokio knows that the socket is empty,
        // so that the next poll waits without asking the kernel.
        pin!(self.socket.read_buf(&mut self.received)).poll(context)
    }

    /// Pending with nothing to write: only a read can wake the caller then.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.outgoing.is_empty() {
            // TLS may have taken more than it has sent.
            ready!(self.socket.poll_flush(context))?;
            return Poll::Pending;
        }
        let written = ready!(self.socket.poll_write(context, &self.outgoing))?;
        self.outgoing.advance(written);
        Poll::Ready(Ok(written))
    }
}

impl Drop for LaneConnection {
    fn drop(&mut self) {
        if !self.closed {
            // An abandoned epoch must not publish any more.
            self.socket.reset();
            let unsent = self.outgoing.len();
            tracing::debug!(server = %self.server, unsent, "connection to NATS given up");
        }
    }
}

// Without the buffers, which hold users' events.
impl fmt::Debug for LaneConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneConnection")
            .field("server", &self.server)
            .field("inbox", &self.inbox)
            .field("pending_bytes", &self.outgoing.len())
            .finish_non_exhaustive()
    }
}

/// The prefix and 22 random letters and digits: about 131 bits, as many as a nuid's.
fn fresh_inbox(prefix: &str) -> String {
    let token = rand::rng()
        .sample_iter(Alphanumeric)
        .take(22)
        .map(char::from);
    prefix.chars().chain(['.']).chain(token).collect()
}
