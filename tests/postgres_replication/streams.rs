//! The stream, what cannot be streamed, and the ends of a stream.

use postgres_types::PgLsn;
use tokio_postgres::Client;
use walrelay::local::{LocalPostgres, Mode};
use walrelay::pipeline::copy_both::StatusUpdate;
use walrelay::postgres::copy_both::{CopyBoth, Frame};
use walrelay::postgres::error::ReplicationError;

use crate::database::{LIMIT, conninfo, server, session};

/// 0/0: from where the slot is.
const FROM_SLOT: u64 = 0;

/// A table, its publication and slot, all named `name`.
async fn outbox(sql: &Client, name: &str) {
    sql.batch_execute(&format!(
        "CREATE TABLE {name} (id int8 PRIMARY KEY, body text);
         CREATE PUBLICATION {name} FOR TABLE {name} WITH (publish = 'insert')"
    ))
    .await
    .unwrap();
    sql.query_one(
        "SELECT pg_create_logical_replication_slot($1::text, 'pgoutput')",
        &[&name],
    )
    .await
    .unwrap();
}

async fn stream(
    server: &LocalPostgres,
    name: &str,
    frame_bytes_max: usize,
) -> Result<CopyBoth, ReplicationError> {
    let session = session(&conninfo(server, "postgres", None)).await?;
    session
        .start_replication(
            name,
            PgLsn::from(FROM_SLOT),
            &[name],
            false,
            frame_bytes_max,
        )
        .await
}

#[tokio::test]
async fn a_publication_younger_than_the_row_is_told() {
    let server = server(None).await;
    let sql = server.connect("postgres").await.unwrap();
    sql.batch_execute("CREATE TABLE young (id int8)")
        .await
        .unwrap();
    sql.query_one(
        "SELECT pg_create_logical_replication_slot('young', 'pgoutput')",
        &[],
    )
    .await
    .unwrap();
    sql.batch_execute("INSERT INTO young VALUES (1)")
        .await
        .unwrap();
    sql.batch_execute("CREATE PUBLICATION young FOR TABLE young")
        .await
        .unwrap();
    sql.batch_execute("INSERT INTO young VALUES (2)")
        .await
        .unwrap();

    let mut copy = stream(&server, "young", 1 << 20).await.unwrap();
    let told = async {
        loop {
            while let Some(frame) = copy.next_frame().unwrap() {
                if let Frame::Notice(notice) | Frame::Error(notice) = frame {
                    return notice.code;
                }
            }
            copy.fill().await.unwrap();
        }
    };
    // A warning from Postgres 18 on, before that an error.
    let code = tokio::time::timeout(LIMIT, told).await.unwrap();
    assert!(["55000", "42704"].contains(&code.as_str()), "{code}");
}

/// What a stream delivered.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// pgoutput's message type and the payload after the XLogData header.
    Change(char, Vec<u8>),
    Keepalive {
        reply_requested: bool,
    },
    Oversized {
        total_len: usize,
        gathered: Vec<u8>,
    },
    CommandComplete,
    Error(String),
}

/// The next event, gathering the chunks of an oversized frame.
async fn next(copy: &mut CopyBoth) -> Result<Event, ReplicationError> {
    let mut oversized: Option<(usize, Vec<u8>)> = None;
    loop {
        while let Some(frame) = copy.next_frame()? {
            match frame {
                Frame::CopyData(payload) if payload[0] == b'k' => {
                    return Ok(Event::Keepalive {
                        reply_requested: payload[17] == 1,
                    });
                }
                Frame::CopyData(payload) => {
                    return Ok(Event::Change(payload[25].into(), payload[25..].to_vec()));
                }
                Frame::Oversized { total_len } => oversized = Some((total_len, Vec::new())),
                Frame::Chunk(piece) => {
                    let (total_len, gathered) =
                        oversized.as_mut().expect("a chunk follows its beginning");
                    gathered.extend_from_slice(piece);
                    if gathered.len() == *total_len {
                        let (total_len, gathered) = oversized.take().unwrap();
                        return Ok(Event::Oversized {
                            total_len,
                            gathered,
                        });
                    }
                }
                Frame::CommandComplete => return Ok(Event::CommandComplete),
                Frame::Error(error) => return Ok(Event::Error(error.code)),
                Frame::CopyDone | Frame::Notice(_) => {}
            }
        }
        copy.fill().await?;
    }
}

