//! An epoch's settings and pieces of WAL, for unit tests.

use super::{EngineSettings, EpochSettings};
use crate::pipeline::continuity::Plan;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::epochs::Refused;
use crate::pipeline::history::History;
use crate::pipeline::lane_end::LaneEnd;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::position::Lane;
use crate::pipeline::progress::HeldMarks;
use crate::pipeline::publish::{Mode, WindowLimits};
use crate::pipeline::source::{Outbox, Source};
use crate::pipeline::tables::Tables;
use std::time::Duration;

pub(crate) const CREATED: &str = "then";
const OID: u32 = 16_384;
pub(crate) const MS: Duration = Duration::from_millis(1);

pub(crate) fn lane() -> Lane {
    Lane {
        system_identifier: 7,
        database: "app".into(),
        slot: "s".into(),
    }
}

pub(crate) fn limits(message_limit: usize) -> WindowLimits {
    WindowLimits {
        inbox: "_INBOX.a".into(),
        epoch_token: "a".into(),
        messages_max: 100,
        one_by_one: 0,
        batch_messages_max: None,
        bytes_max: 1 << 20,
        message_limit: SizeLimit::smaller(message_limit, None),
        ack_timeout: 5_000 * MS,
    }
}

pub(crate) fn plan(lane_end: Option<LaneEnd>, last_sequence: u64) -> Plan {
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

pub(crate) fn settings() -> EngineSettings {
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
                outboxes: vec![Outbox {
                    tables: Tables::new("public".into(), "outbox_events".into(), OID, 0.into()),
                    mapping: Mapping::default(),
                }],
                domains: Vec::new(),
                encoding: Encoding::Utf8,
                messages: None,
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
            share: None,
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

/// The outbox table as pgoutput describes it, in XLogData.
pub(crate) fn relation() -> Vec<u8> {
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

pub(crate) fn id(ordinal: u64) -> String {
    format!("0192f7a0-0000-7000-9000-{ordinal:012x}")
}

/// A row of the outbox in XLogData; one without a type cannot be published.
pub(crate) fn insert(ordinal: u64, event_type: Option<&str>) -> Vec<u8> {
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

/// The begin of a transaction that commits at `commit_lsn`.
pub(crate) fn begin(commit_lsn: u64) -> Vec<u8> {
    let times = [commit_lsn.to_be_bytes(), [0; 8]].concat();
    xlog_data(b'B', &[&times, &7_u32.to_be_bytes()])
}

/// Its end.
pub(crate) fn commit(commit_lsn: u64) -> Vec<u8> {
    let lsns = [commit_lsn.to_be_bytes(), (commit_lsn + 8).to_be_bytes()].concat();
    xlog_data(b'C', &[&[0], &lsns, &[0; 8]])
}

/// A logical message in a transaction.
pub(crate) fn message(prefix: &str, content: &str) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("short").to_be_bytes();
    let prefix = [prefix.as_bytes(), b"\0"].concat();
    xlog_data(b'M', &[&[1], &[0; 8], &prefix, &length, content.as_bytes()])
}
