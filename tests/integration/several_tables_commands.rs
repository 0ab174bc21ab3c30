//! The commands on a lane of several tables: each table by its own mapping, and the union by one order.

use std::collections::BTreeSet;

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::several_tables::{audit, bare, each, order, reports, told};
use crate::support::wait::SOON;
use crate::support::{Fixture, insert_sql};

/// Tables whose rows tell their age in other types than the lane's own.
const AGED: &str = "
    CREATE TABLE ledger (id bigserial PRIMARY KEY, kind text, ms bigint NOT NULL, body jsonb NOT NULL);
    CREATE TABLE journal (id bigserial PRIMARY KEY, kind text, day date NOT NULL, body jsonb NOT NULL)";

const AGED_TABLES: &str = r#"
[[source.tables]]
name = "public.ledger"
columns = { id = "id", aggregate_id = "", event_type = "kind", event_version = "", occurred_at = "ms", payload = "body" }

[[source.tables]]
name = "public.journal"
columns = { id = "id", aggregate_id = "", event_type = "kind", event_version = "", occurred_at = "day", payload = "body" }
"#;

/// A row of each table, of so many days ago.
fn aged(n: u64, days: u64) -> String {
    let at = format!("now() - interval '{days} days'");
    format!(
        "{}; UPDATE outbox_events SET occurred_at = {at} WHERE aggregate_id = (SELECT aggregate_id FROM outbox_events ORDER BY id DESC LIMIT 1);
         INSERT INTO ledger (kind, ms, body) VALUES ('paid', extract(epoch FROM {at}) * 1000, '{{}}');
         INSERT INTO journal (kind, day, body) VALUES ('noted', ({at})::date, '{{}}')",
        insert_sql(n, n)
    )
}

async fn rows(fixture: &Fixture) -> [i64; 3] {
    let mut rows = [0; 3];
    for (count, table) in rows.iter_mut().zip(["outbox_events", "ledger", "journal"]) {
        let sql = format!("SELECT count(*) FROM {table}");
        *count = fixture.sql.query_one(&sql, &[]).await.unwrap().get(0);
    }
    rows
}

#[tokio::test]
async fn prune_goes_by_the_age_column_of_each_table() {
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(AGED).await.unwrap();
    fixture.configure(AGED_TABLES);
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let dead = "INSERT INTO ledger (kind, ms, body) VALUES ('no such', 0, '{}')";
    let sql = [aged(1, 10), aged(2, 0), dead.to_owned()].join(";");
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.holds(7).await;
    let prune = ["--older-than", "7d", "--json"];
    let done = fixture.prune(&prune).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let pruned: Vec<_> = reports(&done)
        .iter()
        .map(|report| (report["table"].clone(), report["rows"].clone()))
        .collect();
    assert_eq!(
        pruned,
        ["public.outbox_events", "public.ledger", "public.journal"].map(|it| (json!(it), json!(1)))
    );
    // The dead letter's row is as old.
    assert_eq!(rows(&fixture).await, [1, 2, 1]);

    // What no slot is confirmed through stays in each of them.
    relay.stop().await;
    fixture.sql.batch_execute(&aged(3, 10)).await.unwrap();
    let waits = [&prune[..], &["--wait", "1s"]].concat();
    let refused = fixture.prune(&waits).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(rows(&fixture).await, [2, 3, 2]);
}

