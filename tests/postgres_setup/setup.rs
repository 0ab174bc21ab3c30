//! What setup makes, refuses and takes away, and what is wrong with publication, server and role.

use std::time::Duration;

use walrelay::outbox::TableName;
use walrelay::postgres::catalog::inspect;
use walrelay::postgres::client::{Client, connect};
use walrelay::postgres::conninfo::Conninfo;
use walrelay::postgres::findings::{Kind, Severity, findings};
use walrelay::postgres::settings::PostgresSettings;
use walrelay::postgres::setup::{Part, apply, teardown_plan};

use crate::database::{found, fresh, make, refusals, server};
use crate::postgres_settings::postgres_settings;
use crate::statements::statements;

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
        .batch_execute(include_str!("../../sql/outbox_events_partitioned.sql"))
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
