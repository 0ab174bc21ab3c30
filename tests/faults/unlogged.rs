//! A table or a partition without WAL for a while: its rows never come, and the relay says so however short the while was.

use std::time::Duration;

use uuid::Uuid;

use crate::lane::{Restraint, holds_events, judge_events, logs_from};
use crate::support::{Fixture, Relay, uuid};

const TABLE: &str = include_str!("../../sql/0001_outbox_events.sql");
const PARTITIONED: &str = include_str!("../../sql/outbox_events_partitioned.sql");
/// What the relay says of rows that may be missing.
const NAMED: &str = "`walrelay verify` names them";

/// The table as `sql` makes it, under a publication of all tables: Postgres itself refuses to set a table unlogged that
/// a publication names.
async fn published(sql: &str) -> Fixture {
    let fixture = Fixture::bare().await;
    let publication = format!(
        "CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root = true)",
        fixture.name
    );
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.sql.batch_execute(&publication).await.unwrap();
    fixture.setup().await;
    fixture
}

/// The events 1 to 10 are in the stream.
async fn running(fixture: &mut Fixture) -> Relay {
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    holds_events(fixture, 10).await;
    relay
}

async fn set(fixture: &Fixture, table: &str, persistence: &str) {
    let sql = format!("ALTER TABLE {table} SET {persistence}");
    fixture.sql.batch_execute(&sql).await.unwrap();
}

/// Sets `table` unlogged for the row `number`.
async fn unlogged_for(fixture: &Fixture, table: &str, number: u64) {
    set(fixture, table, "UNLOGGED").await;
    fixture.insert(number, number).await;
    set(fixture, table, "LOGGED").await;
}

/// The next start says that rows may be missing, the one after it does not.
async fn warns_once(fixture: &mut Fixture) {
    for says in [true, false] {
        let mut relay = fixture.run();
        relay.streams().await;
        assert_eq!(relay.log().contains(NAMED), says, "{}", relay.log());
        relay.stop().await;
    }
}

/// `walrelay verify` finds these and no other.
async fn verify_names(fixture: &Fixture, missing: &[Uuid]) {
    let verify = fixture.walrelay(&["verify"]).await;
    let said = format!("{}{}", verify.stdout, verify.stderr);
    let count = verify
        .stdout
        .lines()
        .find(|line| line.starts_with("missing"));
    let count = count.and_then(|line| line.split_whitespace().last());
    assert_eq!(count, Some(&*missing.len().to_string()), "{said}");
    for id in missing {
        assert!(verify.stdout.contains(&id.to_string()), "{said}");
    }
}

#[tokio::test]
async fn a_table_that_is_found_unlogged() {
    let mut fixture = published(TABLE).await;
    let mut relay = running(&mut fixture).await;
    let logged = relay.log().len();
    set(&fixture, "outbox_events", "UNLOGGED").await;
    fixture.insert(11, 12).await;
    logs_from(&mut relay, logged, "SET LOGGED").await;
    Restraint::of(&relay)
        .keeps(&relay, Duration::from_secs(1))
        .await;
    set(&fixture, "outbox_events", "LOGGED").await;
    logs_from(&mut relay, logged, NAMED).await;
    fixture.insert(13, 20).await;
    let sent: Vec<Uuid> = (1..=10).chain(13..=20).map(uuid).collect();
    judge_events(&fixture, &sent).await;
    relay.stop().await;
    verify_names(&fixture, &[uuid(11), uuid(12)]).await;
}

#[tokio::test]
async fn a_table_that_is_unlogged_for_a_moment() {
    let mut fixture = published(TABLE).await;
    let mut relay = running(&mut fixture).await;
    // Between two looks.
    let logged = relay.log().len();
    unlogged_for(&fixture, "outbox_events", 11).await;
    logs_from(&mut relay, logged, NAMED).await;
    fixture.insert(12, 12).await;
    holds_events(&fixture, 11).await;
    // While no relay runs, and said once.
    relay.kill();
    unlogged_for(&fixture, "outbox_events", 13).await;
    warns_once(&mut fixture).await;
    verify_names(&fixture, &[uuid(11), uuid(13)]).await;
}

#[tokio::test]
async fn a_partition_that_is_unlogged_for_a_moment() {
    let mut fixture = published(PARTITIONED).await;
    let mut relay = running(&mut fixture).await;
    let row = "SELECT tableoid::regclass::text FROM outbox_events LIMIT 1";
    let row = fixture.sql.query_one(row, &[]).await.unwrap();
    let leaf: String = row.get(0);
    let logged = relay.log().len();
    unlogged_for(&fixture, &leaf, 11).await;
    logs_from(&mut relay, logged, NAMED).await;
    relay.stop().await;
    unlogged_for(&fixture, &leaf, 12).await;
    warns_once(&mut fixture).await;
    // One that nobody has seen before.
    let new = "CREATE UNLOGGED TABLE new PARTITION OF outbox_events FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')";
    fixture.sql.batch_execute(new).await.unwrap();
    set(&fixture, "new", "LOGGED").await;
    warns_once(&mut fixture).await;
    verify_names(&fixture, &[uuid(11), uuid(12)]).await;
}

#[tokio::test]
async fn what_keeps_every_row_is_no_alarm() {
    let mut fixture = published(PARTITIONED).await;
    running(&mut fixture).await.stop().await;
    let old = "CREATE TABLE old PARTITION OF outbox_events FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')";
    for sql in [
        old,
        "ALTER TABLE outbox_events ADD COLUMN note text DEFAULT 'none'",
        "VACUUM FULL outbox_events",
        "CLUSTER old USING old_pkey",
        "REINDEX TABLE outbox_events",
        "TRUNCATE outbox_events",
        "DROP TABLE old",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.insert(11, 20).await;
    let mut relay = fixture.run();
    relay.streams().await;
    assert!(!relay.log().contains(NAMED), "{}", relay.log());
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}
