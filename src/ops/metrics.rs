//! The relay's metrics, in Prometheus' text format or as OpenMetrics, or as values for OTLP.
//!
//! In: a [`Status`] for each lane. Out: the body of `/metrics`, or the families that it is made of. They are made of the status when they are asked for, so they cost the relay
//! nothing; names have base units and `_total`, and no label has unbounded values.

mod exposition;
pub(crate) mod families;
mod process;

pub use exposition::Format;

use crate::pipeline::commit_time::LATENCY_BOUNDS_US;
use crate::relay::status::{CLASS_NAMES, OtlpCounts, State, Status};
use families::{Families, Family, Kind};

/// What `wal_status` of a slot may be (manual, pg_replication_slots).
const WAL_STATUSES: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// The metrics of the process' lanes as they are now, written.
pub fn render(lanes: &[Status], format: Format) -> String {
    exposition::write(&collect(lanes), format)
}

/// The metrics of the process' lanes as they are now. All carry the relay's name as the label `relay`, and where the outbox is
/// divided those of a lane the share's number as `share`.
pub(crate) fn collect(lanes: &[Status]) -> Vec<Family> {
    let mut out = Families::default();
    for status in lanes {
        let share = status.share.map(|share| share.to_string());
        let share = share.as_deref().map(|share| ("share", share));
        out.label_all([("relay", status.name.as_str())].into_iter().chain(share));
        events(&mut out, status);
        progress(&mut out, status);
        latency(&mut out, status);
        slot(&mut out, status);
        epochs(&mut out, status);
    }
    if let Some(status) = lanes.first() {
        out.label_all([("relay", status.name.as_str())]);
        out.family(
            "walrelay_build_info",
            Kind::Gauge,
            "1, with the version as a label",
        );
        out.sample(&[("version", &status.version)], 1_u64);
        if let Some(exported) = &status.otlp {
            otlp(&mut out, exported);
        }
        process::write(&mut out);
    }
    out.finish()
}

fn events(out: &mut Families, status: &Status) {
    let totals = &status.totals;
    for (name, help, value) in [
        (
            "walrelay_events_published_total",
            "Rows handed to the broker, with dead letters and replays",
            totals.published,
        ),
        (
            "walrelay_events_acknowledged_total",
            "Rows that the broker has acknowledged",
            totals.acknowledged,
        ),
        (
            "walrelay_events_replayed_total",
            "Rows handed to the broker again on request",
            totals.replayed,
        ),
        (
            "walrelay_published_bytes_total",
            "Bytes of messages handed to the broker, with their headers",
            totals.published_bytes,
        ),
        (
            "walrelay_batches_total",
            "Batches in which messages were published; none where each stands alone",
            totals.batches,
        ),
        (
            "walrelay_transactions_total",
            "Transactions read",
            totals.transactions,
        ),
        (
            "walrelay_lost_messages_total",
            "Acknowledged messages that the broker lost",
            totals.lost_messages,
        ),
        (
            "walrelay_foreign_messages_total",
            "Messages of no relay found at the stream's end",
            totals.foreign_messages,
        ),
        (
            "walrelay_after_publish_rows_total",
            "Rows marked or deleted once they were published",
            totals.after_publish_rows,
        ),
    ] {
        out.one(name, Kind::Counter, help, value);
    }
    out.family(
        "walrelay_dead_letters_total",
        Kind::Counter,
        "Rows that could not be published, by reason",
    );
    for (reason, count) in &totals.dead_letters {
        out.sample(&[("reason", reason)], count);
    }
    out.known(
        "walrelay_dead_letters_open",
        "Dead letters in the stream that were neither retried nor discarded; absent until they are counted",
        status.dead_letters_open,
    );
    out.known(
        "walrelay_after_publish_lag_messages",
        "Messages of the stream whose rows are still to be marked or deleted; absent where rows are kept",
        status.after_publish_lag,
    );
    let marks = status.marks;
    for (name, help, value) in [
        (
            "walrelay_in_flight_messages",
            "Messages without an acknowledgement yet",
            marks.in_flight,
        ),
        (
            "walrelay_in_flight_bytes",
            "Bytes of these that were sent on the present connection",
            marks.in_flight_bytes,
        ),
        (
            "walrelay_window_messages",
            "How many messages may be without an acknowledgement",
            marks.window_messages,
        ),
        (
            "walrelay_window_bytes",
            "How many bytes may be without an acknowledgement, but for the last message",
            marks.window_bytes,
        ),
    ] {
        out.one(name, Kind::Gauge, help, value);
    }
}

