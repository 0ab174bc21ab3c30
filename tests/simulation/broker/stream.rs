//! A published message, and the stream that keeps it.

use super::*;

/// A published message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frame {
    pub(crate) subject: String,
    pub(crate) reply: String,
    pub(crate) headers: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Frame {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(Headers::parse(&self.headers)?.get(name)?).ok()
    }

    /// The lane record, of a message in its place; none in the note of a halt.
    pub(crate) fn record(&self) -> Option<Box<LaneRecord>> {
        match RecordOrNote::from_json(&self.data).expect("a record or a note") {
            RecordOrNote::Record(record) => Some(record),
            RecordOrNote::Note(_) => None,
        }
    }

    /// The lane and its position, of a first publication only.
    pub(crate) fn place(&self) -> Option<Place> {
        let is_copy = self.subject == FOREIGN;
        if is_copy || self.header(position::KIND_HEADER) == Some(position::KIND_REPLAY) {
            return None;
        }
        let (slot, position) =
            position::parse_header(self.header(position::POSITION_HEADER)?).ok()?;
        Some((lanes::part_of(slot)?, position))
    }

    pub(super) fn len(&self) -> usize {
        self.headers.len() + self.data.len()
    }
}

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(super) name: &'static str,
    pub(crate) created: u64,
    pub(crate) messages: BTreeMap<u64, Frame>,
    /// What was purged, deleted or expired: it had been there.
    pub(crate) removed: BTreeMap<u64, Frame>,
    pub(crate) last_seq: u64,
    pub(crate) synced_seq: u64,
    pub(super) last_id: Option<String>,
    pub(super) ids: HashSet<String>,
    /// Places of first publications, stored now or removed since.
    pub(crate) places: BTreeSet<Place>,
    /// What an edit of the stream has removed: some of it may come again.
    pub(super) swept: BTreeSet<Place>,
    /// The last message that an edit has taken: removed, or acknowledged and never kept.
    pub(crate) taken_through: u64,
    /// It acknowledges what it does not keep.
    pub(super) drops: bool,
    /// What must never happen.
    pub(crate) violation: Option<String>,
}

impl Stream {
    pub(super) fn new(name: &'static str, created: u64) -> Self {
        Stream {
            name,
            created,
            ..Stream::default()
        }
    }

    /// What is wrong with a message's expectations.
    pub(super) fn expectation(&self, frame: &Frame) -> Option<(u16, String)> {
        if let Some(last) = number(frame, "Nats-Expected-Last-Sequence")
            && last != self.last_seq
        {
            return Some((10_071, format!("wrong last sequence: {}", self.last_seq)));
        }
        if let Some(id) = frame.header("Nats-Expected-Last-Msg-Id")
            && self.last_id.as_deref() != Some(id)
        {
            return Some((10_070, "wrong last msg ID".into()));
        }
        if let Some(expected) = number(frame, "Nats-Expected-Last-Subject-Sequence") {
            let subject = frame
                .header("Nats-Expected-Last-Subject-Sequence-Subject")
                .unwrap_or(&frame.subject);
            let last = self.last_of(subject).map_or(0, |(seq, _)| seq);
            if last != expected {
                return Some((10_071, format!("wrong last sequence: {last}")));
            }
        }
        if frame
            .header("Nats-Expected-Stream")
            .is_some_and(|name| name != self.name)
        {
            return Some((10_060, "expected stream does not match".into()));
        }
        None
    }

    pub(crate) fn last_of(&self, subject: &str) -> Option<(u64, &Frame)> {
        self.messages
            .iter()
            .rev()
            .find(|(_, frame)| frame.subject == subject)
            .map(|(seq, frame)| (*seq, frame))
    }

    pub(super) fn next_of(&self, from: u64, filter: &str) -> Option<(u64, &Frame)> {
        let matches = |subject: &str| match filter.strip_suffix('>') {
            Some(root) => subject.starts_with(root),
            None => subject == filter,
        };
        self.messages
            .range(from..)
            .find(|(_, frame)| matches(&frame.subject))
            .map(|(seq, frame)| (*seq, frame))
    }

