//! Why a relay stands still until a person has looked, and what that person can do.
//!
//! Each halt has a reason and a remedy: a log has them as one line, the lane record apart.

use super::blocks::Blocks;
use super::{Fault, STUCK_EPOCHS};
use crate::pipeline::dead_letter::RejectedRow;
use crate::pipeline::misnamed::{Misnamed, OtherId};
use crate::pipeline::position::{Lane, Position};
use crate::pipeline::reshard::{PLACEHOLDER, common_stream};
use crate::pipeline::tables::Renamed;
use postgres_types::PgLsn;

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
    /// What is known: whole sentences, without the last full stop.
    pub fn reason(&self) -> String {
        match self {
            Halt::OtherLane { recorded, found } => format!(
                "the lane record of this stream and slot belongs to {recorded}, but this is {found}. Another database stands \
                 behind the same names: a restored dump, a new cluster (pg_upgrade, blue/green), or a second service. Nothing \
                 was published or confirmed"
            ),
            Halt::Moved { stream, to, nats } => {
                let at = nats
                    .as_ref()
                    .map_or_else(String::new, |nats| format!(" at {nats}"));
                format!(
                    "the lane has left stream {stream}: walrelay move has taken it to stream {to}{at}"
                )
            }
            Halt::ForeignEnd { .. }
            | Halt::EndRemoved { .. }
            | Halt::EndCopied { .. }
            | Halt::Replaced { .. }
            | Halt::EndUnknown { .. } => self.of_stream(),
            Halt::ConfirmedUnexplained {
                slot,
                confirmed_lsn,
                recorded_lsn,
                switched_at,
            } => unexplained(slot, *confirmed_lsn, *recorded_lsn, *switched_at),
            Halt::NoBeginning {
                slot,
                stream,
                confirmed_lsn,
                begins_lsn,
                ..
            } => {
                // What is written down where nobody knew it any more.
                let began = match u64::from(*begins_lsn) {
                    0 => "began where nobody knows".to_owned(),
                    _ => format!("began at {begins_lsn}"),
                };
                format!(
                    "slot {slot} {began} and is confirmed up to {confirmed_lsn}, and stream {stream} has no event of it \
                     and no lane record: what the slot has passed is in another stream or at another NATS, or it was lost here. \
                     Nothing was published or confirmed"
                )
            }
            Halt::ServerBehind {
                server_lsn,
                position,
            } => format!(
                "the server's WAL ends at {server_lsn}, but {position} is already in the stream. The database was restored to \
                 an earlier state, or a standby without these transactions was promoted"
            ),
            Halt::OverlapMiss {
                position,
                expected,
                found,
                unnamed,
            } if !unnamed.is_empty() => format!(
                "at {position} the stream has event {expected}, the WAL {found}: the configuration no longer names {}, whose rows \
                 were published and are not confirmed yet. Nothing was published or confirmed",
                unnamed.join(" and ")
            ),
            Halt::OverlapMiss {
                position,
                expected,
                found,
                ..
            } => format!(
                "the WAL does not continue what is in the stream: at {position} the stream has event {expected}, the WAL \
                 {found}. The database was restored to an earlier state and its LSNs were used again, or another database \
                 stands behind the name"
            ),
            Halt::Rejected { row, blocks } => format!(
                "the row at {} (event {}) cannot be published: {}{}",
                row.position,
                row.event_id,
                row.reject,
                blocks.reason()
            ),
            Halt::PublicationMissing { what, .. } | Halt::Slot { what, .. } => what.clone(),
            Halt::Renamed(renamed) => renamed.reason(),
            Halt::OtherId(other) => other.reason(),
            Halt::Stuck(fault) => format!(
                "{STUCK_EPOCHS} attempts in a row ended at the same place without progress: {fault}"
            ),
        }
    }

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

    /// What is known of the stream's end.
    fn of_stream(&self) -> String {
        match self {
            Halt::ForeignEnd {
                stream,
                sequence,
                slot,
            } => format!(
                "message {sequence} of stream {stream} was written by the relay of slot {slot:?}, and the stream is meant to \
                 be of one slot alone"
            ),
            Halt::EndRemoved {
                stream,
                sequence,
                last_sequence,
                recorded,
            } => {
                let known = match recorded {
                    0 => "no lane record names a message".to_owned(),
                    recorded => format!("the lane record reaches only to {recorded}"),
                };
                format!(
                    "message {sequence} of stream {stream} (last sequence {last_sequence}) was removed, and {known}: how far \
                     the lane came cannot be known"
                )
            }
            Halt::EndCopied { stream, sequence } => format!(
                "message {sequence} of stream {stream} has a position of this slot but does not stand where a relay put it: \
                 it was copied here, or the stream was made from another one (a mirror, a source)"
            ),
            Halt::Replaced { stream, sequence } => format!(
                "message {sequence} of stream {stream} was acknowledged as an event of this lane and is somebody else's now: \
                 the broker lost acknowledged messages, and others took their places before this relay could see it"
            ),
            Halt::EndUnknown { stream, scanned } => format!(
                "the last {scanned} messages of stream {stream} were not written by a relay, and no lane record tells how far \
                 this one came"
            ),
            other => other.reason(),
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

    /// The way on, for the lane of that share: one configuration names the streams of all.
    #[must_use]
    pub fn remedy_of(&self, share: Option<u32>) -> String {
        let Halt::Moved { to, nats, .. } = self else {
            return of_share(&self.remedy(), share);
        };
        let common = share.and_then(|number| Some((number, common_stream(to, number)?)));
        let Some((number, common)) = common else {
            return self.remedy();
        };
        let [key, flag] = match nats {
            None => [String::new(), String::new()],
            Some(nats) => [
                format!(" and `nats.url = \"{nats}\"`"),
                format!(" --to-nats {nats}"),
            ],
        };
        let of_others = common.replace(PLACEHOLDER, "K");
        format!(
            "Set `nats.stream = \"{common}\"`{key} in the configuration once each other share K has moved too, by \
             `walrelay move --share K --to-stream {of_others}{flag}` with this one; until then, a relay with `relay.share = {number}` \
             needs it. Nothing is missing: what this stream lacks is there"
        )
    }

    /// The way on, as a person can type it; [`Self::remedy_of`] where the lane is a share's.
    pub fn remedy(&self) -> String {
        let text = match self {
            Halt::OtherLane { .. } => {
                "If this database continues the old one, run `walrelay adopt`; otherwise give this one another slot or stream"
            }
            Halt::ForeignEnd { .. } => {
                "Give each relay a stream of its own (`nats.stream`), or both `nats.shared = true`; then `walrelay setup` says what \
                 the stream lacks"
            }
            Halt::Moved { to, nats, .. } => {
                let nats = nats
                    .as_ref()
                    .map_or_else(String::new, |nats| format!(" and `nats.url = \"{nats}\"`"));
                return format!(
                    "Set `nats.stream = \"{to}\"`{nats} in the configuration. Nothing is missing: what this stream lacks is there"
                );
            }
            Halt::EndRemoved { .. } => {
                "`walrelay verify` compares table and stream. `walrelay adopt` goes on behind the last event that both slot and \
                 stream have: rows behind it that the slot still has are published, also where their messages were removed. Where \
                 nobody wants those again, `walrelay adopt --position LSN:ORDINAL` goes on behind that position"
            }
            Halt::EndCopied { .. } => {
                "`walrelay adopt` compares such messages with the slot by position and id, and goes on behind the last one \
                 that both have; `walrelay verify` then names what is missing"
            }
            Halt::Replaced { .. } => {
                "`walrelay verify` names the events that are missing; `walrelay adopt` goes on behind them, and `walrelay \
                 backfill` publishes them"
            }
            Halt::EndUnknown { .. } => {
                "`walrelay adopt` compares the stream with the slot, further back, and goes on behind the last row that both have"
            }
            Halt::ConfirmedUnexplained { .. } => {
                "`walrelay verify` compares table and stream; `walrelay adopt` goes on from the slot as it is, and `walrelay \
                 backfill` then publishes what is missing"
            }
            Halt::NoBeginning { stream, nats, .. } => {
                return format!(
                    "Where its events are in another stream, `walrelay move --to-stream {stream} --to-nats {nats}`, with the \
                     configuration of that one, brings them here. To begin here all the same, `walrelay adopt` goes on from the \
                     slot as it is; `walrelay verify` then names the rows that this stream lacks, and `walrelay backfill` \
                     publishes them"
                );
            }
            Halt::ServerBehind { .. } => {
                "`walrelay verify` shows what the stream has that the table lacks; `walrelay adopt` goes on with this database"
            }
            Halt::OverlapMiss { unnamed, .. } if !unnamed.is_empty() => {
                let entries = unnamed.iter().map(|table| format!("`name = {table:?}`"));
                return format!(
                    "Give {} an entry in [[source.tables]] again, with {} and the mapping that it had, until its rows are confirmed: \
                     `walrelay position` tells how far the slot is",
                    unnamed.join(" and "),
                    entries.collect::<Vec<_>>().join(" and ")
                );
            }
            Halt::OverlapMiss { .. } => {
                "`walrelay verify` shows the differences; `walrelay adopt` goes on with this database"
            }
            Halt::Rejected { row, blocks } => return blocks.remedy(row.position),
            Halt::Renamed(renamed) => return renamed.remedy(),
            Halt::OtherId(other) => return other.remedy(),
            Halt::PublicationMissing { mend, .. } | Halt::Slot { mend, .. } => mend,
            Halt::Stuck(_) => "Mend what is named there and start the relay again",
        };
        text.to_owned()
    }
}

/// A text whose commands are about the lane of that share.
#[must_use]
pub fn of_share(text: &str, share: Option<u32>) -> String {
    let about_one_lane = [
        "walrelay adopt",
        "walrelay move",
        "walrelay dead-letters skip",
    ];
    let named = |text: String, command: &str| match share {
        Some(number) => text.replace(command, &format!("{command} --share {number}")),
        None => text,
    };
    about_one_lane.into_iter().fold(text.to_owned(), named)
}

/// Why nobody knows whether what the slot has passed was published.
fn unexplained(
    slot: &str,
    confirmed_lsn: PgLsn,
    recorded_lsn: Option<PgLsn>,
    switched_at: Option<PgLsn>,
) -> String {
    let unpublished = "events below that LSN may never have been published";
    let somebody = "Somebody advanced, consumed or recreated the slot";
    match (recorded_lsn, switched_at) {
        (Some(lsn), _) if u64::from(lsn) == 0 => format!(
            "slot {slot} begins at {confirmed_lsn}: `walrelay setup` made it anew in the place of one that this relay had read \
             from, and it does not hold what committed before: {unpublished}"
        ),
        (Some(lsn), Some(at)) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has confirmed up to {lsn} on another timeline, \
             which this server left at {at} (a promotion or a recovery). {somebody}, and {unpublished}"
        ),
        (Some(lsn), None) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has never confirmed beyond {lsn}. {somebody}, and \
             {unpublished}"
        ),
        (None, _) => format!(
            "slot {slot} is confirmed up to {confirmed_lsn}, but this relay has no record of it. {somebody}, and {unpublished}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_lane_of_a_share_has_gone_is_named_as_all_shares_name_it() {
        let moved = |to: &str| Halt::Moved {
            stream: "A_1".to_owned(),
            to: to.to_owned(),
            nats: None,
        };
        let told = moved("B_1").told(Some(1));
        assert!(told.contains("`nats.stream = \"B_{share}\"`"), "{told}");
        assert!(told.contains("`walrelay move --share K --to-stream B_K`"));
        assert!(told.contains("walrelay move has taken it to stream B_1"));
        for (to, share) in [("B_1", None), ("B", Some(1))] {
            let told = moved(to).told(share);
            assert!(told.contains(&format!("`nats.stream = \"{to}\"`")));
        }
    }

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