#[tokio::test]
async fn asyncapi_has_a_channel_for_each_table() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(&each(1).join(";")).await.unwrap();
    fixture.holds(3).await;
    relay.stop().await;
    let printed = fixture.walrelay(&["config", "asyncapi"]).await.success();
    let document: Value = serde_json::from_str(&printed.stdout).unwrap();
    let name = &fixture.name;
    let stored = fixture.stored().await;
    // In the order of the configuration; of the transaction, `each` has them as audit, own, orders.
    for (number, address, table, at) in [
        ("", format!("{name}.{{event_type}}"), None, 1),
        (
            "2",
            format!("{name}.order.{{aggregatetype}}"),
            Some("public.orders"),
            2,
        ),
        (
            "3",
            format!("{name}.{{event_type}}"),
            Some("public.audit"),
            0,
        ),
    ] {
        let channel = &document["channels"][format!("events{number}")];
        assert_eq!(channel["address"], json!(address), "{printed:?}");
        let message = &document["components"]["messages"][format!("event{number}")];
        let headers = &message["headers"]["properties"];
        let told_as = headers["Walrelay-Table"]["const"].as_str();
        assert_eq!(told_as, table, "{message}");
        assert_eq!(told(&stored[at]).0, table);
        let required = message["headers"]["required"].as_array().unwrap();
        for header in required {
            let header = header.as_str().unwrap();
            assert!(stored[at].headers.contains_key(header), "{header}");
        }
        let operation = &document["operations"][format!("publishEvents{number}")];
        assert_eq!(
            operation["channel"]["$ref"],
            json!(format!("#/channels/events{number}"))
        );
    }
}

