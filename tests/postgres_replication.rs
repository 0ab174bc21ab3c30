//! The replication client against a real Postgres: authentication, refusals, the stream and its ends.

use std::time::Duration;

use postgres_types::PgLsn;
use tokio_postgres::Client;
use walrelay::environment::Environment;
use walrelay::local::{LocalPostgres, Mode, PostgresOptions, ServerBinaries};
use walrelay::pipeline::copy_both::StatusUpdate;
use walrelay::postgres::client;
use walrelay::postgres::conninfo::{Conninfo, Host, HostPort, TargetSessionAttrs};
use walrelay::postgres::copy_both::{CopyBoth, Frame};
use walrelay::postgres::error::{AuthenticationError, ReplicationError};
use walrelay::postgres::replication::Session;
use walrelay::postgres::startup::{SessionSettings, connect};
use walrelay::secret::Secret;

/// Long enough for a loaded machine; nothing waits for it to pass.
const LIMIT: Duration = Duration::from_secs(60);
/// 0/0: from where the slot is.
const FROM_SLOT: u64 = 0;

async fn server(hba: Option<&str>) -> LocalPostgres {
    let options = PostgresOptions {
        hba: hba.map(str::to_owned),
        fsync: false,
        ..Default::default()
    };
    LocalPostgres::start(&ServerBinaries::find().unwrap(), options)
        .await
        .unwrap()
}

fn tcp(port: u16) -> HostPort {
    HostPort {
        host: Host::Tcp("127.0.0.1".to_owned()),
        hostaddr: None,
        port,
    }
}

fn conninfo(server: &LocalPostgres, user: &str, password: Option<&str>) -> Conninfo {
    let text = format!(
        "host=127.0.0.1 port={} user={user} dbname=postgres connect_timeout={}",
        server.port(),
        LIMIT.as_secs()
    );
    let password = password.map(|password| Secret::from(password).into());
    let resolved = Conninfo::resolve(Some(&text), password, &Environment::default());
    resolved.unwrap().0
}

async fn session(conninfo: &Conninfo) -> Result<Session, ReplicationError> {
    connect(conninfo, &SessionSettings::default()).await
}

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

#[tokio::test]
async fn passes_over_a_server_of_the_wrong_kind() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);
    let writable = Conninfo {
        target_session_attrs: TargetSessionAttrs::ReadWrite,
        ..there.clone()
    };
    session(&writable).await.unwrap();
    let read_only = Conninfo {
        target_session_attrs: TargetSessionAttrs::ReadOnly,
        ..there
    };
    let error = session(&read_only).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Connect { .. }) && error.is_transient());
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
async fn authenticates_by_every_method() {
    let hba = "local all all trust
               host all postgres 127.0.0.1/32 trust
               host all clear 127.0.0.1/32 password
               host all hashed 127.0.0.1/32 md5
               host all scram 127.0.0.1/32 scram-sha-256
               host all rejected 127.0.0.1/32 reject";
    let server = server(Some(hba)).await;
    let sql = server.connect("postgres").await.unwrap();
    sql.batch_execute(
        "SET password_encryption = 'md5';
         CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'pencil';
         SET password_encryption = 'scram-sha-256';
         CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE scram LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE rejected LOGIN REPLICATION; CREATE ROLE plain LOGIN;",
    )
    .await
    .unwrap();

    for (user, password) in [
        ("postgres", None),
        ("clear", Some("pencil")),
        ("hashed", Some("pencil")),
        ("scram", Some("pencil")),
    ] {
        let mut session = session(&conninfo(&server, user, password))
            .await
            .unwrap_or_else(|e| panic!("{user}: {e}"));
        let identity = session.identify_system().await.unwrap();
        assert_eq!(
            (identity.timeline, identity.dbname.as_str()),
            (1, "postgres")
        );
        assert!(identity.system_identifier > 0 && u64::from(identity.wal_flush_lsn) > 0);
        assert!(session.server().server_version_num >= 140_000 && session.server().backend_pid > 0);
        let setting = session.simple_query("SHOW TimeZone").await.unwrap();
        assert_eq!(setting, [[Some("UTC".to_owned())]]);
    }

    for user in ["clear", "hashed", "scram"] {
        let wrong = session(&conninfo(&server, user, Some("pen")))
            .await
            .unwrap_err();
        assert_eq!(wrong.server().unwrap().code, "28P01", "{user}");
        assert!(!wrong.is_transient());
        assert!(
            !format!("{wrong} {wrong:?}").contains("pen\""),
            "a password in the error"
        );
        let missing = session(&conninfo(&server, user, None)).await.unwrap_err();
        assert!(matches!(
            missing,
            ReplicationError::Authentication(AuthenticationError::PasswordMissing { user: named }) if named == user
        ));
    }
    let rejected = session(&conninfo(&server, "rejected", None))
        .await
        .unwrap_err();
    assert!(rejected.server().unwrap().code == "28000" && !rejected.is_transient());
}

