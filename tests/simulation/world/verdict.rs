//! What was committed against what the stream has.

use super::*;
use crate::outboxes;
use walrelay::pipeline::position::TABLE_HEADER;

impl World {
    /// Whether all that was committed is published and confirmed.
    pub(crate) fn is_done(&self) -> bool {
        self.postgres.confirmed_lsn >= Some(self.postgres.end_lsn)
            && self
                .postgres
                .events()
                .last()
                .is_none_or(|(commit_lsn, end_lsn, ordinal, _)| {
                    end_lsn <= self.lost_through
                        || self
                            .broker
                            .events
                            .positions
                            .contains(&position(commit_lsn, ordinal))
                })
    }

    /// Compares what was committed with what the stream has: order, content, and whatever is missing or too much.
    pub(crate) fn verify(&mut self, complete: bool) {
        let mut committed = self.postgres.events();
        let mut problem = None;
        'published: for (seq, found, frame) in self.broker.events.published() {
            for (commit_lsn, end_lsn, ordinal, row) in committed.by_ref() {
                let expected = position(commit_lsn, ordinal);
                if expected == found {
                    if let Some(what) = self.differs(row, frame) {
                        problem = Some(format!("message {seq} at {found}: {what}"));
                        break 'published;
                    }
                    continue 'published;
                }
                if expected > found {
                    problem = Some(format!("message {seq} at {found} was never committed"));
                    break 'published;
                }
                // Where a relay has halted for it, the slot still has it.
                let is_kept = self.halted_replaced && self.postgres.confirmed_lsn < Some(end_lsn);
                if end_lsn > self.lost_through && !is_kept {
                    problem = Some(format!(
                        "{expected} is missing before message {seq} at {found}"
                    ));
                    break 'published;
                }
            }
            problem = Some(format!("message {seq} at {found} was never committed"));
            break;
        }
        if complete && problem.is_none() {
            problem = committed
                .find(|(_, end_lsn, _, _)| *end_lsn > self.lost_through)
                .map(|(commit_lsn, _, ordinal, _)| {
                    format!("{} is missing at the end", position(commit_lsn, ordinal))
                });
        }
        drop(committed);
        if let Some(problem) = problem {
            self.fail(problem);
        }
    }

    fn differs(&self, row: &crate::postgres::Row, frame: &broker::Frame) -> Option<String> {
        let id = row.values[0]
            .as_ref()
            .map(|id| String::from_utf8_lossy(id).into_owned());
        let body: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
        let is_dead = frame.subject == format!("walrelay.dead.{SLOT}");
        let told = match outboxes::has_bare_payload(row.kind) && !is_dead {
            true => frame.header("id"),
            false => body["id"].as_str(),
        };
        if told != id.as_deref() {
            return Some(format!("id {told:?} instead of {id:?}"));
        }
        let table = outboxes::told_as(row.kind);
        if frame.header(TABLE_HEADER) != table.as_deref() {
            return Some(format!("not told to be of {table:?}"));
        }
        let refused = id.is_some_and(|id| self.broker.poison.contains(&id));
        if is_dead != row.rejected && !(is_dead && refused) {
            return Some(format!(
                "on subject {}, rejected: {}",
                frame.subject, row.rejected
            ));
        }
        let payload = row.values[5].as_deref().unwrap_or_default();
        if !is_dead && !contains(&frame.data, payload) {
            return Some("another payload".into());
        }
        let event_type = row.values[2].as_deref().unwrap_or_default();
        let event_type = String::from_utf8_lossy(event_type);
        let subject = format!("{}.{event_type}", outboxes::subject_root(row.kind));
        if !is_dead && frame.subject != subject {
            return Some(format!("on {} instead of {subject}", frame.subject));
        }
        None
    }

    /// Whether a halt is the right answer to what has happened.
    pub(crate) fn explains(&mut self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Stopped => true,
            Outcome::Halted(Halt::EndRemoved { sequence, .. }) => {
                // What the stream did not keep stands before what it kept again: the slot still has it.
                let is_taken = *sequence <= self.broker.events.taken_through;
                self.halted_replaced |= is_taken;
                self.removed || self.fences_lost || self.has_lost_fence() || is_taken
            }
            // A message without an acknowledgement was copied, and removed; or it was copied, and a power failure took it or
            // the fence behind it.
            Outcome::Halted(Halt::EndCopied { sequence, .. }) => {
                let events = &self.broker.events;
                (self.unanswered && events.is_copy_of_removed(*sequence))
                    || (self.messages_lost && events.is_copy_of_lost(*sequence))
                    || self.has_lost_fence()
            }
            // Somebody else's message had come before anybody looked: in place of an event, or, on a shared stream, of the
            // lane's only fence. Seed 109867.
            Outcome::Halted(Halt::Replaced { .. }) => {
                self.halted_replaced = true;
                self.messages_lost || self.fences_lost
            }
            // Without a hold-back the slot has forgotten what a power failure of the broker takes; and the record of idle
            // WAL is used at once, so that a power failure may take it too. Only a relay that lived on remembers.
            Outcome::Halted(Halt::ConfirmedUnexplained { .. } | Halt::NoBeginning { .. }) => {
                self.may_lose || self.records_lost
            }
            _ => false,
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}
