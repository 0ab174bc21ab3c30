//! Streams for `setup`, `doctor` and `teardown`: plan, create, delete.
//!
//! In: an administrative connection and what the configuration wants. Out: a plan; and, when told, a new stream.
//! Guarantee: a stream that exists is never edited; what does not fit is a [`StreamFinding`] with the command that mends it.
//!
//! Two streams: the events' own, and [`LANE_RECORD_STREAM`], where each lane keeps its last record.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;

use super::admin::{Admin, AdminRequestError, VersionError};
use super::api::{
    AnswerError, StoredMessage, StreamApi, StreamConfig, StreamInfo, StreamNameError, refuse,
};
use super::denial::Denial;
use super::protocol::ServerVersion;

pub mod account;
pub mod edits;
mod fit;
pub mod limits;
pub mod standing;
mod taken;
mod transform;

use account::Account;
pub use fit::{STREAM, StreamFinding, StreamSeverity, untaken};
pub use taken::{Events, taken};

/// The stream of the lanes' records.
pub const LANE_RECORD_STREAM: &str = "WALRELAY";

/// All subjects of the lanes' records.
pub(crate) const LANE_RECORD_SUBJECTS: &str = "walrelay.lane.>";

/// The events' window for Nats-Msg-Id. A lane sets no such header by default, since its own chain excludes duplicates;
/// a short window keeps the server's table of ids small (110–150 bytes an id) where it does.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// The shortest window that nats-server takes; records are fenced by expected sequences.
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_millis(100);

/// What the configuration wants of the events' stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// Name of the stream.
    pub name: String,
    /// What it must store, the events' subjects first.
    pub subjects: Vec<String>,
    /// What a stream that is created stores.
    pub subjects_to_create: Vec<String>,
    /// Replication slot.
    pub slot: String,
    /// Replicas of a stream that is created.
    pub num_replicas: usize,
    /// Others write to it too.
    pub shared: bool,
}

/// What `setup` found, and would do.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamPlan {
    /// The stream exists and stays as it is.
    Exists {
        /// The stream.
        info: Box<StreamInfo>,
        /// What does not fit, the worst first; empty where all is well.
        findings: Vec<StreamFinding>,
    },
    /// There is no such stream: [`create`] makes it.
    Create(Box<Config>),
}

