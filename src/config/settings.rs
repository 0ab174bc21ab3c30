//! The resolved configuration: what every other module takes.
//!
//! In: nothing; [`crate::config`] fills these types from flags, environment, file and defaults.
//! Out: plain values in the program's own types. Guarantee: a `Settings` that was loaded has
//! passed every range and syntax check, so its readers check nothing again.

use super::{ConfigError, Flags, Key, load_from};
use std::net::SocketAddr;
use std::time::Duration;

use crate::environment::Environment;
use crate::nats::address::{NatsAddress, NatsAuth};
use crate::pipeline::subject::SubjectTemplate;
use crate::postgres::settings::PostgresSettings;

/// Everything that is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Metric label, and the slot's and publication's name where those are not given.
    pub name: String,
    /// `[postgres]`
    pub postgres: PostgresSettings,
    /// `[nats]`
    pub nats: NatsSettings,
    /// `[relay]`
    pub relay: RelaySettings,
    /// `[http]`
    pub http: HttpSettings,
}

impl Settings {
    /// Defaults for everything but the two servers: what an application needs that runs the relay in itself. Any other
    /// setting can be changed afterwards, or read by [`super::load`].
    ///
    /// # Errors
    /// A URL that cannot be read.
    pub fn of_urls(postgres: &str, nats: &str) -> Result<Settings, ConfigError> {
        let flags = Flags {
            config: None,
            values: vec![
                (Key::PostgresUrl, postgres.to_owned()),
                (Key::NatsUrl, nats.to_owned()),
            ],
        };
        Ok(load_from(&flags, &Environment::of_process(), &[])?.settings)
    }
}

/// `[nats]`: which servers, and where the events go.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// At least one server of one cluster.
    pub servers: Vec<NatsAddress>,
    /// How to authenticate at any of them.
    pub auth: NatsAuth,
    /// The JetStream stream.
    pub stream: String,
    /// Template of the events' subjects.
    pub subject: SubjectTemplate,
    /// Others write to the stream too: other relays, or anything else.
    pub shared: bool,
    /// Limit of one attempt to connect, the handshake included.
    pub connect_timeout: Duration,
}

/// `[relay]`: how the relay behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// How old an acknowledged event must be before Postgres may forget its WAL; zero confirms at the ack.
    pub hold_back: Duration,
    /// What becomes of a row that can never be published.
    pub on_reject: OnReject,
    /// Messages sent and not yet acknowledged, at most.
    pub window_messages_max: usize,
    /// Bytes of messages sent and not yet acknowledged, at most.
    pub window_bytes_max: usize,
    /// Silence of the broker with messages in flight that ends the epoch.
    pub ack_timeout: Duration,
    /// How long a stop waits for acks that are under way.
    pub shutdown_timeout: Duration,
    /// Longest time between two status updates to Postgres.
    pub status_interval: Duration,
    /// Longest pause between two epochs.
    pub backoff_max: Duration,
}

/// What becomes of a row that can never be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReject {
    /// It becomes a small dead-letter message at its position.
    DeadLetter,
    /// The relay halts and waits for a person.
    Halt,
}

/// `[http]`: metrics, health and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen; `None` is off.
    pub listen: Option<SocketAddr>,
    /// Somebody chose the address; the default one gives way where another relay of this machine has it.
    pub chosen: bool,
}
