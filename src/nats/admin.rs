//! The administrative connection: setup, checks, and the commands that read streams; on async-nats.
//!
//! In: [`ConnectionSettings`]. Out: an [`Admin`] that asks and waits. Guarantee: what the user may not do is said as a
//! [`Denial`] at once, and never as a time-out: the server tells it on the connection, not in an answer.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message,
    RequestErrorKind, jetstream,
};
use bytes::Bytes;
use chrono::Utc;
use tokio::sync::watch;

use super::address::{NatsAddress, NatsAuth};
use super::denial::Denial;
use super::login::{Login, LoginError, Signed};
use super::peer::Peer;
use super::protocol::ServerVersion;
use super::settings::{ConnectionSettings, NatsTls, TERMS};
use crate::tls::{self, TlsError};

/// A half-open link is noticed after a few of these; async-nats' own 60 s are minutes.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// What to do where nobody answers on JetStream's API.
pub(super) const ENABLE_JETSTREAM: &str =
    "enable JetStream on the server and for the account, and allow the user to publish there";

/// Why there is no administrative connection.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The credentials cannot be read.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The files of TLS cannot be used.
    #[error(transparent)]
    TlsFiles(#[from] TlsError),
    /// Certificates, ours or the server's.
    #[error("no TLS with NATS at {servers}")]
    Tls {
        /// Addresses tried.
        servers: String,
        /// Why, in words.
        source: io::Error,
    },
    /// The settings ask for TLS.
    #[error(
        "NATS at {servers} has no TLS, and {asked_by} asks for it: give the server a certificate, or leave that out"
    )]
    NoTls {
        /// Addresses tried.
        servers: String,
        /// The settings that want TLS, by their names.
        asked_by: String,
    },
    /// The server refused the credentials.
    #[error("NATS at {servers} refused the credentials: {what_to_check}")]
    Auth {
        /// Addresses tried.
        servers: String,
        /// What may be wrong with them.
        what_to_check: String,
    },
    /// Nothing was said.
    #[error(
        "NATS at {servers} says nothing: if it begins with TLS (handshake_first), set nats.tls_first = true; else check host \
         and port"
    )]
    Silent {
        /// Addresses tried.
        servers: String,
    },
    /// Something else answers there.
    #[error("no nats-server answers at {server}: {what}")]
    NotNats {
        /// Its address.
        server: String,
        /// What does, and what to do.
        what: &'static str,
    },
    /// No server could be reached.
    #[error("cannot connect to NATS at {servers}")]
    Connect {
        /// Addresses tried.
        servers: String,
        /// Why.
        source: async_nats::ConnectError,
    },
}

/// What the server says of itself is no version.
#[derive(Debug, thiserror::Error)]
#[error("the server's version: {0}")]
pub struct VersionError(String);

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AdminRequestError {
    /// The user may not ask, or may not hear the answer.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// JetStream is off, or the user may not use it. The same text for each request, so that it is told once.
    #[error("nobody answers on {api}: {}", ENABLE_JETSTREAM)]
    NoJetStream {
        /// The subjects of its API.
        api: String,
    },
    /// Nobody listens on a subject that is not the API's.
    #[error("nobody takes what is published there")]
    NoResponders,
    /// Everything else.
    #[error(transparent)]
    Request(#[from] async_nats::RequestError),
}

/// An administrative connection.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    denials: watch::Receiver<Option<Denial>>,
    api_prefix: String,
}

