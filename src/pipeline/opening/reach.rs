//! Up to where a relay that starts now publishes nothing more, for those who judge what is still to come; and what it would halt at.
//!
//! In: stream and record, then stored messages as asked for. Out: the lane's last message, or why a start would halt. Guarantees: it
//! is found as a start finds it by what the broker keeps. So what the slot holds behind it is published, also where a relay or the
//! record say that it was: the broker has lost that. With the slot's place, it is the start's own decision.

use super::decide::{check_names, plan};
use super::look::Look;
use super::{Known, NotOpened, SlotPlace, lives_here};
use crate::pipeline::continuity::{EndView, Refusal, known_end};
use crate::pipeline::end_search::{Lookup, StoredMessage};
use crate::pipeline::fault::Halt;
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::request::{StoredRecord, StreamView};
use crate::pipeline::source::Source;

/// The look for it, one message a step.
#[derive(Debug)]
pub struct Reach<'a> {
    known: Known<'a>,
    look: Look<'a>,
}

impl<'a> Reach<'a> {
    /// Begins behind what stream and record say.
    pub fn new(known: Known<'a>, stream: StreamView, stored: StoredRecord) -> Self {
        let look = Look::begin(&known, stream, stored);
        Reach { known, look }
    }

    /// What to look up next; none where the look is at its end.
    pub fn wanted(&self) -> Option<Lookup<'_>> {
        self.look.wanted()
    }

    /// Takes the message that was looked up.
    pub fn take(&mut self, message: Option<StoredMessage<'_>>) {
        self.look.take(message);
    }

    /// The lane's last message; none where a relay publishes all that the slot holds.
    ///
    /// # Errors
    /// A start would halt.
    pub fn end(self) -> Result<Option<LaneEnd>, Halt> {
        let view = self.look.view(&self.known);
        known_end(&EndView {
            stream: self.known.stream,
            created: &view.stream.created,
            last_sequence: view.stream.last_sequence,
            lane_end: &view.lane_end,
            record: view.stored.record.as_ref(),
            memory: self.known.memory.as_ref(),
        })
    }

    /// Why a start would halt that finds the slot there, with these tables, as far as it is told before the first row is read.
    pub fn halt(self, place: &SlotPlace, source: &Source) -> Option<Halt> {
        let view = self.look.view(&self.known);
        match lives_here(&view.stored) {
            Ok(()) => {}
            Err(NotOpened::Halt(halt)) => return Some(halt),
            // It waits for that.
            Err(_) => return None,
        }
        match plan(&self.known, &view, place) {
            Err(Refusal::Halt(halt)) => Some(halt),
            Err(_) => None,
            Ok(plan) => {
                let checked = check_names(&self.known, &view, &plan, source);
                checked.err().map(Halt::from)
            }
        }
    }
}
