//! Where a slot begins, as far as it is known to who comes later.
//!
//! In: the lane's record, where the slot stands, what the server has counted of it. Out: what may be written down. Guarantee: no place is
//! taken for the beginning behind which the slot may have passed events.

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

    /// Of a slot without a record that this run has not made: it begins where it stands only where this run has seen it being made, or
    /// where there is no event that it could have passed, and the server has sent no transaction of it since. Nothing that Postgres keeps
    /// tells of any other: what it has sent is counted anew by a crash, a promotion, a restored backup and `pg_upgrade`, and for a copy.
    pub fn of_found(
        confirmed_lsn: PgLsn,
        was_seen_made: bool,
        has_events: bool,
        sent: Option<i64>,
    ) -> Begin {
        match (was_seen_made || !has_events) && sent == Some(0) {
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
    fn a_slot_that_is_found_begins_where_it_stands_only_if_it_can_have_passed_nothing() {
        let stands = PgLsn::from(0xAB);
        for (was_seen_made, has_events) in [(true, true), (true, false), (false, false)] {
            let begin = |sent| Begin::of_found(stands, was_seen_made, has_events, sent);
            assert_eq!(begin(Some(0)), Begin::At(stands));
            assert_eq!(begin(Some(1)), Begin::Unknown);
            assert_eq!(begin(None), Begin::Unknown);
        }
        let begin = Begin::of_found(stands, false, true, Some(0));
        assert_eq!(begin, Begin::Unknown);
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
