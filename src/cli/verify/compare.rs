//! What the table and the stream say about each event, brought together.
//!
//! In: all entries of one id. Out: a [`Verdict`]. Pure. Guarantee: a row that the relay has still to bring is not
//! called missing, and an event whose row retention may have deleted is not called a phantom.
//!
//! A table without a key may have an id more than once, so everything is counted, and one message stands for one row.

use super::sort::{Entry, Kind};

/// One id, all that was met of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: u128,
    pub(super) rows: u64,
    /// Of these, older than the stream's first event that still has a row.
    rows_before_stream: u64,
    /// Age of the oldest row's xmin.
    pub(super) xmin_age: u64,
    events: u64,
    later_events: u64,
    /// Sequence of the first event, 0 for none.
    pub(super) sequence: u64,
    /// Sequence of the last event.
    pub(super) last_sequence: u64,
    dead_letters: u64,
    pub(super) dead_letter_sequence: u64,
    again: u64,
    pending: u64,
}

impl Group {
    /// Takes the next entry of the same id.
    pub(super) fn take(&mut self, entry: Entry, overlap: &Overlap) {
        self.id = entry.id;
        let number = entry.number();
        match entry.kind() {
            Kind::Row => {
                self.rows += 1;
                self.rows_before_stream += u64::from(overlap.is_behind(number));
                self.xmin_age = self.xmin_age.max(number);
            }
            kind @ (Kind::Event | Kind::LaterEvent) => {
                if kind == Kind::Event {
                    self.events += 1;
                } else {
                    self.later_events += 1;
                }
                self.sequence = match self.sequence {
                    0 => number,
                    first => first.min(number),
                };
                self.last_sequence = self.last_sequence.max(number);
            }
            Kind::DeadLetter => {
                self.dead_letters += 1;
                self.dead_letter_sequence = number;
            }
            Kind::Again => self.again += 1,
            Kind::Pending => self.pending += 1,
        }
    }
}

/// Where table and stream begin to overlap: the earliest event of the stream whose row is in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Overlap {
    /// Its sequence; none where no event has a row.
    pub(super) sequence: Option<u64>,
    /// Age of its row's xmin.
    pub(super) xmin_age: u64,
}

impl Overlap {
    pub(super) fn take(&mut self, group: &Group) {
        if group.rows > 0
            && group.sequence > 0
            && self
                .sequence
                .is_none_or(|sequence| group.sequence < sequence)
        {
            *self = Overlap {
                sequence: Some(group.sequence),
                xmin_age: group.xmin_age,
            };
        }
    }

    /// Whether a row of this age is older than all that the stream has.
    fn is_behind(&self, xmin_age: u64) -> bool {
        self.sequence.is_none() || xmin_age > self.xmin_age
    }
}

/// What is the matter with an id: how many of its rows, and how many messages are too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// In the table, not in the stream.
    pub(super) missing: u64,
    /// The same, but the slot has it and the relay has not come to it.
    pub(super) pending: u64,
    /// The same, but older than the stream's oldest event, and the stream has removed messages at its beginning.
    pub(super) removed: u64,
    /// A dead letter, and no retry that succeeded.
    pub(super) dead_lettered: u64,
    /// More first publications than rows.
    pub(super) doubled: u64,
    /// In the stream; unless a second look finds its row, not in the table, which still has rows of earlier events.
    pub(super) phantom: bool,
}

/// Judges one id. `front_removed`: the stream no longer has its first message.
pub(super) fn verdict(group: &Group, overlap: &Overlap, front_removed: bool) -> Verdict {
    let published = group.events + group.later_events;
    // Retention may have deleted the row of an event or of a dead letter: one row at least was there.
    let rows = group.rows.max(1);
    let mut verdict = Verdict {
        doubled: published.saturating_sub(rows),
        ..Verdict::default()
    };
    let dead_lettered = rows
        .saturating_sub(published + group.again)
        .min(group.dead_letters);
    verdict.dead_lettered = dead_lettered;
    let mut left = group
        .rows
        .saturating_sub(published + group.again + dead_lettered);
    let mut part = |of: u64| {
        let part = left.min(of);
        left -= part;
        part
    };
    verdict.pending = part(group.pending);
    if front_removed {
        verdict.removed = part(group.rows_before_stream);
    }
    verdict.missing = left;
    // Retention deletes the oldest rows first: behind a row that is still there, none may be absent.
    let behind_rows = overlap.sequence.is_some_and(|first| group.sequence > first);
    verdict.phantom = group.rows == 0 && group.events > 0 && behind_rows;
    verdict
}

