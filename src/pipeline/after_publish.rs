//! What becomes of a row of the table once its event is in the stream, and when.
//!
//! In: the stream's messages in their order, how far the slot is confirmed. Out: the rows that are due. Guarantees: nothing
//! is due that the stream has not stored; a row to be deleted is due only once the slot is confirmed through its transaction,
//! since until then the slot can mend what the stream loses; a dead letter's row is never due.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use postgres_types::PgLsn;

use super::position::Position;

/// What becomes of a published row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterPublish {
    /// It stays.
    #[default]
    Keep,
    /// Its `dispatched_at` is set.
    Mark,
    /// It is deleted.
    Delete,
}

impl AfterPublish {
    /// All of them, with their names in the configuration.
    pub(crate) const NAMES: [(&str, AfterPublish); 3] = [
        ("keep", AfterPublish::Keep),
        ("mark", AfterPublish::Mark),
        ("delete", AfterPublish::Delete),
    ];

    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// A row of the lane. Ids are unique in their table only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    /// Which of the lane's tables; 0 is the lane's own.
    pub table: usize,
    /// The event's id.
    pub id: String,
}

/// What a message of the stream is to the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// An event's first publication, at its place in the lane.
    First(Position, Row),
    /// An event that was published outside of the lane: its row is published, and nothing tells where it stands in the WAL.
    Again(Row),
    /// Of no row that may be touched.
    Other,
}

/// Rows that are due.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// In the stream's order.
    pub rows: Vec<Row>,
    /// The stream's messages are done with up to this sequence.
    pub through: u64,
}

/// Messages whose rows are not due yet, in the stream's order.
#[derive(Debug)]
pub struct Waiting {
    after: AfterPublish,
    messages: VecDeque<(u64, Published)>,
    /// Messages up to this sequence have positions in another history of the WAL.
    adopted_sequence: u64,
    /// Messages up to this sequence may go.
    released: u64,
}

impl Waiting {
    /// Messages that are kept at once, at most; the others wait in the stream.
    pub const MESSAGES_MAX: usize = 10_000;

    /// Nothing yet, of a lane that was adopted behind `adopted_sequence`.
    #[must_use]
    pub fn new(after: AfterPublish, adopted_sequence: u64) -> Self {
        Waiting {
            after,
            messages: VecDeque::new(),
            adopted_sequence,
            released: 0,
        }
    }

    /// Whether another message may be taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.messages.len() < Self::MESSAGES_MAX
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Takes the stream's next message.
    pub fn take(&mut self, sequence: u64, published: Published) {
        self.messages.push_back((sequence, published));
    }

    /// The rows that are due where the slot is confirmed through `confirmed_lsn`, at most `max` of them; none where nothing
    /// has become due.
    ///
    /// The lane's messages stand in the order of their positions. So everything in front of one that is confirmed is, and
    /// what was published outside of the lane in front of it was synced and probed with it.
    pub fn due(&mut self, confirmed_lsn: PgLsn, max: usize) -> Option<Due> {
        let released = match self.after {
            AfterPublish::Keep => 0,
            AfterPublish::Mark => self.messages.back().map_or(0, |(sequence, _)| *sequence),
            AfterPublish::Delete => self.confirmed(confirmed_lsn),
        };
        self.released = self.released.max(released);
        let mut due = Due::default();
        while due.rows.len() < max
            && let Some((sequence, _)) = self.messages.front()
            && *sequence <= self.released
        {
            let (sequence, published) = self.messages.pop_front().expect("there is one");
            due.through = sequence;
            match published {
                Published::First(_, row) | Published::Again(row) => due.rows.push(row),
                Published::Other => {}
            }
        }
        (due.through > 0).then_some(due)
    }

    /// Sequence of the last message of the lane that is confirmed. A transaction ends behind the LSN of its commit, and
    /// nothing is confirmed between the two.
    fn confirmed(&self, confirmed_lsn: PgLsn) -> u64 {
        let is_confirmed = |(sequence, published): &&(u64, Published)| match published {
            Published::First(position, _) => {
                *sequence > self.adopted_sequence && position.commit_lsn < confirmed_lsn
            }
            Published::Again(_) | Published::Other => false,
        };
        let last = self.messages.iter().rev().find(is_confirmed);
        last.map_or(0, |(sequence, _)| *sequence)
    }
}