impl Admin {
    /// Connects, with all kinds of credentials that the lane has too.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn connect(settings: &ConnectionSettings) -> Result<Self, AdminError> {
        let mut servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
        // What cannot be read is told by its file, and not as a refusal.
        Signed::new(&settings.login.read()?, None)?;
        let (denied, denials) = watch::channel(None);
        let login = settings.login.clone();
        let options =
            ConnectOptions::with_auth_callback(move |nonce| authenticate(login.clone(), nonce));
        let options = with_tls(options, &settings.tls)?
            .name("walrelay")
            .custom_inbox_prefix(&settings.inbox_prefix)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(settings.connect_timeout)
            .retain_servers_order()
            .event_callback(move |event| {
                if let Event::ServerError(error) = event
                    && let Some(denial) = Denial::parse(&error.to_string())
                {
                    denied.send_replace(Some(denial));
                }
                std::future::ready(())
            });
        let mut connected = options.clone().connect(servers.as_slice()).await;
        // async-nats stops at a server that refuses the credentials, and the others may take them.
        for _ in 1..servers.len() {
            if !connected.as_ref().is_err_and(refuses) {
                break;
            }
            servers.rotate_left(1);
            connected = options.clone().connect(servers.as_slice()).await;
        }
        let source = match connected {
            Ok(client) => {
                return Ok(Self {
                    client,
                    denials,
                    api_prefix: settings.api_prefix.clone(),
                });
            }
            Err(source) => source,
        };
        // It has greeted in plain text, and then did not answer the handshake as TLS does.
        if !settings.tls.first && is_plain(&source) {
            return Err(AdminError::NoTls {
                servers: servers.join(", "),
                asked_by: settings
                    .tls
                    .asked_by(settings.servers.iter().any(|server| server.tls)),
            });
        }
        let host = settings.servers.first().map_or("", |server| &server.host);
        let of_tls = of_tls(&source, host);
        let servers = servers.join(", ");
        Err(match of_tls {
            Some(source) => AdminError::Tls { servers, source },
            None if refuses(&source) => AdminError::Auth {
                servers,
                what_to_check: settings.login.what_to_check(Utc::now()),
            },
            None => match silent(&settings.servers, &source).await {
                Some((server, what)) => AdminError::NotNats { server, what },
                None if source.to_string().contains("expected INFO") => {
                    AdminError::Silent { servers }
                }
                None => AdminError::Connect { servers, source },
            },
        })
    }

    /// The connection itself. What it is denied, only [`Self::allowed`] tells.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// JetStream over this connection. What it is denied, only [`Self::allowed`] tells.
    #[must_use]
    pub fn jetstream(&self) -> jetstream::Context {
        jetstream::with_prefix(self.client.clone(), &self.api_prefix)
    }

    /// Where the JetStream API listens.
    #[must_use]
    pub(crate) fn api_prefix(&self) -> &str {
        &self.api_prefix
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`AdminRequestError`].
    pub async fn request(
        &self,
        subject: String,
        payload: Bytes,
    ) -> Result<Message, AdminRequestError> {
        let is_of_api = self.is_of_api(&subject);
        let work = async {
            let answered = self.client.request(subject, payload).await;
            answered.map_err(|error| self.unanswered(error, is_of_api))
        };
        self.unless_denied(work).await
    }

    /// As [`Self::request`], with headers.
    ///
    /// # Errors
    /// [`AdminRequestError`].
    pub async fn request_with_headers(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Message, AdminRequestError> {
        let is_of_api = self.is_of_api(&subject);
        let work = async {
            let answered = self
                .client
                .request_with_headers(subject, headers, payload)
                .await;
            answered.map_err(|error| self.unanswered(error, is_of_api))
        };
        self.unless_denied(work).await
    }

    fn is_of_api(&self, subject: &str) -> bool {
        let rest = subject.strip_prefix(&self.api_prefix);
        rest.is_some_and(|rest| rest.starts_with('.'))
    }

    fn unanswered(&self, error: async_nats::RequestError, is_of_api: bool) -> AdminRequestError {
        match (error.kind(), is_of_api) {
            (RequestErrorKind::NoResponders, true) => AdminRequestError::NoJetStream {
                api: format!("{}.>", self.api_prefix),
            },
            (RequestErrorKind::NoResponders, false) => AdminRequestError::NoResponders,
            _ => error.into(),
        }
    }

    /// Does what goes over this connection, or says what of it is denied.
    ///
    /// # Errors
    /// A [`Denial`], or what the work itself returns.
    pub async fn allowed<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        self.unless_denied(work).await
    }

    async fn unless_denied<T, E: From<Denial>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut denials = self.denials.clone();
        denials.mark_unchanged();
        tokio::select! {
            done = work => done,
            denial = next_denial(&mut denials) => Err(denial.into()),
        }
    }

    /// The version of the server that it is connected to.
    ///
    /// # Errors
    /// [`VersionError`].
    pub fn server_version(&self) -> Result<ServerVersion, VersionError> {
        ServerVersion::try_from(self.client.server_info().version).map_err(VersionError)
    }
}

