//! The lane record: what must be known when the stream's lane end no longer tells it.
//!
//! It is written before every confirmation, on a control subject outside the events' stream, so that neither age nor
//! limits nor a purge of that stream takes it away. It trails the stream by up to a confirmation interval, hence it
//! never overrules a lane end that is there; it explains the slot's confirmed LSN and stands in for a removed lane end.

use super::carrier::Carrier;
use super::fault::Halt;
use super::history::{History, Switch};
use super::position::{Lane, Position};
use super::publications::PublicationName;
use super::tables::Period;
use super::{text, text_option};
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

/// What is known of a lane, as JSON on its control subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// Form of this record; 1.
    pub version: u32,
    /// The version of walrelay whose relay wrote this; none in the record of an older one. No start decides by it.
    #[serde(default)]
    pub walrelay: Option<String>,
    /// The cluster that the slot belongs to.
    pub system_identifier: u64,
    /// Its timeline when the record was written.
    pub timeline: u32,
    /// The timelines before that one; none in the record of an older walrelay.
    #[serde(default)]
    pub switches: Option<Vec<Switch>>,
    /// The database.
    pub database: String,
    /// The slot.
    pub slot: String,
    /// The stream.
    pub stream: String,
    /// When the stream was created, as the server writes it: a recreated stream is another one.
    pub created: String,
    /// Number of the epoch that wrote this.
    pub epoch: u64,
    /// Stream sequence of the last acknowledged message of the lane, or the stream's last when the lane was adopted.
    pub sequence: u64,
    /// Position of that message; none while the lane has published nothing.
    #[serde(with = "text_option")]
    pub position: Option<Position>,
    /// The event's id in that message.
    pub event_id: Option<String>,
    /// The further table that the event is of; empty for the lane's own; none where the lane has no other, or nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// What the slot is about to be told: its confirmed LSN is never above.
    #[serde(with = "text")]
    pub confirmed_lsn: PgLsn,
    /// A relay may have published behind this record: in a shared stream, where other writers move the last sequence,
    /// it stands in for a removed lane end only when the relay has said that it has stopped.
    #[serde(default)]
    pub active: bool,
    /// Messages up to this sequence are of a lane before an adoption and do not count.
    #[serde(default)]
    pub adopted_sequence: u64,
    /// Messages up to this sequence that have an id and no position are the lane's too: Debezium published them.
    #[serde(default)]
    pub taken_over_sequence: u64,
    /// Rows behind the position that a person has allowed to pass as dead letters, see `walrelay dead-letters skip`.
    #[serde(default, with = "text_list")]
    pub skips: Vec<Position>,
    /// The message that somebody else's has replaced, when a relay halted for that: each start does, until an adoption.
    #[serde(default)]
    pub replaced: Option<u64>,
    /// Since this record, the stream was seen to acknowledge what it does not keep: see `lane_end::Doubt`.
    #[serde(default)]
    pub doubted: bool,
    /// What carried the table's rows into the WAL when somebody last looked; none where nobody has.
    #[serde(default)]
    pub carrier: Option<Carrier>,
    /// Which table was the outbox, where in the WAL; none where nobody has looked.
    #[serde(default)]
    pub tables: Vec<Period>,
    /// Under which names the publication is read, in the order of the WAL; none where nobody has looked.
    #[serde(default)]
    pub publications: Vec<PublicationName>,
    /// Up to here the lane is across the places in the WAL where the number of shares changed: all in front of the last one is
    /// acknowledged.
    #[serde(default, with = "text_option")]
    pub switched_lsn: Option<PgLsn>,
    /// The share of this lane is no more, and all that it had is published: a new slot of its name begins a new lane.
    #[serde(default)]
    pub retired: bool,
    /// Why a relay halted since this record, for those who look later; none once an epoch has begun again. No start decides by
    /// it.
    #[serde(default)]
    pub halted: Option<HaltNote>,
    /// The lane is on its way to another stream, or has gone there: no relay publishes by this record.
    #[serde(default)]
    pub moved: Option<Moved>,
    /// Where `walrelay move` has brought it from on another NATS, the first one first, and what shares had there that were no more by
    /// then: nobody has deleted it, for all that is known here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
}

