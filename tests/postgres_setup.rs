//! Setup, inspection and teardown against a real Postgres.

mod postgres_settings;
mod statements;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use postgres_settings::postgres_settings;
use postgres_types::PgLsn;
use statements::statements;
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};
use walrelay::outbox::TableName;
use walrelay::postgres::catalog::inspect;
use walrelay::postgres::client::{Client, connect};
use walrelay::postgres::conninfo::Conninfo;
use walrelay::postgres::findings::{Finding, Kind, Severity, findings};
use walrelay::postgres::health;
use walrelay::postgres::occurred_at::OccurredAt;
use walrelay::postgres::settings::PostgresSettings;
use walrelay::postgres::setup::{
    Blocker, Part, Step, Wishes, apply, create_slot, plan, teardown_plan,
};

const LIMIT: Duration = Duration::from_secs(60);

async fn server(settings: &[(&str, &str)]) -> LocalPostgres {
    let settings = settings
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let options = PostgresOptions {
        settings,
        fsync: false,
        ..Default::default()
    };
    LocalPostgres::start(&ServerBinaries::find().unwrap(), options)
        .await
        .unwrap()
}

/// A session in which names without a schema are those of public, as in psql.
async fn as_a_person(settings: &PostgresSettings) -> Client {
    let client = connect(&settings.conninfo).await.unwrap();
    client
        .batch_execute("SET search_path = public")
        .await
        .unwrap();
    client
}

/// A server with nothing in it, and that session on it.
async fn fresh() -> (LocalPostgres, PostgresSettings, Client) {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = as_a_person(&settings).await;
    (server, settings, client)
}

/// Kinds of what is found, with their gravity.
async fn found(client: &Client, settings: &PostgresSettings) -> Vec<(Severity, Kind)> {
    let inspection = inspect(client, settings).await.unwrap();
    findings(&inspection, settings)
        .into_iter()
        .map(|finding| (finding.severity, finding.kind))
        .collect()
}

/// Makes table and publication; returns the step that makes the slot.
async fn up_to_slot(client: &Client, settings: &PostgresSettings) -> Step {
    let inspection = inspect(client, settings).await.unwrap();
    let steps = plan(&inspection, settings, Wishes::default()).unwrap();
    let [table, publication, make_slot]: [Step; 3] = steps.try_into().expect("three steps");
    for step in [table, publication] {
        apply(client, &step).await.unwrap();
    }
    make_slot
}

/// Runs every step that setup plans.
async fn make(client: &Client, server: &LocalPostgres, settings: &PostgresSettings) -> Vec<Part> {
    let steps = plan(
        &inspect(client, settings).await.unwrap(),
        settings,
        Wishes::default(),
    )
    .unwrap();
    for step in &steps {
        run(client, server, step).await;
    }
    steps.into_iter().map(|step| step.part).collect()
}

async fn run(client: &Client, server: &LocalPostgres, step: &Step) {
    if step.part == Part::Slot {
        let observer = connect(&postgres_settings(server).conninfo).await.unwrap();
        let lsn = create_slot(client, &observer, step, |_| (), std::future::pending())
            .await
            .unwrap();
        assert!(lsn > PgLsn::from(0));
    } else {
        apply(client, step).await.unwrap();
    }
}

async fn refusals(client: &Client, settings: &PostgresSettings) -> Vec<Kind> {
    let inspection = inspect(client, settings).await.unwrap();
    plan(&inspection, settings, Wishes::default())
        .unwrap_err()
        .into_iter()
        .map(|finding| finding.kind)
        .collect()
}

