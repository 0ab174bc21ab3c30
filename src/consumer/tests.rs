use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName};
use bytes::BytesMut;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::event::EventEnvelope;
use crate::event::teaching::{LessonPublished, UserEraseRequested};
use crate::pipeline::fields::Fields;
use crate::pipeline::kind::Kind as ColumnKind;
use crate::pipeline::mapping::{
    Extra, Format, HeaderValues, Mapping, MessageSettings, Value, default_columns,
};
use crate::pipeline::message::{Composed, compose};
use crate::pipeline::pgoutput::Column;
use crate::pipeline::row::Row;

fn message(subject: &str, headers: &[(&str, &str)], body: &[u8]) -> Message {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), *value);
    }
    Message {
        subject: subject.into(),
        reply: None,
        payload: body.to_vec().into(),
        headers: Some(map),
        status: None,
        description: None,
        length: 0,
    }
}

const PLACE: (&str, &str) = (POSITION_HEADER, "walrelay 16/B374D848:3");

#[test]
fn an_event_in_the_default_form_is_decoded() {
    let lesson = LessonPublished::new(uuid::Uuid::now_v7(), uuid::Uuid::now_v7(), "Fractions");
    let body = EventEnvelope::from_event(&lesson)
        .unwrap()
        .to_json()
        .unwrap();
    let subject = "outbox.lesson.published.v1";
    let event = Event::read(&message(subject, &[PLACE], body.as_bytes())).unwrap();
    assert_eq!(event.kind, Kind::Live);
    assert_eq!(event.place.as_ref().unwrap().to_string(), PLACE.1);
    assert_eq!(event.id, lesson.event_id.to_string());
    assert_eq!(event.occurred_at, Some(lesson.occurred_at));
    assert_eq!(event.decode::<LessonPublished>().unwrap(), lesson);
    assert!(matches!(
        event.decode::<UserEraseRequested>(),
        Err(EventError::EventType { .. })
    ));
    let other = Event {
        event_version: Some(2),
        ..event.clone()
    };
    assert!(matches!(
        other.decode::<LessonPublished>(),
        Err(EventError::EventVersion { found: 2, .. })
    ));
    let untold = Event {
        event_type: None,
        event_version: None,
        ..event
    };
    assert!(matches!(
        untold.decode::<LessonPublished>(),
        Err(EventError::NoType { .. })
    ));
    assert_eq!(untold.payload_as::<LessonPublished>().unwrap(), lesson);
}

#[test]
fn numbers_are_kept_or_refused() {
    let body = br#"{"id":1,"payload_json":{"n": 123456789012345678901234567890, "x": 1e400}}"#;
    let event = Event::read(&message("outbox.a", &[PLACE], body)).unwrap();
    let refused = event.payload_as::<serde_json::Value>();
    assert!(
        matches!(refused, Err(EventError::Decode { id, source }) if id == "1" && source.to_string().contains("rounded"))
    );
    #[derive(serde::Deserialize)]
    struct Sum {
        n: i128,
        x: Box<serde_json::value::RawValue>,
    }
    let sum: Sum = event.payload_as().unwrap();
    assert_eq!(sum.n.to_string(), "123456789012345678901234567890");
    assert_eq!(sum.x.get(), "1e400");
}

#[test]
fn kinds_are_told() {
    let body = br#"{"id":"a","payload_json":{}}"#;
    for (headers, kind) in [
        (&[(KIND_HEADER, "backfill")][..], Kind::Backfill),
        (&[(KIND_HEADER, "retry")], Kind::Retry),
        (&[(KIND_HEADER, "replay"), PLACE], Kind::Replay),
    ] {
        let event = Event::read(&message("outbox.a", headers, body)).unwrap();
        assert_eq!(event.place.is_some(), headers.contains(&PLACE));
        assert_eq!(event.kind, kind);
    }
    let letter = [(KIND_HEADER, "dead-letter"), (REASON_HEADER, "null"), PLACE];
    let letter = Event::read(&message("walrelay.dead.w", &letter, b"{}")).unwrap();
    let reason = "null".to_owned();
    assert_eq!(
        (letter.id.as_str(), letter.kind),
        ("", Kind::DeadLetter { reason })
    );
}

