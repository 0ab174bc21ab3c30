//! How to connect to Postgres: libpq's connection strings, environment and password file.
//!
//! In: a connection string (URI or `key=value`), the environment, `~/.pgpass`. Out: a
//! [`Conninfo`] with every default filled in. Guarantee: as libpq would have understood it
//! (manual, 32.1.1, 32.1.2, 32.15, 32.16), and printing one never shows a password.

mod error;
mod mask;
mod parameters;
mod passfile;
mod resolve;
mod syntax;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::{MASK, Secret};
pub use error::ConninfoError;
pub(crate) use mask::has_password;
pub use mask::mask;

/// Postgres' registered port.
pub const DEFAULT_PORT: u16 = 5432;

/// Where Debian's and most distributions' Postgres puts its socket.
pub const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";

/// Everything that a connection needs to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    /// At least one; tried in this order.
    pub hosts: Vec<HostPort>,
    /// Role.
    pub user: String,
    /// For the servers that ask for one.
    pub password: Option<Secret>,
    /// Database.
    pub dbname: String,
    /// Whether TLS is wanted; only those modes that permit plain text can be resolved today.
    pub sslmode: SslMode,
    /// Limit of one attempt at one host, never zero.
    pub connect_timeout: Duration,
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

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Plain text.
    Disable,
    /// Plain text, TLS where the server insists.
    Allow,
    /// TLS where the server offers it, else plain text.
    Prefer,
    /// TLS, whoever the server is.
    Require,
    /// TLS with a certificate of a known authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate names the host.
    VerifyFull,
}

/// libpq's `target_session_attrs`, as far as tokio-postgres has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetSessionAttrs {
    /// The first that answers.
    #[default]
    Any,
    /// One that takes writes (`read-write`, `primary`).
    ReadWrite,
    /// One that does not (`read-only`, `standby`).
    ReadOnly,
}

impl Conninfo {
    /// The same for tokio-postgres, password included.
    pub fn to_tokio_postgres(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        for host in &self.hosts {
            match (&host.host, host.hostaddr) {
                // Without TLS the name has no use beside the address.
                (_, Some(address)) => config.host(address.to_string()),
                (Host::Tcp(name), None) => config.host(name),
                (Host::Unix(dir), None) => config.host_path(dir),
            };
            config.port(host.port);
        }
        config
            .user(&self.user)
            .dbname(&self.dbname)
            .connect_timeout(self.connect_timeout);
        config.ssl_mode(match self.sslmode {
            SslMode::Disable | SslMode::Allow => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                tokio_postgres::config::SslMode::Require
            }
        });
        config.target_session_attrs(match self.target_session_attrs {
            TargetSessionAttrs::Any => tokio_postgres::config::TargetSessionAttrs::Any,
            TargetSessionAttrs::ReadWrite => tokio_postgres::config::TargetSessionAttrs::ReadWrite,
            TargetSessionAttrs::ReadOnly => tokio_postgres::config::TargetSessionAttrs::ReadOnly,
        });
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        if let Some(name) = &self.application_name {
            config.application_name(name);
        }
        if let Some(options) = &self.options {
            config.options(options);
        }
        config
    }
}

impl HostPort {
    /// What a TCP connection dials; `None` for a socket.
    pub fn tcp_host(&self) -> Option<String> {
        match (&self.host, self.hostaddr) {
            (_, Some(address)) => Some(address.to_string()),
            (Host::Tcp(name), None) => Some(name.clone()),
            (Host::Unix(_), None) => None,
        }
    }

    /// The socket's file; `None` for TCP.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match (&self.host, self.hostaddr) {
            (Host::Unix(dir), None) => Some(dir.join(format!(".s.PGSQL.{}", self.port))),
            _ => None,
        }
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

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

impl fmt::Display for Conninfo {
    /// For messages: `postgres://user:***@host:5432/dbname`, the password masked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}", self.user)?;
        if self.password.is_some() {
            write!(f, ":{MASK}")?;
        }
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { '@' } else { ',' })?;
        }
        write!(f, "/{}", self.dbname)
    }
}
