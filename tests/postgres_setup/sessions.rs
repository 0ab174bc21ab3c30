//! The sessions that set up: whom they wait for, and what a role has set for them.

use walrelay::postgres::catalog::inspect;
use walrelay::postgres::client::connect;
use walrelay::postgres::conninfo::Conninfo;
use walrelay::postgres::findings::{Finding, Kind};
use walrelay::postgres::health;
use walrelay::postgres::setup::{Blocker, apply, create_slot, teardown_plan};

use crate::database::{LIMIT, found, make, run, server, up_to_slot};
use crate::postgres_settings::postgres_settings;
use crate::statements::statements;

#[tokio::test]
async fn creating_a_slot_tells_what_it_waits_for_and_can_be_cancelled() {
    let server = server(&[]).await;
    let writer = server.connect("postgres").await.unwrap();
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    let observer = connect(&settings.conninfo).await.unwrap();
    let make_slot = up_to_slot(&client, &settings).await;
    writer
        .batch_execute("BEGIN; CREATE TABLE held (i int)")
        .await
        .unwrap();
    let writer_pid: i32 = writer
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);

    let (told, mut hear) = tokio::sync::mpsc::unbounded_channel::<Vec<Blocker>>();
    let cancelled = create_slot(
        &client,
        &observer,
        &make_slot,
        |blockers| told.send(blockers.to_vec()).unwrap(),
        async {
            let blockers = hear.recv().await.unwrap();
            assert!(
                matches!(&blockers[..], [Blocker::Session(session)] if session.pid == writer_pid),
                "{blockers:?}"
            );
        },
    );
    let error = tokio::time::timeout(LIMIT, cancelled)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), Some("57014"));
    assert!(inspect(&client, &settings).await.unwrap().slot.is_none());

    writer.batch_execute("COMMIT").await.unwrap();
    run(&client, &server, &make_slot).await;
    assert_eq!(found(&client, &settings).await, []);
}

/// What a role or database has set, or put in the search path before pg_catalog, is not what sessions depend on.
#[tokio::test]
async fn settings_of_the_role_do_not_reach_a_session() {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let admin = server.connect("postgres").await.unwrap();
    let traps = "CREATE SCHEMA trap;
        CREATE FUNCTION trap.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'trap' $$;
        CREATE FUNCTION trap.current_database() RETURNS name LANGUAGE sql AS $$ SELECT 'trap'::name $$;
        ALTER ROLE postgres SET search_path = trap, pg_catalog, public";
    admin.batch_execute(traps).await.unwrap();
    let pinned = [
        ("DateStyle", "'SQL, DMY'", "ISO, MDY"),
        ("TimeZone", "'Asia/Kolkata'", "UTC"),
        ("IntervalStyle", "sql_standard", "postgres"),
        ("extra_float_digits", "-15", "3"),
        ("bytea_output", "escape", "hex"),
        ("client_min_messages", "error", "notice"),
        ("row_security", "on", "off"),
        ("statement_timeout", "'1h'", "0"),
        ("lock_timeout", "'1h'", "0"),
        ("idle_in_transaction_session_timeout", "'1h'", "0"),
        ("idle_session_timeout", "'1h'", "0"),
        // Before Postgres 17 there is none.
        ("transaction_timeout", "'1h'", "0"),
    ];
    for (name, value, _) in pinned {
        let set = format!("ALTER ROLE postgres SET {name} = {value}");
        let set = admin.batch_execute(&set).await;
        assert!(set.is_ok() || name == "transaction_timeout", "{set:?}");
    }
    let client = connect(&settings.conninfo).await.unwrap();
    make(&client, &server, &settings).await;
    assert_eq!(found(&client, &settings).await, []);
    let mut session = walrelay::postgres::startup::connect(
        &settings.conninfo,
        &walrelay::postgres::startup::SessionSettings::default(),
    )
    .await
    .unwrap();
    for (name, _, wanted) in pinned {
        let query = format!("SELECT setting FROM pg_settings WHERE name = '{name}'");
        let plain = client.query_opt(&query, &[]).await.unwrap();
        let plain = plain.map(|row| row.get::<_, String>(0));
        let replicating = session.simple_query(&query).await.unwrap();
        let replicating = replicating.first().and_then(|row| row[0].clone());
        assert_eq!(plain, replicating, "{name}");
        assert!(
            plain.as_deref().is_none_or(|value| value == wanted),
            "{name} = {plain:?}"
        );
    }
}

/// The login role may replicate, and another one owns what is made.
#[tokio::test]
async fn a_role_that_becomes_another_one_at_login() {
    let server = server(&[]).await;
    let admin = server.connect("postgres").await.unwrap();
    let roles = "CREATE ROLE owner; GRANT CREATE ON DATABASE postgres TO owner; GRANT CREATE ON SCHEMA public TO owner;
        CREATE ROLE relay LOGIN REPLICATION; GRANT owner TO relay; ALTER ROLE relay SET role = owner";
    admin.batch_execute(roles).await.unwrap();
    let mut settings = postgres_settings(&server);
    settings.conninfo.user = "relay".to_owned();
    let client = connect(&settings.conninfo).await.unwrap();
    let observer = connect(&settings.conninfo).await.unwrap();
    let make_slot = up_to_slot(&client, &settings).await;
    create_slot(
        &client,
        &observer,
        &make_slot,
        |_| (),
        std::future::pending(),
    )
    .await
    .unwrap();
    assert_eq!(found(&client, &settings).await, []);
    let query = "SELECT tableowner::text FROM pg_tables WHERE tablename = 'outbox_events'";
    let owner: String = admin.query_one(query, &[]).await.unwrap().get(0);
    assert_eq!(owner, "owner");
    let inspection = inspect(&client, &settings).await.unwrap();
    for step in teardown_plan(&inspection, &settings, true).unwrap() {
        apply(&client, &step).await.unwrap();
    }
}

