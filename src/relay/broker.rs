//! The broker's side of an epoch: a connection, and the lane's requests over it.
//!
//! In: settings, [`Request`]s. Out: [`Answer`]s. Guarantees: the connection is new, so nothing of an earlier epoch is on its
//! way any more.

use crate::nats::api::{AnswerError, ApiRequest, StreamInfo, leader_elected_subject};
use crate::nats::connection::{Advertised, LaneConnection};
use crate::nats::denial::Denial;
use crate::nats::stream::{
    LANE_RECORD_STREAM, StreamSettings, StreamSeverity, lane_records_config,
};
use crate::pipeline::fault::Fault;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::opening::{self, Opening, Server, Wanted};
use crate::pipeline::record::{LaneRecord, RecordOrNote};
use crate::pipeline::request::{Request, StoredRecord, Unfit};
use crate::relay::lane_store::{Answer, LaneStore, Outgoing, StoreError};
use crate::relay::open_error::OpenError;
use crate::relay::settings::NatsSettings;
use crate::relay::stream_fit;
use std::time::Duration;

/// A connection to the broker, and what it said about the stream.
#[derive(Debug)]
pub struct Broker {
    /// The connection of this epoch.
    pub connection: LaneConnection,
    /// Turns requests into bytes.
    pub store: LaneStore,
    timeout: Duration,
    /// The stream as it was last seen.
    info: Option<StreamInfo>,
    /// Why it does not fit.
    unfit: Option<Unfit>,
    /// The lane has been elsewhere, as far as the slot tells: where there is no stream, it may be on its way.
    pub(super) may_come_by_move: bool,
    /// What of the record stream's configuration is slow.
    record_warnings: Vec<String>,
}

impl Broker {
    /// Connects.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or has no JetStream.
    pub async fn connect(
        settings: &NatsSettings,
        name: &str,
        slot: &str,
        timeout: Duration,
        advertised: &[Advertised],
    ) -> Result<Self, OpenError> {
        let connection = LaneConnection::open(&settings.connection, name, advertised).await?;
        let store = LaneStore::new(&settings.connection.api_prefix, &settings.stream, slot)
            .map_err(|error| OpenError::Permanent(error.into()))?
            .imported(settings.connection.imported)
            .judging(settings.stream_settings(slot), connection.info().version);
        Ok(Broker {
            connection,
            store,
            timeout,
            info: None,
            unfit: None,
            may_come_by_move: false,
            record_warnings: Vec::new(),
        })
    }

    /// Judges the stream by what another use of it than a lane's wants.
    #[must_use]
    pub fn judging(self, wanted: StreamSettings) -> Self {
        let version = self.connection.info().version;
        Broker {
            store: self.store.judging(wanted, version),
            ..self
        }
    }

    /// The server that answers.
    #[must_use]
    pub fn server(&self) -> Server {
        let info = self.connection.info();
        Server {
            version: (info.version.major, info.version.minor),
            id: (info.cluster.is_none()).then(|| info.server_id.clone()),
        }
    }

    /// Largest message that server and stream take.
    #[must_use]
    pub fn message_limit(&self) -> SizeLimit {
        let stream = self
            .info
            .as_ref()
            .and_then(|info| info.config.message_bytes_max());
        SizeLimit::smaller(self.connection.info().max_payload, stream)
    }

    /// What of the stream's configuration is a risk, or slow.
    #[must_use]
    pub(crate) fn warnings(&self) -> Vec<String> {
        let info = self.info.as_ref();
        let mut warnings = info.map_or_else(Vec::new, |info| self.store.warnings(info));
        warnings.extend_from_slice(&self.record_warnings);
        warnings
    }

    /// Looks whether the stream of the lanes' records keeps what it takes. One that is missing is made when it is needed.
    ///
    /// # Errors
    /// [`OpenError::Unfit`], or no answer.
    pub(super) async fn check_records(&mut self) -> Result<(), OpenError> {
        let ApiRequest { subject, payload } = self.store.record_stream();
        let answer = self
            .connection
            .request(&subject, None, &payload, self.timeout);
        let info = match StreamInfo::parse(&answer.await?.payload) {
            Err(AnswerError::Api(api)) if api.is_stream_not_found() => return Ok(()),
            info => info.map_err(StoreError::from)?,
        };
        self.record_warnings = stream_fit::record_texts(&info.config, StreamSeverity::Warns);
        let refused = stream_fit::record_texts(&info.config, StreamSeverity::Blocks);
        match refused.is_empty() {
            true => Ok(()),
            false => Err(OpenError::Unfit(Unfit {
                reason: refused.join("; "),
                drops: false,
            })),
        }
    }

    /// What to say of a -ERR that is about a permission: somebody adds it while the relay waits.
    #[must_use]
    pub fn denied(&self, text: &str) -> Option<Fault> {
        let denial = Denial::parse(text)?;
        let events = self.store.events_filter();
        Some(Fault::Broker(denial.among(events).to_string()))
    }

    /// Listens for the stream's next leader, which is told earlier than an acknowledgement is missed.
    pub(super) fn listen_for_leaders(&mut self) {
        self.connection
            .queue_leader_subscription(self.store.stream());
    }

    /// Whether a -ERR is about that: without this permission the time for an acknowledgement has to run out.
    pub(super) fn may_not_listen(&self, text: &str) -> bool {
        Denial::parse(text)
            .is_some_and(|denial| denial.subject == leader_elected_subject(self.store.stream()))
    }

