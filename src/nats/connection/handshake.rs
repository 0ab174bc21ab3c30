//! Opens a connection: INFO, TLS, CONNECT with credentials, the inbox' subscription, PING and PONG.
//!
//! In: a server, the settings, the credentials. Out: an open connection, or a [`ConnectError`] that says whether waiting helps.
//! Credentials are written to the socket only, and no error repeats them.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::socket::{Socket, is_of_tls};
use super::{Advertised, INBOX_SID, LaneConnection, READ_BYTES};
use crate::nats::address::{NatsAddress, NatsAuth};
use crate::nats::denial::Denial;
use crate::nats::encode::{self, Connect};
use crate::nats::login::{LoginError, Signed};
use crate::nats::protocol::{Op, Parser, ProtocolError, ServerInfo};
use crate::nats::settings::{ConnectionSettings, NatsTls, TERMS};
use crate::tls::{self, TlsError};

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no NATS server is given: set nats.url")]
    NoServer,
    /// Name resolution, TCP, or the server hung up.
    #[error("cannot reach NATS at {server}")]
    Unreachable {
        /// Address.
        server: NatsAddress,
        /// The socket's error.
        source: io::Error,
    },
    /// No whole handshake in time.
    #[error(
        "NATS at {server} did not finish the handshake within {after:?} (one that begins with TLS needs nats.tls_first; walrelay \
         doctor tells what else answers there)"
    )]
    Timeout {
        /// Address.
        server: NatsAddress,
        /// How long was waited.
        after: Duration,
    },
    /// The server has no room for us just now.
    #[error("NATS at {server} refused the connection: {text}")]
    Refused {
        /// Address.
        server: NatsAddress,
        /// The server's text.
        text: String,
    },
    /// Wrong or missing credentials.
    #[error("NATS at {server} refused the credentials: {text}")]
    Auth {
        /// Address.
        server: NatsAddress,
        /// The server's text, and what may be wrong with them.
        text: String,
    },
    /// The credentials cannot be read.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The files of TLS cannot be used.
    #[error(transparent)]
    TlsFiles(#[from] TlsError),
    /// The settings ask for TLS.
    #[error(
        "NATS at {server} has no TLS, and {asked_by} asks for it: give the server a certificate, or leave that out"
    )]
    NoTls {
        /// Address.
        server: NatsAddress,
        /// The settings that want TLS, by their names.
        asked_by: String,
    },
    /// Bytes behind INFO.
    #[error(
        "NATS at {server} goes on before TLS has begun: somebody between may have put that there"
    )]
    BeforeTls {
        /// Address.
        server: NatsAddress,
    },
    /// Certificates, ours or the server's.
    #[error("no TLS with NATS at {server}")]
    Tls {
        /// Address.
        server: NatsAddress,
        /// Why, in words.
        source: io::Error,
    },
    /// The server wants TLS, and did not say so before.
    #[error("NATS at {server} requires TLS: connect by tls://")]
    TlsRequired {
        /// Address.
        server: NatsAddress,
    },
    /// The user may not receive answers.
    #[error("{denial}; {server} says so")]
    Inbox {
        /// Address.
        server: NatsAddress,
        /// What is denied.
        denial: Denial,
    },
    /// A server without headers cannot carry positions.
    #[error("NATS at {server} (version {version}) has no headers: walrelay needs 2.10 or later")]
    NoHeaders {
        /// Address.
        server: NatsAddress,
        /// Version of the server.
        version: crate::nats::protocol::ServerVersion,
    },
    /// Not the NATS protocol.
    #[error("{server} does not speak the NATS protocol")]
    Protocol {
        /// Address.
        server: NatsAddress,
        /// What is wrong.
        source: ProtocolError,
    },
}

impl ConnectError {
    /// Whether waiting may cure it; unknown means no.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Refused { .. }
        )
    }
}

/// What a server has said of itself, and what of its bytes is left.
pub(super) struct Greeting {
    pub(super) info: ServerInfo,
    pub(super) received: BytesMut,
    pub(super) parser: Parser,
}

/// Connects, encrypts where that is wanted, and logs in.
pub(super) async fn run(
    server: Advertised,
    settings: &ConnectionSettings,
    auth: &NatsAuth,
    name: &str,
) -> Result<LaneConnection, ConnectError> {
    let (socket, greeting) = greeted(&server, &settings.tls).await?;
    let encrypted = socket.is_encrypted();
    let mut connection = LaneConnection::greeted(socket, server, greeting, &settings.inbox_prefix);
    if !connection.info.headers {
        return Err(ConnectError::NoHeaders {
            server: connection.server.clone(),
            version: connection.info.version,
        });
    }
    let nonce = connection.info.nonce.as_deref();
    let signed = Signed::new(auth, nonce.map(str::as_bytes))?;
    let signature = signed.signature.map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
    let mut options = options(auth, name);
    options.tls_required = encrypted;
    options.nkey = signed.public_key.as_deref();
    options.sig = signature.as_deref();
    encode::connect(&mut connection.outgoing, &options);
    let inbox = format!("{}.>", connection.inbox);
    encode::subscribe(&mut connection.outgoing, &inbox, INBOX_SID);
    connection.queue_ping();
    while next(&mut connection).await? != Op::Pong {}
    Ok(connection)
}

