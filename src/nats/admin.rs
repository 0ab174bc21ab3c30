//! The administrative connection: setup, checks, and the commands that read streams; on async-nats.
//!
//! In: [`ConnectionSettings`]. Out: an [`Admin`] that asks and waits. Guarantee: what the user may not do is said as a
//! [`Denial`] at once, and never as a time-out: the server tells it on the connection, not in an answer.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Event, HeaderMap, Message, RequestErrorKind, jetstream};
use bytes::Bytes;
use nkeys::KeyPair;
use tokio::sync::watch;

use super::address::NatsAuth;
use super::denial::Denial;
use super::protocol::ServerVersion;
use super::settings::ConnectionSettings;

/// A half-open link is noticed after a few of these; async-nats' own 60 s are minutes.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Why there is no administrative connection.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A seed that is no user seed.
    #[error("the nkey seed cannot be read: a user's seed begins with SU and has 58 characters")]
    Seed,
    /// The server refused the credentials.
    #[error(
        "NATS at {servers} refused the credentials: check user, password, token or credentials file"
    )]
    Auth {
        /// Addresses tried.
        servers: String,
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
    /// Everything else.
    #[error(transparent)]
    Request(#[from] async_nats::RequestError),
}

impl AdminRequestError {
    /// Whether nobody listens on the subject.
    #[must_use]
    pub fn is_no_responders(&self) -> bool {
        matches!(self, Self::Request(error) if error.kind() == RequestErrorKind::NoResponders)
    }
}

/// An administrative connection.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    denials: watch::Receiver<Option<Denial>>,
}

impl Admin {
    /// Connects, with all kinds of credentials that the lane has too.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn connect(settings: &ConnectionSettings) -> Result<Self, AdminError> {
        let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
        let (denied, denials) = watch::channel(None);
        let denied = Arc::new(denied);
        let options = with_auth(async_nats::ConnectOptions::new(), &settings.auth)?
            .name("walrelay")
            .ping_interval(PING_INTERVAL)
            .connection_timeout(settings.connect_timeout)
            .event_callback(move |event| {
                if let Event::ServerError(error) = event
                    && let Some(denial) = Denial::parse(&error.to_string())
                {
                    denied.send_replace(Some(denial));
                }
                std::future::ready(())
            });
        match options.connect(servers.as_slice()).await {
            Ok(client) => Ok(Self { client, denials }),
            Err(source) => {
                let servers = servers.join(", ");
                Err(match source.kind() {
                    async_nats::ConnectErrorKind::AuthorizationViolation => {
                        AdminError::Auth { servers }
                    }
                    _ => AdminError::Connect { servers, source },
                })
            }
        }
    }

    /// The connection itself. What it is denied, only [`Self::allowed`] tells.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// JetStream over this connection. What it is denied, only [`Self::allowed`] tells.
    #[must_use]
    pub fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
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
        let work = async { Ok(self.client.request(subject, payload).await?) };
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
        let work = async {
            Ok(self
                .client
                .request_with_headers(subject, headers, payload)
                .await?)
        };
        self.unless_denied(work).await
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

fn with_auth(
    options: async_nats::ConnectOptions,
    auth: &NatsAuth,
) -> Result<async_nats::ConnectOptions, AdminError> {
    // The library's error could hold part of the seed and is dropped.
    let key_pair = |seed: &str| KeyPair::from_seed(seed.trim()).map_err(|_| AdminError::Seed);
    Ok(match auth {
        NatsAuth::None => options,
        NatsAuth::Token(token) => options.token(token.expose().to_owned()),
        NatsAuth::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose().to_owned())
        }
        NatsAuth::NKey { seed } => {
            key_pair(seed.expose())?;
            options.nkey(seed.expose().trim().to_owned())
        }
        NatsAuth::Jwt { jwt, seed } => {
            let pair = Arc::new(key_pair(seed.expose())?);
            options.jwt(jwt.expose().to_owned(), move |nonce| {
                let pair = pair.clone();
                async move { pair.sign(&nonce).map_err(async_nats::AuthError::new) }
            })
        }
    })
}