    /// Answers all that a start asks for, until it wants something else.
    ///
    /// # Errors
    /// As [`Self::ask`], and why the start comes to nothing.
    pub async fn answer(&mut self, opening: &mut Opening<'_>) -> Result<(), OpenError> {
        while let Wanted::Ask(request) = opening.wanted() {
            let answer = self.ask(&request).await?;
            opening.take(answer.reply())?;
        }
        Ok(())
    }

    /// Asks, and waits for the answer. A record stream that is missing is made.
    ///
    /// # Errors
    /// No answer, or one that is none; a stream that is not there, or is refused.
    pub async fn ask(&mut self, request: &Request<'_>) -> Result<Answer, OpenError> {
        match self.ask_once(request).await {
            // What has become of the lane is told by its record, which is elsewhere.
            Err(Unanswered::NoStream) if *request == Request::Stream => {
                if let Ok(Answer::Record(stored)) = self.ask_once(&Request::Record).await {
                    opening::lives_here(&stored)?;
                }
                Err(self.no_stream(request))
            }
            // There is no record that could tell of it.
            Err(Unanswered::NoStream) if self.unfit.is_some() => {
                Err(OpenError::Unfit(self.unfit.clone().expect("some")))
            }
            Err(Unanswered::NoStream) if *request == Request::Record => {
                self.create_records().await?;
                Ok(Answer::Record(Box::default()))
            }
            Err(Unanswered::NoStream) => Err(self.no_stream(request)),
            Err(Unanswered::Other(error)) => Err(error),
            Ok(answer) => {
                if let Answer::Stream(info, view) = &answer {
                    self.info = Some((**info).clone());
                    self.unfit.clone_from(&view.unfit);
                }
                Ok(answer)
            }
        }
    }

    fn no_stream(&self, request: &Request<'_>) -> OpenError {
        let stream = match request {
            Request::Record | Request::StoreRecord { .. } => LANE_RECORD_STREAM,
            _ => self.store.stream(),
        };
        if *request == Request::Stream && self.may_come_by_move {
            return OpenError::Permanent(anyhow::anyhow!(
                "NATS has no stream {stream}, and slot {} has published before: where `walrelay move` is to bring the lane here, let that \
                 make the stream, and start this once it says that messages are copied; where the broker has lost the stream, run \
                 `walrelay setup`",
                self.store.slot()
            ));
        }
        OpenError::Permanent(anyhow::anyhow!(
            "NATS has no stream {stream}: run `walrelay setup`"
        ))
    }

    async fn ask_once(&mut self, request: &Request<'_>) -> Result<Answer, Unanswered> {
        self.exchange(self.store.outgoing(request)).await
    }

    async fn exchange(&mut self, outgoing: Outgoing) -> Result<Answer, Unanswered> {
        let answer = self
            .connection
            .request(
                &outgoing.subject,
                outgoing.headers.as_deref(),
                &outgoing.payload,
                self.timeout,
            )
            .await
            .map_err(|error| Unanswered::Other(error.into()))?;
        self.store
            .read(outgoing.expects, &answer.payload)
            .map_err(|error| match error {
                StoreError::Answer(AnswerError::Api(api)) if api.is_stream_not_found() => {
                    Unanswered::NoStream
                }
                error => Unanswered::Other(error.into()),
            })
    }

    /// The lane record, where there is one and the broker tells it.
    pub(super) async fn record(&mut self) -> Option<LaneRecord> {
        match self.ask_once(&Request::Record).await {
            Ok(Answer::Record(stored)) => stored.record,
            _ => None,
        }
    }

    /// Keeps what `kept` makes of the lane record, where it makes anything. Behind whatever record there is: the broker may
    /// have lost the latest with the lane's messages.
    ///
    /// # Errors
    /// No answer, or another record was stored meanwhile.
    pub async fn keep_halt(
        &mut self,
        kept: impl Fn(&StoredRecord) -> Option<RecordOrNote>,
    ) -> Result<(), OpenError> {
        let Answer::Record(stored) = self.ask(&Request::Record).await? else {
            return Ok(());
        };
        let Some(kept) = kept(&stored) else {
            return Ok(());
        };
        let outgoing = self.store.store_halt(&kept, stored.sequence);
        match self.exchange(outgoing).await {
            Ok(_) => Ok(()),
            Err(Unanswered::NoStream) => Err(OpenError::Fault(Fault::Broker(format!(
                "stream {LANE_RECORD_STREAM} has gone"
            )))),
            Err(Unanswered::Other(error)) => Err(error),
        }
    }

    async fn create_records(&mut self) -> Result<(), OpenError> {
        let num_replicas = self
            .info
            .as_ref()
            .map_or(1, |info| info.config.num_replicas);
        let config = serde_json::to_vec(&lane_records_config(num_replicas))
            .expect("a configuration always serializes");
        let subject = format!(
            "{}.STREAM.CREATE.{LANE_RECORD_STREAM}",
            self.store.api_prefix()
        );
        // A refusal may come as an error, or as silence where the server may not even say so.
        let answer = self
            .connection
            .request(&subject, None, &config, self.timeout)
            .await
            .map_err(|error| error.to_string());
        let created = answer.and_then(|answer| {
            StreamInfo::parse(&answer.payload).map_err(|error| error.to_string())
        });
        if let Err(why) = created {
            return Err(OpenError::Permanent(anyhow::anyhow!(
                "NATS has no stream {LANE_RECORD_STREAM} for the lanes' records, and this relay cannot make it ({why}): \
                 run `walrelay setup`"
            )));
        }
        tracing::info!(
            "stream {LANE_RECORD_STREAM} for the lanes' records was missing and has been created"
        );
        Ok(())
    }
}

enum Unanswered {
    NoStream,
    Other(OpenError),
}
