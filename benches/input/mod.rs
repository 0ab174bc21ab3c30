//! A fixed piece of WAL, and an engine to take it: transactions of single-row inserts as pgoutput sends them.
//!
//! In: how many transactions, and rows in each. Out: CopyData payloads, byte for byte the same in every run.
// Each bench takes a part of it.
#![allow(dead_code)]

use std::time::Duration;

use bytes::BytesMut;
use walrelay::pipeline::continuity::Plan;
use walrelay::pipeline::encoding::Encoding;
use walrelay::pipeline::engine::{Engine, EngineSettings, EpochSettings};
use walrelay::pipeline::epochs::Refused;
use walrelay::pipeline::fields::Fields;
use walrelay::pipeline::limit::SizeLimit;
use walrelay::pipeline::mapping::{Format, HeaderValues, Mapping, MessageSettings, Value};
use walrelay::pipeline::position::Lane;
use walrelay::pipeline::progress::HeldMarks;
use walrelay::pipeline::publish::{Mode, WindowLimits, WindowSettings};
use walrelay::pipeline::source::{Outbox, Source};
use walrelay::pipeline::tables::Tables;

/// OID of the outbox table.
pub const OID: u32 = 16_384;
/// A table: its columns, with the OIDs of their types, the values of a row by the event's number, and its mapping.
#[derive(Clone, Copy)]
pub struct Layout {
    columns: &'static [(&'static str, u32)],
    values: fn(String) -> Vec<String>,
    mapping: fn() -> Mapping,
}

/// walrelay's own.
pub const DEFAULT: Layout = Layout {
    columns: &[
        ("id", 2950),
        ("aggregate_id", 2950),
        ("event_type", 25),
        ("event_version", 21),
        ("occurred_at", 1184),
        ("payload_json", 3802),
    ],
    values: |id| {
        let rest = [
            AGGREGATE,
            "lesson.published.v1",
            "1",
            "2026-11-23 04:40:52.84613+00",
            PAYLOAD,
        ];
        [id].into_iter().chain(rest.map(str::to_owned)).collect()
    },
    mapping: Mapping::default,
};

/// Debezium's, as `preset = "debezium"` has it.
pub const DEBEZIUM: Layout = Layout {
    columns: &[
        ("id", 2950),
        ("aggregatetype", 1043),
        ("aggregateid", 1043),
        ("type", 1043),
        ("payload", 3802),
    ],
    values: |id| {
        let rest = ["lesson", AGGREGATE, "lesson.published.v1", PAYLOAD];
        [id].into_iter().chain(rest.map(str::to_owned)).collect()
    },
    mapping: || {
        let column = |name: &str| Value::Column(name.to_owned());
        let columns = Fields {
            id: column("id"),
            aggregate_id: column("aggregateid"),
            event_type: column("type"),
            event_version: Value::Absent,
            occurred_at: Value::Absent,
            payload: column("payload"),
        };
        let subject = "outbox.event.{aggregatetype}".parse().expect("a template");
        let message = MessageSettings {
            format: Format::Payload,
            tombstones: true,
            header_values: HeaderValues::Json,
            ..MessageSettings::default()
        };
        Mapping::new(columns, subject, message)
    },
};

const AGGREGATE: &str = "0192f7a0-0000-7000-8000-000000000001";
/// About 370 bytes once it stands in its envelope.
const PAYLOAD: &str = r#"{"title": "The water cycle", "lesson_id": "0192f7a0-0000-7000-8000-000000000001", "teacher_id": "0192f7a0-0000-7000-8000-000000000002", "number": 42}"#;

/// A Relation message in XLogData.
pub fn relation(layout: Layout) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(OID.to_be_bytes());
    out.extend(b"public\0outbox_events\0d");
    out.extend((layout.columns.len() as i16).to_be_bytes());
    for (name, type_oid) in layout.columns {
        out.push(0);
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(type_oid.to_be_bytes());
        out.extend((-1_i32).to_be_bytes());
    }
    xlog_data(&out)
}

/// An Insert message in XLogData.
pub fn insert(layout: Layout, number: u64) -> Vec<u8> {
    let values = (layout.values)(format!("0192f7a0-0000-7000-9000-{number:012x}"));
    let mut out = vec![b'I'];
    out.extend(OID.to_be_bytes());
    out.push(b'N');
    out.extend((values.len() as i16).to_be_bytes());
    for value in values {
        out.push(b't');
        out.extend((value.len() as i32).to_be_bytes());
        out.extend(value.as_bytes());
    }
    xlog_data(&out)
}

/// A Begin message in XLogData.
pub fn begin(commit_lsn: u64) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(commit_lsn.to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    out.extend(7_u32.to_be_bytes());
    xlog_data(&out)
}

/// A Commit message in XLogData.
pub fn commit(commit_lsn: u64) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit_lsn.to_be_bytes());
    out.extend((commit_lsn + 8).to_be_bytes());
    out.extend(0_i64.to_be_bytes());
    xlog_data(&out)
}

fn xlog_data(data: &[u8]) -> Vec<u8> {
    let mut out = vec![b'w'];
    out.extend([0; 24]);
    out.extend(data);
    out
}

