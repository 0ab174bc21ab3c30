//! From a `Conninfo` to an authenticated replication session.
//!
//! In: hosts, role, password, session settings. Out: a [`Session`] that is ready for commands. Guarantees: hosts are
//! tried in their order, each within the connect timeout from the first packet to the last; whatever text output
//! depends on is set and read back, not left to the role or the database; with SCRAM the server has proved that it knows
//! the password before anything it says counts.
//!
//! Manual: 54.2.1 "Start-up", 54.3 "SASL Authentication", 54.4 "Streaming Replication Protocol".

use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use crate::postgres::attempts::{Failure, Opened, first_host};
use crate::postgres::backend::{Reader, tag};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::error::{
    AuthenticationError, ConnectError, Problem, ReplicationError, ServerError, log_notice,
};
use crate::postgres::replication::Session;
use crate::postgres::server_kind;
use crate::postgres::session::session_mend;
use crate::postgres::wire::Wire;
use crate::secret::Secret;

/// What the server appends to its process title and to `pg_stat_replication`, where the URL names nothing else.
/// SQLSTATE: there are as many sessions as there may be.
const NO_PLACE: &str = "53300";

const APPLICATION_NAME: &str = "walrelay";

/// Memory of the server for one transaction before it spills to disk, in MiB: most transactions of an outbox then never touch
/// the disk (the server's default is 64).
pub(crate) const DECODING_MEMORY_MIB: u32 = 256;

/// Settings of a replication session that have a reason to differ.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// After this long without a status update the server ends the connection. `None` leaves the server's own.
    pub wal_sender_timeout: Option<Duration>,
}

/// Connects, authenticates and waits until the server takes commands.
///
/// A host that cannot be reached, does not answer in time or is starting up gives way to the next; a refusal that
/// another host would repeat (password, database) does not.
///
/// # Errors
/// Each host's error, in order.
pub async fn connect(
    conninfo: &Conninfo,
    settings: &SessionSettings,
) -> Result<Session, ReplicationError> {
    let opened = first_host(conninfo, |opened| begin(opened, conninfo, settings)).await;
    opened.map_err(|error| match error {
        // What else a session is refused for, the one for SQL hears before.
        ReplicationError::Server(error) if error.code == NO_PLACE => {
            let hint = session_mend(&error, conninfo);
            ReplicationError::Server(Box::new(ServerError { hint, ..*error }))
        }
        error => error,
    })
}

impl Failure for ReplicationError {
    fn timed_out(after: Duration) -> ReplicationError {
        ReplicationError::Timeout {
            during: "start-up",
            after,
        }
    }

    fn is_transient(&self) -> bool {
        ReplicationError::is_transient(self)
    }

    fn gives_way(&self) -> bool {
        ReplicationError::is_transient(self) || self.connect().is_some()
    }

    fn refusal(&self) -> Option<&ServerError> {
        self.server()
    }

    fn connect(&self) -> Option<&ConnectError> {
        match self {
            ReplicationError::Connect(error) => Some(error),
            _ => None,
        }
    }
}

async fn begin(
    opened: Opened,
    conninfo: &Conninfo,
    settings: &SessionSettings,
) -> Result<Session, ReplicationError> {
    let mut wire = Wire::new(opened.socket);
    let options = session_options(conninfo.options.as_deref(), settings);
    let parameters = [
        ("user", conninfo.user.as_str()),
        ("database", conninfo.dbname.as_str()),
        ("replication", "database"),
        (
            "application_name",
            conninfo
                .application_name
                .as_deref()
                .unwrap_or(APPLICATION_NAME),
        ),
        ("client_encoding", "UTF8"),
        ("options", options.as_str()),
    ];
    frontend::startup_message(parameters, &mut wire.outbox)?;
    let credentials = Credentials {
        user: &conninfo.user,
        password: opened.password.as_ref(),
    };
    authenticate(&mut wire, &credentials).await?;
    let mut session = Session::new(wire, conninfo.clone());
    session.wait_until_ready().await?;
    if let Some(query) = server_kind::query(opened.wanted) {
        let rows = session.simple_query(query).await?;
        let found = rows.first().and_then(|row| row.first()?.as_deref());
        server_kind::check(opened.wanted, found, &opened.peer.server)?;
    }
    session.pin().await?;
    Ok(session)
}

