//! What the program tells a person to type, typed as it is printed, where no other test does.

use walrelay::local::Mode;

use crate::statements::statements;
use crate::support::{Fixture, Servers, eventually, options, uuid};

const PARTITIONED: &str = include_str!("../../sql/outbox_events_partitioned.sql");

pub(crate) async fn types(fixture: &Fixture, text: &str) {
    let statements = statements(text);
    assert_ne!(statements, Vec::<String>::new(), "{text}");
    for statement in statements {
        fixture
            .sql
            .batch_execute(&statement)
            .await
            .expect(&statement);
    }
}

/// The remedy of the finding with this code, as `doctor` has it.
pub(crate) async fn mend(fixture: &Fixture, code: &str) -> Option<String> {
    mend_by(fixture, &["doctor", "--json"], code).await
}

pub(crate) async fn mend_by(fixture: &Fixture, arguments: &[&str], code: &str) -> Option<String> {
    let output = fixture.walrelay(arguments).await;
    let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("a report");
    let findings = report["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["code"] == code)?;
    Some(found["mend"].as_str().expect("a remedy").to_owned())
}

/// A database and a role that are not there.
#[tokio::test]
async fn what_a_refused_connection_says() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let url = fixture.servers().postgres.url("nowhere");
    let url = url.replace("//postgres@", "//nobody@");
    fixture.set("WALRELAY_POSTGRES_URL", url);
    for missing in ["nobody", "nowhere"] {
        let output = fixture.walrelay(&["run"]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains(missing), "{}", output.stderr);
        let (_, remedy) = output.stderr.rsplit_once("or run ").expect("a remedy");
        // For a role, what makes it; the other half is for one that is there.
        let remedy = remedy.split_once(';').expect("a statement").0;
        types(&fixture, &format!("{remedy};")).await;
    }
    let output = fixture.walrelay(&["run"]).await;
    assert!(
        output.stderr.contains("walrelay setup"),
        "{}",
        output.stderr
    );
}

/// Places that others have taken.
#[tokio::test]
async fn what_doctor_says_of_places() {
    let settings = [
        ("max_replication_slots", "1"),
        ("max_slot_wal_keep_size", "64GB"),
    ];
    let servers = Servers::with(options(&settings)).await;
    let mut fixture = Fixture::bare_on(servers).await;
    let taken = "SELECT pg_create_physical_replication_slot('others'); ALTER ROLE postgres CONNECTION LIMIT 3";
    fixture.sql.batch_execute(taken).await.unwrap();
    let all = mend(&fixture, "places").await.expect("it is full");
    types(&fixture, &all).await;
    restart_postgres(&mut fixture).await;
    let limit = mend(&fixture, "places").await.expect("the role is limited");
    assert!(limit.contains("CONNECTION LIMIT"), "{limit}");
    types(&fixture, &limit).await;
    assert_eq!(mend(&fixture, "places").await, None);
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    assert_eq!(fixture.stored_ids().await, [1, 2, 3].map(uuid));
}

/// What was written to disk once is counted for ever, unless somebody counts anew.
#[tokio::test]
async fn what_doctor_says_of_a_transaction_that_was_spilled() {
    let settings = [
        ("logical_decoding_work_mem", "64kB"),
        ("max_slot_wal_keep_size", "64GB"),
    ];
    let mut fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
    fixture.setup().await;
    assert_eq!(mend(&fixture, "spill").await, None);
    // The relay has memory of its own; what looks into the slot has the server's.
    fixture.insert(1, 5_000).await;
    fixture.walrelay(&["verify"]).await;
    let remedy = eventually("it is counted", async || mend(&fixture, "spill").await).await;
    let relay = fixture.run();
    fixture.holds(5_000).await;
    types(&fixture, &remedy).await;
    assert_eq!(mend(&fixture, "spill").await, None);
    relay.stop().await;
    assert_eq!(mend(&fixture, "spill").await, None);
}

