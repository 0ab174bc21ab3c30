//! Errors of the replication connection, and the one place that says which of them waiting can heal.
//!
//! In: what the server or the socket reports. Out: [`ReplicationError`], typed by what a caller does about it.
//! Guarantees: no secret in any message; [`ReplicationError::is_transient`] says `false` for whatever it does not know.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::postgres::conninfo::{Method, PasswordError, SslMode, TargetSessionAttrs};
use crate::tls::TlsError;

/// What to say where an answer does not come any more.
pub(crate) const SILENT: &str = "Postgres has stopped answering: the server hangs, or the network between has lost the connection";

/// What to say where another program listens.
pub(crate) const NOT_POSTGRES: &str =
    "what answers there is no Postgres server: check host and port";

/// SQLSTATE: somebody reads the slot.
pub const OBJECT_IN_USE: &str = "55006";

/// SQLSTATE: there are as many slots as there may be.
#[cfg(feature = "cli")]
pub(crate) const NO_SLOT_FREE: &str = "53400";

/// SQLSTATE: there is no such slot.
pub(crate) const SLOT_MISSING: &str = "42704";

/// SQLSTATE with which Postgres 14 to 17 end where a publication is missing in the WAL.
pub(crate) const PUBLICATION_MISSING: &str = "42704";
/// What to say of that. The WAL is decoded by the catalog of its own time, at each start anew: a publication that is made
/// now is not in it.
pub(crate) const PUBLICATION_MISSING_WHY: &str = "rows were not sent because the publication did not exist at this point of the WAL. \
    One that was made later does not help, and the slot never passes this point";
/// What goes on.
pub(crate) const PUBLICATION_MISSING_MEND: &str = "if it was renamed, give `postgres.publication` its new name and start the relay \
    again; else run `walrelay teardown`, `walrelay setup` and `walrelay adopt` for a slot behind it; \
    then `walrelay backfill` publishes what the old one had not brought, and `walrelay verify` names it";
/// What goes on where the slot can give nothing more.
pub(crate) const SLOT_LOST_MEND: &str = "run walrelay teardown, walrelay setup and walrelay adopt, then walrelay backfill for the events in between";

/// An `ErrorResponse` or `NoticeResponse` of the server.
///
/// Manual: 54.8 "Error and Notice Message Fields".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// ERROR, FATAL, PANIC, WARNING, NOTICE, … never translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The primary message, in the server's language.
    pub message: String,
    /// A second line, if the server gave one.
    pub(crate) detail: Option<String>,
    /// What the server suggests, if anything.
    pub(crate) hint: Option<String>,
    /// The function of the server's source that says it; never translated.
    pub(crate) routine: Option<String>,
}

/// What a notice in the replication stream is about, as far as somebody acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Rows are passed over, since the publication is missing at this point of the WAL (Postgres 18).
    PublicationSkipped,
    /// Nothing more is sent before a standby of `synchronized_standby_slots` has it (Postgres 17). Said again at each
    /// status update.
    StandbyAwaited,
    /// Anything else.
    Other,
}

impl ServerError {
    /// What a notice in the replication stream is about. The text is in the server's language, and one SQLSTATE stands for
    /// several states.
    pub fn notice(&self) -> Notice {
        match (self.routine.as_deref(), self.code.as_str()) {
            (Some("StandbySlotsHaveCaughtup"), _) => Notice::StandbyAwaited,
            (_, "55000") => Notice::PublicationSkipped,
            _ => Notice::Other,
        }
    }
}