fn progress(out: &mut Families, status: &Status) {
    let marks = status.marks;
    for (name, help, value) in [
        (
            "walrelay_server_lsn_bytes",
            "End of the server's WAL at the last look",
            status.server_lsn,
        ),
        (
            "walrelay_received_lsn_bytes",
            "End of the WAL that has arrived",
            marks.received_lsn,
        ),
        (
            "walrelay_acknowledged_lsn_bytes",
            "End of the WAL of which all is acknowledged",
            marks.acknowledged_lsn,
        ),
        (
            "walrelay_confirmed_lsn_bytes",
            "End of the WAL that Postgres may forget",
            marks.confirmed_lsn,
        ),
    ] {
        out.one(name, Kind::Gauge, help, value);
    }
    // Absent where it is not known.
    for (name, help, value) in [
        (
            "walrelay_received_lag_bytes",
            "WAL of the server that has not arrived; absent while it is not known",
            status.received_lag_bytes(),
        ),
        (
            "walrelay_lag_bytes",
            "WAL of the server that is not yet acknowledged; absent while it is not known",
            status.lag_bytes(),
        ),
        (
            "walrelay_held_back_bytes",
            "WAL acknowledged and not yet confirmed; absent while it is not known",
            status.held_back_bytes(),
        ),
        (
            "walrelay_received_lag_seconds",
            "For how long there has been WAL of the server that has not arrived; absent while it is not known",
            status.received_lag_seconds,
        ),
        (
            "walrelay_lag_seconds",
            "For how long there has been WAL of the server that is not yet acknowledged; absent while it is not known",
            status.lag_seconds,
        ),
        (
            "walrelay_confirmed_lag_seconds",
            "For how long there has been WAL of the server that is not yet confirmed: about the hold-back; absent while it is not known",
            status.confirmed_lag_seconds,
        ),
    ] {
        out.known(name, help, value);
    }
}

/// What became of the export itself.
fn otlp(out: &mut Families, exported: &OtlpCounts) {
    out.one(
        "walrelay_otlp_spans_exported_total",
        Kind::Counter,
        "Spans that the collector has taken",
        exported.spans_exported,
    );
    out.family(
        "walrelay_otlp_spans_dropped_total",
        Kind::Counter,
        "Spans that were not exported, by reason",
    );
    for (reason, count) in &exported.spans_dropped {
        out.sample(&[("reason", reason)], count);
    }
    out.one(
        "walrelay_otlp_links_dropped_total",
        Kind::Counter,
        "Trace contexts of events that found no room among the links of their span",
        exported.links_dropped,
    );
    out.family(
        "walrelay_otlp_exports_failed_total",
        Kind::Counter,
        "Attempts to export that failed, by signal",
    );
    for (signal, count) in &exported.exports_failed {
        out.sample(&[("signal", signal)], count);
    }
}

/// In seconds, exactly enough: below 2⁵³ µs.
#[allow(clippy::cast_precision_loss)]
fn latency(out: &mut Families, status: &Status) {
    let seconds = |us: u64| us as f64 / 1e6;
    let latencies = &status.commit_to_ack;
    out.family(
        "walrelay_commit_to_ack_seconds",
        Kind::Histogram,
        "From a transaction's commit, by the server's clock, to the acknowledgement of its last event",
    );
    out.histogram(
        &LATENCY_BOUNDS_US.map(seconds),
        &latencies.counts,
        seconds(latencies.sum_us),
    );
    out.one(
        "walrelay_commit_times_unknown_total",
        Kind::Counter,
        "Transactions whose commit time is not believed, as under a replication origin",
        latencies.unknown,
    );
    out.known(
        "walrelay_postgres_clock_offset_seconds",
        "The server's clock against this machine's, to within a round trip; latencies are by the server's",
        status.clock_offset_us.map(|us| us as f64 / 1e6),
    );
}

fn slot(out: &mut Families, status: &Status) {
    let wal = &status.slot_wal;
    out.known(
        "walrelay_slot_retained_bytes",
        "WAL that the server keeps for the slot",
        wal.retained_bytes,
    );
    out.known(
        "walrelay_slot_safe_bytes",
        "WAL that may still be written before the slot is in danger; absent without a limit",
        wal.safe_wal_bytes,
    );
    out.family(
        "walrelay_slot_wal_status",
        Kind::Gauge,
        "1 for the wal_status that the slot has",
    );
    for name in WAL_STATUSES {
        let is_now = wal.wal_status.as_deref() == Some(name);
        out.sample(&[("status", name)], u8::from(is_now));
    }
    out.one(
        "walrelay_hold_back_cut_short_total",
        Kind::Counter,
        "Confirmations before their time, since the slot kept too much WAL",
        status.totals.hold_back_cut_short,
    );
}

