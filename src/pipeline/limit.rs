//! How large a message may be.
//!
//! In: nothing. Out: [`SizeLimit`], which also names the setting to raise.

use std::fmt;

/// The most bytes that a message may have, headers and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    /// In bytes.
    pub bytes: usize,
    /// Whose limit it is.
    pub by: Limiter,
}

/// Who limits the size of a message; of two, the one that takes less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limiter {
    /// `max_payload` of the server, or of the account.
    Server,
    /// `max_msg_size` of the stream.
    Stream,
}

impl SizeLimit {
    /// The smaller of both; `None` where the stream has none.
    pub fn smaller(server_bytes: usize, stream_bytes: Option<usize>) -> Self {
        match stream_bytes {
            Some(bytes) if bytes < server_bytes => SizeLimit {
                bytes,
                by: Limiter::Stream,
            },
            _ => SizeLimit {
                bytes: server_bytes,
                by: Limiter::Server,
            },
        }
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by, self.bytes)
    }
}

impl fmt::Display for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limiter::Server => "the server's max_payload of",
            Limiter::Stream => "the stream's max_msg_size of",
        })
    }
}
