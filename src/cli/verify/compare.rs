//! What the table and the stream say about each event, brought together.
//!
//! In: all entries of one id. Out: a [`Verdict`]. Pure. Guarantee: positions and ids decide, never the age of a row: a
//! row is called missing only where neither the relay can still bring it nor the stream can have removed its message.
//!
//! A table without a key may have an id more than once, so everything is counted, and one message stands for one row.

use super::sort::{Entry, Kind};
use crate::postgres::inserted::Inserted;

/// One id, all that was met of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: u128,
    pub(super) rows: u64,
    /// Rows that `--since` leaves out.
    older_rows: u64,
    /// When and where the oldest row was inserted: the order of a backfill, and no verdict.
    pub(super) inserted: Option<Inserted>,
    events: u64,
    later_events: u64,
    /// Events of other shares, which are most often of rows of theirs.
    siblings: u64,
    /// Sequence of the first event, 0 for none.
    pub(super) sequence: u64,
    dead_letters: u64,
    pub(super) dead_letter_sequence: u64,
    /// Marks of dead letters that were retried, those included that were discarded before.
    retried: u64,
    /// Marks of the same without a retry before them.
    unproven: u64,
    /// Marks of dead letters that were discarded, but for those that were retried then.
    discarded: u64,
    /// Backfills and retries.
    fills: u64,
    replays: u64,
    /// Sequences of the first and the last message that must not be there twice: an event, a backfill, a retry.
    pub(super) copies: Option<(u64, u64)>,
    pending: u64,
    passed: u64,
    removed: u64,
    /// Messages with ids of another table, which was the outbox before.
    former: u64,
}

impl Group {
    /// Takes the next entry of the same id.
    pub(super) fn take(&mut self, entry: Entry) {
        self.id = entry.id;
        let number = entry.number();
        match entry.kind() {
            Kind::Row => {
                self.rows += 1;
                let inserted = Inserted::unpacked(number, entry.place);
                let oldest = self.inserted.unwrap_or(inserted);
                self.inserted = Some(oldest.min(inserted));
            }
            Kind::OlderRow => self.older_rows += 1,
            Kind::Event => self.events += 1,
            Kind::LaterEvent => self.later_events += 1,
            Kind::Sibling => self.siblings += 1,
            Kind::DeadLetter => {
                self.dead_letters += 1;
                self.dead_letter_sequence = number;
            }
            Kind::Retried => self.retried += 1,
            Kind::Discarded => self.discarded += 1,
            // Its first mark was taken before: kinds come in their order.
            Kind::Reclaimed => {
                self.discarded = self.discarded.saturating_sub(1);
                self.retried += 1;
            }
            Kind::Unproven => {
                self.retried = self.retried.saturating_sub(1);
                self.unproven += 1;
            }
            Kind::Fill => self.fills += 1,
            Kind::Replay => self.replays += 1,
            Kind::Pending => self.pending += 1,
            Kind::Passed => self.passed += 1,
            Kind::Removed => self.removed += 1,
            Kind::Former => self.former += 1,
        }
        if matches!(entry.kind(), Kind::Event | Kind::LaterEvent) {
            self.sequence = match self.sequence {
                0 => number,
                first => first.min(number),
            };
        }
        if matches!(
            entry.kind(),
            Kind::Event | Kind::LaterEvent | Kind::Sibling | Kind::Fill
        ) {
            let (first, last) = self.copies.unwrap_or((number, number));
            self.copies = Some((first.min(number), last.max(number)));
        }
    }

    fn has_row(&self) -> bool {
        self.rows + self.older_rows > 0
    }
}

/// What is known of the stream as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Whole {
    /// Sequence of the earliest event whose row is in the table; none where no event has a row.
    pub(super) first_with_row: Option<u64>,
    /// Most messages that retention may have removed before they were read.
    pub(super) removed_max: u64,
    /// It removes the oldest messages alone: what stood behind one that is there was not removed by it.
    pub(super) only_front_removed: bool,
}

