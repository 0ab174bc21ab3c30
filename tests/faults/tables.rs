//! The outbox table is renamed, replaced or altered: which rows are events is told by the WAL alone, each time it is read.

use crate::lane::{holds_events, judge_events, logs_from};
use crate::remedies::mend;
use crate::support::{Fixture, Relay, Servers, binaries, insert_sql, options, uuid};
use uuid::Uuid;

const TABLE: &str = include_str!("../../sql/0001_outbox_events.sql");

/// Under a publication of all tables.
async fn all_tables() -> Fixture {
    let mut fixture = Fixture::bare().await;
    let publication = format!(
        "CREATE PUBLICATION {} FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root = true)",
        fixture.name
    );
    fixture.sql.batch_execute(TABLE).await.unwrap();
    fixture.sql.batch_execute(&publication).await.unwrap();
    fixture.setup().await;
    // So that the slot still has everything at the next start.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture
}

/// The events 1 to 100 are in the stream.
async fn running(fixture: &mut Fixture) -> Relay {
    let relay = fixture.run();
    fixture.insert(1, 100).await;
    holds_events(fixture, 100).await;
    relay
}

fn events(last: u64) -> Vec<Uuid> {
    (1..=last).map(uuid).collect()
}

const COPY: &str = "CREATE TABLE outbox_new (LIKE outbox_events INCLUDING ALL);
    INSERT INTO outbox_new SELECT * FROM outbox_events";
const SWAP: &str = "BEGIN; ALTER TABLE outbox_events RENAME TO outbox_old;
    ALTER TABLE outbox_new RENAME TO outbox_events; COMMIT";

