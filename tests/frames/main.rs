//! The decoders against what real servers sent: CopyData frames of one script, captured from Postgres 14 to 18.
//!
//! `postgres-NN.bin` holds the frames as they were on the wire (`d`, length, payload), captured with the dozen lines
//! of protocol in `record.rs`, so that nothing of what is tested has a hand in it. To capture anew:
//! `scripts/servers.sh --all-postgres && cargo test --test frames -- --ignored`.

mod corpora;
mod record;

use std::error::Error;

use postgres_types::PgLsn;
use walrelay::pipeline::copy_both::{self, ReplicationMessage};
use walrelay::pipeline::pgoutput::{self, Column, Message};

const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];
/// 2026-01-01 and 2100-01-01 in µs since 2000-01-01.
const PLAUSIBLE_US: std::ops::Range<i64> = 820_454_400_000_000..3_155_760_000_000_000;

/// The script of `record.rs` as each server must tell it, LSNs and OIDs aside.
const EXPECTED: &[&str] = &[
    "Begin",
    // An enum's Type precedes the Relation that uses it.
    "Y",
    "Relation public.outbox_events id:2950 aggregate_id:2950 event_type:25 event_version:21 occurred_at:1184 payload_json:3802 mood:enum note:25",
    "Insert 00000000-0000-0000-0000-000000000001|00000000-0000-0000-0000-00000000000a|lesson.published.v1|1|2026-11-23 04:40:52.84613+00|{\"a\": \"ä\\n\", \"b\": [1, null]}|happy|NULL",
    "Commit",
    "Begin",
    "Insert 00000000-0000-0000-0000-000000000002|00000000-0000-0000-0000-00000000000a|lesson.published.v1|2|1999-12-31 23:59:59.999999+00|{}|NULL|",
    "Insert 00000000-0000-0000-0000-000000000003|00000000-0000-0000-0000-00000000000a|lesson.published.v1|-1|infinity|\"text\"|sad|'\"\\",
    "Commit",
    "Begin",
    "M",
    "Relation public.other id:23 note:25",
    "Insert 1|one",
    "U",
    "D",
    // TRUNCATE gives the table a new file, so it is described anew.
    "Relation public.other id:23 note:25",
    "T",
    "Commit",
    "M",
    "(empty)",
    "Begin",
    "O",
    "Y",
    "Relation public.outbox_events id:2950 aggregate_id:2950 event_type:25 event_version:21 occurred_at:1184 payload_json:3802 mood:enum tenant:20",
    "Insert 00000000-0000-0000-0000-000000000004|00000000-0000-0000-0000-00000000000a|lesson.published.v1|1|2026-11-23 04:40:52.84613+00|4|NULL|9223372036854775807",
    "Commit",
    "Keepalive",
];

/// The transaction that is only DDL comes as an empty one up to version 14, and not at all from 15 on.
fn expected(major: u32) -> Vec<&'static str> {
    EXPECTED
        .iter()
        .flat_map(|line| match *line {
            "(empty)" if major == 14 => vec!["Begin", "Commit"],
            "(empty)" => vec![],
            line => vec![line],
        })
        .collect()
}

fn capture(major: u32) -> Vec<u8> {
    let file = record::file(major);
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The payloads of the whole frames of a capture.
fn payloads(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut payloads = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let [tag, length @ ..] = *head;
        let len = u32::from_be_bytes(length) as usize - 4;
        if tag != b'd' || rest.len() < len {
            break;
        }
        let (payload, next) = rest.split_at(len);
        payloads.push(payload);
        bytes = next;
    }
    payloads
}

/// The LSNs of a capture that have to agree with each other: of the open transaction, and the last one's end.
#[derive(Default)]
struct Marks {
    begun: Option<PgLsn>,
    ended: u64,
}

