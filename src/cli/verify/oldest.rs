//! Missing rows in the order in which they are published again: the oldest transaction first, however many they are.
//!
//! In: ids, each with the age of its row's xmin. Out: the ids in order. Guarantee: memory as [`super::sort`] has it.

use std::io;

use super::key;
use super::sort::{Entries, Entry, Kind, Merge, NUMBER_BITS};

/// An entry sorts by 128 bits and a number; age and id together are as long: the age, then the id, the oldest first.
const AGE_MAX: u64 = (1 << NUMBER_BITS) - 1;
const ID_HIGH_BITS: u32 = 128 - NUMBER_BITS;

/// The ids, to be gathered and then to be gone through.
#[derive(Debug, Default)]
pub(in crate::cli) struct OldestFirst {
    entries: Entries,
    len: usize,
}

impl OldestFirst {
    /// Adds an id.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn push(&mut self, xmin_age: u64, id: u128) -> io::Result<()> {
        let age_left = u128::from(AGE_MAX - xmin_age.min(AGE_MAX));
        let key = age_left << ID_HIGH_BITS | id >> NUMBER_BITS;
        let number = (id & u128::from(AGE_MAX)) as u64;
        self.entries.push(Entry::new(key, Kind::Row, number))?;
        self.len += 1;
        Ok(())
    }

    /// Takes them out of memory.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn put_away(&mut self) -> io::Result<()> {
        self.entries.put_away()
    }

    pub(in crate::cli) fn len(&self) -> usize {
        self.len
    }

    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ids in order.
    ///
    /// # Errors
    /// A temporary file cannot be written or read.
    pub(in crate::cli) fn ids(&mut self) -> io::Result<Ids> {
        Ok(Ids(self.entries.merge()?))
    }
}

/// The ids on their way.
pub(in crate::cli) struct Ids(Merge);

impl Iterator for Ids {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<io::Result<String>> {
        let entry = match self.0.next_entry() {
            Ok(entry) => entry?,
            Err(error) => return Some(Err(error)),
        };
        // What the age takes up is shifted out.
        let id = entry.id << NUMBER_BITS | u128::from(entry.number());
        Some(Ok(key::text(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_come_first_and_ids_come_back_whole() {
        let ids = [u128::MAX, 0, 1 << 127 | 5, 7];
        let mut oldest = OldestFirst::default();
        assert!(oldest.is_empty());
        for (age, id) in [(3, ids[2]), (2, ids[3]), (u64::MAX, ids[0]), (3, ids[1])] {
            oldest.push(age, id).unwrap();
        }
        assert_eq!(oldest.len(), 4);
        for _ in 0..2 {
            let found: Vec<String> = oldest.ids().unwrap().map(Result::unwrap).collect();
            assert_eq!(found, ids.map(key::text));
        }
    }
}
