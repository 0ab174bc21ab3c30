//! The lane's last message in a stream of its own, searched from the end backwards.
//!
//! In: stored messages, the last one first; what record and memory know. Out: a [`FoundEnd`]. Guarantee: only a message that
//! stands where the relay put it counts. Each of the lane's messages carries the sequence that it was to follow
//! (`Nats-Expected-Last-Sequence`, which nats-server stores with it), so a copy, as a consumer's redrive leaves it with
//! all headers of ours, is told from the message itself.

use super::event_id;
use super::lane_end::{Doubt, LaneEnd, Memory, NOTHING, settled_end};
use super::position::{self, Position};
use super::record::LaneRecord;

/// How many messages that are not the lane's may stand at the end of a stream before the search for its own ends, unless
/// record or memory know where it must end.
pub const FOREIGN_MESSAGES_MAX: u64 = 10_000;

/// What the end of the stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundEnd {
    /// The lane's last message; only messages of no lane stand behind it.
    Found(LaneEnd),
    /// No message of the lane, back to the stream's beginning or to the lane's adoption.
    Nothing,
    /// A message of another slot stands at the end.
    OtherSlot {
        /// Its sequence.
        sequence: u64,
        /// Its slot.
        slot: String,
    },
    /// The search met a removed message.
    Removed {
        /// Its sequence.
        sequence: u64,
    },
    /// In a shared stream, where others move the last sequence: the lane's own message there, its fence, was removed.
    FenceRemoved,
    /// Somebody else's message stands where record or memory know one of the lane, and the lane's last stands behind it.
    Replaced {
        /// Its sequence.
        sequence: u64,
    },
    /// Behind what stands in its place, a message of the lane that was copied here, or whose stream was made from another
    /// one.
    Copied {
        /// Its sequence.
        sequence: u64,
    },
    /// The search gave up after so many messages.
    TooFar {
        /// How many were read.
        scanned: u64,
    },
}

/// A message that a search asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'s> {
    /// The one with this sequence.
    Message(u64),
    /// The last one on this subject.
    Last(&'s str),
    /// The first one at or behind this sequence whose subject matches.
    Next {
        /// The sequence.
        from: u64,
        /// What the subject is to match.
        filter: &'s str,
    },
}

/// The search for the lane's last message, from the stream's end backwards, one message a step.
#[derive(Debug)]
pub struct EndSearch<'a> {
    slot: &'a str,
    floor: u64,
    next: u64,
    scanned: u64,
    /// Nothing of the lane can stand behind it: where the search looks when the way there is too long.
    settled: Option<LaneEnd>,
    /// The newest message of the slot that does not stand where it was put.
    copy: Option<u64>,
    /// The furthest position that such messages tell.
    copied: Option<Position>,
    /// Messages that the lane is known to have gone on behind: a broker that lost one of them, and has another's in its
    /// place, does not tell that by its end any more.
    left: Vec<u64>,
    /// What the search has found, while those are looked at.
    found: Option<FoundEnd>,
    /// Nothing of the lane is missed where no message of its own is found.
    may_be_empty: bool,
    /// The stream was seen to acknowledge what it does not keep.
    doubt: Option<Doubt>,
    /// A removed message stands behind the doubt: has the stream anything between the two?
    doubting: bool,
}

/// A stored message as the search needs it.
#[derive(Debug, Clone, Copy)]
pub struct StoredMessage<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// Value of [`position::POSITION_HEADER`].
    pub position: Option<&'a str>,
    /// Value of [`position::TAIL_HEADER`].
    pub tail: Option<&'a str>,
    /// Value of [`position::EXPECTED_HEADER`].
    pub expected_sequence: Option<&'a str>,
    /// It is a fence of a time when others wrote to the stream too; a lane's fence subject is its own.
    pub is_fence: bool,
    /// It was published in an atomic batch.
    pub in_batch: bool,
    /// Value of [`position::KIND_HEADER`].
    pub kind: Option<&'a str>,
    /// Value of [`position::TABLE_HEADER`].
    pub table: Option<&'a str>,
    /// Values of [`event_id::ID_HEADERS`].
    pub id: [Option<&'a str>; 2],
    /// The body.
    pub body: &'a [u8],
}

