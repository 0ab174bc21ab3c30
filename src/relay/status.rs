//! What a relay is doing, for people and monitors.
//!
//! In: what the [board](crate::relay::board) is told. Out: [`Status`], for metrics, the status page and `walrelay status`, which
//! reads it as JSON.

use crate::pipeline::commit_time::Latencies;
use crate::postgres::slot_wal::SlotWal;
use crate::relay::bulk_work::BulkWork;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// What the relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its first epoch has not begun yet.
    #[default]
    Starting,
    /// Events flow.
    Streaming,
    /// For the reason that [`Status::reason`] gives.
    Waiting,
    /// Everything is in order, and another relay reads the slot.
    Standby,
    /// Until a person has looked, see [`Status::reason`].
    Halted,
    /// By its shutdown signal.
    Stopped,
    /// At its first start, for the reason that [`Status::reason`] gives.
    Failed,
}

impl State {
    /// Each of them.
    pub const ALL: [State; 7] = [
        State::Starting,
        State::Streaming,
        State::Waiting,
        State::Standby,
        State::Halted,
        State::Stopped,
        State::Failed,
    ];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Streaming => "streaming",
            State::Waiting => "waiting",
            State::Standby => "standby",
            State::Halted => "halted",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// A fault that ended an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFault {
    /// When it happened last.
    pub at: DateTime<Utc>,
    /// How often in a row.
    pub times: u64,
    /// What it was.
    pub text: String,
    /// Which side it was on, and what kind, as in the metrics.
    #[serde(default)]
    pub(crate) side: String,
    #[serde(default)]
    pub(crate) reason: String,
}

/// Counts since the process' start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Epochs begun.
    pub epochs: u64,
    /// The same, by the kind of fault that ended the one before, or that it was the first.
    pub epochs_by_cause: BTreeMap<String, u64>,
    /// Faults by side and kind.
    pub reconnects: BTreeMap<String, BTreeMap<String, u64>>,
    /// Halts by kind.
    pub halts: BTreeMap<String, u64>,
    /// Transactions completed.
    pub transactions: u64,
    /// Rows handed to the broker, with dead letters and replays.
    pub published: u64,
    /// Bytes of these messages, with their headers.
    pub published_bytes: u64,
    /// Batches that they were published in.
    pub batches: u64,
    /// Rows acknowledged.
    pub acknowledged: u64,
    /// Rows handed to the broker as replays.
    pub replayed: u64,
    /// Dead letters by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Faults by class.
    pub faults: BTreeMap<String, u64>,
    /// Marks confirmed before their time, since the hold-back kept too much WAL.
    pub(crate) hold_back_cut_short: u64,
    /// Acknowledged messages that the broker lost: one where nothing tells how many, as when the whole stream is gone.
    pub(crate) lost_messages: u64,
    /// Messages of no relay found at the stream's end.
    pub foreign_messages: u64,
    /// Rows that were marked or deleted once they were published.
    pub(crate) after_publish_rows: u64,
}

/// What became of what the process exports by OTLP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OtlpCounts {
    /// Spans that were taken.
    pub spans_exported: u64,
    /// Spans that were not, by reason.
    pub spans_dropped: BTreeMap<String, u64>,
    /// Trace contexts that found no room among the links of their span.
    pub links_dropped: u64,
    /// Attempts to export that failed, by signal.
    pub exports_failed: BTreeMap<String, u64>,
}

/// How far the lane is; LSNs in bytes, as in the metrics, and in JSON as Postgres writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Messages without an acknowledgement.
    pub in_flight: u64,
    /// Bytes of these that were sent on the present connection.
    #[serde(default)]
    pub in_flight_bytes: u64,
    /// How many messages may be without one; 0 before the first epoch.
    #[serde(default)]
    pub window_messages: u64,
    /// How many bytes may be.
    #[serde(default)]
    pub window_bytes: u64,
    /// WAL that has arrived.
    #[serde(with = "lsn_text")]
    pub(crate) received_lsn: u64,
    /// WAL of which all is acknowledged.
    #[serde(with = "lsn_text")]
    pub acknowledged_lsn: u64,
    /// WAL that Postgres was told it may forget.
    #[serde(with = "lsn_text")]
    pub confirmed_lsn: u64,
}

mod lsn_text {
    use postgres_types::PgLsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(lsn: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&PgLsn::from(*lsn))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lsn: PgLsn = text.parse().map_err(|_| D::Error::custom("not an LSN"))?;
        Ok(lsn.into())
    }
}

