//! A span for each batch: from the reading of its first event to the acknowledgement of its last, with the traces of its events.
//!
//! In: frames as they wait for the broker, and how many rows are acknowledged. Out: a [`BatchSpan`] for the [queue](SpanQueue).
//! Guarantees: it reads what leaves and decides nothing; it never waits, and what finds no room is counted.

use crate::pipeline::position::{POSITION_HEADER, Position};
use crate::relay::span_queue::{BatchSpan, SpanLane, SpanQueue, TraceContext};
use memchr::memchr;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

/// Most events of a span. Fast ingest keeps a batch open for as long as rows come.
const EVENTS_MAX: u64 = 1_000;
/// W3C Trace Context, and the name that a CloudEvent's extension has as a header.
const TRACE_HEADERS: [&str; 2] = ["traceparent", "ce-traceparent"];

/// What a span's events have in common: a batch, or a turn where each message stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Together {
    Batch(u64),
    Turn(u64),
}

#[derive(Debug)]
struct Open {
    together: Together,
    /// Number of its last row.
    last_row: u64,
    /// None where it is not among those that are told of.
    span: Option<BatchSpan>,
    events: u64,
}

/// The spans of one connection to the broker.
#[derive(Debug)]
pub struct BatchSpans {
    queue: SpanQueue,
    lane: Arc<SpanLane>,
    /// Rows of the epoch that have left, or were acknowledged before this connection.
    sent: u64,
    /// Batches of earlier connections.
    batches_before: u64,
    turns: u64,
    open: VecDeque<Open>,
}

impl BatchSpans {
    /// Begins behind so many acknowledged rows and batches of the epoch.
    pub fn new(queue: SpanQueue, lane: SpanLane, acknowledged: u64, batches: u64) -> Self {
        BatchSpans {
            queue,
            lane: Arc::new(lane),
            sent: acknowledged,
            batches_before: batches,
            turns: 0,
            open: VecDeque::new(),
        }
    }

    /// A turn hands over these frames, which belong to the last of so many batches of the epoch, if this connection has any.
    pub fn sent(&mut self, frames: &[u8], batches: u64, began: SystemTime) {
        if frames.is_empty() {
            return;
        }
        self.turns += 1;
        let together = match batches - self.batches_before {
            0 => Together::Turn(self.turns),
            batch => Together::Batch(batch),
        };
        let links_max = self.queue.links_max();
        let mut frames = Frames(frames).peekable();
        while let Some(frame) = frames.next() {
            self.sent += 1;
            let open = self.span_of(together, began);
            open.last_row += 1;
            open.events += 1;
            let is_last = frames.peek().is_none() || open.events == EVENTS_MAX;
            let Some(span) = &mut open.span else {
                continue;
            };
            span.events += 1;
            span.bytes += frame.bytes as u64;
            if span.first.is_none() {
                span.first = position(frame.headers);
            }
            if is_last {
                span.last = position(frame.headers);
            }
            if let Some(trace) = trace_context(frame.headers) {
                link(span, trace, links_max);
            }
        }
    }

    fn span_of(&mut self, together: Together, began: SystemTime) -> &mut Open {
        let goes_on = self
            .open
            .back()
            .is_some_and(|open| open.together == together && open.events < EVENTS_MAX);
        if !goes_on {
            let span = self.queue.samples().then(|| BatchSpan {
                lane: Arc::clone(&self.lane),
                began,
                ended: began,
                events: 0,
                bytes: 0,
                first: None,
                last: None,
                links: Vec::new(),
                links_dropped: 0,
                failed: None,
            });
            self.open.push_back(Open {
                together,
                last_row: self.sent - 1,
                span,
                events: 0,
            });
        }
        self.open.back_mut().expect("one was just put there")
    }

    /// So many rows of the epoch are acknowledged.
    pub fn acknowledged(&mut self, rows: u64) {
        let is_whole = |open: &Open| open.last_row <= rows;
        if !self.open.front().is_some_and(is_whole) {
            return;
        }
        let now = SystemTime::now();
        while self.open.front().is_some_and(is_whole) {
            let open = self.open.pop_front();
            if let Some(span) = open.and_then(|open| open.span) {
                let ended = now.max(span.began);
                self.queue.offer(BatchSpan { ended, ..span });
            }
        }
    }

