//! What an epoch tells the board: what it begins with, and how far it is.
//!
//! In: the engine. Out: plain values. Guarantee: pure.

use crate::pipeline::engine::{Counters, Engine};
use crate::pipeline::position::Position;
use crate::pipeline::progress::Commit;
use crate::pipeline::publish::Traffic;
use crate::relay::status::Marks;
use std::time::Duration;

/// What changes while an epoch runs; equal marks need no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EpochMarks {
    pub(super) counters: Counters,
    pub(super) traffic: Traffic,
    pub(super) acknowledged: u64,
    pub(super) cut_short: u64,
    pub(super) position: Option<Position>,
    pub(super) marks: Marks,
    /// The oldest transaction whose events are not all acknowledged, and the last one whose are.
    pub(super) commits: [Option<Commit>; 2],
}

impl EpochMarks {
    /// The marks of an epoch as they are.
    pub fn of(engine: &Engine, now: Duration) -> Self {
        let progress = engine.progress();
        let traffic = engine.traffic();
        EpochMarks {
            counters: engine.counters(),
            traffic,
            acknowledged: progress.acknowledged_rows(),
            cut_short: progress.held_cut_short(),
            position: engine.lane_end().map(|lane_end| lane_end.position),
            marks: Marks {
                in_flight: engine.in_flight(),
                in_flight_bytes: traffic.in_flight_bytes,
                window_messages: traffic.window_messages,
                window_bytes: traffic.window_bytes,
                received_lsn: progress.received_lsn().into(),
                acknowledged_lsn: progress.acknowledged_lsn().into(),
                confirmed_lsn: engine.confirmed_lsn().into(),
            },
            commits: [engine.oldest_commit(now), engine.last_commit()],
        }
    }
}

/// What an epoch begins with.
#[derive(Debug, Clone, Default)]
pub struct EpochStart {
    /// How messages are published.
    pub mode: &'static str,
    /// Version of Postgres.
    pub postgres: String,
    /// Version of nats-server.
    pub nats: String,
    /// Messages of no relay at the stream's end.
    pub foreign_messages: u64,
    /// Acknowledged messages that the broker has lost.
    pub(crate) lost_messages: u64,
}
