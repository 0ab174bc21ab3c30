//! The row filters: which share a row is of, and what is said of a filter that is another one.

use super::{SHARES, all_stream, divide, events, reports};
use crate::support::{Fixture, Output, eventually, uuid};

/// The table's own key decides: its name and its type. A row without one is of the first share.
#[tokio::test]
async fn keys_of_any_type_and_none() {
    for (key, values) in [
        ("text", "'key ' || n"),
        ("varchar(40)", "'key ' || n"),
        ("bigint", "n * 1000000007::bigint"),
        ("integer", "n"),
        ("smallint", "n::smallint"),
        ("bytea", "decode(md5(n::text), 'hex')"),
    ] {
        let mut fixture = Fixture::bare().await;
        let table = format!(
            "CREATE TABLE outbox_events (id uuid PRIMARY KEY, \"The Key\" {key}, event_type text NOT NULL,
             event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)"
        );
        fixture.sql.batch_execute(&table).await.unwrap();
        divide(&mut fixture, false);
        fixture.set("WALRELAY_COLUMNS_AGGREGATE_ID", "The Key");
        fixture.setup().await;
        let again = fixture.walrelay(&["setup"]).await.success();
        assert!(!again.stderr.contains("error"), "{key}: {}", again.stderr);
        let filters = "SELECT rowfilter FROM pg_publication_tables ORDER BY pubname";
        let filters = fixture.sql.query(filters, &[]).await.unwrap();
        let filters: Vec<String> = filters.iter().map(|row| row.get(0)).collect();
        assert_eq!(filters.len(), SHARES, "{key}");
        let insert = format!(
            "INSERT INTO outbox_events (id, \"The Key\", event_type, payload_json)
             SELECT gen_random_uuid(), CASE WHEN n > 3 THEN {values} END, 'a', '{{}}' FROM generate_series(1, 200) AS n"
        );
        fixture.sql.batch_execute(&insert).await.unwrap();
        let sum = filters
            .iter()
            .map(|filter| format!("coalesce({filter}, false)::int"))
            .collect::<Vec<_>>()
            .join(" + ");
        let query = format!(
            "SELECT count(*) FILTER (WHERE {sum} <> 1), count(*) FILTER (WHERE \"The Key\" IS NULL AND {}) FROM outbox_events",
            filters[0]
        );
        let row = fixture.sql.query_one(&query, &[]).await.unwrap();
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, i64>(1)),
            (0, 3),
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_key_that_no_row_filter_can_hash_is_refused() {
    let mut fixture = Fixture::new().await;
    let domain =
        "CREATE DOMAIN account AS uuid; ALTER TABLE outbox_events ALTER aggregate_id TYPE account";
    fixture.sql.batch_execute(domain).await.unwrap();
    divide(&mut fixture, false);
    fixture.set("WALRELAY_POSTGRES_SLOT", "divided");
    fixture
        .walrelay(&["setup"])
        .await
        .refused("no row filter can hash");
    // What the message names.
    let plain = "ALTER TABLE outbox_events ALTER aggregate_id TYPE uuid";
    fixture.sql.batch_execute(plain).await.unwrap();
    fixture.set("WALRELAY_NATS_STREAM", "DIVIDED");
    fixture.set("WALRELAY_NATS_SUBJECT", "divided.{event_type}");
    fixture.set("WALRELAY_POSTGRES_PUBLICATION", "divided");
    fixture.walrelay(&["setup"]).await.success();
}

/// The first mend that doctor prints for this code: what stands between "run" and " then".
pub(super) fn mend(output: &Output, code: &str) -> String {
    let found = reports(output)
        .iter()
        .flat_map(|report| report["findings"].as_array().unwrap().clone())
        .find(|finding| finding["code"] == code);
    let found = found.unwrap_or_else(|| panic!("no {code} in {}", output.stdout));
    let mend = found["mend"].as_str().unwrap();
    let sql = mend.split("run ").nth(1).unwrap();
    sql[..sql.find(" then").unwrap()].to_owned()
}

#[tokio::test]
async fn a_filter_that_was_edited_is_refused_and_mended() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let mut relay = fixture.run();
    all_stream(&fixture).await;
    let name = fixture.name.clone();
    let edit = format!(
        "ALTER PUBLICATION {name}_2 SET TABLE outbox_events WHERE ((uuid_hash(aggregate_id) & 3) = 2 AND event_version < 1)"
    );
    fixture.sql.batch_execute(&edit).await.unwrap();
    // The one that runs stops there, before anything falls between the shares for long.
    relay.logs("rows may be of no share, or of two").await;
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let ill = fixture.walrelay(&["doctor", "--json"]).await;
    assert_eq!(ill.code, Some(1), "{}", ill.stdout);
    // The query that it prints counts the rows.
    fixture.insert(1, 40).await;
    let what = ill.stdout.split("SELECT count(*)").nth(1).unwrap();
    let query = format!("SELECT count(*){}", &what[..what.find(';').unwrap()]);
    let row = fixture.sql.query_one(&query, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0);
    fixture
        .sql
        .batch_execute(&mend(&ill, "row-filter"))
        .await
        .unwrap();
    all_stream(&fixture).await;
    fixture.insert(41, 80).await;
    eventually("the shares go on", async || {
        let stored = events(&fixture).await;
        (41..=80)
            .map(uuid)
            .all(|id| stored.contains(&id))
            .then_some(())
    })
    .await;
    // What came in between is in the table, and told.
    fixture.walrelay(&["backfill"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}
