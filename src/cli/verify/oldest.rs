//! Missing rows in the order in which they are published again, however many they are: see [`Inserted`].
//!
//! In: ids, each with when and where its row was inserted. Out: the rows in order. Guarantee: memory as [`super::sort`] has it.

use std::io;

use super::key;
use super::sort::{Entries, Entry, Kind, Merge, NUMBER_BITS};
use crate::bulk::table::Wanted;
use crate::postgres::inserted::{Inserted, PLACE_BITS, WHEN_BITS};

/// An entry sorts by 128 bits, a number and a place. In these stand when and where, and behind them the id.
const ID_HIGH_BITS: u32 = 128 - WHEN_BITS - PLACE_BITS;
const ID_LOW_BITS: u32 = 128 - ID_HIGH_BITS - NUMBER_BITS;
const NUMBER_MAX: u128 = (1 << NUMBER_BITS) - 1;
const ID_LOW_MAX: u128 = (1 << ID_LOW_BITS) - 1;
const PLACE_MAX: u128 = (1 << PLACE_BITS) - 1;

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
    pub(super) fn push(&mut self, inserted: Inserted, id: u128) -> io::Result<()> {
        let (when, place) = inserted.packed();
        let order = u128::from(when) << PLACE_BITS | u128::from(place);
        let key = order << ID_HIGH_BITS | id >> (128 - ID_HIGH_BITS);
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
        // What when and where take up is shifted out.
        let high = entry.id << (128 - ID_HIGH_BITS);
        let number = u128::from(entry.number()) << ID_LOW_BITS;
        let order = entry.id >> ID_HIGH_BITS;
        let (when, place) = (order >> PLACE_BITS, order & PLACE_MAX);
        Some(Ok(Wanted {
            name: key::text(high | number | u128::from(entry.place)),
            tid: Inserted::unpacked(when as u64, place as u64).tid,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::inserted::Tid;

    #[test]
    fn the_oldest_come_first_and_ids_come_back_whole() {
        let ids = [
            u128::MAX,
            0x0123_4567_89ab_cdef_fedc_ba98_7654_3210,
            1 << 127 | 5,
            0,
            7,
        ];
        let at = |block, offset| Tid { block, offset };
        let inserted = [
            (u32::MAX, 0, at(9, 1)),
            (3, 0, at(7, 2)),
            (3, 1, at(0, 2)),
            (3, 1, at(u32::MAX, u16::MAX)),
            (2, 0, at(0, 1)),
        ];
        let mut oldest = OldestFirst::default();
        assert!(oldest.is_empty());
        for index in [2, 4, 0, 3, 1] {
            let (age, cmin, tid) = inserted[index];
            let inserted = Inserted::of(age, cmin, tid);
            oldest.push(inserted, ids[index]).unwrap();
        }
        assert_eq!(oldest.len(), 5);
        let expected = ids
            .into_iter()
            .zip(inserted)
            .map(|(id, (_, _, tid))| Wanted {
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