/// The name of a slot that another database of the server has.
#[tokio::test]
async fn what_the_slot_of_another_database_needs() {
    let first = Fixture::new().await;
    let mut second = Fixture::bare().await;
    second.set("WALRELAY_POSTGRES_SLOT", first.name.clone());
    let output = second.walrelay(&["setup"]).await;
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("postgres.slot"), "{}", output.stderr);
    second.unset("WALRELAY_POSTGRES_SLOT");
    second.setup().await;
    let relay = second.run();
    second.insert(1, 2).await;
    second.holds(2).await;
    relay.stop().await;
}

async fn restart_postgres(fixture: &mut Fixture) {
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
}

/// The row that is written behind the remedy comes.
async fn streams(fixture: &mut Fixture) {
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_a_server_without_logical_wal_needs() {
    let servers = Servers::with(options(&[("wal_level", "replica")])).await;
    let mut fixture = Fixture::bare_on(servers).await;
    let remedy = mend(&fixture, "wal-level").await.expect("it is replica");
    types(&fixture, &remedy).await;
    assert!(remedy.ends_with("restart Postgres"), "{remedy}");
    restart_postgres(&mut fixture).await;
    assert_eq!(mend(&fixture, "wal-level").await, None);
    streams(&mut fixture).await;
}

/// Listed by its name: as another it is none of those that commits wait for.
#[tokio::test]
async fn what_a_relay_that_is_a_synchronous_standby_needs() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        format!("{url}?application_name=standby_1"),
    );
    let wait = "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby_1, standby_2)'; SELECT pg_reload_conf()";
    for statement in wait.split("; ") {
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    let code = "synchronous-standby";
    let remedy = eventually("it is listed", async || mend(&fixture, code).await).await;
    let (_, name) = remedy.split_once("add ").expect("what to add");
    let (parameter, _) = name.split_once(',').expect("a parameter");
    fixture.set("WALRELAY_POSTGRES_URL", format!("{url}?{parameter}"));
    assert_eq!(mend(&fixture, code).await, None);
}

/// Partitions whose rows would be passed over, one without WAL and one of another server.
#[tokio::test]
async fn what_silent_partitions_need() {
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(PARTITIONED).await.unwrap();
    for sql in [
        "CREATE UNLOGGED TABLE \"Hasty\" PARTITION OF outbox_events FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')",
        // A partition of another server is taken by no table with a unique index.
        "ALTER TABLE outbox_events DROP CONSTRAINT outbox_events_pkey",
        "CREATE FOREIGN DATA WRAPPER elsewhere",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere",
        "CREATE FOREIGN TABLE far PARTITION OF outbox_events FOR VALUES FROM ('2001-01-01') TO ('2002-01-01') SERVER elsewhere",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    for _ in 0..2 {
        let remedy = mend(&fixture, "table-mismatch").await.expect("a partition");
        types(&fixture, &remedy).await;
    }
    assert_eq!(mend(&fixture, "table-mismatch").await, None);
    streams(&mut fixture).await;
}

/// Filters made by hand that leave rows out.
#[tokio::test]
async fn what_row_filters_need() {
    let fixture = Fixture::bare().await;
    let (table, name) = (
        include_str!("../../sql/0001_outbox_events.sql"),
        &fixture.name,
    );
    fixture.sql.batch_execute(table).await.unwrap();
    let publication = format!(
        "CREATE PUBLICATION {name} FOR TABLE outbox_events WHERE (uuid_hash(aggregate_id) % 4 = 0);
         ALTER PUBLICATION {name} SET (publish = 'insert');
         ALTER TABLE outbox_events ALTER aggregate_id DROP NOT NULL"
    );
    fixture.sql.batch_execute(&publication).await.unwrap();
    let mut typed = Vec::new();
    while let Some(remedy) = mend(&fixture, "row-filter").await {
        types(&fixture, &remedy).await;
        assert!(!typed.contains(&remedy), "{remedy}");
        typed.push(remedy);
    }
    assert_eq!(typed.len(), 2, "{typed:?}");
    fixture.setup().await;
}
