//! Shares of several tables: each table's rows by the hash of its own aggregate column, whatever its type.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use walrelay::outbox::SCHEMA_SQL;

use super::filters::mend;
use super::load::{SLOTS, are_owned, count, reshard, shares, stops, takes_dead_letters_of};
use super::verdict::{events_of, streams_of};
use super::{divide, reports};
use crate::support::{Fixture, Stored, eventually};

/// Aggregates of each table.
const AGGREGATES: u64 = 7;

/// Beside `outbox_events`, whose aggregate is a uuid: one with a text, and a column that the server computes; one with a bigint.
const TABLES: &str = "
    CREATE TABLE orders (id bigserial PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text, type text NOT NULL, payload jsonb,
        kind text GENERATED ALWAYS AS (lower(aggregatetype)) STORED);
    CREATE TABLE audit (no bigserial PRIMARY KEY, who bigint NOT NULL, what text, body jsonb NOT NULL)";

const FURTHER: &str = r#"
[[source.tables]]
name = "public.orders"
preset = "debezium"
subject = "NAME.SHAREorder.{aggregatetype}"
HEADERS

[[source.tables]]
name = "public.audit"
columns = { id = "no", aggregate_id = "who", event_type = "what", event_version = "", occurred_at = "", payload = "body" }
"#;

/// Two shares of three tables, set up; whether a computed column is among what is published.
async fn two_shares(own_streams: bool) -> (Fixture, bool) {
    let mut fixture = Fixture::bare().await;
    let version = "SELECT current_setting('server_version_num')::int4 >= 180000";
    let has_generated: bool = fixture.sql.query_one(version, &[]).await.unwrap().get(0);
    fixture.sql.batch_execute(SCHEMA_SQL).await.unwrap();
    fixture.sql.batch_execute(TABLES).await.unwrap();
    divide(&mut fixture, own_streams);
    shares(&mut fixture, 2);
    let share = if own_streams { "{share}." } else { "" };
    let headers = match has_generated {
        true => "message = { headers = { kind = \"kind\" } }",
        false => "",
    };
    let further = FURTHER
        .replace("NAME", &fixture.name)
        .replace("SHARE", share)
        .replace("HEADERS", headers);
    fixture.configure(&further);
    fixture.setup().await;
    (fixture, has_generated)
}

/// The `n`th row of each table, in one transaction.
fn rows(n: u64) -> String {
    let aggregate = n % AGGREGATES;
    format!(
        "BEGIN;
         INSERT INTO audit (who, what, body) VALUES ({aggregate} * 1000000007::bigint, 'read.v1', '{{\"n\": {n}}}');
         INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES
             (gen_random_uuid(), '00000000-0000-4000-8000-00000000000{aggregate}', 'lesson.published.v1', '{{\"n\": {n}}}');
         INSERT INTO orders (aggregatetype, aggregateid, type, payload) VALUES ('Book', 'o{aggregate}', 'made', '{{\"n\": {n}}}');
         COMMIT"
    )
}

async fn insert(fixture: &Fixture, first: u64, last: u64) {
    for n in first..=last {
        fixture.sql.batch_execute(&rows(n)).await.unwrap();
    }
}

/// Table and number of an event.
fn told(event: &Stored) -> (String, u64) {
    let table = event.headers.get("Walrelay-Table").cloned();
    let body: Value = serde_json::from_str(&event.body).unwrap();
    let payload = body.get("payload_json").unwrap_or(&body);
    let n = payload["n"].as_u64().expect("its number");
    (table.unwrap_or_default(), n)
}

/// Each of the rows up to `last` is in the streams once, and those of each aggregate in order.
async fn verdict(fixture: &Fixture, last: u64, streams: &[String]) {
    let all = eventually("all events are in the streams", async || {
        let all = events_of(fixture, streams).await;
        let stored: usize = all.iter().map(Vec::len).sum();
        (stored as u64 >= 3 * last).then_some(all)
    })
    .await;
    let mut merged: Vec<&Stored> = all.iter().flatten().collect();
    assert_eq!(merged.len() as u64, 3 * last);
    let each: BTreeSet<_> = merged.iter().map(|event| told(event)).collect();
    assert_eq!(each.len() as u64, 3 * last, "each once");
    merged.sort_by_key(|event| event.stored_ns);
    let mut ends = HashMap::new();
    for (table, n) in merged.into_iter().map(told) {
        let before = ends.insert((table.clone(), n % AGGREGATES), n);
        assert!(before < Some(n), "{table}, {n} behind {before:?}");
    }
}