/// A password that is kept with more iterations than are computed, and what the refusal says to do.
#[tokio::test]
async fn a_proof_that_takes_too_long_is_refused_until_the_password_is_kept_anew() {
    let hba = "local all all trust
               host all postgres 127.0.0.1/32 trust
               host all slow 127.0.0.1/32 scram-sha-256";
    let server = server(Some(hba)).await;
    let sql = server.connect("postgres").await.unwrap();
    // Whoever makes the password may make it on another server: only Postgres 16 and later have the setting.
    let known = "SELECT current_setting('scram_iterations', true) IS NOT NULL";
    if !sql.query_one(known, &[]).await.unwrap().get::<_, bool>(0) {
        return;
    }
    let role = "SET scram_iterations = 1000001; CREATE ROLE slow LOGIN REPLICATION PASSWORD 'pencil'; RESET scram_iterations";
    sql.batch_execute(role).await.unwrap();
    let conninfo = conninfo(&server, "slow", Some("pencil"));
    let refused = session(&conninfo).await.unwrap_err();
    assert!(!refused.is_transient());
    assert!(matches!(
        refused,
        ReplicationError::Authentication(AuthenticationError::Iterations {
            asked: 1_000_001,
            ..
        })
    ));
    let text = refused.to_string();
    let (_, remedy) = text.split_once("run ").expect(&text);
    let (statements, _) = remedy.rsplit_once(';').expect(remedy);
    let typed = statements
        .replacen('…', "slow", 1)
        .replacen('…', "pencil", 1);
    assert!(!typed.contains('…'), "{typed}");
    sql.batch_execute(&typed).await.expect(&typed);
    session(&conninfo).await.unwrap();
}

/// A walsender that is ended waits so long for a client that reads nothing. A unix socket has no such time.
#[tokio::test]
async fn a_client_that_reads_nothing_is_endured_for_a_while() {
    let server = server(None).await;
    let tcp = conninfo(&server, "postgres", None);
    let hosts = vec![HostPort {
        host: Host::Unix(server.socket_dir().to_owned()),
        hostaddr: None,
        port: server.port(),
    }];
    let unix = Conninfo {
        hosts,
        ..tcp.clone()
    };
    let show = async |conninfo: &Conninfo| {
        let mut session = session(conninfo).await.unwrap();
        let rows = session.simple_query("SHOW tcp_user_timeout").await.unwrap();
        rows[0][0].clone().unwrap()
    };
    let (on_linux, unset) = (cfg!(target_os = "linux"), "0");
    assert_eq!(show(&unix).await, unset);
    assert_eq!(show(&tcp).await, if on_linux { "900000" } else { unset });
    let admin = server.connect("postgres").await.unwrap();
    let set = "ALTER ROLE postgres SET tcp_user_timeout = '7s'";
    admin.batch_execute(set).await.unwrap();
    assert_eq!(show(&tcp).await, if on_linux { "7000" } else { unset });
}

#[tokio::test]
async fn finds_the_server_or_says_why_not() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);

    let unix = HostPort {
        host: Host::Unix(server.socket_dir().to_owned()),
        hostaddr: None,
        port: server.port(),
    };
    session(&Conninfo {
        hosts: vec![unix],
        ..there.clone()
    })
    .await
    .unwrap();

    // Nobody listens on port 1.
    session(&Conninfo {
        hosts: vec![tcp(1), tcp(server.port())],
        ..there.clone()
    })
    .await
    .unwrap();
    let nobody = session(&Conninfo {
        hosts: vec![tcp(1)],
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(nobody, ReplicationError::Connect { .. }) && nobody.is_transient());

    let missing = session(&Conninfo {
        dbname: "nowhere".to_owned(),
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(missing.server().unwrap().code == "3D000" && !missing.is_transient());

    // A listener that never answers costs the connect timeout, not more.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let short = Conninfo {
        hosts: vec![tcp(port)],
        connect_timeout: Duration::from_millis(50),
        ..there
    };
    let late = session(&short).await.unwrap_err();
    assert!(matches!(late, ReplicationError::Timeout { .. }) && late.is_transient());
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

#[tokio::test]
async fn plain_sql_says_what_the_server_said() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);
    let sql = client::connect(&there).await.unwrap();
    let name = sql
        .query_one("SELECT current_setting('application_name')", &[])
        .await
        .unwrap();
    assert_eq!(name.get::<_, &str>(0), "walrelay");

    let missing = client::connect(&Conninfo {
        dbname: "nowhere".to_owned(),
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(missing.code() == Some("3D000") && !missing.is_transient());
    let nobody = client::connect(&Conninfo {
        hosts: vec![tcp(1)],
        ..there
    })
    .await
    .unwrap_err();
    assert!(nobody.is_transient());
}