/// A stream at another NATS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Left {
    /// The stream.
    pub stream: String,
    /// The servers, without credentials.
    pub nats: String,
    /// The slot of the share that was no more and had this stream: no copy of it is here. None where the lane's own was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// What `walrelay move` has left in the record of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moved {
    /// The lane lives there now.
    To {
        /// The stream.
        stream: String,
        /// The servers, without credentials; none where they are the same.
        nats: Option<String>,
    },
    /// The lane is being copied here, and not yet here.
    From {
        /// The stream that it lives in.
        stream: String,
        /// When that was created.
        created: String,
        /// The servers that have it, without credentials; none where they are the same, or in the record of an older walrelay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nats: Option<String>,
        /// Whether every message has been copied: what stands behind them is not one.
        #[serde(default)]
        is_whole: bool,
    },
}

/// Where a stream is that another NATS has.
#[must_use]
pub fn at(nats: Option<&String>) -> String {
    nats.map_or_else(String::new, |nats| format!(" at {nats}"))
}

/// Those of all lanes' records whose streams tell of their lanes: of a lane that has moved, the stream that it lives in; of one that
/// is on its way, the one that it leaves. Of one that has gone to another NATS this one has no more than that.
#[must_use]
pub fn telling(records: Vec<LaneRecord>) -> Vec<LaneRecord> {
    let on_their_way: Vec<(String, String)> = (records.iter())
        .filter(|record| matches!(record.moved, Some(Moved::From { .. })))
        .map(|record| (record.slot.clone(), record.stream.clone()))
        .collect();
    let all: Vec<(String, String)> = (records.iter())
        .map(|record| (record.slot.clone(), record.stream.clone()))
        .collect();
    let tells = |record: &LaneRecord| match &record.moved {
        None => true,
        Some(Moved::From { .. }) => false,
        Some(Moved::To { nats: Some(_), .. }) => true,
        Some(Moved::To { stream, nats: None }) => {
            let there = (record.slot.clone(), stream.clone());
            !all.contains(&there) || on_their_way.contains(&there)
        }
    };
    records.into_iter().filter(tells).collect()
}

/// A halt, as a person is told of it when the process is gone: in the lane record, or in its place where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltNote {
    /// When, as in RFC 3339.
    pub at: String,
    /// What is known; at most [`HaltNote::TEXT_BYTES_MAX`].
    pub reason: String,
    /// What goes on; as bounded.
    pub remedy: String,
}

impl HaltNote {
    /// Longest text that is kept: a server's own words may be in it.
    pub const TEXT_BYTES_MAX: usize = 2_000;

    /// What to keep of `halt`, which happened at that time.
    pub fn of(halt: &Halt, at: String) -> Self {
        HaltNote {
            at,
            reason: shortened(halt.reason()),
            remedy: shortened(halt.remedy()),
        }
    }

    /// Whether both are of the same halt, whenever that was.
    pub fn is_same(&self, other: &HaltNote) -> bool {
        self.reason == other.reason
    }
}

/// What stands in the place of a lane record that there is not.
#[derive(Serialize, Deserialize)]
struct WithoutRecord {
    version: u32,
    halted_without_record: HaltNote,
}

/// What stands in the lane record's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordOrNote {
    /// The lane record.
    Record(Box<LaneRecord>),
    /// Why a relay halted, where there is no record: that there is none is what the next start decides by.
    Note(HaltNote),
}

impl RecordOrNote {
    /// As stored.
    pub fn to_json(&self) -> Vec<u8> {
        match self {
            RecordOrNote::Record(record) => record.to_json(),
            RecordOrNote::Note(note) => serde_json::to_vec(&WithoutRecord {
                version: LaneRecord::VERSION,
                halted_without_record: note.clone(),
            })
            .expect("numbers and strings always have a JSON form"),
        }
    }