/// Between two looks for a row that is not seen: at first, since most are seen a moment later.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(200);
/// And at most: where somebody else deletes rows while an old transaction is open, nothing but its end tells that they are gone.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Rows that were not seen. They are in the stream as soon as their commit is in the WAL; other sessions see them a moment
/// later, with synchronous replication once the standby has them. Or they are gone.
#[derive(Debug, Default)]
pub struct Unseen(VecDeque<UnseenRows>);

#[derive(Debug)]
struct UnseenRows {
    /// The stream's messages in front of them are done with up to this sequence.
    before: u64,
    /// Their transactions have lower numbers.
    xmax: u64,
    rows: Vec<Row>,
    /// When they are looked for again.
    look_at: Duration,
    /// How long it was until then.
    pause: Duration,
}

impl Unseen {
    /// Keeps rows of a batch behind the message of sequence `before`; each transaction that was under way has a number below `xmax`.
    pub fn keep(&mut self, before: u64, xmax: u64, rows: Vec<Row>, now: Duration) {
        self.0.push_back(UnseenRows {
            before,
            xmax,
            rows,
            look_at: now + LOOK_AGAIN_MIN,
            pause: LOOK_AGAIN_MIN,
        });
    }

    /// Those that are to be looked for again.
    #[must_use]
    pub fn due(&self, now: Duration) -> Vec<Row> {
        let due = self.0.iter().filter(|kept| kept.look_at <= now);
        due.flat_map(|kept| kept.rows.clone()).collect()
    }

    /// After another look for what was [`Self::due`] at `now`, behind the time when every transaction with a number below `xmin` had
    /// ended, for readers too: these are `still` not seen. Rows of transactions that have ended are gone.
    pub fn looked(&mut self, still: &HashSet<Row>, xmin: u64, now: Duration) {
        self.0.retain_mut(|kept| {
            if kept.look_at > now {
                return true;
            }
            kept.rows.retain(|row| still.contains(row));
            kept.pause = (kept.pause * 2).min(LOOK_AGAIN_MAX);
            kept.look_at = now + kept.pause;
            kept.xmax > xmin && !kept.rows.is_empty()
        });
    }

