//! Reads the server's operations of the NATS client protocol.
//!
//! In: a growing buffer of received bytes. Out: one [`Op`] at a time; messages are slices of that buffer, not copies.
//! Arbitrary bytes give an error with the operation, the field and the offset, never a panic, and every length has a limit.
//!
//! ```text
//! INFO {json}\r\n        PING\r\n   PONG\r\n   +OK\r\n   -ERR 'text'\r\n
//! MSG  <subject> <sid> [reply] <bytes>\r\n<payload>\r\n
//! HMSG <subject> <sid> [reply] <header bytes> <total bytes>\r\n<headers><payload>\r\n
//! ```
//! Reference: <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use std::fmt;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;
use serde::Deserialize;

use super::headers::Headers;

/// Longest control line taken; INFO grows with the cluster's connect_urls, everything else is far shorter.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Largest message taken, headers included: a server's largest max_payload is 64 MiB, and STREAM.MSG.GET answers it in base64.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// One operation from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// INFO: at the start, and whenever the cluster changes or the server enters lame duck mode.
    Info(Box<ServerInfo>),
    /// MSG or HMSG.
    Msg(Msg),
    /// +OK.
    Ok,
    /// -ERR with its text, without the quotes.
    Err(String),
    /// PING.
    Ping,
    /// PONG.
    Pong,
}

/// A message that a subscription received.
#[derive(Clone, PartialEq, Eq)]
pub struct Msg {
    /// Subject that it was published on.
    pub subject: Bytes,
    /// Our number of the subscription.
    pub(crate) sid: u64,
    /// Subject for the answer.
    pub reply: Option<Bytes>,
    /// Header block, empty for MSG; see [`Headers`].
    pub headers: Bytes,
    /// Payload.
    pub payload: Bytes,
}

/// Number of the subscription to the advisory of a stream's new leader.
pub(super) const LEADER_SID: u64 = 2;

impl Msg {
    /// The inline status of the header block, such as 503 for "no responders".
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        Headers::parse(&self.headers)?.status()
    }

    /// Whether it is the advisory that the stream has a new leader.
    #[must_use]
    pub fn is_of_new_leader(&self) -> bool {
        self.sid == LEADER_SID
    }

    /// What follows `<inbox>.` in the subject: which request it answers, or which published message.
    #[must_use]
    pub fn below(&self, inbox: &str) -> Option<&[u8]> {
        self.subject
            .strip_prefix(inbox.as_bytes())?
            .strip_prefix(b".")
    }
}

// Lengths only: payloads are users' events and may hold anything.
impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msg")
            .field("subject", &self.subject)
            .field("sid", &self.sid)
            .field("reply", &self.reply)
            .field("header_bytes", &self.headers.len())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// What the server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Unique id of the server process.
    pub server_id: String,
    /// Name of the server.
    pub(crate) server_name: String,
    /// Version of the server.
    pub version: ServerVersion,
    /// Largest message that it takes, headers included, in bytes.
    pub max_payload: usize,
    /// Whether it understands headers.
    pub headers: bool,
    /// Whether JetStream is enabled.
    pub jetstream: bool,
    /// What an nkey must sign.
    pub(crate) nonce: Option<String>,
    /// Whether a client must authenticate.
    pub(crate) auth_required: bool,
    /// Whether a client must use TLS.
    pub tls_required: bool,
    /// Whether a client may use TLS.
    pub(crate) tls_available: bool,
    /// Whether the server is in lame duck mode: it will close this connection.
    #[serde(rename = "ldm")]
    pub lame_duck_mode: bool,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// JetStream domain.
    pub domain: Option<String>,
    /// Addresses of the cluster's servers.
    pub(crate) connect_urls: Vec<String>,
}

/// Version of a server; a pre-release counts as its release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerVersion {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
    /// Patch.
    pub patch: u16,
}

impl ServerVersion {
    /// Whether this is `major.minor` or later.
    #[must_use]
    pub fn at_least(self, major: u16, minor: u16) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl TryFrom<String> for ServerVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut numbers = text.splitn(3, '.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse::<u16>().ok()
        });
        let mut next = || numbers.next().flatten();
        match (next(), next(), next()) {
            (Some(major), Some(minor), Some(patch)) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(format!("{text:?} is not a version such as 2.14.0")),
        }
    }
}

