//! A session of tokio-postgres with nothing set, and its errors in the words of the server.
//!
//! In: a `Conninfo`. Out: a client whose connection is driven by a task of its own. Guarantees: connecting ends within
//! the connect timeout per host; an error shows what the server said, and [`SqlError::is_transient`] judges it as the
//! replication connection would.

use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use crate::postgres::attempts::{Failure, Opened, Peer, first_host};
use crate::postgres::conninfo::{self, Conninfo, Host, HostPort, PasswordSource, SslMode};
use crate::postgres::error::{
    AuthenticationError, ConnectError, SILENT, ServerError, io_is_transient,
};
use crate::postgres::server_kind;
use crate::postgres::socket::Socket;
use crate::table_name::quote_identifier;

const APPLICATION_NAME: &str = "walrelay";

/// Why a connection or a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The server refused.
    #[error("Postgres refused: {0}")]
    Server(Box<ServerError>),
    /// The server did not let this role into this database.
    #[error("Postgres refused: {error}; {mend}")]
    Session {
        /// What it said.
        error: Box<ServerError>,
        /// What mends it.
        mend: String,
    },
    /// No connection could be made on which to begin a session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Authentication cannot succeed as configured.
    #[error("cannot authenticate to Postgres: {0}")]
    Authentication(#[from] AuthenticationError),
    /// No host took the connection in time.
    #[error("Postgres did not answer within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// No answer comes any more.
    #[error("{SILENT}")]
    Silent,
    /// The connection could not be made, or broke, or an answer was not what was asked for.
    #[error("the connection to Postgres failed: {}", with_cause(.0))]
    Client(#[source] tokio_postgres::Error),
    /// A row of the catalog does not look as Postgres 14 to 18 make it.
    #[error("cannot read {view} of this server: {source}")]
    Catalog {
        /// The catalog or view.
        view: &'static str,
        /// What does not fit.
        source: serde_json::Error,
    },
}

impl SqlError {
    /// Whether trying again later can help without anybody's doing. What is unknown is permanent.
    pub fn is_transient(&self) -> bool {
        use std::error::Error;
        match self {
            SqlError::Server(error) | SqlError::Session { error, .. } => error.is_transient(),
            SqlError::Timeout { .. } | SqlError::Silent => true,
            SqlError::Connect(error) => error.is_transient(),
            SqlError::Authentication(_) | SqlError::Catalog { .. } => false,
            SqlError::Client(error) => {
                let io = error
                    .source()
                    .and_then(|source| source.downcast_ref::<std::io::Error>());
                error.is_closed() || io.is_some_and(io_is_transient)
            }
        }
    }

    /// The server's SQLSTATE, if it was the server that refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            SqlError::Server(error) | SqlError::Session { error, .. } => Some(&error.code),
            _ => None,
        }
    }

    /// Whether a value was none of its type, or nothing could be computed from it (SQLSTATE class 22, data exception).
    pub(crate) fn is_of_data(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("22"))
    }

    /// The text for a message that has already said that it is about Postgres.
    pub fn bare(&self) -> String {
        match self {
            SqlError::Server(error) => error.to_string(),
            SqlError::Session { error, mend } => format!("{error}; {mend}"),
            SqlError::Client(error) => with_cause(error),
            error => error.to_string(),
        }
    }

    /// The same where it ended an attempt to connect: with what mends it, where a person can.
    fn of_connecting(self, conninfo: &Conninfo) -> SqlError {
        match self {
            SqlError::Server(error) => match session_mend(&error, conninfo) {
                Some(mend) => SqlError::Session { error, mend },
                None => SqlError::Server(error),
            },
            // tokio-postgres has no kind for it.
            SqlError::Client(error) if with_cause(&error).ends_with("password missing") => {
                let user = conninfo.user.clone();
                AuthenticationError::PasswordMissing { user }.into()
            }
            error => error,
        }
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        // What the socket refused to let pass.
        let ruled_out = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<std::io::Error>()?.get_ref())
            .and_then(|inner| inner.downcast_ref::<AuthenticationError>());
        if let Some(error) = ruled_out {
            return SqlError::Authentication(error.clone());
        }
        match error.as_db_error() {
            Some(refusal) => SqlError::Server(Box::new(ServerError {
                severity: refusal.severity().to_owned(),
                code: refusal.code().code().to_owned(),
                message: refusal.message().to_owned(),
                detail: refusal.detail().map(str::to_owned),
                hint: refusal.hint().map(str::to_owned),
                routine: refusal.routine().map(str::to_owned),
            })),
            None => SqlError::Client(error),
        }
    }
}

