//! The broker's side of an epoch's start: connection, stream, lane record, the lane's last message.
//!
//! In: settings. Out: a [`Broker`] whose connection is new, so nothing of an earlier epoch is on its way any more.
//! Guarantee: a stream that would lose or change messages by its configuration is refused.

use crate::nats::api::{
    AnswerError, ApiError, CallError, DEFAULT_PREFIX, StoredMessage, StreamApi, StreamInfo,
};
use crate::nats::connection::{ConnectError, LaneConnection, RequestError};
use crate::nats::stream::{
    LANE_RECORD_STREAM, lane_record_subject, lane_records_config, mode as stream_mode,
};
use crate::pipeline::continuity::Memory;
use crate::pipeline::dead_letter;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::publish::Mode;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::shared_tail::{
    SharedSubjects, SharedTailSearch, StreamEnd, fence_headers, fence_subject,
};
use crate::pipeline::tail::{Lookup, Tail, TailMessage, TailSearch};
use crate::relay::open::OpenError;
use crate::relay::settings::NatsSettings;
use std::time::Duration;

/// `err_code` of a wrong last sequence, on one server and in a cluster.
const OVERTAKEN_CODES: [u16; 2] = [10071, 10164];

/// The lane record and where it is stored.
#[derive(Debug)]
pub struct StoredRecord {
    /// The record; none before the lane's first epoch.
    pub record: Option<LaneRecord>,
    /// Sequence of the message that holds it in the record stream; 0 for none.
    pub sequence: u64,
}

impl StoredRecord {
    fn read(found: Option<StoredMessage>) -> Result<Self, OpenError> {
        let record = found
            .as_ref()
            .map(|message| LaneRecord::from_json(&message.data))
            .transpose()
            .map_err(|error| OpenError::Permanent(error.into()))?;
        Ok(StoredRecord {
            record,
            sequence: found.map_or(0, |message| message.seq),
        })
    }
}

