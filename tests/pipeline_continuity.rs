//! Where a lane goes on, one row for each rule.

mod lane_record;

use postgres_types::PgLsn;
use walrelay::pipeline::continuity::{Plan, Refusal, StartView, plan, provisional_start_lsn};
use walrelay::pipeline::end_search::{
    EndSearch, FOREIGN_MESSAGES_MAX, FoundEnd, Lookup, StoredMessage,
};
use walrelay::pipeline::fault::Halt;
use walrelay::pipeline::history::{History, Switch};
use walrelay::pipeline::lane_end::{LaneEnd, Memory};
use walrelay::pipeline::position::{Lane, Position};
use walrelay::pipeline::progress::HeldMarks;
use walrelay::pipeline::record::LaneRecord;

const CREATED: &str = "2026-11-23T00:00:00Z";

fn lane() -> Lane {
    Lane {
        system_identifier: 7,
        database: "app".into(),
        slot: "s".into(),
    }
}

fn at(commit_lsn: u64) -> Position {
    Position {
        commit_lsn: commit_lsn.into(),
        ordinal: 1,
    }
}

/// The message at `sequence` with the position of the same number.
fn message(sequence: u64) -> LaneEnd {
    LaneEnd {
        sequence,
        position: at(sequence),
        event_id: Some(format!("e{sequence}")),
        table: None,
    }
}

fn record(sequence: u64, confirmed_lsn: u64) -> LaneRecord {
    LaneRecord {
        sequence,
        position: (sequence > 0).then(|| at(sequence)),
        event_id: (sequence > 0).then(|| format!("e{sequence}")),
        confirmed_lsn: confirmed_lsn.into(),
        ..lane_record::fresh(CREATED)
    }
}

/// The record of a relay that may have gone on behind it.
fn active(sequence: u64) -> LaneRecord {
    LaneRecord {
        active: true,
        ..record(sequence, 40)
    }
}

struct Case {
    confirmed: u64,
    /// Where the slot began, if that was written down.
    begins: Option<u64>,
    server: u64,
    last_sequence: u64,
    lane_end: FoundEnd,
    record: Option<LaneRecord>,
    memory: Option<Memory>,
    from: Option<u64>,
    history: History,
}

/// A lane whose last message is the stream's 50th, confirmed up to 40.
fn usual() -> Case {
    Case {
        confirmed: 40,
        begins: Some(40),
        server: 100,
        last_sequence: 50,
        lane_end: FoundEnd::Found(message(50)),
        record: Some(record(50, 40)),
        memory: None,
        from: None,
        history: History::first(),
    }
}

impl Case {
    fn plan(&self) -> Result<Plan, Refusal> {
        let lane = lane();
        plan(&StartView {
            lane: &lane,
            confirmed_flush_lsn: self.confirmed.into(),
            begins_lsn: self.begins.map(Into::into),
            server_lsn: self.server.into(),
            history: &self.history,
            stream: "S",
            nats: "nats://here",
            created: CREATED,
            last_sequence: self.last_sequence,
            lane_end: &self.lane_end,
            record: self.record.as_ref(),
            memory: self.memory.as_ref(),
            from: self.from.map(Into::into),
        })
    }

    fn good(&self) -> Plan {
        self.plan().expect("a plan")
    }

    fn halt(&self) -> Halt {
        match self.plan() {
            Err(Refusal::Halt(halt)) => halt,
            other => panic!("{other:?}"),
        }
    }
}

fn memory(created: &str, sequence: u64, confirmed_lsn: u64) -> Option<Memory> {
    Some(Memory {
        created: created.into(),
        lane_end: Some(message(sequence)),
        sound: Some(message(sequence)),
        begun: None,
        doubted: false,
        recorded_sequence: None,
        epoch: 1,
        settled: true,
        server_id: None,
        held: HeldMarks::default(),
        confirmed_lsn: confirmed_lsn.into(),
        history: History::first(),
        tables: Vec::new(),
    })
}

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

/// What the search makes of a stream, from its end backwards.
fn search(
    messages: &[(u64, Option<StoredMessage<'_>>)],
    record: Option<&LaneRecord>,
    memory: Option<Memory>,
) -> FoundEnd {
    let last_sequence = messages.first().map_or(0, |(seq, _)| *seq);
    let mut search = EndSearch::new("s", last_sequence, CREATED, record, memory.as_ref());
    for (sequence, message) in messages {
        assert_eq!(search.wanted(), Some(Lookup::Message(*sequence)));
        let message = message.map(|message| StoredMessage {
            sequence: *sequence,
            ..message
        });
        if let Some(lane_end) = search.take(message) {
            return lane_end;
        }
    }
    assert_eq!(search.wanted(), None);
    search.end()
}

/// A message that was to follow `expected`.
fn stored<'a>(
    expected: &'a str,
    position: Option<&'a str>,
    tail: Option<&'a str>,
) -> Option<StoredMessage<'a>> {
    Some(StoredMessage {
        sequence: 0,
        position,
        tail,
        expected_sequence: (!expected.is_empty()).then_some(expected),
        is_fence: false,
        in_batch: false,
        id: [None; 2],
        kind: None,
        table: None,
        body: br#"{"id":"e50","payload_json":{}}"#,
    })
}

