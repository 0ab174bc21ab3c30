//! The messages in flight: counted, not judged.
//!
//! In: rows that have left, how many are stored. Out: room, deadlines, positions; and what any way of publishing reads out
//! of an answer.

use super::answer::{Answer, excerpt};
use super::{Origin, WindowSettings};
use crate::pipeline::fault::Fault;
use crate::pipeline::position::Position;
use std::collections::VecDeque;
use std::time::Duration;

/// A row on its way.
#[derive(Debug)]
struct Sent {
    origin: Origin,
    bytes: usize,
}

/// The messages in flight of one epoch.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) settings: WindowSettings,
    /// The stream's last sequence before the epoch's first message.
    pub(super) base_sequence: u64,
    /// Rows of the epoch.
    pub(super) published: u64,
    /// Of these, acknowledged.
    pub(super) acknowledged: u64,
    sent: VecDeque<Sent>,
    bytes: usize,
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
            published: 0,
            acknowledged: 0,
            sent: VecDeque::new(),
            bytes: 0,
            waiting_since: Duration::ZERO,
        }
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        let alone = self.acknowledged < self.settings.limits.one_by_one;
        self.sent.len() < self.settings.limits.messages_max
            && (!alone || self.sent.is_empty())
            && self.bytes < self.settings.limits.bytes_max
    }

    /// Messages without an acknowledgement.
    pub(super) fn len(&self) -> u64 {
        self.published - self.acknowledged
    }

    /// The oldest row without an acknowledgement.
    pub(super) fn oldest(&self) -> Option<Position> {
        self.sent.front().map(|sent| sent.origin.position)
    }

    /// The last row in flight that is no replay.
    pub(super) fn last_first_publication(&self) -> Option<&Origin> {
        let mut origins = self.sent.iter().rev().map(|sent| &sent.origin);
        origins.find(|origin| origin.first_publication)
    }

    #[inline]
    pub(super) fn push(&mut self, origin: Origin, bytes: usize, now: Duration) {
        if self.sent.is_empty() {
            self.waiting_since = now;
        }
        self.published += 1;
        self.bytes += bytes;
        self.sent.push_back(Sent { origin, bytes });
    }

    /// So many rows of the epoch are stored; hands the newly acknowledged ones to `each`.
    pub(super) fn acknowledge(
        &mut self,
        through: u64,
        now: Duration,
        mut each: impl FnMut(&Origin),
    ) -> Result<u64, Fault> {
        while self.acknowledged < through {
            let Some(sent) = self.sent.pop_front() else {
                return Err(Fault::Answer(format!(
                    "row {through} of {}",
                    self.published
                )));
            };
            self.acknowledged += 1;
            self.bytes -= sent.bytes;
            each(&sent.origin);
        }
        self.waiting_since = now;
        Ok(self.acknowledged)
    }

    /// When the epoch is over unless an acknowledgement comes before.
    pub(super) fn ack_deadline(&self, has_open_batch: bool) -> Option<Duration> {
        (!self.sent.is_empty() || has_open_batch)
            .then(|| self.waiting_since + self.settings.limits.ack_timeout)
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
        let expected = self.base_sequence + number;
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