impl ServerError {
    /// Which pooler says this, or makes Postgres say it: no session of ours hears it from Postgres alone.
    fn of_pooler(&self) -> Option<&'static str> {
        const REPLICATION: [&str; 4] = [
            "\"IDENTIFY_SYSTEM\"",
            "\"START_REPLICATION\"",
            "\"CREATE_REPLICATION_SLOT\"",
            "\"DROP_REPLICATION_SLOT\"",
        ];
        let says = |words: &str| self.message.contains(words);
        match self.code.as_str() {
            "08P01" if says("unsupported startup parameter") => {
                Some("what answers there is PgBouncer before 1.23, which has no replication")
            }
            "42601" if REPLICATION.into_iter().any(says) => Some(
                "a pooler (PgBouncer before 1.23 or a like one) makes a plain session of a replication connection",
            ),
            "42P05" | "26000" => Some(
                "a pooler in transaction mode (PgBouncer before 1.21 or a like one) mixes the statements of its clients",
            ),
            _ => None,
        }
    }

    /// Without what the server suggests, where that does not help.
    pub(crate) fn without_hint(&self) -> Self {
        ServerError {
            hint: None,
            ..self.clone()
        }
    }

    /// Whether the same request may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        sqlstate_is_transient(&self.code)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        if let Some(pooler) = self.of_pooler() {
            write!(
                f,
                "; {pooler}: give the address of Postgres itself in postgres.url"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// A notice that nobody acts on, as grave as the server calls it.
pub(crate) fn log_notice(notice: &ServerError) {
    match notice.severity.as_str() {
        "WARNING" => tracing::warn!("Postgres says: {notice}"),
        "NOTICE" | "INFO" => tracing::info!("Postgres says: {notice}"),
        _ => tracing::debug!("Postgres says: {notice}"),
    }
}

/// Whether an SQLSTATE describes a state that passes by itself: a server that starts, stops or is full.
///
/// Manual: appendix A. Unknown codes are permanent.
pub(crate) fn sqlstate_is_transient(code: &str) -> bool {
    // 08xxx: connection exceptions, except 08P01 (protocol violation), which will repeat.
    (code.starts_with("08") && code != "08P01")
        || matches!(
            code,
            "53000" | "53100" | "53200" | "53300" // out of disk, memory, connections
            | "57P01" | "57P02" | "57P03" | "57P05" // shutdown, crash, starting up, idle time-out
            | "55006" // object in use: the slot is active elsewhere
            | "55P03" | "40001" | "40P01" // lock not available, serialization, deadlock
        )
}

/// Bytes from the server that do not follow the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message} from the server: {field} at byte {offset}: {problem}")]
pub struct ProtocolError {
    /// Name of the message in the manual.
    pub message: &'static str,
    /// The field that could not be read.
    pub field: &'static str,
    /// Where in the message's body, in bytes.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The body ends before the field does.
    #[error("the message ends before it")]
    Truncated,
    /// A message that has no place here; its tag.
    #[error("message type {:?} is not expected here", char::from(*.0))]
    UnexpectedTag(u8),
    /// A length that cannot be.
    #[error("the length {0} is out of bounds")]
    Length(i64),
    /// Text that is not UTF-8.
    #[error("not UTF-8")]
    Encoding,
    /// A value that the field cannot have.
    #[error("the value is not one that the field can have")]
    Value,
}

/// Why no connection could be made on which to begin a session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server cannot be reached.
    #[error("cannot reach Postgres at {host}: {source}")]
    Reach {
        /// host:port or the socket's path.
        host: String,
        /// The socket's error.
        source: io::Error,
    },
    /// The server is not of the kind that was asked for.
    #[error("Postgres at {host} {found}, and target_session_attrs is {wanted}")]
    Kind {
        /// host:port or the socket's path.
        host: String,
        /// What it is.
        found: &'static str,
        /// What was asked for.
        wanted: TargetSessionAttrs,
    },
    /// The server has no TLS, and there must be some.
    #[error(
        "Postgres at {host} offers no TLS, and sslmode is {mode}: turn it on there (ssl = on, ssl_cert_file, ssl_key_file), or use sslmode=prefer on a network that you trust"
    )]
    NotOffered {
        /// host:port.
        host: String,
        /// What was asked for.
        mode: SslMode,
    },
    /// TLS could not be made with this server.
    #[error("TLS with Postgres at {host} failed: {source}")]
    Handshake {
        /// host:port.
        host: String,
        /// The reason.
        source: io::Error,
    },
    /// None of several addresses serves.
    #[error("{}", .attempts.join("; "))]
    Several {
        /// What each of them said, in order.
        attempts: Vec<String>,
        /// Whether one of them may serve later.
        is_transient: bool,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
    /// There is no password.
    #[error(transparent)]
    Password(#[from] PasswordError),
}

impl ConnectError {
    /// Whether trying again later can help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            ConnectError::Reach { source, .. } | ConnectError::Handshake { source, .. } => {
                io_is_transient(source)
            }
            // A promotion, or its end, makes it one.
            ConnectError::Kind { .. } => true,
            ConnectError::Password(error) => error.is_transient(),
            ConnectError::Several { is_transient, .. } => *is_transient,
            ConnectError::NotOffered { .. } | ConnectError::Tls(_) => false,
        }
    }
}