/// What a message tells of its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The lane's position behind it.
    pub position: Position,
    /// The event's id there.
    pub event_id: Option<String>,
    /// The table that the event is of, see [`LaneEnd::table`].
    pub table: Option<String>,
}

impl Told {
    /// As the lane end, where the message has that sequence.
    pub(crate) fn at(self, sequence: u64) -> LaneEnd {
        LaneEnd {
            sequence,
            position: self.position,
            event_id: self.event_id,
            table: self.table,
        }
    }
}

impl<'a> EndSearch<'a> {
    /// Begins at the last sequence of the stream created at `created`; what is at or below the lane's adoption in
    /// that very stream does not count.
    pub fn new(
        slot: &'a str,
        last_sequence: u64,
        created: &str,
        record: Option<&LaneRecord>,
        memory: Option<&Memory>,
    ) -> Self {
        let settled = settled_end(record, memory, created, last_sequence);
        let doubt = Doubt::of(record, memory, created, last_sequence);
        let memory = memory.filter(|memory| memory.is_current(created, record));
        let record = record.filter(|record| record.created == created);
        let recorded = record.filter(|record| record.position.is_some());
        let remembered = memory.and_then(|memory| memory.lane_end.as_ref());
        EndSearch {
            slot,
            floor: record.map_or(0, |record| record.adopted_sequence),
            next: last_sequence,
            scanned: 0,
            settled,
            copy: None,
            copied: None,
            left: recorded
                .map(|record| record.sequence)
                .into_iter()
                .chain(memory.and_then(|memory| memory.recorded_sequence))
                .chain(remembered.map(|lane_end| lane_end.sequence))
                .collect(),
            found: None,
            may_be_empty: record
                .is_some_and(|record| record.adopted_sequence > 0 && record.position.is_none()),
            doubt,
            doubting: false,
        }
    }

