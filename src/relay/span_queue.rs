//! Spans on their way from the relay to whoever exports them.
//!
//! In: spans of the relay's loop. Out: what an exporter takes, and counts. Guarantee: the loop never waits for the exporter but for
//! a lock that is held for as long as a span is moved.

use crate::pipeline::position::Position;
use crate::relay::settings::Settings;
use crate::relay::status::OtlpCounts;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::Notify;

/// Why spans are dropped, and which attempts fail: each has its series from the start.
const DROP_REASONS: [&str; 3] = [QUEUE_FULL, "refused", "unreachable"];
const SIGNALS: [&str; 2] = ["metrics", "traces"];
const QUEUE_FULL: &str = "queue-full";

/// What the spans of a lane have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanLane {
    /// `name` of the configuration.
    pub relay: String,
    /// Number of the share; none where the outbox is not divided.
    pub share: Option<u32>,
    /// The slot.
    pub slot: String,
    /// The stream.
    pub stream: String,
    /// How messages are published.
    pub mode: &'static str,
}

impl SpanLane {
    /// The lane of these settings.
    pub(super) fn of(settings: &Settings, mode: &'static str) -> Self {
        let share = settings.postgres.share.as_ref();
        SpanLane {
            relay: settings.name.clone(),
            share: share.map(|share| share.number),
            slot: settings.postgres.slot.clone(),
            stream: settings.nats.stream.clone(),
            mode,
        }
    }
}

/// The trace of an event, as its application has begun it (W3C Trace Context, `traceparent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Not all zero.
    pub trace_id: [u8; 16],
    /// Not all zero.
    pub span_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

/// Messages that were published together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSpan {
    /// Of which lane.
    pub lane: Arc<SpanLane>,
    /// When its first event was read.
    pub began: SystemTime,
    /// When its last event was acknowledged, or when that was given up.
    pub ended: SystemTime,
    /// How many messages.
    pub events: u64,
    /// Their bytes, with headers.
    pub bytes: u64,
    /// Where its first event stands in the WAL.
    pub first: Option<Position>,
    /// Where its last event stands.
    pub last: Option<Position>,
    /// The traces of its events.
    pub links: Vec<TraceContext>,
    /// How many found no room among them.
    pub links_dropped: u32,
    /// What ended the epoch before the acknowledgement had come; none where it came.
    pub failed: Option<&'static str>,
}

/// How many spans there may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanLimits {
    /// Spans that wait.
    pub queue_max: usize,
    /// Spans that leave together.
    pub batch_max: usize,
    /// Links of a span.
    pub links_max: usize,
    /// Of all batches, those that are told of: from 0 to 1.
    pub share: f64,
}

#[derive(Debug, Default)]
struct Inner {
    spans: VecDeque<BatchSpan>,
    counts: OtlpCounts,
}

/// A queue with an end, and counts of what became of what was in it.
#[derive(Debug, Clone)]
pub struct SpanQueue {
    limits: SpanLimits,
    inner: Arc<Mutex<Inner>>,
    batch: Arc<Notify>,
}

impl SpanQueue {
    /// An empty one.
    pub fn new(limits: SpanLimits) -> Self {
        let zero = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 0)).collect();
        let counts = OtlpCounts {
            spans_dropped: zero(&DROP_REASONS),
            exports_failed: zero(&SIGNALS),
            ..OtlpCounts::default()
        };
        SpanQueue {
            limits,
            inner: Arc::new(Mutex::new(Inner {
                counts,
                ..Inner::default()
            })),
            batch: Arc::new(Notify::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic left half written is still numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any batch is told of.
    pub(super) fn is_wanted(&self) -> bool {
        self.limits.share > 0.0
    }

    /// Most links of a span.
    pub(super) fn links_max(&self) -> usize {
        self.limits.links_max
    }

    /// Whether the next batch is told of.
    pub(super) fn samples(&self) -> bool {
        match self.limits.share {
            share if share >= 1.0 => true,
            share => rand::random::<f64>() < share,
        }
    }

    /// Puts a span behind the others, where there is room.
    pub(super) fn offer(&self, span: BatchSpan) {
        let mut inner = self.lock();
        inner.counts.links_dropped += u64::from(span.links_dropped);
        if inner.spans.len() >= self.limits.queue_max {
            count(&mut inner.counts.spans_dropped, QUEUE_FULL, 1);
            return;
        }
        inner.spans.push_back(span);
        if inner.spans.len() == self.limits.batch_max {
            self.batch.notify_one();
        }
    }

    /// Waits until as many spans are there as leave together.
    pub(crate) async fn has_batch(&self) {
        self.batch.notified().await;
    }

    /// Takes the oldest, as many as leave together at most.
    pub(crate) fn take(&self) -> Vec<BatchSpan> {
        let mut inner = self.lock();
        let count = inner.spans.len().min(self.limits.batch_max);
        inner.spans.drain(..count).collect()
    }

    /// So many spans were taken by the collector.
    pub(crate) fn exported(&self, spans: u64) {
        self.lock().counts.spans_exported += spans;
    }

    /// So many spans are given up.
    pub(crate) fn dropped(&self, reason: &'static str, spans: u64) {
        count(&mut self.lock().counts.spans_dropped, reason, spans);
    }

    /// An attempt to export has failed.
    pub(crate) fn failed(&self, signal: &'static str) {
        count(&mut self.lock().counts.exports_failed, signal, 1);
    }

    /// What has happened so far.
    pub(crate) fn counts(&self) -> OtlpCounts {
        self.lock().counts.clone()
    }
}

fn count(counts: &mut std::collections::BTreeMap<String, u64>, name: &'static str, more: u64) {
    *counts.entry(name.to_owned()).or_default() += more;
}