    /// Up to which sequence the stream's messages are done with, where all up to `through` were looked at.
    #[must_use]
    pub fn done_through(&self, through: u64) -> u64 {
        self.0.front().map_or(through, |kept| kept.before)
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|kept| kept.rows.len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_not_seen_is_waited_for_until_its_transaction_has_ended() {
        let rows = |ids: &[&str]| ids.iter().map(|id| row(id)).collect::<Vec<_>>();
        let still = |these: &[&str]| rows(these).into_iter().collect::<HashSet<_>>();
        let mut unseen = Unseen::default();
        assert_eq!(unseen.done_through(7), 7);
        let second = Duration::from_secs;
        unseen.keep(7, 100, rows(&["a", "b"]), second(0));
        unseen.keep(9, 200, rows(&["c"]), second(0));
        assert_eq!((unseen.done_through(12), unseen.len()), (7, 3));
        unseen.looked(&still(&["b", "c"]), 99, second(10));
        assert_eq!(unseen.due(second(20)), rows(&["b", "c"]));
        // Nobody writes any more who could have written b.
        unseen.looked(&still(&["b", "c"]), 100, second(20));
        assert_eq!(unseen.due(second(30)), rows(&["c"]));
        assert_eq!(unseen.done_through(12), 9);
        // The same id of another table is another row.
        let other = Row {
            table: 1,
            ..row("c")
        };
        unseen.keep(9, 200, vec![other.clone()], second(20));
        unseen.looked(&HashSet::from([other.clone()]), 100, second(30));
        assert_eq!(unseen.due(second(40)), [other]);
        unseen.looked(&still(&[]), 100, second(40));
        assert!(unseen.is_empty());
        assert_eq!(unseen.done_through(12), 12);
    }

    #[test]
    fn a_row_that_stays_unseen_is_looked_for_less_and_less_often() {
        let mut unseen = Unseen::default();
        let gone = row("gone");
        let still = HashSet::from([gone.clone()]);
        unseen.keep(1, 100, vec![gone], Duration::ZERO);
        let mut looks = Vec::new();
        for tick in 0..600 {
            let now = Duration::from_millis(100) * tick;
            if !unseen.due(now).is_empty() {
                looks.push(now.as_millis());
                unseen.looked(&still, 50, now);
            }
        }
        assert_eq!(looks[..5], [200, 600, 1_400, 3_000, 6_200]);
        assert_eq!(looks.len(), 15, "one in five seconds: {looks:?}");
        // One that has come since is looked for at once, and no other with it.
        let now = Duration::from_secs(60);
        unseen.keep(2, 100, vec![row("new")], now);
        let due = unseen.due(now + LOOK_AGAIN_MIN);
        assert_eq!(due, [row("new")]);
        unseen.looked(&HashSet::new(), 100, now + LOOK_AGAIN_MIN);
        assert_eq!(unseen.len(), 1);
    }

    fn row(id: &str) -> Row {
        Row {
            table: 0,
            id: id.to_owned(),
        }
    }

    fn first(lsn: u64, id: &str) -> Published {
        let position = Position {
            commit_lsn: lsn.into(),
            ordinal: 1,
        };
        Published::First(position, row(id))
    }

    fn ids(due: Option<Due>) -> (u64, Vec<String>) {
        due.map_or((0, Vec::new()), |due| {
            let ids = due.rows.into_iter().map(|row| row.id);
            (due.through, ids.collect())
        })
    }

    #[test]
    fn a_row_is_marked_when_the_stream_has_it() {
        let mut waiting = Waiting::new(AfterPublish::Mark, 0);
        assert_eq!(waiting.due(0.into(), 10), None);
        waiting.take(1, first(10, "a"));
        waiting.take(2, Published::Again(row("b")));
        waiting.take(3, Published::Other);
        let due = Due {
            rows: vec![row("a"), row("b")],
            through: 3,
        };
        assert_eq!(waiting.due(0.into(), 10), Some(due));
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_row_is_deleted_when_the_slot_is_confirmed_through_it() {
        let mut waiting = Waiting::new(AfterPublish::Delete, 0);
        waiting.take(1, first(10, "a"));
        waiting.take(2, Published::Again(row("b")));
        waiting.take(3, first(20, "c"));
        waiting.take(4, Published::Other);
        waiting.take(5, Published::Again(row("d")));
        // Confirmed up to its commit, and not through it.
        assert_eq!(waiting.due(10.into(), 10), None);
        assert_eq!(ids(waiting.due(11.into(), 10)), (1, vec!["a".to_owned()]));
        assert_eq!(ids(waiting.due(20.into(), 10)), (0, Vec::new()));
        let both = vec!["b".to_owned(), "c".to_owned()];
        assert_eq!(ids(waiting.due(21.into(), 10)), (3, both));
        // Nothing tells how old it is until the lane has gone on.
        assert_eq!(waiting.due(1_000.into(), 10), None);
        waiting.take(6, first(30, "e"));
        assert_eq!(waiting.due(30.into(), 10), None);
        assert_eq!(ids(waiting.due(31.into(), 10)).1.len(), 2);
    }

    #[test]
    fn positions_of_another_history_release_nothing() {
        let mut waiting = Waiting::new(AfterPublish::Delete, 2);
        waiting.take(1, first(10, "a"));
        waiting.take(2, first(900, "b"));
        assert_eq!(waiting.due(1_000.into(), 10), None);
        waiting.take(3, first(20, "c"));
        assert_eq!(ids(waiting.due(1_000.into(), 10)).1.len(), 3);
    }

    #[test]
    fn batches_and_the_messages_that_wait_are_bounded() {
        let mut waiting = Waiting::new(AfterPublish::Delete, 0);
        for sequence in 1..=Waiting::MESSAGES_MAX as u64 {
            assert!(waiting.has_room());
            waiting.take(sequence, first(sequence, "x"));
        }
        assert!(!waiting.has_room());
        let due = waiting.due(1_000_000.into(), 300).expect("all are due");
        assert_eq!((due.rows.len(), due.through), (300, 300));
        // What was confirmed stays so, also where an older LSN is told.
        assert_eq!(ids(waiting.due(0.into(), 300)).0, 600);
        assert_eq!(waiting.len(), Waiting::MESSAGES_MAX - 600);
    }

    #[test]
    fn nothing_is_due_where_rows_stay() {
        let mut waiting = Waiting::new(AfterPublish::Keep, 0);
        waiting.take(1, first(1, "a"));
        assert_eq!(waiting.due(9.into(), 10), None);
    }
}