/// Who we are, and what proves it.
struct Credentials<'a> {
    user: &'a str,
    password: Option<&'a Secret>,
}

impl Credentials<'_> {
    fn password(&self) -> Result<&str, AuthenticationError> {
        match self.password {
            Some(password) => Ok(password.expose()),
            None => Err(AuthenticationError::PasswordMissing {
                user: self.user.to_owned(),
            }),
        }
    }
}

/// The `options` parameter. First what the user may override, then theirs, then what is configured: the last of several
/// `-c` for one name counts.
fn session_options(configured: Option<&str>, settings: &SessionSettings) -> String {
    let mut options = format!("-c logical_decoding_work_mem={}MB", DECODING_MEMORY_MIB);
    if let Some(configured) = configured {
        options.push(' ');
        options.push_str(configured);
    }
    if let Some(timeout) = settings.wal_sender_timeout {
        options.push_str(&format!(" -c wal_sender_timeout={}ms", timeout.as_millis()));
    }
    options
}

/// What the server asks for in an `Authentication…` message.
enum Request {
    Ok,
    Cleartext,
    Md5 {
        salt: [u8; 4],
    },
    Sasl {
        scram: bool,
        plus: bool,
        mechanisms: String,
    },
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
    Other(String),
}

async fn authenticate(
    wire: &mut Wire,
    credentials: &Credentials<'_>,
) -> Result<(), ReplicationError> {
    match request(wire).await? {
        Request::Ok => return Ok(()),
        Request::Cleartext => {
            let password = credentials.password()?;
            frontend::password_message(password.as_bytes(), &mut wire.outbox)?;
        }
        Request::Md5 { salt } => {
            let password = credentials.password()?;
            let hash = md5_hash(credentials.user.as_bytes(), password.as_bytes(), salt);
            frontend::password_message(hash.as_bytes(), &mut wire.outbox)?;
        }
        Request::Sasl { scram, plus, .. } if scram || plus => {
            self::scram(wire, credentials.password()?, plus).await?;
        }
        Request::Sasl { mechanisms, .. } => return Err(unsupported(mechanisms)),
        Request::SaslContinue(_) | Request::SaslFinal(_) => return Err(out_of_turn()),
        Request::Other(method) => return Err(unsupported(method)),
    }
    match request(wire).await? {
        Request::Ok => Ok(()),
        Request::Other(method) => Err(unsupported(method)),
        _ => Err(out_of_turn()),
    }
}

/// SCRAM-SHA-256, bound to the channel where both sides can (`plus`: the server can). A server that is said to offer no
/// binding, by somebody between, finds out by what the first message says of us.
async fn scram(wire: &mut Wire, password: &str, plus: bool) -> Result<(), ReplicationError> {
    let failed = |error: std::io::Error| AuthenticationError::Scram(error.to_string());
    let (binding, mechanism) = match wire.end_point() {
        Some(hash) if plus => (
            ChannelBinding::tls_server_end_point(hash.to_vec()),
            SCRAM_SHA_256_PLUS,
        ),
        Some(_) => (ChannelBinding::unrequested(), SCRAM_SHA_256),
        None => (ChannelBinding::unsupported(), SCRAM_SHA_256),
    };
    let mut scram = ScramSha256::new(password.as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.outbox)?;
    let Request::SaslContinue(challenge) = request(wire).await? else {
        return Err(out_of_turn());
    };
    scram.update(&challenge).map_err(failed)?;
    frontend::sasl_response(scram.message(), &mut wire.outbox)?;
    let Request::SaslFinal(proof) = request(wire).await? else {
        return Err(out_of_turn());
    };
    scram.finish(&proof).map_err(failed)?;
    Ok(())
}

fn unsupported(method: String) -> ReplicationError {
    AuthenticationError::Unsupported { method }.into()
}

/// A server that skips a step, such as its SCRAM proof, is not believed.
fn out_of_turn() -> ReplicationError {
    Reader::new("Authentication", &[])
        .error("type", Problem::Value)
        .into()
}

/// The next `Authentication…` message.
async fn request(wire: &mut Wire) -> Result<Request, ReplicationError> {
    loop {
        let (tag, body) = wire.message().await?;
        match tag {
            tag::AUTHENTICATION => return Ok(parse_request(body)?),
            tag::ERROR_RESPONSE => return Err(ServerError::parse(body)?.into()),
            tag::NOTICE_RESPONSE => log_notice(&ServerError::parse(body)?),
            other => {
                return Err(Reader::new("start-up message", &[])
                    .error("tag", Problem::UnexpectedTag(other))
                    .into());
            }
        }
    }
}

