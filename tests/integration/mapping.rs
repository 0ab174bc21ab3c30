//! Tables of other layouts: what each column becomes, and that every command reads what was published.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use walrelay::consumer::Kind;

use crate::support::{Fixture, Stored, eventually};

/// Publishes the rows that `insert` makes, one in front of the slot and one behind it, and checks that every command
/// agrees: the relay publishes the second, `verify` misses the first, `backfill` brings it, then all is there, and a consumer
/// reads what `tail` shows.
pub(crate) async fn round_trip(mut fixture: Fixture, insert: [&str; 2]) -> [Stored; 2] {
    fixture.sql.batch_execute(insert[0]).await.unwrap();
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.sql.batch_execute(insert[1]).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let verify = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    let report: Value = serde_json::from_str(&verify.stdout).unwrap();
    assert_eq!(report["missing"]["count"], 1, "{report}");
    fixture.walrelay(&["backfill"]).await.success();
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    // The next start meets its own last event again.
    let mut relay = fixture.run();
    relay.streams().await;
    fixture
        .sql
        .batch_execute("SELECT pg_switch_wal()")
        .await
        .unwrap();
    relay.stop().await;
    let tail = fixture
        .walrelay(&["tail", "--since", "all", "--count", "2", "--json"])
        .await;
    let stored = fixture.stored().await;
    let kinds = [Kind::Live, Kind::Backfill];
    for ((line, message), kind) in tail.stdout.lines().zip(&stored).zip(kinds) {
        let entry: Value = serde_json::from_str(line).unwrap();
        assert_eq!(entry["class"], "event", "{line}");
        let event = message.event();
        assert_eq!(entry["id"], *event.id, "{line}");
        assert_eq!(entry["aggregate_id"], json!(event.aggregate_id), "{line}");
        assert_eq!(entry["event_type"], json!(event.event_type), "{line}");
        let position = event.place.map(|place| place.position.to_string());
        assert_eq!(entry["position"], json!(position), "{line}");
        assert_eq!(event.kind, kind, "{line}");
    }
    stored.try_into().expect("two messages")
}