/// Changes up to and including the next Commit, and that Commit's end_lsn.
async fn transaction(copy: &mut CopyBoth) -> (Vec<(char, Vec<u8>)>, PgLsn) {
    let mut changes = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, next(copy))
            .await
            .unwrap()
            .unwrap()
        {
            Event::Change(kind, payload) => {
                let end_lsn =
                    (kind == 'C').then(|| u64::from_be_bytes(payload[10..18].try_into().unwrap()));
                changes.push((kind, payload));
                if let Some(end_lsn) = end_lsn {
                    return (changes, end_lsn.into());
                }
            }
            Event::Keepalive { .. } => {}
            other => panic!("the stream ended: {other:?}"),
        }
    }
}

fn status(received: PgLsn, confirmed: PgLsn) -> StatusUpdate {
    StatusUpdate {
        write_lsn: received,
        flush_lsn: confirmed,
        apply_lsn: confirmed,
        reply_requested: false,
    }
}

#[tokio::test]
async fn streams_rows_and_moves_the_slot() {
    let server = server(None).await;
    let sql = server.connect("postgres").await.unwrap();
    outbox(&sql, "events").await;
    sql.execute(
        "INSERT INTO events SELECT i, 'before' FROM generate_series(1, 3) i",
        &[],
    )
    .await
    .unwrap();

    let mut copy = stream(&server, "events", 1 << 20).await.unwrap();
    let (changes, end_lsn) = transaction(&mut copy).await;
    let kinds: String = changes.iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, "BRIIIC");
    let state = "SELECT sync_state FROM pg_stat_replication WHERE pid = $1";
    let state = sql.query_one(state, &[&copy.backend_pid()]).await.unwrap();
    assert_eq!(state.get::<_, String>(0), "async");

    let active = stream(&server, "events", 1 << 20).await.unwrap_err();
    assert!(active.is_transient());
    assert!(
        matches!(active, ReplicationError::SlotActive { pid: Some(pid), .. } if pid == copy.backend_pid())
    );

    copy.queue_status(status(end_lsn, end_lsn), 0);
    assert!(copy.try_write().unwrap());
    let moved = async { while confirmed(&sql, "events").await != end_lsn {} };
    tokio::time::timeout(LIMIT, moved).await.unwrap();

    sql.execute("INSERT INTO events VALUES (4, 'after')", &[])
        .await
        .unwrap();
    let (_, last_end_lsn) = transaction(&mut copy).await;
    copy.queue_status(status(last_end_lsn, last_end_lsn), 0);
    copy.finish(LIMIT).await.unwrap();
    assert_eq!(confirmed(&sql, "events").await, last_end_lsn);

    // The slot is free, and nothing comes twice.
    sql.execute("INSERT INTO events VALUES (5, 'again')", &[])
        .await
        .unwrap();
    let mut copy = stream(&server, "events", 1 << 20).await.unwrap();
    let (changes, _) = transaction(&mut copy).await;
    assert!(changes[2].1.ends_with(b"again"));
}

async fn confirmed(sql: &Client, slot: &str) -> PgLsn {
    let query = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1::text";
    sql.query_one(query, &[&slot]).await.unwrap().get(0)
}

#[tokio::test]
async fn refuses_what_cannot_be_streamed() {
    let server = server(None).await;
    let sql = server.connect("postgres").await.unwrap();
    let missing = stream(&server, "nothing", 1 << 20).await.unwrap_err();
    assert!(missing.server().unwrap().code == "42704" && !missing.is_transient());

    sql.execute(
        "SELECT pg_create_physical_replication_slot('physical')",
        &[],
    )
    .await
    .unwrap();
    let physical = stream(&server, "physical", 1 << 20).await.unwrap_err();
    assert!(physical.server().unwrap().code == "55000" && !physical.is_transient());
    assert!(matches!(physical, ReplicationError::Server(_)));

    outbox(&sql, "lost").await;
    sql.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", &[])
        .await
        .unwrap();
    sql.execute("SELECT pg_reload_conf()", &[]).await.unwrap();
    loop {
        sql.batch_execute("SELECT pg_switch_wal(); CREATE TABLE IF NOT EXISTS filler (i int); INSERT INTO filler VALUES (1); CHECKPOINT")
            .await
            .unwrap();
        let query = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'lost'";
        if sql.query_one(query, &[]).await.unwrap().get::<_, &str>(0) == "lost" {
            break;
        }
    }
    let lost = stream(&server, "lost", 1 << 20).await.unwrap_err();
    assert!(
        matches!(&lost, ReplicationError::SlotLost { slot, .. } if slot == "lost")
            && !lost.is_transient()
    );
}

