//! A lane, its record and its stream at a start, to vary.

use walrelay::pipeline::continuity::{Plan, Refusal, StartView, plan};
use walrelay::pipeline::end_search::FoundEnd;
use walrelay::pipeline::fault::Halt;
use walrelay::pipeline::history::History;
use walrelay::pipeline::lane_end::{LaneEnd, Memory};
use walrelay::pipeline::position::{Lane, Position};
use walrelay::pipeline::progress::HeldMarks;
use walrelay::pipeline::record::LaneRecord;

use crate::lane_record;

pub(crate) const CREATED: &str = "2026-11-23T00:00:00Z";

pub(crate) fn lane() -> Lane {
    Lane {
        system_identifier: 7,
        database: "app".into(),
        slot: "s".into(),
    }
}

pub(crate) fn at(commit_lsn: u64) -> Position {
    Position {
        commit_lsn: commit_lsn.into(),
        ordinal: 1,
    }
}

/// The message at `sequence` with the position of the same number.
pub(crate) fn message(sequence: u64) -> LaneEnd {
    LaneEnd {
        sequence,
        position: at(sequence),
        event_id: Some(format!("e{sequence}")),
        table: None,
    }
}

pub(crate) fn record(sequence: u64, confirmed_lsn: u64) -> LaneRecord {
    LaneRecord {
        sequence,
        position: (sequence > 0).then(|| at(sequence)),
        event_id: (sequence > 0).then(|| format!("e{sequence}")),
        confirmed_lsn: confirmed_lsn.into(),
        ..lane_record::fresh(CREATED)
    }
}

/// The record of a relay that may have gone on behind it.
pub(crate) fn active(sequence: u64) -> LaneRecord {
    LaneRecord {
        active: true,
        ..record(sequence, 40)
    }
}

pub(crate) struct Case {
    pub(crate) confirmed: u64,
    /// Where the slot began, if that was written down.
    pub(crate) begins: Option<u64>,
    pub(crate) server: u64,
    pub(crate) last_sequence: u64,
    pub(crate) lane_end: FoundEnd,
    pub(crate) record: Option<LaneRecord>,
    pub(crate) memory: Option<Memory>,
    pub(crate) from: Option<u64>,
    pub(crate) history: History,
}

impl Case {
    pub(crate) fn plan(&self) -> Result<Plan, Refusal> {
        let lane = lane();
        plan(&StartView {
            lane: &lane,
            confirmed_flush_lsn: self.confirmed.into(),
            begins_lsn: self.begins.map(Into::into),
            server_lsn: self.server.into(),
            history: &self.history,
            stream: "S",
            nats: "nats://here",
            created: CREATED,
            last_sequence: self.last_sequence,
            lane_end: &self.lane_end,
            record: self.record.as_ref(),
            memory: self.memory.as_ref(),
            from: self.from.map(Into::into),
        })
    }

    pub(crate) fn good(&self) -> Plan {
        self.plan().expect("a plan")
    }

    pub(crate) fn halt(&self) -> Halt {
        match self.plan() {
            Err(Refusal::Halt(halt)) => halt,
            other => panic!("{other:?}"),
        }
    }
}

/// A lane whose last message is the stream's 50th, confirmed up to 40.
pub(crate) fn usual() -> Case {
    Case {
        confirmed: 40,
        begins: Some(40),
        server: 100,
        last_sequence: 50,
        lane_end: FoundEnd::Found(message(50)),
        record: Some(record(50, 40)),
        memory: None,
        from: None,
        history: History::first(),
    }
}

pub(crate) fn memory(created: &str, sequence: u64, confirmed_lsn: u64) -> Option<Memory> {
    Some(Memory {
        created: created.into(),
        lane_end: Some(message(sequence)),
        sound: Some(message(sequence)),
        begun: None,
        doubted: false,
        recorded_sequence: None,
        epoch: 1,
        settled: true,
        server_id: None,
        held: HeldMarks::default(),
        confirmed_lsn: confirmed_lsn.into(),
        history: History::first(),
        tables: Vec::new(),
    })
}
