//! The relay's metrics in Prometheus' text format.
//!
//! In: a [`Status`]. Out: the body of `/metrics`. They are brought up to date when they are asked for, so they cost
//! the relay nothing; names have base units and `_total`, and no label has unbounded values.

use crate::relay::status::{CLASS_NAMES, State, Status};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

/// What `wal_status` of a slot may be (manual, pg_replication_slots).
const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// The recorder of one relay.
pub struct Metrics {
    recorder: PrometheusRecorder,
}

impl Metrics {
    /// Metrics that all carry the relay's name as the label `relay`.
    pub fn new(name: &str) -> Self {
        let recorder = PrometheusBuilder::new()
            .add_global_label("relay", name)
            .build_recorder();
        metrics::with_local_recorder(&recorder, describe);
        Metrics { recorder }
    }

    /// The metrics as they are now.
    pub fn render(&self, status: &Status) -> String {
        metrics::with_local_recorder(&self.recorder, || record(status));
        self.recorder.handle().render()
    }
}

fn describe() {
    describe_counter!(
        "walrelay_events_published_total",
        "Rows handed to the broker, with dead letters and replays"
    );
    describe_counter!(
        "walrelay_events_acknowledged_total",
        "Rows that the broker has acknowledged"
    );
    describe_counter!(
        "walrelay_events_replayed_total",
        "Rows handed to the broker again on request"
    );
    describe_counter!(
        "walrelay_dead_letters_total",
        "Rows that could not be published, by reason"
    );
    describe_gauge!(
        "walrelay_dead_letters_open",
        "Dead letters in the stream that were neither retried nor discarded"
    );
    describe_counter!("walrelay_transactions_total", "Transactions read");
    describe_gauge!(
        "walrelay_in_flight_messages",
        "Messages without an acknowledgement yet"
    );
    describe_gauge!(
        "walrelay_received_lsn_bytes",
        "End of the WAL that has arrived"
    );
    describe_gauge!(
        "walrelay_acknowledged_lsn_bytes",
        "End of the WAL of which all is acknowledged"
    );
    describe_gauge!(
        "walrelay_confirmed_lsn_bytes",
        "End of the WAL that Postgres may forget"
    );
    describe_gauge!(
        "walrelay_lag_bytes",
        "WAL of the server that is not yet acknowledged"
    );
    describe_gauge!(
        "walrelay_lag_seconds",
        "For how long there has been WAL of the server that is not yet acknowledged"
    );
    describe_gauge!(
        "walrelay_slot_retained_bytes",
        "WAL that the server keeps for the slot"
    );
    describe_gauge!(
        "walrelay_slot_safe_bytes",
        "WAL that may still be written before the slot is in danger; absent without a limit"
    );
    describe_gauge!(
        "walrelay_slot_wal_status",
        "1 for the wal_status that the slot has"
    );
    describe_gauge!(
        "walrelay_held_back_bytes",
        "WAL acknowledged and not yet confirmed"
    );
    describe_counter!("walrelay_epochs_total", "Epochs begun");
    describe_counter!(
        "walrelay_faults_total",
        "Faults that ended an epoch or kept it from beginning, by class"
    );
    describe_counter!(
        "walrelay_hold_back_cut_short_total",
        "Confirmations before their time, since the slot kept too much WAL"
    );
    describe_counter!(
        "walrelay_lost_messages_total",
        "Acknowledged messages that the broker lost"
    );
    describe_counter!(
        "walrelay_foreign_messages_total",
        "Messages of no relay found at the stream's end"
    );
    describe_counter!(
        "walrelay_after_publish_rows_total",
        "Rows marked or deleted once they were published"
    );
    describe_gauge!(
        "walrelay_after_publish_lag_messages",
        "Messages of the stream whose rows are still to be marked or deleted; absent where rows are kept"
    );
    describe_gauge!(
        "walrelay_streaming",
        "1 while events flow, 0 while the relay waits or has halted"
    );
    describe_gauge!("walrelay_build_info", "1, with the version as a label");
}

