//! The JetStream API requests of the relay: what a stream is, and what it holds.
//!
//! In: the name of a stream. Out: request subjects and bodies, and typed answers; both pure, so that any connection can send
//! them.
//! Messages are always read by STREAM.MSG.GET, which goes to the stream's leader; Direct Get may answer from a stale replica.
//! Reference: <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};

use super::headers::Headers;

pub(crate) mod subjects;

/// Where the JetStream API listens, unless a domain or an import moves it.
pub const DEFAULT_PREFIX: &str = "$JS.API";

/// Where a stream's new leader says that it is one, in a cluster: <https://docs.nats.io/running-a-nats-service/nats_admin/monitoring/monitoring_jetstream>.
pub(crate) fn leader_elected_subject(stream: &str) -> String {
    format!("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}")
}

/// `err_code` of "no message found".
const NO_MESSAGE_FOUND: u16 = 10037;

/// `err_code` of "stream not found".
const STREAM_NOT_FOUND: u16 = 10059;

/// `err_code` of "stream is offline".
const STREAM_OFFLINE: u16 = 10118;

/// `err_code` of "JetStream not enabled for account".
const OFF_FOR_ACCOUNT: u16 = 10039;

/// `err_code` of "JetStream not enabled".
const OFF_FOR_SERVER: u16 = 10076;

/// A name that no stream can have.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a stream name: it must not be empty nor hold blanks, control characters or any of . * > / \\"
)]
pub struct StreamNameError(String);

/// An error that the JetStream API answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (code {code}, err_code {err_code}){}", self.remedy())]
#[serde(default)]
#[derive(Default)]
pub struct ApiError {
    /// Class of the error, as in HTTP.
    pub code: u16,
    /// The error itself.
    pub err_code: u16,
    /// The server's text.
    pub description: String,
}

impl ApiError {
    /// Whether the stream does not exist.
    #[must_use]
    pub fn is_stream_not_found(&self) -> bool {
        self.err_code == STREAM_NOT_FOUND
    }

    /// Whether nobody leads the stream: the servers of its replicas are away, or elect one.
    #[must_use]
    pub(crate) fn is_leaderless(&self) -> bool {
        self.err_code == STREAM_OFFLINE || self.is_transient()
    }

    /// Whether waiting may cure it: no leader, no quorum, overload. Unknown means no.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // JetStream is off, which says 503 too.
        let is_off = matches!(self.err_code, OFF_FOR_ACCOUNT | OFF_FOR_SERVER);
        matches!(self.code, 429 | 503) && !is_off
    }

    /// What to do, behind the server's words.
    fn remedy(&self) -> &'static str {
        match self.err_code {
            OFF_FOR_ACCOUNT => {
                ": put jetstream: enabled into the account's block of nats-server's configuration and reload it, or limits for \
                 JetStream into the account's JWT; or log in to an account that has it"
            }
            OFF_FOR_SERVER => {
                ": start nats-server with --jetstream, or with a jetstream block in its configuration"
            }
            _ => "",
        }
    }
}

/// An answer that holds an error, or that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The API refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Not the JSON of the API.
    #[error("the answer of the JetStream API is not the JSON it should be")]
    Json(#[from] serde_json::Error),
    /// A stored message whose bytes cannot be decoded.
    #[error("the stored message {field} is not base64")]
    Base64 {
        /// `data` or `hdrs`.
        field: &'static str,
    },
}

/// A request: where to, and with which body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    /// Subject.
    pub subject: String,
    /// Body, JSON or empty.
    pub payload: Vec<u8>,
}

/// The API of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamApi {
    prefix: String,
    stream: String,
}