#[tokio::test]
async fn makes_what_is_missing_once_and_takes_it_away() {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    assert_eq!(
        found(&client, &settings).await,
        [(Severity::Refuse, Kind::SlotMissing)]
    );

    assert_eq!(
        make(&client, &server, &settings).await,
        [Part::Table, Part::Publication, Part::Slot]
    );
    assert_eq!(found(&client, &settings).await, []);
    assert_eq!(make(&client, &server, &settings).await, []);

    let inspection = inspect(&client, &settings).await.unwrap();
    let (server_state, slot) = (&inspection.server, inspection.slot.as_ref().unwrap());
    assert!(
        server_state.version_num >= 140_000
            && server_state.may_replicate
            && !server_state.in_recovery
    );
    assert_eq!(
        server_state.wal_sender_timeout,
        Some(Duration::from_secs(60))
    );
    assert_eq!(server_state.max_slot_wal_keep_bytes, None);
    assert!(
        slot.confirmed_flush_lsn.unwrap() <= server_state.current_lsn && slot.active_pid.is_none()
    );
    assert_eq!(slot.wal_status.as_deref(), Some("reserved"));

    let steps = teardown_plan(&inspection, &settings, false).unwrap();
    assert_eq!(
        steps.iter().map(|step| step.part).collect::<Vec<_>>(),
        [Part::Slot, Part::Publication]
    );
    for step in &steps {
        apply(&client, step).await.unwrap();
    }
    let left = inspect(&client, &settings).await.unwrap();
    assert!(left.slot.is_none() && left.publication.is_none() && left.table.is_some());
    let all = teardown_plan(&left, &settings, true).unwrap();
    assert_eq!(
        all.iter().map(|step| step.part).collect::<Vec<_>>(),
        [Part::Table]
    );
}

#[tokio::test]
async fn odd_names_are_quoted() {
    let server = server(&[]).await;
    let client = connect(&postgres_settings(&server).conninfo).await.unwrap();
    client
        .batch_execute("CREATE SCHEMA \"My \"\"Schema\"")
        .await
        .unwrap();
    let settings = PostgresSettings {
        publication: "o'pub\"".to_owned(),
        table: TableName {
            schema: "My \"Schema".to_owned(),
            table: "order".to_owned(),
        },
        ..postgres_settings(&server)
    };
    make(&client, &server, &settings).await;
    assert_eq!(found(&client, &settings).await, []);
}

#[tokio::test]
async fn a_partitioned_table_arrives_under_its_own_name() {
    let (server, settings, client) = fresh().await;
    client
        .batch_execute(include_str!("../sql/outbox_events_partitioned.sql"))
        .await
        .unwrap();
    client
        .batch_execute(
            "CREATE PUBLICATION walrelay FOR TABLE outbox_events WITH (publish = 'insert')",
        )
        .await
        .unwrap();
    assert_eq!(
        refusals(&client, &settings).await,
        [Kind::PublicationMismatch]
    );

    client
        .batch_execute("DROP PUBLICATION walrelay")
        .await
        .unwrap();
    make(&client, &server, &settings).await;
    assert_eq!(found(&client, &settings).await, []);

    client
        .batch_execute("ALTER TABLE outbox_events_default SET UNLOGGED")
        .await
        .unwrap();
    assert_eq!(
        found(&client, &settings).await,
        [(Severity::Refuse, Kind::TableMismatch)]
    );
}

#[tokio::test]
async fn refuses_what_exists_and_does_not_fit() {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    let sql = async |text: &str| client.batch_execute(text).await.unwrap();

    sql("SELECT pg_create_logical_replication_slot('walrelay', 'pgoutput')").await;
    assert_eq!(
        refusals(&client, &settings).await,
        [Kind::SlotMismatch],
        "older than the publication"
    );
    sql("SELECT pg_drop_replication_slot('walrelay'); SELECT pg_create_physical_replication_slot('walrelay')").await;
    // It is not called older than the publication too: how to make one's own again would be advice about another's slot.
    assert_eq!(
        refusals(&client, &settings).await,
        [Kind::SlotMismatch],
        "physical"
    );
    let inspection = inspect(&client, &settings).await.unwrap();
    let stays = teardown_plan(&inspection, &settings, false).unwrap_err();
    assert_eq!(stays[0].kind, Kind::SlotMismatch);
    assert!(!stays[0].mend.contains("walrelay setup"), "{}", stays[0]);
    sql("SELECT pg_drop_replication_slot('walrelay')").await;
}

