//! The lane record, read and written over the administrative connection.
//!
//! In: a client, stream and slot. Out: the [`LaneRecord`] and where it is stored. Guarantee: a record is written only
//! behind the one that was read; whoever came in between is not overwritten.

use async_nats::Client;

use super::api::{AnswerError, ApiError, DEFAULT_PREFIX, StoredMessage, StreamApi};
use super::stream::{LANE_RECORD_STREAM, lane_record_subject};
use crate::pipeline::record::{LaneRecord, RecordError};

/// A lane record and where it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The record; none before the lane's first.
    pub record: Option<LaneRecord>,
    /// Sequence of its message in the record stream, 0 for none.
    pub sequence: u64,
}

/// Why a lane record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LaneRecordError {
    /// There is no record stream.
    #[error("NATS has no stream {LANE_RECORD_STREAM} for the lanes' records: run `walrelay setup`")]
    NoStream,
    /// No answer.
    #[error("no answer about the lane record")]
    Request(#[from] async_nats::RequestError),
    /// The answer is an error or cannot be read.
    #[error("the lane record: {0}")]
    Answer(#[from] AnswerError),
    /// The stored record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Somebody else has written it since it was read.
    #[error(
        "the lane record was written by somebody else in the meantime; look whether a relay runs, and try again"
    )]
    Taken,
    /// The broker refused the record.
    #[error("the broker refuses the lane record: {0}")]
    Refused(ApiError),
    /// Another stream has taken it.
    #[error("the lane record was stored in stream {0:?} instead of {LANE_RECORD_STREAM}")]
    OtherStream(String),
}

/// Reads the record of a stream and slot.
///
/// # Errors
/// [`LaneRecordError`].
pub async fn read(
    client: &Client,
    stream: &str,
    slot: &str,
) -> Result<StoredRecord, LaneRecordError> {
    let api = StreamApi::new(DEFAULT_PREFIX, LANE_RECORD_STREAM)
        .expect("the name is a constant and legal");
    let request = api.last_by_subject_request(&lane_record_subject(stream, slot));
    let answer = client
        .request(request.subject, request.payload.into())
        .await?;
    match StoredMessage::parse(&answer.payload) {
        Ok(None) => Ok(StoredRecord {
            record: None,
            sequence: 0,
        }),
        Ok(Some(message)) => Ok(StoredRecord {
            record: Some(LaneRecord::from_json(&message.data)?),
            sequence: message.seq,
        }),
        Err(AnswerError::Api(error)) if error.is_stream_not_found() => {
            Err(LaneRecordError::NoStream)
        }
        Err(error) => Err(error.into()),
    }
}

/// Stores a record behind the one at `after`; returns its sequence.
///
/// # Errors
/// [`LaneRecordError`].
pub async fn write(
    client: &Client,
    record: &LaneRecord,
    after: u64,
) -> Result<u64, LaneRecordError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        stream: Option<String>,
        seq: Option<u64>,
        error: Option<ApiError>,
    }
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Stream", LANE_RECORD_STREAM);
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence",
        after.to_string().as_str(),
    );
    let subject = lane_record_subject(&record.stream, &record.slot);
    let answer = client
        .request_with_headers(subject, headers, record.to_json().into())
        .await
        .map_err(|error| match error.kind() {
            async_nats::RequestErrorKind::NoResponders => LaneRecordError::NoStream,
            _ => LaneRecordError::Request(error),
        })?;
    let answer: Answer = serde_json::from_slice(&answer.payload)
        .map_err(|error| LaneRecordError::Answer(error.into()))?;
    match answer {
        Answer {
            error: Some(error), ..
        } if matches!(error.err_code, 10071 | 10164) => Err(LaneRecordError::Taken),
        Answer {
            error: Some(error), ..
        } => Err(LaneRecordError::Refused(error)),
        Answer {
            stream: Some(stream),
            seq: Some(sequence),
            ..
        } if stream == LANE_RECORD_STREAM => Ok(sequence),
        Answer { stream, .. } => Err(LaneRecordError::OtherStream(stream.unwrap_or_default())),
    }
}
