//! Several tables in one lane, each with a mapping of its own.

use serde_json::{Value, json};
use walrelay::outbox::SCHEMA_SQL;

use crate::support::{Fixture, Output, Stored, insert_sql};

/// Beside `outbox_events`: a table as Debezium has it and one of other columns, whose ids are the same numbers.
const TABLES: &str = "
    CREATE TABLE orders (id bigserial PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL,
        type text NOT NULL, payload jsonb);
    CREATE TABLE audit (no bigserial PRIMARY KEY, who text NOT NULL, what text, at timestamptz NOT NULL
        DEFAULT '2026-11-28 07:05:32Z', body jsonb NOT NULL)";

pub(crate) const FURTHER: &str = r#"
[[source.tables]]
name = "public.orders"
preset = "debezium"
subject = "NAME.order.{aggregatetype}"

[[source.tables]]
name = "public.audit"
columns = { id = "no", aggregate_id = "who", event_type = "what", event_version = "", occurred_at = "at", payload = "body" }
"#;

pub(crate) async fn bare() -> Fixture {
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(TABLES).await.unwrap();
    fixture.configure(&FURTHER.replace("NAME", &fixture.name));
    fixture
}

pub(crate) fn order(n: u64) -> String {
    format!(
        "INSERT INTO orders (aggregatetype, aggregateid, type, payload) VALUES ('Book', 'o{n}', 'made', '{{\"n\": {n}}}')"
    )
}

pub(crate) fn audit(n: u64) -> String {
    format!("INSERT INTO audit (who, what, body) VALUES ('w{n}', 'read.v1', '{{\"n\": {n}}}')")
}

/// One row of each.
pub(crate) fn each(n: u64) -> [String; 3] {
    [audit(n), insert_sql(n, n), order(n)]
}

/// Table, position's ordinal and subject's end of a message.
pub(crate) fn told(message: &Stored) -> (Option<&str>, Option<&str>) {
    let header = |name| message.headers.get(name).map(String::as_str);
    let position = header("Walrelay-Position").and_then(|it| it.rsplit_once(':'));
    (
        header("Walrelay-Table"),
        position.map(|(_, ordinal)| ordinal),
    )
}