impl StreamApi {
    /// The API of `stream` below `prefix`, usually [`DEFAULT_PREFIX`].
    ///
    /// # Errors
    /// [`StreamNameError`] where the name would not be one token of a subject.
    pub fn new(prefix: &str, stream: &str) -> Result<Self, StreamNameError> {
        let illegal = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
        if stream.is_empty() || stream.contains(illegal) {
            return Err(StreamNameError(stream.to_owned()));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            stream: stream.to_owned(),
        })
    }

    /// Where the API listens.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the API is another account's, by an import: neither `$JS.API` nor that of a domain.
    #[must_use]
    pub(crate) fn is_imported(&self) -> bool {
        let domain = self.prefix.strip_prefix("$JS.");
        let domain = domain.and_then(|rest| rest.strip_suffix(".API"));
        self.prefix != DEFAULT_PREFIX && domain.is_none_or(|domain| domain.contains('.'))
    }

    /// Name of the stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// STREAM.INFO, without the list of deleted messages; answer: [`StreamInfo::parse`].
    #[must_use]
    pub fn info_request(&self) -> ApiRequest {
        let subject = format!("{}.STREAM.INFO.{}", self.prefix, self.stream);
        ApiRequest {
            subject,
            payload: Vec::new(),
        }
    }

    /// STREAM.INFO with the subjects that match, without the first `offset` of them; answer: [`Subjects::parse`].
    #[must_use]
    pub(crate) fn subjects_request(&self, filter: &str, offset: usize) -> ApiRequest {
        let body = serde_json::json!({ "subjects_filter": filter, "offset": offset });
        ApiRequest {
            payload: body.to_string().into_bytes(),
            ..self.info_request()
        }
    }

    /// STREAM.MSG.GET by sequence; answer: [`StoredMessage::parse`].
    #[must_use]
    pub(crate) fn message_get_request(&self, seq: u64) -> ApiRequest {
        self.message_request(&serde_json::json!({ "seq": seq }))
    }

    /// STREAM.MSG.GET of the last message whose subject matches; answer: [`StoredMessage::parse`].
    ///
    /// Not `>`: that answers 404 when only the stream's very last message was deleted; `*.>` does not.
    #[must_use]
    pub(crate) fn last_by_subject_request(&self, subject: &str) -> ApiRequest {
        self.message_request(&serde_json::json!({ "last_by_subj": subject }))
    }

    /// STREAM.MSG.GET of the first message at or behind this sequence whose subject matches; answer:
    /// [`StoredMessage::parse`].
    #[must_use]
    pub(crate) fn next_by_subject_request(&self, seq: u64, subject: &str) -> ApiRequest {
        self.message_request(&serde_json::json!({ "next_by_subj": subject, "seq": seq }))
    }

    fn message_request(&self, body: &serde_json::Value) -> ApiRequest {
        let subject = format!("{}.STREAM.MSG.GET.{}", self.prefix, self.stream);
        ApiRequest {
            subject,
            payload: body.to_string().into_bytes(),
        }
    }
}

/// What a stream is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StreamInfo {
    /// When the stream was created, verbatim: another text means another stream.
    pub created: String,
    /// Configuration.
    pub config: StreamConfig,
    /// Contents.
    pub state: StreamState,
    /// Where it runs; absent without a cluster.
    #[serde(default)]
    pub cluster: Option<StreamCluster>,
    /// The server's clock when it answered, RFC 3339, verbatim; none from an old server.
    #[serde(default)]
    pub ts: Option<String>,
}

impl StreamInfo {
    /// Reads the answer to STREAM.INFO.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn parse(payload: &[u8]) -> Result<Self, AnswerError> {
        refuse(payload)?;
        Ok(serde_json::from_slice(payload)?)
    }
}

/// The configuration of a stream, as far as the relay depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// Name.
    pub name: String,
    /// Subjects, wildcards included.
    pub subjects: Vec<String>,
    /// `limits`, `interest` or `workqueue`.
    pub retention: String,
    /// `file` or `memory`.
    pub storage: String,
    /// `old` or `new`.
    pub discard: String,
    /// Most bytes kept; -1 for any number.
    pub(crate) max_bytes: i64,
    /// Most messages kept; -1 for any number.
    pub max_msgs: i64,
    /// Most messages kept per subject; -1 for any number.
    pub max_msgs_per_subject: i64,
    /// Largest message taken, headers included, in bytes; -1 for any.
    pub max_msg_size: i64,
    /// Sequence of the first message that the stream was to take; 0 for 1.
    pub first_seq: u64,
    /// How long messages are kept; zero for ever.
    #[serde(deserialize_with = "nanoseconds")]
    pub max_age: Duration,
    /// How long Nats-Msg-Id is remembered.
    #[serde(deserialize_with = "nanoseconds")]
    pub duplicate_window: Duration,
    /// Replicas.
    pub num_replicas: usize,
    /// Whether the full subject refuses new messages instead of dropping its oldest.
    pub(crate) discard_new_per_subject: bool,
    /// Whether nothing can be changed or added any more.
    pub sealed: bool,
    /// Whether publishes are not acknowledged.
    pub no_ack: bool,
    /// Whether Direct Get is on.
    pub allow_direct: bool,
    /// Whether fast ingest is on (2.14).
    pub allow_batched: bool,
    /// Whether atomic batches are on (2.12).
    pub allow_atomic: bool,
    /// Whether `Nats-Rollup` may remove messages.
    pub(crate) allow_rollup_hdrs: bool,
    /// Whether messages with a TTL of their own are taken (2.11).
    pub(crate) allow_msg_ttl: bool,
    /// For how long the server marks a subject that aged out, by a message of its own (2.11); zero for not at all.
    #[serde(deserialize_with = "nanoseconds")]
    pub(crate) subject_delete_marker_ttl: Duration,
    /// Whether it takes nothing but counters (2.12).
    pub allow_msg_counter: bool,
    /// Whether messages cannot be deleted.
    pub(crate) deny_delete: bool,
    /// Whether the stream cannot be purged.
    pub(crate) deny_purge: bool,
    /// `default` or `async`; async may acknowledge before the write.
    pub persist_mode: Option<String>,
    /// The stream that this one mirrors: nothing can be published to it then.
    pub mirror: Option<StreamSource>,
    /// Streams that feed this one besides its subjects.
    pub sources: Vec<StreamSource>,
    /// Where stored messages are published again.
    pub(crate) republish: Option<SubjectMapping>,
    /// How subjects are changed before they are stored.
    pub(crate) subject_transform: Option<SubjectMapping>,
}