#[test]
fn what_is_no_event_is_refused() {
    let read = |subject, headers: &[_], body: &[u8]| Event::read(&message(subject, headers, body));
    for (subject, kind) in [
        ("walrelay.dead.w", "discarded"),
        ("walrelay.fence.OUTBOX.w", ""),
    ] {
        let control = read(subject, &[(KIND_HEADER, kind)], b"");
        assert!(matches!(control, Err(ReadError::Control { .. })));
    }
    // What shut out a killed replay, in the stream of replays.
    let fence = read(
        "replay.outbox.walrelay-fenced",
        &[(KIND_HEADER, "fenced")],
        b"{}",
    );
    assert!(matches!(fence, Err(ReadError::Control { .. })));
    let marker = read("outbox.a", &[("Nats-Marker-Reason", "MaxAge")], b"");
    assert!(matches!(marker, Err(ReadError::Control { .. })));
    let unknown = read("outbox.a", &[(KIND_HEADER, "new")], br#"{"id":1}"#);
    assert!(matches!(unknown, Err(ReadError::Kind { kind, .. }) if kind == "new"));
    let place = read("outbox.a", &[(POSITION_HEADER, "w 1:x")], br#"{"id":1}"#);
    assert!(matches!(place, Err(ReadError::Position { .. })));
    for body in [&b""[..], b"\xff", b"{}", br#"{"id":null}"#] {
        assert!(matches!(
            read("outbox.a", &[], body),
            Err(ReadError::NoId { .. })
        ));
    }
}

/// A column's kind, its text as Postgres sends it, and the text that a reader sees.
type Column3 = (ColumnKind, String, String);

fn ids() -> impl Strategy<Value = Column3> {
    prop_oneof![
        any::<u128>().prop_map(|n| {
            let text = uuid::Uuid::from_u128(n).to_string();
            (ColumnKind::Text, text.clone(), text)
        }),
        any::<i64>().prop_map(|n| (ColumnKind::Integer, n.to_string(), n.to_string())),
        any::<[u8; 16]>().prop_map(|bytes| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = uuid::Uuid::from_bytes(bytes).to_string();
            (ColumnKind::Bytes, format!("\\x{hex}"), text)
        }),
        // A header can have no control characters; and what surrounds a value does not belong to it.
        "[!-~äß☃][ -~äß☃]{0,20}[!-~ä]".prop_map(|text| (ColumnKind::Text, text.clone(), text)),
    ]
}

/// Kind and text as Postgres sends it; and the payload as bytes where it is no JSON.
fn payloads() -> impl Strategy<Value = (ColumnKind, String, Option<Vec<u8>>)> {
    let json = select(vec![
        r#"{"id": "own", "type": "x", "data": 1e400}"#,
        "[123456789012345678901234567890, 0.10000000000000001]",
        "\"text\"",
        "7",
        "null",
    ]);
    let kind = select(vec![ColumnKind::Json, ColumnKind::Text]);
    prop_oneof![
        (kind, json).prop_map(|(kind, text)| (kind, text.to_owned(), None)),
        "[a-z ]{1,9}!".prop_map(|text| (ColumnKind::Text, text.clone(), Some(text.into_bytes()))),
        prop::collection::vec(128_u8.., 1..9).prop_map(|bytes| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (ColumnKind::Bytes, format!("\\x{hex}"), Some(bytes))
        }),
    ]
}

