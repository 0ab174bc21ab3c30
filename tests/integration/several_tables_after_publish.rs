//! `outbox.after_publish` with several tables in one lane: each row by the id in its own table.

use serde_json::Value;

use crate::several_tables::{FURTHER, audit, bare, order};
use crate::statements::statements;
use crate::support::wait::SOON;
use crate::support::{Fixture, eventually, insert_sql, site};

const TABLES: [&str; 3] = ["outbox_events", "orders", "audit"];
/// No type, so no subject.
const DEAD: &str = "INSERT INTO audit (who, what, body) VALUES ('w0', NULL, '{}')";
/// Rows of each table; ids of orders and audit are the same numbers.
const ROWS: u64 = 3_000;

/// Rows of each table for which the condition holds.
async fn rows(fixture: &Fixture, which: &str) -> [i64; 3] {
    let mut rows = [0; 3];
    for (count, table) in rows.iter_mut().zip(TABLES) {
        let sql = format!("SELECT count(*) FROM {table} WHERE {which}");
        *count = fixture.sql.query_one(&sql, &[]).await.unwrap().get(0);
    }
    rows
}

async fn has(fixture: &Fixture, which: &str, wanted: [i64; 3]) {
    let mut has = [0; 3];
    let reached = async {
        while has != wanted {
            has = rows(fixture, which).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let reached = tokio::time::timeout(SOON, reached).await;
    reached.unwrap_or_else(|_| panic!("{has:?} rows with {which}, not {wanted:?}"));
}

/// Waits until the relay tells that the rows of so many messages are still to be settled.
async fn lags(fixture: &Fixture, messages: u64) {
    eventually(format!("{messages} messages wait"), async || {
        let told = fixture.walrelay(&["status", "--json"]).await.stdout;
        let told: Value = serde_json::from_str(&told).ok()?;
        (told["relay"]["after_publish_lag"].as_u64()? == messages).then_some(())
    })
    .await;
}

/// Waits until it is kept that the rows of so many messages are done with.
async fn keeps(fixture: &Fixture, sequence: u64) {
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let records = context.get_stream("WALRELAY").await.unwrap();
    let (stream, slot) = (fixture.stream_name(), &fixture.name);
    let subject = format!("walrelay.lane.{stream}.{slot}.settled");
    eventually(format!("{sequence} is kept"), async || {
        let message = records.get_last_raw_message_by_subject(&subject).await;
        let place: Value = serde_json::from_slice(&message.ok()?.payload).unwrap();
        (place["sequence"] == sequence).then_some(())
    })
    .await;
}

fn many() -> String {
    format!(
        "{}; INSERT INTO orders (aggregatetype, aggregateid, type, payload)
                SELECT 'Book', n::text, 'made', '{{}}' FROM generate_series(1, {ROWS}) n;
             INSERT INTO audit (who, what, body) SELECT 'w', 'read.v1', '{{}}' FROM generate_series(1, {ROWS})",
        insert_sql(1, ROWS)
    )
}

#[tokio::test]
async fn a_row_is_marked_in_its_own_table() {
    let mut fixture = bare().await;
    fixture.setup().await;
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    // Refused before anything is published, with what each table lacks.
    fixture.sql.batch_execute(&order(1)).await.unwrap();
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let printed = statements(&refused.stderr);
    assert_eq!(printed.len(), 3, "{refused:?}");
    for (statement, table) in printed.iter().zip(TABLES) {
        assert_eq!(
            *statement,
            format!("ALTER TABLE public.{table} ADD COLUMN dispatched_at timestamptz")
        );
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    assert_eq!(fixture.message_count().await, 0);

    let mut relay = fixture.run();
    relay.streams().await;
    has(&fixture, "dispatched_at IS NOT NULL", [0, 1, 0]).await;
    // The dead letter has the id of an order that is published.
    fixture.sql.batch_execute(DEAD).await.unwrap();
    let more = [audit(2), insert_sql(1, 2), order(2), order(3)].join(";");
    fixture.sql.batch_execute(&more).await.unwrap();
    has(&fixture, "dispatched_at IS NOT NULL", [2, 3, 1]).await;
    assert_eq!(rows(&fixture, "dispatched_at IS NULL").await, [0, 0, 1]);
    relay.stop().await;
}

#[tokio::test]
async fn rows_of_all_tables_are_deleted_once_confirmed_also_by_relays_that_are_killed() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.sql.batch_execute(DEAD).await.unwrap();
    fixture.sql.batch_execute(&many()).await.unwrap();
    let mut killed = fixture.run();
    let all = 3 * ROWS + 1;
    fixture.holds(all).await;
    lags(&fixture, all).await;
    let kept = i64::try_from(ROWS).unwrap();
    assert_eq!(rows(&fixture, "true").await, [kept, kept, kept + 1]);
    killed.kill();

    // Killed while rows go: a lock keeps those of one table.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let last = "SELECT FROM audit ORDER BY no DESC LIMIT 1 FOR UPDATE";
    let locker = fixture.begins(last).await;
    let mut killed = fixture.run();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM public.audit%'
        AND datname = current_database()";
    eventually("the last rows are waited for", async || {
        let waiting: i64 = fixture.sql.query_one(waits, &[]).await.unwrap().get(0);
        (waiting == 1).then_some(())
    })
    .await;
    let [own, orders, audits] = rows(&fixture, "true").await;
    assert!(
        own + orders == 0 && (2..=1_001).contains(&audits),
        "{audits}"
    );
    killed.kill();
    locker.batch_execute("COMMIT").await.unwrap();
    let relay = fixture.run();
    has(&fixture, "true", [0, 0, 1]).await;
    lags(&fixture, 0).await;
    let sql = "SELECT count(*) FROM audit WHERE what IS NULL";
    let dead: i64 = fixture.sql.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(dead, 1);
    // What the deletes write is none of the lane's.
    assert_eq!(fixture.message_count().await, all);
    relay.stop().await;
}

#[tokio::test]
async fn rows_of_a_table_that_is_taken_away_stay() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    let mut relay = fixture.run();
    relay.streams().await;
    let rows_of_all = [audit(1), order(1), insert_sql(1, 1)].join(";");
    fixture.sql.batch_execute(&rows_of_all).await.unwrap();
    fixture.holds(3).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;

    let with_all = FURTHER.replace("NAME", &fixture.name);
    let without_audit = with_all.split_once("\n\n").expect("two tables").0;
    fixture.configure(without_audit);
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let mut relay = fixture.run();
    relay
        .logs("events of table public.audit, which the configuration names no more")
        .await;
    has(&fixture, "true", [0, 0, 1]).await;
    lags(&fixture, 0).await;
    fixture.sql.batch_execute(&order(2)).await.unwrap();
    has(&fixture, "true", [0, 0, 1]).await;
    fixture.holds(4).await;
    keeps(&fixture, 4).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;

    // Back, it goes on with its next row; the one from before is for prune.
    fixture.configure(&with_all);
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&audit(2)).await.unwrap();
    fixture.holds(5).await;
    lags(&fixture, 0).await;
    has(&fixture, "true", [0, 0, 1]).await;
    let pruned = fixture.prune(&["--older-than", "0s", "--json"]).await;
    has(&fixture, "true", [0, 0, 0]).await;
    // Orders do not tell their age.
    assert_eq!(pruned.code, Some(2), "{pruned:?}");
    relay.stop().await;
}
