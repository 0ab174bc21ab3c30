//! What the broker keeps of a lane: its stream, its record, its fence. Requests to bytes, bytes to replies.
//!
//! In: a [`Request`] of the pipeline. Out: subject, headers and payload to send, and the reply that the answer holds.
//! Nothing here waits or decides; every connection, the relay's own, the administrative one and the simulated one, sends
//! through it.

use crate::nats::api::{
    AnswerError, ApiError, ApiRequest, StoredMessage, StreamApi, StreamInfo, StreamNameError,
};
use crate::nats::protocol::ServerVersion;
use crate::nats::stream::{
    self, LANE_RECORD_STREAM, StreamSettings, lane_lease_subject, lane_letters_subject,
    lane_record_subject, lane_settled_subject,
};
use crate::pipeline::dead_letter::remembered::Remembered;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::fault::Fault;
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::record::{RecordError, RecordOrNote};
use crate::pipeline::request::{Reply, Request, StoredRecord, StreamView};
use crate::pipeline::shared_end_search::{
    FENCE_PREFIX, bulk_fence_subject, fence_headers, fence_subject,
};
use crate::pipeline::{end_search, event_id, position};
use crate::relay::stream_fit;

/// `err_code` of a wrong last sequence, on one server and in a cluster.
const OVERTAKEN_CODES: [u16; 2] = [10071, 10164];

/// A lane's place in the broker.
#[derive(Debug, Clone)]
pub struct LaneStore {
    events: StreamApi,
    records: StreamApi,
    slot: String,
    /// The stream is another account's.
    imported: bool,
    /// What the events' stream must be, and the version of the server that has it; none where nobody publishes.
    judge: Option<(StreamSettings, ServerVersion)>,
}

/// A request as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Subject.
    pub subject: String,
    /// Whole header block.
    pub headers: Option<Vec<u8>>,
    /// Body.
    pub payload: Vec<u8>,
    /// What the answer to it is.
    pub expects: Expects,
}

/// What an answer is to be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expects {
    /// [`Answer::Stream`].
    Stream,
    /// [`Answer::Record`].
    Record,
    /// [`Answer::Message`].
    Message,
    /// [`Answer::Stored`], of the lane record.
    StoredRecord,
    /// [`Answer::Stored`], of a fence.
    StoredFence,
}

/// An answer that was read.
#[derive(Debug)]
pub enum Answer {
    /// Configuration and state of the stream, and what the relay decides by.
    Stream(Box<StreamInfo>, StreamView),
    /// The lane record.
    Record(Box<StoredRecord>),
    /// A message; none where there is none.
    Message(Option<StoredMessage>),
    /// Stored with this sequence.
    Stored(u64),
}

/// Why an answer is no reply.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API's error, or nothing that can be read.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The lane record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lane's own message was not stored.
    #[error("{0}")]
    NotStored(Fault),
}

impl LaneStore {
    /// The lane of `slot` in `stream`, reached under the API's `prefix`.
    ///
    /// # Errors
    /// The stream's name is none.
    pub fn new(prefix: &str, stream: &str, slot: &str) -> Result<Self, StreamNameError> {
        let events = StreamApi::new(prefix, stream)?;
        Ok(LaneStore {
            imported: events.is_imported(),
            events,
            records: StreamApi::new(prefix, LANE_RECORD_STREAM)?,
            slot: slot.to_owned(),
            judge: None,
        })
    }

    /// Where the JetStream API listens.
    #[must_use]
    pub(crate) fn api_prefix(&self) -> &str {
        self.events.prefix()
    }

    /// The same, through imports that the API's prefix need not show.
    #[must_use]
    pub(crate) fn imported(self, imported: bool) -> Self {
        LaneStore {
            imported: self.imported || imported,
            ..self
        }
    }

    /// The same, which says of the stream each time whether it fits.
    #[must_use]
    pub fn judging(self, wanted: StreamSettings, version: ServerVersion) -> Self {
        LaneStore {
            judge: Some((wanted, version)),
            ..self
        }
    }