    /// No acknowledgement comes any more, for this reason.
    pub fn end(&mut self, reason: &'static str) {
        let now = SystemTime::now();
        for open in self.open.drain(..) {
            if let Some(span) = open.span {
                self.queue.offer(BatchSpan {
                    ended: now.max(span.began),
                    failed: Some(reason),
                    ..span
                });
            }
        }
    }
}

/// The events of one transaction, and of one request, have one trace: it is linked once.
fn link(span: &mut BatchSpan, trace: TraceContext, links_max: usize) {
    if span.links.last() == Some(&trace) {
        return;
    }
    match span.links.len() < links_max {
        true => span.links.push(trace),
        false => span.links_dropped += 1,
    }
}

/// HPUB frames, one behind the other.
struct Frames<'a>(&'a [u8]);

#[derive(Debug)]
struct Frame<'a> {
    headers: &'a [u8],
    /// Of headers and body.
    bytes: usize,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let line_end = memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at(line_end + 1);
        let line = line.strip_prefix(b"HPUB ")?.strip_suffix(b"\r\n")?;
        let mut words = line.rsplit(|byte| *byte == b' ');
        let bytes = number(words.next()?)?;
        let headers = rest.get(..number(words.next()?)?)?;
        self.0 = rest.get(bytes + 2..)?;
        Some(Frame { headers, bytes })
    }
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The value of the first header with this name.
fn header<'a>(headers: &'a [u8], name: &str) -> Option<&'a str> {
    let mut rest = headers;
    while let Some(end) = memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.get(name.len()) == Some(&b':')
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        {
            return Some(std::str::from_utf8(&line[name.len() + 1..]).ok()?.trim());
        }
    }
    None
}

fn position(headers: &[u8]) -> Option<Position> {
    let value = header(headers, POSITION_HEADER)?;
    value.rsplit(' ').next()?.parse().ok()
}

fn trace_context(headers: &[u8]) -> Option<TraceContext> {
    let value = TRACE_HEADERS
        .iter()
        .find_map(|name| header(headers, name))?;
    // In quotes where header values are JSON.
    TraceContext::of(value.trim_matches('"'))
}

impl TraceContext {
    /// Reads a `traceparent`: version, trace, parent and flags in hexadecimal (W3C Trace Context, 3.2); a later version may have
    /// more behind them.
    fn of(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let trace_id = hex(parts.next()?)?;
        let span_id = hex(parts.next()?)?;
        let [flags] = hex(parts.next()?)?;
        let is_known = match version[0] {
            0xff => false,
            0 => parts.next().is_none(),
            _ => true,
        };
        (is_known && trace_id != [0; 16] && span_id != [0; 8]).then_some(TraceContext {
            trace_id,
            span_id,
            flags,
        })
    }
}