fn epochs(out: &mut Families, status: &Status) {
    let totals = &status.totals;
    let state = status.state;
    out.one(
        "walrelay_streaming",
        Kind::Gauge,
        "1 while events flow, 0 while the relay waits or has halted",
        u8::from(state == State::Streaming),
    );
    out.family(
        "walrelay_state",
        Kind::Gauge,
        "1 for what the relay is doing",
    );
    for known in State::ALL {
        out.sample(&[("state", known.name())], u8::from(known == state));
    }
    out.family(
        "walrelay_epochs_total",
        Kind::Counter,
        "Epochs begun, by what ended the one before",
    );
    for (cause, count) in &totals.epochs_by_cause {
        out.sample(&[("cause", cause)], count);
    }
    out.family(
        "walrelay_reconnects_total",
        Kind::Counter,
        "Connections given up, by the side that is at fault and why",
    );
    for (side, reasons) in &totals.reconnects {
        for (reason, count) in reasons {
            out.sample(&[("side", side), ("reason", reason)], count);
        }
    }
    out.family(
        "walrelay_faults_total",
        Kind::Counter,
        "Faults that ended an epoch or kept it from beginning, by class",
    );
    for class in CLASS_NAMES {
        let count = totals.faults.get(class).copied().unwrap_or(0);
        out.sample(&[("class", class)], count);
    }
    out.family(
        "walrelay_halts_total",
        Kind::Counter,
        "Halts until a person has looked, by reason",
    );
    for (reason, count) in &totals.halts {
        out.sample(&[("reason", reason)], count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fault::Fault;
    use crate::relay::board::Board;
    use crate::relay::epoch_marks::EpochStart;

    #[test]
    fn lanes_stand_together_under_each_metric() {
        let lanes = [0, 1].map(|share| Status {
            share: Some(share),
            name: "orders".to_owned(),
            ..Status::default()
        });
        let text = render(&lanes, Format::OpenMetrics);
        let family = "# TYPE walrelay_streaming gauge\n\
                      walrelay_streaming{relay=\"orders\",share=\"0\"} 0\n\
                      walrelay_streaming{relay=\"orders\",share=\"1\"} 0\n";
        assert!(text.contains(family), "{text}");
        assert_eq!(text.matches("# HELP walrelay_streaming ").count(), 1);
        assert_eq!(text.matches("# EOF").count(), 1);
        assert_eq!(
            text.matches("walrelay_build_info{relay=\"orders\",version")
                .count(),
            1
        );
    }

    #[test]
    fn every_metric_is_there_with_the_relay_and_follows_the_status() {
        let board = Board::new("orders", "orders", "OUTBOX");
        let now = || render(&[board.status()], Format::Prometheus);
        let first = now();
        assert!(first.contains("walrelay_events_published_total{relay=\"orders\"} 0"));
        board.dead_letter("too-large");
        // Absent until they are counted: 0 would be a guess.
        assert!(!first.contains("walrelay_dead_letters_open{"));
        board.open_dead_letters(6, Vec::new());
        board.dead_letter("too-large");
        board.begun(&EpochStart::default());
        board.fault(&Fault::AckTimeout(3));
        board.begun(&EpochStart::default());
        board.streaming();
        let text = now();
        for line in [
            "walrelay_dead_letters_total{relay=\"orders\",reason=\"too-large\"} 2",
            "walrelay_dead_letters_open{relay=\"orders\"} 7",
            "walrelay_faults_total{relay=\"orders\",class=\"transient\"} 1",
            "walrelay_streaming{relay=\"orders\"} 1",
            "walrelay_state{relay=\"orders\",state=\"streaming\"} 1",
            "walrelay_state{relay=\"orders\",state=\"halted\"} 0",
            "walrelay_epochs_total{relay=\"orders\",cause=\"start\"} 1",
            "walrelay_epochs_total{relay=\"orders\",cause=\"ack-timeout\"} 1",
            "walrelay_reconnects_total{relay=\"orders\",side=\"nats\",reason=\"ack-timeout\"} 1",
            "# TYPE walrelay_server_lsn_bytes gauge",
            "walrelay_acknowledged_lsn_bytes{relay=\"orders\"} 0",
            "walrelay_slot_wal_status{relay=\"orders\",status=\"lost\"} 0",
            "walrelay_in_flight_messages{relay=\"orders\"} 0",
            "# TYPE walrelay_transactions_total counter",
            "# TYPE walrelay_commit_to_ack_seconds histogram",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
