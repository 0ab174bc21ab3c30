//! Opens a connection: INFO, CONNECT with credentials, the inbox' subscription, PING and PONG.
//!
//! In: a fresh socket, the credentials. Out: nothing but the right to go on, or a [`ConnectError`] that says whether waiting helps.
//! Credentials are written to the socket only, and no error repeats them.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;

use super::{INBOX_SID, LaneConnection};
use crate::nats::address::{NatsAddress, NatsAuth};
use crate::nats::denial::Denial;
use crate::nats::encode::{self, Connect};
use crate::nats::protocol::{Op, ProtocolError, ServerInfo};
use crate::secret::Secret;

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
    #[error("NATS at {server} did not finish the handshake within {after:?}")]
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
    #[error(
        "NATS at {server} refused the credentials: {text}; check user, password, token or credentials file"
    )]
    Auth {
        /// Address.
        server: NatsAddress,
        /// The server's text.
        text: String,
    },
    /// A seed that is no user seed.
    #[error("the nkey seed cannot be read: a user's seed begins with SU and has 58 characters")]
    Seed,
    /// The server or the address asks for TLS.
    #[error(
        "NATS at {server} requires TLS, which walrelay does not speak yet: use a plain nats:// listener"
    )]
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

/// Runs the handshake on a fresh socket.
pub(super) async fn run(
    connection: &mut LaneConnection,
    auth: &NatsAuth,
    name: &str,
) -> Result<(), ConnectError> {
    loop {
        if let Op::Info(_) = next(connection).await? {
            break;
        }
    }
    let server = connection.server.clone();
    if connection.info.tls_required {
        return Err(ConnectError::TlsRequired { server });
    }
    if !connection.info.headers {
        return Err(ConnectError::NoHeaders {
            server,
            version: connection.info.version,
        });
    }
    let signed = Signed::new(auth, &connection.info)?;
    encode::connect(&mut connection.outgoing, &signed.options(auth, name));
    let inbox = format!("{}.>", connection.inbox);
    encode::subscribe(&mut connection.outgoing, &inbox, INBOX_SID);
    connection.queue_ping();
    while next(connection).await? != Op::Pong {}
    Ok(())
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
            return Err(ConnectError::Unreachable {
                server: connection.server.clone(),
                source,
            });
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

/// The answer to the server's nonce.
#[derive(Default)]
struct Signed {
    public_key: Option<String>,
    signature: Option<String>,
}

impl Signed {
    fn new(auth: &NatsAuth, info: &ServerInfo) -> Result<Self, ConnectError> {
        let (NatsAuth::NKey { seed } | NatsAuth::Jwt { seed, .. }) = auth else {
            return Ok(Self::default());
        };
        let pair = key_pair(seed)?;
        // A server that knows no nkeys offers no nonce; what it makes of the key alone is its affair.
        let signature = match info.nonce.as_deref() {
            Some(nonce) => Some(
                pair.sign(nonce.as_bytes())
                    .map_err(|_| ConnectError::Seed)?,
            ),
            None => None,
        };
        Ok(Self {
            public_key: matches!(auth, NatsAuth::NKey { .. }).then(|| pair.public_key()),
            signature: signature.map(|bytes| URL_SAFE_NO_PAD.encode(bytes)),
        })
    }

    fn options<'a>(&'a self, auth: &'a NatsAuth, name: &'a str) -> Connect<'a> {
        let mut options = Connect::new(name);
        match auth {
            NatsAuth::None => {}
            NatsAuth::Token(token) => options.auth_token = Some(token.expose()),
            NatsAuth::UserPassword { user, password } => {
                options.user = Some(user);
                options.pass = Some(password.expose());
            }
            NatsAuth::NKey { .. } => options.nkey = self.public_key.as_deref(),
            NatsAuth::Jwt { jwt, .. } => options.jwt = Some(jwt.expose()),
        }
        options.sig = self.signature.as_deref();
        options
    }
}

/// The user's key pair; the library's error could hold part of the seed and is dropped.
fn key_pair(seed: &Secret) -> Result<KeyPair, ConnectError> {
    KeyPair::from_seed(seed.expose().trim()).map_err(|_| ConnectError::Seed)
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

    #[test]
    fn signs_the_nonce() {
        let pair = KeyPair::new_user();
        let seed = Secret::new(pair.seed().expect("a private key"));
        let info = ServerInfo {
            nonce: Some("abc".into()),
            ..ServerInfo::default()
        };
        let auth = NatsAuth::NKey { seed: seed.clone() };
        let signed = Signed::new(&auth, &info).expect("a legal seed");
        let signature = URL_SAFE_NO_PAD.decode(signed.signature.as_deref().expect("signed"));
        pair.verify(b"abc", &signature.expect("base64"))
            .expect("a true signature");
        assert_eq!(
            signed.options(&auth, "n").nkey,
            Some(pair.public_key().as_str())
        );
        let auth = NatsAuth::Jwt {
            jwt: Secret::new("a.b.c"),
            seed,
        };
        let signed = Signed::new(&auth, &info).expect("a legal seed");
        let options = signed.options(&auth, "n");
        assert!(options.jwt == Some("a.b.c") && options.nkey.is_none() && options.sig.is_some());
    }

    #[test]
    fn a_bad_seed_is_not_repeated() {
        let auth = NatsAuth::NKey {
            seed: Secret::new("SUNOSEED"),
        };
        let error = Signed::new(&auth, &ServerInfo::default())
            .err()
            .expect("refused");
        assert!(matches!(error, ConnectError::Seed));
        assert!(!format!("{error} {error:?}").contains("SUNOSEED"));
    }
}