/// What a person can do about a session that the server refuses.
pub(crate) fn session_mend(error: &ServerError, conninfo: &Conninfo) -> Option<String> {
    let role = quote_identifier(&conninfo.user);
    let database = quote_identifier(&conninfo.dbname);
    Some(match error.code.as_str() {
        "28P01" => format!(
            "the password came from {}: correct it there, or run ALTER ROLE {role} PASSWORD '…';",
            origin(&conninfo.password)
        ),
        // The file's name is the same in every language of the server.
        "28000" if error.message.contains("pg_hba.conf") && leaves_tls_out(conninfo) => format!(
            "sslmode=disable leaves TLS out, which a hostssl line there asks for: set sslmode=require (or verify-full) in \
             postgres.url; or let role {role} into database {database} by a host line, and run SELECT pg_reload_conf();"
        ),
        "28000" if error.message.contains("pg_hba.conf") => format!(
            "let role {role} into database {database} by a line in pg_hba.conf, and run SELECT pg_reload_conf();"
        ),
        "28000" => refused_login(error, conninfo, &role),
        "42501" => {
            format!("run GRANT CONNECT ON DATABASE {database} TO {role}; as the database's owner")
        }
        "3D000" => {
            format!("name another database in postgres.url, or run CREATE DATABASE {database};")
        }
        "53300" => no_place(error, conninfo),
        _ => return None,
    })
}

/// What gives a place to a session where all are taken. Which limit that is tells the function of the server's source.
fn no_place(error: &ServerError, conninfo: &Conninfo) -> String {
    let who = |whose: &str| {
        format!(
            "SELECT pid, usename, application_name, client_addr, state, state_change FROM pg_stat_activity{whose}; shows who has them. End some, or"
        )
    };
    let (role, database) = (&conninfo.user, &conninfo.dbname);
    match error.routine.as_deref() {
        Some("InitializeSessionUserId") => format!(
            "{} run ALTER ROLE {} CONNECTION LIMIT -1;",
            who(&format!(" WHERE usename = {}", escape_literal(role))),
            quote_identifier(role)
        ),
        Some("CheckMyDatabase") => format!(
            "{} run ALTER DATABASE {} CONNECTION LIMIT -1;",
            who(&format!(" WHERE datname = {}", escape_literal(database))),
            quote_identifier(database)
        ),
        // The setting's name is the same in every language of the server.
        _ if error.message.contains("max_wal_senders") => {
            "SELECT pid, usename, application_name, client_addr, state FROM pg_stat_replication; shows who has them. End some, or raise \
             max_wal_senders (SHOW max_wal_senders; tells it) with ALTER SYSTEM SET, and restart Postgres"
                .to_owned()
        }
        _ => format!(
            "{} raise max_connections (SHOW max_connections; tells it) with ALTER SYSTEM SET, and restart Postgres",
            who("")
        ),
    }
}

fn leaves_tls_out(conninfo: &Conninfo) -> bool {
    let by_network = |server: &HostPort| matches!(server.host, Host::Tcp(_));
    conninfo.tls.mode == SslMode::Disable && conninfo.hosts.iter().any(by_network)
}

/// Which of its checks has failed is told by the function of the server's source: the text is in the server's language.
fn refused_login(error: &ServerError, conninfo: &Conninfo, role: &str) -> String {
    match (error.routine.as_deref(), conninfo.tls.certificate.path()) {
        (Some("ClientAuthentication"), _) => {
            "give a certificate that an authority of the server's ssl_ca_file has signed, and its key: sslcert and sslkey \
             in postgres.url, with TLS (sslmode=require or more)"
                .to_owned()
        }
        (Some("auth_failed"), Some(certificate)) => format!(
            "the CN of the certificate {} must be {role}: give another one (sslcert and sslkey in postgres.url), or map its \
             CN to {role} in pg_ident.conf and run SELECT pg_reload_conf();",
            certificate.display()
        ),
        (Some("auth_failed"), None) => format!(
            "run walrelay as the user of the operating system that is called {role}, or map its name to {role} in \
             pg_ident.conf and run SELECT pg_reload_conf();"
        ),
        _ => format!(
            "name another role in postgres.url, or run CREATE ROLE {role} LOGIN REPLICATION; or, where it exists, ALTER ROLE {role} LOGIN REPLICATION;"
        ),
    }
}

