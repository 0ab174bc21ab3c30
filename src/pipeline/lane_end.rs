//! The lane end: the lane's last message in its stream, as the record and the process itself know it.
//!
//! Both may be behind: what they say stands only for the stream that they are about, and as long as nobody else has begun
//! an epoch since.

use super::history::History;
use super::position::Position;
use super::progress::HeldMarks;
use super::record::LaneRecord;
use super::tables::Period;
use postgres_types::PgLsn;

/// The last message of the lane in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneEnd {
    /// Its stream sequence.
    pub sequence: u64,
    /// The lane's position that it tells.
    pub position: Position,
    /// The event's id at that position; none where it had none (a dead letter of a row without id).
    pub event_id: Option<String>,
    /// The further table that the event is of, as its header has it; empty for the lane's own; none where nothing tells.
    pub table: Option<String>,
}

impl LaneEnd {
    /// As the value of [`TAIL_HEADER`](super::position::TAIL_HEADER).
    pub(crate) fn tail(&self, slot: &str) -> String {
        let (event_id, table) = (self.event_id.as_deref(), self.table.as_deref());
        tail_header(slot, self.position, event_id, table)
    }
}

/// What a running relay knows of its lane by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// When the stream was created.
    pub created: String,
    /// The lane's last acknowledged message.
    pub lane_end: Option<LaneEnd>,
    /// The last one that was acknowledged before the stream was last seen to fit.
    pub sound: Option<LaneEnd>,
    /// Where the lane went on in its last epoch.
    pub begun: Option<LaneEnd>,
    /// The stream was seen to acknowledge what it does not keep, and `tail` says no more than `sound`.
    pub doubted: bool,
    /// The message that its last record named; a broker that was set back may have lost that record.
    pub recorded_sequence: Option<u64>,
    /// What the slot was told.
    pub confirmed_lsn: PgLsn,
    /// Where the server's WAL came from.
    pub history: History,
    /// Which table was the outbox, where in the WAL.
    pub tables: Vec<Period>,
    /// The epoch that this comes from, as in its lane record.
    pub epoch: u64,
    /// Nothing that this process has sent may be in the stream behind `tail`.
    pub settled: bool,
    /// Which process of the broker has acknowledged; none where that does not tell who stores.
    pub server_id: Option<String>,
    /// What waited for the hold-back.
    pub held: HeldMarks,
}

impl Memory {
    /// Takes back what was acknowledged since the stream was last seen to fit: it may never have been stored.
    pub fn doubt(&mut self) {
        self.lane_end = self.sound.clone();
        self.doubted = true;
        self.held = HeldMarks::default();
    }

    /// Whether it still tells where the lane is: it is about the stream created at `created`, and no other relay has begun
    /// an epoch since.
    pub(crate) fn is_current(&self, created: &str, record: Option<&LaneRecord>) -> bool {
        self.created == created
            && record
                .filter(|record| record.created == created)
                .is_none_or(|record| record.epoch <= self.epoch)
    }

    /// Whether it has begun an epoch on what this record says: a broker that was set back has it again.
    pub(crate) fn has_begun_since(&self, record: &LaneRecord, created: &str) -> bool {
        self.is_current(created, Some(record)) && record.epoch < self.epoch
    }

    /// What is left of that record's doubt: none where the stream still has what was acknowledged since, else what was known
    /// when the lane went on behind it.
    fn resolved(
        &self,
        record: &LaneRecord,
        created: &str,
        last_sequence: u64,
    ) -> Option<Option<LaneEnd>> {
        if self.is_of(created, last_sequence) {
            return None;
        }
        let begun = self.begun.clone();
        let begun = begun.filter(|begun| begun.sequence <= last_sequence);
        Some(begun.or_else(|| recorded_end(record)))
    }

    /// Which table was the outbox, where in the WAL: as the process knows it, or another relay since.
    pub fn tables<'r>(
        memory: Option<&'r Memory>,
        created: &str,
        record: Option<&'r LaneRecord>,
    ) -> &'r [Period] {
        match memory.filter(|memory| memory.is_current(created, record)) {
            Some(memory) => &memory.tables,
            None => record.map_or(&[], |record| &record.tables),
        }
    }

    /// The held marks, where all that they cover is still where it was: the same stream reaches up to `tail` at least, no
    /// other relay has written to it, the WAL is the same. A broker that was started anew may not have synced what it had
    /// acknowledged before, and never will by itself: there the hold-back begins anew.
    pub(crate) fn standing_marks(
        &self,
        created: &str,
        record: Option<&LaneRecord>,
        lane_end: Option<&LaneEnd>,
        history: &History,
        server_id: Option<&str>,
    ) -> HeldMarks {
        let position = |lane_end: &LaneEnd| lane_end.position;
        let stands = self.is_current(created, record)
            && lane_end.map(position) >= self.lane_end.as_ref().map(position)
            && self.history == *history
            && self.server_id.as_deref() == server_id;
        match stands {
            true => self.held.clone(),
            false => HeldMarks::default(),
        }
    }

    /// Whether it is about the stream created at `created`, and that still reaches what was acknowledged.
    pub(crate) fn is_of(&self, created: &str, last_sequence: u64) -> bool {
        let lane_end = self.lane_end.as_ref();
        self.created == created
            && lane_end.is_none_or(|lane_end| lane_end.sequence <= last_sequence)
    }
}