#[tokio::test]
async fn a_table_replaced_by_a_copy_under_the_relay() {
    let mut fixture = all_tables().await;
    let mut relay = running(&mut fixture).await;
    fixture.sql.batch_execute(COPY).await.unwrap();
    fixture.sql.batch_execute(SWAP).await.unwrap();
    fixture.insert(101, 110).await;
    judge_events(&fixture, &events(110)).await;
    relay.logs("public.outbox_new").await;
    // The table that was the outbox is a table like any other now, and that is said.
    let logged = relay.log().len();
    let old = insert_sql(111, 111).replace("outbox_events", "outbox_old");
    fixture.sql.batch_execute(&old).await.unwrap();
    fixture.insert(112, 112).await;
    logs_from(&mut relay, logged, "public.outbox_old").await;
    let mut sent = events(110);
    sent.push(uuid(112));
    judge_events(&fixture, &sent).await;
    // Whatever the catalog says now: what was read before is read in the same way.
    relay.kill();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(113, 113).await;
    sent.push(uuid(113));
    judge_events(&fixture, &sent).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_table_replaced_by_a_copy_while_no_relay_runs() {
    let mut fixture = all_tables().await;
    running(&mut fixture).await.kill();
    fixture.insert(101, 105).await;
    fixture.sql.batch_execute(COPY).await.unwrap();
    fixture.sql.batch_execute(SWAP).await.unwrap();
    fixture.insert(106, 110).await;
    // Between them, rows of the table that was the outbox: what is read from before the swap must not make it that again.
    for number in 201..=203 {
        let old = insert_sql(number, number).replace("outbox_events", "outbox_old");
        fixture.sql.batch_execute(&old).await.unwrap();
    }
    let mut relay = fixture.run();
    judge_events(&fixture, &events(110)).await;
    relay.kill();
    let mut relay = fixture.run();
    fixture.insert(111, 112).await;
    relay.logs("public.outbox_old").await;
    judge_events(&fixture, &events(112)).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_table_replaced_by_a_copy_in_one_transaction() {
    let mut fixture = all_tables().await;
    let mut relay = running(&mut fixture).await;
    let swap = SWAP.replace("BEGIN;", "").replace("COMMIT", "");
    let all = format!("BEGIN; {COPY}; {swap}; {}; COMMIT", insert_sql(101, 101));
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.insert(102, 110).await;
    judge_events(&fixture, &events(110)).await;
    relay.kill();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(111, 112).await;
    judge_events(&fixture, &events(112)).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_table_renamed_and_the_configuration_with_it() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = running(&mut fixture).await;
    relay.stop().await;
    let renamed =
        |table: &str, first, last| insert_sql(first, last).replace("outbox_events", table);
    fixture.insert(101, 105).await;
    let rename = "ALTER TABLE outbox_events RENAME TO events";
    fixture.sql.batch_execute(rename).await.unwrap();
    let insert = renamed("events", 106, 110);
    fixture.sql.batch_execute(&insert).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.events");
    let mut relay = fixture.run();
    judge_events(&fixture, &events(110)).await;
    relay.kill();
    // And back.
    let insert = renamed("events", 111, 112);
    fixture.sql.batch_execute(&insert).await.unwrap();
    let rename = "ALTER TABLE events RENAME TO outbox_events";
    fixture.sql.batch_execute(rename).await.unwrap();
    fixture.insert(113, 115).await;
    fixture.unset("WALRELAY_POSTGRES_TABLE");
    let relay = fixture.run();
    judge_events(&fixture, &events(115)).await;
    relay.stop().await;
}

/// A column that was away for some rows: they can be no events, and stop nothing that comes behind them.
#[tokio::test]
async fn a_column_that_was_away_for_some_rows() {
    let away = "ALTER TABLE outbox_events RENAME payload_json TO body;
        INSERT INTO outbox_events (id, aggregate_id, event_type, body)
        SELECT gen_random_uuid(), gen_random_uuid(), 'a.b', '{}' FROM generate_series(1, 3)";
    let back = "ALTER TABLE outbox_events RENAME body TO payload_json";
    for is_running in [true, false] {
        let mut fixture = Fixture::new().await;
        let mut relay = running(&mut fixture).await;
        if !is_running {
            relay.kill();
        }
        let logged = relay.log().len();
        fixture.sql.batch_execute(away).await.unwrap();
        if is_running {
            // As long as it is away, it is waited for.
            logs_from(&mut relay, logged, "payload_json").await;
            assert_eq!(fixture.message_count().await, 100);
        }
        fixture.sql.batch_execute(back).await.unwrap();
        if !is_running {
            relay = fixture.run();
        }
        fixture.insert(101, 110).await;
        fixture.holds(113).await;
        relay.stop().await;
        let stored = fixture.stored().await;
        for message in &stored[100..103] {
            assert_eq!(message.kind.as_deref(), Some("dead-letter"));
            assert_eq!(message.field("reason"), "no-column");
        }
        let ids: Vec<Uuid> = stored[103..].iter().map(|message| message.id()).collect();
        assert_eq!(ids, (101..=110).map(uuid).collect::<Vec<_>>());
        // The rows have the column again.
        let retried = fixture.walrelay(&["dead-letters", "retry", "--all"]).await;
        assert_eq!(
            retried.code,
            Some(0),
            "{}{}",
            retried.stdout,
            retried.stderr
        );
    }
}

/// The WAL is decoded by the names of its own time: both names are needed as long as the slot has what is from before.
#[tokio::test]
async fn a_publication_renamed_and_the_configuration_with_it() {
    is_renamed(Fixture::new().await, true).await;
}

#[tokio::test]
#[ignore = "needs Postgres 14 to 17: make versions"]
async fn a_publication_renamed_in_every_supported_version() {
    for major in 14..=17 {
        let binaries = binaries().with_postgres_major(major).expect("it is there");
        let servers = Servers::of(binaries, options(&[])).await;
        let fixture = Fixture::bare_on(servers).await;
        fixture.setup().await;
        is_renamed(fixture, false).await;
    }
}

/// `peeks`: a slot can be looked into that has WAL from under both names.
async fn is_renamed(mut fixture: Fixture, peeks: bool) {
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = running(&mut fixture).await;
    let name = fixture.name.clone();
    let rename = |from: &str, to: &str| format!("ALTER PUBLICATION {from} RENAME TO {to}");
    relay.kill();
    // Rows from before that nobody has published, and rows behind it.
    fixture.insert(101, 105).await;
    let renamed = format!("{name}_renamed");
    fixture
        .sql
        .batch_execute(&rename(&name, &renamed))
        .await
        .unwrap();
    fixture.insert(106, 110).await;
    // Nothing that is destroyed comes first.
    let remedy = mend(&fixture, "publication-missing").await;
    let remedy = remedy.expect("it has another name");
    let first = format!("publication {renamed} carries the rows of table");
    assert!(remedy.starts_with(&first), "{remedy}");
    let typed = format!("give --publication {renamed} or set postgres.publication = \"{renamed}\"");
    assert!(remedy.contains(&typed), "{remedy}");
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{}", setup.stderr);
    let (_, refused) = setup.stderr.split_once(&first).expect("the same");
    let teardown = refused.find("walrelay teardown").expect("the other way");
    assert!(
        refused.find(&typed).is_some_and(|typed| typed < teardown),
        "{refused}"
    );
    fixture.set("WALRELAY_POSTGRES_PUBLICATION", &renamed);
    // What the slot has from under the other name is not missing: nobody is to publish it besides.
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    if peeks {
        let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
        assert_eq!(report["missing"]["count"], 0, "{report}");
        assert_eq!(report["pending"], 10, "{report}");
    } else {
        // No verdict, and what it says cures it: the relay is started again below.
        assert_eq!(verified.code, Some(3), "{}", verified.stderr);
        let says = verified.stderr.contains("start the relay again");
        assert!(says, "{}", verified.stderr);
    }
    let mut relay = fixture.run();
    judge_events(&fixture, &events(110)).await;
    relay.logs(&format!("reading on as {renamed}")).await;
    let alarm = "was changed or made again";
    assert!(!relay.log().contains(alarm), "{}", relay.log());
    // Killed: the record knows both names.
    relay.kill();
    fixture.insert(111, 112).await;
    let mut relay = fixture.run();
    judge_events(&fixture, &events(112)).await;
    // And back, under the relay.
    fixture
        .sql
        .batch_execute(&rename(&renamed, &name))
        .await
        .unwrap();
    fixture.insert(113, 115).await;
    relay.ends().await;
    fixture.unset("WALRELAY_POSTGRES_PUBLICATION");
    let relay = fixture.run();
    fixture.insert(116, 117).await;
    judge_events(&fixture, &events(117)).await;
    relay.stop().await;
    let relay = fixture.run_with(&["--hold-back", "0s"]);
    fixture.confirms(fixture.server_lsn().await).await;
    fixture.insert(118, 119).await;
    judge_events(&fixture, &events(119)).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}
