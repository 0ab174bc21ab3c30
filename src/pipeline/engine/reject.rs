//! A row that cannot be published: its dead letter, or a halt.
//!
//! In: the row and why it was rejected; what the table has of it, where that is asked for. Out: a frame for the broker, or
//! a halt that waits for what is in flight. Guarantee: where a dead letter cannot hold the whole row, the row passes only
//! while the table still has it, or when a person has allowed it.

use super::{Engine, Note};
use crate::pipeline::dead_letter::{self, DeadLetter, Rejected, RejectedRow};
use crate::pipeline::envelope::shown;
use crate::pipeline::fault::{Blocks, Halt};
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

/// A dead letter that does not hold its whole row, until the table has been asked for it.
#[derive(Debug)]
pub(super) struct Pending {
    headers: Vec<u8>,
    letter: DeadLetter,
    row: RejectedRow,
    question: RowQuestion,
    state: Question,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    ToAsk,
    Asked,
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
        let is_allowed = self.settings.skips().contains(&rejected.position);
        if self.settings.epoch.halt_on_reject && !is_allowed {
            self.halt_at(row, Blocks::Configured);
            return;
        }
        let mut headers = std::mem::take(&mut self.headers);
        headers.extend_from_slice(dead_letter::headers(rejected.reject).as_bytes());
        let letter = DeadLetter::of(rejected, &self.settings.epoch.source.encoding);
        let body = letter.body(self.window.room(&headers));
        match id {
            _ if body.is_whole || is_allowed => self.place(headers, &body.bytes, row, out, now),
            None => self.halt_at(row, self.would_lose("it has no id to look for it by")),
            Some(id) => {
                let question = RowQuestion {
                    id: String::from_utf8_lossy(&id).into_owned(),
                    xid,
                };
                self.pending = Some(Pending {
                    headers,
                    letter,
                    row,
                    question,
                    state: Question::ToAsk,
                });
            }
        }
    }

    /// The row that the table is to be asked for, once; no WAL is taken before [`Self::handle_row`] has the answer.
    pub fn poll_question(&mut self) -> Option<RowQuestion> {
        let pending = self.pending.as_mut()?;
        if pending.state != Question::ToAsk {
            return None;
        }
        pending.state = Question::Asked;
        Some(pending.question.clone())
    }

    /// Takes the answer to [`Self::poll_question`].
    pub fn handle_row(&mut self, presence: &RowPresence) {
        let Some(mut pending) = self.pending.take() else {
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
        self.halt_at(pending.row, self.would_lose(&why));
    }

    /// Places the dead letter that has waited for its answer, once the window takes it.
    pub(crate) fn place_pending(&mut self, out: &mut BytesMut, now: Duration) {
        if !self.window.has_room() || self.window.has_waiting() {
            return;
        }
        let kept = self
            .pending
            .take_if(|pending| pending.state == Question::Kept);
        if let Some(pending) = kept {
            let Pending {
                headers,
                letter,
                row,
                ..
            } = pending;
            let body = letter.body(self.window.room(&headers));
            self.place(headers, &body.bytes, row, out, now);
        }
    }

    fn would_lose(&self, why: &str) -> Blocks {
        Blocks::Loss {
            why: why.to_owned(),
            limit: self.settings.epoch.limits.message_limit,
        }
    }

    fn place(
        &mut self,
        headers: Vec<u8>,
        body: &[u8],
        row: RejectedRow,
        out: &mut BytesMut,
        now: Duration,
    ) {
        let origin = Origin {
            position: row.position,
            event_id: EventId::of(row.event_id.as_bytes()),
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
