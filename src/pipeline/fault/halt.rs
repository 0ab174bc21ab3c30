//! Why a relay stands still until a person has looked, and what that person can do.
//!
//! Each halt has a reason and a remedy: a log has them as one line, the lane record apart.

use super::Fault;
use super::blocks::Blocks;
use crate::pipeline::dead_letter::RejectedRow;
use crate::pipeline::misnamed::{Misnamed, OtherId};
use crate::pipeline::position::{Lane, Position};
use crate::pipeline::tables::Renamed;
use postgres_types::PgLsn;

mod reason;
mod remedy;

pub use remedy::of_share;

/// Why the relay stands still until a person has looked. Its text says what is known, and then what goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{}", self.reason(), self.joint(), self.remedy())]
pub enum Halt {
    /// The record of this stream and slot is of another cluster or database.
    OtherLane {
        /// Whose record it is.
        recorded: Lane,
        /// Who asks.
        found: Lane,
    },
    /// The last message of a stream of our own is of another slot.
    ForeignEnd {
        /// The stream.
        stream: String,
        /// Sequence of the message.
        sequence: u64,
        /// Its slot.
        slot: String,
    },
    /// The messages that tell how far the lane came were removed, and the record is older.
    EndRemoved {
        /// The stream.
        stream: String,
        /// First removed message, from the end.
        sequence: u64,
        /// The stream's last sequence.
        last_sequence: u64,
        /// Sequence that the record reaches; 0 where it names no message, or there is none.
        recorded: u64,
    },
    /// `walrelay move` has taken the lane to another stream.
    Moved {
        /// The stream that it has left.
        stream: String,
        /// The one that it lives in.
        to: String,
        /// That one's servers, where they are others.
        nats: Option<String>,
    },
    /// Messages with this slot's positions stand where the relay did not put them, further on than what it did put.
    EndCopied {
        /// The stream.
        stream: String,
        /// Sequence of the newest.
        sequence: u64,
    },
    /// An acknowledged message's place is taken by somebody else's, and events of this lane stand behind it.
    Replaced {
        /// The stream.
        stream: String,
        /// The message.
        sequence: u64,
    },
    /// Too many messages of no lane at the end of the stream.
    EndUnknown {
        /// The stream.
        stream: String,
        /// How many were read.
        scanned: u64,
    },
    /// The slot was confirmed further than this relay ever asked.
    ConfirmedUnexplained {
        /// The slot.
        slot: String,
        /// Its confirmed LSN.
        confirmed_lsn: PgLsn,
        /// The highest that this relay has recorded; 0/0 where `walrelay setup` made the slot anew since, none without a
        /// record.
        recorded_lsn: Option<PgLsn>,
        /// Where the server left the record's timeline; none while it is on it.
        switched_at: Option<PgLsn>,
    },
    /// Nothing tells what became of the events that the slot has passed: they may be in another stream.
    NoBeginning {
        /// The slot.
        slot: String,
        /// The stream, which has none of its events.
        stream: String,
        /// The servers that it is at.
        nats: String,
        /// Its confirmed LSN.
        confirmed_lsn: PgLsn,
        /// Where it began.
        begins_lsn: PgLsn,
    },
    /// The server's WAL ends before what was published.
    ServerBehind {
        /// End of the server's WAL.
        server_lsn: PgLsn,
        /// The last published position.
        position: Position,
    },
    /// The row at the stream's last position is another one, or none.
    OverlapMiss {
        /// The stream's last position.
        position: Position,
        /// The event's id in the stream.
        expected: String,
        /// What the WAL has there.
        found: String,
        /// Tables whose rows counted there, and which the configuration names no more.
        unnamed: Vec<String>,
    },
    /// A row that cannot be published, and whose dead letter must wait for a person.
    Rejected {
        /// The row.
        row: Box<RejectedRow>,
        /// Why it has no dead letter.
        blocks: Blocks,
    },
    /// The publication did not exist where the WAL is read.
    PublicationMissing {
        /// What the server says.
        what: String,
        /// What goes on.
        mend: String,
    },
    /// The configuration gives a table of the lane another name than its messages tell.
    Renamed(Renamed),
    /// The configuration gives a table of the lane other ids than its messages tell.
    OtherId(OtherId),
    /// The slot can no longer be read, or is gone.
    Slot {
        /// What is wrong.
        what: String,
        /// The command that mends it.
        mend: String,
    },
    /// The same refusal again and again.
    Stuck(Fault),
}

impl From<Misnamed> for Halt {
    fn from(misnamed: Misnamed) -> Self {
        match misnamed {
            Misnamed::Table(renamed) => Halt::Renamed(renamed),
            Misnamed::Id(other) => Halt::OtherId(other),
        }
    }
}

impl Halt {
    /// What kind it is, in a word: for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Halt::OtherLane { .. } => "other-lane",
            Halt::ForeignEnd { .. } => "foreign-end",
            Halt::EndRemoved { .. } => "end-removed",
            Halt::Moved { .. } => "moved",
            Halt::EndCopied { .. } => "end-copied",
            Halt::Replaced { .. } => "replaced",
            Halt::EndUnknown { .. } => "end-unknown",
            Halt::ConfirmedUnexplained { .. } => "confirmed-unexplained",
            Halt::NoBeginning { .. } => "no-beginning",
            Halt::ServerBehind { .. } => "server-behind",
            Halt::OverlapMiss { .. } => "overlap-miss",
            Halt::Rejected { .. } => "rejected",
            Halt::PublicationMissing { .. } => "publication-missing",
            Halt::Renamed(_) => "renamed",
            Halt::OtherId(_) => "other-id",
            Halt::Slot { .. } => "slot",
            Halt::Stuck(_) => "stuck",
        }
    }

    /// Between reason and remedy in one line: a remedy of Postgres' own begins no sentence.
    fn joint(&self) -> &'static str {
        match self {
            Halt::PublicationMissing { .. } | Halt::Slot { .. } => ": ",
            _ => ". ",
        }
    }

    /// All of it, for the lane of that share.
    #[must_use]
    pub fn told(&self, share: Option<u32>) -> String {
        let reason = match self {
            // What has happened is no command to type.
            Halt::Moved { .. } => self.reason(),
            _ => of_share(&self.reason(), share),
        };
        format!("{reason}{}{}", self.joint(), self.remedy_of(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_is_one_line_of_reason_and_remedy_and_names_no_lsn_that_nobody_wrote() {
        let halts = |recorded_lsn: u64, recorded: u64| {
            let unexplained = Halt::ConfirmedUnexplained {
                slot: "s".to_owned(),
                confirmed_lsn: 0x10.into(),
                recorded_lsn: Some(recorded_lsn.into()),
                switched_at: None,
            };
            let removed = Halt::EndRemoved {
                stream: "S".to_owned(),
                sequence: 7,
                last_sequence: 9,
                recorded,
            };
            [unexplained.to_string(), removed.to_string()]
        };
        let [unexplained, removed] = halts(0, 0);
        assert!(!unexplained.contains("0/0") && unexplained.contains("made it anew"));
        assert!(unexplained.ends_with("publishes what is missing"));
        assert!(removed.contains("no lane record names a message: how far"));
        let [unexplained, removed] = halts(0x8, 5);
        assert!(unexplained.contains("never confirmed beyond 0/8. Somebody"));
        assert!(removed.contains("reaches only to 5"));
    }
}