#[cfg(test)]
mod tests {
    use super::Kind::{Again, DeadLetter, Event, LaterEvent, Pending, Row};
    use super::*;

    /// Where the table's rows of age 500 and less have events, from sequence 10 on.
    const OVERLAP: Overlap = Overlap {
        sequence: Some(10),
        xmin_age: 500,
    };

    fn judge(entries: &[(Kind, u64)], overlap: &Overlap, front_removed: bool) -> Verdict {
        let mut group = Group::default();
        for &(kind, number) in entries {
            group.take(Entry::new(1, kind, number), overlap);
        }
        verdict(&group, overlap, front_removed)
    }

    #[test]
    fn each_case_has_its_verdict() {
        let fine = Verdict::default();
        let missing = |missing| Verdict { missing, ..fine };
        let dead_lettered = |dead_lettered| Verdict {
            dead_lettered,
            ..fine
        };
        let doubled = |doubled| Verdict { doubled, ..fine };
        let pending = |pending| Verdict { pending, ..fine };
        let phantom = Verdict {
            phantom: true,
            ..fine
        };
        for (entries, expected) in [
            (&[(Row, 5), (Event, 20)][..], fine),
            (&[(Row, 5)], missing(1)),
            (&[(Row, 5), (Pending, 0)], pending(1)),
            (&[(Row, 5), (DeadLetter, 20)], dead_lettered(1)),
            (&[(Row, 5), (DeadLetter, 20), (Again, 21)], fine),
            (&[(DeadLetter, 20)], dead_lettered(1)),
            // Mended by a row that took its place.
            (&[(Row, 5), (Event, 21), (DeadLetter, 20)], fine),
            (&[(Row, 5), (Again, 20)], fine),
            (&[(Row, 5), (Event, 20), (Event, 21)], doubled(1)),
            (&[(Row, 5), (Event, 20), (Again, 21)], fine),
            (&[(Event, 9), (LaterEvent, 20)], doubled(1)),
            (&[(Event, 20)], phantom),
            (&[(Event, 9)], fine),
            (&[(LaterEvent, 20)], fine),
            // The slot has something that nobody sees in the table.
            (&[(Pending, 0)], fine),
        ] {
            assert_eq!(judge(entries, &OVERLAP, false), expected, "{entries:?}");
        }
    }

    #[test]
    fn rows_that_share_an_id_need_a_message_each() {
        let rows = [(Row, 5), (Row, 5), (Row, 5)];
        let counts = |more: &[(Kind, u64)]| {
            let verdict = judge(&[&rows, more].concat(), &OVERLAP, false);
            (
                verdict.missing,
                verdict.pending,
                verdict.dead_lettered,
                verdict.doubled,
            )
        };
        assert_eq!(
            counts(&[(Event, 20), (Event, 21), (Event, 22)]),
            (0, 0, 0, 0)
        );
        assert_eq!(counts(&[(Event, 20), (Event, 21)]), (1, 0, 0, 0));
        assert_eq!(counts(&[(Event, 20), (DeadLetter, 21)]), (1, 0, 1, 0));
        assert_eq!(
            counts(&[(Event, 20), (Again, 21), (Pending, 0)]),
            (0, 1, 0, 0)
        );
        assert_eq!(counts(&[(DeadLetter, 21), (Again, 22)]), (1, 0, 1, 0));
        assert_eq!(counts(&[20, 21, 22, 23].map(|n| (Event, n))), (0, 0, 0, 1));
    }

    #[test]
    fn what_the_stream_removed_at_its_beginning_is_not_missing() {
        let counts = |rows: &[(Kind, u64)], overlap: &Overlap, front_removed| {
            let verdict = judge(rows, overlap, front_removed);
            (verdict.removed, verdict.missing)
        };
        assert_eq!(counts(&[(Row, 501)], &OVERLAP, true), (1, 0));
        assert_eq!(counts(&[(Row, 499)], &OVERLAP, true), (0, 1));
        assert_eq!(counts(&[(Row, 501)], &OVERLAP, false), (0, 1));
        assert_eq!(counts(&[(Row, 1)], &Overlap::default(), true), (1, 0));
        assert_eq!(counts(&[(Row, 1), (Row, 501)], &OVERLAP, true), (1, 1));
    }
}