pub(crate) fn reports(verify: &Output) -> Vec<Value> {
    let lines = verify.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn rows_of_all_tables_come_in_the_order_of_the_transaction() {
    let mut fixture = bare().await;
    fixture.sql.batch_execute(SCHEMA_SQL).await.unwrap();
    let before = each(1).join(";");
    fixture.sql.batch_execute(&before).await.unwrap();
    let setup = fixture.walrelay(&["setup"]).await;
    for table in ["public.outbox_events", "public.orders", "public.audit"] {
        let rows = format!("1 row is already in {table} and will not be published");
        assert!(setup.stdout.contains(&rows), "{setup:?}");
    }
    let mut relay = fixture.run();
    relay.streams().await;
    let transaction = [audit(2), insert_sql(2, 2), order(2), audit(3)].join(";");
    fixture
        .sql
        .batch_execute(&format!("BEGIN; {transaction}; COMMIT"))
        .await
        .unwrap();
    fixture.holds(4).await;
    relay.stop().await;

    let stored = fixture.stored().await;
    let (audits, orders) = (Some("public.audit"), Some("public.orders"));
    let order_of_all: Vec<_> = stored.iter().map(told).collect();
    assert_eq!(
        order_of_all,
        [
            (audits, Some("1")),
            (None, Some("2")),
            (orders, Some("3")),
            (audits, Some("4"))
        ]
    );
    let name = &fixture.name;
    assert_eq!(stored[2].subject, format!("{name}.order.Book"));
    assert_eq!(stored[2].body, r#"{"n": 2}"#);
    assert_eq!(stored[3].subject, format!("{name}.read.v1"));
    assert_eq!(
        stored[3].body,
        r#"{"id":3,"aggregate_id":"w3","event_type":"read.v1","occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n": 3}}"#
    );

    // The same ids are in two tables: each is missed of its own.
    let verify = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    let missing: Vec<_> = reports(&verify)
        .iter()
        .map(|report| (report["table"].clone(), report["missing"]["count"].clone()))
        .collect();
    assert_eq!(
        missing,
        ["public.outbox_events", "public.orders", "public.audit"].map(|it| (json!(it), json!(1)))
    );
    fixture.walrelay(&["backfill"]).await.success();
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");

    // The next start meets its own last event again, a further table's, and publishes nothing twice.
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&order(4)).await.unwrap();
    fixture.holds(8).await;
    relay.stop().await;
    assert_eq!(fixture.message_count().await, 8);
    // From a place of the lane on, which a message of the first table has.
    let shown = async |since: &str| {
        let one = ["tail", "--since", since, "--count", "1", "--json"];
        let shown = fixture.walrelay(&one).await.success().stdout;
        serde_json::from_str::<Value>(&shown).unwrap()
    };
    let second = shown("seq:2").await;
    let position = second["position"].as_str().unwrap();
    let lsn = position.split([' ', ':']).find(|part| part.contains('/'));
    let places = [second["stored_at"].as_str(), lsn];
    for place in places.into_iter().flatten() {
        let found = shown(place).await["sequence"].as_u64().unwrap();
        assert!(
            found <= second["sequence"].as_u64().unwrap(),
            "{place}: {found}"
        );
    }
    let unknown = fixture.walrelay(&["tail", "--since", "yesterday"]).await;
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    let tail = fixture
        .walrelay(&["tail", "--since", "all", "--count", "8", "--json"])
        .await;
    let classes = tail.stdout.lines().map(|line| {
        let entry: Value = serde_json::from_str(line).unwrap();
        entry["class"].clone()
    });
    assert!(
        classes.into_iter().all(|class| class == "event"),
        "{tail:?}"
    );

    let prune = fixture
        .walrelay(&["prune", "--older-than", "1d", "--dry-run"])
        .await;
    assert_eq!(prune.code, Some(2), "orders has no occurred_at: {prune:?}");
    let removed = fixture
        .walrelay(&["teardown", "--drop-table", "--yes"])
        .await;
    removed.success();
    let left =
        "SELECT count(*) FROM pg_class WHERE relname IN ('outbox_events', 'orders', 'audit')";
    let left: i64 = fixture.sql.query_one(left, &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_dead_letter_tells_its_table_and_is_retried_from_it() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let rows = "INSERT INTO audit (who, what, body) VALUES ('w1', NULL, '{}')";
    fixture
        .sql
        .batch_execute(&format!("{}; {rows}", order(1)))
        .await
        .unwrap();
    fixture.holds(2).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(told(&stored[1]), (Some("public.audit"), Some("2")));
    let verify = fixture.walrelay(&["verify", "--json"]).await;
    let lettered: Vec<_> = reports(&verify)
        .iter()
        .map(|report| report["dead_lettered"]["count"].clone())
        .collect();
    assert_eq!(lettered, [json!(0), json!(0), json!(1)]);
    let mend = "UPDATE audit SET what = 'read.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");

    // Another table's event has the same id, and stays.
    let erased = fixture
        .walrelay(&["erase", "--aggregate-id", "w1", "--yes", "--json"])
        .await;
    erased.success();
    let left = fixture.stored().await;
    let left = left.iter();
    let left: Vec<_> = left.map(|it| (told(it).0, it.kind.as_deref())).collect();
    // Of a retried dead letter, the mark stays, which tells the event's id.
    let expected = [
        (Some("public.orders"), None),
        (Some("public.audit"), Some("retried")),
    ];
    assert!(left.starts_with(&expected), "{left:?}");
    let of_audit = left.iter().filter(|(table, _)| *table == expected[1].0);
    assert_eq!(of_audit.count(), 1, "{left:?}");
}

#[tokio::test]
async fn a_table_is_added_to_a_lane_that_has_published() {
    let mut fixture = Fixture::new().await;
    // Each start reads again what is published, as with the default.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    relay.stop().await;
    fixture.sql.batch_execute(TABLES).await.unwrap();
    fixture.configure(&FURTHER.replace("NAME", &fixture.name));
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let doctor = fixture.walrelay(&["doctor"]).await;
    for table in ["public.orders", "public.audit"] {
        let mend = format!("ALTER PUBLICATION {} ADD TABLE {table};", fixture.name);
        assert!(refused.stderr.contains(&mend), "{refused:?}");
        assert!(doctor.stdout.contains(&mend), "{doctor:?}");
        // In front of the start that names them, their rows are not the lane's.
        fixture.sql.batch_execute(&mend).await.unwrap();
    }
    fixture.sql.batch_execute(&audit(1)).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&each(2).join(";")).await.unwrap();
    fixture.holds(4).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let tables: Vec<_> = stored.iter().map(|message| told(message).0).collect();
    let (audits, orders) = (Some("public.audit"), Some("public.orders"));
    assert_eq!(tables, [None, audits, None, orders]);
    // The row before is missing, and told so.
    let verify = fixture.walrelay(&["verify", "--json"]).await;
    let missing: Vec<_> = reports(&verify)
        .iter()
        .map(|report| report["missing"]["count"].clone())
        .collect();
    assert_eq!(missing, [json!(0), json!(0), json!(1)]);
    fixture.walrelay(&["backfill"]).await.success();
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");

    // Without the table of the last event the WAL does not continue the stream. Named again, it does.
    let all = FURTHER.replace("NAME", &fixture.name);
    let (_, without_orders) = all.split_once("\n\n").expect("two tables");
    fixture.configure(without_orders);
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{halted:?}");
    fixture.configure(&all);
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&each(3).join(";")).await.unwrap();
    fixture.holds(8).await;
    relay.stop().await;
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}