/// What the user hears is what ends the wait.
#[tokio::test]
async fn creating_a_slot_behind_a_forgotten_prepared_transaction_names_it() {
    let server = server(&[("max_prepared_transactions", "5")]).await;
    let admin = server.connect("postgres").await.unwrap();
    // It blocks from any database.
    admin.batch_execute("CREATE DATABASE other").await.unwrap();
    let other = server.connect("other").await.unwrap();
    let forgotten = "BEGIN; CREATE TABLE held (i int); PREPARE TRANSACTION 'it''s \"mine\"'";
    other.batch_execute(forgotten).await.unwrap();
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    let observer = connect(&settings.conninfo).await.unwrap();
    let make_slot = up_to_slot(&client, &settings).await;
    let (told, mut hear) = tokio::sync::mpsc::unbounded_channel::<Blocker>();
    let created = create_slot(
        &client,
        &observer,
        &make_slot,
        |blockers| told.send(blockers[0].clone()).unwrap(),
        std::future::pending(),
    );
    let mended = async {
        let blocker = hear.recv().await.unwrap();
        let mend = blocker.mend();
        let (place, sql) = mend.split_once(", run ").unwrap();
        assert_eq!(place, "in database other");
        let rollback = statements(sql).swap_remove(1);
        other.batch_execute(&rollback).await.expect(&rollback);
    };
    let (created, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(created, mended) })
        .await
        .unwrap();
    created.unwrap();
}

/// Transactions that keep WAL and slots from being made, one of a session and one prepared elsewhere.
#[tokio::test]
async fn a_forgotten_transaction_is_told_with_what_ends_it() {
    let server = server(&[
        ("max_prepared_transactions", "5"),
        ("max_slot_wal_keep_size", "64GB"),
    ])
    .await;
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    make(&client, &server, &settings).await;
    client.batch_execute("CREATE DATABASE other").await.unwrap();
    let there = Conninfo {
        dbname: "other".to_owned(),
        ..settings.conninfo.clone()
    };
    let other = connect(&there).await.unwrap();
    let forgotten = "BEGIN; CREATE TABLE public.held (i int); PREPARE TRANSACTION 'it''s \"mine\"'";
    other.batch_execute(forgotten).await.unwrap();
    let session = connect(&settings.conninfo).await.unwrap();
    session
        .batch_execute("BEGIN; CREATE TABLE public.idle (i int)")
        .await
        .unwrap();
    let inspection = inspect(&client, &settings).await.unwrap();
    let told = async || {
        let mut health = health::health(&client, &settings).await.unwrap();
        // As if an hour had passed.
        for open in &mut health.open_transactions {
            open.seconds += 3_600;
        }
        for prepared in &mut health.prepared {
            prepared.seconds += 3_600;
        }
        health::findings(&inspection, &health, &settings, 0.0)
    };
    let end = async |found: &[Finding]| {
        for Finding { mend, .. } in found {
            let (there, statement) = match mend.strip_prefix("in database other, ") {
                Some(mend) => (&other, statements(mend).swap_remove(1)),
                None => (&client, statements(mend).swap_remove(0)),
            };
            there.batch_execute(&statement).await.expect(&statement);
        }
    };
    let found = told().await;
    assert_eq!(
        found.iter().map(|found| found.kind).collect::<Vec<_>>(),
        [Kind::OldTransaction, Kind::OldTransaction]
    );
    assert!(!found[0].what.contains("older than"), "{}", found[0].what);
    end(&found).await;
    tokio::time::timeout(LIMIT, async { while !told().await.is_empty() {} })
        .await
        .unwrap();

    // Several: the oldest is told, how many there are, and what ends them all.
    let mut sessions = Vec::new();
    for number in 0..3 {
        let session = connect(&settings.conninfo).await.unwrap();
        let idle = format!("BEGIN; CREATE TABLE public.idle_{number} (i int)");
        session.batch_execute(&idle).await.unwrap();
        sessions.push(session);
    }
    let found = told().await;
    let [found] = &found[..] else {
        panic!("{found:?}")
    };
    let many = "; 3 transactions are older than 5 min";
    assert!(found.what.ends_with(many), "{}", found.what);
    end(std::slice::from_ref(found)).await;
    tokio::time::timeout(LIMIT, async { while !told().await.is_empty() {} })
        .await
        .unwrap();
}

#[tokio::test]
async fn creating_a_slot_on_an_idle_standby_says_what_it_waits_for() {
    let mut server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    let before = inspect(&client, &settings).await.unwrap();
    // Before Postgres 16 a standby has no logical slots.
    if before.server.version_num < 160_000 {
        return;
    }
    let make_slot = up_to_slot(&client, &settings).await;
    server.stop(walrelay::local::Mode::Fast).await.unwrap();
    std::fs::write(server.data_dir().join("standby.signal"), "").unwrap();
    server.start_again().await.unwrap();
    let client = connect(&settings.conninfo).await.unwrap();
    let observer = connect(&settings.conninfo).await.unwrap();
    let (told, mut hear) = tokio::sync::mpsc::unbounded_channel::<Vec<Blocker>>();
    let cancelled = create_slot(
        &client,
        &observer,
        &make_slot,
        |blockers| told.send(blockers.to_vec()).unwrap(),
        async { assert_eq!(hear.recv().await.unwrap(), [Blocker::RunningTransactions]) },
    );
    let error = tokio::time::timeout(LIMIT, cancelled)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code(), Some("57014"));
}