impl StreamConfig {
    /// Largest message that the stream takes, in bytes; none where it takes any.
    pub(crate) fn message_bytes_max(&self) -> Option<usize> {
        usize::try_from(self.max_msg_size)
            .ok()
            .filter(|bytes| *bytes > 0)
    }
}

/// A stream that feeds another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamSource {
    /// Its name.
    pub name: String,
}

/// From subjects to subjects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SubjectMapping {
    /// Subjects concerned.
    pub src: String,
    /// What becomes of them.
    pub(crate) dest: String,
}

impl SubjectMapping {
    /// The subjects concerned, which none means all.
    #[must_use]
    pub fn filter(&self) -> &str {
        match self.src.as_str() {
            "" => ">",
            src => src,
        }
    }
}

/// The contents of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Messages held.
    pub messages: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Sequence of the oldest message; `last_seq + 1` where there is none.
    pub first_seq: u64,
    /// When that was stored.
    pub(crate) first_ts: Option<String>,
    /// Last sequence ever given, whether or not that message is still there.
    pub last_seq: u64,
    /// Messages removed between the first and the last.
    pub(crate) num_deleted: u64,
    /// Consumers.
    pub(crate) consumer_count: u64,
}

/// Where a stream runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamCluster {
    /// Name of the cluster.
    pub name: Option<String>,
    /// Server that leads the stream; absent during an election.
    pub leader: Option<String>,
    /// The others that have a copy; none of a stream with one replica.
    #[serde(deserialize_with = "null_as_default")]
    pub replicas: Vec<Replica>,
}

/// A copy of a stream beside its leader's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// Its server.
    pub name: String,
    /// Whether it has what the leader has.
    pub current: bool,
    /// Whether its server is away.
    pub offline: bool,
}

/// A message as the stream stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Sequence in the stream.
    pub seq: u64,
    /// Subject.
    pub subject: String,
    /// Header block, decoded; empty where there is none.
    pub headers: Vec<u8>,
    /// Payload.
    pub data: Vec<u8>,
    /// When it was stored, RFC 3339, verbatim.
    pub time: String,
}

impl StoredMessage {
    /// Reads the answer to STREAM.MSG.GET; `None` where no message was found.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn parse(payload: &[u8]) -> Result<Option<Self>, AnswerError> {
        #[derive(Deserialize)]
        struct Answer {
            message: Encoded,
        }
        #[derive(Deserialize)]
        struct Encoded {
            seq: u64,
            subject: String,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
            time: String,
        }
        match refuse(payload) {
            Err(AnswerError::Api(error)) if error.err_code == NO_MESSAGE_FOUND => return Ok(None),
            other => other?,
        }
        let Encoded {
            seq,
            subject,
            hdrs,
            data,
            time,
        } = serde_json::from_slice::<Answer>(payload)?.message;
        let decode = |text, field| {
            STANDARD
                .decode(text)
                .map_err(|_| AnswerError::Base64 { field })
        };
        Ok(Some(Self {
            seq,
            subject,
            headers: decode(hdrs, "hdrs")?,
            data: decode(data, "data")?,
            time,
        }))
    }

    /// The first value of a header, without blanks around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        Headers::parse(&self.headers)?.get(name)
    }

    /// The same as text; `None` also where it is no UTF-8.
    #[must_use]
    pub(crate) fn header_text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.header(name)?).ok()
    }
}

/// The error of an answer, if it holds one.
pub(super) fn refuse(payload: &[u8]) -> Result<(), AnswerError> {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        error: Option<ApiError>,
    }
    match serde_json::from_slice::<Refusal>(payload)?.error {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Go writes an empty list as null too.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's durations; negative ones mean none.
fn nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let nanoseconds = i64::deserialize(deserializer)?;
    Ok(Duration::from_nanos(
        u64::try_from(nanoseconds).unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests;
