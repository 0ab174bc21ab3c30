//! Missing rows in the order in which they are published again, however many they are: the oldest transaction first, and within it
//! as they stand in the table, which is how they were inserted as a rule.
//!
//! In: ids, each with the age of its row's xmin and where the row stands. Out: the rows in order. Guarantee: memory as
//! [`super::sort`] has it.

use std::io;

use super::key;
use super::sort::{Entries, Entry, Kind, Merge, NUMBER_BITS};
use crate::bulk::table::Wanted;
use crate::postgres::tid::{PACKED_BITS, Tid};

/// An entry sorts by 128 bits, a number and a place. In these stand age and tid, and behind them the id.
const ID_HIGH_BITS: u32 = 128 - AGE_BITS - PACKED_BITS;
const AGE_BITS: u32 = u32::BITS;
const ID_LOW_BITS: u32 = 128 - ID_HIGH_BITS - NUMBER_BITS;
const NUMBER_MAX: u128 = (1 << NUMBER_BITS) - 1;
const ID_LOW_MAX: u128 = (1 << ID_LOW_BITS) - 1;

/// The rows, to be gathered and then to be gone through.
#[derive(Debug, Default)]
pub(in crate::cli) struct OldestFirst {
    entries: Entries,
    len: usize,
}

impl OldestFirst {
    /// Adds a row.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn push(&mut self, xmin_age: u64, tid: Tid, id: u128) -> io::Result<()> {
        let age_left = u32::MAX - u32::try_from(xmin_age).unwrap_or(u32::MAX);
        let place = u128::from(age_left) << PACKED_BITS | u128::from(tid.packed());
        let key = place << ID_HIGH_BITS | id >> (128 - ID_HIGH_BITS);
        let number = (id >> ID_LOW_BITS & NUMBER_MAX) as u64;
        let low = (id & ID_LOW_MAX) as u64;
        self.entries
            .push(Entry::new(key, Kind::Row, number).at(low))?;
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

    /// The rows in order.
    ///
    /// # Errors
    /// A temporary file cannot be written or read.
    pub(in crate::cli) fn rows(&mut self) -> io::Result<Rows> {
        Ok(Rows(self.entries.merge()?))
    }
}

/// The rows on their way.
pub(in crate::cli) struct Rows(Merge);

impl Iterator for Rows {
    type Item = io::Result<Wanted>;

    fn next(&mut self) -> Option<io::Result<Wanted>> {
        let entry = match self.0.next_entry() {
            Ok(entry) => entry?,
            Err(error) => return Some(Err(error)),
        };
        // What age and tid take up is shifted out.
        let high = entry.id << (128 - ID_HIGH_BITS);
        let number = u128::from(entry.number()) << ID_LOW_BITS;
        Some(Ok(Wanted {
            name: key::text(high | number | u128::from(entry.place)),
            tid: Tid::unpacked((entry.id >> ID_HIGH_BITS) as u64),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_come_first_as_they_stand_and_ids_come_back_whole() {
        let ids = [
            u128::MAX,
            0x0123_4567_89ab_cdef_fedc_ba98_7654_3210,
            1 << 127 | 5,
            0,
            7,
        ];
        let at = |block, offset| Tid { block, offset };
        let places = [
            at(9, 1),
            at(0, 2),
            at(1, 1),
            at(u32::MAX, u16::MAX),
            at(0, 1),
        ];
        let ages = [u64::MAX, 3, 3, 3, 2];
        let mut oldest = OldestFirst::default();
        assert!(oldest.is_empty());
        for index in [2, 4, 0, 3, 1] {
            oldest.push(ages[index], places[index], ids[index]).unwrap();
        }
        assert_eq!(oldest.len(), 5);
        let expected = ids.into_iter().zip(places).map(|(id, tid)| Wanted {
            name: key::text(id),
            tid,
        });
        let expected: Vec<Wanted> = expected.collect();
        for _ in 0..2 {
            let found: Vec<Wanted> = oldest.rows().unwrap().map(Result::unwrap).collect();
            assert_eq!(found, expected);
        }
    }
}