/// The stream was seen to acknowledge what it does not keep. What was acknowledged before it was last seen to fit stands;
/// a message behind that, which the stream does not have, was never stored: it was not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    /// The lane's last message before it; none where the lane had none.
    pub lane_end: Option<LaneEnd>,
}

impl Doubt {
    /// What record and memory say, of the later of the two.
    pub fn of(
        record: Option<&LaneRecord>,
        memory: Option<&Memory>,
        created: &str,
        last_sequence: u64,
    ) -> Option<Self> {
        let doubted = memory.filter(|memory| {
            memory.doubted
                && memory.is_current(created, record)
                && memory.is_of(created, last_sequence)
        });
        let remembered = doubted.map(|memory| memory.lane_end.clone());
        let record = of_stream(record, created, last_sequence).filter(|record| record.doubted);
        let recorded = record.and_then(|record| match memory {
            Some(memory) if memory.has_begun_since(record, created) => {
                memory.resolved(record, created, last_sequence)
            }
            _ => Some(recorded_end(record)),
        });
        let tails = remembered.into_iter().chain(recorded);
        let lane_end =
            tails.max_by_key(|lane_end| lane_end.as_ref().map(|lane_end| lane_end.sequence))?;
        Some(Doubt { lane_end })
    }

    /// Sequence of that message; 0 for none.
    pub fn sequence(&self) -> u64 {
        self.lane_end
            .as_ref()
            .map_or(0, |lane_end| lane_end.sequence)
    }
}

/// The record, provided that it is of this very stream, and that still reaches it.
pub(super) fn of_stream<'r>(
    record: Option<&'r LaneRecord>,
    created: &str,
    last_sequence: u64,
) -> Option<&'r LaneRecord> {
    record.filter(|record| record.created == created && record.sequence <= last_sequence)
}

pub(super) fn recorded_end(record: &LaneRecord) -> Option<LaneEnd> {
    record.position.map(|position| LaneEnd {
        sequence: record.sequence,
        position,
        event_id: record.event_id.clone(),
        table: record.table.clone(),
    })
}

/// The lane's last message as somebody knew it when nothing of the lane could stand behind it any more: the record of a
/// relay that has said that it has stopped; or what this process knows, as long as no other relay has begun an epoch.
pub(super) fn settled_end(
    record: Option<&LaneRecord>,
    memory: Option<&Memory>,
    created: &str,
    last_sequence: u64,
) -> Option<LaneEnd> {
    let memory = memory.filter(|memory| memory.is_current(created, record));
    let record = of_stream(record, created, last_sequence);
    if let Some(record) = record.filter(|record| !record.active) {
        return recorded_end(record);
    }
    memory
        .filter(|memory| memory.settled && memory.is_of(created, last_sequence))
        .and_then(|memory| memory.lane_end.clone())
}

/// How [`tail_header`] writes that the event has no id, or is of the lane's own table.
pub(crate) const NOTHING: &str = "-";

/// The value of [`TAIL_HEADER`](super::position::TAIL_HEADER): `<slot> <position> <event id>`, and the table where it is
/// known. An id that could end a header line, or is too long for one, is left out: the position alone must then be met at the next start.
pub(crate) fn tail_header(
    slot: &str,
    position: Position,
    event_id: Option<&str>,
    table: Option<&str>,
) -> String {
    // Nor one that is nothing or ends in a space: header values lose theirs.
    let is_safe = |id: &&str| {
        id.len() <= 200 && id.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) && !id.is_empty()
    };
    let id = event_id.filter(is_safe).unwrap_or(NOTHING);
    match table {
        None => format!("{slot} {position} {id}"),
        Some("") => format!("{slot} {position} {id} {NOTHING}"),
        Some(table) => format!("{slot} {position} {id} {table}"),
    }
}