fn found(sequence: u64, commit_lsn: u64, id: Option<&str>) -> FoundEnd {
    FoundEnd::Found(LaneEnd {
        sequence,
        position: at(commit_lsn),
        event_id: id.map(str::to_owned),
        table: Some(String::new()),
    })
}

/// The same, told by a message that does not say which table it is of.
fn found_by_tail(sequence: u64, commit_lsn: u64, id: Option<&str>) -> FoundEnd {
    match found(sequence, commit_lsn, id) {
        FoundEnd::Found(lane_end) => FoundEnd::Found(LaneEnd {
            table: None,
            ..lane_end
        }),
        other => other,
    }
}

/// Somebody else's message.
fn foreign<'a>() -> Option<StoredMessage<'a>> {
    stored("", None, None)
}

#[test]
fn the_search_for_the_tail() {
    let search = |messages: &[_], record| search(messages, record, None);
    assert_eq!(search(&[], None), FoundEnd::Nothing);
    let ours = stored("2", Some("s 0/32:1"), None);
    assert_eq!(search(&[(3, ours)], None), found(3, 50, Some("e50")));
    // Foreign messages are passed over, also those with a header that no relay writes.
    let others = [
        (3, foreign()),
        (2, stored("1", Some("s nonsense"), None)),
        (1, stored("0", Some("s 0/32:1"), None)),
    ];
    assert_eq!(search(&others, None), found(1, 50, Some("e50")));
    // A replay tells where the lane was.
    let replay = stored("2", Some("s 0/10:1"), Some("s 0/32:1 e50"));
    assert_eq!(
        search(&[(3, replay)], None),
        found_by_tail(3, 50, Some("e50"))
    );
    let replay = stored("2", Some("s 0/10:1"), Some("s 0/32:1 -"));
    assert_eq!(search(&[(3, replay)], None), found_by_tail(3, 50, None));
    assert_eq!(
        search(&[(3, foreign()), (2, None)], None),
        FoundEnd::Removed { sequence: 2 }
    );
    let other = FoundEnd::OtherSlot {
        sequence: 3,
        slot: "t".into(),
    };
    let theirs = stored("2", Some("t 0/32:1"), None);
    assert_eq!(search(&[(3, theirs)], None), other);
    // What was there before an adoption does not count, in that very stream.
    let adopted = LaneRecord {
        adopted_sequence: 2,
        ..record(0, 40)
    };
    assert_eq!(search(&[(3, foreign())], Some(&adopted)), FoundEnd::Nothing);
}

#[test]
fn a_copy_of_a_message_is_not_the_tail() {
    let copy = stored("", Some("s 0/10:1"), None);
    let elsewhere = stored("7", Some("s 0/10:1"), None);
    let ours = stored("0", Some("s 0/32:1"), None);
    for copy in [copy, elsewhere] {
        let stream = [(3, copy), (2, foreign()), (1, ours)];
        assert_eq!(search(&stream, None, None), found(1, 50, Some("e50")));
        // Nothing else tells how far the lane came.
        let stream = [(3, copy), (2, foreign()), (1, foreign())];
        assert_eq!(
            search(&stream, None, None),
            FoundEnd::Copied { sequence: 3 }
        );
        let adopted = LaneRecord {
            adopted_sequence: 2,
            ..record(0, 40)
        };
        assert_eq!(
            search(&stream[..1], Some(&adopted), None),
            FoundEnd::Nothing
        );
        // It had published behind the adoption.
        let went_on = LaneRecord {
            position: Some(at(50)),
            ..adopted
        };
        assert_eq!(
            search(&stream[..1], Some(&went_on), None),
            FoundEnd::Copied { sequence: 3 }
        );
    }
    // Of what the lane published behind its end: the broker has lost that, or the stream was made from another one.
    let further = stored("", Some("s 0/33:1"), None);
    let stream = [(4, copy), (3, further), (2, foreign()), (1, ours)];
    assert_eq!(
        search(&stream, None, None),
        FoundEnd::Copied { sequence: 4 }
    );
    // The fence of a time when others wrote to the stream too.
    let fence = stored("", None, Some("s 0/32:1 e50")).map(|fence| StoredMessage {
        is_fence: true,
        ..fence
    });
    assert_eq!(
        search(&[(3, fence)], None, None),
        found_by_tail(3, 50, Some("e50"))
    );
    // Another slot's.
    let stream = [(2, stored("", Some("t 0/10:1"), None)), (1, ours)];
    assert_eq!(search(&stream, None, None), found(1, 50, Some("e50")));
}