    /// The events' subjects; empty where nobody publishes.
    #[must_use]
    pub(crate) fn events_filter(&self) -> &str {
        let judge = self.judge.as_ref();
        judge
            .and_then(|(wanted, _)| wanted.subjects.first())
            .map_or("", String::as_str)
    }

    /// What of the stream's configuration is a risk, or slow.
    #[must_use]
    pub(crate) fn warnings(&self, info: &StreamInfo) -> Vec<String> {
        self.judge
            .as_ref()
            .map_or_else(Vec::new, |(wanted, version)| {
                stream_fit::warnings(info, wanted, *version)
            })
    }

    fn stream_view(&self, info: &StreamInfo) -> StreamView {
        let judge = self.judge.as_ref();
        StreamView {
            created: info.created.clone(),
            first_sequence: info.state.first_seq,
            last_sequence: info.state.last_seq,
            messages: info.state.messages,
            num_replicas: info.config.num_replicas,
            allow_batched: info.config.allow_batched,
            allow_atomic: info.config.allow_atomic,
            stored_as: judge.map_or_else(Vec::new, |(wanted, _)| {
                stream::stored_as(&info.config, wanted)
            }),
            unfit: judge
                .and_then(|(wanted, version)| stream_fit::unfit(&info.config, wanted, *version)),
        }
    }

    /// Asks how the stream of the lanes' records is configured; answer: [`StreamInfo::parse`].
    pub(crate) fn record_stream(&self) -> ApiRequest {
        self.records.info_request()
    }

    /// The events' stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        self.events.stream()
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// A request as it is sent.
    #[must_use]
    pub fn outgoing(&self, request: &Request<'_>) -> Outgoing {
        let record_subject = || lane_record_subject(self.stream(), &self.slot);
        match request {
            Request::Stream => plain(self.events.info_request(), Expects::Stream),
            Request::Record => self.recorded(&record_subject(), Expects::Record),
            Request::Message(lookup) => {
                plain(self.events.lookup_request(*lookup), Expects::Message)
            }
            Request::StoreRecord { record, behind } => {
                store_record(record_subject(), record.to_json(), *behind)
            }
            Request::StoreFence { lane_end, behind } => {
                let subject = fence_subject(self.stream(), &self.slot);
                self.fence(subject, lane_end.as_ref(), *behind)
            }
        }
    }

    /// Asks for what is kept of a lane beside its stream, on this subject.
    fn recorded(&self, subject: &str, expects: Expects) -> Outgoing {
        plain(self.records.last_by_subject_request(subject), expects)
    }

    /// Stores what a relay leaves of its halt, provided that what stands there is still the message at `behind`; answer:
    /// [`Answer::Stored`].
    #[must_use]
    pub fn store_halt(&self, kept: &RecordOrNote, behind: u64) -> Outgoing {
        let subject = lane_record_subject(self.stream(), &self.slot);
        store_record(subject, kept.to_json(), behind)
    }

    /// Asks for the lane's lease; answer: [`Answer::Message`].
    #[must_use]
    pub fn lease(&self) -> Outgoing {
        let subject = lane_lease_subject(self.stream(), &self.slot);
        self.recorded(&subject, Expects::Message)
    }

    /// Stores the lane's lease, provided that it is still the one at `behind`; answer: [`Answer::Stored`].
    #[must_use]
    pub fn store_lease(&self, lease: Vec<u8>, behind: u64) -> Outgoing {
        let subject = lane_lease_subject(self.stream(), &self.slot);
        store_record(subject, lease, behind)
    }

    /// Asks how far the lane's published rows are settled; answer: [`Answer::Message`].
    #[must_use]
    pub(crate) fn settled(&self) -> Outgoing {
        let subject = lane_settled_subject(self.stream(), &self.slot);
        self.recorded(&subject, Expects::Message)
    }