/// A connection to the broker, and what it said about the stream.
#[derive(Debug)]
pub struct Broker {
    /// The connection of this epoch.
    pub connection: LaneConnection,
    /// The API of the events' stream.
    pub api: StreamApi,
    records: StreamApi,
    slot: String,
    shared: bool,
    /// Of the lane's own messages in a shared stream.
    subjects: SharedSubjects,
    timeout: Duration,
    /// Sequence of the lane's fence at the last look at the tail; 0 for none.
    fence_sequence: u64,
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
    ) -> Result<Self, OpenError> {
        let connection = LaneConnection::open(
            &settings.connection.servers,
            &settings.connection.auth,
            name,
            settings.connection.connect_timeout,
        )
        .await?;
        Ok(Broker {
            connection,
            api: StreamApi::new(DEFAULT_PREFIX, &settings.stream)
                .map_err(|error| OpenError::Permanent(error.into()))?,
            records: StreamApi::new(DEFAULT_PREFIX, LANE_RECORD_STREAM)
                .map_err(|error| OpenError::Permanent(error.into()))?,
            slot: slot.to_owned(),
            shared: settings.shared,
            subjects: SharedSubjects {
                fence: fence_subject(&settings.stream, slot),
                filters: [settings.subject.filter(), dead_letter::subject(slot)],
            },
            timeout,
            fence_sequence: 0,
        })
    }

    /// The stream's configuration and state.
    ///
    /// # Errors
    /// No such stream, or no answer.
    pub async fn stream(&mut self) -> Result<StreamInfo, OpenError> {
        self.api
            .info(&mut self.connection, self.timeout)
            .await
            .map_err(|error| stream_error(error, self.api.stream()))
    }

    /// The lane record. A record stream that is missing is made, with as many replicas as given.
    ///
    /// # Errors
    /// No record stream and no leave to make it, no answer, or a record that cannot be read.
    pub async fn record(&mut self, num_replicas: usize) -> Result<StoredRecord, OpenError> {
        let subject = lane_record_subject(self.api.stream(), &self.slot);
        let found = self
            .records
            .message(&mut self.connection, Lookup::Last(&subject), self.timeout)
            .await;
        match found {
            Err(error) if error.api().is_some_and(ApiError::is_stream_not_found) => {
                self.create_records(num_replicas).await?;
                StoredRecord::read(None)
            }
            Err(error) => Err(stream_error(error, LANE_RECORD_STREAM)),
            Ok(found) => StoredRecord::read(found),
        }
    }

    /// Has every later start halt as well, until an adoption: at `sequence` of the stream created at `created` stands somebody
    /// else's message. Behind whatever record there is: the broker may have lost the latest with the lane's messages.
    ///
    /// # Errors
    /// No record, or no answer.
    pub async fn keep_halt(&mut self, sequence: u64, created: &str) -> Result<(), OpenError> {
        let subject = lane_record_subject(self.api.stream(), &self.slot);
        let found = self
            .records
            .message(&mut self.connection, Lookup::Last(&subject), self.timeout)
            .await
            .map_err(|error| stream_error(error, LANE_RECORD_STREAM))?;
        let stored = StoredRecord::read(found)?;
        let record = stored
            .record
            .and_then(|record| record.halted_for(sequence, created));
        if let Some(record) = record {
            self.write_record(&record, stored.sequence).await?;
        }
        Ok(())
    }

    async fn create_records(&mut self, num_replicas: usize) -> Result<(), OpenError> {
        let config = serde_json::to_vec(&lane_records_config(num_replicas))
            .expect("a configuration always serializes");
        let subject = format!("{DEFAULT_PREFIX}.STREAM.CREATE.{LANE_RECORD_STREAM}");
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
            "stream {LANE_RECORD_STREAM} for the lanes' records was missing and is made"
        );
        Ok(())
    }

    /// Stores the lane record, provided that nobody else has since `after`; returns its sequence.
    ///
    /// # Errors
    /// Somebody else has, or no answer.
    pub async fn write_record(
        &mut self,
        record: &LaneRecord,
        after: u64,
    ) -> Result<u64, OpenError> {
        let subject = lane_record_subject(self.api.stream(), &self.slot);
        let headers = record_headers(after);
        let answer = self
            .connection
            .request(&subject, Some(&headers), &record.to_json(), self.timeout)
            .await?;
        stored_record(&answer.payload).map_err(OpenError::Fault)
    }

    /// A halt that rests on the lane record must rest on the newest one: a leader that was just replaced may still answer
    /// with an older. Storing it again behind the one that was read tells; a record of another lane is left alone. What
    /// only this process has known is kept there as well, for the next start.
    pub async fn confirm_halt(
        &mut self,
        halt: Halt,
        stored: &StoredRecord,
        created: &str,
    ) -> OpenError {
        let record = match (&halt, &stored.record) {
            (Halt::Replaced { sequence, .. }, Some(record)) => {
                record.halted_for(*sequence, created)
            }
            (
                Halt::TailRemoved { .. }
                | Halt::TailUnknown { .. }
                | Halt::TailCopied { .. }
                | Halt::ConfirmedUnexplained { .. },
                record,
            ) => record.clone(),
            _ => None,
        };
        if let Some(record) = record
            && let Err(error) = self.write_record(&record, stored.sequence).await
        {
            return error;
        }
        OpenError::Halt(halt)
    }

    /// The lane's last message.
    ///
    /// # Errors
    /// No answer.
    pub async fn tail(
        &mut self,
        stream: &StreamInfo,
        record: Option<&LaneRecord>,
        memory: Option<&Memory>,
    ) -> Result<Tail, OpenError> {
        let last_sequence = stream.state.last_seq;
        let (slot, created) = (self.slot.clone(), &stream.created);
        if !self.shared {
            let mut search = TailSearch::new(&slot, last_sequence, created, record, memory);
            while let Some(lookup) = search.wanted() {
                let message = self.message(lookup).await?;
                if let Some(tail) = search.take(message.as_ref().map(StoredMessage::for_search)) {
                    return Ok(tail);
                }
            }
            return Ok(search.end());
        }
        let end = StreamEnd {
            created,
            last_sequence,
            messages: stream.state.messages,
        };
        let mut search = SharedTailSearch::new(&slot, self.subjects.clone(), end, record, memory);
        while let Some(lookup) = search.wanted() {
            let message = self.message(lookup).await?;
            let found = search.take(message.as_ref().map(StoredMessage::for_search));
            self.fence_sequence = search.fence_sequence();
            if let Some(tail) = found {
                return Ok(tail);
            }
        }
        Ok(search.end())
    }

    async fn message(&mut self, lookup: Lookup<'_>) -> Result<Option<StoredMessage>, OpenError> {
        self.api
            .message(&mut self.connection, lookup, self.timeout)
            .await
            .map_err(|error| stream_error(error, self.api.stream()))
    }

    /// Stores a message on the lane's own subject of a shared stream, with the lane's tail: from here on no relay that
    /// knew an older one can write. Nothing is stored when the lane has moved since the last [`Self::tail`], which is
    /// where the tail comes from. Returns its sequence.
    ///
    /// # Errors
    /// Another relay was faster, the stream takes nothing, or no answer.
    pub async fn write_fence(&mut self, tail: Option<&TailMessage>) -> Result<u64, OpenError> {
        let stream = self.api.stream().to_owned();
        let headers = fence_headers(&stream, &self.slot, tail, self.fence_sequence);
        let answer = self
            .connection
            .request(&self.subjects.fence, Some(&headers), b"", self.timeout)
            .await?;
        stored_sequence(&answer.payload, &stream)
            .map_err(|refused| OpenError::Fault(refused.fault(Fault::Sequence)))
    }
}