/// Lower case only, as the specification has it.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::span_queue::SpanLimits;

    const LIMITS: SpanLimits = SpanLimits {
        queue_max: 16,
        batch_max: 4,
        links_max: 3,
        share: 1.0,
    };

    fn spans(limits: SpanLimits, acknowledged: u64) -> (SpanQueue, BatchSpans) {
        let queue = SpanQueue::new(limits);
        let lane = SpanLane {
            relay: "orders".to_owned(),
            share: None,
            slot: "s".to_owned(),
            stream: "OUTBOX".to_owned(),
            mode: "fast-ingest",
        };
        (queue.clone(), BatchSpans::new(queue, lane, acknowledged, 2))
    }

    /// A frame as it leaves.
    fn frame(ordinal: u64, traceparent: &str) -> Vec<u8> {
        let headers = format!(
            "NATS/1.0\r\nWalrelay-Position: s 16/B374D848:{ordinal}\r\nTraceparent: {traceparent}\r\n\r\n"
        );
        let body = "HPUB not a frame\r\n";
        let (headers_len, total) = (headers.len(), headers.len() + body.len());
        format!("HPUB a.b inbox.1 {headers_len} {total}\r\n{headers}{body}\r\n").into_bytes()
    }

    fn traceparent(number: u8) -> String {
        format!("00-{:032x}-{:016x}-01", number, u64::from(number) + 256)
    }

    #[test]
    fn a_span_has_its_batchs_events_and_their_traces() {
        let (queue, mut spans) = spans(LIMITS, 7);
        let began = SystemTime::now();
        let turn: Vec<u8> = [1, 1, 2, 3]
            .iter()
            .zip(0..)
            .flat_map(|(trace, ordinal)| frame(ordinal, &traceparent(*trace)))
            .collect();
        spans.sent(&turn, 3, began);
        // The batch goes on in the next turn.
        let next: Vec<u8> = [frame(4, &traceparent(4)), frame(5, "no trace")].concat();
        spans.sent(&next, 3, began);
        spans.sent(&frame(0, &traceparent(9)), 4, began);
        spans.acknowledged(12);
        assert_eq!(queue.take(), []);
        spans.acknowledged(13);
        let told = queue.take();
        let [span] = &told[..] else {
            panic!("one batch is acknowledged: {told:?}");
        };
        assert_eq!((span.events, span.failed), (6, None));
        // All but the first line and the end of each frame.
        let frames = (0..4).map(|at| frame(at, &traceparent(1)));
        let frames = frames.chain([frame(4, &traceparent(4)), frame(5, "no trace")]);
        let bytes = frames.map(|frame| {
            let line_end = memchr(b'\n', &frame).expect("a line");
            frame.len() - (line_end + 1) - 2
        });
        assert_eq!(span.bytes, bytes.sum::<usize>() as u64);
        let ordinals = [span.first, span.last].map(|position| position.map(|it| it.ordinal));
        assert_eq!(ordinals, [Some(0), Some(5)]);
        let traces: Vec<u8> = span.links.iter().map(|link| link.trace_id[15]).collect();
        assert_eq!((traces, span.links_dropped), (vec![1, 2, 3], 1));
        assert_eq!(span.links[0].span_id, [0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(queue.counts().links_dropped, 1);

        spans.end("ack-timeout");
        let told = queue.take();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].events, told[0].failed), (1, Some("ack-timeout")));
    }

    #[test]
    fn turns_are_apart_where_each_message_stands_alone_and_no_span_has_too_many() {
        let (queue, mut spans) = spans(LIMITS, 0);
        let began = SystemTime::now();
        spans.sent(&frame(0, ""), 2, began);
        spans.sent(&frame(1, ""), 2, began);
        let long: Vec<u8> = (0..EVENTS_MAX + 1)
            .flat_map(|ordinal| frame(ordinal, ""))
            .collect();
        spans.sent(&long, 2, began);
        spans.acknowledged(2 + EVENTS_MAX + 1);
        let events: Vec<u64> = queue.take().iter().map(|span| span.events).collect();
        assert_eq!(events, [1, 1, EVENTS_MAX, 1]);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, mut spans) = spans(
            SpanLimits {
                queue_max: 2,
                ..LIMITS
            },
            0,
        );
        for turn in 0..5 {
            spans.sent(&frame(turn, ""), 2, SystemTime::now());
        }
        spans.acknowledged(5);
        assert_eq!(queue.take().len(), 2);
        assert_eq!(queue.counts().spans_dropped["queue-full"], 3);
    }

    #[test]
    fn what_is_not_sampled_is_not_told() {
        let (queue, mut spans) = spans(
            SpanLimits {
                share: 0.0,
                ..LIMITS
            },
            0,
        );
        spans.sent(&frame(0, &traceparent(1)), 3, SystemTime::now());
        spans.acknowledged(1);
        assert_eq!(queue.take(), []);
        assert_eq!(queue.counts().spans_dropped.values().sum::<u64>(), 0);
    }

    #[test]
    fn only_what_the_specification_allows_is_a_trace() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(TraceContext::of(good).is_some_and(|trace| trace.flags == 1));
        assert!(TraceContext::of(&format!("cc{}-what-comes", &good[2..])).is_some());
        for bad in [
            "",
            "-",
            &good[..54],
            &format!("{good}-more"),
            &good.replace("00-", "ff-"),
            &good.to_uppercase(),
            &good.replace("b7ad6b7169203331", "0000000000000000"),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("-01", "-ü"),
        ] {
            assert_eq!(TraceContext::of(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_frame_end_what_is_read() {
        for bad in [
            &b"PUB a 3\r\nabc\r\n"[..],
            b"HPUB a 12 99999999\r\n",
            b"HPUB a",
            b"HPUB a b c\r\n",
        ] {
            assert_eq!(Frames(bad).count(), 0);
        }
    }
}