/// Why a replication connection could not be made, used or kept.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// No host could be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A step took longer than it may.
    #[error("Postgres did not answer within {after:?} during {during}")]
    Timeout {
        /// The step.
        during: &'static str,
        /// The limit.
        after: Duration,
    },
    /// No answer comes any more.
    #[error("{SILENT}")]
    Silent,
    /// The session does not have the settings that the text of columns depends on.
    #[error(
        "the replication session has {name} = {found:?} and not {wanted:?}: something between walrelay and Postgres keeps \
         settings back, or answers for it; give the server's own address in postgres.url"
    )]
    Setting {
        /// The setting.
        name: String,
        /// Its value there.
        found: String,
        /// The value that was set.
        wanted: &'static str,
    },
    /// The socket failed later on.
    #[error("the replication connection failed: {0}")]
    Io(#[source] io::Error),
    /// Authentication cannot succeed as configured.
    #[error("cannot authenticate to Postgres: {0}")]
    Authentication(#[from] AuthenticationError),
    /// Another connection reads the slot (55006).
    #[error("replication slot \"{slot}\" is in use{}: another relay reads it, or an old connection has not ended yet", pid_text(.pid))]
    SlotActive {
        /// The slot.
        slot: String,
        /// The server process that holds it, if the server told.
        pid: Option<i32>,
    },
    /// The server has removed WAL that the slot needs: events between its position and now cannot be streamed.
    #[error(
        "replication slot \"{slot}\" is lost, the WAL that it needs has been removed ({server}): {SLOT_LOST_MEND}"
    )]
    SlotLost {
        /// The slot.
        slot: String,
        /// What the server said.
        server: Box<ServerError>,
    },
    /// The server refused, for a reason that has no variant of its own.
    #[error("Postgres refused: {0}")]
    Server(Box<ServerError>),
    /// The server does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl From<ServerError> for ReplicationError {
    fn from(error: ServerError) -> Self {
        ReplicationError::Server(Box::new(error))
    }
}

impl From<io::Error> for ReplicationError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<AuthenticationError>() {
            Ok(error) => ReplicationError::Authentication(error),
            Err(error) => ReplicationError::Io(error),
        }
    }
}

fn pid_text(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" by the server process {pid}"))
        .unwrap_or_default()
}

/// Why authentication cannot succeed, other than the server's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// The server asks for a password and none is configured.
    #[error(
        "the server asks for a password of user \"{user}\" and none is configured (postgres.password, postgres.password_command, postgres.url, PGPASSWORD or a password file)"
    )]
    PasswordMissing {
        /// The role.
        user: String,
    },
    /// A method that walrelay does not have.
    #[error(
        "the server asks for {method}; walrelay has trust, password, md5 and scram-sha-256: choose one of them in pg_hba.conf"
    )]
    Unsupported {
        /// The method's name.
        method: String,
    },
    /// What comes is no message of Postgres.
    #[error("{NOT_POSTGRES}")]
    NotPostgres,
    /// A method that `require_auth` rules out.
    #[error("{}, which require_auth rules out: allow it there, or change the method in pg_hba.conf", asks(.method))]
    NotAllowed {
        /// The server's.
        method: Method,
    },
    /// A server that binds nothing to the channel, where that is required.
    #[error(
        "{}, and channel_binding=require takes SCRAM-SHA-256-PLUS alone: set scram-sha-256 in pg_hba.conf and the password anew, or use channel_binding=prefer", asks(.method)
    )]
    NotBound {
        /// The server's method.
        method: Method,
    },
    /// A connection that nothing can be bound to.
    #[error(
        "channel_binding=require takes TLS, and a server's certificate whose signature has a hash (RSA or ECDSA, not Ed25519): use sslmode=require, or channel_binding=prefer"
    )]
    CannotBind,
    /// A proof that would take longer than a start-up may: the thread that computes it does nothing else.
    #[error(
        "the server asks for {asked} iterations of SCRAM, and walrelay computes no more than {limit}: in one session, run SET scram_iterations = 4096; ALTER ROLE … PASSWORD '…'; so that the password is kept anew"
    )]
    Iterations {
        /// By the server.
        asked: u64,
        /// Of walrelay.
        limit: u64,
    },
    /// The server could not prove that it knows the password: not the server that it claims to be.
    #[error(
        "the server's SCRAM proof is wrong ({0}): this may not be the server that it claims to be"
    )]
    Scram(String),
}