/// A connection on which the server has said what it is, encrypted where server, address or settings ask for it.
async fn greeted(server: &Advertised, tls: &NatsTls) -> Result<(Socket, Greeting), ConnectError> {
    let address = &server.address;
    let unreachable = |source| ConnectError::Unreachable {
        server: address.clone(),
        source,
    };
    let tcp = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    if tls.first {
        let mut socket = encrypt(tcp, server, tls).await?;
        let greeting = greet(&mut socket, server).await?;
        return Ok((socket, greeting));
    }
    let mut tcp = tcp;
    let greeting = greet(&mut tcp, server).await?;
    let required = tls.required || address.tls;
    if !required && !greeting.info.tls_required {
        return Ok((Socket::Plain(tcp), greeting));
    }
    if !greeting.info.tls_required && !greeting.info.tls_available {
        return Err(ConnectError::NoTls {
            server: address.clone(),
            asked_by: tls.asked_by(address.tls),
        });
    }
    // Whoever sits between could have put them there.
    if !greeting.received.is_empty() {
        return Err(ConnectError::BeforeTls {
            server: address.clone(),
        });
    }
    Ok((encrypt(tcp, server, tls).await?, greeting))
}

async fn encrypt(
    tcp: TcpStream,
    server: &Advertised,
    tls: &NatsTls,
) -> Result<Socket, ConnectError> {
    let config = tls.client_config()?;
    Socket::encrypt(tcp, &server.tls_name, config)
        .await
        .map_err(|error| lost(error, &server.address, &server.tls_name))
}

/// The network's error, or that of TLS.
fn lost(source: io::Error, server: &NatsAddress, tls_name: &str) -> ConnectError {
    let server = server.clone();
    match is_of_tls(&source) {
        true => ConnectError::Tls {
            server,
            source: tls::explained(source, tls_name, TERMS),
        },
        false => ConnectError::Unreachable { server, source },
    }
}

/// Waits for INFO.
async fn greet(
    stream: &mut (impl AsyncRead + Unpin),
    server: &Advertised,
) -> Result<Greeting, ConnectError> {
    let address = &server.address;
    let mut received = BytesMut::with_capacity(READ_BYTES);
    let mut parser = Parser::default();
    loop {
        let op = parser.next(&mut received);
        match op.map_err(|source| ConnectError::Protocol {
            server: address.clone(),
            source,
        })? {
            Some(Op::Info(info)) => {
                return Ok(Greeting {
                    info: *info,
                    received,
                    parser,
                });
            }
            Some(Op::Err(text)) => return Err(refusal(address.clone(), text)),
            Some(_) => {}
            None => match stream.read_buf(&mut received).await {
                Ok(0) => {
                    return Err(ConnectError::Unreachable {
                        server: address.clone(),
                        source: io::ErrorKind::UnexpectedEof.into(),
                    });
                }
                Ok(_) => {}
                Err(error) => return Err(lost(error, address, &server.tls_name)),
            },
        }
    }
}

fn options<'a>(auth: &'a NatsAuth, name: &'a str) -> Connect<'a> {
    let mut options = Connect::new(name);
    match auth {
        NatsAuth::None | NatsAuth::NKey { .. } => {}
        NatsAuth::Token(token) => options.auth_token = Some(token.expose()),
        NatsAuth::UserPassword { user, password } => {
            options.user = Some(user);
            options.pass = Some(password.expose());
        }
        NatsAuth::Jwt { jwt, .. } => options.jwt = Some(jwt.expose()),
    }
    options
}

/// The next operation; -ERR and a lost connection are errors.
async fn next(connection: &mut LaneConnection) -> Result<Op, ConnectError> {
    loop {
        let op = connection
            .next_op()
            .map_err(|source| ConnectError::Protocol {
                server: connection.server.clone(),
                source,
            })?;
        match op {
            Some(Op::Err(text)) => return Err(refusal(connection.server.clone(), text)),
            Some(op) => return Ok(op),
            None => {}
        }
        if let Err(source) = connection.exchange().await {
            // A server that refuses closes at once: its reason may have come before the write failed.
            if let Ok(Some(Op::Err(text))) = connection.next_op() {
                return Err(refusal(connection.server.clone(), text));
            }
            return Err(lost(source, &connection.server, &connection.tls_name));
        }
    }
}

/// Sorts the server's -ERR texts, as nats-server's `errors.go` and `client.go` write them.
fn refusal(server: NatsAddress, text: String) -> ConnectError {
    if let Some(denial) = Denial::parse(&text) {
        return ConnectError::Inbox { server, denial };
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("authentication timeout") {
        ConnectError::Refused { server, text }
    } else if lower.contains("authorization violation") || lower.contains("authentication") {
        ConnectError::Auth { server, text }
    } else if lower.contains("tls required") {
        ConnectError::TlsRequired { server }
    } else {
        ConnectError::Refused { server, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> NatsAddress {
        NatsAddress {
            host: "h".into(),
            port: 1,
            tls: false,
        }
    }

    #[test]
    fn sorts_refusals() {
        use ConnectError as E;
        let sorted = |text: &str| refusal(server(), text.into());
        assert!(matches!(sorted("Authorization Violation"), E::Auth { .. }));
        assert!(matches!(
            sorted("User Authentication Expired"),
            E::Auth { .. }
        ));
        assert!(matches!(
            sorted("Account Authentication Expired"),
            E::Auth { .. }
        ));
        assert!(sorted("Authentication Timeout").is_transient());
        assert!(sorted("maximum connections exceeded").is_transient());
        assert!(matches!(
            sorted("Secure Connection - TLS Required"),
            E::TlsRequired { .. }
        ));
        let permission = r#"Permissions Violation for Subscription to "_INBOX.a.>""#;
        assert!(matches!(sorted(permission), E::Inbox { .. }));
        assert!(!sorted(permission).is_transient());
    }
}
