//! A row that cannot be published: its dead letter, or a halt.
//!
//! In: the row and why it was rejected; how large a message may be now and what the table has of the row, where that is asked
//! for. Out: a frame for the broker, or a halt that waits for what is in flight. Guarantees: where a dead letter cannot hold
//! the whole row, the row passes only while the table still has it, or when a person has allowed it; no row becomes a dead
//! letter for a limit that has not been looked at since the row came or within [`LIMIT_STANDS`].

use super::{Engine, Note};
use crate::pipeline::dead_letter::{self, DeadLetter, Rejected, RejectedRow};
use crate::pipeline::envelope::{Reject, shown};
use crate::pipeline::fault::{Blocks, Fault, Halt};
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::position::Position;
use crate::pipeline::publish::{Body, EventId, Message, Origin, TooLarge};
use bytes::BytesMut;
use std::time::Duration;

/// A row that the table is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowQuestion {
    /// Its id, as the WAL has it.
    pub id: String,
    /// The transaction that inserted it, by the low half of its number: it may not be visible yet.
    pub xid: u32,
    /// In which table, of [`Source::outboxes`].
    ///
    /// [`Source::outboxes`]: crate::pipeline::source::Source::outboxes
    pub outbox: usize,
}

/// What the table has of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowPresence {
    /// It is there.
    Kept,
    /// It is no longer there.
    Gone,
    /// That cannot be seen, and why.
    Unseen(String),
}

/// No server tells a client of a limit that was raised, so rows ask for it; those that come so soon after a look do not.
const LIMIT_STANDS: Duration = Duration::from_secs(5);

/// A rejected row that waits for an answer.
#[derive(Debug)]
pub(super) struct Pending {
    headers: Vec<u8>,
    letter: DeadLetter,
    row: RejectedRow,
    id: Option<Vec<u8>>,
    xid: u32,
    outbox: u16,
    state: Question,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Its message is too large, by a limit that may have been raised.
    Limit,
    LimitAsked,
    /// It is too large: what becomes of it is decided as soon as there is room for a dead letter.
    TooLarge,
    /// Its dead letter would not hold all of it: has the table?
    Row,
    RowAsked,
    /// The table has the row: the dead letter may leave as soon as there is room for it.
    Kept,
}

impl Engine {
    /// Takes a row that cannot be published, with all its columns; its position header stands in `self.headers`.
    pub(super) fn reject(
        &mut self,
        rejected: &Rejected<'_>,
        xid: u32,
        out: &mut BytesMut,
        now: Duration,
    ) {
        let id = rejected.row.id();
        let row = RejectedRow {
            position: rejected.position,
            event_id: id.as_deref().map_or_else(|| "-".to_owned(), shown),
            reject: rejected.reject.clone(),
        };
        let mut headers = std::mem::take(&mut self.headers);
        headers.extend_from_slice(dead_letter::headers(rejected.reject).as_bytes());
        let source = &self.settings.epoch.source;
        let mapping = &source.outboxes[rejected.row.outbox()].mapping;
        headers.extend_from_slice(mapping.message.table_header().as_bytes());
        let pending = Pending {
            headers,
            letter: DeadLetter::of(rejected, &source.encoding),
            row,
            id: id.map(|id| id.to_vec()),
            xid,
            outbox: rejected.row.outbox_number(),
            state: Question::Limit,
        };
        match self.may_be_raised(&pending.row, now) {
            true => self.pending = Some(pending),
            false => self.decide(pending, out, now),
        }
    }

    /// Whether the row may fit by now.
    fn may_be_raised(&self, row: &RejectedRow, now: Duration) -> bool {
        let is_fresh = now < self.limit_seen_at + LIMIT_STANDS
            || self.settings.epoch.limit_raised_for == Some(row.position);
        matches!(row.reject, Reject::TooLarge { .. }) && !is_fresh
    }

    /// Its dead letter, a halt, or a question to the table.
    fn decide(&mut self, mut pending: Pending, out: &mut BytesMut, now: Duration) {
        let is_allowed = self.settings.skips().contains(&pending.row.position);
        if self.settings.epoch.halt_on_reject && !is_allowed {
            self.halt_at(pending.row, Blocks::Configured);
            return;
        }
        let body = pending.letter.body(self.window.room(&pending.headers));
        if body.is_whole || is_allowed {
            self.place(pending, &body.bytes, out, now);
        } else if pending.id.is_none() {
            self.halt_before_loss(pending.row, "it has no id to look for it by");
        } else {
            pending.state = Question::Row;
            self.pending = Some(pending);
        }
    }

    /// Whether server and stream are to be asked how large a message may be, once; no WAL is taken before
    /// [`Self::handle_limit`] has the answer.
    pub fn poll_limit_question(&mut self) -> bool {
        let to_ask = self.pending.as_mut();
        let Some(pending) = to_ask.filter(|pending| pending.state == Question::Limit) else {
            return false;
        };
        pending.state = Question::LimitAsked;
        true
    }

