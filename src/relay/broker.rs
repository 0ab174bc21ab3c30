//! The broker's side of an epoch's start: connection, stream, lane record, the lane's last message.
//!
//! In: settings. Out: a [`Broker`] whose connection is new, so nothing of an earlier epoch is on its way any more.
//! Guarantee: a stream that would lose or change messages by its configuration is refused.

use crate::config::NatsSettings;
use crate::nats::api::{
    AnswerError, ApiError, CallError, DEFAULT_PREFIX, StoredMessage, StreamApi, StreamInfo,
};
use crate::nats::connection::{ConnectError, LaneConnection, RequestError};
use crate::nats::stream::{
    LANE_RECORD_STREAM, fence_subject, lane_record_subject, lane_records_config,
};
use crate::pipeline::continuity::Memory;
use crate::pipeline::dead_letter;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::position;
use crate::pipeline::publish::Mode;
use crate::pipeline::publish::tail_header;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::subject::{SubjectTemplate, TemplateError};
use crate::pipeline::tail::{Tail, TailMessage, TailSearch, split_tail};
use crate::relay::open::OpenError;
use std::time::Duration;

/// Value of [`position::TAIL_HEADER`] on the fence of a lane that has published nothing.
const NO_TAIL: &str = "-";

/// `err_code` of a wrong last sequence, on one server and in a cluster.
const OVERTAKEN_CODES: [u16; 2] = [10071, 10164];

/// Most messages of others on the lane's subjects that are read behind its fence in search of its own: an answer each,
/// at every start.
const BEHIND_FENCE_MAX: usize = 200;

/// The lane record and where it is stored.
#[derive(Debug)]
pub struct StoredRecord {
    /// The record; none before the lane's first epoch.
    pub record: Option<LaneRecord>,
    /// Sequence of the message that holds it in the record stream; 0 for none.
    pub sequence: u64,
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
    /// What the lane's own messages in a shared stream are published on.
    filters: [String; 2],
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
        let template: SubjectTemplate = settings
            .subject
            .parse()
            .map_err(|error: TemplateError| OpenError::Permanent(error.into()))?;
        let connection = LaneConnection::open(
            &settings.servers,
            &settings.auth,
            name,
            settings.connect_timeout,
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
            filters: [template.filter(), dead_letter::subject(slot)],
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
            .last_by_subject(&mut self.connection, &subject, self.timeout)
            .await;
        let found = match found {
            Err(error) if error.api().is_some_and(ApiError::is_stream_not_found) => {
                self.create_records(num_replicas).await?;
                None
            }
            found => found.map_err(|error| stream_error(error, LANE_RECORD_STREAM))?,
        };
        let Some(message) = found else {
            return Ok(StoredRecord {
                record: None,
                sequence: 0,
            });
        };
        let record = LaneRecord::from_json(&message.data)
            .map_err(|error| OpenError::Permanent(error.into()))?;
        Ok(StoredRecord {
            record: Some(record),
            sequence: message.seq,
        })
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
    /// with an older. Storing it again behind the one that was read tells; a record of another lane is left alone.
    pub async fn confirm_halt(&mut self, halt: Halt, stored: &StoredRecord) -> OpenError {
        let rests_on_record = matches!(
            halt,
            Halt::TailRemoved { .. }
                | Halt::TailUnknown { .. }
                | Halt::TailCopied { .. }
                | Halt::ConfirmedUnexplained { .. }
        );
        if let Some(record) = stored.record.as_ref().filter(|_| rests_on_record)
            && let Err(error) = self.write_record(record, stored.sequence).await
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
        if self.shared {
            return self.shared_tail(stream, record, memory).await;
        }
        let slot = self.slot.clone();
        let last_sequence = stream.state.last_seq;
        let mut search = TailSearch::new(&slot, last_sequence, &stream.created, record, memory);
        while let Some(sequence) = search.wanted() {
            let message = self.message(sequence).await?;
            let found = message.as_ref().map(StoredMessage::for_search);
            if let Some(tail) = search.take(found) {
                return Ok(tail);
            }
        }
        Ok(search.end())
    }
}

impl Broker {
    /// The lane's last message on its own subject of a shared stream: one request, however long the stream is.
    async fn shared_tail(
        &mut self,
        stream: &StreamInfo,
        record: Option<&LaneRecord>,
        memory: Option<&Memory>,
    ) -> Result<Tail, OpenError> {
        let record = record.filter(|record| record.created == stream.created);
        let fence = self.fence().await?;
        self.fence_sequence = fence.as_ref().map_or(0, |fence| fence.seq);
        let adopted = record.map_or(0, |record| record.adopted_sequence);
        if fence.as_ref().is_some_and(|fence| fence.seq <= adopted) {
            return Ok(Tail::Nothing);
        }
        let last_sequence = stream.state.last_seq;
        // What this process or the record know of a later fence: gone without anybody's message in its place, it was
        // removed; taken by another's, the broker lost it, and what the older one tells is the truth.
        let known = memory
            .filter(|memory| memory.is_of(&stream.created, last_sequence))
            .and_then(|memory| memory.tail.as_ref())
            .map(|tail| tail.sequence)
            .or(record
                .filter(|record| record.position.is_some() && record.sequence <= last_sequence)
                .map(|record| record.sequence));
        if let (Some(fence), Some(last)) = (&fence, known)
            && fence.seq < last
            && self.message(last).await?.is_none()
        {
            return Ok(Tail::FenceRemoved);
        }
        if let Some(fence) = &fence
            && let Some(told) = fence.header_text(position::TAIL_HEADER)
        {
            let tail = match split_tail(told) {
                _ if told == NO_TAIL => Some(None),
                Some((told, event_id)) => {
                    let told = position::parse_header(told).ok();
                    told.map(|(_, position)| {
                        Some(TailMessage {
                            sequence: fence.seq,
                            position,
                            event_id,
                        })
                    })
                }
                None => None,
            };
            if let Some(tail) = tail {
                let tail = self.behind_fence(fence.seq, last_sequence, tail).await?;
                return Ok(tail.map_or(Tail::Nothing, Tail::Found));
            }
        }
        // Gone, or somebody's message stands in its place. Where the stream does not reach what record and memory say, it
        // never was there: then the stream is another one, or was set back.
        let recorded = record.is_some_and(|record| {
            record.sequence <= last_sequence && (record.active || record.position.is_some())
        });
        let remembered = memory.is_some_and(|memory| memory.is_of(&stream.created, last_sequence));
        Ok(if recorded || remembered || fence.is_some() {
            Tail::FenceRemoved
        } else {
            Tail::Nothing
        })
    }

