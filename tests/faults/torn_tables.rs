//! Several tables in one lane, which are named and taken away while events of theirs are published and not confirmed.

use std::fmt::Write as _;

use async_nats::jetstream::stream::DiscardPolicy;
use walrelay::outbox::SCHEMA_SQL;

use crate::lane::{holds_events, jetstream, slot_is_free, stream_of};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Output, Stored, uuid};

/// Beside `outbox_events`, of the same layout; ids are unique in their table only.
const AUDIT: &str = "audit";
const ORDERS: &str = "orders";

fn row(table: &str, n: u64) -> String {
    format!(
        "INSERT INTO {table} (id, aggregate_id, event_type, payload_json)
         VALUES ('{}', gen_random_uuid(), 'lesson.published.v1', '{{\"n\": {n}}}')",
        uuid(n)
    )
}

/// Commits these rows in one transaction.
async fn commit(fixture: &Fixture, rows: &[String]) {
    let transaction = format!("BEGIN; {}; COMMIT", rows.join(";"));
    fixture.sql.batch_execute(&transaction).await.unwrap();
}

fn name(fixture: &mut Fixture, tables: &[&str]) {
    let mut entries = String::new();
    for table in tables {
        writeln!(entries, "[[source.tables]]\nname = \"public.{table}\"").unwrap();
    }
    fixture.configure(&entries);
}

/// A lane of these further tables, which reads again at each start what is published.
async fn lane(tables: &[&str]) -> Fixture {
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let further = [AUDIT, ORDERS]
        .map(|table| format!(";CREATE TABLE {table} (LIKE outbox_events INCLUDING ALL)"));
    let schema = format!("{SCHEMA_SQL}{}", further.concat());
    fixture.sql.batch_execute(&schema).await.unwrap();
    name(&mut fixture, tables);
    fixture.setup().await;
    fixture
}

/// How many messages the stream takes; all of them with -1.
async fn takes(fixture: &Fixture, messages: i64) {
    let mut config = stream_of(fixture).await.cached_info().config.clone();
    config.discard = DiscardPolicy::New;
    config.max_messages = messages;
    jetstream(fixture).update_stream(config).await.unwrap();
}

fn told(stored: &[Stored]) -> Vec<(Option<&str>, u64)> {
    let told = stored.iter().map(|message| {
        let table = message.headers.get("Walrelay-Table").map(String::as_str);
        let number = message.field("payload_json")["n"].as_u64();
        (table, number.expect("a number"))
    });
    told.collect()
}

fn assert_asks_for_audit(halted: &Output) {
    assert_eq!(halted.code, Some(4), "{halted:?}");
    for words in [
        "public.audit",
        "name = \"public.audit\"",
        "[[source.tables]]",
    ] {
        assert!(halted.stderr.contains(words), "{words}: {halted:?}");
    }
    assert!(!halted.stderr.contains("restored"), "{halted:?}");
}

#[tokio::test]
async fn a_row_is_not_taken_for_one_of_a_table_that_was_taken_away() {
    let mut fixture = lane(&[AUDIT, ORDERS]).await;
    takes(&fixture, 1).await;
    let mut relay = fixture.run();
    relay.streams().await;
    let rows = [row(AUDIT, 1), row(ORDERS, 1), row("outbox_events", 2)];
    commit(&fixture, &rows).await;
    relay.logs("maximum messages exceeded").await;
    relay.kill();
    takes(&fixture, -1).await;
    assert_eq!(
        told(&fixture.stored().await),
        [(Some("public.audit"), 1)],
        "the transaction is torn"
    );

    // By position and id, the row of orders is the one that the stream has.
    name(&mut fixture, &[ORDERS]);
    let halted = fixture.walrelay(&["run"]).await;
    assert_asks_for_audit(&halted);
    assert_eq!(fixture.message_count().await, 1);

    name(&mut fixture, &[AUDIT, ORDERS]);
    let mut relay = fixture.run();
    relay.streams().await;
    holds_events(&fixture, 3).await;
    relay.stop().await;
    assert_eq!(
        told(&fixture.stored().await),
        [
            (Some("public.audit"), 1),
            (Some("public.orders"), 1),
            (None, 2)
        ]
    );
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_table_that_was_taken_away_too_early_is_asked_for() {
    let mut fixture = lane(&[AUDIT]).await;
    let mut relay = fixture.run();
    relay.streams().await;
    commit(&fixture, &[row(AUDIT, 1), row("outbox_events", 1)]).await;
    holds_events(&fixture, 2).await;
    relay.stop().await;
    // The last event is of a table that stays, but it counts behind one that does not.
    name(&mut fixture, &[]);
    let halted = fixture.walrelay(&["run"]).await;
    assert_asks_for_audit(&halted);
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("name = \"public.audit\""),
        "{doctor:?}"
    );

    name(&mut fixture, &[AUDIT]);
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    name(&mut fixture, &[]);
    let mut relay = fixture.run();
    relay.streams().await;
    commit(&fixture, &[row("outbox_events", 2)]).await;
    holds_events(&fixture, 3).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

/// The relay that names the table has looked at the catalog, when another one without it takes the slot and publishes.
#[tokio::test]
async fn a_table_begins_where_the_slot_was_taken_by_the_first_relay_that_names_it() {
    let mut fixture = lane(&[]).await;
    let mut relay = fixture.run();
    relay.streams().await;
    commit(&fixture, &[row("outbox_events", 1)]).await;
    holds_events(&fixture, 1).await;
    relay.stop().await;
    let add = format!("ALTER PUBLICATION {} ADD TABLE {AUDIT}", fixture.name);
    fixture.sql.batch_execute(&add).await.unwrap();

    let server = fixture.servers().nats.url();
    let (_, port) = server.rsplit_once(':').unwrap();
    let proxy = Proxy::start(port.parse().unwrap()).await.unwrap();
    proxy.set(Mode::Freeze);
    name(&mut fixture, &[AUDIT]);
    let through = format!("nats://127.0.0.1:{}", proxy.port());
    fixture.set("WALRELAY_NATS_URL", through);
    fixture.set("WALRELAY_NATS_CONNECT_TIMEOUT", "5m");
    let mut later = fixture.run();
    proxy.accepts(1).await;

    name(&mut fixture, &[]);
    fixture.set("WALRELAY_NATS_URL", server);
    let mut relay = fixture.run();
    relay.streams().await;
    commit(&fixture, &[row(AUDIT, 2), row("outbox_events", 2)]).await;
    holds_events(&fixture, 2).await;
    relay.kill();
    slot_is_free(&fixture).await;

    proxy.set(Mode::Pass);
    later.streams().await;
    commit(&fixture, &[row(AUDIT, 3), row("outbox_events", 3)]).await;
    holds_events(&fixture, 4).await;
    later.stop().await;
    let expected = [(None, 1), (None, 2), (Some("public.audit"), 3), (None, 3)];
    assert_eq!(told(&fixture.stored().await), expected);
}