#[test]
fn a_removed_message_behind_a_settled_one_is_none_of_the_lanes() {
    // 48 was the lane's last one; 49 and 50 were a retry and a backfill.
    let settled = || memory(CREATED, 48, 40);
    let ours = stored("47", Some("s 0/30:1"), None);
    let stream = [(50, None), (48, ours)];
    assert_eq!(search(&stream, None, settled()), found(48, 48, Some("e50")));
    // Everything has expired.
    let removed = FoundEnd::Removed { sequence: 48 };
    assert_eq!(search(&[(50, None), (48, None)], None, settled()), removed);
    // The broker had lost it, and somebody else has its place: the search goes on to the true end.
    let before = stored("46", Some("s 0/2F:1"), None);
    let lost = [(50, None), (48, foreign()), (47, before)];
    assert_eq!(search(&lost, None, settled()), found(47, 47, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 50 };
    assert_eq!(search(&[(50, None)], None, None), removed);
}

#[test]
fn a_message_that_the_lane_has_left_behind_must_still_be_its_own() {
    let ours = stored("49", Some("s 0/32:1"), None);
    let left = stored("47", Some("s 0/30:1"), None);
    let known = record(48, 40);
    for intact in [left, None] {
        let stream = [(50, ours), (48, intact)];
        let lane_end = search(&stream, Some(&known), memory(CREATED, 50, 40));
        assert_eq!(lane_end, found(50, 50, Some("e50")));
    }
    let stream = [(50, ours), (48, foreign())];
    let replaced = FoundEnd::Replaced { sequence: 48 };
    assert_eq!(search(&stream, Some(&known), None), replaced);
    assert_eq!(search(&stream, None, memory(CREATED, 48, 40)), replaced);
}

#[test]
fn behind_many_foreign_messages_what_is_settled_is_looked_for() {
    let last = 50 + FOREIGN_MESSAGES_MAX;
    let others: Vec<_> = (0..FOREIGN_MESSAGES_MAX)
        .map(|back| (last - back, foreign()))
        .collect();
    let with = |messages: &[_]| [others.as_slice(), messages].concat();
    let too_far = FoundEnd::TooFar {
        scanned: FOREIGN_MESSAGES_MAX,
    };
    assert_eq!(search(&with(&[]), None, None), too_far);
    let ours = stored("39", Some("s 0/28:1"), None);
    let settled = || memory(CREATED, 40, 40);
    let stream = with(&[(40, ours)]);
    assert_eq!(search(&stream, None, settled()), found(40, 40, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 40 };
    assert_eq!(search(&with(&[(40, None)]), None, settled()), removed);
    // The broker lost it.
    let lost = with(&[(40, foreign())]);
    assert!(matches!(
        search(&lost, None, settled()),
        FoundEnd::TooFar { .. }
    ));
}

#[test]
fn behind_many_strangers_the_search_goes_on_to_what_is_recorded() {
    let last = 50 + FOREIGN_MESSAGES_MAX;
    let strangers: Vec<_> = (0..=FOREIGN_MESSAGES_MAX)
        .map(|back| (last - back, foreign()))
        .collect();
    let with = |messages: &[_]| [strangers.as_slice(), messages].concat();
    let known = active(40);
    // The lane had gone on behind what the record knows.
    let ours = stored("48", Some("s 0/31:1"), None);
    let recorded = stored("39", Some("s 0/28:1"), None);
    let stream = with(&[(49, ours), (40, recorded)]);
    assert_eq!(
        search(&stream, Some(&known), None),
        found(49, 49, Some("e50"))
    );
    // The broker lost the recorded one too: nothing says how much further it is.
    let lost: Vec<_> = (40..50).rev().map(|seq| (seq, foreign())).collect();
    assert!(matches!(
        search(&with(&lost), Some(&known), None),
        FoundEnd::TooFar { .. }
    ));
    let adopted = LaneRecord {
        adopted_sequence: 49,
        ..record(0, 40)
    };
    assert_eq!(search(&strangers, Some(&adopted), None), FoundEnd::Nothing);
}

#[test]
fn any_number_of_messages_of_our_own_is_one_look() {
    let last = 50 + 2 * FOREIGN_MESSAGES_MAX;
    let expected = (last - 1).to_string();
    let backfilled = stored(&expected, None, Some("s 40"));
    // The search goes on at the sequence that the last one names.
    let ours = stored("39", Some("s 0/28:1"), None);
    let stream = [(last, backfilled), (40, ours)];
    assert_eq!(search(&stream, None, None), found(40, 40, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 40 };
    assert_eq!(
        search(&[(last, backfilled), (40, None)], None, None),
        removed
    );
    let first = stored(&expected, None, Some("s 0"));
    assert_eq!(search(&[(last, first)], None, None), FoundEnd::Nothing);
    // What is known to stand behind that sequence is looked at.
    let known = stored("44", Some("s 0/2D:1"), None);
    let stream = [(last, backfilled), (45, known)];
    let settled = memory(CREATED, 45, 40);
    assert_eq!(search(&stream, None, settled), found(45, 45, Some("e50")));
    // A copy, another slot's, and a sequence that does not lead back say nothing.
    for (expected, lane_end) in [("", "s 0"), ("2", "t 0"), ("2", "s 9")] {
        let other = stored(expected, None, Some(lane_end));
        let ours = stored("1", Some("s 0/32:1"), None);
        let stream = [(3, other), (2, ours)];
        assert_eq!(search(&stream, None, None), found(2, 50, Some("e50")));
    }
}

#[test]
fn a_search_tells_how_far_back_there_is_nothing() {
    let behind = |message: Option<StoredMessage<'_>>| {
        let mut search = EndSearch::new("s", 3, CREATED, None, None);
        search.take(message.map(|message| StoredMessage {
            sequence: 3,
            ..message
        }));
        search.none_behind()
    };
    assert_eq!(behind(foreign()), 2);
    assert_eq!(behind(None), 3);
    // A copy must be met again.
    assert_eq!(behind(stored("", Some("s 0/10:1"), None)), 3);
    let skipped = stored("2", None, Some("s 0"));
    assert_eq!(behind(skipped), 0);
}

/// Everything up to the last sequence is gone, and the stream was seen to acknowledge what it does not keep.
fn end_in_doubt(last_sequence: u64, record: &LaneRecord, memory: Option<&Memory>) -> FoundEnd {
    let mut search = EndSearch::new("s", last_sequence, CREATED, Some(record), memory);
    while search.wanted().is_some() {
        if let Some(found) = search.take(None) {
            return found;
        }
    }
    search.end()
}

#[test]
fn a_removed_message_stands_in_for_what_was_never_stored() {
    let doubted = LaneRecord {
        doubted: true,
        ..active(15)
    };
    let at_the_end = FoundEnd::Found(LaneEnd {
        sequence: 29,
        ..message(15)
    });
    assert_eq!(end_in_doubt(29, &doubted, None), at_the_end);
    // The epoch that begins there writes it into its record: one behind it, which knows of no doubt, finds the same.
    let resolved = LaneRecord {
        sequence: 29,
        doubted: false,
        ..doubted
    };
    let removed = FoundEnd::Removed { sequence: 29 };
    assert_eq!(end_in_doubt(29, &resolved, None), removed);
    let next = Case {
        last_sequence: 29,
        lane_end: removed,
        record: Some(resolved),
        ..usual()
    };
    let lane_end = next.good().lane_end.expect("it is known");
    assert_eq!((lane_end.sequence, lane_end.position), (29, at(15)));
}

#[test]
fn a_doubt_that_was_resolved_does_not_come_back_with_an_older_record() {
    let doubted = LaneRecord {
        doubted: true,
        ..active(15)
    };
    let remembers = |sequence, epoch| Memory {
        begun: Some(message(29)),
        epoch,
        ..memory(CREATED, sequence, 40).expect("some")
    };
    let end = |last_sequence, memory: Memory| match end_in_doubt(
        last_sequence,
        &doubted,
        Some(&memory),
    ) {
        FoundEnd::Found(lane_end) => lane_end.position,
        FoundEnd::Removed { sequence } => at(sequence),
        other => panic!("{other:?}"),
    };
    // The stream still reaches what was acknowledged since.
    assert_eq!(end(61, remembers(61, 2)), at(61));
    // It was set back to where the lane went on, or before.
    assert_eq!(end(29, remembers(61, 2)), at(29));
    assert_eq!(end(20, remembers(61, 2)), at(15));
    // The doubt of the epoch itself: another relay has looked since.
    assert_eq!(end(61, remembers(61, 1)), at(15));
}