#[tokio::test]
async fn says_what_is_wrong_with_publication_and_table() {
    let (server, settings, client) = fresh().await;
    make(&client, &server, &settings).await;
    let refuse = |kind| (Severity::Refuse, kind);
    let warn = |kind| (Severity::Warn, kind);
    let cases: &[(&str, &[(Severity, Kind)])] = &[
        ("ALTER PUBLICATION walrelay SET (publish = 'update')", &[refuse(Kind::PublicationMismatch)]),
        ("ALTER PUBLICATION walrelay SET TABLE outbox_events (id, payload_json)", &[refuse(Kind::PublicationMismatch); 4]),
        ("CREATE TABLE t (i int); ALTER PUBLICATION walrelay SET TABLE t", &[refuse(Kind::PublicationMismatch)]),
        (
            "ALTER TABLE outbox_events ALTER aggregate_id DROP NOT NULL;
             ALTER PUBLICATION walrelay SET TABLE outbox_events WHERE ((uuid_hash(aggregate_id) & 3) = 0)",
            &[warn(Kind::Column), warn(Kind::RowFilter)],
        ),
        (
            "ALTER PUBLICATION walrelay SET TABLE outbox_events WHERE (mod(uuid_hash(aggregate_id), 4) = 0)",
            &[warn(Kind::RowFilter)],
        ),
        ("ALTER TABLE outbox_events RENAME payload_json TO payload", &[refuse(Kind::Column)]),
        ("ALTER TABLE outbox_events ALTER payload_json TYPE int USING NULL", &[refuse(Kind::Column)]),
        ("ALTER TABLE outbox_events ALTER occurred_at TYPE timestamp", &[warn(Kind::Column)]),
        ("ALTER TABLE outbox_events SET UNLOGGED", &[refuse(Kind::TableMismatch)]),
        (
            "CREATE DOMAIN kind AS varchar(80); CREATE TYPE version AS ENUM ('a');
             ALTER TABLE outbox_events ALTER event_type TYPE kind, ALTER event_version TYPE int8,
               ALTER aggregate_id TYPE text, ALTER payload_json TYPE json, ADD COLUMN more int",
            &[],
        ),
    ];
    for (change, expected) in cases {
        client.batch_execute("BEGIN").await.unwrap();
        if change.contains("UNLOGGED") {
            client
                .batch_execute("DROP PUBLICATION walrelay")
                .await
                .unwrap();
        }
        client.batch_execute(change).await.unwrap();
        let mut kinds = found(&client, &settings).await;
        kinds.retain(|(_, kind)| *kind != Kind::PublicationMissing);
        assert_eq!(kinds, *expected, "{change}");
        // A column that was brought back may be null, which is said then.
        type_remedies(&client, &settings).await;
        let left = type_remedies(&client, &settings).await;
        let left: Vec<_> = left.iter().flat_map(|found| statements(found)).collect();
        assert_eq!(left, Vec::<String>::new(), "{change}");
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Types the SQL of each finding as it is printed; which remedies are left then.
async fn type_remedies(client: &Client, settings: &PostgresSettings) -> Vec<String> {
    let inspection = inspect(client, settings).await.unwrap();
    for found in findings(&inspection, settings) {
        for statement in statements(&found.mend) {
            client.batch_execute(&statement).await.expect(&statement);
        }
    }
    let inspection = inspect(client, settings).await.unwrap();
    let left = findings(&inspection, settings).into_iter();
    left.map(|found| found.mend).collect()
}

/// The advice is what a person pastes: it has to work.
#[tokio::test]
async fn a_column_of_another_type_is_mended_by_what_the_finding_says() {
    let (_server, settings, client) = fresh().await;
    let table = "CREATE TABLE outbox_events (id numeric PRIMARY KEY, aggregate_id boolean NOT NULL,
        event_type int NOT NULL, event_version text NOT NULL, payload_json int NOT NULL)";
    client.batch_execute(table).await.unwrap();
    let mends = column_mends(&client, &settings).await;
    assert_eq!(mends.len(), 6, "{mends:?}");
    for mend in mends {
        let sql = mend.strip_prefix("run ").unwrap();
        client.batch_execute(sql).await.expect(sql);
    }
    // A column that was retyped may be null, which is said, and mended in the same way.
    for mend in column_mends(&client, &settings).await {
        let sql = mend.strip_prefix("run ").unwrap();
        client.batch_execute(sql).await.expect(sql);
    }
    assert_eq!(column_mends(&client, &settings).await, Vec::<String>::new());
}

async fn column_mends(client: &Client, settings: &PostgresSettings) -> Vec<String> {
    let inspection = inspect(client, settings).await.unwrap();
    let columns = findings(&inspection, settings).into_iter();
    let columns = columns.filter(|found| found.kind == Kind::Column);
    columns.map(|found| found.mend).collect()
}

/// Nobody alters a table that works: the configuration follows it.
#[tokio::test]
async fn a_table_with_rows_is_mapped() {
    let (_server, mut settings, client) = fresh().await;
    for (table, expected) in [
        (
            "CREATE TABLE events (id bigserial PRIMARY KEY, topic text NOT NULL, key text NOT NULL,
                body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
             INSERT INTO events (topic, key, body) VALUES ('a', 'b', '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"id\"  # bigint\n\
             aggregate_id = \"key\"  # text\n\
             event_type = \"topic\"  # text\n\
             event_version = \"\"\n\
             occurred_at = \"created_at\"  # timestamp with time zone\n\
             payload = \"body\"  # jsonb",
        ),
        (
            "CREATE TABLE events (id uuid PRIMARY KEY, what json NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"id\"  # uuid\n\
             aggregate_id = \"\"\n\
             event_type = \"\"\n\
             event_version = \"\"\n\
             occurred_at = \"\"  # the time of the commit\n\
             payload = \"what\"  # json, a guess: the only JSON\n\
             [nats]  # where this section is there already, put the next line into it, in place of its subject\n\
             subject = \"outbox.events\"",
        ),
        (
            "CREATE TABLE events (id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL,
                type text NOT NULL, payload jsonb NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), 'order', '1', 'made', '{}')",
            "this is the table of Debezium's outbox event router: begin the configuration with preset = \"debezium\"",
        ),
        (
            "CREATE TABLE events (at timestamptz, size real); INSERT INTO events VALUES (now(), 1)",
            "nothing can be proposed, since no column can be id, and no column can be payload; \
             name the columns that hold id (uuid, text, an integer or bytea), aggregate_id (uuid, text, an integer or \
             bytea), event_type (text or an enum), event_version (an integer, with values from 0 to 255), occurred_at (timestamptz, timestamp, date \
             or bigint (milliseconds)), payload (jsonb, json, text or bytea) in [columns] (\"\" where the table has none: aggregate_id, \
             event_type, event_version, occurred_at), or set postgres.table to a table of walrelay's own; this table has \
             at timestamp with time zone, size real",
        ),
        (
            "CREATE TABLE events (seq int PRIMARY KEY, event_name char(20), at bigint, data text)",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"seq\"  # integer\n\
             aggregate_id = \"\"\n\
             event_type = \"event_name\"  # character(20), may be null, and a row with a null becomes a dead letter\n\
             event_version = \"\"\n\
             occurred_at = \"at\"  # bigint, may be null, and a row with a null becomes a dead letter\n\
             payload = \"data\"  # text, may be null, and a row with a null becomes a dead letter",
        ),
        (
            "CREATE TABLE events (pk uuid PRIMARY KEY, event_id uuid, key text, ts timestamptz, \"When\" timestamptz NOT NULL,
                topic text NOT NULL, body jsonb NOT NULL);
             INSERT INTO events VALUES (gen_random_uuid(), NULL, NULL, NULL, now(), 'a', '{}')",
            "put this into the configuration, in place of [columns] where it is there, as far as it is right:\n\
             [columns]\n\
             id = \"pk\"  # uuid, a guess: it is the primary key\n\
             aggregate_id = \"\"  # not \"key\", which may be null, and a row with a null becomes a dead letter\n\
             event_type = \"topic\"  # text\n\
             event_version = \"\"\n\
             occurred_at = \"When\"  # timestamp with time zone, a guess: the only time\n\
             payload = \"body\"  # jsonb",
        ),
    ] {
        client
            .batch_execute(&format!("DROP TABLE IF EXISTS events; {table}"))
            .await
            .unwrap();
        settings.table = "public.events".parse().unwrap();
        assert_eq!(column_mends(&client, &settings).await, [expected], "{table}");
    }
}