async fn next_denial(denials: &mut watch::Receiver<Option<Denial>>) -> Denial {
    loop {
        // Without a sender the connection is gone, which the work itself notices.
        if denials.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(denial) = denials.borrow_and_update().clone() {
            return denial;
        }
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

fn with_tls(options: ConnectOptions, tls: &NatsTls) -> Result<ConnectOptions, TlsError> {
    let config = match tls.client_config() {
        Ok(config) => config,
        // A server without TLS needs none.
        Err(TlsError::NoSystemRoots) if !tls.required => return Ok(options),
        Err(error) => return Err(error),
    };
    let options = options.tls_client_config(config).require_tls(tls.required);
    Ok(match tls.first {
        true => options.tls_first(),
        false => options,
    })
}

/// Asked at each connect, so that what was rotated is read again.
async fn authenticate(login: Login, nonce: Vec<u8>) -> Result<Auth, AuthError> {
    let auth = login.read().map_err(AuthError::new)?;
    let nonce = (!nonce.is_empty()).then_some(nonce.as_slice());
    let signed = Signed::new(&auth, nonce).map_err(AuthError::new)?;
    let mut told = Auth::new();
    told.nkey = signed.public_key;
    told.signature = signed.signature;
    match auth {
        NatsAuth::None | NatsAuth::NKey { .. } => {}
        NatsAuth::Token(token) => told.token = Some(token.expose().to_owned()),
        NatsAuth::UserPassword { user, password } => {
            told.username = Some(user);
            told.password = Some(password.expose().to_owned());
        }
        NatsAuth::Jwt { jwt, .. } => told.jwt = Some(jwt.expose().to_owned()),
    }
    Ok(told)
}

fn refuses(error: &async_nats::ConnectError) -> bool {
    error.kind() == ConnectErrorKind::AuthorizationViolation
}

/// A server of which no greeting came, and what it is instead of NATS.
async fn silent(
    servers: &[NatsAddress],
    error: &async_nats::ConnectError,
) -> Option<(String, &'static str)> {
    let is_silent =
        error.kind() == ConnectErrorKind::TimedOut || error.to_string().contains("expected INFO");
    // One that is not there has been told, and others cannot be told apart.
    let [server] = servers else { return None };
    if !is_silent {
        return None;
    }
    let what = match Peer::ask(server).await {
        Peer::Postgres => {
            "Postgres does, or a pooler; nats.url takes the port of nats-server for clients, 4222 unless it was given another one"
        }
        Peer::Http => {
            "a web server does, as nats-server's own monitoring is one; nats.url takes the port of nats-server for clients, 4222 \
             unless it was given another one"
        }
        Peer::Mute => {
            "connections are taken there and nothing is said: a process that stands still (SIGSTOP, a disk that hangs), another \
             service, or a nats-server that begins with TLS (handshake_first), which needs nats.tls_first = true"
        }
        Peer::Unknown => return None,
    };
    Some((server.to_string(), what))
}

/// Whether what came in the handshake's place is no TLS.
fn is_plain(error: &async_nats::ConnectError) -> bool {
    matches!(
        tls_error(error),
        Some(tokio_rustls::rustls::Error::InvalidMessage(_))
    )
}

/// The error of TLS in it, in words.
fn of_tls(error: &async_nats::ConnectError, host: &str) -> Option<io::Error> {
    let error = tls_error(error)?;
    let error = io::Error::new(io::ErrorKind::InvalidData, error.clone());
    Some(tls::explained(error, host, TERMS))
}

fn tls_error(error: &async_nats::ConnectError) -> Option<&tokio_rustls::rustls::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let inner = match source.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
            None => source.downcast_ref(),
        };
        if inner.is_some() {
            return inner;
        }
        cause = source.source();
    }
    None
}
