//! What a turn tells whoever reads the log at `trace`: batches that leave, acknowledgements, the slot's feedback.
//!
//! In: the turn. Out: log lines. Guarantees: a few numbers a turn, none an event; no payload, and nothing of a row.

use super::{BrokerTransport, Turn, WalTransport};
use crate::pipeline::copy_both::StatusUpdate;

impl<W: WalTransport, B: BrokerTransport> Turn<W, B> {
    pub(super) fn trace_acknowledged(&self, before: u64) {
        let in_flight = self.engine.in_flight();
        if in_flight < before {
            let lsn = self.engine.progress().acknowledged_lsn();
            tracing::trace!(
                messages = before - in_flight,
                in_flight,
                acknowledged_lsn = %lsn,
                "acknowledged"
            );
        }
    }

    pub(super) fn trace_batch(&mut self, before: (u64, usize)) {
        let (published, bytes) = self.handed();
        if published > before.0 {
            tracing::trace!(
                messages = published - before.0,
                bytes = bytes.saturating_sub(before.1),
                in_flight = self.engine.in_flight(),
                received_lsn = %self.engine.progress().received_lsn(),
                "batch to the broker"
            );
        }
    }

    /// Messages that were handed over so far, and bytes that wait to be written.
    pub(super) fn handed(&mut self) -> (u64, usize) {
        (
            self.engine.counters().published,
            self.broker.outgoing().len(),
        )
    }
}

/// What moves the slot is of more interest than that we are there.
pub(super) fn status(update: &StatusUpdate) {
    let StatusUpdate {
        write_lsn,
        flush_lsn,
        apply_lsn,
        ..
    } = update;
    match u64::from(*flush_lsn) {
        0 => tracing::trace!(%write_lsn, %apply_lsn, "status to Postgres, confirms nothing new"),
        _ => tracing::debug!(%write_lsn, %flush_lsn, "status to Postgres: the slot is confirmed"),
    }
}
