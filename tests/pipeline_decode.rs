//! The decoder: any bytes, every truncation, and rows that an encoder of the test's own has written.

#[path = "simulation/wire.rs"]
#[allow(dead_code)]
mod wire;

use proptest::prelude::*;
use walrelay::pipeline::DecodeError;
use walrelay::pipeline::copy_both::{self, ReplicationMessage};
use walrelay::pipeline::encoding::Encoding;
use walrelay::pipeline::mapping::{Mapping, default_columns};
use walrelay::pipeline::oversized::ColumnFilter;
use walrelay::pipeline::pgoutput::{self, Column, Message};
use walrelay::pipeline::relations::Relations;
use walrelay::pipeline::source::{Outbox, Source};
use walrelay::pipeline::tables::Tables;

/// Everything that reads a payload.
fn read(payload: &[u8]) -> Result<(), DecodeError> {
    match copy_both::decode(payload)? {
        ReplicationMessage::XLogData { data, .. } => match pgoutput::decode(data)? {
            Message::Insert { row, .. } => row.for_each(|_, _| {}),
            _ => Ok(()),
        },
        ReplicationMessage::Keepalive { .. } => Ok(()),
    }
}

fn source() -> Source {
    Source {
        outboxes: vec![Outbox {
            tables: Tables::new("public".into(), "outbox_events".into(), 0, 0.into()),
            mapping: Mapping::default(),
        }],
        domains: Vec::new(),
        encoding: Encoding::Utf8,
        messages: None,
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z_]{1,12}"
}

fn value() -> impl Strategy<Value = wire::Value> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..40))
}

/// A payload of each kind.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let table = (
        any::<u32>(),
        name(),
        name(),
        prop::collection::vec((name(), any::<u32>()), 0..8),
    );
    prop_oneof![
        (any::<u64>(), any::<u32>()).prop_map(|(lsn, xid)| wire::begin(lsn, xid)),
        (any::<u64>(), any::<u64>()).prop_map(|(lsn, end)| wire::commit(lsn, end)),
        table.prop_map(|(oid, schema, name, columns)| wire::relation(&wire::Table {
            oid,
            schema,
            name,
            columns
        })),
        (any::<u32>(), prop::collection::vec(value(), 0..8))
            .prop_map(|(oid, row)| wire::insert(oid, &row)),
    ]
    .prop_flat_map(|data| {
        prop_oneof![
            Just(wire::xlog_data(0, &data)),
            (any::<u64>(), any::<bool>()).prop_map(|(lsn, reply)| wire::keepalive(lsn, reply)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..4_usize) {
        // Most random bytes end at the first tag: give some a good beginning.
        let head: [&[u8]; 4] = [b"", b"w", b"k", b"wAAAAAAAAAAAAAAAAAAAAAAAA"];
        bytes.splice(0..0, head[kind].iter().copied());
        if kind == 3 && bytes.len() > 25 {
            bytes[25] = b"BCRIUDTOYM"[usize::from(bytes[25]) % 10];
        }
        let _ = read(&bytes);
        let mut filter = ColumnFilter::new(10, 100);
        bytes.chunks(7).for_each(|piece| filter.chunk(piece));
        let _ = read(&filter.finish());
    }

    #[test]
    fn every_truncation_is_a_typed_error(payload in payload()) {
        prop_assert_eq!(read(&payload), Ok(()));
        for end in 0..payload.len() {
            let found = read(&payload[..end]);
            prop_assert!(
                matches!(found, Err(DecodeError::Truncated { .. } | DecodeError::Unterminated { .. })),
                "{end} of {} bytes: {found:?}", payload.len()
            );
        }
        let mut longer = payload;
        longer.push(0);
        let found = read(&longer);
        prop_assert!(matches!(found, Err(DecodeError::Trailing { .. })), "{found:?}");
    }

    #[test]
    fn rows_come_back_by_name_in_any_order(
        values in prop::collection::vec(value(), 9),
        order in Just((0..9_usize).collect::<Vec<_>>()).prop_shuffle(),
        oid in any::<u32>(),
    ) {
        let names = ["id", "aggregate_id", "event_type", "event_version", "occurred_at", "payload_json", "x", "y", "z"];
        let columns = order.iter().map(|at| (names[*at].to_owned(), 25)).collect();
        let table = wire::Table { oid, schema: "public".into(), name: "outbox_events".into(), columns };
        let ordered: Vec<wire::Value> = order.iter().map(|at| values[*at].clone()).collect();
        let mut relations = Relations::new(source());
        let relation = wire::relation(&table);
        let Ok(Message::Relation(relation)) = pgoutput::decode(&relation) else {
            panic!("not a relation");
        };
        prop_assert!(relations.describe(relation).is_none());
        let insert = wire::insert(oid, &ordered);
        let Ok(Message::Insert { relation_oid, row }) = pgoutput::decode(&insert) else {
            panic!("not an insert");
        };
        let row = relations.read(relation_oid, &row).expect("a row").expect("of the outbox");
        for ((field, _), value) in default_columns().into_iter().zip(&values) {
            let expected = value.as_deref().map_or(Column::Null, Column::Text);
            prop_assert_eq!(row.get(field), expected);
        }
    }

    #[test]
    fn transaction_marks_come_back(commit_lsn in any::<u64>(), end_lsn in any::<u64>(), xid in any::<u32>()) {
        let (begin, commit) = (wire::begin(commit_lsn, xid), wire::commit(commit_lsn, end_lsn));
        prop_assert_eq!(
            pgoutput::decode(&begin),
            Ok(Message::Begin { commit_lsn: commit_lsn.into(), committed_at_us: 0, xid })
        );
        prop_assert_eq!(
            pgoutput::decode(&commit),
            Ok(Message::Commit { commit_lsn: commit_lsn.into(), end_lsn: end_lsn.into() })
        );
    }

    /// The filter takes out what is too long and leaves everything else, however the frame is cut.
    #[test]
    fn filtered_rows_keep_what_fits(row in prop::collection::vec(value(), 1..8), limit in 0..40_usize, size in 1..50_usize) {
        let payload = wire::xlog_data(0, &wire::insert(7, &row));
        let mut filter = ColumnFilter::new(limit, usize::MAX);
        payload.chunks(size).for_each(|piece| filter.chunk(piece));
        let filtered = filter.finish();
        let Ok(ReplicationMessage::XLogData { data, .. }) = copy_both::decode(&filtered) else {
            panic!("not XLogData");
        };
        let Ok(Message::Insert { row: found, .. }) = pgoutput::decode(data) else {
            panic!("not an insert");
        };
        let mut columns = Vec::new();
        found.for_each(|_, column| columns.push(format!("{column:?}"))).expect("well formed");
        let expected: Vec<String> = row
            .iter()
            .map(|value| match value {
                None => format!("{:?}", Column::Null),
                Some(text) if text.len() > limit => format!("{:?}", Column::Skipped { len: text.len() as u32 }),
                Some(text) => format!("{:?}", Column::Text(text)),
            })
            .collect();
        prop_assert_eq!(columns, expected);
    }
}
