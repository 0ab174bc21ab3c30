//! One look at the broker: the stream, the lane record, the lane end.
//!
//! In: what the stream and the record say, then stored messages as asked for. Out: a [`View`]. A start takes two, one before
//! the slot is its own and one behind it.

use super::Known;
use crate::pipeline::end_search::{EndSearch, FoundEnd, Lookup, StoredMessage};
use crate::pipeline::lane_end::{Doubt, LaneEnd};
use crate::pipeline::request::{StoredRecord, StreamView};
use crate::pipeline::shared_end_search::{SharedEndSearch, SharedSubjects, StreamEnd};

/// The search for the lane end, in a stream of its own or in a shared one.
#[derive(Debug)]
enum Search<'a> {
    Own(EndSearch<'a>),
    Shared(SharedEndSearch<'a>),
}

impl<'a> Search<'a> {
    /// Begins behind what stream and record say; the record comes back as it counts for this stream.
    fn begin(
        known: &Known<'a>,
        stream: &StreamView,
        mut stored: StoredRecord,
    ) -> (StoredRecord, Self) {
        let slot = known.slot;
        let memory = known.memory.as_ref();
        if let Some(record) = &mut stored.record
            && record.created == stream.created
        {
            // A stream that was set back below the adoption: what comes there now is the lane's own.
            record.adopted_sequence = record.adopted_sequence.min(stream.last_sequence);
        }
        let record = stored.record.as_ref();
        let (last_sequence, created) = (stream.last_sequence, &*stream.created);
        let search = if known.shared {
            let mut subjects = SharedSubjects::new(known.stream, slot, known.template.filter());
            subjects.filters.extend(stream.stored_as.iter().cloned());
            let end = StreamEnd {
                created,
                last_sequence,
                messages: stream.messages,
            };
            Search::Shared(SharedEndSearch::new(slot, subjects, end, record, memory))
        } else {
            Search::Own(EndSearch::new(slot, last_sequence, created, record, memory))
        };
        (stored, search)
    }

    /// What to look up next; none where the search is at its end.
    fn wanted(&self) -> Option<Lookup<'_>> {
        match self {
            Search::Own(search) => search.wanted(),
            Search::Shared(search) => search.wanted(),
        }
    }

    /// Takes the message that was looked up.
    fn take(&mut self, message: Option<StoredMessage<'_>>) -> Option<FoundEnd> {
        match self {
            Search::Own(search) => search.take(message),
            Search::Shared(search) => search.take(message),
        }
    }

    /// What it has found where there is nothing more to look up.
    fn end(self) -> FoundEnd {
        match self {
            Search::Own(search) => search.end(),
            Search::Shared(search) => search.end(),
        }
    }

    /// Of the lane's fence in a shared stream; 0 for none.
    fn fence_sequence(&self) -> u64 {
        match self {
            Search::Own(_) => 0,
            Search::Shared(search) => search.fence_sequence(),
        }
    }
}

/// A look that is not at its end.
#[derive(Debug)]
pub(super) struct Look<'a> {
    stream: StreamView,
    stored: StoredRecord,
    search: Box<Search<'a>>,
    found: Option<FoundEnd>,
}

impl<'a> Look<'a> {
    /// Begins behind what stream and record say.
    pub(super) fn begin(known: &Known<'a>, stream: StreamView, stored: StoredRecord) -> Self {
        let (stored, search) = Search::begin(known, &stream, stored);
        Look {
            stream,
            stored,
            search: Box::new(search),
            found: None,
        }
    }

    /// What to look up next; none where the look is at its end.
    pub(super) fn wanted(&self) -> Option<Lookup<'_>> {
        match self.found {
            Some(_) => None,
            None => self.search.wanted(),
        }
    }

    /// Takes the message that was looked up.
    pub(super) fn take(&mut self, message: Option<StoredMessage<'_>>) {
        self.found = self.search.take(message);
    }

    /// Of the lane's fence in a shared stream; 0 for none.
    pub(super) fn fence_sequence(&self) -> u64 {
        self.search.fence_sequence()
    }

    /// What was seen.
    pub(super) fn view(self, known: &Known<'_>) -> View {
        let lane_end = self.found.unwrap_or_else(|| self.search.end());
        View::new(known, self.stream, self.stored, lane_end)
    }
}

/// What the broker says, at one look.
#[derive(Debug)]
pub(super) struct View {
    pub(super) stream: StreamView,
    pub(super) stored: StoredRecord,
    pub(super) lane_end: FoundEnd,
}

impl View {
    /// A lane that goes on behind a doubt may have left out what was not stored, unless the stream has all.
    fn new(
        known: &Known<'_>,
        stream: StreamView,
        stored: StoredRecord,
        lane_end: FoundEnd,
    ) -> Self {
        let doubt = Doubt::of(
            stored.record.as_ref(),
            known.memory.as_ref(),
            &stream.created,
            stream.last_sequence,
        );
        let position = |lane_end: &LaneEnd| lane_end.position;
        let sequence = match (doubt, &lane_end) {
            (Some(doubt), FoundEnd::Found(found))
                if doubt.lane_end.as_ref().map(position) < Some(found.position)
                    && !stream.is_whole_behind(doubt.sequence()) =>
            {
                Some(doubt.sequence() + 1)
            }
            _ => None,
        };
        View {
            stream,
            stored,
            lane_end: sequence.map_or(lane_end, |sequence| FoundEnd::Removed { sequence }),
        }
    }

    /// What to say of a lane's last message that is gone while older ones are there. Age, limits and purges take the oldest
    /// first. A person may have deleted it; but nats-server, too, says so of what a power failure took from its files where
    /// the index that it keeps beside them (`index.db`) survived: by `last_seq` and `created` the two are the same.
    pub(super) fn removed_end(&self, stream: &str) -> Option<String> {
        let sequence = match self.lane_end {
            FoundEnd::Removed { sequence } => sequence,
            FoundEnd::FenceRemoved => self.stored.record.as_ref()?.sequence,
            _ => return None,
        };
        (self.stream.first_sequence <= sequence).then(|| {
            format!(
                "message {sequence} at the lane's end in stream {stream} is gone, and older ones are there: somebody deleted it, or \
                 nats-server lost it in a crash; `walrelay verify` names the events that are missing, `walrelay backfill` publishes \
                 them"
            )
        })
    }
}
