//! What answers where no nats-server does.
//!
//! In: an address at which a connection was accepted or not, and no NATS came. Out: what it is, as far as two questions tell. Only
//! for commands that a person has typed: a relay that waits for its server does not ask.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::NatsAddress;

/// For each of the two questions.
const LIMIT: Duration = Duration::from_millis(700);

/// What a client of Postgres asks first: <https://www.postgresql.org/docs/current/protocol-message-formats.html>, SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const HTTP_REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Postgres, or a pooler.
    Postgres,
    /// A web server, such as nats-server's monitoring.
    Http,
    /// It takes connections, and says nothing to anything.
    Mute,
    /// Nobody knows.
    Unknown,
}

impl Peer {
    /// Asks.
    pub(super) async fn ask(address: &NatsAddress) -> Peer {
        let first = exchange(address, &SSL_REQUEST).await;
        let second = match first {
            Some(Heard::Nothing) => exchange(address, HTTP_REQUEST).await,
            _ => None,
        };
        match (first, second) {
            (Some(Heard::Bytes(b'S' | b'N')), _) => Peer::Postgres,
            (Some(Heard::Http), _) | (_, Some(Heard::Http)) => Peer::Http,
            (Some(Heard::Nothing), Some(Heard::Nothing)) => Peer::Mute,
            _ => Peer::Unknown,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Http,
    /// Something else, which begins so; 0 where it hung up.
    Bytes(u8),
}

/// What comes back first; none without a connection.
async fn exchange(address: &NatsAddress, request: &[u8]) -> Option<Heard> {
    let to = (address.host.as_str(), address.port);
    let mut stream = timeout(LIMIT, TcpStream::connect(to)).await.ok()?.ok()?;
    let mut answer = [0; 5];
    let answered = async {
        stream.write_all(request).await?;
        stream.read(&mut answer).await
    };
    Some(match timeout(LIMIT, answered).await {
        Err(_) => Heard::Nothing,
        Ok(Ok(5)) if answer == *b"HTTP/" => Heard::Http,
        Ok(_) => Heard::Bytes(answer[0]),
    })
}