/// Everything that is known of a running relay; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `name` of the configuration.
    pub name: String,
    /// Number of the share; none where the outbox is not divided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// Version of walrelay.
    pub version: String,
    /// The database that the slot is of.
    pub database: String,
    /// The slot.
    pub slot: String,
    /// The stream.
    pub stream: String,
    /// What it is doing.
    pub state: State,
    /// Why it waits or has halted, or what it cannot see while it streams.
    pub reason: Option<String>,
    /// How messages are published: fast-ingest, chain or atomic.
    pub mode: Option<String>,
    /// Version of Postgres.
    pub postgres: Option<String>,
    /// Version of nats-server.
    pub nats: Option<String>,
    /// The lane's last acknowledged position.
    pub position: Option<String>,
    /// Events acknowledged in a second, lately.
    pub events_per_second: u64,
    /// When the process started.
    pub started: DateTime<Utc>,
    /// When the state last changed.
    pub since: DateTime<Utc>,
    /// End of the server's WAL at the last look.
    #[serde(with = "lsn_text")]
    pub server_lsn: u64,
    /// When that look was; none before the first.
    pub looked_at: Option<DateTime<Utc>>,
    /// Whether that look is so fresh that nothing beyond it is no lag.
    pub lag_known: bool,
    /// How far the lane is.
    pub marks: Marks,
    /// For how long there has been WAL that has not arrived, counted from the process' start on; none where that is not known.
    pub received_lag_seconds: Option<u64>,
    /// For how long there has been WAL that is not acknowledged: from the commit of the oldest transaction that has come, or, of
    /// what has not come yet, from the process' start on; none where that is not known.
    pub lag_seconds: Option<u64>,
    /// For how long there has been WAL that is not confirmed, as far as this process knows; none where that is not known.
    pub confirmed_lag_seconds: Option<u64>,
    /// How long transactions took from their commit, by the server's clock, to the acknowledgement of their last event.
    pub commit_to_ack: Latencies,
    /// The server's clock against this machine's, in µs; none before it was seen.
    pub clock_offset_us: Option<i64>,
    /// What the slot keeps, and may keep, at the last look.
    pub slot_wal: SlotWal,
    /// Open dead letters in the stream; none until they are counted.
    pub dead_letters_open: Option<u64>,
    /// Commands that publish for the lane beside the relay, and those that have ended without finishing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bulk_work: Vec<BulkWork>,
    /// Messages of the stream whose rows are still to be marked or deleted; none where rows are kept.
    pub after_publish_lag: Option<u64>,
    /// Counts since the start.
    pub totals: Totals,
    /// What became of what the process exports by OTLP; none where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpCounts>,
    /// The last faults, newest first.
    pub(crate) last_faults: VecDeque<PastFault>,
}

impl Status {
    /// Whether events flow, here or in the relay that this one stands by for, and nothing that would keep them from it can go
    /// unseen.
    pub fn is_ready(&self) -> bool {
        match self.state {
            State::Streaming => self.reason.is_none(),
            State::Standby => true,
            State::Starting | State::Waiting | State::Halted | State::Stopped | State::Failed => {
                false
            }
        }
    }

    /// WAL of the server that is not yet acknowledged, received or not, in bytes: so much at least. None where none is known of, and
    /// the server was not looked at lately.
    pub fn lag_bytes(&self) -> Option<u64> {
        let marks = self.marks;
        let end = self.server_lsn.max(marks.received_lsn);
        self.known(end.saturating_sub(marks.acknowledged_lsn))
    }

    /// WAL of the server that has not arrived, in bytes; as [`Self::lag_bytes`].
    pub fn received_lag_bytes(&self) -> Option<u64> {
        let marks = self.marks;
        let arrived = marks.received_lsn.max(marks.acknowledged_lsn);
        self.known(self.server_lsn.saturating_sub(arrived))
            .filter(|_| self.has_received())
    }

    /// WAL acknowledged and not yet confirmed, in bytes: what the hold-back keeps. None before anything is known to be acknowledged.
    pub fn held_back_bytes(&self) -> Option<u64> {
        let marks = self.marks;
        let held_back = marks.acknowledged_lsn.saturating_sub(marks.confirmed_lsn);
        (marks.acknowledged_lsn > 0).then_some(held_back)
    }

    /// What is behind, where it is known; of what is not known nobody can say that it is nothing.
    fn known(&self, behind: u64) -> Option<u64> {
        (self.lag_known || behind > 0).then_some(behind)
    }

    /// One that stands by receives nothing.
    pub(super) fn has_received(&self) -> bool {
        self.state != State::Standby
    }
}

impl Status {
    /// Changes what it is doing.
    pub(super) fn set_state(&mut self, state: State, reason: Option<String>) {
        if self.state != state {
            tracing::debug!(
                slot = self.slot,
                from = self.state.name(),
                to = state.name(),
                reason,
                "the relay's state"
            );
            self.since = Utc::now();
        }
        self.state = state;
        self.reason = reason;
    }
}

/// Every class has its series from the start, so that a first fault is a change from 0.
pub(crate) const CLASS_NAMES: [&str; 4] = ["transient", "resync", "row", "permanent"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_written_as_postgres_writes_them_and_read_again() {
        let marks = Marks {
            received_lsn: 0x16_B374_D848,
            ..Marks::default()
        };
        let json = serde_json::to_value(marks).unwrap();
        assert_eq!(json["received_lsn"], "16/B374D848");
        assert_eq!(serde_json::from_value::<Marks>(json).unwrap(), marks);
    }
}