impl Whole {
    pub(super) fn take(&mut self, group: &Group) {
        if group.has_row() && group.sequence > 0 {
            let first = self.first_with_row.unwrap_or(group.sequence);
            self.first_with_row = Some(first.min(group.sequence));
        }
    }
}

/// What is the matter with an id: how many of its rows, and how many messages are too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// In the table, not in the stream.
    pub(super) missing: u64,
    /// The same, but the slot has it and the relay has not come to it.
    pub(super) pending: u64,
    /// The same, but the slot tells its position, which is before the lane's first one in the stream, where messages were
    /// removed.
    pub(super) removed: u64,
    /// The same, but its position is not known, and the stream may have had its message and removed it.
    pub(super) unjudged: u64,
    /// The same, or an older row of the same id, which `--since` leaves out.
    pub(super) ambiguous: u64,
    /// The same, but the id has a message of another table, which was the outbox before.
    pub(super) former: u64,
    /// A dead letter that is open, and no retry that succeeded.
    pub(super) dead_lettered: u64,
    /// A dead letter that nobody wants published.
    pub(super) discarded: u64,
    /// A dead letter that is marked as retried, without a retry or another event; a row of it is missing too.
    pub(super) unretried: u64,
    /// More publications than rows, but for replays.
    pub(super) doubled: u64,
    /// In the stream; unless a second look finds its row, not in the table, which still has rows of earlier events. It had one
    /// if rows are deleted.
    pub(super) phantom: bool,
}

impl Verdict {
    /// Rows without a message.
    pub(super) fn unpublished(&self) -> u64 {
        self.missing + self.pending + self.removed + self.unjudgeable()
    }

    /// Rows of which nothing tells whether they were published.
    pub(super) fn unjudgeable(&self) -> u64 {
        self.unjudged + self.ambiguous + self.former
    }
}