    /// The lane's last message, where `tail` is what its fence tells. A batch is stored whole or not at all, but a crash of
    /// the broker can take the end of its files, and so of a batch that had been stored: the fence at the batch's end is
    /// gone then, and what survived stands behind the fence of the batch before. Where others publish on the lane's
    /// subjects, so many of them that its own are not reached, what the fence tells counts.
    ///
    /// Not beyond `last_sequence`, which was read before the fence: a relay that waits for its slot would else follow the
    /// one that publishes for as long as that does.
    async fn behind_fence(
        &mut self,
        fence: u64,
        last_sequence: u64,
        tail: Option<TailMessage>,
    ) -> Result<Option<TailMessage>, OpenError> {
        let mut last = tail;
        for filter in self.filters.clone() {
            let mut next = fence + 1;
            let mut others = 0;
            while next <= last_sequence && others < BEHIND_FENCE_MAX {
                let message = self
                    .api
                    .next_by_subject(&mut self.connection, next, &filter, self.timeout)
                    .await
                    .map_err(|error| stream_error(error, self.api.stream()))?;
                let Some(message) = message.filter(|found| found.seq <= last_sequence) else {
                    break;
                };
                next = message.seq + 1;
                // A consumer's copy carries none of NATS' own headers.
                let of_batch = message.header("Nats-Batch-Id").is_some();
                match message.for_search().told().filter(|_| of_batch) {
                    Some((slot, position, event_id)) if slot == self.slot => {
                        if last.as_ref().is_none_or(|last| last.position < position) {
                            last = Some(TailMessage {
                                sequence: message.seq,
                                position,
                                event_id,
                            });
                        }
                    }
                    _ => others += 1,
                }
            }
        }
        Ok(last)
    }

    async fn message(&mut self, sequence: u64) -> Result<Option<StoredMessage>, OpenError> {
        self.api
            .message_get(&mut self.connection, sequence, self.timeout)
            .await
            .map_err(|error| stream_error(error, self.api.stream()))
    }

    async fn fence(&mut self) -> Result<Option<StoredMessage>, OpenError> {
        let subject = fence_subject(self.api.stream(), &self.slot);
        self.api
            .last_by_subject(&mut self.connection, &subject, self.timeout)
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
        let subject = fence_subject(self.api.stream(), &self.slot);
        let after = self.fence_sequence;
        let tail = tail.map_or_else(
            || NO_TAIL.to_owned(),
            |tail| tail_header(&self.slot, tail.position, tail.event_id.as_deref()),
        );
        let tail_name = position::TAIL_HEADER;
        let stream = self.api.stream().to_owned();
        let headers = format!(
            "NATS/1.0\r\n{tail_name}: {tail}\r\nNats-Expected-Stream: {stream}\r\n\
             Nats-Expected-Last-Subject-Sequence: {after}\r\n\r\n"
        );
        let answer = self
            .connection
            .request(&subject, Some(headers.as_bytes()), b"", self.timeout)
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
    let version = connection.info().version;
    if shared {
        if version.at_least(2, 12) && stream.config.allow_atomic {
            return Ok(Mode::Atomic);
        }
        return Err(OpenError::Permanent(anyhow::anyhow!(
            "a shared stream needs atomic batches, nats-server 2.12 or newer and `nats stream edit {} --allow-batch`; \
             this is {version}",
            stream.config.name
        )));
    }
    Ok(
        if connection.info().version.at_least(2, 14) && stream.config.allow_batched {
            Mode::FastIngest
        } else {
            Mode::Chain
        },
    )
}