    /// Stores how far they are, provided that it is still the one at `behind`; answer: [`Answer::Stored`].
    #[must_use]
    pub(crate) fn store_settled(&self, place: Vec<u8>, behind: u64) -> Outgoing {
        let subject = lane_settled_subject(self.stream(), &self.slot);
        store_record(subject, place, behind)
    }

    /// Asks for the dead letters that were open when the relay last looked; answer: [`Answer::Message`].
    #[must_use]
    pub(crate) fn letters(&self) -> Outgoing {
        let subject = lane_letters_subject(self.stream(), &self.slot);
        self.recorded(&subject, Expects::Message)
    }

    /// Stores them, provided that what is stored is still what is at `behind`; answer: [`Answer::Stored`].
    #[must_use]
    pub(crate) fn store_letters(&self, letters: &Remembered, behind: u64) -> Outgoing {
        let subject = lane_letters_subject(self.stream(), &self.slot);
        store_record(subject, letters.to_json(), behind)
    }

    /// Stores a fence for what is published outside of the lane in a shared stream, provided that the last one is still the
    /// one at `behind`; answer: [`Answer::Stored`].
    #[must_use]
    pub fn store_bulk_fence(&self, behind: u64) -> Outgoing {
        let subject = bulk_fence_subject(self.stream(), &self.slot);
        self.fence(subject, None, behind)
    }

    fn fence(&self, subject: String, lane_end: Option<&LaneEnd>, behind: u64) -> Outgoing {
        let headers = fence_headers(self.stream(), &self.slot, lane_end, behind);
        Outgoing {
            subject,
            headers: Some(headers),
            payload: Vec::new(),
            expects: Expects::StoredFence,
        }
    }

    /// Asks for the subjects of the stream that match, without the first `offset` of them; answer:
    /// [`Subjects`](crate::nats::api::subjects::Subjects).
    pub(super) fn subjects(&self, filter: &str, offset: usize) -> ApiRequest {
        self.events.subjects_request(filter, offset)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self, expects: Expects, payload: &[u8]) -> Result<Answer, StoreError> {
        Ok(match expects {
            Expects::Stream => {
                let mut info = StreamInfo::parse(payload)?;
                // Where another account's API is imported, its subjects are too. Each message of a batch that gets no answer
                // of its own would stay in nats-server's memory for minutes.
                info.config.allow_batched &= !self.imported;
                let view = self.stream_view(&info);
                Answer::Stream(Box::new(info), view)
            }
            Expects::Record => Answer::Record(Box::new(match StoredMessage::parse(payload)? {
                Some(message) => {
                    let (record, note) = match RecordOrNote::from_json(&message.data)? {
                        RecordOrNote::Record(record) => (Some(*record), None),
                        RecordOrNote::Note(note) => (None, Some(note)),
                    };
                    StoredRecord {
                        record,
                        note,
                        sequence: message.seq,
                    }
                }
                None => StoredRecord::default(),
            })),
            Expects::Message => Answer::Message(StoredMessage::parse(payload)?),
            Expects::StoredRecord => Answer::Stored(
                stored_sequence(payload, LANE_RECORD_STREAM, Fault::RecordTaken)
                    .map_err(StoreError::NotStored)?,
            ),
            Expects::StoredFence => Answer::Stored(
                stored_sequence(payload, self.stream(), Fault::Sequence)
                    .map_err(StoreError::NotStored)?,
            ),
        })
    }
}

impl Answer {
    /// As the pipeline takes it.
    #[must_use]
    pub fn reply(&self) -> Reply<'_> {
        match self {
            Answer::Stream(_, view) => Reply::Stream(view.clone()),
            Answer::Record(stored) => Reply::Record(stored.clone()),
            Answer::Message(message) => {
                Reply::Message(message.as_ref().map(StoredMessage::for_search))
            }
            Answer::Stored(sequence) => Reply::Stored(*sequence),
        }
    }
}

