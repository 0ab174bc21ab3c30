//! What the resync checks and carries over, one by one: a world of servers rarely comes to each.

use super::*;
use crate::pipeline::continuity::Loss;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::engine::{EngineSettings, EpochSettings, Note};
use crate::pipeline::epochs::Refused;
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::position::Position;
use crate::pipeline::progress::HeldMarks;
use crate::pipeline::row::Source;
use crate::pipeline::tables::Tables;

const CREATED: &str = "then";
const OID: u32 = 16_384;
const MS: Duration = Duration::from_millis(1);

fn lane() -> Lane {
    Lane {
        system_identifier: 7,
        database: "app".into(),
        slot: "s".into(),
    }
}

fn limits(message_limit: usize) -> WindowLimits {
    WindowLimits {
        inbox: "_INBOX.a".into(),
        epoch_token: "a".into(),
        messages_max: 100,
        one_by_one: 0,
        bytes_max: 1 << 20,
        message_limit: SizeLimit::smaller(message_limit, None),
        ack_timeout: 5_000 * MS,
    }
}

fn plan(lane_end: Option<LaneEnd>, last_sequence: u64) -> Plan {
    Plan {
        start_lsn: 1.into(),
        lane_end,
        overlap: None,
        last_sequence,
        replay_from: None,
        loss: None,
        foreign_messages: 0,
    }
}

fn settings() -> EngineSettings {
    EngineSettings {
        lane: lane(),
        history: History::first(),
        created: CREATED.into(),
        number: 3,
        record: None,
        mode: Mode::Chain,
        stream: "S".into(),
        num_replicas: 1,
        confirmed_flush_lsn: 1.into(),
        server_id: Some("before".into()),
        held: HeldMarks::default(),
        epoch: EpochSettings {
            source: Source {
                tables: Tables::new("public".into(), "outbox_events".into(), OID, 0.into()),
                domains: Vec::new(),
                encoding: Encoding::Utf8,
                mapping: Mapping::default(),
            },
            publications: Vec::new(),
            carrier: None,
            catalog_lsn: 0.into(),
            limits: limits(1 << 20),
            hold_back: 1_000 * MS,
            held_bytes_max: 1 << 30,
            on_timeline: None,
            status_interval: 10_000 * MS,
            halt_on_reject: false,
            refused: Refused::new(),
            limit_raised_for: None,
        },
    }
}

fn xlog_data(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![b'w'];
    out.extend([0; 24]);
    out.push(kind);
    out.extend(parts.concat());
    out
}

fn relation() -> Vec<u8> {
    let columns: [(&[u8], u32); 6] = [
        (b"id\0", 2950),
        (b"aggregate_id\0", 2950),
        (b"event_type\0", 25),
        (b"event_version\0", 21),
        (b"occurred_at\0", 1184),
        (b"payload_json\0", 3802),
    ];
    let columns = columns
        .map(|(name, oid)| [&[0], name, &oid.to_be_bytes(), &(-1_i32).to_be_bytes()].concat());
    let head: &[u8] = b"public\0outbox_events\0d\0\x06";
    xlog_data(b'R', &[&OID.to_be_bytes(), head, &columns.concat()])
}

fn id(ordinal: u64) -> String {
    format!("0192f7a0-0000-7000-9000-{ordinal:012x}")
}

/// A row; one without a type cannot be published.
fn insert(ordinal: u64, event_type: Option<&str>) -> Vec<u8> {
    let (id, aggregate) = (id(ordinal), id(0));
    let values = [
        Some(id.as_str()),
        Some(aggregate.as_str()),
        event_type,
        Some("1"),
        Some("2026-11-23 04:40:52.84613+00"),
        Some("{}"),
    ];
    let values = values.map(|value| match value {
        Some(text) => [
            b"t".as_slice(),
            &u32::try_from(text.len()).expect("short").to_be_bytes(),
            text.as_bytes(),
        ]
        .concat(),
        None => b"n".to_vec(),
    });
    xlog_data(b'I', &[&OID.to_be_bytes(), b"N\0\x06", &values.concat()])
}

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
    })
}

/// An epoch that has sent four rows of one transaction, the third of them a dead letter; the first is acknowledged.
fn engine() -> Engine {
    let mut engine = Engine::new(settings(), &plan(None, 0), MS);
    let mut out = BytesMut::new();
    let begin = [100_u64.to_be_bytes(), 0_u64.to_be_bytes()].concat();
    let commit = [100_u64.to_be_bytes(), 108_u64.to_be_bytes(), [0; 8]].concat();
    for payload in [
        relation(),
        xlog_data(b'B', &[&begin, &7_u32.to_be_bytes()]),
        insert(1, Some("a.b.v1")),
        insert(2, Some("a.b.v1")),
        insert(3, None),
        insert(4, Some("a.b.v1")),
        xlog_data(b'C', &[&[0], &commit]),
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
