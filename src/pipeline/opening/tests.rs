//! Steps of a start that a world of servers rarely needs, each with the replies that need it.

use super::*;
use crate::pipeline::end_search::StoredMessage;
use crate::pipeline::history::Switch;
use crate::pipeline::lane_end::{LaneEnd, Memory};
use crate::pipeline::position::Position;
use crate::pipeline::progress::HeldMarks;
use crate::pipeline::request::StreamView;
use crate::pipeline::reshard::OtherNumber;

const CREATED: &str = "then";

fn opening() -> Opening<'static> {
    opening_with(None)
}

fn opening_with(memory: Option<Memory>) -> Opening<'static> {
    let mut opening = Opening::new(Known {
        slot: "s",
        stream: "S",
        nats: "nats://here".to_owned(),
        template: "outbox.{event_type}".parse().expect("a template"),
        shared: false,
        memory,
        from: None,
        no_share: None,
    });
    opening.catalog_seen();
    opening.connected(Server::default());
    opening
}

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

fn stream(created: &str, last_sequence: u64) -> StreamView {
    StreamView {
        created: created.into(),
        first_sequence: 1,
        last_sequence,
        messages: last_sequence,
        num_replicas: 1,
        allow_batched: false,
        allow_atomic: false,
        stored_as: Vec::new(),
        unfit: None,
    }
}

fn record(sequence: u64) -> LaneRecord {
    LaneRecord {
        epoch: 1,
        sequence,
        position: Some(at(sequence)),
        event_id: Some(format!("e{sequence}")),
        confirmed_lsn: 1.into(),
        ..LaneRecord::new(&lane(), &History::first(), "S", CREATED)
    }
}

/// Somebody else's message.
fn foreign(sequence: u64) -> StoredMessage<'static> {
    StoredMessage {
        sequence,
        position: None,
        tail: None,
        expected_sequence: None,
        is_fence: false,
        in_batch: false,
        id: [None; 2],
        kind: None,
        table: None,
        body: b"{}",
    }
}

/// An event of the lane, where its position says what its sequence is.
fn event(sequence: u64, header: &'static str, expected: &'static str) -> StoredMessage<'static> {
    StoredMessage {
        position: Some(header),
        expected_sequence: Some(expected),
        ..foreign(sequence)
    }
}

