//! Where a lane goes on, one row for each rule.

use postgres_types::PgLsn;
use walrelay::pipeline::continuity::{Refusal, provisional_start_lsn};
use walrelay::pipeline::end_search::FoundEnd;
use walrelay::pipeline::fault::Halt;
use walrelay::pipeline::record::LaneRecord;

use crate::case::{CREATED, Case, active, at, memory, message, record, usual};

#[test]
fn the_usual_start_meets_the_last_row_again() {
    let plan = usual().good();
    assert_eq!(plan.start_lsn, PgLsn::from(50));
    assert_eq!(plan.last_sequence, 50);
    let overlap = plan.overlap.expect("above confirmed");
    assert_eq!(
        (overlap.position, overlap.event_id.as_deref()),
        (at(50), Some("e50"))
    );
    assert_eq!((plan.loss, plan.foreign_messages), (None, 0));
}

#[test]
fn the_row_that_commits_exactly_where_the_slot_stands_is_met_again() {
    let plan = Case {
        confirmed: 50,
        record: Some(record(50, 50)),
        ..usual()
    }
    .good();
    assert!(plan.overlap.is_some());
    let plan = Case {
        confirmed: 51,
        record: Some(record(50, 51)),
        ..usual()
    }
    .good();
    assert_eq!((plan.overlap, plan.start_lsn), (None, PgLsn::from(51)));
}

#[test]
fn a_lane_that_has_published_nothing_begins_at_the_slot() {
    for record in [None, Some(record(0, 40))] {
        let plan = Case {
            lane_end: FoundEnd::Nothing,
            last_sequence: 3,
            record,
            ..usual()
        }
        .good();
        assert_eq!(
            (plan.start_lsn, plan.lane_end, plan.overlap),
            (PgLsn::from(40), None, None)
        );
        assert_eq!(plan.last_sequence, 3);
    }
}

/// By what was written down when it was made; a record or what the process itself knows stands in for it.
#[test]
fn a_slot_that_may_have_passed_events_is_no_beginning() {
    let unknown = Case {
        lane_end: FoundEnd::Nothing,
        last_sequence: 3,
        record: None,
        begins: None,
        ..usual()
    };
    assert_eq!(unknown.good().start_lsn, PgLsn::from(40));
    for begins in [Some(39), Some(41)] {
        let case = || Case {
            lane_end: FoundEnd::Nothing,
            last_sequence: 3,
            record: None,
            begins,
            ..usual()
        };
        let halt = case().halt();
        assert!(
            matches!(&halt, Halt::NoBeginning { confirmed_lsn, .. } if *confirmed_lsn == PgLsn::from(40)),
            "{halt:?}"
        );
        let from = Case {
            from: Some(40),
            ..case()
        };
        assert!(matches!(from.halt(), Halt::NoBeginning { .. }));
        for (record, memory) in [(Some(record(0, 40)), None), (None, memory(CREATED, 3, 40))] {
            let explained = Case {
                record,
                memory,
                ..case()
            };
            assert_eq!(explained.good().start_lsn, PgLsn::from(40));
        }
    }
}

#[test]
fn foreign_messages_behind_the_tail_are_counted() {
    assert_eq!(
        Case {
            last_sequence: 53,
            ..usual()
        }
        .good()
        .foreign_messages,
        3
    );
}

#[test]
fn the_record_stands_in_for_the_removed_tail() {
    let plan = Case {
        lane_end: FoundEnd::Removed { sequence: 50 },
        ..usual()
    }
    .good();
    assert_eq!(plan.lane_end, Some(message(50)));
    assert!(plan.overlap.is_some());
}

#[test]
fn a_relay_that_lived_on_remembers_what_the_record_does_not() {
    let case = Case {
        lane_end: FoundEnd::Removed { sequence: 50 },
        record: Some(active(48)),
        memory: memory(CREATED, 50, 40),
        ..usual()
    };
    assert_eq!(case.good().lane_end, Some(message(50)));
    let other_stream = Case {
        memory: memory("another time", 50, 40),
        ..case
    };
    assert!(matches!(
        other_stream.halt(),
        Halt::EndRemoved { recorded: 48, .. }
    ));
}

#[test]
fn what_the_broker_lost_is_named_and_published_again() {
    // 41 to 50 are gone, the slot has them from 40 on.
    let plan = Case {
        lane_end: FoundEnd::Found(message(40)),
        last_sequence: 40,
        ..usual()
    }
    .good();
    assert_eq!(plan.start_lsn, PgLsn::from(40));
    let loss = plan.loss.expect("a loss");
    assert_eq!(
        (loss.after, loss.through, loss.messages, loss.gone_below),
        (Some(at(40)), at(50), Some(10), None)
    );
    // Below 40 the slot has nothing any more.
    let plan = Case {
        lane_end: FoundEnd::Found(message(30)),
        last_sequence: 30,
        ..usual()
    }
    .good();
    assert_eq!(plan.start_lsn, PgLsn::from(40));
    assert_eq!(plan.loss.expect("a loss").gone_below, Some(40.into()));
}

#[test]
fn a_recreated_stream_gets_what_the_slot_still_has() {
    let record = LaneRecord {
        created: "before".into(),
        ..record(50, 40)
    };
    let plan = Case {
        lane_end: FoundEnd::Nothing,
        last_sequence: 0,
        record: Some(record),
        ..usual()
    }
    .good();
    assert_eq!((plan.start_lsn, plan.last_sequence), (PgLsn::from(40), 0));
    let loss = plan.loss.expect("a loss");
    assert_eq!((loss.messages, loss.gone_below), (None, Some(40.into())));
}

#[test]
fn a_replay_begins_no_later_than_the_lane_goes_on() {
    let plan = |from| {
        Case {
            from: Some(from),
            ..usual()
        }
        .plan()
    };
    let good = plan(45).expect("within the slot");
    assert_eq!(
        (good.start_lsn, good.replay_from),
        (PgLsn::from(45), Some(45.into()))
    );
    assert_eq!(
        plan(60).expect("nothing to replay").start_lsn,
        PgLsn::from(50)
    );
    assert!(matches!(plan(39), Err(Refusal::FromTooOld { .. })));
    assert!(matches!(plan(101), Err(Refusal::FromTooNew { .. })));
    // Nothing in the stream, be the lane fresh or the stream made again: what the slot has is unpublished.
    for record in [None, Some(record(0, 40)), Some(record(50, 40))] {
        let empty = Case {
            lane_end: FoundEnd::Nothing,
            last_sequence: 0,
            record,
            from: Some(60),
            ..usual()
        };
        assert_eq!(empty.good().start_lsn, PgLsn::from(40));
    }
}

#[test]
fn replication_starts_no_later_than_the_lane_goes_on() {
    let start = |lane_end: &FoundEnd, record: Option<&LaneRecord>, from: Option<u64>| {
        u64::from(provisional_start_lsn(
            lane_end,
            record,
            from.map(Into::into),
        ))
    };
    let recorded = record(50, 40);
    let found = FoundEnd::Found(message(50));
    assert_eq!(start(&found, None, None), 50);
    assert_eq!(start(&found, None, Some(45)), 45);
    assert_eq!(start(&found, None, Some(60)), 50);
    for removed in [FoundEnd::Removed { sequence: 50 }, FoundEnd::FenceRemoved] {
        assert_eq!(start(&removed, Some(&recorded), Some(60)), 50);
        assert_eq!(start(&removed, None, Some(60)), 0);
    }
    for from in [None, Some(60)] {
        assert_eq!(start(&FoundEnd::Nothing, Some(&recorded), from), 0);
    }
}