/// One line for a payload; a column is its text, however it came.
fn told(payload: &[u8], marks: &mut Marks) -> Result<String, Box<dyn Error>> {
    let data = match copy_both::decode(payload)? {
        ReplicationMessage::Keepalive { wal_end, .. } => {
            assert!(u64::from(wal_end) >= marks.ended);
            return Ok("Keepalive".to_owned());
        }
        ReplicationMessage::XLogData {
            sent_at_us, data, ..
        } => {
            assert!(PLAUSIBLE_US.contains(&sent_at_us));
            data
        }
    };
    Ok(match pgoutput::decode(data)? {
        Message::Begin {
            commit_lsn,
            committed_at_us,
            xid,
        } => {
            assert!(PLAUSIBLE_US.contains(&committed_at_us) && xid >= 700);
            assert!(u64::from(commit_lsn) > marks.ended && marks.begun.is_none());
            marks.begun = Some(commit_lsn);
            "Begin".to_owned()
        }
        Message::Commit {
            commit_lsn,
            end_lsn,
        } => {
            assert_eq!(marks.begun.take(), Some(commit_lsn));
            assert!(end_lsn > commit_lsn);
            marks.ended = end_lsn.into();
            "Commit".to_owned()
        }
        Message::Relation(relation) => {
            let columns: Vec<String> = relation
                .columns
                .iter()
                .map(|column| match column.type_oid {
                    // An enum's OID is the first one that a user's object may have, or a later one.
                    16_384.. => format!("{}:enum", text(&column.name)),
                    oid => format!("{}:{oid}", text(&column.name)),
                })
                .collect();
            format!(
                "Relation {}.{} {}",
                text(&relation.schema),
                text(&relation.name),
                columns.join(" ")
            )
        }
        Message::Insert { row, .. } => {
            let mut columns = Vec::new();
            row.for_each(|_, column| {
                columns.push(match column {
                    Column::Null => "NULL".to_owned(),
                    Column::Text(text) => String::from_utf8(text.to_vec()).expect("UTF-8"),
                    other => format!("{other:?}"),
                });
            })?;
            format!("Insert {}", columns.join("|"))
        }
        Message::Logical(_) => "M".to_owned(),
        Message::Other(tag) => char::from(tag).to_string(),
    })
}

#[test]
fn every_version_tells_the_same_story() {
    for major in MAJORS {
        let capture = capture(major);
        let mut marks = Marks::default();
        let story: Vec<String> = payloads(&capture)
            .into_iter()
            .map(|payload| told(payload, &mut marks).expect("a real server's message"))
            .collect();
        assert_eq!(story, expected(major), "Postgres {major}");
    }
}

#[test]
fn a_capture_that_ends_early_has_fewer_messages() {
    for major in MAJORS {
        let capture = capture(major);
        let whole = payloads(&capture);
        for end in 0..capture.len() {
            let some = payloads(&capture[..end]);
            assert!(some.len() < whole.len());
            assert_eq!(some[..], whole[..some.len()]);
        }
    }
}

#[test]
fn a_message_truncated_at_any_byte_is_a_typed_error() {
    for major in MAJORS {
        for payload in payloads(&capture(major)) {
            let opaque = matches!(
                copy_both::decode(payload),
                Ok(ReplicationMessage::XLogData { data, .. }) if matches!(pgoutput::decode(data), Ok(Message::Other(_) | Message::Logical { .. }))
            );
            for end in 0..payload.len() {
                let decoded = decode_all(&payload[..end]);
                // What is not used is not looked into.
                assert!(
                    decoded.is_err() || opaque,
                    "Postgres {major}: {end} bytes of {payload:?}"
                );
            }
            assert!(decode_all(payload).is_ok());
        }
    }
}

#[test]
fn a_wrong_byte_anywhere_is_no_panic() {
    for major in MAJORS {
        for payload in payloads(&capture(major)) {
            let mut spoilt = payload.to_vec();
            for at in 0..payload.len() {
                for wrong in [0, 1, 0x7f, 0x80, 0xff, !payload[at]] {
                    spoilt[at] = wrong;
                    let _ = decode_all(&spoilt);
                }
                spoilt[at] = payload[at];
            }
        }
    }
}

/// Decodes down to the last column, and believes anything.
fn decode_all(payload: &[u8]) -> Result<(), Box<dyn Error>> {
    let ReplicationMessage::XLogData { data, .. } = copy_both::decode(payload)? else {
        return Ok(());
    };
    match pgoutput::decode(data)? {
        Message::Insert { row, .. } => Ok(row.for_each(|_, _| ())?),
        _ => Ok(()),
    }
}

fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).expect("of a UTF-8 database")
}