/// The operations by name, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// INFO
    Info,
    /// MSG
    Msg,
    /// HMSG
    Hmsg,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "INFO",
            Self::Msg => "MSG",
            Self::Hmsg => "HMSG",
        })
    }
}

/// Bytes that are not the NATS protocol. Offsets count the received bytes of the connection from 0.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A line that begins with no known operation.
    #[error(
        "unknown operation {start:?} at byte {offset} of the connection: is this a NATS server?"
    )]
    UnknownOperation {
        /// First bytes of the line, escaped.
        start: String,
        /// Where the line begins.
        offset: u64,
    },
    /// A line beyond [`LINE_BYTES_MAX`].
    #[error(
        "line at byte {offset} of the connection is longer than {LINE_BYTES_MAX} bytes: is this a NATS server?"
    )]
    LineTooLong {
        /// Where the line begins.
        offset: u64,
    },
    /// A field that is missing or cannot be read.
    #[error("{operation} at byte {offset} of the connection: {field} is missing or malformed")]
    Field {
        /// Operation.
        operation: Operation,
        /// Field of the operation.
        field: &'static str,
        /// Where the operation begins.
        offset: u64,
    },
    /// INFO that is not the JSON it should be.
    #[error("INFO at byte {offset} of the connection: not the JSON of a NATS server")]
    Info {
        /// Where the operation begins.
        offset: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A message beyond [`MESSAGE_BYTES_MAX`].
    #[error(
        "{operation} at byte {offset} of the connection: {bytes} bytes, more than {MESSAGE_BYTES_MAX}"
    )]
    MessageTooLarge {
        /// Operation.
        operation: Operation,
        /// Where the operation begins.
        offset: u64,
        /// Announced size.
        bytes: u64,
    },
}

/// The incremental reader of one connection. After an error the connection is of no use.
#[derive(Debug, Default)]
pub struct Parser {
    /// Bytes of the connection that were consumed.
    offset: u64,
    /// Bytes of the buffer that were searched for the end of the line in vain.
    searched: usize,
    /// A message whose line was read and whose body was not.
    head: Option<Head>,
}

/// The line of a message, read.
#[derive(Debug)]
struct Head {
    operation: Operation,
    offset: u64,
    line: Bytes,
    subject: Range<usize>,
    sid: u64,
    reply: Option<Range<usize>>,
    header_bytes: usize,
    total_bytes: usize,
}

