//! A nats-server of one test, and connections to it.

use std::process::Command;
use std::time::Duration;
use walrelay::nats::api::{CallError, StoredMessage, StreamApi};
use walrelay::pipeline::tail::Lookup;

use walrelay::local::{LocalNats, NatsOptions, ServerBinaries};
use walrelay::nats::address::{NatsAddress, NatsAuth};
use walrelay::nats::connection::{ConnectError, LaneConnection};

/// Longest wait for anything that the server does at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A running server, gone with the test.
pub(crate) struct Server(LocalNats);

impl Server {
    /// A server with JetStream and the given further configuration.
    pub(crate) async fn start(settings: &str) -> Self {
        let binaries = ServerBinaries::find().expect("nats-server is there");
        let options = NatsOptions {
            config_extra: settings.to_owned(),
            ..NatsOptions::default()
        };
        Self(
            LocalNats::start(&binaries, options)
                .await
                .expect("it starts"),
        )
    }

    /// Kills it and starts it again on the same port and store.
    pub(crate) async fn restart(&mut self) {
        self.0.kill();
        self.0.start_again().await.expect("it starts again");
    }

    pub(crate) fn pause(&mut self) {
        self.0.pause();
    }

    pub(crate) fn resume(&mut self) {
        self.0.resume();
    }

    /// Sends it into lame duck mode.
    pub(crate) fn lame_duck(&self) {
        let pid = self.0.pid().expect("it runs").to_string();
        let status = Command::new("kill").args(["-s", "USR2", &pid]).status();
        assert!(status.expect("kill runs").success());
    }

    pub(crate) fn address(&self) -> NatsAddress {
        self.0.url().parse().expect("an address")
    }

    pub(crate) async fn open(&self, auth: &NatsAuth) -> Result<LaneConnection, ConnectError> {
        LaneConnection::open(&[self.address()], auth, "nats_lane", SOON).await
    }

    /// A connection without credentials.
    pub(crate) async fn connect(&self) -> LaneConnection {
        self.open(&NatsAuth::None)
            .await
            .expect("the server lets us in")
    }
}

/// Reads single messages as the start of an epoch does.
pub(crate) trait Messages {
    /// A message; `None` where there is none.
    async fn message(
        &self,
        lane: &mut LaneConnection,
        lookup: Lookup<'_>,
        after: Duration,
    ) -> Result<Option<StoredMessage>, CallError>;
}

impl Messages for StreamApi {
    async fn message(
        &self,
        lane: &mut LaneConnection,
        lookup: Lookup<'_>,
        after: Duration,
    ) -> Result<Option<StoredMessage>, CallError> {
        let request = self.lookup_request(lookup);
        let answer = lane
            .request(&request.subject, None, &request.payload, after)
            .await?;
        Ok(StoredMessage::parse(&answer.payload)?)
    }
}
