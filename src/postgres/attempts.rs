//! Attempts to make a session, host by host and address by address, with TLS and without.
//!
//! In: a `Conninfo`, what an attempt does on an open socket. Out: the first session that is made. Guarantees: each
//! address gets the connect timeout and no more; a network that comes back is seen within about a second; plain SQL and
//! replication take the same steps, so that both end at the same server in the same way.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::postgres::conninfo::{Conninfo, Host, HostPort, SslMode, TargetSessionAttrs};
use crate::postgres::encryption::{EncryptionError, Negotiated, encrypt};
use crate::postgres::error::{ConnectError, ServerError};
use crate::postgres::socket::{Socket, address_text, connect_tcp, connect_unix};
use crate::secret::Secret;

/// So long an attempt to connect may be quiet before others are made beside it, and so long each of those may take.
/// What a dead network has swallowed is not sent again, so the return of the network is seen by a new attempt only.
const FRESH_ATTEMPT: Duration = Duration::from_secs(1);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 32;

/// What a session begins on.
pub(crate) struct Opened {
    pub(crate) socket: Socket,
    pub(crate) peer: Peer,
    pub(crate) password: Option<Secret>,
    /// The kind of server that is wanted.
    pub(crate) wanted: TargetSessionAttrs,
}

/// Where a socket leads, for another one to the same server.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// With the address that was taken.
    pub(crate) server: HostPort,
    pub(crate) is_encrypted: bool,
}

/// The error of an attempt, as far as others depend on it.
pub(crate) trait Failure: From<ConnectError> + Display {
    /// Nothing came in time.
    fn timed_out(after: Duration) -> Self;

    /// Whether trying again later can help without anybody's doing.
    fn is_transient(&self) -> bool;

    /// Whether the next host is tried: one that is of no use, and not a refusal that another would repeat.
    fn gives_way(&self) -> bool;

    /// What the server said, if it was the server that refused.
    fn refusal(&self) -> Option<&ServerError>;

    /// The error before a session began, if it was one.
    fn connect(&self) -> Option<&ConnectError>;
}

/// Makes a session with the first of the hosts that serves.
///
/// # Errors
/// Of the first host whose error does not give way to the next, else [`ConnectError::Several`], or the only one there is.
pub(crate) async fn first_host<T, E: Failure, A: Future<Output = Result<T, E>>>(
    conninfo: &Conninfo,
    begin: impl Fn(Opened) -> A,
) -> Result<T, E> {
    let passwords = conninfo.password.read().await.map_err(ConnectError::from)?;
    let passes: &[TargetSessionAttrs] = match conninfo.target_session_attrs {
        TargetSessionAttrs::PreferStandby => {
            &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any]
        }
        ref one => std::slice::from_ref(one),
    };
    let mut failures = Failures::default();
    for wanted in passes {
        for host in shuffled(conninfo, conninfo.hosts.clone()) {
            let addresses = match addresses(conninfo, &host).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    failures.add(&host, E::from(error));
                    continue;
                }
            };
            for server in addresses {
                let attempt = Attempt {
                    conninfo,
                    password: passwords.of(&server, &conninfo.dbname, &conninfo.user),
                    server: server.clone(),
                    wanted: *wanted,
                };
                tracing::debug!(server = address_text(&server), "connecting to Postgres");
                // On the heap: TLS, two attempts beside each other and the start-up are large, and every command holds them.
                match Box::pin(attempt.within_limit(&begin)).await {
                    Err(error) if error.gives_way() => {
                        tracing::debug!(%host, %error, "cannot use this host, trying the next");
                        failures.add(&server, error);
                    }
                    made => {
                        let server = address_text(&server);
                        match &made {
                            Ok(_) => tracing::debug!(server, "connected to Postgres"),
                            Err(error) => tracing::debug!(server, %error, "Postgres refuses"),
                        }
                        return made;
                    }
                }
            }
        }
    }
    Err(failures.told())
}

/// Why no address has served so far.
struct Failures<E> {
    last: Option<E>,
    /// Each text once, with its address.
    attempts: Vec<String>,
    is_transient: bool,
}

impl<E> Default for Failures<E> {
    fn default() -> Self {
        Failures {
            last: None,
            attempts: Vec::new(),
            is_transient: false,
        }
    }
}

impl<E: Failure> Failures<E> {
    fn add(&mut self, server: &HostPort, error: E) {
        let (address, mut text) = (address_text(server), error.to_string());
        if !text.contains(&address) {
            text = format!("{address}: {text}");
        }
        if !self.attempts.contains(&text) {
            self.attempts.push(text);
        }
        self.is_transient |= error.is_transient();
        self.last = Some(error);
    }

    fn told(self) -> E {
        match self.attempts.len() {
            0 | 1 => self
                .last
                .expect("a connection string names at least one host"),
            _ => E::from(ConnectError::Several {
                attempts: self.attempts,
                is_transient: self.is_transient,
            }),
        }
    }
}

/// A socket to the same server, for a request to cancel.
///
/// # Errors
/// [`ConnectError`].
pub(crate) async fn reopen(conninfo: &Conninfo, peer: &Peer) -> Result<Socket, ConnectError> {
    let encryption = match peer.is_encrypted {
        true => Encryption::Tls,
        false => Encryption::Plain,
    };
    open(conninfo, &peer.server, encryption).await
}

/// In random order, where that is wanted.
fn shuffled<T>(conninfo: &Conninfo, mut list: Vec<T>) -> Vec<T> {
    if conninfo.load_balance_hosts {
        list.shuffle(&mut rand::rng());
    }
    list
}