    pub(super) fn store(&mut self, frame: Frame) -> u64 {
        self.last_seq += 1;
        self.last_id = frame.header("Nats-Msg-Id").map(str::to_owned);
        self.ids.extend(self.last_id.clone());
        if self.drops {
            self.taken_through = self.last_seq;
            return self.last_seq;
        }
        if let Some((part, position)) = frame.place() {
            if self.swept.contains(&(part, position)) {
                let is_again = |swept: &Place| swept.0 == part && swept.1 >= position;
                let again: BTreeSet<Place> = self.swept.iter().copied().filter(is_again).collect();
                self.swept.retain(|place| !again.contains(place));
                self.places.retain(|place| !again.contains(place));
                self.removed
                    .retain(|_, frame| frame.place().is_none_or(|at| !again.contains(&at)));
            }
            if let Some(last) = self.last_position(part)
                && last >= position
            {
                self.violation = Some(format!("{position} is stored behind {last}"));
            }
            self.places.insert((part, position));
        }
        self.messages.insert(self.last_seq, frame);
        self.last_seq
    }

    fn last_position(&self, part: Part) -> Option<Position> {
        let [first, last] = [0, u64::MAX].map(|at| {
            let commit_lsn = at.into();
            (
                part,
                Position {
                    commit_lsn,
                    ordinal: at,
                },
            )
        });
        let mut of_lane = self.places.range(first..=last);
        of_lane.next_back().map(|(_, position)| *position)
    }

    /// The record names everything up to there: none of it may come again.
    pub(super) fn is_recorded(&mut self, part: Part, position: Option<Position>) {
        let is_left = |swept: &Place| swept.0 != part || Some(swept.1) > position;
        self.swept.retain(is_left);
    }

    /// A message stands there that was copied, and what it was copied from was removed.
    pub(crate) fn is_copy_of_removed(&self, sequence: u64) -> bool {
        let copied = self.copied(sequence);
        copied.is_some() && self.removed.values().any(|frame| told(frame) == copied)
    }

    /// A message stands there that was copied, and what it was copied from is gone without having been removed.
    pub(crate) fn is_copy_of_lost(&self, sequence: u64) -> bool {
        let copied = self.copied(sequence);
        let mut all = self.messages.values().chain(self.removed.values());
        copied.is_some() && !all.any(|frame| frame.subject != FOREIGN && told(frame) == copied)
    }

    /// The position that the copy there tells.
    fn copied(&self, sequence: u64) -> Option<&str> {
        let copy = self.messages.get(&sequence)?;
        told(copy).filter(|_| copy.subject == FOREIGN)
    }

    /// Removes messages as people and limits do.
    pub(crate) fn remove(&mut self, seqs: impl Iterator<Item = u64>) {
        for seq in seqs {
            if let Some(frame) = self.messages.remove(&seq) {
                self.removed.insert(seq, frame);
            }
        }
    }

    /// Forgets everything behind `seq`, as a crash does.
    pub(super) fn truncate(&mut self, seq: u64) {
        for (_, frame) in self.messages.split_off(&(seq + 1)) {
            if let Some(place) = frame.place() {
                self.places.remove(&place);
            }
        }
        self.last_seq = seq;
        self.synced_seq = self.synced_seq.min(seq);
        self.last_id = None;
    }

    /// The earliest end that a crash may leave.
    pub(crate) fn durable_seq(&self) -> u64 {
        let removed = self.removed.last_key_value().map_or(0, |(seq, _)| *seq);
        self.synced_seq.max(removed)
    }

    /// First publications of all lanes, removed ones too, in the stream's order.
    pub(crate) fn published(&self) -> Vec<(u64, Place, &Frame)> {
        let mut all: Vec<_> = self.messages.iter().chain(&self.removed).collect();
        all.sort_by_key(|(seq, _)| **seq);
        all.into_iter()
            .filter_map(|(seq, frame)| Some((*seq, frame.place()?, frame)))
            .collect()
    }

    /// What a crash finds of a stream that keeps one message a subject: the last of each, also where its removal was not synced.
    pub(super) fn restore_last_of_each_subject(&mut self) {
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for (seq, frame) in self.removed.range(..=self.last_seq) {
            if self.last_of(&frame.subject).is_none() {
                last.insert(frame.subject.clone(), *seq);
            }
        }
        for seq in last.into_values() {
            let frame = self.removed.remove(&seq).expect("found above");
            self.messages.insert(seq, frame);
        }
    }
}

/// The position that a message tells, in place or not.
fn told(frame: &Frame) -> Option<&str> {
    frame.header(position::POSITION_HEADER)
}