/// Why a stream could not be looked at, created or deleted.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The name in the configuration is no stream name.
    #[error("nats.stream: {0}")]
    Name(#[from] StreamNameError),
    /// JetStream is off, or the user may not use it.
    #[error(transparent)]
    NoJetStream(AdminRequestError),
    /// The user may not ask, or may not hear the answer.
    #[error(transparent)]
    Denied(Denial),
    /// No answer.
    #[error("no answer on {subject}")]
    Request {
        /// Subject of the request.
        subject: String,
        /// Why.
        source: AdminRequestError,
    },
    /// The answer is an error.
    #[error("JetStream refuses {action} stream {stream}")]
    Answer {
        /// What was asked for.
        action: &'static str,
        /// Name of the stream.
        stream: String,
        /// The answer.
        source: AnswerError,
    },
    /// The answer about the account is an error.
    #[error("JetStream refuses a look at the account")]
    Account {
        /// The answer.
        source: AnswerError,
    },
    /// The server's version cannot be read.
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl StreamError {
    /// What to say of a stream that nobody leads.
    #[must_use]
    pub fn leaderless(&self) -> Option<StreamFinding> {
        match self {
            StreamError::Answer {
                source: AnswerError::Api(api),
                ..
            } if api.is_leaderless() => Some(standing::leaderless(&api.to_string())),
            _ => None,
        }
    }
}

/// Looks whether the events' stream exists, and how it fits, whatever the way of publishing.
///
/// # Errors
/// [`StreamError`].
pub async fn plan(client: &Admin, settings: &StreamSettings) -> Result<StreamPlan, StreamError> {
    let version = client.server_version()?;
    Ok(match find(client, &settings.name).await? {
        Some(info) => {
            let findings =
                fit::findings(&info.config, &settings.subjects, settings.shared, version);
            StreamPlan::Exists {
                info: Box::new(info),
                findings,
            }
        }
        None => StreamPlan::Create(Box::new(events_config(settings, version))),
    })
}

/// What of an existing stream does not fit the settings; pure, so that `run` can check with its own connection.
#[must_use]
pub fn findings(
    config: &StreamConfig,
    settings: &StreamSettings,
    version: ServerVersion,
) -> Vec<StreamFinding> {
    fit::findings(config, &settings.subjects, settings.shared, version)
}

/// What of the stream of the lanes' records does not fit; pure, as [`findings`].
pub(crate) fn lane_record_findings(config: &StreamConfig) -> Vec<StreamFinding> {
    fit::records::lane_record_findings(config, LANE_RECORD_SUBJECTS)
}

/// The filters under which the events are stored beside their own subjects, where the stream transforms those.
#[must_use]
pub(crate) fn stored_as(config: &StreamConfig, settings: &StreamSettings) -> Vec<String> {
    transform::stored_as(config, &settings.subjects)
}

/// Looks whether the stream of the lanes' records exists, and how it fits.
///
/// `num_replicas` counts for a new one: as many as the events' stream has.
///
/// # Errors
/// [`StreamError`].
pub async fn plan_lane_records(
    client: &Admin,
    num_replicas: usize,
) -> Result<StreamPlan, StreamError> {
    Ok(match find(client, LANE_RECORD_STREAM).await? {
        Some(info) => {
            let mut findings = lane_record_findings(&info.config);
            findings.extend(standing::findings(&info));
            edits::together(findings.iter_mut().filter_map(|it| it.command.as_mut()));
            StreamPlan::Exists {
                info: Box::new(info),
                findings,
            }
        }
        None => StreamPlan::Create(Box::new(lane_records_config(num_replicas))),
    })
}

/// What the account has in JetStream, and what it may have.
///
/// # Errors
/// [`StreamError`].
pub async fn account(client: &Admin) -> Result<Account, StreamError> {
    let payload = request(
        client,
        format!("{}.INFO", client.api_prefix()),
        Bytes::new(),
    )
    .await?;
    Account::parse(&payload).map_err(|source| StreamError::Account { source })
}

/// Creates a planned stream. Creating the same one twice is no error.
///
/// # Errors
/// [`StreamError`]; subjects that another stream has are an API error that says so.
pub async fn create(client: &Admin, config: &Config) -> Result<StreamInfo, StreamError> {
    let body = serde_json::to_vec(config).expect("a configuration always serializes");
    let payload = call(client, "CREATE", &config.name, body.into()).await?;
    StreamInfo::parse(&payload).map_err(answer_error("creation of", &config.name))
}

/// Deletes a stream with all its messages; `false` where there was none.
///
/// # Errors
/// [`StreamError`].
pub async fn delete(client: &Admin, name: &str) -> Result<bool, StreamError> {
    StreamApi::new(client.api_prefix(), name)?;
    let payload = call(client, "DELETE", name, Bytes::new()).await?;
    match refuse(&payload) {
        Ok(()) => Ok(true),
        Err(AnswerError::Api(error)) if error.is_stream_not_found() => Ok(false),
        Err(source) => Err(answer_error("deletion of", name)(source)),
    }
}

/// Removes the record of a lane and the dead letters that it keeps in mind, which outlive the stream that they speak of: with the
/// stream gone, a record would only halt the next lane of that name, and the letters would be open in it.
///
/// # Errors
/// [`StreamError`].
pub async fn delete_lane_record(
    client: &Admin,
    stream: &str,
    slot: &str,
) -> Result<(), StreamError> {
    for subject in [
        lane_letters_subject(stream, slot),
        lane_record_subject(stream, slot),
    ] {
        let body = serde_json::json!({ "filter": subject }).to_string();
        let payload = call(client, "PURGE", LANE_RECORD_STREAM, body.into()).await?;
        match refuse(&payload) {
            Err(AnswerError::Api(error)) if error.is_stream_not_found() => return Ok(()),
            answer => answer.map_err(answer_error("the purge of", LANE_RECORD_STREAM))?,
        }
    }
    Ok(())
}

/// Has the server overwrite the message at `sequence` and remove it; one that is gone already is no error.
///
/// # Errors
/// [`StreamError`].
pub async fn erase_message(client: &Admin, name: &str, sequence: u64) -> Result<(), StreamError> {
    // Without no_erase it overwrites.
    let body = serde_json::json!({ "seq": sequence }).to_string();
    let payload = call(client, "MSG.DELETE", name, body.clone().into()).await?;
    let Err(error) = refuse(&payload) else {
        return Ok(());
    };
    let found = call(client, "MSG.GET", name, body.into()).await?;
    match StoredMessage::parse(&found) {
        Ok(None) => Ok(()),
        _ => Err(answer_error("the removal of a message of", name)(error)),
    }
}

/// The stream, where it exists.
///
/// # Errors
/// [`StreamError`].
pub async fn find(client: &Admin, name: &str) -> Result<Option<StreamInfo>, StreamError> {
    StreamApi::new(client.api_prefix(), name)?;
    let payload = call(client, "INFO", name, Bytes::new()).await?;
    match StreamInfo::parse(&payload) {
        Ok(info) => Ok(Some(info)),
        Err(AnswerError::Api(error)) if error.is_stream_not_found() => Ok(None),
        Err(source) => Err(answer_error("a look at", name)(source)),
    }
}

fn answer_error(
    action: &'static str,
    stream: &str,
) -> impl FnOnce(AnswerError) -> StreamError + use<> {
    let stream = stream.to_owned();
    move |source| StreamError::Answer {
        action,
        stream,
        source,
    }
}

async fn call(
    client: &Admin,
    action: &str,
    stream: &str,
    body: Bytes,
) -> Result<Bytes, StreamError> {
    let subject = format!("{}.STREAM.{action}.{stream}", client.api_prefix());
    request(client, subject, body).await
}

async fn request(client: &Admin, subject: String, body: Bytes) -> Result<Bytes, StreamError> {
    match client.request(subject.clone(), body).await {
        Ok(answer) => Ok(answer.payload),
        Err(none @ AdminRequestError::NoJetStream { .. }) => Err(StreamError::NoJetStream(none)),
        Err(AdminRequestError::Denied(denial)) => Err(StreamError::Denied(denial)),
        Err(source) => Err(StreamError::Request { subject, source }),
    }
}

/// The configuration of a new events' stream.
fn events_config(settings: &StreamSettings, version: ServerVersion) -> Config {
    Config {
        name: settings.name.clone(),
        subjects: settings.subjects_to_create.clone(),
        description: Some("Events of a transactional outbox, published by walrelay".to_owned()),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        num_replicas: settings.num_replicas,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        // An older server would ignore the flags, and say so only in a stream that lacks them.
        allow_atomic_publish: version.at_least(2, 12),
        allow_batch_publish: version.at_least(2, 14),
        ..Config::default()
    }
}

/// The configuration of a new stream for the lanes' records.
pub(crate) fn lane_records_config(num_replicas: usize) -> Config {
    Config {
        name: LANE_RECORD_STREAM.to_owned(),
        subjects: vec![LANE_RECORD_SUBJECTS.to_owned()],
        description: Some("The last record of each walrelay lane; do not purge".to_owned()),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        num_replicas,
        duplicate_window: DUPLICATE_WINDOW_MIN,
        ..Config::default()
    }
}

/// The subject of a lane's record: `walrelay.lane.<stream>.<slot>`.
#[must_use]
pub fn lane_record_subject(stream: &str, slot: &str) -> String {
    format!("walrelay.lane.{stream}.{slot}")
}

/// The subject of a lane's lease, in the same stream: `walrelay.lane.<stream>.<slot>.lease`.
#[must_use]
pub(crate) fn lane_lease_subject(stream: &str, slot: &str) -> String {
    format!("{}.lease", lane_record_subject(stream, slot))
}

/// The subject of how far a lane's published rows are marked or deleted, in the same stream:
/// `walrelay.lane.<stream>.<slot>.settled`.
#[must_use]
pub(crate) fn lane_settled_subject(stream: &str, slot: &str) -> String {
    format!("{}.settled", lane_record_subject(stream, slot))
}

/// The subject of a lane's open dead letters as its relay last saw them, in the same stream:
/// `walrelay.lane.<stream>.<slot>.letters`.
#[must_use]
pub(crate) fn lane_letters_subject(stream: &str, slot: &str) -> String {
    format!("{}.letters", lane_record_subject(stream, slot))
}

#[cfg(test)]
mod tests;