/// Judges one id.
pub(super) fn verdict(group: &Group, whole: &Whole) -> Verdict {
    let own_events = group.events + group.later_events;
    let siblings = match group.has_row() || own_events > 0 {
        true => group.siblings,
        false => 0,
    };
    let copies = own_events + siblings + group.fills;
    let all_rows = group.rows + group.older_rows;
    // Retention may have deleted the row of an event or of a dead letter: one row at least was there.
    let rows = all_rows.max(1);
    let published = copies + group.replays;
    let mut unpublished = rows.saturating_sub(published);
    let mut explained = |by: u64| {
        let part = unpublished.min(by);
        unpublished -= part;
        part
    };
    let closed = group.retried + group.discarded;
    // Where the letter is there, its retry was stored behind it.
    let is_sure = whole.removed_max == 0 || whole.only_front_removed;
    let unproven = match is_sure {
        true => (group.unproven).min(group.dead_letters.saturating_sub(closed)),
        false => 0,
    };
    let open = group.dead_letters.saturating_sub(closed + group.unproven);
    let mut dead_lettered = explained(open);
    let unretried = explained(unproven);
    if !group.has_row() {
        // Nothing but the letter has it.
        dead_lettered += unretried;
    }
    let discarded = explained(group.discarded);
    // By a message with another id, or one that the stream has removed since.
    let retried = explained(group.retried + group.unproven - unproven);
    let accounted = published + dead_lettered + discarded + retried;
    let mut left = all_rows.saturating_sub(accounted).min(group.rows);
    // Among rows that share the id, those that `--since` leaves out may be the ones without a message.
    let ambiguous = left - group.rows.saturating_sub(accounted).min(left);
    let mut part = |of: u64| {
        let part = left.min(of);
        left -= part;
        part
    };
    let pending = part(group.pending);
    let removed = part(group.removed);
    let known = part(group.passed + unretried);
    let ambiguous = part(ambiguous);
    // Of a copy it is this row's, of ids that begin again it is not.
    let former = match group.former {
        0 => 0,
        _ => part(u64::MAX),
    };
    let unjudged = match whole.removed_max {
        0 => 0,
        _ => part(u64::MAX),
    };
    // Dropping the oldest partitions takes the rows of the first events. Whether others may be absent, the table tells.
    let behind_rows = whole
        .first_with_row
        .is_some_and(|first| group.sequence > first);
    Verdict {
        missing: known + left,
        pending,
        removed,
        unjudged,
        ambiguous,
        former,
        dead_lettered,
        discarded,
        unretried,
        doubled: copies.saturating_sub(rows),
        phantom: !group.has_row() && group.events > 0 && behind_rows,
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{
        DeadLetter, Discarded, Event, Fill, Former, LaterEvent, OlderRow, Passed, Pending,
        Reclaimed, Removed, Replay, Retried, Row, Sibling, Unproven,
    };
    use super::*;

    /// Nothing was removed, and the table's first row has its event at sequence 10.
    const WHOLE: Whole = Whole {
        first_with_row: Some(10),
        removed_max: 0,
        only_front_removed: true,
    };
    const TRIMMED: Whole = Whole {
        removed_max: 9,
        ..WHOLE
    };
    const FINE: Verdict = Verdict {
        missing: 0,
        pending: 0,
        removed: 0,
        unjudged: 0,
        ambiguous: 0,
        former: 0,
        dead_lettered: 0,
        discarded: 0,
        unretried: 0,
        doubled: 0,
        phantom: false,
    };

    fn judge(entries: &[(Kind, u64)], whole: &Whole) -> Verdict {
        let mut group = Group::default();
        for &(kind, number) in entries {
            group.take(Entry::new(1, kind, number));
        }
        verdict(&group, whole)
    }

    fn missing(missing: u64) -> Verdict {
        Verdict { missing, ..FINE }
    }

    fn unjudged(unjudged: u64) -> Verdict {
        Verdict { unjudged, ..FINE }
    }

    #[test]
    fn each_case_has_its_verdict() {
        let dead_lettered = |dead_lettered| Verdict {
            dead_lettered,
            ..FINE
        };
        let doubled = |doubled| Verdict { doubled, ..FINE };
        let pending = |pending| Verdict { pending, ..FINE };
        let phantom = Verdict {
            phantom: true,
            ..FINE
        };
        for (entries, expected) in [
            (&[(Row, 5), (Event, 20)][..], FINE),
            (&[(Row, 5)], missing(1)),
            (&[(Row, 5), (Pending, 0)], pending(1)),
            (&[(Row, 5), (Passed, 0)], missing(1)),
            (&[(Row, 5), (DeadLetter, 20)], dead_lettered(1)),
            (&[(Row, 5), (DeadLetter, 20), (Fill, 21)], FINE),
            (&[(DeadLetter, 20)], dead_lettered(1)),
            // Mended by a row that took its place.
            (&[(Row, 5), (Event, 21), (DeadLetter, 20)], FINE),
            (&[(Row, 5), (Event, 20), (Event, 21)], doubled(1)),
            (&[(Event, 9), (LaterEvent, 20)], doubled(1)),
            // A replay explains itself. A backfill and a retry explain one message that is there alone.
            (&[(Row, 5), (Replay, 20)], FINE),
            (&[(Row, 5), (Event, 20), (Replay, 21)], FINE),
            (&[(Row, 5), (Fill, 20)], FINE),
            (&[(Row, 5), (Fill, 20), (Replay, 21)], FINE),
            (&[(Row, 5), (Fill, 20), (Fill, 21)], doubled(1)),
            (&[(Row, 5), (Event, 20), (Fill, 21)], doubled(1)),
            (&[(Fill, 20), (Fill, 21)], doubled(1)),
            (&[(Event, 20)], phantom),
            (&[(Event, 9)], FINE),
            (&[(LaterEvent, 20)], FINE),
            // A row that was another share's once, and one that still is.
            (&[(Row, 5), (Sibling, 20)], FINE),
            (&[(Row, 5), (Event, 21), (Sibling, 20)], doubled(1)),
            (&[(Sibling, 20), (Sibling, 21)], FINE),
            // The slot has something that nobody sees in the table.
            (&[(Pending, 0)], FINE),
        ] {
            assert_eq!(judge(entries, &WHOLE), expected, "{entries:?}");
        }
    }

    #[test]
    fn rows_that_share_an_id_need_a_message_each() {
        let rows = [(Row, 5), (Row, 5), (Row, 5)];
        let judge = |more: &[(Kind, u64)]| judge(&[&rows, more].concat(), &WHOLE);
        let events = |sequences: &[u64]| -> Vec<(Kind, u64)> {
            sequences
                .iter()
                .map(|sequence| (Event, *sequence))
                .collect()
        };
        assert_eq!(judge(&events(&[20, 21, 22])), FINE);
        assert_eq!(judge(&events(&[20, 21])), missing(1));
        assert_eq!(judge(&events(&[20, 21, 22, 23])).doubled, 1);
        let expected = Verdict {
            dead_lettered: 1,
            ..missing(1)
        };
        assert_eq!(judge(&[(Event, 20), (DeadLetter, 21)]), expected);
        assert_eq!(judge(&[(DeadLetter, 21), (Fill, 22)]), expected);
        let expected = Verdict { pending: 1, ..FINE };
        assert_eq!(judge(&[(Event, 20), (Fill, 21), (Pending, 0)]), expected);
    }

    #[test]
    fn a_mark_closes_one_dead_letter() {
        let judge = |entries: &[(Kind, u64)]| judge(entries, &WHOLE);
        let verdict = |dead_lettered, discarded| Verdict {
            dead_lettered,
            discarded,
            ..FINE
        };
        let letter = [(Row, 5), (DeadLetter, 20)];
        let with = |more: &[(Kind, u64)]| judge(&[&letter, more].concat());
        assert_eq!(with(&[(Discarded, 21)]), verdict(0, 1));
        assert_eq!(with(&[(Retried, 22), (Fill, 21)]), FINE);
        assert_eq!(with(&[(Discarded, 21), (Reclaimed, 23), (Fill, 22)]), FINE);
        // Published under another id.
        assert_eq!(with(&[(Retried, 22)]), FINE);
        // The row is gone, as most are in the end.
        assert_eq!(judge(&[(DeadLetter, 20), (Discarded, 21)]), verdict(0, 1));
        // Its letter is gone from the stream.
        assert_eq!(judge(&[(Row, 5), (Discarded, 21)]), verdict(0, 1));

        let two = [(Row, 5), (Row, 5), (DeadLetter, 20), (DeadLetter, 21)];
        let with = |more: &[(Kind, u64)]| judge(&[&two, more].concat());
        assert_eq!(with(&[]), verdict(2, 0));
        assert_eq!(with(&[(Discarded, 22)]), verdict(1, 1));
        assert_eq!(with(&[(Discarded, 22), (Discarded, 23)]), verdict(0, 2));
        assert_eq!(with(&[(Retried, 23), (Fill, 22)]), verdict(1, 0));
        let reclaimed = [(Discarded, 22), (Reclaimed, 24), (Fill, 23)];
        assert_eq!(with(&reclaimed), verdict(1, 0));
    }

    #[test]
    fn a_mark_without_a_retry_is_believed_where_the_stream_may_have_removed_it() {
        let thinned = Whole {
            only_front_removed: false,
            ..TRIMMED
        };
        let unretried = |verdict| Verdict {
            unretried: 1,
            ..verdict
        };
        let mark = [(Retried, 22), (Unproven, 22)];
        let with = |more: &[(Kind, u64)], whole| judge(&[&mark, more].concat(), whole);
        let letter = [(Row, 5), (DeadLetter, 20)];
        for whole in [&WHOLE, &TRIMMED] {
            assert_eq!(with(&letter, whole), unretried(missing(1)));
            // The letter alone has it.
            let dead_lettered = Verdict {
                dead_lettered: 1,
                ..FINE
            };
            assert_eq!(with(&letter[1..], whole), unretried(dead_lettered));
            // Published after all: a backfill, and a second retry under another id.
            assert_eq!(with(&[&letter[..], &[(Fill, 23)]].concat(), whole), FINE);
            assert_eq!(with(&[&letter[..], &[(Retried, 24)]].concat(), whole), FINE);
            let reclaimed = [(Discarded, 21), (Reclaimed, 22), (Unproven, 22)];
            let reclaimed = judge(&[&letter[..], &reclaimed].concat(), whole);
            assert_eq!(reclaimed, unretried(missing(1)));
        }
        assert_eq!(with(&letter, &thinned), FINE);
        assert_eq!(with(&letter[1..], &thinned), FINE);
        // Without its letter nothing says that its retry stood behind what is there.
        for whole in [&WHOLE, &TRIMMED, &thinned] {
            assert_eq!(with(&letter[..1], whole), FINE);
            assert_eq!(with(&[], whole), FINE);
        }
        // One of two letters that share an id.
        let two = [(Row, 5), (Row, 5), (DeadLetter, 20), (DeadLetter, 21)];
        let proven = [(Retried, 24), (Fill, 23)];
        let both = with(&[&two[..], &proven].concat(), &WHOLE);
        assert_eq!(both, unretried(missing(1)));
    }

    #[test]
    fn what_the_stream_may_have_removed_is_not_missing() {
        assert_eq!(judge(&[(Row, 5)], &TRIMMED), unjudged(1));
        assert_eq!(judge(&[(Row, 5), (Event, 20)], &TRIMMED), FINE);
        // The slot knows better.
        assert_eq!(judge(&[(Row, 5), (Passed, 0)], &TRIMMED), missing(1));
        let removed = Verdict { removed: 1, ..FINE };
        assert_eq!(judge(&[(Row, 5), (Removed, 0)], &TRIMMED), removed);
        let both = Verdict {
            unjudged: 1,
            ..removed
        };
        assert_eq!(judge(&[(Row, 5), (Row, 5), (Removed, 0)], &TRIMMED), both);
    }

    #[test]
    fn a_message_of_a_former_table_tells_nothing_of_a_row() {
        let former = |former| Verdict { former, ..FINE };
        let judge = |entries: &[(Kind, u64)]| judge(entries, &WHOLE);
        assert_eq!(judge(&[(Former, 20)]), FINE);
        assert_eq!(judge(&[(Row, 5), (Former, 20)]), former(1));
        assert_eq!(judge(&[(Row, 5), (Event, 21), (Former, 20)]), FINE);
        assert_eq!(judge(&[(Row, 5), (Fill, 21), (Former, 20)]), FINE);
        assert_eq!(judge(&[(Row, 5), (Passed, 0), (Former, 20)]), missing(1));
    }

    #[test]
    fn rows_that_are_left_out_count_where_they_share_an_id() {
        let both =
            |more: &[(Kind, u64)]| judge(&[&[(Row, 5), (OlderRow, 0)], more].concat(), &WHOLE);
        assert_eq!(both(&[(Event, 20), (Event, 21)]), FINE);
        assert_eq!(both(&[(Event, 20), (Event, 21), (Event, 22)]).doubled, 1);
        // Whose the one message is, nobody can tell.
        let ambiguous = Verdict {
            ambiguous: 1,
            ..FINE
        };
        assert_eq!(both(&[(Event, 20)]), ambiguous);
        assert_eq!(both(&[]), missing(1));
        let rows = [(Row, 5), (Row, 5), (OlderRow, 0), (Event, 20)];
        let expected = Verdict {
            missing: 1,
            ..ambiguous
        };
        assert_eq!(judge(&rows, &WHOLE), expected);
        assert_eq!(judge(&[(OlderRow, 0)], &WHOLE), FINE);
        assert_eq!(judge(&[(OlderRow, 0), (Event, 20)], &WHOLE), FINE);
    }
}