    /// Takes the answer to [`Self::poll_limit_question`]; none where there was none, and what was known stands.
    ///
    /// # Errors
    /// [`Fault::Reread`] where the row fits now: all that was made for the smaller limit is made anew.
    pub fn handle_limit(&mut self, limit: Option<SizeLimit>, now: Duration) -> Result<(), Fault> {
        let asked = self.pending.as_mut();
        let Some(pending) = asked.filter(|pending| pending.state == Question::LimitAsked) else {
            return Ok(());
        };
        self.limit_seen_at = now;
        pending.state = Question::TooLarge;
        let known = self.settings.epoch.limits.message_limit;
        if let Some(limit) = limit.filter(|limit| limit.bytes > known.bytes)
            && let Reject::TooLarge { bytes, .. } = pending.row.reject
            && bytes <= limit.bytes as u64
        {
            self.limit_raised_for = Some(pending.row.position);
            return Err(Fault::Reread("the broker takes larger messages now"));
        }
        Ok(())
    }

    /// The row for which the epoch ends, since it fits by a limit that was raised.
    pub fn limit_raised_for(&self) -> Option<Position> {
        self.limit_raised_for
    }

    /// A new connection to the broker has told the limit, and it is the known one.
    pub(super) fn limit_stands(&mut self, now: Duration) {
        self.limit_seen_at = now;
        if let Some(pending) = &mut self.pending
            && matches!(pending.state, Question::Limit | Question::LimitAsked)
        {
            pending.state = Question::TooLarge;
        }
    }

    /// The row that the table is to be asked for, once; no WAL is taken before [`Self::handle_row`] has the answer.
    pub fn poll_question(&mut self) -> Option<RowQuestion> {
        let pending = self.pending.as_mut()?;
        if pending.state != Question::Row {
            return None;
        }
        pending.state = Question::RowAsked;
        Some(RowQuestion {
            id: String::from_utf8_lossy(pending.id.as_ref()?).into_owned(),
            xid: pending.xid,
            outbox: usize::from(pending.outbox),
        })
    }

    /// Takes the answer to [`Self::poll_question`].
    pub fn handle_row(&mut self, presence: &RowPresence) {
        let asked = |pending: &mut Pending| pending.state == Question::RowAsked;
        let Some(mut pending) = self.pending.take_if(asked) else {
            return;
        };
        let why = match presence {
            RowPresence::Kept => {
                pending.state = Question::Kept;
                self.pending = Some(pending);
                return;
            }
            RowPresence::Gone => "the table no longer has it".to_owned(),
            RowPresence::Unseen(why) => {
                format!("whether the table still has it cannot be seen ({why})")
            }
        };
        self.halt_before_loss(pending.row, &why);
    }

    /// Goes on with the row that has waited for an answer, once the window takes its dead letter.
    pub(crate) fn place_pending(&mut self, out: &mut BytesMut, now: Duration) {
        if !self.window.has_room() || self.window.has_waiting() {
            return;
        }
        let answered =
            |pending: &mut Pending| matches!(pending.state, Question::TooLarge | Question::Kept);
        match self.pending.take_if(answered) {
            Some(pending) if pending.state == Question::Kept => {
                let body = pending.letter.body(self.window.room(&pending.headers));
                self.place(pending, &body.bytes, out, now);
            }
            Some(pending) => self.decide(pending, out, now),
            None => {}
        }
    }

    fn halt_before_loss(&mut self, row: RejectedRow, why: &str) {
        let why = why.to_owned();
        let blocks = match row.reject {
            // However much room there is.
            Reject::NoText(_) | Reject::MessageBytes => Blocks::NoText { why },
            _ => Blocks::Loss {
                why,
                limit: self.settings.epoch.limits.message_limit,
            },
        };
        self.halt_at(row, blocks);
    }

    fn place(&mut self, pending: Pending, body: &[u8], out: &mut BytesMut, now: Duration) {
        let Pending {
            headers,
            row,
            outbox,
            ..
        } = pending;
        let origin = Origin {
            position: row.position,
            event_id: EventId::of(row.event_id.as_bytes()),
            outbox,
            first_publication: true,
        };
        let message = Message {
            subject: self.dead_letter_subject.as_bytes(),
            headers: &headers,
            body: Body::Bytes(body),
        };
        let placed = self.window.publish(out, &message, origin, now);
        self.headers = headers;
        if let Err(TooLarge { bytes }) = placed {
            let limit = self.settings.epoch.limits.message_limit;
            return self.halt_at(row, Blocks::NoRoom { bytes, limit });
        }
        self.counters.published += 1;
        self.counters.dead_letters += 1;
        self.progress.published();
        self.dead_letters
            .push_back((self.progress.published_rows(), Note::DeadLetter(row)));
    }

    /// What is in flight before the row is still acknowledged; see `check_halt`.
    fn halt_at(&mut self, row: RejectedRow, blocks: Blocks) {
        self.halt = Some(Halt::Rejected {
            row: Box::new(row),
            blocks,
        });
    }
}
