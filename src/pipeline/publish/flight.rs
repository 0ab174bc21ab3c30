//! The messages in flight: counted and kept, not judged.
//!
//! In: rows that have left, how many are stored, the end of a connection. Out: room, deadlines, positions, what is to be sent
//! again; and what any way of publishing reads out of an answer.

use super::answer::{Answer, excerpt};
use super::kept::{Kept, Parts};
use super::{Message, Origin, WindowSettings};
use crate::pipeline::fault::Fault;
use crate::pipeline::position::Position;
use std::collections::VecDeque;
use std::time::Duration;

/// A row on its way.
#[derive(Debug)]
struct Sent {
    origin: Origin,
    /// Size of its message.
    bytes: usize,
    parts: Parts,
}

/// The messages in flight of one epoch, on one connection after the other.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) settings: WindowSettings,
    /// The stream's last sequence before the connection's first message.
    base_sequence: u64,
    /// Rows of the epoch before that message.
    pub(super) begun: u64,
    /// Rows of the epoch, but for those that wait.
    pub(super) published: u64,
    /// Of these, acknowledged.
    pub(super) acknowledged: u64,
    sent: VecDeque<Sent>,
    /// Rows that an earlier connection has sent, to be sent again behind all of `sent`.
    waiting: VecDeque<Sent>,
    /// Of the rows sent and, behind them, the waiting ones.
    kept: Kept,
    /// Bytes of the messages sent and not acknowledged.
    bytes: usize,
    /// Bytes of all messages sent, on whichever connection.
    pub(super) bytes_sent: u64,
    /// Of `kept`, the bytes of the rows sent.
    kept_sent: usize,
    waiting_since: Duration,
}

/// An answer to a published message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply<'a> {
    /// Its subject behind `<inbox>.`.
    pub(super) token: &'a [u8],
    pub(super) status: Option<u16>,
    pub(super) payload: &'a [u8],
}

impl Flight {
    pub(super) fn new(settings: WindowSettings, base_sequence: u64) -> Self {
        Flight {
            settings,
            base_sequence,
            begun: 0,
            published: 0,
            acknowledged: 0,
            sent: VecDeque::new(),
            waiting: VecDeque::new(),
            kept: Kept::default(),
            bytes: 0,
            bytes_sent: 0,
            kept_sent: 0,
            waiting_since: Duration::ZERO,
        }
    }

    /// Goes on with another connection, behind `base_sequence`: rows up to `through` are stored, which is handed to `each`,
    /// the rest waits to be sent again.
    pub(super) fn reopen(
        &mut self,
        settings: WindowSettings,
        base_sequence: u64,
        through: Option<Position>,
        mut each: impl FnMut(&Origin),
    ) {
        self.sent.append(&mut self.waiting);
        std::mem::swap(&mut self.sent, &mut self.waiting);
        let is_stored = |row: &Sent| through.is_some_and(|through| row.origin.position <= through);
        while self.waiting.front().is_some_and(is_stored)
            && let Some(stored) = self.waiting.pop_front()
        {
            self.kept.pop(stored.parts);
            self.acknowledged += 1;
            each(&stored.origin);
        }
        self.settings = settings;
        self.base_sequence = base_sequence;
        (self.begun, self.published) = (self.acknowledged, self.acknowledged);
        (self.bytes, self.kept_sent) = (0, 0);
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        let alone = self.acknowledged - self.begun < self.settings.limits.one_by_one;
        self.sent.len() < self.settings.limits.messages_max
            && (!alone || self.sent.is_empty())
            && self.bytes < self.settings.limits.bytes_max
    }

    /// Messages on their way.
    pub(super) fn len(&self) -> u64 {
        self.published - self.acknowledged
    }

    /// Bytes of these.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Rows to be sent again.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Whether the row at `position`, with this id as far as it is known, is on its way or waits.
    pub(super) fn has(&self, position: Position, event_id: Option<&str>) -> bool {
        let mut rows = self.sent.iter().chain(&self.waiting);
        rows.find(|row| row.origin.position == position)
            .is_some_and(|row| {
                let own = row.origin.event_id.as_ref().map(ToString::to_string);
                event_id.is_none() || own.as_deref() == event_id
            })
    }

    /// Stream sequence of the row with this number of the epoch, sent on this connection.
    pub(super) fn sequence_of(&self, number: u64) -> u64 {
        let sent = number.saturating_sub(self.begun);
        self.base_sequence.saturating_add(sent)
    }

    /// The oldest row on its way.
    pub(super) fn oldest(&self) -> Option<Position> {
        self.sent.front().map(|sent| sent.origin.position)
    }