    /// What to look up next; `None` when there is nothing.
    pub fn wanted(&self) -> Option<Lookup<'static>> {
        if self.found.is_some() {
            return self.left.last().copied().map(Lookup::Message);
        }
        if let Some(doubt) = self.doubt.as_ref().filter(|_| self.doubting) {
            let from = doubt.sequence() + 1;
            return Some(Lookup::Next { from, filter: ">" });
        }
        (self.next > self.floor).then_some(Lookup::Message(self.next))
    }

    /// Behind this sequence the search has seen no message of the slot: where another search may go on at once.
    pub fn none_behind(&self) -> u64 {
        self.copy.unwrap_or(self.next)
    }

    /// What the search has found where [`Self::wanted`] names no further message.
    pub fn end(self) -> FoundEnd {
        match self.copy {
            // Behind an adoption it has published nothing yet, by its record.
            Some(sequence) if !self.may_be_empty => FoundEnd::Copied { sequence },
            _ => FoundEnd::Nothing,
        }
    }

    /// Takes the message that [`Self::wanted`] named, `None` when the stream no longer has it.
    pub fn take(&mut self, message: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        if self.found.is_some() {
            return self.take_left(message);
        }
        let sequence = self.next;
        if self.doubting {
            return self.take_doubted(message);
        }
        let Some(message) = message else {
            return self.pass_removed();
        };
        // What cannot be read as a position was not written by a relay, whatever its header is called.
        if let Some((slot, told)) = message.told() {
            let is_own = slot == self.slot;
            if is_own && message.is_in_place() {
                return self.found_own(told.at(sequence));
            } else if is_own {
                self.copy = self.copy.or(Some(sequence));
                self.copied = self.copied.max(Some(told.position));
            } else if message.is_in_place() {
                return Some(FoundEnd::OtherSlot {
                    sequence,
                    slot: slot.to_owned(),
                });
            }
        }
        if let Some(sequence) = message.none_behind(self.slot) {
            self.skip_to(sequence);
            return None;
        }
        self.pass()
    }

    /// A message in its place. What a consumer copies was published: a copy from further on tells that the stream was made
    /// from another one, or has lost the message itself.
    fn found_own(&mut self, lane_end: LaneEnd) -> Option<FoundEnd> {
        match self.copy {
            Some(sequence) if self.copied > Some(lane_end.position) => {
                Some(FoundEnd::Copied { sequence })
            }
            _ => self.found(lane_end.sequence, FoundEnd::Found(lane_end)),
        }
    }

    /// It is the lane's end, unless a message that is known to stand before it was lost.
    fn found(&mut self, sequence: u64, lane_end: FoundEnd) -> Option<FoundEnd> {
        let floor = self.floor;
        self.left
            .retain(|left| (floor + 1..sequence).contains(left));
        self.left.sort_unstable();
        self.left.dedup();
        self.found = Some(lane_end);
        self.found_unless_left()
    }

    /// A message that the lane has gone on behind.
    fn take_left(&mut self, message: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        let sequence = self.left.pop()?;
        if message.is_some_and(|message| !message.is_in_place()) {
            return Some(FoundEnd::Replaced { sequence });
        }
        self.found_unless_left()
    }

    fn found_unless_left(&mut self) -> Option<FoundEnd> {
        match self.left.is_empty() {
            true => self.found.take(),
            false => None,
        }
    }

    /// A message that was removed is none of the lane's where it stands behind a settled one.
    fn pass_removed(&mut self) -> Option<FoundEnd> {
        let sequence = self.next;
        if self
            .doubt
            .as_ref()
            .is_some_and(|doubt| doubt.sequence() < sequence)
        {
            self.doubting = true;
            return None;
        }
        match self.settled.take() {
            Some(settled) if settled.sequence < sequence => {
                self.next = settled.sequence;
                None
            }
            _ => self.found(sequence, FoundEnd::Removed { sequence }),
        }
    }

    /// The first message behind the doubt. None up to the removed one: all of them were never stored. Else, some were and
    /// some were not, and only a person can tell which.
    fn take_doubted(&mut self, message: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        let doubt = self.doubt.take()?;
        self.doubting = false;
        let sequence = self.next;
        if message.is_some_and(|message| message.sequence < sequence) {
            return self.found(sequence, FoundEnd::Removed { sequence });
        }
        match doubt.lane_end {
            // The removed one stands in for it: what lies between needs no explanation any more.
            Some(lane_end) => self.found(
                sequence,
                FoundEnd::Found(LaneEnd {
                    sequence,
                    ..lane_end
                }),
            ),
            None => {
                self.next = self.floor;
                None
            }
        }
    }

    /// What lies between was searched when the message in hand was stored. What record or memory know is looked at all
    /// the same: a broker may have lost it.
    fn skip_to(&mut self, sequence: u64) {
        let settled = self
            .settled
            .as_ref()
            .map_or(0, |lane_end| lane_end.sequence);
        self.next = sequence.max(settled).min(self.next - 1);
    }

    /// Goes on to the message before, or to the settled one where that is too far away.
    fn pass(&mut self) -> Option<FoundEnd> {
        self.next -= 1;
        self.scanned += 1;
        if self.scanned < FOREIGN_MESSAGES_MAX {
            return None;
        }
        match self.settled.take() {
            Some(settled) if settled.sequence <= self.next => {
                self.next = settled.sequence;
                None
            }
            _ if self.is_bounded() => None,
            _ => Some(FoundEnd::TooFar {
                scanned: self.scanned,
            }),
        }
    }

    /// A message of the lane stands further back, or the lane's adoption: the way there is long, but it has an end.
    fn is_bounded(&self) -> bool {
        self.floor > 0 || self.left.iter().any(|sequence| *sequence <= self.next)
    }
}