/// Takes one look: the stream, the record, and what is stored.
fn look(
    opening: &mut Opening<'_>,
    view: &StreamView,
    record: Option<LaneRecord>,
    stored: &[StoredMessage<'_>],
) {
    opening.take(Reply::Stream(view.clone())).expect("it fits");
    let stored_record = StoredRecord {
        sequence: u64::from(record.is_some()),
        record,
        note: None,
    };
    let reply = Reply::Record(Box::new(stored_record));
    opening.take(reply).expect("a record is no refusal");
    for message in stored {
        let reply = Reply::Message(Some(*message));
        opening.take(reply).expect("a message is no refusal");
    }
}

/// Both looks and the slot between them; the place of the slot is what is wanted then.
fn look_twice(
    opening: &mut Opening<'_>,
    view: &StreamView,
    record: &LaneRecord,
    stored: &[StoredMessage<'_>],
) {
    for slot_is_ours in [false, true] {
        look(opening, view, Some(record.clone()), stored);
        opening.take(Reply::Stream(view.clone())).expect("the same");
        if !slot_is_ours {
            opening.slot_taken();
        }
    }
    assert_eq!(opening.wanted(), Wanted::SlotPlace);
}

fn place(confirmed_flush_lsn: u64, history: History) -> SlotPlace {
    SlotPlace {
        lane: lane(),
        history,
        confirmed_flush_lsn: confirmed_flush_lsn.into(),
        begins_lsn: None,
        server_lsn: 1_000.into(),
    }
}

#[test]
fn a_stream_that_changes_under_the_search_is_looked_at_anew() {
    for again in [stream("now", 2), stream(CREATED, 1)] {
        let mut opening = opening();
        let last = event(2, "s 0/2:1", "1");
        look(&mut opening, &stream(CREATED, 2), None, &[last]);
        assert_eq!(opening.wanted(), Wanted::Ask(Request::Stream));
        let refused = opening.take(Reply::Stream(again)).expect_err("it changed");
        assert!(
            matches!(refused, NotOpened::Fault(Fault::StreamLost(_))),
            "{refused:?}"
        );
    }
}

#[test]
fn a_halt_for_a_replaced_message_is_stored_before_it_is_told() {
    let mut opening = opening();
    let last = event(3, "s 0/3:1", "2");
    look_twice(
        &mut opening,
        &stream(CREATED, 3),
        &record(2),
        &[last, foreign(2)],
    );
    opening
        .slot_seen(place(1, History::first()))
        .expect("a halt to keep");
    let Wanted::Ask(Request::StoreRecord { record, behind: 1 }) = opening.wanted() else {
        panic!("{:?}", opening.wanted());
    };
    assert_eq!(record.replaced, Some(2));
    let refused = opening.take(Reply::Stored(2)).expect_err("a halt");
    assert!(
        matches!(refused, NotOpened::Halt(Halt::Replaced { sequence: 2, .. })),
        "{refused:?}"
    );
}

#[test]
fn an_adoption_does_not_hide_what_a_stream_set_back_takes_later() {
    // Adopted behind message 5, and the stream was set back to 2: what comes at 3 to 5 is the lane's own.
    let mut adopted = record(2);
    adopted.adopted_sequence = 5;
    let mut opening = opening();
    look(&mut opening, &stream(CREATED, 2), Some(adopted), &[]);
    let Step::Again(view) = &opening.step else {
        panic!("{:?}", opening.step);
    };
    let record = view.stored.record.as_ref().expect("the record");
    assert_eq!(record.adopted_sequence, 2);
}

#[test]
fn what_was_confirmed_on_a_timeline_that_the_server_left_is_not_carried_over() {
    let switch = Switch {
        timeline: 1,
        lsn: 10.into(),
    };
    let history = History::new(2, Some(vec![switch]));
    let mut before = record(2);
    before.confirmed_lsn = 40.into();
    let usable = begin::usable_record(Some(before), &history).expect("a record");
    assert_eq!(u64::from(usable.confirmed_lsn), 10);
}

#[test]
fn a_share_that_is_no_more_is_read_until_its_record_is_at_its_end() {
    let no_share = Fault::NoShare(OtherNumber {
        found: 2,
        wanted: 4,
        undivided: None,
    });
    let retired = LaneRecord {
        retired: true,
        ..record(2)
    };
    for (record, has_rest) in [
        (None, false),
        (Some(record(2)), true),
        (Some(retired), false),
    ] {
        let mut opening = opening();
        opening.known.no_share = Some(no_share.clone());
        opening
            .take(Reply::Stream(stream(CREATED, 2)))
            .expect("the record is asked for");
        let stored = StoredRecord {
            record,
            note: None,
            sequence: 1,
        };
        match opening.take(Reply::Record(Box::new(stored))) {
            Ok(()) => assert!(has_rest),
            Err(NotOpened::Fault(fault)) => assert!(!has_rest && fault == no_share),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_stream_that_drops_leaves_its_doubt_in_the_record() {
    let mut opening = opening();
    let unfit = Unfit {
        reason: "retention is interest".into(),
        drops: true,
    };
    let view = StreamView {
        unfit: Some(unfit.clone()),
        ..stream(CREATED, 2)
    };
    opening
        .take(Reply::Stream(view))
        .expect("the record is asked for");
    let stored = StoredRecord {
        record: Some(record(2)),
        note: None,
        sequence: 1,
    };
    opening
        .take(Reply::Record(Box::new(stored)))
        .expect("the doubt is to be stored");
    let Wanted::Ask(Request::StoreRecord { record, behind: 1 }) = opening.wanted() else {
        panic!("{:?}", opening.wanted());
    };
    assert!(record.doubted);
    let refused = opening.take(Reply::Stored(2)).expect_err("unfit");
    assert!(matches!(refused, NotOpened::Unfit(found) if found == unfit));
}

/// What a process knows that has had the slot confirmed up to 40, and whose record of that a broker has lost.
fn memory() -> Memory {
    Memory {
        created: CREATED.into(),
        lane_end: record(2).position.map(|position| LaneEnd {
            sequence: 2,
            position,
            event_id: Some("e2".into()),
            table: None,
        }),
        sound: None,
        begun: None,
        doubted: false,
        recorded_sequence: Some(2),
        confirmed_lsn: 40.into(),
        history: History::first(),
        tables: Vec::new(),
        epoch: 1,
        settled: true,
        server_id: None,
        held: HeldMarks::default(),
    }
}

#[test]
fn what_the_process_has_had_confirmed_itself_needs_no_record() {
    let last = event(2, "s 0/2:1", "1");
    for (memory, explained) in [(Some(memory()), true), (None, false)] {
        let mut opening = opening_with(memory);
        look_twice(&mut opening, &stream(CREATED, 2), &record(2), &[last]);
        opening
            .slot_seen(place(40, History::first()))
            .expect("decided, or a halt to keep");
        let halts = matches!(
            opening.step,
            Step::KeepHalt(Halt::ConfirmedUnexplained { .. }, ..)
        );
        assert_eq!(halts, !explained, "{:?}", opening.step);
    }
}