/// Whether a value fits a schema of the document, by the words that it uses.
fn fits(schema: &Value, value: &Value) -> bool {
    let is_of = |word: &Value| match word.as_str().expect("a type") {
        "string" => value.is_string(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        word => panic!("{word}"),
    };
    let types = match &schema["type"] {
        Value::Null => true,
        Value::Array(types) => types.iter().any(is_of),
        word => is_of(word),
    };
    let one_of = |list: &Value| list.as_array().is_none_or(|list| list.contains(value));
    let required = schema["required"].as_array().into_iter().flatten();
    let mut properties = schema["properties"].as_object().into_iter().flatten();
    types
        && schema.get("const").is_none_or(|only| only == value)
        && one_of(&schema["enum"])
        && required
            .into_iter()
            .all(|name| value.get(name.as_str().expect("a name")).is_some())
        && properties.all(|(name, schema)| value.get(name).is_none_or(|value| fits(schema, value)))
}

#[tokio::test]
async fn asyncapi_describes_each_message_on_the_subject_of_dead_letters() {
    let mut fixture = Fixture::new().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    let letters = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), gen_random_uuid(), 'a b', '{}' FROM generate_series(1, 2)";
    fixture.sql.batch_execute(letters).await.unwrap();
    fixture.holds(3).await;
    relay.stop().await;
    let letters = fixture.stored().await.split_off(1);
    let places = letters.iter().map(|letter| letter.position.as_str());
    let places: Vec<&str> = places.collect();
    let mend = "UPDATE outbox_events SET event_type = 'a.b' WHERE event_type = 'a b'";
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture
        .walrelay(&["dead-letters", "retry", places[0]])
        .await
        .success();
    let discard = ["dead-letters", "discard", places[1], "--reason", "a test"];
    fixture.walrelay(&discard).await.success();
    // Its event stands behind what the relay has recorded.
    let letter: Value = serde_json::from_str(&letters[0].body).unwrap();
    let aggregate = letter["aggregate_id"].as_str().expect("an id");
    let erase = ["erase", "--yes", "--aggregate-id", aggregate];
    fixture.walrelay(&erase).await.success();

    let printed = fixture.walrelay(&["config", "asyncapi"]).await.success();
    let document: Value = serde_json::from_str(&printed.stdout).unwrap();
    let named = document["channels"]["deadLetters"]["messages"]
        .as_object()
        .unwrap();
    let mut found = BTreeSet::new();
    for message in fixture.stored().await {
        if !message.subject.starts_with("walrelay.dead.") {
            continue;
        }
        let headers: serde_json::Map<String, Value> = message
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let body: Value = serde_json::from_str(&message.body).unwrap();
        let is_it = |name: &&String| {
            let schema = &document["components"]["messages"][name.as_str()];
            fits(&schema["headers"], &json!(headers)) && fits(&schema["payload"], &body)
        };
        let fitting: Vec<_> = named.keys().filter(is_it).cloned().collect();
        assert_eq!(fitting.len(), 1, "{headers:?} {body}");
        found.insert((message.kind.expect("a kind"), fitting[0].clone()));
    }
    let expected = [
        ("dead-letter", "deadLetter"),
        ("discarded", "deadLetterMark"),
        ("erased", "erasure"),
        ("retried", "deadLetterMark"),
    ];
    let expected = BTreeSet::from(expected.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_the_stream_lost_of_each_table_comes_again_once() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [each(1), each(2)].concat().join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(6).await;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(fixture.stream_name()).await.unwrap();
    // An order and a row of the audit table.
    for sequence in [3, 4] {
        stream.delete_message(sequence).await.unwrap();
    }
    let found = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(found.code, Some(1), "{found:?}");
    let missing = |report: &Value| report["missing"]["count"].clone();
    let found: Vec<_> = reports(&found).iter().map(missing).collect();
    assert_eq!(found, [json!(0), json!(1), json!(1)]);
    fixture.walrelay(&["verify", "--repair"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    let stored = fixture.stored().await;
    let mut again: Vec<_> = stored.iter().skip(4).map(|it| told(it).0).collect();
    again.sort_unstable();
    assert_eq!(again, [Some("public.audit"), Some("public.orders")]);
    relay.stop().await;
}

/// An aggregate whose events are in two tables, and another one's under the same id of a third.
#[tokio::test]
async fn erase_takes_an_aggregate_out_of_each_table() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let who = "00000000-0000-4000-8000-0000000000aa";
    let shared = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
            VALUES (gen_random_uuid(), '{who}', 'user.left.v1', '{{}}');
         INSERT INTO audit (who, what, body) VALUES ('{who}', 'read.v1', '{{}}');
         INSERT INTO orders (aggregatetype, aggregateid, type, payload) VALUES ('Book', '{who}', 'made', '{{}}')"
    );
    let others = each(1).join(";");
    let sql = format!("{shared}; {others}");
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.holds(6).await;
    let erase = ["erase", "--aggregate-id", who, "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await;
    assert_eq!(erased.code, Some(0), "{erased:?}");
    let left = fixture.stored().await;
    let left: Vec<_> = left.iter().map(|it| told(it).0).collect();
    assert_eq!(left, [Some("public.audit"), None, Some("public.orders")]);
    for table in ["outbox_events", "audit", "orders"] {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: i64 = fixture.sql.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(count, 1, "{table}");
    }
    fixture.walrelay(&["verify"]).await.success();
    // The lane goes on.
    fixture.sql.batch_execute(&order(3)).await.unwrap();
    fixture.holds(4).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_replay_from_the_stream_goes_over_all_tables() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [each(1).join(";"), audit(2)].join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(4).await;
    relay.stop().await;
    // Orders tell neither type nor aggregate.
    for asks in [["--event-type", "read.v1"], ["--aggregate-id", "w1"]] {
        let asks = [&["replay", "--yes", "--from", "0/1"][..], &asks].concat();
        let refused = fixture.walrelay(&asks).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        let words =
            "messages of public.orders in this format (message.format) are the payload alone";
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    fixture
        .walrelay(&["replay", "--yes", "--from", "0/1"])
        .await
        .success();
    let target = format!("{}_REPLAY", fixture.stream_name());
    let stored = fixture.stored().await;
    let again = fixture.stored_in(&target).await;
    let bodies = |messages: &[crate::support::Stored]| {
        let told = messages
            .iter()
            .map(|it| (told(it).0.map(str::to_owned), it.body.clone()));
        told.collect::<Vec<_>>()
    };
    assert_eq!(bodies(&again), bodies(&stored));
    // What is gone, no table gives.
    let stream = async_nats::jetstream::new(fixture.nats.clone());
    let stream = stream.get_stream(fixture.stream_name()).await.unwrap();
    stream.purge().sequence(3).await.unwrap();
    let old = ["replay", "--yes", "--from", "2020-01-01T00:00:00Z"];
    let refused = fixture.walrelay(&old).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("the oldest that it can give is --from "),
        "{refused:?}"
    );
    assert!(!refused.stderr.contains("--source table"), "{refused:?}");

    // Where all are envelopes, what is asked for is found in each.
    let envelopes = r#"
[[source.tables]]
name = "public.audit"
columns = { id = "no", aggregate_id = "who", event_type = "what", event_version = "", occurred_at = "at", payload = "body" }
"#;
    let mut fixture = bare().await;
    fixture.configure(envelopes);
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [audit(1), insert_sql(1, 1), audit(2)].join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(3).await;
    relay.stop().await;
    let asks = ["replay", "--yes", "--from", "0/1", "--aggregate-id", "w2"];
    fixture.walrelay(&asks).await.success();
    let asks = [
        "replay",
        "--yes",
        "--from",
        "0/1",
        "--event-type",
        "read.v1",
        "--subject",
    ];
    let subject = format!("again.{}.{{event_type}}", fixture.name);
    let again = format!("{}_AGAIN", fixture.stream_name());
    let asks = [&asks[..], &[&subject, "--stream", &again]].concat();
    fixture.walrelay(&asks).await.success();
    for (target, count) in [("REPLAY", 1), ("AGAIN", 2)] {
        let again = fixture
            .stored_in(&format!("{}_{target}", fixture.stream_name()))
            .await;
        assert_eq!(again.len(), count, "{target}");
        assert!(again.iter().all(|it| told(it).0 == Some("public.audit")));
    }
}

/// How often a command reads the stream: each time it makes a consumer, which the server tells.
async fn readings(fixture: &Fixture, command: &[&str], code: i32) -> usize {
    let stream = fixture.stream_name();
    let told = format!("$JS.EVENT.ADVISORY.CONSUMER.CREATED.{stream}.*");
    let mut told = fixture.nats.subscribe(told).await.unwrap();
    fixture.nats.flush().await.unwrap();
    let done = fixture.walrelay(command).await;
    assert_eq!(done.code, Some(code), "{done:?}");
    // Behind all that the command has made.
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(stream).await.unwrap();
    let last = pull::Config {
        durable_name: Some("last".to_owned()),
        ..pull::Config::default()
    };
    stream.create_consumer(last).await.unwrap();
    let mut made = 0;
    loop {
        let next = tokio::time::timeout(SOON, told.next()).await;
        let next = next.expect("the last one is told").expect("a message");
        let next: Value = serde_json::from_slice(&next.payload).unwrap();
        if next["consumer"] == "last" {
            break;
        }
        made += 1;
    }
    stream.delete_consumer("last").await.unwrap();
    made
}

#[tokio::test]
async fn the_stream_is_read_once_for_all_tables() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [each(1), each(2), each(3)].concat().join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(9).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_eq!(readings(&fixture, &["verify"], 0).await, 1);
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(fixture.stream_name()).await.unwrap();
    // A row of each table.
    for sequence in [4, 5, 6] {
        stream.delete_message(sequence).await.unwrap();
    }
    assert_eq!(readings(&fixture, &["verify"], 1).await, 1);
    assert_eq!(readings(&fixture, &["backfill", "--dry-run"], 0).await, 1);
    assert_eq!(readings(&fixture, &["backfill"], 0).await, 1);
    fixture.walrelay(&["verify"]).await.success();
    let stored = fixture.stored().await;
    let mut tables: Vec<_> = stored.iter().skip(6).map(|it| told(it).0).collect();
    tables.sort_unstable();
    assert_eq!(tables, [None, Some("public.audit"), Some("public.orders")]);
}