#[tokio::test]
async fn says_what_is_wrong_with_server_role_and_slot() {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = connect(&settings.conninfo).await.unwrap();
    make(&client, &server, &settings).await;

    client.batch_execute("CREATE ROLE app LOGIN").await.unwrap();
    client
        .batch_execute("SET SESSION AUTHORIZATION app")
        .await
        .unwrap();
    let kinds = found(&client, &settings).await;
    assert_eq!(
        kinds,
        [
            (Severity::Refuse, Kind::Privilege),
            (Severity::Warn, Kind::Privilege)
        ]
    );
    let inspection = inspect(&client, &settings).await.unwrap();
    client
        .batch_execute("RESET SESSION AUTHORIZATION")
        .await
        .unwrap();
    for found in findings(&inspection, &settings) {
        // The first one has the words of a managed service too, whose role is not here.
        let statement = statements(&found.mend).swap_remove(0);
        client.batch_execute(&statement).await.expect(&statement);
    }
    client
        .batch_execute("SET SESSION AUTHORIZATION app")
        .await
        .unwrap();
    assert_eq!(found(&client, &settings).await, []);

    client
        .batch_execute("RESET SESSION AUTHORIZATION")
        .await
        .unwrap();
    client.batch_execute("CREATE DATABASE other").await.unwrap();
    let there = Conninfo {
        dbname: "other".to_owned(),
        ..settings.conninfo.clone()
    };
    let other = connect(&there).await.unwrap();
    let kinds = found(&other, &settings).await;
    assert!(
        kinds.contains(&(Severity::Refuse, Kind::SlotMismatch)),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn a_server_without_logical_wal_is_refused() {
    let server = server(&[("wal_level", "replica")]).await;
    let client = connect(&postgres_settings(&server).conninfo).await.unwrap();
    assert_eq!(
        refusals(&client, &postgres_settings(&server)).await,
        [Kind::WalLevel]
    );
}

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

/// A domain over a domain is what stands at its end.
#[tokio::test]
async fn domains_over_domains_are_followed_to_their_end() {
    let (server, settings, client) = fresh().await;
    let mut table = Vec::new();
    for (column, base) in [
        ("id", "uuid"),
        ("aggregate_id", "uuid"),
        ("event_type", "varchar(80)"),
        ("event_version", "int2"),
        ("occurred_at", "timestamptz"),
        ("payload_json", "jsonb"),
    ] {
        let domains = format!(
            "CREATE DOMAIN inner_{column} AS {base} NOT NULL; CREATE DOMAIN outer_{column} AS inner_{column}"
        );
        client.batch_execute(&domains).await.unwrap();
        table.push(format!("{column} outer_{column}"));
    }
    let table = format!("CREATE TABLE outbox_events ({})", table.join(", "));
    client.batch_execute(&table).await.unwrap();
    make(&client, &server, &settings).await;
    assert_eq!(found(&client, &settings).await, []);
}

/// What makes an event come twice, or never, is said with what ends it.
#[tokio::test]
async fn rows_that_come_twice_or_never_are_told() {
    let (server, settings, client) = fresh().await;
    make(&client, &server, &settings).await;
    let first = async || findings(&inspect(&client, &settings).await.unwrap(), &settings).remove(0);

    let filter =
        "ALTER TABLE outbox_events ADD COLUMN dispatched_at timestamptz, REPLICA IDENTITY FULL;
        ALTER PUBLICATION walrelay SET TABLE outbox_events WHERE (dispatched_at IS NULL);
        ALTER PUBLICATION walrelay SET (publish = 'insert, update')";
    client.batch_execute(filter).await.unwrap();
    let refused = first().await;
    assert_eq!(refused.kind, Kind::PublicationMismatch);
    let sql = refused.mend.strip_prefix("run ").unwrap();
    client.batch_execute(sql).await.expect(sql);
    assert_eq!(found(&client, &settings).await, []);

    let heir = "CREATE TABLE heir () INHERITS (outbox_events); CREATE TABLE \"Second heir\" () INHERITS (heir);
        INSERT INTO \"Second heir\" (id, aggregate_id, event_type, payload_json)
        VALUES (gen_random_uuid(), gen_random_uuid(), 'a', '{}')";
    client.batch_execute(heir).await.unwrap();
    assert_eq!(
        found(&client, &settings).await,
        [(Severity::Warn, Kind::TableMismatch); 2]
    );
    let (_, sql) = first()
        .await
        .mend
        .split_once(" run ")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    client.batch_execute(&sql).await.expect(&sql);
    let own = "SELECT count(*) FROM ONLY outbox_events";
    let own: i64 = client.query_one(own, &[]).await.unwrap().get(0);
    assert_eq!(own, 1);
}

#[tokio::test]
async fn a_partition_key_that_is_there_to_be_changed_is_told() {
    for key in ["dispatched", "(NOT dispatched)"] {
        let (server, settings, client) = fresh().await;
        let table = format!(
            "CREATE TABLE outbox_events (id uuid NOT NULL, aggregate_id uuid NOT NULL, event_type text NOT NULL,
                event_version int2 NOT NULL, occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL,
                dispatched bool NOT NULL DEFAULT false) PARTITION BY LIST ({key});
            CREATE TABLE open PARTITION OF outbox_events FOR VALUES IN (false) PARTITION BY RANGE (occurred_at);
            CREATE TABLE open_all PARTITION OF open DEFAULT;
            CREATE TABLE closed PARTITION OF outbox_events DEFAULT"
        );
        client.batch_execute(&table).await.unwrap();
        make(&client, &server, &settings).await;
        let warned = findings(&inspect(&client, &settings).await.unwrap(), &settings);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert_eq!(
            (warned[0].severity, warned[0].kind),
            (Severity::Warn, Kind::TableMismatch)
        );
        assert!(warned[0].what.contains("by dispatched"), "{}", warned[0]);
    }
}

/// What lies before, between and at moments, by the column's type: as Postgres compares them, and not a row more or less.
#[tokio::test]
async fn moments_are_compared_in_the_type_of_the_column() {
    let (_server, settings, client) = fresh().await;
    let moment = |text: &str| text.parse::<DateTime<Utc>>().expect(text);
    // Each value as the column has it, and as a moment.
    let fractions = |zone: &'static str| {
        [
            ("1969-12-31T23:59:59.999999", "'1969-12-31 23:59:59.999999"),
            ("1970-01-01T00:00:00", "'1970-01-01 00:00:00"),
            ("2026-11-29T12:00:00.000001", "'2026-11-29 12:00:00.000001"),
            ("0000-12-31T00:00:00", "'0001-12-31 00:00:00"),
        ]
        .map(|(moment, sql)| {
            let era = if moment.starts_with("0000") {
                " BC"
            } else {
                ""
            };
            (format!("{moment}Z"), format!("{sql}{zone}{era}'"))
        })
        .to_vec()
    };
    let own = |values: &[(&str, &str)]| -> Vec<(String, String)> {
        let values = values.iter();
        values
            .map(|(moment, sql)| ((*moment).to_owned(), (*sql).to_owned()))
            .collect()
    };
    let days = own(&[
        ("1969-12-31T00:00:00Z", "'1969-12-31'"),
        ("2026-11-29T00:00:00Z", "'2026-11-29'"),
    ]);
    let milliseconds = own(&[
        ("1969-12-31T23:59:59.999Z", "-1"),
        ("1970-01-01T00:00:00Z", "0"),
        ("2026-11-29T12:00:00.001Z", "1795953600001"),
    ]);
    for (column_type, values) in [
        ("timestamptz", fractions("+00")),
        ("timestamp", fractions("")),
        ("date", days),
        ("bigint", milliseconds),
    ] {
        let rows: Vec<String> = values.iter().map(|(_, sql)| format!("({sql})")).collect();
        let table = format!(
            "DROP TABLE IF EXISTS outbox_events; CREATE TABLE outbox_events (occurred_at {column_type});
             INSERT INTO outbox_events VALUES {}",
            rows.join(", ")
        );
        client.batch_execute(&table).await.unwrap();
        let inspection = inspect(&client, &settings).await.unwrap();
        let column = OccurredAt::of(&inspection.table.unwrap(), &settings).unwrap();
        let moments: Vec<DateTime<Utc>> = values.iter().map(|(at, _)| moment(at)).collect();
        let far = ["-9000-01-01T00:00:00Z", "+99999-12-31T23:59:59Z"].map(moment);
        let steps =
            [-1_000_000, -1_000, -1, 0, 1, 999, 1_000, 1_000_000].map(TimeDelta::nanoseconds);
        let near = moments.iter().flat_map(|at| steps.map(|step| *at + step));
        let bounds: Vec<DateTime<Utc>> = near.chain(far).collect();
        let count = async |condition: String| -> usize {
            let query = format!("SELECT count(*) FROM outbox_events WHERE {condition}");
            let row = client.query_one(&query, &[]).await;
            let count: i64 = row
                .unwrap_or_else(|error| panic!("{query}: {error}"))
                .get(0);
            usize::try_from(count).unwrap()
        };
        for at in &bounds {
            let before = moments.iter().filter(|moment| *moment < at).count();
            assert_eq!(
                count(column.is_before(*at)).await,
                before,
                "{column_type} before {at:?}"
            );
            let behind = moments.iter().filter(|moment| *moment >= at).count();
            let found = count(column.is_between(*at, far[1])).await;
            assert_eq!(found, behind, "{column_type} from {at:?}");
            let through = moments.iter().filter(|moment| *moment <= at).count();
            let found = count(column.is_between(far[0], *at)).await;
            assert_eq!(found, through, "{column_type} through {at:?}");
        }
    }
}
