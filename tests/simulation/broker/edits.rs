//! The events' stream as somebody edits it under a relay.

use super::*;
use walrelay::pipeline::shared_end_search::fence_subject;

/// What somebody may edit in a stream that is in use, and the relay must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Retention `interest`, and nobody is interested: everything is removed, what comes is acknowledged and not kept.
    Interest,
    /// It no longer takes the events' subjects.
    Subjects,
    /// It no longer acknowledges what it stores.
    NoAck,
}

/// The subjects of a stream that fits these lanes.
pub(crate) fn subjects(shared: bool, parts: &[Part]) -> Vec<String> {
    let mut subjects = vec!["outbox.>".to_owned()];
    for slot in parts.iter().map(|part| lanes::slot_of(*part)) {
        subjects.push(format!("walrelay.dead.{slot}"));
        subjects.extend(shared.then(|| fence_subject(STREAM, slot)));
    }
    subjects
}

impl Broker {
    /// Somebody edits the stream, or takes the edit back.
    pub(crate) fn edit(&mut self, edit: Option<Edit>) {
        self.edit = edit;
        self.events.drops = edit == Some(Edit::Interest);
        if self.events.drops {
            self.sweep();
            let all: Vec<u64> = self.events.messages.keys().copied().collect();
            let last = all.last().copied().unwrap_or(0);
            self.events.taken_through = self.events.taken_through.max(last);
            self.events.remove(all.into_iter());
        }
    }

    /// What the record names is never published again; what it does not, as an edit has removed it, may be.
    pub(super) fn sweep(&mut self) {
        let records = self.records.messages.values();
        let records = records.filter_map(|frame| frame.record());
        let recorded: BTreeMap<Part, Option<Position>> = records
            .map(|record| (lanes::part_of(&record.slot), record.position))
            .filter_map(|(part, position)| Some((part?, position)))
            .collect();
        let behind = |place: &&Place| {
            let recorded = recorded.get(&place.0).copied().flatten();
            Some(place.1) > recorded
        };
        let swept = self.events.places.iter().filter(behind);
        self.events.swept = swept.copied().collect();
    }
}
