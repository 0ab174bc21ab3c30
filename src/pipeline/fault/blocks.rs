//! Why a row that cannot be published halts the relay, and what a person can do to pass it.
//!
//! In: what its dead letter would lack, or that none is wanted. Out: a halt's further reason, and its remedy.

use crate::pipeline::limit::SizeLimit;
use crate::pipeline::position::Position;

/// Why a rejected row halts the relay instead of becoming a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocks {
    /// `on_reject = "halt"`.
    Configured,
    /// The dead letter would not hold the whole row, and the table may not either.
    Loss {
        /// What is known of the table's row.
        why: String,
        /// What the dead letter has to fit into.
        limit: SizeLimit,
    },
    /// The same of a row with bytes that are no text, which no dead letter can hold.
    NoText {
        /// What is known of the table's row.
        why: String,
    },
    /// The smallest dead letter does not fit.
    NoRoom {
        /// Its size with headers, in bytes.
        bytes: u64,
        /// What it has to fit into.
        limit: SizeLimit,
    },
}

impl Blocks {
    pub(super) fn reason(&self) -> String {
        match self {
            Blocks::Configured => {
                ". It blocks the lane as configured by relay.on_reject = \"halt\"".to_owned()
            }
            Blocks::Loss { why, limit } => format!(
                ". Its dead letter would not hold all of it either ({limit}), and {why}: what does not fit would be lost"
            ),
            Blocks::NoText { why } => format!(
                ". Its dead letter would not hold all of it either (JSON has no such bytes), and {why}: what is no text would be lost"
            ),
            Blocks::NoRoom { bytes, limit } => format!(
                ". Not even the smallest dead letter of it fits: {bytes} bytes are more than {limit}"
            ),
        }
    }

    pub(super) fn remedy(&self, position: Position) -> String {
        match self {
            Blocks::Configured => format!("`walrelay dead-letters skip {position}` passes it"),
            Blocks::Loss { .. } => format!(
                "Raise that limit and start again, or `walrelay dead-letters skip {position}` passes it with as much as fits"
            ),
            Blocks::NoText { .. } => {
                format!("`walrelay dead-letters skip {position}` passes it with what is text of it")
            }
            Blocks::NoRoom { bytes, .. } => {
                format!(
                    "Raise that limit to {bytes} or more, which takes this dead letter (walrelay doctor says what takes the rows themselves), \
                     and start again"
                )
            }
        }
    }
}
