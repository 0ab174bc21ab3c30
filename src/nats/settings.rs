//! Which servers, how to authenticate there, and by which subjects JetStream is reached.

use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;

use super::address::NatsAddress;
use super::api::DEFAULT_PREFIX;
use super::login::Login;
use crate::tls::{self, Identity, Roots, Terms, TlsError};

/// Where inboxes begin, unless a user has others of its own.
pub(crate) const DEFAULT_INBOX_PREFIX: &str = "_INBOX";

/// What the settings of TLS are called in the configuration.
pub(super) const TERMS: Terms = Terms {
    roots: "nats.tls_ca",
    identity: "nats.tls_cert and nats.tls_key",
    first: Some("nats.tls_first"),
};

/// How to reach one server of a cluster, and JetStream there.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// At least one server of one cluster.
    pub servers: Vec<NatsAddress>,
    /// How to authenticate at any of them.
    pub login: Login,
    /// How to encrypt.
    pub tls: NatsTls,
    /// Limit of one attempt to connect, the handshake included.
    pub connect_timeout: Duration,
    /// Where the JetStream API listens: `$JS.API`, or a domain's or an import's.
    pub(crate) api_prefix: String,
    /// The stream is another account's, and is reached through imports; of those that rename the API the prefix tells.
    pub(crate) imported: bool,
    /// Where answers come to.
    pub(crate) inbox_prefix: String,
}

/// How to encrypt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsTls {
    /// Never without TLS, whatever the server says.
    pub required: bool,
    /// TLS before the server's first word (`handshake_first`).
    pub first: bool,
    /// Whom to trust.
    pub roots: Roots,
    /// Our own certificate.
    pub identity: Option<Identity>,
}

impl Default for NatsTls {
    fn default() -> Self {
        Self {
            required: false,
            first: false,
            roots: Roots::System,
            identity: None,
        }
    }
}

impl NatsTls {
    /// The settings that ask for TLS, by their names; `by_url` where the address does.
    pub(super) fn asked_by(&self, by_url: bool) -> String {
        let named = [
            ("tls:// in nats.url", by_url),
            ("nats.tls_ca", matches!(self.roots, Roots::File(_))),
            ("nats.tls_cert", self.identity.is_some()),
            ("nats.tls_first", self.first),
        ];
        let named: Vec<&str> = named
            .iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| *name)
            .collect();
        match named.is_empty() {
            // The operating system's authorities are named as none are.
            true => "nats.tls_ca".to_owned(),
            false => named.join(" with "),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn client_config(&self) -> Result<ClientConfig, TlsError> {
        tls::client_config(&self.roots, self.identity.as_ref())
    }
}

impl ConnectionSettings {
    /// The servers as a person gives them, without a login.
    #[must_use]
    pub(crate) fn servers_text(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        servers.join(",")
    }

    /// These servers with this login, everything else as by default.
    #[must_use]
    pub fn new(servers: Vec<NatsAddress>, login: impl Into<Login>) -> Self {
        let required = servers.iter().any(|server| server.tls);
        Self {
            servers,
            login: login.into(),
            tls: NatsTls {
                required,
                ..NatsTls::default()
            },
            connect_timeout: Duration::from_secs(5),
            api_prefix: DEFAULT_PREFIX.to_owned(),
            imported: false,
            inbox_prefix: DEFAULT_INBOX_PREFIX.to_owned(),
        }
    }
}