impl Parser {
    /// Takes the next whole operation out of `received`; `None` where more bytes are needed.
    ///
    /// # Errors
    /// [`ProtocolError`] where the bytes are not the protocol; the connection must be closed then.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Op>, ProtocolError> {
        loop {
            if let Some(head) = self.head.take() {
                return self.body(head, received);
            }
            let Some(line) = self.line(received)? else {
                return Ok(None);
            };
            let offset = self.offset;
            self.offset += line.len() as u64;
            if let Some(op) = self.operation(line, offset)? {
                return Ok(Some(op));
            }
        }
    }

    /// Bytes still missing to the message whose line was read; 0 where none was.
    #[must_use]
    pub(crate) fn missing_bytes(&self, received: &BytesMut) -> usize {
        self.head.as_ref().map_or(0, |head| {
            (head.total_bytes + 2).saturating_sub(received.len())
        })
    }

    /// A line with its end, taken out of the buffer.
    fn line(&mut self, received: &mut BytesMut) -> Result<Option<Bytes>, ProtocolError> {
        let unsearched = received.get(self.searched..).unwrap_or_default();
        let end = memchr(b'\n', unsearched).map(|at| self.searched + at + 1);
        if end.unwrap_or(received.len()) > LINE_BYTES_MAX {
            return Err(ProtocolError::LineTooLong {
                offset: self.offset,
            });
        }
        let Some(end) = end else {
            self.searched = received.len();
            return Ok(None);
        };
        self.searched = 0;
        Ok(Some(received.split_to(end).freeze()))
    }

    /// Reads a line; `None` where it is the line of a message, now in `self.head`.
    fn operation(&mut self, line: Bytes, offset: u64) -> Result<Option<Op>, ProtocolError> {
        let text = line.trim_ascii_end();
        let name_bytes = text
            .iter()
            .position(|byte| matches!(byte, b' ' | b'\t'))
            .unwrap_or(text.len());
        let (name, arguments) = text.split_at(name_bytes);
        let op = match name {
            b"MSG" => {
                self.head = Some(head(Operation::Msg, &line, name_bytes, offset)?);
                return Ok(None);
            }
            b"HMSG" => {
                self.head = Some(head(Operation::Hmsg, &line, name_bytes, offset)?);
                return Ok(None);
            }
            b"PING" => Op::Ping,
            b"PONG" => Op::Pong,
            b"+OK" => Op::Ok,
            b"-ERR" => {
                let text = arguments.trim_ascii();
                let text = text.strip_prefix(b"'").unwrap_or(text);
                let text = text.strip_suffix(b"'").unwrap_or(text);
                Op::Err(String::from_utf8_lossy(text).into_owned())
            }
            b"INFO" => {
                let info = serde_json::from_slice(arguments)
                    .map_err(|source| ProtocolError::Info { offset, source })?;
                Op::Info(Box::new(info))
            }
            _ => {
                let start = text.get(..16).unwrap_or(text).escape_ascii().to_string();
                return Err(ProtocolError::UnknownOperation { start, offset });
            }
        };
        Ok(Some(op))
    }

    /// The message of `head`, or nothing yet.
    fn body(&mut self, head: Head, received: &mut BytesMut) -> Result<Option<Op>, ProtocolError> {
        if received.len() < head.total_bytes + 2 {
            self.head = Some(head);
            return Ok(None);
        }
        if received.get(head.total_bytes..head.total_bytes + 2) != Some(b"\r\n") {
            return Err(ProtocolError::Field {
                operation: head.operation,
                field: "end of the payload",
                offset: head.offset,
            });
        }
        let mut body = received.split_to(head.total_bytes).freeze();
        received.advance(2);
        self.offset += head.total_bytes as u64 + 2;
        let headers = body.split_to(head.header_bytes);
        Ok(Some(Op::Msg(Msg {
            subject: head.line.slice(head.subject),
            sid: head.sid,
            reply: head.reply.map(|range| head.line.slice(range)),
            headers,
            payload: body,
        })))
    }
}

/// Reads the arguments of MSG and HMSG.
fn head(
    operation: Operation,
    line: &Bytes,
    name_bytes: usize,
    offset: u64,
) -> Result<Head, ProtocolError> {
    let field = |field| ProtocolError::Field {
        operation,
        field,
        offset,
    };
    let numbers = if operation == Operation::Hmsg { 2 } else { 1 };
    let mut fields: [Range<usize>; 5] = Default::default();
    let mut count = 0;
    for range in words(line, name_bytes) {
        *fields
            .get_mut(count)
            .ok_or_else(|| field("number of arguments"))? = range;
        count += 1;
    }
    let has_reply = match count.checked_sub(numbers) {
        Some(2) => false,
        Some(3) => true,
        _ => return Err(field("number of arguments")),
    };
    let number = |at: usize| number(&line[fields[at].clone()]);
    let sid = number(1).ok_or_else(|| field("sid"))?;
    let total = number(count - 1).ok_or_else(|| field("total bytes"))?;
    let header = if numbers == 2 {
        number(count - 2).ok_or_else(|| field("header bytes"))?
    } else {
        0
    };
    if total > MESSAGE_BYTES_MAX as u64 {
        return Err(ProtocolError::MessageTooLarge {
            operation,
            offset,
            bytes: total,
        });
    }
    if header > total {
        return Err(field("header bytes"));
    }
    Ok(Head {
        operation,
        offset,
        line: line.clone(),
        subject: fields[0].clone(),
        sid,
        reply: has_reply.then(|| fields[2].clone()),
        header_bytes: header as usize,
        total_bytes: total as usize,
    })
}

/// The ranges of the words of `line` from `start` on, parted by blanks and the line's end.
fn words(line: &[u8], start: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at
            + line
                .get(at..)?
                .iter()
                .position(|byte| !byte.is_ascii_whitespace())?;
        let length = line[from..]
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(line.len() - from);
        at = from + length;
        Some(from..at)
    })
}

/// Digits only, no sign, no more than 19 of them.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

#[cfg(test)]
mod tests;