impl<'m> StoredMessage<'m> {
    /// The id of the event that it carries.
    pub fn event_id(&self) -> Option<String> {
        event_id::of_headers(self.id).or_else(|| event_id::of_body(self.body))
    }

    /// The slot, and what it tells of that lane.
    pub fn told(&self) -> Option<(&'m str, Told)> {
        if let Some(tail) = self.tail {
            return split_tail(tail);
        }
        let (slot, position) = position::parse_header(self.position?).ok()?;
        let told = Told {
            position,
            event_id: self.event_id(),
            // The lane's own table has no header.
            table: Some(self.table.unwrap_or_default().to_owned()),
        };
        Some((slot, told))
    }

    /// Slot and position by the position header, or by what a fence tells of its batch's last event.
    pub(crate) fn told_position(&self) -> Option<(&'m str, Position)> {
        let Some(header) = self.position else {
            return split_tail(self.tail?).map(|(slot, told)| (slot, told.position));
        };
        position::parse_header(header).ok()
    }

    /// Not a replay, whose header tells another place than the lane's.
    pub(crate) fn is_first_publication(&self) -> bool {
        self.kind != Some(position::KIND_REPLAY)
    }

    /// The sequence behind which `slot` had no message when this one was stored, if it says so: see [`none_behind_header`].
    fn none_behind(&self, slot: &str) -> Option<u64> {
        let (of_slot, sequence) = self.tail?.split_once(' ')?;
        (of_slot == slot && self.is_in_place())
            .then(|| sequence.parse().ok())
            .flatten()
    }

    /// Whether it stands where a relay put it in a stream of our own.
    pub(crate) fn is_in_place(&self) -> bool {
        self.is_fence || is_in_place(self.expected_sequence, self.sequence)
    }

    /// What it tells, if a relay of `slot` put it there, in a stream of our own or in a shared one: a consumer's copy carries
    /// none of NATS' own headers.
    pub fn told_by(&self, slot: &str) -> Option<Told> {
        let (of_slot, told) = self
            .told()
            .filter(|_| self.in_batch || self.is_in_place())?;
        (of_slot == slot).then_some(told)
    }
}

/// Whether a message of a stream of our own stands right behind the one that it was to follow.
fn is_in_place(expected_sequence: Option<&str>, sequence: u64) -> bool {
    expected_sequence
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|expected| Some(expected) == sequence.checked_sub(1))
}

/// The value of [`position::TAIL_HEADER`] where the lane's last message is not known: `<slot> <sequence>`, no message of the
/// lane stands behind that sequence.
pub(crate) fn none_behind_header(slot: &str, sequence: u64) -> String {
    format!("{slot} {sequence}")
}

/// Reads the value of [`position::TAIL_HEADER`]: the slot, and what [`tail_header`](super::lane_end::tail_header) has written.
pub(crate) fn split_tail(tail: &str) -> Option<(&str, Told)> {
    let mut parts = tail.splitn(4, ' ');
    let (slot, position, id) = (parts.next()?, parts.next()?, parts.next()?);
    let told = Told {
        position: position.parse().ok()?,
        event_id: (id != NOTHING).then(|| id.to_owned()),
        table: parts.next().map(|table| match table {
            NOTHING => String::new(),
            table => table.to_owned(),
        }),
    };
    Some((slot, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tail_tells_is_read_as_it_was_written() {
        for table in [None, Some(""), Some("public.orders"), Some("odd.two words")] {
            for event_id in [None, Some("e1")] {
                let lane_end = Told {
                    position: "0/32:1".parse().expect("a position"),
                    event_id: event_id.map(str::to_owned),
                    table: table.map(str::to_owned),
                }
                .at(7);
                let tail = lane_end.tail("s");
                let (slot, told) = split_tail(&tail).expect("a tail");
                assert_eq!((slot, told.at(7)), ("s", lane_end), "{tail}");
            }
        }
        // The sequence behind which the lane has no message is none.
        assert_eq!(split_tail(&none_behind_header("s", 7)), None);
    }
}