/// The outbox table as the relay is configured for it.
pub fn source(layout: Layout) -> Source {
    Source {
        outboxes: vec![Outbox {
            tables: Tables::new("public".into(), "outbox_events".into(), OID, 0.into()),
            mapping: (layout.mapping)(),
        }],
        domains: Vec::new(),
        encoding: Encoding::Utf8,
        messages: None,
    }
}

fn limits() -> WindowLimits {
    WindowLimits {
        inbox: "_INBOX.abcdefghijklmnopqrstuv".into(),
        epoch_token: "abcdefghijklmnopqrstuv".into(),
        messages_max: 100_000,
        one_by_one: 0,
        batch_messages_max: None,
        bytes_max: 1 << 30,
        message_limit: SizeLimit::smaller(1 << 20, None),
        ack_timeout: Duration::from_secs(5),
    }
}

/// A window on a stream of the lane's own, large enough never to be full here.
pub fn window(mode: Mode) -> WindowSettings {
    WindowSettings {
        mode,
        stream: "OUTBOX".into(),
        slot: "walrelay".into(),
        fence_subject: String::new(),
        tables: Vec::new(),
        limits: limits(),
    }
}

/// An engine at the beginning of a lane, fed with transactions and answered as nats-server answers.
pub struct Lane1 {
    engine: Engine,
    out: BytesMut,
    batch: u64,
    sequence: u64,
    answer: String,
    token: String,
    commit_lsn: u64,
}

impl Lane1 {
    /// Describes the table to a new engine.
    pub fn new(layout: Layout) -> Self {
        let settings = EngineSettings {
            lane: Lane {
                system_identifier: 1,
                database: "app".into(),
                slot: "walrelay".into(),
            },
            history: walrelay::pipeline::history::History::first(),
            created: "2026-11-23T04:40:52Z".into(),
            num_replicas: 1,
            number: 1,
            record: None,
            mode: Mode::FastIngest,
            stream: "OUTBOX".into(),
            confirmed_flush_lsn: 1_u64.into(),
            epoch: EpochSettings {
                publications: Vec::new(),
                source: source(layout),
                carrier: None,
                catalog_lsn: 0.into(),
                limits: limits(),
                hold_back: Duration::from_secs(180),
                held_bytes_max: 1 << 30,
                on_timeline: None,
                status_interval: Duration::from_secs(10),
                halt_on_reject: false,
                refused: Refused::new(),
                share: None,
                limit_raised_for: None,
            },
            server_id: None,
            held: HeldMarks::default(),
        };
        let plan = Plan {
            start_lsn: 1_u64.into(),
            lane_end: None,
            overlap: None,
            last_sequence: 0,
            replay_from: None,
            loss: None,
            foreign_messages: 0,
        };
        let mut lane = Lane1 {
            engine: Engine::new(settings, &plan, Duration::ZERO),
            out: BytesMut::with_capacity(1 << 20),
            batch: 0,
            sequence: 0,
            answer: String::with_capacity(256),
            token: String::with_capacity(256),
            commit_lsn: 1_000,
        };
        lane.take(&relation(layout));
        lane
    }

    fn take(&mut self, payload: &[u8]) {
        self.engine
            .handle_payload(payload, &mut self.out, Duration::from_millis(1))
            .expect("well formed");
    }

    /// One turn: so many transactions of so many of the given rows, then the batch's end and its acknowledgement.
    /// Returns the bytes of frames that were written.
    pub fn turn(&mut self, transactions: u64, rows: &[Vec<u8>]) -> usize {
        use std::fmt::Write as _;
        // Begin and Commit are patched in place: making them is no part of what is measured.
        let (mut begin, mut commit) = (begin(0), commit(0));
        for _ in 0..transactions {
            self.commit_lsn += 1_000;
            begin[26..34].copy_from_slice(&self.commit_lsn.to_be_bytes());
            commit[27..35].copy_from_slice(&self.commit_lsn.to_be_bytes());
            commit[35..43].copy_from_slice(&(self.commit_lsn + 8).to_be_bytes());
            self.take(&begin);
            for row in rows {
                self.take(row);
            }
            self.take(&commit);
        }
        self.engine.end_turn(&mut self.out, true);
        let written = self.out.len();
        self.out.clear();
        let count = transactions * rows.len() as u64;
        self.batch += 1;
        self.sequence += count;
        self.token.clear();
        self.answer.clear();
        let (batch, sequence) = (self.batch, self.sequence);
        write!(
            self.token,
            "abcdefghijklmnopqrstuv-{batch}.200.fail.{count}.2.$FI"
        )
        .expect("to a String");
        write!(
            self.answer,
            r#"{{"stream":"OUTBOX","seq":{sequence},"batch":"abcdefghijklmnopqrstuv-{batch}","count":{count}}}"#
        )
        .expect("to a String");
        self.engine
            .handle_answer(
                self.token.as_bytes(),
                None,
                self.answer.as_bytes(),
                Duration::from_millis(2),
            )
            .expect("the expected acknowledgement");
        written
    }
}