impl StreamApi {
    /// What a search for the lane's last message asks for; answer: [`StoredMessage::parse`].
    #[must_use]
    pub fn lookup_request(&self, lookup: Lookup<'_>) -> ApiRequest {
        match lookup {
            Lookup::Message(sequence) => self.message_get_request(sequence),
            Lookup::Last(subject) => self.last_by_subject_request(subject),
            Lookup::Next { from, filter } => self.next_by_subject_request(from, filter),
        }
    }
}

impl StoredMessage {
    /// As the search for the lane's last message and the probe before a confirmation take it.
    #[must_use]
    pub fn for_search(&self) -> end_search::StoredMessage<'_> {
        end_search::StoredMessage {
            sequence: self.seq,
            position: self.header_text(position::POSITION_HEADER),
            tail: self.header_text(position::TAIL_HEADER),
            expected_sequence: self.header_text(position::EXPECTED_HEADER),
            is_fence: self.subject.starts_with(FENCE_PREFIX),
            in_batch: self.header(position::BATCH_HEADER).is_some(),
            kind: self.header_text(position::KIND_HEADER),
            table: self.header_text(position::TABLE_HEADER),
            id: event_id::ID_HEADERS.map(|name| self.header_text(name)),
            body: &self.data,
        }
    }
}

fn plain(ApiRequest { subject, payload }: ApiRequest, expects: Expects) -> Outgoing {
    Outgoing {
        subject,
        headers: None,
        payload,
        expects,
    }
}

/// Stores what is kept of a lane beside its stream, provided that it is still what is at `behind`.
fn store_record(subject: String, payload: Vec<u8>, behind: u64) -> Outgoing {
    let headers = format!(
        "NATS/1.0\r\nNats-Expected-Stream: {LANE_RECORD_STREAM}\r\n\
         Nats-Expected-Last-Subject-Sequence: {behind}\r\n\r\n"
    );
    Outgoing {
        subject,
        headers: Some(headers.into_bytes()),
        payload,
        expects: Expects::StoredRecord,
    }
}

/// The sequence of a stored message, from a publish acknowledgement of `stream` alone. `overtaken` is the fault where
/// another one was stored since the one that it expected.
fn stored_sequence(
    answer: &[u8],
    stream: &str,
    overtaken: impl FnOnce(String) -> Fault,
) -> Result<u64, Fault> {
    #[derive(serde::Deserialize)]
    struct Ack {
        stream: Option<String>,
        seq: Option<u64>,
        error: Option<ApiError>,
    }
    let other = |what: &dyn std::fmt::Display| {
        Fault::Broker(format!(
            "stream {stream} does not store the lane's own message: {what}"
        ))
    };
    // nats-server's answer in the place of a stream that does not listen: a status and nothing else.
    if answer.is_empty() {
        return Err(other(
            &"it has no leader for the moment, or does not take the subject",
        ));
    }
    let ack: Ack = serde_json::from_slice(answer).map_err(|error| other(&error))?;
    match ack {
        Ack {
            error: Some(error), ..
        } if OVERTAKEN_CODES.contains(&error.err_code) => Err(overtaken(error.to_string())),
        Ack {
            error: Some(error), ..
        } => Err(other(&error)),
        Ack {
            stream: Some(found),
            seq: Some(seq),
            ..
        } if found == stream => Ok(seq),
        _ => Err(other(&"another stream acknowledges it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_does_not_listen_is_said_to_be_none() {
        let stored = |answer: &[u8]| stored_sequence(answer, "S", Fault::Sequence);
        assert_eq!(stored(br#"{"stream":"S","seq":7}"#), Ok(7));
        for (answer, says) in [
            (b"".as_slice(), "has no leader"),
            (br#"{"stream":"T","seq":7}"#, "another stream"),
            (b"no JSON", "expected ident"),
        ] {
            let Err(Fault::Broker(text)) = stored(answer) else {
                panic!("{answer:?} is a fault of the broker");
            };
            assert!(text.contains(says), "{text}");
        }
    }
}
