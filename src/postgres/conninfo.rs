//! How to connect to Postgres: libpq's connection strings, environment and password file.
//!
//! In: a connection string (URI or `key=value`), the environment, `~/.pgpass`. Out: a
//! [`Conninfo`] with every default filled in. Guarantee: as libpq would have understood it
//! (manual, 32.1.1, 32.1.2, 32.15, 32.16), and printing one never shows a password.

mod error;
mod mask;
mod parameters;
mod passfile;
mod password;
mod resolve;
mod service;
mod syntax;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::MASK;
pub use error::ConninfoError;
pub(crate) use mask::has_password;
pub use mask::mask;
pub use password::{PasswordCommand, PasswordError, PasswordSource};
pub use tls::{
    AuthenticationRules, ChannelBinding, FileChoice, Method, RootChoice, SslMode, TlsSettings,
};

/// Postgres' registered port.
pub(crate) const DEFAULT_PORT: u16 = 5432;

/// Where Debian's and most distributions' Postgres puts its socket.
pub(crate) const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";

/// Everything that a connection needs to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    /// At least one; tried in this order.
    pub hosts: Vec<HostPort>,
    /// Role.
    pub user: String,
    /// For the servers that ask for one.
    pub password: PasswordSource,
    /// Database.
    pub dbname: String,
    /// Whether TLS is wanted, and how.
    pub tls: TlsSettings,
    /// What the server must ask of us.
    pub authentication: AuthenticationRules,
    /// Limit of one attempt at one address, never zero.
    pub connect_timeout: Duration,
    /// How the loss of the peer is noticed.
    pub tcp: TcpSettings,
    /// Try hosts and their addresses in random order.
    pub load_balance_hosts: bool,
    /// `application_name` as configured; who connects adds its own where there is none.
    pub application_name: Option<String>,
    /// `options`, such as `-c statement_timeout=5s`.
    pub options: Option<String>,
    /// Which of several hosts will do.
    pub target_session_attrs: TargetSessionAttrs,
}

/// One server of a [`Conninfo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Where it is.
    pub host: Host,
    /// `hostaddr`: connect here, the host's name then only serves for TLS and the password file.
    pub hostaddr: Option<IpAddr>,
    /// TCP port, or the number in the socket's file name.
    pub port: u16,
}

/// A server's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an IP address.
    Tcp(String),
    /// The directory of the socket `.s.PGSQL.<port>`; one that begins with `@` is abstract.
    Unix(PathBuf),
}

/// libpq's `keepalives…` and `tcp_user_timeout`, with a relay's defaults: libpq leaves them to the system, which notices
/// a vanished peer after hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSettings {
    /// Whether probes are sent at all.
    pub(crate) keepalives: bool,
    /// Idle time before the first probe; zero leaves it to the system, as with the following.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is given up.
    pub count: u32,
    /// How long sent bytes may stay unacknowledged.
    pub(crate) user_timeout: Duration,
}

impl Default for TcpSettings {
    fn default() -> TcpSettings {
        TcpSettings {
            keepalives: true,
            // Under the five minutes after which common NAT gateways and load balancers forget a connection.
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            count: 3,
            // Probes do not run while a status update is under way, and Linux would send that again for a quarter of an
            // hour before it gives a vanished peer up.
            user_timeout: Duration::from_secs(90),
        }
    }
}

/// libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetSessionAttrs {
    /// The first that answers.
    #[default]
    Any,
    /// One whose transactions may write.
    ReadWrite,
    /// One whose transactions may not.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// One in recovery, else any.
    PreferStandby,
}

impl fmt::Display for TargetSessionAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetSessionAttrs::Any => "any",
            TargetSessionAttrs::ReadWrite => "read-write",
            TargetSessionAttrs::ReadOnly => "read-only",
            TargetSessionAttrs::Primary => "primary",
            TargetSessionAttrs::Standby => "standby",
            TargetSessionAttrs::PreferStandby => "prefer-standby",
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
            Host::Unix(dir) => write!(f, "{}:{}", dir.display(), self.port),
        }
    }
}

impl fmt::Display for Conninfo {
    /// For messages: `postgres://user:***@host:5432/dbname`, the password masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}", self.user)?;
        if !matches!(
            self.password,
            PasswordSource::None | PasswordSource::PasswordFile(_)
        ) {
            write!(f, ":{MASK}")?;
        }
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { '@' } else { ',' })?;
        }
        write!(f, "/{}", self.dbname)
    }
}
