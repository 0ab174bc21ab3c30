//! A nats-server of one test, and connections to it.

use std::process::Command;
use std::time::Duration;
use walrelay::nats::api::{
    AnswerError, ApiError, ApiRequest, StoredMessage, StreamApi, StreamInfo,
};
use walrelay::pipeline::end_search::Lookup;

use walrelay::local::{LocalNats, NatsOptions, ServerBinaries};
use walrelay::nats::address::{NatsAddress, NatsAuth};
use walrelay::nats::connection::{ConnectError, LaneConnection, RequestError};
use walrelay::nats::encode;
use walrelay::nats::protocol::Msg;
use walrelay::nats::settings::ConnectionSettings;

/// Longest wait for anything that the server does at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

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
        let settings = ConnectionSettings::new(vec![self.address()], auth.clone());
        LaneConnection::open(&settings, "nats_lane", &[]).await
    }

    /// A connection without credentials.
    pub(crate) async fn connect(&self) -> LaneConnection {
        self.open(&NatsAuth::None)
            .await
            .expect("the server lets us in")
    }
}

/// Why a call of the API failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer is an error.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl CallError {
    /// The error that the API answered, if that is what it is.
    pub(crate) fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Answer(AnswerError::Api(error)) => Some(error),
            _ => None,
        }
    }
}

/// Asks for streams and messages over the lane's own connection.
pub(crate) trait Calls {
    /// What the stream is and holds.
    async fn info(
        &self,
        lane: &mut LaneConnection,
        after: Duration,
    ) -> Result<StreamInfo, CallError>;

    /// A message; `None` where there is none.
    async fn message(
        &self,
        lane: &mut LaneConnection,
        lookup: Lookup<'_>,
        after: Duration,
    ) -> Result<Option<StoredMessage>, CallError>;
}

impl Calls for StreamApi {
    async fn info(
        &self,
        lane: &mut LaneConnection,
        after: Duration,
    ) -> Result<StreamInfo, CallError> {
        let answer = call(lane, self.info_request(), after).await?;
        Ok(StreamInfo::parse(&answer.payload)?)
    }

    async fn message(
        &self,
        lane: &mut LaneConnection,
        lookup: Lookup<'_>,
        after: Duration,
    ) -> Result<Option<StoredMessage>, CallError> {
        let answer = call(lane, self.lookup_request(lookup), after).await?;
        Ok(StoredMessage::parse(&answer.payload)?)
    }
}

async fn call(
    lane: &mut LaneConnection,
    request: ApiRequest,
    after: Duration,
) -> Result<Msg, RequestError> {
    lane.request(&request.subject, None, &request.payload, after)
        .await
}

/// Appends a request whose answer comes to `<inbox>.<token>`.
pub(crate) fn queue(lane: &mut LaneConnection, token: &str, subject: &str, payload: &[u8]) {
    let reply = format!("{}.{token}", lane.inbox());
    encode::request(lane.outgoing(), subject, &reply, None, payload);
}