pub(crate) async fn with_table(table: &str, settings: &[(&'static str, &str)]) -> Fixture {
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.events");
    for (name, value) in settings {
        let value = value.replace("NAME", &fixture.name);
        fixture.set(name, value);
    }
    fixture
}

pub(crate) fn headers(message: &Stored) -> BTreeMap<&str, &str> {
    let headers = message.headers.iter();
    headers
        .filter(|(name, _)| !name.starts_with("Walrelay-"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[tokio::test]
async fn a_serial_id_text_key_and_no_version() {
    let fixture = with_table(
        "CREATE TABLE events (id bigserial PRIMARY KEY, topic text NOT NULL, key text NOT NULL,
             body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT '2026-11-28 07:05:32Z')",
        &[
            ("WALRELAY_COLUMNS_AGGREGATE_ID", "key"),
            ("WALRELAY_COLUMNS_EVENT_TYPE", "topic"),
            ("WALRELAY_COLUMNS_EVENT_VERSION", "{ value = 2 }"),
            ("WALRELAY_COLUMNS_OCCURRED_AT", "created_at"),
            ("WALRELAY_COLUMNS_PAYLOAD", "body"),
        ],
    )
    .await;
    let name = fixture.name.clone();
    let stored = round_trip(
        fixture,
        [
            r#"INSERT INTO events (topic, key, body) VALUES ('order.made', 'k-1', '{"n": 1}')"#,
            r#"INSERT INTO events (topic, key, body) VALUES ('order.made', 'k"2', '{"n": 2}')"#,
        ],
    )
    .await;
    assert_eq!(
        stored[0].body,
        r#"{"id":2,"aggregate_id":"k\"2","event_type":"order.made","event_version":2,"occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n": 2}}"#
    );
    assert_eq!(
        stored[1].body,
        r#"{"id":1,"aggregate_id":"k-1","event_type":"order.made","event_version":2,"occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n": 1}}"#
    );
    assert_eq!(stored[1].subject, format!("{name}.order.made"));
}

#[tokio::test]
async fn bytes_for_id_and_payload_a_date_and_domains() {
    let fixture = with_table(
        "CREATE DOMAIN key16 AS bytea CHECK (length(value) = 16);
         CREATE DOMAIN code AS char(8);
         CREATE TABLE events (id key16 PRIMARY KEY, owner bigint NOT NULL, kind code NOT NULL, day date NOT NULL,
             body bytea NOT NULL)",
        &[
            ("WALRELAY_COLUMNS_AGGREGATE_ID", "owner"),
            ("WALRELAY_COLUMNS_EVENT_TYPE", "kind"),
            ("WALRELAY_COLUMNS_EVENT_VERSION", ""),
            ("WALRELAY_COLUMNS_OCCURRED_AT", "day"),
            ("WALRELAY_COLUMNS_PAYLOAD", "body"),
        ],
    )
    .await;
    let insert = |n: u8| {
        format!("INSERT INTO events VALUES ('\\x{n:032x}', 7, 'a.b', '2026-11-28', '\\x00ff0{n}')")
    };
    let stored = round_trip(fixture, [&insert(1), &insert(2)]).await;
    assert_eq!(
        stored[0].body,
        r#"{"id":"00000000-0000-0000-0000-000000000002","aggregate_id":7,"event_type":"a.b","occurred_at":"2026-11-28T00:00:00.000000Z","payload_base64":"AP8C"}"#
    );
    assert_eq!(
        stored[1].body,
        r#"{"id":"00000000-0000-0000-0000-000000000001","aggregate_id":7,"event_type":"a.b","occurred_at":"2026-11-28T00:00:00.000000Z","payload_base64":"AP8B"}"#
    );
}

#[tokio::test]
async fn further_columns_in_headers_fields_and_subject() {
    let fixture = with_table(
        "CREATE TABLE events (id uuid PRIMARY KEY, aggregate_id uuid NOT NULL, event_type text NOT NULL,
             event_version smallint NOT NULL DEFAULT 1, occurred_at bigint NOT NULL, payload_json text NOT NULL,
             tenant text NOT NULL, traceparent text, amount numeric, paid boolean, meta json, at timestamptz)",
        &[
            ("WALRELAY_NATS_SUBJECT", "NAME.{tenant:token}.{event_type}"),
            (
                "WALRELAY_MESSAGE_HEADERS",
                "{ traceparent = 'traceparent', Tenant = 'tenant' }",
            ),
            (
                "WALRELAY_MESSAGE_FIELDS",
                "{ amount = 'amount', paid = 'paid', meta = 'meta', at = 'at', trace = 'traceparent' }",
            ),
        ],
    )
    .await;
    let name = fixture.name.clone();
    let stored = round_trip(
        fixture,
        [
            "INSERT INTO events VALUES ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 'a.b', 1,
                 1795849532123, 'no JSON \"', 'A & B', '00-abc', 123456789012345678901234567890.5, true, '{\"x\": 1}',
                 '2026-11-28 07:05:32Z')",
            "INSERT INTO events VALUES ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-00000000000a', 'a.b', 1,
                 1795849532123, '[1, 2]', 'c.d', NULL, 'NaN', NULL, NULL, NULL)",
        ],
    )
    .await;
    let begin = |n| {
        format!(
            r#"{{"id":"00000000-0000-0000-0000-00000000000{n}","aggregate_id":"00000000-0000-0000-0000-00000000000a","event_type":"a.b","event_version":1,"occurred_at":"2026-11-28T07:05:32.123000Z","payload_json":"#
        )
    };
    assert_eq!(stored[0].body, begin(2) + r#"[1, 2],"amount":"NaN"}"#);
    assert_eq!(headers(&stored[0]), BTreeMap::from([("Tenant", "c.d")]));
    assert_eq!(stored[0].subject, format!("{name}.c_d.a.b"));
    assert_eq!(
        stored[1].body,
        begin(1)
            + r#""no JSON \"","amount":123456789012345678901234567890.5,"at":"2026-11-28T07:05:32.000000Z","meta":{"x": 1},"paid":true,"trace":"00-abc"}"#
    );
    assert_eq!(
        headers(&stored[1]),
        BTreeMap::from([("Tenant", "A & B"), ("traceparent", "00-abc")])
    );
    assert_eq!(stored[1].subject, format!("{name}.A_B.a.b"));
}

/// Types whose cast to text is another text than the log has, and some whose is not.
#[tokio::test]
async fn backfill_writes_a_column_as_the_relay_does() {
    let types = [
        ("active", "boolean", "true"),
        ("host", "inet", "'192.0.2.7'"),
        ("net", "cidr", "'192.0.2.0/24'"),
        ("padded", "char(5)", "'ab'"),
        ("letter", "\"char\"", "'x'"),
        ("span", "interval", "'1 day 2 hours'"),
        ("price", "numeric(8, 2)", "'7.10'"),
        ("bits", "bit(3)", "B'101'"),
        ("marks", "text[]", "ARRAY['a b', NULL, 'c\"']"),
        ("place", "point", "'(1,2.5)'"),
        ("pair", "int4range", "'[1,5)'"),
        ("doc", "jsonb", "'{\"a\": true}'"),
    ];
    let columns = types.map(|(name, kind, _)| format!(", {name} {kind}"));
    let values = types.map(|(_, _, value)| format!(", {value}")).concat();
    let entries = types.map(|(name, ..)| format!("{name} = '{name}'"));
    let entries = format!("{{ {} }}", entries.join(", "));
    let fixture = with_table(
        &format!(
            "CREATE TABLE events (id bigint PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,
             event_version smallint NOT NULL, occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL{})",
            columns.concat()
        ),
        &[
            ("WALRELAY_NATS_SUBJECT", "NAME.{active}.{padded}.{host:token}"),
            ("WALRELAY_MESSAGE_HEADERS", &entries),
            ("WALRELAY_MESSAGE_FIELDS", &entries),
        ],
    )
    .await;
    let row = |id: u8| {
        format!(
            "INSERT INTO events VALUES ({id}, 'a', 'a.b', 1, '2026-11-28 07:05:32Z', '{{}}'{values})"
        )
    };
    let stored = round_trip(fixture, [&row(1), &row(2)]).await;
    assert_eq!(stored[0].subject, stored[1].subject);
    assert_eq!(headers(&stored[0]), headers(&stored[1]));
    assert_eq!(headers(&stored[0])["active"], "t");
    let fields = |message: &Stored| {
        let mut body: BTreeMap<String, Value> = serde_json::from_str(&message.body).unwrap();
        body.remove("id").unwrap();
        body
    };
    assert_eq!(fields(&stored[0]), fields(&stored[1]));
    assert_eq!(fields(&stored[0])["host"], "192.0.2.7");
}

/// Ids that are neither UUID nor whole number, or not as Postgres would write those, and in which COPY and JSON escape.
#[tokio::test]
async fn ids_of_any_text_or_bytes() {
    for (column, format, ids) in [
        ("text", "envelope", ["'order/7 ä'", r#"E'a\\b\t"c"'"#]),
        ("text", "payload", ["'007'", "'\"quoted'"]),
        (
            "text",
            "payload",
            ["'0192F7A0-0000-7000-8000-000000000001'", "'{x'"],
        ),
        // Readers take blanks off a header's ends.
        ("text", "payload", ["' both '", "E'tab\\t'"]),
        ("text", "payload", ["'\u{a0}x'", "''"]),
        // What looks like the name of another id is one by itself.
        (
            "text",
            "envelope",
            [
                "'sha256:ba7816bf8f01cfea414140de'",
                "'sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9'",
            ],
        ),
        ("char(40)", "envelope", ["'abc'", "'ab c'"]),
        ("char(40)", "payload", ["'abc'", "'abcd'"]),
        (
            "bytea",
            "cloudevents",
            ["'\\x01'", "'\\x0102030405060708090a0b0c0d0e0f101112'"],
        ),
        (
            "varchar(26)",
            "cloudevents_json",
            ["'01ARZ3NDEKTSV4RRFFQ69G5FAV'", "'7'"],
        ),
    ] {
        let table = format!(
            "CREATE TABLE events (id {column} PRIMARY KEY, aggregate_id text NOT NULL, event_type text NOT NULL,
                 event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL)"
        );
        let fixture = with_table(&table, &[("WALRELAY_MESSAGE_FORMAT", format)]).await;
        let insert = |id: &str| {
            format!(
                "INSERT INTO events (id, aggregate_id, event_type, payload_json) VALUES ({id}, 'a', 'a.b', '{{}}')"
            )
        };
        round_trip(fixture, [&insert(ids[0]), &insert(ids[1])]).await;
    }
}

/// Nothing leaves without what it is to have.
#[tokio::test]
async fn a_further_column_that_goes_is_waited_for_and_one_that_never_was_is_refused() {
    let mut fixture = with_table(
        "CREATE TABLE events (id uuid PRIMARY KEY, aggregate_id uuid NOT NULL, event_type text NOT NULL,
             event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(),
             payload_json jsonb NOT NULL, tenant text NOT NULL)",
        &[("WALRELAY_MESSAGE_HEADERS", "{ Tenant = 'tennant' }")],
    )
    .await;
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{setup:?}");
    for words in ["no column tennant", "did you mean tenant?"] {
        assert!(
            setup.stderr.contains(words) || setup.stdout.contains(words),
            "{setup:?}"
        );
    }
    fixture.set("WALRELAY_MESSAGE_HEADERS", "{ Tenant = 'tenant' }");
    fixture.set("WALRELAY_HTTP_LISTEN", "");
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let sql = "ALTER TABLE events RENAME tenant TO customer;
        INSERT INTO events (id, aggregate_id, event_type, payload_json, customer)
        VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', '{}', 'x')";
    fixture.sql.batch_execute(sql).await.unwrap();
    relay.logs("waiting: ").await;
    assert!(relay.log().contains("tenant"), "{}", relay.log());
    assert_eq!(fixture.message_count().await, 0);
    // Without a listener, its session tells that it is there.
    eventually("status tells of it", async || {
        let told = fixture.walrelay(&["status"]).await.stdout;
        let words = "waiting: nobody reads the slot, and a relay is there, process ";
        told.contains(words).then_some(())
    })
    .await;
    let sql = "ALTER TABLE events RENAME customer TO tenant";
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].field("reason"), "no-column");
    let words = "the table had no column tenant when the row was inserted";
    assert_eq!(stored[0].field("detail"), words);
}
