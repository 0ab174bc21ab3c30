//! The subjects that a stream has messages on.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{AnswerError, refuse};

/// Subjects that a stream has messages on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    /// As many as the server tells in one answer.
    pub(crate) names: Vec<String>,
    /// How many there are.
    pub(crate) total: usize,
}

impl Subjects {
    /// Reads the answer to STREAM.INFO where subjects were asked for.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, AnswerError> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(default)]
            total: usize,
            state: State,
        }
        // Absent where none matches.
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            subjects: BTreeMap<String, u64>,
        }
        refuse(payload)?;
        let Info { total, state } = serde_json::from_slice(payload)?;
        let names = state.subjects.into_keys().collect();
        Ok(Subjects { names, total })
    }
}
