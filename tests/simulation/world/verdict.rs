//! What was committed against what the stream has.

use super::*;
use crate::outboxes;
use crate::postgres::Row;
use crate::wire::Value;
use walrelay::pipeline::position::TABLE_HEADER;

impl World {
    /// Whether all that was committed is published and confirmed.
    pub(crate) fn is_done(&self) -> bool {
        let end_lsn = Some(self.postgres.end_lsn);
        let mut there = self.postgres.publications.parts();
        let is_last_there = |part| {
            let last = self.postgres.events(part).last();
            last.is_none_or(|(commit_lsn, end_lsn, ordinal, _)| {
                let place = (part, position(commit_lsn, ordinal));
                end_lsn <= self.lost_through || self.broker.events.places.contains(&place)
            })
        };
        there.all(|part| self.postgres.slot(part).confirmed_lsn >= end_lsn)
            && lanes::all().all(is_last_there)
    }

    /// Compares what was committed with what the stream has: order, content, and whatever is missing or too much.
    pub(crate) fn verify(&mut self, complete: bool) {
        for part in lanes::all() {
            self.verify_lane(part, complete);
        }
    }

    fn verify_lane(&mut self, part: Part, complete: bool) {
        let mut committed = self.postgres.events(part);
        let mut problem = None;
        let published = self.broker.events.published();
        let of_lane = published.iter().filter(|(_, place, _)| place.0 == part);
        'published: for (seq, (_, found), frame) in of_lane.copied() {
            for (commit_lsn, end_lsn, ordinal, row) in committed.by_ref() {
                let expected = position(commit_lsn, ordinal);
                if expected == found {
                    if let Some(what) = self.differs(part, row, frame) {
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
                let is_kept =
                    self.halted_replaced && self.postgres.slot(part).confirmed_lsn < Some(end_lsn);
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

    /// Each aggregate has its events as they were committed, whichever lanes had them: none lost, doubled or never committed, and in
    /// order but for what a power failure took at a change (L-9). Without `complete`, younger ones may be missing.
    pub(crate) fn verify_aggregates(&mut self, complete: bool) {
        let id_of = |row: &Row| String::from_utf8(row.values[0].clone()?).ok();
        let mut aggregate_of: BTreeMap<String, &Value> = BTreeMap::new();
        let mut committed: BTreeMap<&Value, Vec<String>> = BTreeMap::new();
        for row in self.postgres.rows() {
            if let Some(id) = id_of(row) {
                aggregate_of.insert(id.clone(), &row.values[1]);
                committed.entry(&row.values[1]).or_default().push(id);
            }
        }
        let mut published: BTreeMap<&Value, Vec<String>> = BTreeMap::new();
        let mut problem = None;
        for (seq, _, frame) in self.broker.events.published() {
            let body: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
            let Some(id) = body["id"].as_str() else {
                continue;
            };
            match aggregate_of.get(id) {
                Some(aggregate) => published.entry(aggregate).or_default().push(id.to_owned()),
                None => problem = Some(format!("message {seq} with id {id} was never committed")),
            }
        }
        for (aggregate, mut committed) in committed {
            let mut published = published.remove(aggregate).unwrap_or_default();
            if self.messages_lost {
                committed.sort_unstable();
                published.sort_unstable();
            }
            let is_right = match complete {
                true => published == committed,
                false if self.messages_lost => published.is_sorted_by(|a, b| a < b),
                false => committed.starts_with(&published),
            };
            if !is_right {
                let name = String::from_utf8_lossy(aggregate.as_deref().unwrap_or_default());
                problem = Some(format!(
                    "aggregate {name} has {published:?} instead of {committed:?}"
                ));
            }
        }
        if let Some(problem) = problem {
            self.fail(problem);
        }
    }

    fn differs(&self, part: Part, row: &Row, frame: &broker::Frame) -> Option<String> {
        let id = row.values[0]
            .as_ref()
            .map(|id| String::from_utf8_lossy(id).into_owned());
        let body: serde_json::Value = serde_json::from_slice(&frame.data).expect("JSON");
        let is_dead = frame.subject == format!("walrelay.dead.{}", lanes::slot_of(part));
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