/// LSNs are below 2⁵³ for the first eight pebibytes of WAL, so they are exact as floating-point numbers.
#[allow(clippy::cast_precision_loss)]
fn record(status: &Status) {
    let totals = &status.totals;
    for (name, value) in [
        ("walrelay_events_published_total", totals.published),
        ("walrelay_events_acknowledged_total", totals.acknowledged),
        ("walrelay_events_replayed_total", totals.replayed),
        ("walrelay_transactions_total", totals.transactions),
        ("walrelay_epochs_total", totals.epochs),
        (
            "walrelay_hold_back_cut_short_total",
            totals.hold_back_cut_short,
        ),
        ("walrelay_lost_messages_total", totals.lost_messages),
        ("walrelay_foreign_messages_total", totals.foreign_messages),
        (
            "walrelay_after_publish_rows_total",
            totals.after_publish_rows,
        ),
    ] {
        counter!(name).absolute(value);
    }
    for (reason, count) in &totals.dead_letters {
        counter!("walrelay_dead_letters_total", "reason" => reason.clone()).absolute(*count);
    }
    for class in CLASS_NAMES {
        let count = totals.faults.get(class).copied().unwrap_or(0);
        counter!("walrelay_faults_total", "class" => class).absolute(count);
    }
    let marks = status.marks;
    for (name, value) in [
        ("walrelay_in_flight_messages", marks.in_flight),
        ("walrelay_received_lsn_bytes", marks.received_lsn),
        ("walrelay_acknowledged_lsn_bytes", marks.acknowledged_lsn),
        ("walrelay_confirmed_lsn_bytes", marks.confirmed_lsn),
        ("walrelay_lag_bytes", status.lag_bytes()),
        ("walrelay_lag_seconds", status.lag_seconds),
        ("walrelay_held_back_bytes", status.held_back_bytes()),
        (
            "walrelay_streaming",
            u64::from(status.state == State::Streaming),
        ),
    ] {
        gauge!(name).set(value as f64);
    }
    let wal = &status.slot_wal;
    if let Some(bytes) = wal.retained_bytes {
        gauge!("walrelay_slot_retained_bytes").set(bytes as f64);
    }
    if let Some(bytes) = wal.safe_wal_bytes {
        gauge!("walrelay_slot_safe_bytes").set(bytes as f64);
    }
    for name in WAL_STATUSES {
        let is_now = wal.wal_status.as_deref() == Some(name);
        gauge!("walrelay_slot_wal_status", "status" => name).set(f64::from(u8::from(is_now)));
    }
    if let Some(open) = status.dead_letters_open {
        gauge!("walrelay_dead_letters_open").set(open as f64);
    }
    if let Some(lag) = status.after_publish_lag {
        gauge!("walrelay_after_publish_lag_messages").set(lag as f64);
    }
    gauge!("walrelay_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::status::Board;

    #[test]
    fn every_metric_is_there_with_the_relay_and_follows_the_status() {
        let metrics = Metrics::new("orders");
        let board = Board::new("orders", "orders", "OUTBOX");
        let first = metrics.render(&board.status());
        assert!(first.contains("walrelay_events_published_total{relay=\"orders\"} 0"));
        board.dead_letter("too-large");
        // Absent until they are counted: 0 would be a guess.
        assert!(!first.contains("walrelay_dead_letters_open{"));
        board.open_dead_letters(7);
        board.dead_letter("too-large");
        board.begun(&crate::relay::status::EpochStart::default());
        board.streaming();
        let text = metrics.render(&board.status());
        for line in [
            "walrelay_dead_letters_total{relay=\"orders\",reason=\"too-large\"} 2",
            "walrelay_dead_letters_open{relay=\"orders\"} 7",
            "walrelay_faults_total{relay=\"orders\",class=\"transient\"} 0",
            "walrelay_streaming{relay=\"orders\"} 1",
            "walrelay_epochs_total{relay=\"orders\"} 1",
            "# TYPE walrelay_lag_bytes gauge",
            "walrelay_lag_seconds{relay=\"orders\"} 0",
            "walrelay_slot_wal_status{relay=\"orders\",status=\"lost\"} 0",
            "walrelay_in_flight_messages{relay=\"orders\"} 0",
            "# TYPE walrelay_transactions_total counter",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
