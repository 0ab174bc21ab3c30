//! The lanes of an outbox, and the publications that divide its rows among them.
//!
//! All publications change in one transaction, behind which every slot sees the rows of its lane by the new number of shares.

use crate::postgres::Row;
use std::collections::BTreeMap;
use walrelay::pipeline::reshard::{has_lane, lanes_of};

pub(crate) use crate::broker::lanes::*;

/// The lane that has a row, where there are so many shares. As Postgres does it, but for the hash.
fn lane_of(row: &Row, count: u32) -> Part {
    let hash = |key: &Vec<u8>| {
        let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
        key.iter().fold(2_166_136_261, step) >> 8
    };
    (count > 1).then(|| row.values[1].as_ref().map_or(0, hash) & (count - 1))
}

/// The publications: at first there is one, of all rows.
#[derive(Debug)]
pub(crate) struct Publications {
    /// Behind which commit there are how many shares.
    counts: Vec<(u64, u32)>,
    /// How often each that is there was made or altered.
    versions: BTreeMap<Part, u64>,
    alterations: u64,
}

impl Default for Publications {
    fn default() -> Self {
        Publications {
            counts: vec![(0, 1)],
            versions: BTreeMap::from([(None, 0)]),
            alterations: 0,
        }
    }
}

impl Publications {
    /// How many shares there are by now.
    pub(crate) fn count(&self) -> u32 {
        self.count_at(u64::MAX)
    }

    fn count_at(&self, commit_lsn: u64) -> u32 {
        let mut counts = self.counts.iter().rev();
        let before = counts.find(|(lsn, _)| *lsn < commit_lsn);
        before.expect("there was a first number").1
    }

    /// Whether a row that commits there is of this lane.
    pub(crate) fn carries(&self, part: Part, row: &Row, commit_lsn: u64) -> bool {
        lane_of(row, self.count_at(commit_lsn)) == part
    }

    /// Those that are there.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        self.versions.keys().copied()
    }

    pub(crate) fn has(&self, part: Part) -> bool {
        self.versions.contains_key(&part)
    }

    /// What is another one after each alteration; none where there is no such publication.
    pub(crate) fn version(&self, part: Part) -> Option<u64> {
        self.versions.get(&part).copied()
    }

    /// Made, or altered without another effect.
    pub(crate) fn touch(&mut self, part: Part) {
        self.alterations += 1;
        self.versions.insert(part, self.alterations);
    }

    pub(crate) fn drop(&mut self, part: Part) {
        self.versions.remove(&part);
    }

    /// All are altered by the transaction that commits there.
    pub(crate) fn change(&mut self, commit_lsn: u64, count: u32) {
        assert!(lanes_of(count).all(|part| self.has(part)));
        let altered: Vec<Part> = self.parts().collect();
        altered.into_iter().for_each(|part| self.touch(part));
        self.counts.push((commit_lsn, count));
    }

    /// As it was where the WAL ended there.
    pub(crate) fn restore(&mut self, end_lsn: u64) {
        self.counts.retain(|(commit_lsn, _)| *commit_lsn <= end_lsn);
    }

    /// Whether that lane has rows by now.
    pub(crate) fn has_rows(&self, part: Part) -> bool {
        has_lane(self.count(), part)
    }
}