/// Where a password came from that the server has refused, for a person.
fn origin(source: &PasswordSource) -> String {
    match source {
        PasswordSource::Command(_) => {
            "postgres.password_command (all that it prints, without the last line end)".to_owned()
        }
        PasswordSource::File(path) => format!("the file {}", path.display()),
        PasswordSource::PasswordFile(path) => format!("the password file {}", path.display()),
        PasswordSource::Given(_) | PasswordSource::None => {
            "postgres.url, postgres.password or PGPASSWORD (walrelay config show tells which)"
                .to_owned()
        }
    }
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

impl Failure for SqlError {
    fn timed_out(after: Duration) -> SqlError {
        SqlError::Timeout { after }
    }

    fn is_transient(&self) -> bool {
        SqlError::is_transient(self)
    }

    fn gives_way(&self) -> bool {
        SqlError::is_transient(self) || self.connect().is_some()
    }

    fn refusal(&self) -> Option<&ServerError> {
        match self {
            SqlError::Server(error) | SqlError::Session { error, .. } => Some(error),
            _ => None,
        }
    }

    fn connect(&self) -> Option<&ConnectError> {
        match self {
            SqlError::Connect(error) => Some(error),
            _ => None,
        }
    }
}

/// Hands tokio-postgres a socket that is encrypted already.
struct Handed;

impl TlsConnect<Socket> for Handed {
    type Stream = Socket;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Socket, Self::Error>>;

    fn connect(self, socket: Socket) -> Self::Future {
        std::future::ready(Ok(socket))
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        match self.end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}

/// A session with nothing set, and where it leads.
///
/// # Errors
/// [`SqlError`].
pub(crate) async fn session(
    conninfo: &Conninfo,
) -> Result<(tokio_postgres::Client, Peer), SqlError> {
    first_host(conninfo, |opened| begin(conninfo, opened))
        .await
        .map_err(|error| error.of_connecting(conninfo))
}

async fn begin(
    conninfo: &Conninfo,
    opened: Opened,
) -> Result<(tokio_postgres::Client, Peer), SqlError> {
    let config = configuration(conninfo, &opened);
    let (client, connection) = config.connect_raw(opened.socket, Handed).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever uses the client gets the error too.
            tracing::debug!(error = %SqlError::from(error), "a connection to Postgres ended");
        }
    });
    if let Some(query) = server_kind::query(opened.wanted) {
        let messages = client.simple_query(query).await?;
        let found = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        server_kind::check(opened.wanted, found, &opened.peer.server)?;
    }
    Ok((client, opened.peer))
}

/// Asks a server to cancel what a session does.
///
/// # Errors
/// [`SqlError`], where it cannot be reached.
pub(crate) async fn cancel(
    token: tokio_postgres::CancelToken,
    socket: Socket,
) -> Result<(), SqlError> {
    Ok(token.cancel_query_raw(socket, Handed).await?)
}

fn configuration(conninfo: &Conninfo, opened: &Opened) -> tokio_postgres::Config {
    use tokio_postgres::config::{self, SslMode, SslNegotiation};
    let mut config = tokio_postgres::Config::new();
    let name = conninfo.application_name.as_deref();
    config
        .user(&conninfo.user)
        .dbname(&conninfo.dbname)
        .application_name(name.unwrap_or(APPLICATION_NAME))
        // What is encrypted is so already.
        .ssl_negotiation(SslNegotiation::Direct)
        .ssl_mode(match opened.peer.is_encrypted {
            true => SslMode::Require,
            false => SslMode::Disable,
        })
        .channel_binding(match conninfo.authentication.channel_binding {
            conninfo::ChannelBinding::Disable => config::ChannelBinding::Disable,
            conninfo::ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            conninfo::ChannelBinding::Require => config::ChannelBinding::Require,
        });
    if let Some(password) = &opened.password {
        config.password(password.expose());
    }
    if let Some(options) = &conninfo.options {
        config.options(options);
    }
    config
}