fn asks(method: &Method) -> String {
    match method {
        Method::None => "the server asks for no proof of who we are".to_owned(),
        method => format!("the server asks for {method}"),
    }
}

impl ReplicationError {
    /// Whether trying again later can help without anybody's doing. What is unknown is permanent.
    pub fn is_transient(&self) -> bool {
        match self {
            ReplicationError::Connect(error) => error.is_transient(),
            ReplicationError::Io(source) => io_is_transient(source),
            ReplicationError::Timeout { .. }
            | ReplicationError::Silent
            | ReplicationError::SlotActive { .. } => true,
            ReplicationError::Server(error) => error.is_transient(),
            ReplicationError::Authentication(_)
            | ReplicationError::Setting { .. }
            | ReplicationError::SlotLost { .. }
            | ReplicationError::Protocol(_) => false,
        }
    }

    /// The text for a message that has already said that it is about Postgres.
    pub fn bare(&self) -> String {
        match self {
            ReplicationError::Server(error) => error.to_string(),
            error => error.to_string(),
        }
    }

    /// The server's error, if it was the server that refused.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            ReplicationError::Server(server) | ReplicationError::SlotLost { server, .. } => {
                Some(server)
            }
            _ => None,
        }
    }
}

/// Whether a socket's error may pass. Input that we made ourselves (a NUL in a name) and a missing right to a unix
/// socket will not.
pub(crate) fn io_is_transient(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::Unsupported
            | io::ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSAL: &[u8] = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0Fauth.c\0\0";

    #[test]
    fn reads_the_fields() {
        let error = ServerError::parse(REFUSAL).unwrap();
        assert_eq!(
            (error.severity.as_str(), error.code.as_str()),
            ("FATAL", "28P01")
        );
        assert!(!error.is_transient());
    }

    #[test]
    fn truncation_at_every_byte_is_a_typed_error() {
        for end in 0..REFUSAL.len() {
            let error = ServerError::parse(&REFUSAL[..end]).unwrap_err();
            assert_eq!(error.problem, Problem::Truncated, "at {end}");
        }
    }

    #[test]
    fn a_pooler_is_named() {
        let shown = |code: &str, message: &str| {
            let (code, message) = (code.to_owned(), message.to_owned());
            let error = ServerError {
                code,
                message,
                ..ServerError::default()
            };
            error.to_string()
        };
        // As PgBouncer 1.18 and the Postgres behind it say it.
        for (code, message) in [
            ("08P01", "unsupported startup parameter: replication"),
            ("08P01", "unsupported startup parameter: options"),
            ("42601", "syntax error at or near \"IDENTIFY_SYSTEM\""),
            ("42P05", "prepared statement \"s5\" already exists"),
        ] {
            let text = shown(code, message);
            assert!(
                text.contains("PgBouncer") && text.contains("postgres.url"),
                "{text}"
            );
        }
        for (code, message) in [
            ("08P01", "invalid message format"),
            ("42601", "syntax error at or near \"x\""),
        ] {
            let text = shown(code, message);
            assert!(
                !text.contains("pooler") && !text.contains("PgBouncer"),
                "{text}"
            );
        }
    }

    #[test]
    fn unknown_states_are_permanent() {
        for code in [
            "28P01", "28000", "3D000", "42704", "55000", "08P01", "XX000", "", "57P04",
        ] {
            assert!(!sqlstate_is_transient(code), "{code}");
        }
        for code in ["57P03", "57P01", "53300", "08006", "55006"] {
            assert!(sqlstate_is_transient(code), "{code}");
        }
    }
}