/// Headers of a lane record: stored only behind the one that this relay knows.
pub(super) fn record_headers(after: u64) -> Vec<u8> {
    format!(
        "NATS/1.0\r\nNats-Expected-Stream: {LANE_RECORD_STREAM}\r\n\
         Nats-Expected-Last-Subject-Sequence: {after}\r\n\r\n"
    )
    .into_bytes()
}

/// The sequence of a stored lane record, from the publish acknowledgement.
pub(super) fn stored_record(answer: &[u8]) -> Result<u64, Fault> {
    stored_sequence(answer, LANE_RECORD_STREAM).map_err(|refused| refused.fault(Fault::RecordTaken))
}

/// Why a message of the relay's own was not stored.
enum NotStored {
    /// Another one was stored since the one that it expected.
    Overtaken(String),
    /// Anything else.
    Other(String),
}

impl NotStored {
    fn fault(self, overtaken: impl FnOnce(String) -> Fault) -> Fault {
        match self {
            NotStored::Overtaken(text) => overtaken(text),
            NotStored::Other(text) => Fault::Broker(text),
        }
    }
}

/// The sequence of a stored message, from a publish acknowledgement of `stream` alone.
fn stored_sequence(answer: &[u8], stream: &str) -> Result<u64, NotStored> {
    #[derive(serde::Deserialize)]
    struct Answer {
        stream: Option<String>,
        seq: Option<u64>,
        error: Option<ApiError>,
    }
    let other = |what: &dyn std::fmt::Display| {
        NotStored::Other(format!(
            "stream {stream} does not store the lane's own message: {what}"
        ))
    };
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| other(&error))?;
    match answer {
        Answer {
            error: Some(error), ..
        } if OVERTAKEN_CODES.contains(&error.err_code) => {
            Err(NotStored::Overtaken(error.to_string()))
        }
        Answer {
            error: Some(error), ..
        } => Err(other(&error)),
        Answer {
            stream: Some(found),
            seq: Some(seq),
            ..
        } if found == stream => Ok(seq),
        _ => Err(other(&"another stream acknowledges it")),
    }
}

fn stream_error(error: CallError, stream: &str) -> OpenError {
    match &error {
        CallError::Answer(AnswerError::Api(api)) if api.is_stream_not_found() => {
            OpenError::Permanent(anyhow::anyhow!(
                "NATS has no stream {stream}: run `walrelay setup`"
            ))
        }
        _ if error.is_transient() => OpenError::Fault(Fault::Broker(error.to_string())),
        _ => OpenError::Permanent(error.into()),
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        if error.is_transient() {
            OpenError::Fault(Fault::Broker(with_cause(&error)))
        } else {
            OpenError::Permanent(error.into())
        }
    }
}

impl From<RequestError> for OpenError {
    fn from(error: RequestError) -> Self {
        if error.is_transient() {
            OpenError::Fault(Fault::Broker(with_cause(&error)))
        } else {
            OpenError::Permanent(error.into())
        }
    }
}

/// An error with its causes in one line.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    text
}

/// How this stream on this server can be published to in order.
///
/// # Errors
/// A shared stream on a server or of a kind that has no atomic batches.
pub fn mode(
    connection: &LaneConnection,
    stream: &StreamInfo,
    shared: bool,
) -> Result<Mode, OpenError> {
    stream_mode(&stream.config, shared, connection.info().version).map_err(|finding| {
        OpenError::Permanent(anyhow::anyhow!("stream {}: {finding}", stream.config.name))
    })
}
