//! Which dead letters were open when the relay last looked, kept beside the lane record: what a stream's limits remove is not forgotten.
//!
//! In: what the messages on the subject of the dead letters tell, in their order. Out: the letters to keep in mind, as they are
//! stored. Guarantee: no more than [`KEPT_MAX`] of them; where there were more, that is said.

use crate::pipeline::dead_letter::state::Told;
use crate::pipeline::position::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// With ids that are as long as a dead letter tells them, about a quarter of what a server takes in one message by default.
pub const KEPT_MAX: usize = 1_000;

/// An open dead letter, without its row.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Where it stands in the lane.
    pub position: String,
    /// In the stream; 0 where that has it no more.
    pub sequence: u64,
    /// The event's id, as the letter tells it.
    pub id: Option<String>,
    /// The further table of the lane that its row is of, as its header has it; none for the lane's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    letters: Vec<Kept>,
    /// More were open than are kept.
    pub more: bool,
}

impl Remembered {
    /// As it is stored; what is no such thing tells of no letter.
    #[must_use]
    pub fn from_json(data: &[u8]) -> Self {
        serde_json::from_slice(data).unwrap_or_default()
    }

    /// JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings always have a JSON form")
    }

    /// The letters by their positions.
    pub fn letters(&self) -> impl Iterator<Item = (Position, &Kept)> {
        let letters = self.letters.iter();
        letters.filter_map(|letter| Some((letter.position.parse().ok()?, letter)))
    }

    /// Without those for which this holds; whether there were any.
    pub fn forget(&mut self, is_meant: impl Fn(&Kept) -> bool) -> bool {
        let before = self.letters.len();
        self.letters.retain(|letter| !is_meant(letter));
        self.letters.len() < before
    }
}

/// The letters to keep, while the stream is read.
#[derive(Debug, Default)]
pub struct Keeping {
    letters: BTreeMap<Position, Kept>,
    more: bool,
}

impl Keeping {
    /// Goes on from what was stored.
    #[must_use]
    pub fn of(stored: &Remembered) -> Self {
        let letters = stored.letters();
        Keeping {
            letters: letters
                .map(|(position, letter)| (position, letter.clone()))
                .collect(),
            more: stored.more,
        }
    }

    /// Takes what a message tells; `kept` makes what is kept of a letter.
    pub fn take(&mut self, told: Told, kept: impl FnOnce() -> Kept) {
        match told {
            Told::Letter(position) => {
                let has_room =
                    self.letters.len() < KEPT_MAX || self.letters.contains_key(&position);
                match has_room {
                    true => drop(self.letters.insert(position, kept())),
                    false => self.more = true,
                }
            }
            Told::Mark(position, _) => drop(self.letters.remove(&position)),
        }
    }

    /// Those that the stream does not have, which `is_there` tells.
    pub fn gone(&self, is_there: impl Fn(&Position) -> bool) -> u64 {
        let gone = self.letters.keys().filter(|position| !is_there(position));
        gone.count() as u64
    }

    /// Without those that are not stored any more and that the stream does not have: a command has dealt with them.
    pub fn forget_unless(&mut self, stored: &Remembered, is_there: impl Fn(&Position) -> bool) {
        let stored: BTreeMap<Position, &Kept> = stored.letters().collect();
        self.letters
            .retain(|position, _| stored.contains_key(position) || is_there(position));
    }

    /// Those that the stream does not have are nowhere in it.
    pub fn no_place_unless(&mut self, is_there: impl Fn(&Position) -> bool) {
        for (position, letter) in &mut self.letters {
            if !is_there(position) {
                letter.sequence = 0;
            }
        }
    }

    /// As it is to be stored.
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        Remembered {
            letters: self.letters.values().cloned().collect(),
            more: self.more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::dead_letter::state::State;

    fn at(ordinal: u64) -> Position {
        Position {
            commit_lsn: 16.into(),
            ordinal,
        }
    }

    fn letter(keeping: &mut Keeping, ordinal: u64) {
        keeping.take(Told::Letter(at(ordinal)), || Kept {
            position: at(ordinal).to_string(),
            sequence: ordinal,
            ..Kept::default()
        });
    }

    #[test]
    fn a_letter_is_kept_until_its_mark_whether_the_stream_has_it_or_not() {
        let mut keeping = Keeping::default();
        (1..=3).for_each(|ordinal| letter(&mut keeping, ordinal));
        let mut keeping = Keeping::of(&Remembered::from_json(&keeping.remembered().to_json()));
        assert_eq!(keeping.gone(|position| *position == at(3)), 2);
        keeping.take(Told::Mark(at(1), State::Discarded), Kept::default);
        assert_eq!(keeping.gone(|position| *position == at(3)), 1);
        // A command has dealt with the second one.
        let mut stored = keeping.remembered();
        assert!(stored.forget(|letter| letter.sequence == 2));
        keeping.forget_unless(&stored, |position| *position == at(3));
        assert_eq!(keeping.gone(|position| *position == at(3)), 0);
        assert_eq!(keeping.remembered(), stored);
    }

    #[test]
    fn there_is_room_for_so_many_and_more_are_said() {
        let mut keeping = Keeping::default();
        let most = KEPT_MAX as u64;
        (1..=most).for_each(|ordinal| letter(&mut keeping, ordinal));
        assert!(!keeping.remembered().more);
        letter(&mut keeping, most);
        assert!(!keeping.remembered().more);
        letter(&mut keeping, most + 1);
        assert!(keeping.remembered().more);
        assert_eq!(keeping.gone(|_| false), most);
    }
}
