//! Captures the frames: a script, and as little of the protocol as records what a server sends about it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use postgres_protocol::message::frontend;
use tokio_postgres::SimpleQueryMessage;
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};

use crate::MAJORS;

/// What there is before the slot.
const BEFORE: &str = "
CREATE TYPE mood AS ENUM ('happy', 'sad');
CREATE TABLE outbox_events (
    id uuid PRIMARY KEY, aggregate_id uuid NOT NULL, event_type text NOT NULL, event_version smallint NOT NULL DEFAULT 1,
    occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL, mood mood, note text);
CREATE TABLE other (id int PRIMARY KEY, note text);
CREATE PUBLICATION frames FOR TABLE outbox_events, other;
SELECT pg_replication_origin_create('far away')";

/// Each entry is sent by itself; those of several statements are one transaction.
const SCRIPT: &[&str] = &[
    "INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a',
     'lesson.published.v1', 1, '2026-11-23 05:40:52.84613+01', '{\"b\": [1, null], \"a\": \"\\u00e4\\n\"}', 'happy', NULL)",
    "INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-00000000000a',
     'lesson.published.v1', 2, '1999-12-31 23:59:59.999999+00', '{}', NULL, '');
     SAVEPOINT a;
     INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000009', '00000000-0000-0000-0000-00000000000a',
     'savepoint.rolled.back', 1, now(), '{}');
     ROLLBACK TO a;
     INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000003', '00000000-0000-0000-0000-00000000000a',
     'lesson.published.v1', -1, 'infinity', '\"text\"', 'sad', '''\"\\')",
    "INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000009', '00000000-0000-0000-0000-00000000000a',
     'rolled.back', 1, now(), '{}'); ROLLBACK; BEGIN",
    "SELECT pg_logical_emit_message(true, 'walrelay', 'in a transaction');
     INSERT INTO other VALUES (1, 'one');
     UPDATE other SET note = 'two';
     DELETE FROM other;
     TRUNCATE other",
    "SELECT pg_logical_emit_message(false, 'walrelay', 'outside of one')",
    "ALTER TABLE outbox_events DROP COLUMN note, ADD COLUMN tenant int8",
    "INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-000000000004', '00000000-0000-0000-0000-00000000000a',
     'lesson.published.v1', 1, '2026-11-23 05:40:52.84613+01', '4', NULL, 9223372036854775807)",
];

/// Where the capture of a version is.
pub(crate) fn file(major: u32) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/frames");
    PathBuf::from(folder).join(format!("postgres-{major}.bin"))
}

#[tokio::test]
#[ignore = "captures the frames anew, with all versions of Postgres"]
async fn capture_the_frames_of_all_versions() {
    let binaries = ServerBinaries::find().expect("the servers are there");
    for major in MAJORS {
        let binaries = binaries.with_postgres_major(major).expect("this version");
        let server = LocalPostgres::start(&binaries, PostgresOptions::default())
            .await
            .expect("it starts");
        let end = run_script(&server).await;
        let port = server.port();
        let frames = tokio::task::spawn_blocking(move || receive(port, end))
            .await
            .expect("the server sends it all");
        std::fs::write(file(major), frames).expect("the folder is there");
    }
}

/// Runs the script; the end of the WAL behind it.
async fn run_script(server: &LocalPostgres) -> u64 {
    let sql = server.connect("postgres").await.expect("connects");
    sql.batch_execute(BEFORE).await.expect("a new database");
    let slot = "SELECT pg_create_logical_replication_slot('frames', 'pgoutput')";
    sql.simple_query(slot).await.expect("a new slot");
    for (index, entry) in SCRIPT.iter().enumerate() {
        if index + 1 == SCRIPT.len() {
            // As if it had come from another server: an Origin message.
            let origin = "SELECT pg_replication_origin_session_setup('far away')";
            sql.batch_execute(origin).await.expect("an origin");
        }
        let transaction = format!("BEGIN; {entry}; COMMIT");
        sql.batch_execute(&transaction).await.expect("the script");
    }
    let answer = sql.simple_query("SELECT pg_current_wal_lsn()").await;
    let lsn = answer
        .expect("an LSN")
        .iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
    let lsn: postgres_types::PgLsn = lsn.expect("a row").parse().expect("an LSN");
    lsn.into()
}

/// Everything that the slot has up to `end`, and the keepalive behind it. Those in between depend on the machine's
/// speed and are left out.
fn receive(port: u16, end: u64) -> Vec<u8> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let limit = Some(Duration::from_secs(20));
    socket.set_read_timeout(limit).expect("a socket");
    let mut out = BytesMut::new();
    let parameters = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("replication", "database"),
        ("options", "-c timezone=UTC -c datestyle=ISO"),
    ];
    frontend::startup_message(parameters, &mut out).expect("no zero bytes");
    let start = "START_REPLICATION SLOT frames LOGICAL 0/0 (proto_version '1', publication_names 'frames', messages 'true')";
    frontend::query(start, &mut out).expect("no zero bytes");
    socket.write_all(&out).expect("it reads");

    let mut frames = Vec::new();
    loop {
        let mut head = [0; 5];
        socket.read_exact(&mut head).expect("it goes on");
        let [tag, length @ ..] = head;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut body).expect("it goes on");
        assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(&body));
        let is_keepalive = tag == b'd' && body[0] == b'k';
        let wal_end = u64::from_be_bytes(
            body.get(1..9)
                .map_or([0; 8], |lsn| lsn.try_into().expect("eight bytes")),
        );
        if tag != b'd' || (is_keepalive && wal_end < end) {
            continue;
        }
        frames.extend_from_slice(&head);
        frames.extend_from_slice(&body);
        if is_keepalive {
            return frames;
        }
        // Asks for a keepalive behind what has come.
        let mut status = BytesMut::new();
        status.put_u8(b'd');
        status.put_i32(4 + 34);
        status.put_u8(b'r');
        status.put_bytes(0, 32);
        status.put_u8(1);
        socket.write_all(&status).expect("it reads");
    }
}
