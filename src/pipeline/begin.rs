//! Where a slot begins, as far as it is known to who comes later.
//!
//! In: the lane's record, where the slot stands, what the server has counted of it. Out: what may be written down. Guarantee: no place is
//! taken for the beginning behind which the slot may have passed events.

use super::record::LaneRecord;
use postgres_types::PgLsn;
use serde::Deserialize;

/// How long after the making of a cluster its counts begin, at most, where they have never begun anew. `initdb` does both in one process.
const FIRST_COUNTS_S: i64 = 5;

/// What the server has counted of a slot's reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Transactions that readers were sent since.
    pub transactions: i64,
    /// The slot's own counts were set back.
    pub is_reset: bool,
    /// Since when the server counts, in Unix time. A crash, a promotion and a restored backup begin anew.
    pub since_s: Option<i64>,
}

impl Counts {
    /// Whether nothing was read by then that is not in them; `cluster_made_s` is when the cluster was made, in Unix time.
    fn are_whole(&self, cluster_made_s: i64) -> bool {
        let first = cluster_made_s..=cluster_made_s.saturating_add(FIRST_COUNTS_S);
        !self.is_reset && self.since_s.is_some_and(|since| first.contains(&since))
    }
}

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It begins there.
    At(PgLsn),
    /// It has passed something since, and where it began nobody knows any more.
    Passed,
    /// Nobody knows whether it has passed something.
    Unknown,
}

impl Begin {
    /// By the record: the first one, which `walrelay setup` writes, tells where the slot began, as long as it stands there.
    pub fn of(record: Option<&LaneRecord>, confirmed_lsn: PgLsn) -> Begin {
        let Some(record) = record.filter(|record| !record.retired) else {
            return Begin::Unknown;
        };
        let is_first = record.epoch == 0 && record.position.is_none() && record.moved.is_none();
        match is_first && record.confirmed_lsn == confirmed_lsn {
            true => Begin::At(confirmed_lsn),
            false => Begin::Passed,
        }
    }

    /// Of a slot without a record that stood there already: it begins where it stands only where nobody has read it, by counts that
    /// tell of all its life. `was_seen_made` says that it is not older than this look.
    pub fn of_found(
        confirmed_lsn: PgLsn,
        counts: Option<&Counts>,
        cluster_made_s: i64,
        was_seen_made: bool,
    ) -> Begin {
        let is_unread = |counts: &Counts| {
            counts.transactions == 0 && (was_seen_made || counts.are_whole(cluster_made_s))
        };
        match counts.is_some_and(is_unread) {
            true => Begin::At(confirmed_lsn),
            false => Begin::Unknown,
        }
    }
}

/// Whether the record that stands there once a slot was made at `made_lsn` is of that slot: another `walrelay setup`, or a relay, has come
/// in between. `before` is the record from before it was made. One that had confirmed as much by then is of another slot, on a server that
/// was set back and uses LSNs again.
pub fn is_of_made(record: &LaneRecord, before: Option<&LaneRecord>, made_lsn: PgLsn) -> bool {
    let is_new = before.is_none_or(|before| before.retired || before.confirmed_lsn < made_lsn);
    is_new && record.confirmed_lsn >= made_lsn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::history::History;
    use crate::pipeline::position::Lane;

    fn lane() -> Lane {
        Lane {
            system_identifier: 1,
            database: "app".to_owned(),
            slot: "relay".to_owned(),
        }
    }

    #[test]
    fn a_slot_that_is_found_begins_where_it_stands_only_if_its_counts_tell_so() {
        let (stands, made_s) = (PgLsn::from(0xAB), 1_000_000);
        let counts = Counts {
            transactions: 0,
            is_reset: false,
            since_s: Some(made_s + 1),
        };
        let of = |counts: &Counts| Begin::of_found(stands, Some(counts), made_s, false);
        assert_eq!(of(&counts), Begin::At(stands));
        let read = Counts {
            transactions: 1,
            ..counts
        };
        let set_back = Counts {
            is_reset: true,
            ..counts
        };
        let crashed = Counts {
            since_s: Some(made_s + 60),
            ..counts
        };
        let untold = Counts {
            since_s: None,
            ..counts
        };
        for unknown in [&read, &set_back, &crashed, &untold] {
            assert_eq!(of(unknown), Begin::Unknown, "{unknown:?}");
        }
        assert_eq!(Begin::of_found(stands, None, made_s, true), Begin::Unknown);
        let seen = |counts: &Counts| Begin::of_found(stands, Some(counts), made_s, true);
        assert_eq!(seen(&crashed), Begin::At(stands));
        assert_eq!(seen(&read), Begin::Unknown);
    }

    #[test]
    fn a_record_that_came_behind_the_slot_is_of_it() {
        let made: PgLsn = 0xAB.into();
        let confirmed = |lsn: u64| LaneRecord {
            confirmed_lsn: lsn.into(),
            ..LaneRecord::new(&lane(), &History::first(), "OUTBOX", "then")
        };
        // The first record of another setup, and a relay's.
        for lsn in [0xAB, 0xCD] {
            assert!(is_of_made(&confirmed(lsn), None, made));
            assert!(is_of_made(&confirmed(lsn), Some(&confirmed(1)), made));
            let ended = LaneRecord {
                retired: true,
                ..confirmed(0xEF)
            };
            assert!(is_of_made(&confirmed(lsn), Some(&ended), made));
            // Of a server that was set back.
            assert!(!is_of_made(&confirmed(lsn), Some(&confirmed(0xAB)), made));
        }
        assert!(!is_of_made(&confirmed(1), None, made));
        assert!(!is_of_made(&confirmed(0), Some(&confirmed(1)), made));
    }

    #[test]
    fn only_the_first_record_tells_where_a_slot_begins() {
        let lane = lane();
        let stands: PgLsn = 0xAB.into();
        let first = LaneRecord {
            confirmed_lsn: stands,
            ..LaneRecord::new(&lane, &History::first(), "OUTBOX", "then")
        };
        assert_eq!(Begin::of(None, stands), Begin::Unknown);
        assert_eq!(Begin::of(Some(&first), stands), Begin::At(stands));
        assert_eq!(Begin::of(Some(&first), 0xCD.into()), Begin::Passed);
        let of_a_relay = LaneRecord {
            epoch: 1,
            ..first.clone()
        };
        assert_eq!(Begin::of(Some(&of_a_relay), stands), Begin::Passed);
        let retired = LaneRecord {
            retired: true,
            ..first
        };
        assert_eq!(Begin::of(Some(&retired), stands), Begin::Unknown);
    }
}
