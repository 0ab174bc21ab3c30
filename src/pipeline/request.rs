//! What the relay asks the broker for besides publishing events, and what the broker replies.
//!
//! In: nothing. Out: one type of request and one of reply, for the start of an epoch and for the confirmations while it
//! streams. A transport turns a request into bytes and bytes into a reply, and decides nothing.

use super::end_search::{Lookup, StoredMessage};
use super::fault::Halt;
use super::lane_end::LaneEnd;
use super::record::{HaltNote, LaneRecord, RecordOrNote};

/// A request to the broker. At most one is on its way at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'s> {
    /// The stream's state and what it allows; reply: [`Reply::Stream`].
    Stream,
    /// The lane record; reply: [`Reply::Record`].
    Record,
    /// A message of the stream; reply: [`Reply::Message`].
    Message(Lookup<'s>),
    /// Store the lane record, provided that nobody else has since; reply: [`Reply::Stored`].
    StoreRecord {
        /// What to store.
        record: Box<LaneRecord>,
        /// Sequence of the record that it is to replace; 0 for none.
        behind: u64,
    },
    /// Store a fence in a shared stream, provided that the lane has not moved since; reply: [`Reply::Stored`].
    StoreFence {
        /// The lane end that the fence tells.
        lane_end: Option<LaneEnd>,
        /// Sequence of the fence that it is to replace; 0 for none.
        behind: u64,
    },
}

/// The reply to a [`Request`].
#[derive(Debug)]
pub enum Reply<'m> {
    /// The stream as it is.
    Stream(StreamView),
    /// The lane record, and where it is stored.
    Record(Box<StoredRecord>),
    /// The message; none where there is none.
    Message(Option<StoredMessage<'m>>),
    /// Stored, with this sequence.
    Stored(u64),
}

/// A stream, as far as the relay decides by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamView {
    /// When it was created, as the server writes it.
    pub created: String,
    /// Sequence of its first message.
    pub first_sequence: u64,
    /// Its last sequence.
    pub last_sequence: u64,
    /// How many messages it holds.
    pub messages: u64,
    /// Its replicas.
    pub num_replicas: usize,
    /// It takes fast ingest.
    pub allow_batched: bool,
    /// It takes atomic batches.
    pub allow_atomic: bool,
    /// Filters under which it stores the lane's messages beside their own subjects.
    pub(crate) stored_as: Vec<String>,
    /// Why nothing may be published to it as it is configured now; none where it fits.
    pub unfit: Option<Unfit>,
}

impl StreamView {
    /// One that is just made.
    #[must_use]
    pub fn new(created: String) -> Self {
        StreamView {
            created,
            first_sequence: 0,
            last_sequence: 0,
            messages: 0,
            num_replicas: 1,
            allow_batched: true,
            allow_atomic: true,
            stored_as: Vec::new(),
            unfit: None,
        }
    }

    /// Nothing of what it stored behind that sequence was removed.
    #[must_use]
    pub(crate) fn is_whole_behind(&self, sequence: u64) -> bool {
        self.first_sequence <= sequence + 1
            && self.first_sequence + self.messages == self.last_sequence + 1
    }
}

/// Why a stream cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong, and what mends it.
    pub reason: String,
    /// It may acknowledge what it does not keep.
    pub drops: bool,
}

/// The lane record and where it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredRecord {
    /// The record; none before the lane's first epoch.
    pub record: Option<LaneRecord>,
    /// Why a relay halted, where there is no record. No start decides by it.
    pub note: Option<HaltNote>,
    /// Sequence of the message that holds either in the record stream; 0 for none.
    pub sequence: u64,
}

impl StoredRecord {
    /// Why the last relay halted; none once an epoch has begun again.
    #[must_use]
    pub fn halted(&self) -> Option<&HaltNote> {
        let recorded = self.record.as_ref();
        recorded.map_or(self.note.as_ref(), |record| record.halted.as_ref())
    }

    /// What to keep once a relay has halted in its epoch of that number, in the stream created at that time; of a start that
    /// has come to no epoch, without either. None where another relay has begun an epoch since, unless the halt is to bind that
    /// one too.
    #[must_use]
    pub fn kept(
        &self,
        halt: &Halt,
        epoch: Option<(&str, u64)>,
        at: String,
    ) -> Option<RecordOrNote> {
        let Some(record) = &self.record else {
            return Some(RecordOrNote::Note(HaltNote::of(halt, at)));
        };
        let (created, epoch) = epoch.unwrap_or((&record.created, record.epoch));
        let halted = record.halted(halt, created, epoch, at)?;
        Some(RecordOrNote::Record(Box::new(halted)))
    }
}