    /// The last row in flight that is no replay.
    pub(super) fn last_first_publication(&self) -> Option<&Origin> {
        let mut origins = self.sent.iter().rev().map(|sent| &sent.origin);
        origins.find(|origin| origin.first_publication)
    }

    #[inline]
    pub(super) fn push(
        &mut self,
        row: &Message<'_>,
        frame: &[u8],
        body_bytes: usize,
        origin: Origin,
        bytes: usize,
        now: Duration,
    ) {
        let parts = Parts::of(row, body_bytes);
        self.kept.push(row.subject, row.headers, body_bytes, frame);
        self.count(
            Sent {
                origin,
                bytes,
                parts,
            },
            now,
        );
    }

    fn count(&mut self, sent: Sent, now: Duration) {
        if self.sent.is_empty() {
            self.waiting_since = now;
        }
        self.published += 1;
        self.bytes += sent.bytes;
        self.bytes_sent += sent.bytes as u64;
        self.kept_sent += sent.parts.len();
        self.sent.push_back(sent);
    }

    /// The next row to be sent again.
    pub(super) fn next_waiting(&self) -> Option<Message<'_>> {
        let row = self.waiting.front()?;
        Some(self.kept.at(self.kept_sent, row.parts))
    }

    /// That row has been sent.
    pub(super) fn sent_again(&mut self, bytes: usize, now: Duration) {
        if let Some(row) = self.waiting.pop_front() {
            self.count(Sent { bytes, ..row }, now);
        }
    }

    /// So many rows of the epoch are stored; hands the newly acknowledged ones to `each`.
    pub(super) fn acknowledge(
        &mut self,
        through: u64,
        now: Duration,
        mut each: impl FnMut(&Origin),
    ) -> Result<u64, Fault> {
        if through > self.published {
            let text = format!("row {through} of {}", self.published);
            return Err(Fault::Answer(text));
        }
        while self.acknowledged < through
            && let Some(sent) = self.sent.pop_front()
        {
            self.acknowledged += 1;
            self.bytes -= sent.bytes;
            self.kept_sent -= sent.parts.len();
            self.kept.pop(sent.parts);
            each(&sent.origin);
        }
        self.waiting_since = now;
        Ok(self.acknowledged)
    }

    /// Since when the oldest row on its way waits for an answer, or an open batch for its end.
    pub(super) fn unanswered_since(&self, has_open_batch: bool) -> Option<Duration> {
        (!self.sent.is_empty() || has_open_batch).then_some(self.waiting_since)
    }

    /// When the epoch is over unless an acknowledgement comes before.
    pub(super) fn ack_deadline(&self, has_open_batch: bool) -> Option<Duration> {
        self.unanswered_since(has_open_batch)
            .map(|since| since + self.settings.limits.ack_timeout)
    }

    /// The row with this number of the epoch, from 1; the oldest in flight where the number tells nothing.
    fn position_of(&self, number: u64) -> Position {
        let index = number.saturating_sub(self.acknowledged + 1);
        usize::try_from(index)
            .ok()
            .and_then(|index| self.sent.get(index))
            .or(self.sent.front())
            .map_or(
                Position {
                    commit_lsn: 0.into(),
                    ordinal: 0,
                },
                |sent| sent.origin.position,
            )
    }

    /// Reads the answer to the row with this number.
    pub(super) fn read_answer(&self, reply: &Reply<'_>, number: u64) -> Result<Answer, Fault> {
        if reply.status == Some(503) && reply.payload.is_empty() {
            return Err(Fault::NoResponders(self.position_of(number)));
        }
        let answer: Answer = serde_json::from_slice(reply.payload)
            .map_err(|_| Fault::Answer(excerpt(reply.payload)))?;
        let Some(error) = answer.error else {
            return Ok(answer);
        };
        Err(Fault::Refused {
            position: self.position_of(number),
            code: error.code,
            err_code: error.err_code,
            description: error.description,
        })
    }

    /// The row with this number must be stored in the lane's own stream, right behind the one before.
    pub(super) fn check_stored(&self, answer: &Answer, number: u64) -> Result<(), Fault> {
        let expected = self.sequence_of(number);
        if answer.stream.as_deref() == Some(&self.settings.stream)
            && answer.seq == Some(expected)
            && !answer.duplicate
        {
            return Ok(());
        }
        Err(Fault::Answer(format!(
            "expected sequence {expected} of stream {}, got {answer:?}",
            self.settings.stream
        )))
    }
}