proptest! {
    /// Whatever is mapped, in whatever format: what the row has is what the consumer reads.
    #[test]
    fn each_mapping_is_read_as_its_row_is(
        format in select(Format::NAMES.map(|(_, format)| format).to_vec()),
        header_values in select(HeaderValues::NAMES.map(|(_, values)| values).to_vec()),
        (id_kind, id, id_read) in ids(),
        (aggregate_kind, aggregate_id, aggregate_read) in ids(),
        event_type in "[a-z]{1,5}(\\.[a-z0-9]{1,3})?",
        version in any::<u8>(),
        (payload_kind, payload, bytes) in payloads(),
        no_version: bool,
        no_aggregate: bool,
        no_time: bool,
        // Names that another format has for fields of its own.
        field in select(vec![None, Some("tenant"), Some("subject"), Some("type"), Some("data")]),
    ) {
        let is_cloud_event = matches!(format, Format::CloudEvents | Format::CloudEventsJson);
        let field = field.filter(|name| !is_cloud_event || *name == "tenant");
        let mut columns = default_columns();
        let absent = [
            (no_version, &mut columns.event_version),
            (no_aggregate, &mut columns.aggregate_id),
            (no_time, &mut columns.occurred_at),
        ];
        for (is_absent, column) in absent {
            if is_absent {
                *column = Value::Absent;
            }
        }
        let extra = |name: &str| Extra { name: name.to_owned(), column: "tenant".to_owned() };
        let settings = MessageSettings {
            format,
            header_values,
            fields: field.map(extra).into_iter().collect(),
            source: "/test".to_owned(),
            ..MessageSettings::default()
        };
        let mapping = Mapping::new(columns, "outbox.{event_type}".parse().unwrap(), settings);
        let version_text = version.to_string();
        let row = Row::new(
            Fields {
                id: Column::Text(id.as_bytes()),
                aggregate_id: Column::Text(aggregate_id.as_bytes()),
                event_type: Column::Text(event_type.as_bytes()),
                event_version: Column::Text(version_text.as_bytes()),
                occurred_at: Column::Text(b"2026-11-28 07:05:32.5+00"),
                payload: Column::Text(payload.as_bytes()),
            },
            Fields {
                id: id_kind,
                aggregate_id: aggregate_kind,
                event_type: ColumnKind::Text,
                event_version: ColumnKind::Integer,
                occurred_at: ColumnKind::Time,
                payload: payload_kind,
            },
            field.map(|_| (ColumnKind::Text, Column::Text(b"acme"))).into_iter().collect(),
            0,
        );
        let (mut subject, mut headers, mut body) = (Vec::new(), Vec::new(), Vec::new());
        let composed = compose(&row, &mapping, &mut subject, &mut headers, &mut body).unwrap();
        let body = match composed {
            Composed::Envelope(envelope) => {
                let mut out = BytesMut::new();
                envelope.write(&mut out);
                Cow::Owned(out.to_vec())
            }
            Composed::Payload(payload) => Cow::Borrowed(payload),
            Composed::Written => Cow::Borrowed(&body[..]),
        };
        // What is told as a text is a string.
        let (plain, text) = (r#""datacontenttype":"text/plain","#, String::from_utf8_lossy(&body));
        if let Some((_, data)) = text.split_once(plain).filter(|_| format == Format::CloudEventsJson) {
            prop_assert!(data.starts_with(r#""data":""#), "{}", text);
        }
        let headers = String::from_utf8(headers).unwrap();
        let headers: Vec<_> = headers.lines().map(|line| line.split_once(": ").unwrap()).collect();
        let subject = String::from_utf8(subject).unwrap();
        let event = Event::read(&message(&subject, &headers, &body)).unwrap();

        prop_assert_eq!(&event.id, &id_read);
        let is_payload = matches!(format, Format::Payload | Format::PayloadString);
        let unless = |left_out: bool, text: &str| (!left_out && !is_payload).then(|| text.to_owned());
        prop_assert_eq!(&event.aggregate_id, &unless(no_aggregate, &aggregate_read));
        prop_assert_eq!(&event.event_type, &unless(false, &event_type));
        prop_assert_eq!(event.event_version, (!no_version && !is_payload).then_some(version));
        let time = if no_time { "2000-01-01T00:00:00Z" } else { "2026-11-28T07:05:32.500Z" };
        prop_assert_eq!(event.occurred_at, (!is_payload).then(|| time.parse().unwrap()));
        // The payload beside further fields, or as a string, is of a form of its own.
        if !is_payload || (format == Format::Payload && field.is_none()) {
            match (&event.payload, bytes) {
                (Payload::Json(json), None) => prop_assert_eq!(json.get(), &payload),
                (Payload::Bytes(read), Some(bytes)) => prop_assert_eq!(read, &bytes),
                // A text in an object is a string of it.
                (Payload::Json(json), Some(bytes)) => {
                    prop_assert_eq!(payload_kind, ColumnKind::Text);
                    let text: String = serde_json::from_str(json.get()).unwrap();
                    prop_assert_eq!(text.as_bytes(), &bytes[..]);
                }
                (read, expected) => prop_assert!(false, "{:?} {:?}", read, expected),
            }
        } else {
            prop_assert!(matches!(event.payload, Payload::Json(_)));
        }
    }

    #[test]
    fn any_message_is_an_event_or_an_error(
        subject in "[a-z.]{1,20}",
        name in select(vec!["id", "ce-id", "ce-time", "content-type", POSITION_HEADER, KIND_HEADER]),
        value in "[ -~]{0,30}",
        body in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let _ = Event::read(&message(&subject, &[(name, &value)], &body));
    }
}
