//! The lane's last message in a stream that others write to, told by the lane's own message there: its fence.
//!
//! In: stored messages, as asked for; what record and memory know. Out: a [`FoundEnd`]. Guarantee: however long the stream is,
//! the search asks for the fence, for a later one that is known, and for what a crash of the broker may have left of the
//! batch behind it; never beyond the stream's end as it was before.

use super::dead_letter;
use super::end_search::{FoundEnd, Lookup, StoredMessage, Told, split_tail};
use super::lane_end::{LaneEnd, Memory};
use super::position::TAIL_HEADER;
use super::record::LaneRecord;

/// Most messages of others on the lane's subjects that are read behind its fence in search of its own: an answer each,
/// at every start.
pub(crate) const BEHIND_FENCE_MAX: usize = 200;

/// Value of [`TAIL_HEADER`] on the fence of a lane that has published nothing.
const NO_TAIL: &str = "-";

/// What the subjects of all fences begin with.
pub(crate) const FENCE_PREFIX: &str = "walrelay.fence.";

/// The subject of a slot's own messages in a shared stream: `walrelay.fence.<stream>.<slot>`.
#[must_use]
pub fn fence_subject(stream: &str, slot: &str) -> String {
    format!("{FENCE_PREFIX}{stream}.{slot}")
}

/// The subject of the fences behind which backfills and retries of a slot publish in a shared stream, beside its relay:
/// `walrelay.fence.<stream>.<slot>-bulk`. No slot has such a name, and `walrelay.fence.<stream>.*` takes it too.
#[must_use]
pub fn bulk_fence_subject(stream: &str, slot: &str) -> String {
    format!("{FENCE_PREFIX}{stream}.{slot}-bulk")
}

/// What the lane's own messages in a shared stream are published on.
#[derive(Debug, Clone)]
pub struct SharedSubjects {
    /// Of the fence, the lane's alone.
    pub fence: String,
    /// Of the slot's fences in streams of any name.
    pub fences: String,
    /// Of everything else: events and dead letters. Others may publish there too.
    pub filters: Vec<String>,
}

/// The stream, as it was before the first look at its messages.
#[derive(Debug, Clone, Copy)]
pub struct StreamEnd<'s> {
    /// When it was created, as the server writes it.
    pub created: &'s str,
    /// Its last sequence.
    pub last_sequence: u64,
    /// How many messages it holds.
    pub messages: u64,
}

impl SharedSubjects {
    /// Those of `slot`, whose events match `filter`.
    #[must_use]
    pub fn new(stream: &str, slot: &str, filter: String) -> Self {
        SharedSubjects {
            fence: fence_subject(stream, slot),
            fences: fence_subject("*", slot),
            filters: vec![filter, dead_letter::subject(slot)],
        }
    }
}

/// The search for the lane's last message on its own subjects, one message a step.
#[derive(Debug)]
pub struct SharedEndSearch<'a> {
    slot: &'a str,
    subjects: SharedSubjects,
    last_sequence: u64,
    /// What is at or below is not this lane's.
    adopted_sequence: u64,
    /// The latest message of the lane that record or memory know, as far as the stream reaches.
    known_sequence: Option<u64>,
    /// Record or memory know that the lane has been here.
    was_here: bool,
    /// Nothing was ever removed from the stream.
    is_whole: bool,
    /// By its record the lane has begun anew behind what the stream had, and has published nothing since.
    is_anew: bool,
    fence_sequence: u64,
    /// What has been found so far.
    last: Option<LaneEnd>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Fence,
    /// There is none: is there one from a stream of another name, which this one was made from?
    OtherFence,
    /// A later fence is known: is it gone, or another's message in its place?
    Known(u64),
    Behind {
        filter: usize,
        from: u64,
        /// How many of others have come.
        others: usize,
    },
}

