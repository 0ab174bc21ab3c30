//! Where a slot begins, as far as it is known to who comes later.
//!
//! In: the lane's record, where the slot stands. Out: what may be written down. Guarantee: no place is taken for the beginning behind
//! which the slot may have passed events.

use super::record::LaneRecord;
use postgres_types::PgLsn;

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::history::History;
    use crate::pipeline::position::Lane;

    #[test]
    fn only_the_first_record_tells_where_a_slot_begins() {
        let lane = Lane {
            system_identifier: 1,
            database: "app".to_owned(),
            slot: "relay".to_owned(),
        };
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
