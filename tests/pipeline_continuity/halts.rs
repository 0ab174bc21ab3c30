//! Where a lane does not go on, one row for each rule.

use postgres_types::PgLsn;
use walrelay::pipeline::end_search::FoundEnd;
use walrelay::pipeline::fault::Halt;
use walrelay::pipeline::history::{History, Switch};
use walrelay::pipeline::lane_end::Memory;
use walrelay::pipeline::record::LaneRecord;

use crate::case::{CREATED, Case, active, memory, message, record, usual};

#[test]
fn a_removed_tail_that_nothing_tells_halts() {
    let removed = || FoundEnd::Removed { sequence: 50 };
    for record in [
        None,
        Some(active(49)),
        Some(LaneRecord {
            created: "x".into(),
            ..record(50, 40)
        }),
    ] {
        let case = Case {
            lane_end: removed(),
            record,
            memory: None,
            confirmed: 0,
            ..usual()
        };
        assert!(matches!(case.halt(), Halt::EndRemoved { sequence: 50, .. }));
    }
}

/// Message 52 is known to be the lane's, and the search has read it and found it to be foreign: the broker lost ours.
#[test]
fn a_known_tail_that_was_overwritten_is_not_believed() {
    let case = Case {
        lane_end: FoundEnd::Removed { sequence: 50 },
        last_sequence: 52,
        ..usual()
    };
    let recorded = Case {
        record: Some(record(52, 40)),
        ..case
    };
    assert!(matches!(recorded.halt(), Halt::EndRemoved { .. }));
    let remembered = Case {
        record: None,
        memory: memory(CREATED, 52, 40),
        ..recorded
    };
    assert!(matches!(remembered.halt(), Halt::EndRemoved { .. }));
}

#[test]
fn another_lane_behind_the_record_halts() {
    let mut records = [record(50, 40), record(50, 40), record(50, 40)];
    records[0].system_identifier = 8;
    records[1].database = "other".into();
    records[2].slot = "t".into();
    for record in records {
        assert!(matches!(
            Case {
                record: Some(record),
                ..usual()
            }
            .halt(),
            Halt::OtherLane { .. }
        ));
    }
}

#[test]
fn another_slots_message_at_the_end_halts() {
    let lane_end = FoundEnd::OtherSlot {
        sequence: 50,
        slot: "t".into(),
    };
    assert!(matches!(
        Case {
            lane_end,
            ..usual()
        }
        .halt(),
        Halt::ForeignEnd { sequence: 50, .. }
    ));
}

#[test]
fn too_many_foreign_messages_halt() {
    let lane_end = FoundEnd::TooFar { scanned: 10_000 };
    assert!(matches!(
        Case {
            lane_end,
            ..usual()
        }
        .halt(),
        Halt::EndUnknown { .. }
    ));
}

#[test]
fn a_confirmed_lsn_must_be_explained() {
    // By the record, by the stream's own last row, by memory; or not at all.
    let beyond = || Case {
        confirmed: 60,
        ..usual()
    };
    assert!(matches!(
        beyond().halt(),
        Halt::ConfirmedUnexplained {
            recorded_lsn: Some(_),
            ..
        }
    ));
    assert!(matches!(
        Case {
            record: None,
            ..beyond()
        }
        .halt(),
        Halt::ConfirmedUnexplained {
            recorded_lsn: None,
            ..
        }
    ));
    assert!(
        Case {
            record: Some(record(50, 60)),
            ..beyond()
        }
        .plan()
        .is_ok()
    );
    assert!(
        Case {
            memory: memory(CREATED, 50, 60),
            ..beyond()
        }
        .plan()
        .is_ok()
    );
    assert!(
        Case {
            memory: memory(CREATED, 50, 59),
            ..beyond()
        }
        .plan()
        .is_err()
    );
    assert!(
        Case {
            confirmed: 50,
            record: Some(record(30, 20)),
            ..usual()
        }
        .plan()
        .is_ok()
    );
    assert!(
        Case {
            confirmed: 50,
            record: None,
            ..usual()
        }
        .plan()
        .is_ok()
    );
    assert!(
        Case {
            confirmed: 60,
            lane_end: FoundEnd::Nothing,
            record: Some(record(0, 40)),
            ..usual()
        }
        .plan()
        .is_err()
    );
    assert!(
        Case {
            confirmed: 60,
            lane_end: FoundEnd::Nothing,
            record: None,
            begins: Some(60),
            ..usual()
        }
        .plan()
        .is_ok()
    );
}

#[test]
fn another_timelines_lsns_explain_nothing_behind_the_switch() {
    let case = |confirmed| Case {
        confirmed,
        lane_end: FoundEnd::Found(message(30)),
        record: Some(record(30, 90)),
        history: History::parse(2, "1 0/3C standby promoted").expect("a history"),
        ..usual()
    };
    // The slot came over with the promotion, from before the switch at 60.
    assert_eq!(case(60).good().start_lsn, PgLsn::from(60));
    assert_eq!(
        case(61).halt(),
        Halt::ConfirmedUnexplained {
            slot: "s".into(),
            confirmed_lsn: 61.into(),
            recorded_lsn: Some(90.into()),
            switched_at: Some(60.into()),
        }
    );
    let remembering = |history| Case {
        memory: memory(CREATED, 30, 90).map(|memory| Memory { history, ..memory }),
        ..case(61)
    };
    assert!(remembering(History::first()).plan().is_err());
    assert!(remembering(case(61).history).plan().is_ok());
    // Of a timeline that the server does not come from.
    let elsewhere = LaneRecord {
        timeline: 3,
        switches: None,
        ..record(30, 90)
    };
    assert!(
        Case {
            record: Some(elsewhere),
            ..case(40)
        }
        .plan()
        .is_err()
    );
}

/// Standby A was promoted, confirmed, and was lost; B, which never followed A, was promoted and took the same number.
#[test]
fn the_number_of_a_timeline_explains_nothing() {
    let recorded = |switches: Option<Vec<Switch>>| Case {
        confirmed: 70,
        lane_end: FoundEnd::Found(message(30)),
        record: Some(LaneRecord {
            timeline: 2,
            switches,
            ..record(30, 90)
        }),
        history: History::parse(2, "1 0/3C standby promoted").expect("a history"),
        ..usual()
    };
    let left_at = |lsn: u64| Switch {
        timeline: 1,
        lsn: lsn.into(),
    };
    for (lost, shared) in [(50, 50), (61, 60)] {
        let halt = recorded(Some(vec![left_at(lost)])).halt();
        assert!(
            matches!(halt, Halt::ConfirmedUnexplained { switched_at: Some(at), .. } if at == PgLsn::from(shared)),
            "{halt:?}"
        );
    }
    assert_eq!(
        recorded(Some(vec![left_at(60)])).good().start_lsn,
        PgLsn::from(70)
    );
    // An older walrelay has recorded no more than the number.
    assert_eq!(recorded(None).good().start_lsn, PgLsn::from(70));
}

#[test]
fn a_server_behind_the_stream_halts() {
    assert!(matches!(
        Case {
            server: 49,
            ..usual()
        }
        .halt(),
        Halt::ServerBehind { .. }
    ));
    assert!(
        Case {
            server: 50,
            ..usual()
        }
        .plan()
        .is_ok()
    );
}