#[tokio::test]
async fn a_large_row_comes_in_chunks_and_the_next_row_whole() {
    let server = server(None).await;
    let sql = server.connect("postgres").await.unwrap();
    outbox(&sql, "large").await;
    sql.batch_execute("BEGIN; INSERT INTO large VALUES (1, repeat('x', 5000000)); INSERT INTO large VALUES (2, 'small'); COMMIT")
        .await
        .unwrap();
    let mut copy = stream(&server, "large", 100_000).await.unwrap();
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Change('C', _))) {
        events.push(
            tokio::time::timeout(LIMIT, next(&mut copy))
                .await
                .unwrap()
                .unwrap(),
        );
    }
    let large = events.iter().find_map(|event| match event {
        Event::Oversized {
            total_len,
            gathered,
        } => Some((*total_len, gathered)),
        _ => None,
    });
    let (total_len, gathered) = large.unwrap();
    assert!(total_len > 5_000_000 && gathered.ends_with(b"xxxx") && gathered[0] == b'w');
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Change('I', row) if row.ends_with(b"small")))
    );
}

#[tokio::test]
async fn a_stopping_server_ends_the_stream_in_a_typed_way() {
    let mut server = server(None).await;
    let sql = server.connect("postgres").await.unwrap();
    outbox(&sql, "stopping").await;
    sql.execute("INSERT INTO stopping VALUES (1, 'one')", &[])
        .await
        .unwrap();
    let before = confirmed(&sql, "stopping").await;
    let mut copy = stream(&server, "stopping", 1 << 20).await.unwrap();
    let (_, end_lsn) = transaction(&mut copy).await;
    drop(sql);

    // Unconfirmed work, held back: write = received, flush = 0.
    let held_back = async {
        copy.queue_status(status(end_lsn, FROM_SLOT.into()), 0);
        loop {
            match next(&mut copy).await {
                Ok(Event::Keepalive {
                    reply_requested: true,
                }) => {
                    copy.queue_status(status(PgLsn::from(u64::MAX >> 1), FROM_SLOT.into()), 0);
                }
                Ok(Event::CommandComplete) => return None,
                Ok(Event::Error(code)) => return Some(code),
                Ok(_) => {}
                Err(error) => panic!("the stream broke without a word: {error}"),
            }
        }
    };
    let (end, stopped) = tokio::join!(
        tokio::time::timeout(LIMIT, held_back),
        server.stop_within(Mode::Fast, LIMIT)
    );
    assert_eq!(end.unwrap(), None, "CommandComplete ends it");
    stopped.unwrap();
    assert!(copy.fill().await.is_err());

    server.start_again().await.unwrap();
    let sql = server.connect("postgres").await.unwrap();
    assert_eq!(confirmed(&sql, "stopping").await, before);
    let mut copy = stream(&server, "stopping", 1 << 20).await.unwrap();
    let (changes, _) = transaction(&mut copy).await;
    assert!(changes[2].1.ends_with(b"one"));

    // An administrator's termination is an error that passes.
    sql.execute("SELECT pg_terminate_backend($1)", &[&copy.backend_pid()])
        .await
        .unwrap();
    let end = loop {
        match tokio::time::timeout(LIMIT, next(&mut copy))
            .await
            .unwrap()
            .unwrap()
        {
            Event::Keepalive { .. } => {}
            other => break other,
        }
    };
    assert_eq!(end, Event::Error("57P01".to_owned()));
}
