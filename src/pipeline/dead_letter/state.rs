//! What has become of dead letters, as the stream itself tells it: open until a mark behind the letter says otherwise.
//!
//! In: the messages on the subject of a slot's dead letters, in their order. Out: which are letters and which are marks, and
//! how many letters are open. Guarantee: the stream alone tells, so a copy of it tells the same, wherever it is read.

use crate::pipeline::mapping::table_line;
use crate::pipeline::position::{
    DEAD_LETTER_HEADER, KIND_DEAD_LETTER, KIND_DISCARDED, KIND_HEADER, KIND_RETRIED, Position,
    parse_header,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Open letters that are kept one by one; more of them are a number.
const OPEN_MAX: usize = 100_000;

/// What has become of a dead letter; the names are the values in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing yet.
    #[default]
    Open,
    /// Its event is published.
    Retried,
    /// Nobody wants its event.
    Discarded,
}

impl State {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Retried => "retried",
            State::Discarded => "discarded",
        }
    }
}

/// The body of a mark.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// The event's id, as the dead letter tells it.
    pub id: Option<String>,
    /// Where the dead letter stands in the lane.
    pub position: String,
    /// Its state before.
    pub was: State,
    /// Why it is discarded, in a person's words.
    pub reason: Option<String>,
    /// The further table of the lane that its row is of, as its header has it; none for the lane's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
}

impl Mark {
    /// Headers of the mark by which a slot's dead letter gets this state, whole lines.
    #[must_use]
    pub fn headers(&self, slot: &str, state: State) -> String {
        let kind = match state {
            State::Open => unreachable!("a dead letter is open without a mark"),
            State::Retried => KIND_RETRIED,
            State::Discarded => KIND_DISCARDED,
        };
        let position = &self.position;
        let table = self.table.as_deref().map_or_else(String::new, table_line);
        format!("{KIND_HEADER}: {kind}\r\n{DEAD_LETTER_HEADER}: {slot} {position}\r\n{table}")
    }

    /// JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings always have a JSON form")
    }
}

/// What a message on the subject of dead letters tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A dead letter stands here in the lane.
    Letter(Position),
    /// The dead letter that stands here has got this state.
    Mark(Position, State),
}

impl Told {
    /// Of a slot's own message; none where somebody else has written it. `position` and `letter` are the values of
    /// `Walrelay-Position` and of `Walrelay-Dead-Letter`.
    #[must_use]
    pub fn of(
        slot: &str,
        kind: Option<&str>,
        position: Option<&str>,
        letter: Option<&str>,
    ) -> Option<Self> {
        let own = |value: Option<&str>| {
            let (of_slot, position) = parse_header(value?).ok()?;
            (of_slot == slot).then_some(position)
        };
        match kind? {
            KIND_DEAD_LETTER => own(position).map(Told::Letter),
            KIND_RETRIED => own(letter).map(|position| Told::Mark(position, State::Retried)),
            KIND_DISCARDED => own(letter).map(|position| Told::Mark(position, State::Discarded)),
            _ => None,
        }
    }
}

/// The letters that are open, as far as the stream was read.
#[derive(Debug, Default)]
pub struct OpenLetters {
    /// Their sequences.
    letters: BTreeMap<Position, u64>,
    more: u64,
}

impl OpenLetters {
    /// Takes what the next message tells, which has this sequence.
    pub fn take(&mut self, sequence: u64, told: Told) {
        match told {
            Told::Letter(position) if self.letters.len() < OPEN_MAX => {
                self.letters.insert(position, sequence);
            }
            Told::Letter(_) => self.more += 1,
            Told::Mark(position, _) => {
                // One that was closed before is none of either.
                if self.letters.remove(&position).is_none() {
                    self.more = self.more.saturating_sub(1);
                }
            }
        }
    }

    /// The stream has nothing below this sequence any more.
    pub fn begins_at(&mut self, first_sequence: u64) {
        self.letters
            .retain(|_, sequence| *sequence >= first_sequence);
    }

    /// The newest of those that are kept, with their sequences.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = (u64, Position)> {
        let newest = self.letters.iter().rev().take(count);
        newest.map(|(position, sequence)| (*sequence, *position))
    }

    /// Whether the stream has the one at this position; of more than are kept one by one nobody knows.
    #[must_use]
    pub fn has(&self, position: &Position) -> bool {
        self.letters.contains_key(position)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.letters.len() as u64 + self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ordinal: u64) -> Position {
        Position {
            commit_lsn: 16.into(),
            ordinal,
        }
    }

    #[test]
    fn only_what_walrelay_has_written_of_this_slot_tells() {
        let (own, other) = (Some("a 0/10:1"), Some("b 0/10:1"));
        let told = |kind, position, letter| Told::of("a", Some(kind), position, letter);
        assert_eq!(told("dead-letter", own, None), Some(Told::Letter(at(1))));
        assert_eq!(told("dead-letter", other, None), None);
        assert_eq!(told("dead-letter", None, own), None);
        for (kind, state) in [("retried", State::Retried), ("discarded", State::Discarded)] {
            assert_eq!(told(kind, None, own), Some(Told::Mark(at(1), state)));
            assert_eq!(
                (told(kind, None, other), told(kind, own, None)),
                (None, None)
            );
            assert_eq!(told(kind, None, Some("a x")), None);
        }
        assert_eq!(told("adopted", own, own), None);
        assert_eq!(Told::of("a", None, own, own), None);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark {
            position: "0/10:1".into(),
            ..Mark::default()
        };
        let headers = mark.headers("a", State::Discarded);
        let lines: BTreeMap<_, _> = headers.lines().filter_map(|l| l.split_once(": ")).collect();
        let letter = lines.get(DEAD_LETTER_HEADER).copied();
        let told = Told::of("a", lines.get(KIND_HEADER).copied(), None, letter);
        assert_eq!(told, Some(Told::Mark(at(1), State::Discarded)));
    }

    #[test]
    fn a_letter_is_open_until_a_mark_behind_it() {
        let mut open = OpenLetters::default();
        for (sequence, told) in [
            (1, Told::Letter(at(1))),
            (2, Told::Letter(at(2))),
            (3, Told::Letter(at(3))),
            (4, Told::Mark(at(2), State::Discarded)),
            (5, Told::Mark(at(2), State::Retried)),
        ] {
            open.take(sequence, told);
        }
        assert_eq!(open.count(), 2);
        assert_eq!(open.newest(1).collect::<Vec<_>>(), [(3, at(3))]);
        // A letter is gone from the stream.
        open.begins_at(3);
        assert_eq!(open.count(), 1);
        // A mark whose letter was removed, and one position again in a lane that was adopted.
        open.take(6, Told::Mark(at(1), State::Retried));
        open.take(7, Told::Letter(at(2)));
        assert_eq!(open.count(), 2);
    }

    #[test]
    fn memory_does_not_grow_with_their_number() {
        let mut open = OpenLetters::default();
        let all = OPEN_MAX as u64 + 10;
        for number in 1..=all {
            open.take(number, Told::Letter(at(number)));
        }
        assert_eq!((open.letters.len(), open.count()), (OPEN_MAX, all));
        for number in 1..=all {
            open.take(all + number, Told::Mark(at(number), State::Retried));
        }
        assert_eq!(open.count(), 0);
    }
}
