//! What a turn tells of its batches.
//!
//! In: the frames that it hands over, and how many rows are acknowledged. Out: spans. Guarantee: nothing is decided here.

use super::{BrokerTransport, Turn, WalTransport};
use crate::relay::batch_spans::BatchSpans;
use crate::relay::span_queue::{SpanLane, SpanQueue};
use std::time::SystemTime;

impl<W: WalTransport, B: BrokerTransport> Turn<W, B> {
    /// Has each batch told of from now on.
    pub fn tell_batches(&mut self, queue: SpanQueue, lane: SpanLane) {
        let acknowledged = self.engine.progress().acknowledged_rows();
        let batches = self.engine.traffic().batches;
        self.spans = Some(BatchSpans::new(queue, lane, acknowledged, batches));
    }

    /// No acknowledgement comes any more, for this reason.
    pub(in crate::relay) fn end_spans(&mut self, reason: &'static str) {
        self.tell_acknowledged();
        if let Some(spans) = &mut self.spans {
            spans.end(reason);
        }
    }

    pub(super) fn tell_acknowledged(&mut self) {
        if let Some(spans) = &mut self.spans {
            spans.acknowledged(self.engine.progress().acknowledged_rows());
        }
    }

    /// Where the frames of the turn that begins now will stand, and when that is; none where nobody is told.
    pub(super) fn unread(&mut self) -> Option<(usize, SystemTime)> {
        self.spans.as_ref()?;
        Some((self.broker.outgoing().len(), SystemTime::now()))
    }

    /// Tells of the rows that a turn has put there.
    pub(super) fn tell_sent(&mut self, unread: Option<(usize, SystemTime)>) {
        if let (Some(spans), Some((behind, began))) = (&mut self.spans, unread) {
            let batches = self.engine.traffic().batches;
            spans.sent(&self.broker.outgoing()[behind..], batches, began);
        }
    }
}