    /// Reads what stands in the record's place.
    ///
    /// # Errors
    /// Not JSON of a record or a note, or of a later form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        match serde_json::from_slice::<WithoutRecord>(bytes) {
            Ok(note) if note.version == LaneRecord::VERSION => {
                Ok(RecordOrNote::Note(note.halted_without_record))
            }
            Ok(note) => Err(RecordError::Version(note.version)),
            Err(_) => {
                LaneRecord::from_json(bytes).map(|record| RecordOrNote::Record(Box::new(record)))
            }
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > HaltNote::TEXT_BYTES_MAX {
        let room = HaltNote::TEXT_BYTES_MAX - "…".len();
        let end = (0..=room).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

impl LaneRecord {
    /// Form that this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Of a lane that has published nothing to this stream, and whose slot was never confirmed.
    pub fn new(lane: &Lane, history: &History, stream: &str, created: &str) -> Self {
        LaneRecord {
            version: LaneRecord::VERSION,
            walrelay: Some(env!("CARGO_PKG_VERSION").to_owned()),
            system_identifier: lane.system_identifier,
            timeline: history.timeline(),
            switches: history.switches().map(<[_]>::to_vec),
            database: lane.database.clone(),
            slot: lane.slot.clone(),
            stream: stream.to_owned(),
            created: created.to_owned(),
            epoch: 0,
            sequence: 0,
            position: None,
            event_id: None,
            table: None,
            confirmed_lsn: 0.into(),
            active: false,
            adopted_sequence: 0,
            taken_over_sequence: 0,
            skips: Vec::new(),
            replaced: None,
            doubted: false,
            carrier: None,
            tables: Vec::new(),
            publications: Vec::new(),
            switched_lsn: None,
            retired: false,
            halted: None,
            moved: None,
            left: Vec::new(),
        }
    }

    /// Whether the record is of this lane.
    pub(crate) fn is_of(&self, lane: &Lane) -> bool {
        self.system_identifier == lane.system_identifier
            && self.database == lane.database
            && self.slot == lane.slot
    }

    /// How far `lane` is across the places where the number of shares changed, by this record: none where it is another lane's, or
    /// speaks of WAL that `history` does not have, whose LSNs are used again.
    pub(crate) fn across(&self, lane: &Lane, history: &History) -> Option<PgLsn> {
        let is_meant = |lsn: &PgLsn| *lsn <= history.shared_with(&self.history());
        self.switched_lsn
            .filter(|lsn| self.is_of(lane) && is_meant(lsn))
    }

    /// Up to here all that `lane` had in the WAL of `history` is published, by this record: 0/0 where it is another lane's.
    #[cfg(feature = "cli")]
    pub(crate) fn published_through(&self, lane: &Lane, history: &History) -> PgLsn {
        match self.is_of(lane) {
            true => (self.confirmed_lsn).min(history.shared_with(&self.history())),
            false => 0.into(),
        }
    }

    /// Where the WAL came from that it speaks of.
    pub fn history(&self) -> History {
        History::new(self.timeline, self.switches.clone())
    }

    /// Whose record it is.
    pub fn lane(&self) -> Lane {
        Lane {
            system_identifier: self.system_identifier,
            database: self.database.clone(),
            slot: self.slot.clone(),
        }
    }

    /// The same, once a relay has halted in its epoch of that number, in the stream created at `created`; none where another
    /// relay has begun an epoch since, unless the halt is to bind that one too.
    pub fn halted(&self, halt: &Halt, created: &str, epoch: u64, at: String) -> Option<LaneRecord> {
        let bound = match halt {
            Halt::Replaced { sequence, .. } => self.halted_for(*sequence, created),
            _ => None,
        };
        let binds = bound
            .as_ref()
            .is_some_and(|bound| bound.replaced != self.replaced);
        (binds || self.epoch <= epoch).then(|| LaneRecord {
            halted: Some(HaltNote::of(halt, at)),
            ..bound.unwrap_or_else(|| self.clone())
        })
    }

    /// The same, once a relay has halted because somebody else's message stands at `sequence`; none where that is no news,
    /// since the lane goes on in another stream or was adopted behind it.
    pub fn halted_for(&self, sequence: u64, created: &str) -> Option<LaneRecord> {
        let is_about = self.created == created && self.adopted_sequence < sequence;
        is_about.then(|| LaneRecord {
            replaced: Some(sequence),
            ..self.clone()
        })
    }

    /// The same, once the stream created at `created` was seen to acknowledge what it does not keep; none where that is no
    /// news.
    pub(crate) fn doubted_in(&self, created: &str) -> Option<LaneRecord> {
        let is_news = self.created == created && !self.doubted;
        is_news.then(|| LaneRecord {
            doubted: true,
            ..self.clone()
        })
    }

    /// The record as stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings always have a JSON form")
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// Not JSON of a record, or of a later form.
    pub fn from_json(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: LaneRecord = serde_json::from_slice(bytes)?;
        if record.version != Self::VERSION {
            return Err(RecordError::Version(record.version));
        }
        Ok(record)
    }
}

/// A lane record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not what walrelay writes.
    #[error("the lane record cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a later walrelay.
    #[error("the lane record has form {0}, this walrelay knows form {known}", known = LaneRecord::VERSION)]
    Version(u32),
}

mod text_list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub(super) fn serialize<T: Display, S: Serializer>(
        values: &[T],
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(values.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        let read = |text: &String| {
            text.parse()
                .map_err(|_| D::Error::custom(format!("{text:?} cannot be read")))
        };
        texts.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_moved_is_told_by_the_stream_that_it_lives_in() {
        let lane = Lane {
            system_identifier: 7,
            database: "app".to_owned(),
            slot: "a".to_owned(),
        };
        let record = |stream: &str, moved: Option<Moved>| LaneRecord {
            moved,
            ..LaneRecord::new(&lane, &History::new(1, None), stream, "c")
        };
        let to = |stream: &str, nats: Option<&str>| {
            Some(Moved::To {
                stream: stream.to_owned(),
                nats: nats.map(str::to_owned),
            })
        };
        let from = |stream: &str| {
            Some(Moved::From {
                stream: stream.to_owned(),
                created: "c".to_owned(),
                nats: None,
                is_whole: false,
            })
        };
        for (records, expected) in [
            (vec![record("A", None)], vec!["A"]),
            // It is copied, it has left, it has arrived, and it has gone on.
            (vec![record("A", None), record("B", from("A"))], vec!["A"]),
            (
                vec![record("A", to("B", None)), record("B", from("A"))],
                vec!["A"],
            ),
            (
                vec![record("A", to("B", None)), record("B", None)],
                vec!["B"],
            ),
            (
                vec![
                    record("A", to("B", None)),
                    record("B", to("C", None)),
                    record("C", None),
                ],
                vec!["C"],
            ),
            // There and back.
            (
                vec![record("A", None), record("B", to("A", None))],
                vec!["A"],
            ),
            (vec![record("A", to("B", None))], vec!["A"]),
            (vec![record("A", to("A", Some("nats://other")))], vec!["A"]),
        ] {
            let told = telling(records.clone());
            let told: Vec<&str> = told.iter().map(|record| record.stream.as_str()).collect();
            assert_eq!(told, expected, "{records:?}");
        }
    }

    #[test]
    fn what_is_kept_of_a_halt_is_bounded() {
        let halt = Halt::Slot {
            what: "ä".repeat(5_000),
            mend: "look".to_owned(),
        };
        let note = HaltNote::of(&halt, "now".to_owned());
        assert!(note.reason.len() <= HaltNote::TEXT_BYTES_MAX);
        assert!(note.reason.ends_with("ä…"));
        assert_eq!(note.remedy, "look");
        let kept = RecordOrNote::Note(note);
        assert_eq!(RecordOrNote::from_json(&kept.to_json()).unwrap(), kept);
        // It is no record.
        assert!(LaneRecord::from_json(&kept.to_json()).is_err());
        let later = kept.to_json();
        let later = String::from_utf8(later).unwrap().replace(":1,", ":2,");
        assert!(matches!(
            RecordOrNote::from_json(later.as_bytes()),
            Err(RecordError::Version(2))
        ));
    }
}