#[tokio::test]
async fn each_share_has_its_rows_of_every_table() {
    let (mut fixture, has_generated) = two_shares(true).await;
    let again = fixture.walrelay(&["setup"]).await.success();
    assert!(!again.stdout.contains("made"), "{again:?}");
    let healthy = fixture.walrelay(&["doctor", "--json"]).await;
    assert!(!healthy.stdout.contains("row-filter"), "{healthy:?}");
    let relay = fixture.run();
    are_owned(&fixture, 2).await;
    insert(&fixture, 1, 30).await;
    // Without an aggregate it is of the first share.
    let none = "INSERT INTO orders (aggregatetype, aggregateid, type, payload) VALUES ('Book', NULL, 'made', '{\"n\": 99}')";
    fixture.sql.batch_execute(none).await.unwrap();
    let streams = streams_of(&fixture, 2);
    let all = eventually("all are stored", async || {
        let all = events_of(&fixture, &streams).await;
        (all.iter().map(Vec::len).sum::<usize>() == 91).then_some(all)
    })
    .await;
    for (table, number, hash) in [
        (
            "",
            "(payload_json ->> 'n')::int8",
            "uuid_hash(aggregate_id)",
        ),
        (
            "public.orders",
            "(payload ->> 'n')::int8",
            "hashtext(aggregateid)",
        ),
        ("public.audit", "(body ->> 'n')::int8", "hashint8(who)"),
    ] {
        let name = if table.is_empty() {
            "public.outbox_events"
        } else {
            table
        };
        let query = format!("SELECT {number}, coalesce({hash} & 1, 0) FROM {name}");
        for row in fixture.sql.query(&query, &[]).await.unwrap() {
            let (n, share): (i64, i32) = (row.get(0), row.get(1));
            let is_it = |event: &&Stored| told(event) == (table.to_owned(), n as u64);
            let found: Vec<usize> = all
                .iter()
                .map(|stored| stored.iter().filter(is_it).count())
                .collect();
            assert_eq!(found[share as usize], 1, "{name} {n}");
            assert_eq!(found.iter().sum::<usize>(), 1, "{name} {n}");
        }
    }
    if has_generated {
        let orders = all
            .iter()
            .flatten()
            .filter(|it| told(it).0 == "public.orders");
        for order in orders {
            // As Debezium writes a text in a header.
            assert_eq!(order.headers["kind"], "\"book\"");
        }
    }
    fixture.walrelay(&["verify"]).await.success();
    stops(relay).await;
}

