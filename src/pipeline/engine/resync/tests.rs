//! What the resync checks and carries over, one by one: a world of servers rarely comes to each.

use super::*;
use crate::pipeline::continuity::Loss;
use crate::pipeline::engine::Note;
use crate::pipeline::engine::sample::{
    CREATED, MS, begin, commit, id, insert, lane, limits, plan, relation, settings,
};
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::position::Position;

fn at(ordinal: u64) -> Position {
    Position {
        commit_lsn: 100.into(),
        ordinal,
    }
}

/// Where row `ordinal` stands: the stream was empty before the first.
fn stored(ordinal: u64) -> Option<LaneEnd> {
    Some(LaneEnd {
        sequence: ordinal,
        position: at(ordinal),
        event_id: Some(id(ordinal)),
        table: None,
    })
}

/// An epoch that has sent four rows of one transaction, the third of them a dead letter; the first is acknowledged.
fn engine() -> Engine {
    let mut engine = Engine::new(settings(), &plan(None, 0), MS);
    let mut out = BytesMut::new();
    for payload in [
        relation(),
        begin(100),
        insert(1, Some("a.b.v1")),
        insert(2, Some("a.b.v1")),
        insert(3, None),
        insert(4, Some("a.b.v1")),
        commit(100),
    ] {
        engine
            .handle_payload(&payload, &mut out, MS)
            .expect("well formed");
    }
    engine.end_turn(&mut out, true);
    engine
        .handle_answer(b"1", None, br#"{"stream":"S","seq":1}"#, 2 * MS)
        .expect("the acknowledgement");
    assert_eq!(engine.lane_end(), stored(1).as_ref());
    engine
}

fn resumed(server_id: &str) -> Resumed {
    Resumed {
        record: None,
        mode: Mode::Chain,
        num_replicas: 1,
        limits: limits(1 << 20),
        server_id: Some(server_id.into()),
    }
}

fn notes(engine: &mut Engine) -> Vec<Position> {
    std::iter::from_fn(|| engine.poll_note())
        .filter_map(|note| match note {
            Note::DeadLetter(rejected) => Some(rejected.position),
            _ => None,
        })
        .collect()
}

#[test]
fn a_record_of_a_later_epoch_is_another_relays() {
    let mut record = LaneRecord::new(&lane(), &History::first(), "S", CREATED);
    let engine = engine();
    for (epoch, is_ours) in [(2, true), (3, true), (4, false)] {
        record.epoch = epoch;
        let checked = engine.check_record(Some(&record));
        assert_eq!(checked.is_ok(), is_ours, "{epoch}: {checked:?}");
    }
    assert!(engine.check_record(None).is_ok());
}

#[test]
fn the_lane_goes_on_only_behind_its_last_acknowledged_message_or_a_row_in_flight() {
    let engine = engine();
    let goes_on = |lane_end: Option<LaneEnd>| {
        let checked = engine.check_goes_on(CREATED, &plan(lane_end, 9));
        match checked {
            Ok(()) => true,
            Err(Fault::Reread(_)) => false,
            Err(other) => panic!("{other:?}"),
        }
    };
    for ordinal in 1..=4 {
        assert!(goes_on(stored(ordinal)), "row {ordinal}");
    }
    // Acknowledged, and gone.
    assert!(!goes_on(None));
    // Nobody has sent it.
    assert!(!goes_on(stored(5)));
    let other = |change: fn(&mut LaneEnd)| {
        let mut lane_end = stored(1).expect("a row");
        change(&mut lane_end);
        Some(lane_end)
    };
    assert!(!goes_on(other(|lane_end| lane_end.event_id = Some(id(9)))));
    assert!(!goes_on(other(|lane_end| lane_end.sequence = 0)));
    // A message behind it tells the lane's place too, without the row's id.
    assert!(goes_on(other(|lane_end| {
        lane_end.sequence = 7;
        lane_end.event_id = None;
    })));
}

#[test]
fn another_stream_or_a_loss_ends_both_sides() {
    let engine = engine();
    let whole = plan(stored(2), 2);
    let other = engine.check_goes_on("now", &whole);
    assert!(matches!(other, Err(Fault::Reread(_))), "{other:?}");
    let lost = Plan {
        loss: Some(Loss {
            after: None,
            through: at(1),
            messages: Some(1),
            gone_below: None,
        }),
        ..whole
    };
    let lost = engine.check_goes_on(CREATED, &lost);
    assert!(matches!(lost, Err(Fault::Reread(_))), "{lost:?}");
}

#[test]
fn rows_found_stored_are_acknowledged_and_their_dead_letters_told() {
    let mut engine = engine();
    assert_eq!(notes(&mut engine), []);
    engine
        .resume(resumed("before"), &plan(stored(3), 3), 3 * MS)
        .expect("it goes on");
    assert_eq!(engine.progress().acknowledged_rows(), 3);
    assert_eq!(engine.lane_end(), stored(3).as_ref());
    assert_eq!(notes(&mut engine), [at(3)]);

    let mut out = BytesMut::new();
    engine
        .send_again(&mut out, 1 << 20, 3 * MS)
        .expect("it fits");
    let sent = String::from_utf8_lossy(&out).into_owned();
    assert_eq!(sent.matches("HPUB ").count(), 1, "{sent}");
    assert!(sent.contains("Nats-Expected-Last-Sequence: 3"), "{sent}");
    engine
        .handle_answer(b"4", None, br#"{"stream":"S","seq":4}"#, 4 * MS)
        .expect("the acknowledgement");
    assert_eq!(engine.lane_end(), stored(4).as_ref());
    assert_eq!(u64::from(engine.confirmable(5_000 * MS).end_lsn), 108);
}

#[test]
fn nothing_found_stored_sends_all_again_and_tells_no_dead_letter() {
    let mut engine = engine();
    engine
        .resume(resumed("before"), &plan(stored(1), 1), 3 * MS)
        .expect("it goes on");
    assert_eq!(engine.progress().acknowledged_rows(), 1);
    assert_eq!(notes(&mut engine), []);
    let mut out = BytesMut::new();
    engine
        .send_again(&mut out, 1 << 20, 3 * MS)
        .expect("it fits");
    assert_eq!(String::from_utf8_lossy(&out).matches("HPUB ").count(), 3);
}

#[test]
fn a_request_of_the_connection_before_is_not_waited_for() {
    // Its answer never comes on the new one: confirmations begin anew there.
    let mut engine = engine();
    engine
        .resume(resumed("before"), &plan(stored(4), 4), 3 * MS)
        .expect("it goes on");
    let due = 1_500 * MS;
    assert!(
        engine.poll_request(due).is_some(),
        "it asks for what it confirms by"
    );
    assert!(engine.poll_request(due).is_none(), "one at a time");
    engine
        .resume(resumed("before"), &plan(stored(4), 4), due)
        .expect("it goes on");
    assert!(engine.poll_request(due).is_some(), "it asks again");
}

#[test]
fn the_hold_back_begins_anew_where_another_process_of_the_broker_answers() {
    for (server_id, confirmable) in [("before", 108), ("after", 1)] {
        let mut engine = engine();
        for number in 2..=4 {
            let payload = format!(r#"{{"stream":"S","seq":{number}}}"#);
            let token = number.to_string();
            engine
                .handle_answer(token.as_bytes(), None, payload.as_bytes(), 2 * MS)
                .expect("the acknowledgement");
        }
        engine
            .resume(resumed(server_id), &plan(stored(4), 4), 900 * MS)
            .expect("it goes on");
        // Held for a second from the acknowledgement, or from the resync.
        let confirmed = u64::from(engine.confirmable(1_100 * MS).end_lsn);
        assert_eq!(confirmed, confirmable, "{server_id}");
    }
}

#[test]
fn rows_made_for_larger_messages_are_read_again() {
    let mut engine = engine();
    let smaller = Resumed {
        limits: limits(1 << 10),
        ..resumed("before")
    };
    let refused = engine.resume(smaller, &plan(stored(1), 1), 3 * MS);
    assert!(matches!(refused, Err(Fault::Reread(_))), "{refused:?}");
}