impl<'a> SharedEndSearch<'a> {
    /// Begins with what the stream was before the first look at its messages.
    pub fn new(
        slot: &'a str,
        subjects: SharedSubjects,
        stream: StreamEnd<'_>,
        record: Option<&LaneRecord>,
        memory: Option<&Memory>,
    ) -> Self {
        let StreamEnd {
            created,
            last_sequence,
            messages,
        } = stream;
        let memory = memory.filter(|memory| memory.is_current(created, record));
        let record = record.filter(|record| record.created == created);
        let recorded = record.filter(|record| record.position.is_some());
        let remembered = memory.and_then(|memory| memory.lane_end.as_ref());
        let reaches = |sequence: &u64| *sequence <= last_sequence;
        SharedEndSearch {
            slot,
            subjects,
            last_sequence,
            adopted_sequence: record.map_or(0, |record| record.adopted_sequence),
            known_sequence: remembered
                .map(|lane_end| lane_end.sequence)
                .into_iter()
                .chain(recorded.map(|record| record.sequence))
                .filter(reaches)
                .max(),
            was_here: memory.is_some()
                || recorded.is_some()
                || record.is_some_and(|record| record.active),
            is_whole: messages == last_sequence,
            is_anew: remembered.is_none()
                && record
                    .is_some_and(|record| record.adopted_sequence > 0 && record.position.is_none()),
            fence_sequence: 0,
            last: None,
            step: Step::Fence,
        }
    }

    /// Sequence of the fence that was found; 0 for none.
    pub(crate) fn fence_sequence(&self) -> u64 {
        self.fence_sequence
    }

