//! What the broker answers to a published message.
//!
//! In: the payload of an answer. Out: its fields; nothing is judged here.

use serde::Deserialize;

/// A publish acknowledgement, a fast ingest flow acknowledgement, or an error.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) stream: Option<String>,
    pub(super) seq: Option<u64>,
    #[serde(default)]
    pub(super) duplicate: bool,
    pub(super) batch: Option<String>,
    pub(super) count: Option<u64>,
    pub(super) error: Option<AnswerError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AnswerError {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u16,
    #[serde(default)]
    pub(super) description: String,
}

pub(super) fn excerpt(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.len().min(200)]).into_owned()
}