/// The host once for each of its addresses.
async fn addresses(conninfo: &Conninfo, host: &HostPort) -> Result<Vec<HostPort>, ConnectError> {
    let Host::Tcp(name) = &host.host else {
        return Ok(vec![host.clone()]);
    };
    if host.hostaddr.is_some() {
        return Ok(vec![host.clone()]);
    }
    let failed = |source| ConnectError::Reach {
        host: address_text(host),
        source,
    };
    let lookup = tokio::net::lookup_host((name.as_str(), host.port));
    let found = timeout(conninfo.connect_timeout, lookup)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    let found: Vec<HostPort> = found
        .take(ADDRESSES_MAX)
        .map(|address| HostPort {
            hostaddr: Some(address.ip()),
            ..host.clone()
        })
        .collect();
    match found.is_empty() {
        true => Err(failed(io::Error::other("the name has no address"))),
        false => Ok(shuffled(conninfo, found)),
    }
}

/// How a connection is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Plain,
    /// TLS, or plain text where the server offers none.
    IfOffered,
    Tls,
}

async fn open(
    conninfo: &Conninfo,
    server: &HostPort,
    encryption: Encryption,
) -> Result<Socket, ConnectError> {
    let host = || address_text(server);
    let reach = |source| ConnectError::Reach {
        host: host(),
        source,
    };
    let Some(address) = server.hostaddr else {
        return Ok(Socket::unix(connect_unix(server).await.map_err(reach)?));
    };
    let tcp = connect_tcp(server, address, &conninfo.tcp)
        .await
        .map_err(reach)?;
    if encryption == Encryption::Plain {
        return Ok(Socket::tcp(tcp));
    }
    match encrypt(tcp, server, &conninfo.tls).await {
        Ok(Negotiated::Encrypted(stream)) => Ok(Socket::tls(stream)),
        Ok(Negotiated::Refused(tcp)) if encryption == Encryption::IfOffered => Ok(Socket::tcp(tcp)),
        Ok(Negotiated::Refused(_)) => Err(ConnectError::NotOffered {
            host: host(),
            mode: conninfo.tls.mode,
        }),
        Err(EncryptionError::Settings(error)) => Err(error.into()),
        Err(EncryptionError::Handshake(source)) => Err(ConnectError::Handshake {
            host: host(),
            source,
        }),
    }
}

struct Attempt<'a> {
    conninfo: &'a Conninfo,
    server: HostPort,
    password: Option<Secret>,
    wanted: TargetSessionAttrs,
}

impl Attempt<'_> {
    async fn within_limit<T, E: Failure, A: Future<Output = Result<T, E>>>(
        &self,
        begin: impl Fn(Opened) -> A,
    ) -> Result<T, E> {
        let limit = self.conninfo.connect_timeout;
        timeout(limit, patient_and_fresh(|| self.either_way(&begin)))
            .await
            .unwrap_or_else(|_| Err(E::timed_out(limit)))
    }

    /// With TLS and without, in the order of `sslmode` (manual, 32.19.3).
    async fn either_way<T, E: Failure, A: Future<Output = Result<T, E>>>(
        &self,
        begin: impl Fn(Opened) -> A,
    ) -> Result<T, E> {
        let (first, second) = match self.conninfo.tls.mode {
            // libpq has no TLS over unix sockets either, whatever the mode.
            _ if self.server.hostaddr.is_none() => (Encryption::Plain, None),
            SslMode::Disable => (Encryption::Plain, None),
            SslMode::Allow => (Encryption::Plain, Some(Encryption::Tls)),
            SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Plain)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Tls, None),
        };
        let opened = open(self.conninfo, &self.server, first).await;
        let is_plain_already = opened.as_ref().is_ok_and(|socket| !socket.is_encrypted())
            && first == Encryption::IfOffered;
        match (self.begun(opened, &begin).await, second) {
            (Err(error), Some(second)) if !is_plain_already && may_differ(&error) => {
                let opened = open(self.conninfo, &self.server, second).await;
                let made = self.begun(opened, &begin).await;
                made.map_err(|later| if tells_less(&later) { error } else { later })
            }
            (made, _) => made,
        }
    }

    async fn begun<T, E: Failure, A: Future<Output = Result<T, E>>>(
        &self,
        opened: Result<Socket, ConnectError>,
        begin: impl Fn(Opened) -> A,
    ) -> Result<T, E> {
        let socket = opened?.keep(self.conninfo.authentication);
        begin(Opened {
            peer: Peer {
                server: self.server.clone(),
                is_encrypted: socket.is_encrypted(),
            },
            socket,
            password: self.password.clone(),
            wanted: self.wanted,
        })
        .await
    }
}

/// Whether the other way, with TLS or without, may succeed where this one did not.
fn may_differ(error: &impl Failure) -> bool {
    error.refusal().is_some() || matches!(error.connect(), Some(ConnectError::Handshake { .. }))
}

/// Whether the error of the second way only says that there is no such way.
fn tells_less(error: &impl Failure) -> bool {
    let no_line =
        |refusal: &ServerError| refusal.code == "28000" && refusal.message.contains("pg_hba.conf");
    error.refusal().is_some_and(no_line)
        || matches!(error.connect(), Some(ConnectError::NotOffered { .. }))
}

/// The first attempt gets all the time there is, for a slow server; beside it a fresh one is made every second.
async fn patient_and_fresh<T, E, A: Future<Output = Result<T, E>>>(
    attempt: impl Fn() -> A,
) -> Result<T, E> {
    let fresh = async {
        let mut seconds = interval_at(Instant::now() + FRESH_ATTEMPT, FRESH_ATTEMPT);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            // Its error tells nothing: a server may refuse a second session only.
            if let Ok(Ok(made)) = timeout(FRESH_ATTEMPT, attempt()).await {
                return made;
            }
        }
    };
    tokio::select! {
        made = attempt() => made,
        made = fresh => Ok(made),
    }
}