fn parse_request(body: &[u8]) -> Result<Request, crate::postgres::error::ProtocolError> {
    let mut reader = Reader::new("Authentication", body);
    Ok(match reader.i32("type")? {
        0 => Request::Ok,
        2 => Request::Other("Kerberos V5".to_owned()),
        3 => Request::Cleartext,
        5 => {
            let salt = reader.bytes(4, "salt")?;
            Request::Md5 {
                salt: salt.try_into().expect("four bytes were asked for"),
            }
        }
        6 => Request::Other("SCM credentials".to_owned()),
        7 => Request::Other("GSSAPI".to_owned()),
        9 => Request::Other("SSPI".to_owned()),
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let mechanism = reader.str("mechanism")?;
                if mechanism.is_empty() {
                    break;
                }
                mechanisms.push(mechanism);
            }
            Request::Sasl {
                scram: mechanisms.contains(&SCRAM_SHA_256),
                plus: mechanisms.contains(&SCRAM_SHA_256_PLUS),
                mechanisms: mechanisms.join(", "),
            }
        }
        11 => Request::SaslContinue(reader.rest().to_vec()),
        12 => Request::SaslFinal(reader.rest().to_vec()),
        other => Request::Other(format!("authentication method {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::socket::Socket;

    #[test]
    fn what_is_configured_comes_after_what_the_user_set() {
        let settings = SessionSettings {
            wal_sender_timeout: Some(Duration::from_secs(30)),
        };
        let options = session_options(
            Some("-c wal_sender_timeout=1h -c logical_decoding_work_mem=1GB"),
            &settings,
        );
        assert!(
            options.rfind("wal_sender_timeout=30000ms") > options.find("wal_sender_timeout=1h")
        );
        assert!(options.find("work_mem=1GB") > options.find("work_mem=256MB"));
    }

    #[test]
    fn an_authentication_request_cut_at_any_byte_is_an_error_and_not_a_panic() {
        let md5 = b"\0\0\0\x05abcd";
        let sasl = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
        for body in [md5.as_slice(), sasl] {
            for end in 0..body.len() {
                assert!(parse_request(&body[..end]).is_err(), "at {end}");
            }
            assert!(parse_request(body).is_ok());
        }
    }

    /// What authentication makes of a server that sends these requests whatever it is told.
    fn against(requests: &[&[u8]]) -> Result<(), ReplicationError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
            for body in requests {
                let mut message = vec![b'R'];
                message.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
                message.extend_from_slice(body);
                tokio::io::AsyncWriteExt::write_all(&mut theirs, &message)
                    .await
                    .unwrap();
            }
            let password = Secret::from("pencil");
            let credentials = Credentials {
                user: "walrelay",
                password: Some(&password),
            };
            authenticate(&mut Wire::new(Socket::unix(ours)), &credentials).await
        })
    }

    #[test]
    fn a_server_that_skips_its_proof_is_not_believed() {
        let (ok, sasl) = (
            b"\0\0\0\0".as_slice(),
            b"\0\0\0\x0aSCRAM-SHA-256\0\0".as_slice(),
        );
        let (challenge, proof) = (
            b"\0\0\0\x0br=other,s=QSXCR+Q6sek8bf92,i=4096".as_slice(),
            b"\0\0\0\x0cv=".as_slice(),
        );
        assert!(against(&[ok]).is_ok());
        assert!(matches!(
            against(&[sasl, ok]),
            Err(ReplicationError::Protocol(_))
        ));
        assert!(matches!(
            against(&[proof]),
            Err(ReplicationError::Protocol(_))
        ));
        assert!(matches!(
            against(&[sasl, challenge]),
            Err(ReplicationError::Authentication(
                AuthenticationError::Scram(_)
            ))
        ));
    }

    #[test]
    fn a_method_that_walrelay_does_not_have_is_named() {
        for request in [
            b"\0\0\0\x07".as_slice(),
            b"\0\0\0\x63",
            b"\0\0\0\x0aOAUTHBEARER\0\0",
        ] {
            assert!(matches!(
                against(&[request]),
                Err(ReplicationError::Authentication(
                    AuthenticationError::Unsupported { .. }
                ))
            ));
        }
    }
}