    /// What to look up next; `None` when [`Self::end`] tells what was found.
    pub fn wanted(&self) -> Option<Lookup<'_>> {
        match self.step {
            Step::Fence => Some(Lookup::Last(&self.subjects.fence)),
            Step::OtherFence => Some(Lookup::Last(&self.subjects.fences)),
            Step::Known(sequence) => Some(Lookup::Message(sequence)),
            Step::Behind { filter, from, .. } => {
                let filter = self.subjects.filters.get(filter)?;
                (from <= self.last_sequence).then_some(Lookup::Next { from, filter })
            }
        }
    }

    /// Takes what [`Self::wanted`] asked for, `None` when the stream has no such message.
    pub fn take(&mut self, message: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        match self.step {
            Step::Fence => self.take_fence(message),
            Step::OtherFence => self.take_other_fence(message),
            Step::Known(sequence) => self.take_known(message, sequence),
            Step::Behind { filter, others, .. } => self.take_behind(message, filter, others),
        }
    }

    /// What the search has found where [`Self::wanted`] names no further message.
    pub fn end(self) -> FoundEnd {
        self.last.map_or(FoundEnd::Nothing, FoundEnd::Found)
    }

    fn take_fence(&mut self, fence: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        let Some(fence) = fence else {
            return self.without_fence();
        };
        self.fence_sequence = fence.sequence;
        if fence.sequence <= self.adopted_sequence {
            return Some(FoundEnd::Nothing);
        }
        let Some(told) = fence.tail.and_then(read_tail) else {
            // Somebody's message stands in its place.
            return Some(FoundEnd::FenceRemoved);
        };
        self.last = told.map(|told| told.at(fence.sequence));
        match self.known_sequence.filter(|known| fence.sequence < *known) {
            Some(known) => self.step = Step::Known(known),
            None => self.go_behind(0),
        }
        None
    }

    /// It was removed, or the broker has lost it and the one before was removed.
    fn without_fence(&mut self) -> Option<FoundEnd> {
        self.step = self.known_sequence.map_or(Step::OtherFence, Step::Known);
        None
    }

    fn take_other_fence(&mut self, fence: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        match fence.filter(|fence| fence.sequence > self.adopted_sequence) {
            Some(StoredMessage { sequence, .. }) => return Some(FoundEnd::Copied { sequence }),
            None if self.was_here && !self.is_whole => return Some(FoundEnd::FenceRemoved),
            // Then there was none, or it was lost.
            None => self.go_behind(0),
        }
        None
    }

    /// What stands where record or memory know a message of the lane, later than the fence that was found.
    fn take_known(
        &mut self,
        message: Option<StoredMessage<'_>>,
        sequence: u64,
    ) -> Option<FoundEnd> {
        let Some(message) = message else {
            return Some(FoundEnd::FenceRemoved);
        };
        if message.told_by(self.slot).is_some() {
            return match message.is_fence {
                // An older answer has hidden it.
                true => self.take_fence(Some(message)),
                // Of a time when the stream was the lane's own: there are no fences from then, and the record tells.
                false => Some(FoundEnd::FenceRemoved),
            };
        }
        // The broker lost it. What an older fence tells is the truth; without one, only where there never was any.
        if self.fence_sequence == 0 && !self.is_whole {
            return Some(FoundEnd::Replaced { sequence });
        }
        self.go_behind(0);
        None
    }

    /// A batch is stored whole or not at all, but a crash of the broker can take the end of its files, and so of a batch
    /// that had been stored: the fence at the batch's end is gone then, and what survived stands behind the fence of the
    /// batch before. Where others publish on the lane's subjects, so many of them that its own are not reached, what the
    /// fence tells counts.
    ///
    /// Not beyond the stream's last sequence, which was read before the fence: a relay that waits for its slot would else
    /// follow the one that publishes for as long as that does.
    fn go_behind(&mut self, filter: usize) {
        self.step = Step::Behind {
            filter,
            from: self.fence_sequence.max(self.adopted_sequence) + 1,
            others: 0,
        };
    }

    /// A consumer copies what was published: such a message tells that the stream was made from another one, which takes
    /// NATS' headers away, or has lost the message itself. Where the lane has begun anew and published nothing, it is from before; and
    /// what was lost of an event that the record does not tell of, the slot still has.
    fn is_copied_from_further_on(&self, message: &StoredMessage<'_>) -> bool {
        let told = message.told().filter(|(slot, ..)| *slot == self.slot);
        told.is_some_and(|(_, told)| match &self.last {
            Some(last) => last.position < told.position,
            None => !self.is_anew,
        })
    }

    fn take_behind(
        &mut self,
        message: Option<StoredMessage<'_>>,
        filter: usize,
        others: usize,
    ) -> Option<FoundEnd> {
        let Some(message) = message.filter(|message| message.sequence <= self.last_sequence) else {
            self.go_behind(filter + 1);
            return None;
        };
        let mut others = others;
        match message.told_by(self.slot) {
            // Of a time when the stream was the lane's own, later than the fence.
            Some(_) if !message.in_batch => return Some(FoundEnd::FenceRemoved),
            // Of a time when the lane had a fence, or of a relay that was never heard of.
            Some(_) if self.fence_sequence == 0 && !self.is_whole => {
                return Some(FoundEnd::FenceRemoved);
            }
            Some(told) => {
                let last = self.last.as_ref();
                if last.is_none_or(|last| last.position < told.position) {
                    self.last = Some(told.at(message.sequence));
                }
            }
            None if self.is_copied_from_further_on(&message) => {
                return Some(FoundEnd::Copied {
                    sequence: message.sequence,
                });
            }
            None => others += 1,
        }
        if message.sequence == self.last_sequence || others >= BEHIND_FENCE_MAX {
            self.go_behind(filter + 1);
        } else {
            self.step = Step::Behind {
                filter,
                from: message.sequence + 1,
                others,
            };
        }
        None
    }
}

/// What a fence tells of the lane's last event, or that there is none; `None` where it is no fence.
fn read_tail(told: &str) -> Option<Option<Told>> {
    if told == NO_TAIL {
        return Some(None);
    }
    split_tail(told).map(|(_, told)| Some(told))
}

/// Headers of the fence that an epoch stores before it publishes: it tells the lane end, and is stored only behind the
/// fence that the search has found (`after`, 0 for none). From there on no relay that knew an older one can write.
pub(crate) fn fence_headers(
    stream: &str,
    slot: &str,
    lane_end: Option<&LaneEnd>,
    after: u64,
) -> Vec<u8> {
    let lane_end = lane_end.map_or_else(|| NO_TAIL.to_owned(), |lane_end| lane_end.tail(slot));
    format!(
        "NATS/1.0\r\n{TAIL_HEADER}: {lane_end}\r\nNats-Expected-Stream: {stream}\r\n\
         Nats-Expected-Last-Subject-Sequence: {after}\r\n\r\n"
    )
    .into_bytes()
}