#[tokio::test]
async fn a_filter_that_was_edited_for_one_table_is_refused_and_mended_for_it_alone() {
    let (mut fixture, _) = two_shares(false).await;
    let mut relay = fixture.run();
    are_owned(&fixture, 2).await;
    let name = fixture.name.clone();
    let filters = "SELECT pubname || ' ' || tablename || ' ' || rowfilter FROM pg_publication_tables ORDER BY 1";
    let carried = async |fixture: &Fixture| -> Vec<String> {
        let rows = fixture.sql.query(filters, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let before = carried(&fixture).await;
    assert_eq!(before.len(), 6, "{before:?}");
    let edit = format!(
        "BEGIN; ALTER PUBLICATION {name}_1 DROP TABLE orders;
         ALTER PUBLICATION {name}_1 ADD TABLE orders WHERE ((hashtext(aggregateid) & 1) = 1 AND aggregatetype = 'Film'); COMMIT"
    );
    fixture.sql.batch_execute(&edit).await.unwrap();
    relay.logs("rows may be of no share, or of two").await;
    for command in [&["setup"][..], &["reshard", "--shares", "4"]] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
    }
    insert(&fixture, 1, 20).await;
    let ill = fixture.walrelay(&["doctor", "--json"]).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    let mend = mend(&ill, "row-filter");
    assert!(
        mend.contains("public.orders") && !mend.contains("audit"),
        "{mend}"
    );
    fixture.sql.batch_execute(&mend).await.unwrap();
    assert_eq!(carried(&fixture).await, before);
    are_owned(&fixture, 2).await;
    insert(&fixture, 21, 40).await;
    // What fell between the shares meanwhile is in the table, and told.
    eventually("the shares go on", async || {
        let stored = events_of(&fixture, &streams_of(&fixture, 1)).await;
        let late = stored.iter().flatten().filter(|it| told(it).1 > 20);
        (late.count() == 60).then_some(())
    })
    .await;
    let missing = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    let found = reports(&missing);
    let of = |table: &str| -> u64 {
        let of_table = found.iter().filter(|it| it["table"] == json!(table));
        of_table
            .map(|it| it["missing"]["count"].as_u64().unwrap())
            .sum()
    };
    assert!(of("public.orders") > 0, "{missing:?}");
    assert_eq!(of("public.audit") + of("public.outbox_events"), 0);
    fixture.walrelay(&["backfill"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    stops(relay).await;
}

/// The share has rows of the other tables still.
#[tokio::test]
async fn a_table_of_which_a_share_was_emptied_is_refused_and_mended_for_it_alone() {
    let (fixture, _) = two_shares(false).await;
    let name = &fixture.name;
    let edit = format!(
        "BEGIN; ALTER PUBLICATION {name}_1 DROP TABLE orders;
         ALTER PUBLICATION {name}_1 ADD TABLE orders WHERE (false); COMMIT"
    );
    fixture.sql.batch_execute(&edit).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let ill = fixture.walrelay(&["doctor", "--json"]).await;
    let mend = mend(&ill, "row-filter");
    assert!(mend.contains("public.orders"), "{mend}");
    fixture.sql.batch_execute(&mend).await.unwrap();
    let well = fixture.walrelay(&["doctor", "--json"]).await;
    assert!(!well.stdout.contains("row-filter"), "{well:?}");
    fixture.setup().await;
}

#[tokio::test]
async fn another_number_of_shares_divides_all_tables_at_one_place() {
    more_and_less(false).await;
}

#[tokio::test]
async fn with_a_stream_each_the_aggregates_of_all_tables_are_in_order() {
    more_and_less(true).await;
}

async fn more_and_less(own_streams: bool) {
    let (mut fixture, has_generated) = two_shares(own_streams).await;
    if !own_streams {
        takes_dead_letters_of(&fixture, "4").await;
    }
    shares(&mut fixture, 4);
    let relay = fixture.run();
    let (committed, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = {
        let (sql, committed, stop) = (fixture.connect().await, committed.clone(), stop.clone());
        tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                sql.batch_execute(&rows(n)).await.unwrap();
                committed.store(n, Ordering::Relaxed);
            }
            n
        })
    };
    let more = async || {
        let begin = committed.load(Ordering::Relaxed);
        eventually("it is written on", async || {
            (committed.load(Ordering::Relaxed) >= begin + 100).then_some(())
        })
        .await;
    };
    more().await;
    for (to, lanes) in [("4", 4), ("2", 2), ("4", 4)] {
        reshard(&fixture, to).await;
        assert_eq!(count(&fixture, SLOTS).await, lanes);
        are_owned(&fixture, lanes).await;
        more().await;
        assert_eq!(
            count(&fixture, "FROM pg_publication_tables").await,
            3 * lanes
        );
        if has_generated {
            let generated = "FROM pg_publication WHERE pubgencols = 's'";
            assert_eq!(count(&fixture, generated).await, lanes);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap();
    verdict(
        &fixture,
        last,
        &streams_of(&fixture, if own_streams { 4 } else { 1 }),
    )
    .await;
    fixture.walrelay(&["verify"]).await.success();
    stops(relay).await;
}
