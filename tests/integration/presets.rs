//! Outbox tables as well-used libraries make them: what `docs/presets.md` says of each works from set-up to verify.
//!
//! The tables have the columns, types and constraints that the library's own migration made; rows are as it inserts them.

use std::collections::BTreeMap;

use super::mapping::{headers, round_trip, with_table};
use crate::support::Stored;

/// The section of `docs/presets.md` under this heading.
fn documented(library: &str) -> Vec<(&'static str, String)> {
    let text = std::fs::read_to_string("docs/presets.md").expect("the document");
    let (_, section) = text
        .split_once(&format!("## {library}\n"))
        .expect("a section");
    let (_, toml) = section.split_once("```toml\n").expect("its configuration");
    let (toml, _) = toml.split_once("```").expect("its end");
    variables(toml)
}

/// TOML as variables.
fn variables(toml: &str) -> Vec<(&'static str, String)> {
    let tables: toml::Table = toml.parse().expect("TOML");
    let mut settings = Vec::new();
    for (section, keys) in &tables {
        for (key, value) in keys.as_table().expect("a section") {
            let name = format!("WALRELAY_{section}_{key}").to_uppercase();
            let text = match value {
                toml::Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            // Each test has a subject root of its own.
            let text = match &*name {
                "WALRELAY_NATS_SUBJECT" => text.replacen("outbox", "NAME", 1),
                _ => text,
            };
            settings.push((&*name.leak(), text));
        }
    }
    settings
}

/// What it proposes otherwise than the document, which says so.
const OTHERWISE: &[(&str, &str)] = &[
    // Which of two ids consumers know, no catalog tells.
    ("nats-outbox", "WALRELAY_COLUMNS_ID"),
    // A table of one topic.
    ("Watermill", "WALRELAY_COLUMNS_EVENT_TYPE"),
];

/// What `setup` proposes for the table, once it has a row, can be used as it is, and is what the document says.
async fn proposed(library: &str, table: &str, row: &str, settings: &[(&'static str, &str)]) {
    let mut name = settings.to_vec();
    name.retain(|(name, _)| *name == "WALRELAY_POSTGRES_TABLE");
    let mut fixture = with_table(table, &name).await;
    fixture.sql.batch_execute(row).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let (_, toml) = refused
        .stderr
        .split_once("as far as it is right:\n")
        .expect("a proposal");
    let is_toml = |line: &&str| !line.starts_with("warning") && !line.starts_with("error");
    let toml: Vec<&str> = toml.lines().take_while(is_toml).collect();
    for (name, text) in variables(&toml.join("\n")) {
        let is_column = name.starts_with("WALRELAY_COLUMNS_");
        if is_column && !OTHERWISE.contains(&(library, name)) {
            let of_document = settings.iter().find(|(known, _)| *known == name);
            let of_document = of_document.map_or_else(
                // Left out, it is the default.
                || match name {
                    "WALRELAY_COLUMNS_PAYLOAD" => "payload_json".to_owned(),
                    _ => name.trim_start_matches("WALRELAY_COLUMNS_").to_lowercase(),
                },
                |(_, text)| (*text).to_owned(),
            );
            assert_eq!(text, of_document, "{library}: {name}");
        }
        let text = text.replace("NAME", &fixture.name);
        fixture.set(name, text);
    }
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
}

/// The second of two rows as the stream has it: its subject behind the test's root, headers, body.
async fn published(library: &str, table: &str, rows: [&str; 2]) -> Stored {
    let settings = documented(library);
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, text)| (*name, &**text))
        .collect();
    proposed(library, table, rows[0], &settings).await;
    let fixture = with_table(table, &settings).await;
    let root = fixture.name.clone();
    let [mut second, _] = round_trip(fixture, rows).await;
    second.subject = second.subject.replacen(&root, "outbox", 1);
    second
}

fn no_headers() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::new()
}

#[tokio::test]
async fn pg_transactional_outbox() {
    let table = "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
        message_type text NOT NULL, segment text, concurrency text NOT NULL DEFAULT 'sequential', payload jsonb NOT NULL,
        metadata jsonb, locked_until timestamptz NOT NULL DEFAULT to_timestamp(0),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(), processed_at timestamptz, abandoned_at timestamptz,
        started_attempts smallint NOT NULL DEFAULT 0, finished_attempts smallint NOT NULL DEFAULT 0,
        CHECK (concurrency IN ('sequential', 'parallel')))";
    let row = |n: u8| {
        format!(
            "INSERT INTO outbox (id, aggregate_type, aggregate_id, message_type, payload, metadata, created_at)
             VALUES ('00000000-0000-0000-0000-00000000000{n}', 'movie', '7', 'movie_created', '{{\"n\": {n}}}',
                 '{{\"user\": 1}}', '2026-11-28 07:05:32Z')"
        )
    };
    let message = published("pg-transactional-outbox", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.movie.movie_created");
    assert_eq!(headers(&message), no_headers());
    assert_eq!(
        message.body,
        r#"{"id":"00000000-0000-0000-0000-000000000002","aggregate_id":"7","event_type":"movie_created","occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n": 2},"metadata":{"user": 1}}"#
    );
}

#[tokio::test]
async fn django_outbox_pattern() {
    let table = "CREATE TABLE published (id uuid PRIMARY KEY, version varchar(100), destination varchar(255) NOT NULL,
        body jsonb NOT NULL, added timestamptz NOT NULL, expires_at timestamptz NOT NULL, retry integer NOT NULL CHECK (retry >= 0),
        status integer NOT NULL, headers jsonb NOT NULL)";
    let row = |n: u8| {
        format!(
            "INSERT INTO published VALUES ('00000000-0000-0000-0000-00000000000{n}', 'v1', '/topic/order.v1', '{{\"n\": {n}}}',
                 '2026-11-28 07:05:32Z', '2026-11-29 07:05:32Z', 0, 1, '{{\"dop-msg-type\": \"Published\"}}')"
        )
    };
    let message = published("django-outbox-pattern", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox._topic_order_v1");
    assert_eq!(
        message.body,
        r#"{"id":"00000000-0000-0000-0000-000000000002","event_type":"/topic/order.v1","occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n": 2},"headers":{"dop-msg-type": "Published"}}"#
    );
}

#[tokio::test]
async fn faststream_outbox() {
    let table = "CREATE TABLE outbox (id bigserial PRIMARY KEY, queue varchar(255) NOT NULL, payload bytea NOT NULL, headers jsonb,
        attempts_count bigint NOT NULL DEFAULT 0, deliveries_count bigint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(), next_attempt_at timestamptz NOT NULL DEFAULT now(),
        first_attempt_at timestamptz, last_attempt_at timestamptz, acquired_at timestamptz, acquired_token uuid,
        timer_id varchar(255), CHECK ((acquired_token IS NULL) = (acquired_at IS NULL)))";
    let row = |n: u8| {
        format!(
            "INSERT INTO outbox (queue, payload, headers) VALUES ('orders', convert_to('{{\"n\":{n}}}', 'UTF8'),
                 '{{\"content-type\": \"application/json\"}}')"
        )
    };
    let message = published("faststream-outbox", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.orders");
    assert_eq!(message.body, r#"{"n":2}"#);
    let expected = BTreeMap::from([
        ("id", "2"),
        ("Outbox-Headers", r#"{"content-type": "application/json"}"#),
    ]);
    assert_eq!(headers(&message), expected);
}

#[tokio::test]
async fn nats_outbox() {
    let table = "CREATE TABLE outbox_events (id bigserial PRIMARY KEY, event_id uuid NOT NULL UNIQUE, subject text NOT NULL,
        headers jsonb NOT NULL, payload jsonb NOT NULL, status varchar(20) NOT NULL, retry_count smallint NOT NULL,
        last_error text, aggregate_id text, aggregate_type text, created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(), scheduled_at timestamptz NOT NULL DEFAULT now(), published_at timestamptz,
        CHECK (status IN ('pending', 'published', 'failed')))";
    let row = |n: u8| {
        format!(
            "INSERT INTO outbox_events (event_id, subject, headers, payload, status, retry_count)
             VALUES ('00000000-0000-0000-0000-00000000000{n}', 'photo.created', '{{}}', '{{\"n\": {n}}}', 'pending', 0)"
        )
    };
    let message = published("nats-outbox", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.photo.created");
    assert_eq!(message.body, r#"{"n": 2}"#);
    let id = "00000000-0000-0000-0000-000000000002";
    assert_eq!(headers(&message), BTreeMap::from([("id", id)]));
}

#[tokio::test]
async fn django_broadcaster() {
    let table = "CREATE TABLE outbox_events (id uuid PRIMARY KEY, spec_version varchar(10) NOT NULL, event_type varchar(255) NOT NULL,
        source varchar(255) NOT NULL, subject varchar(255) NOT NULL, data_content_type varchar(100) NOT NULL,
        data_schema varchar(200) NOT NULL, data jsonb, status varchar(20) NOT NULL, created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL, scheduled_at timestamptz NOT NULL, published_at timestamptz, retry_count integer NOT NULL,
        max_retries integer NOT NULL, last_error text NOT NULL, publisher_backend varchar(100) NOT NULL,
        publisher_config jsonb NOT NULL)";
    let row = |n: u8, data: &str| {
        format!(
            "INSERT INTO outbox_events VALUES ('00000000-0000-0000-0000-00000000000{n}', '1.0', 'order.made', 'shop', '',
                 'application/json', '', {data}, 'pending', '2026-11-28 07:05:32Z', now(), now(), NULL, 0, 3, '', '', '{{}}')"
        )
    };
    let rows = [row(1, "NULL"), row(2, "'{\"n\": 2}'")];
    let message = published(
        "django-broadcaster",
        table,
        rows.each_ref().map(|row| &**row),
    )
    .await;
    assert_eq!(message.subject, "outbox.order.made");
    assert_eq!(
        message.body,
        r#"{"specversion":"1.0","id":"00000000-0000-0000-0000-000000000002","source":"/shop","type":"order.made","time":"2026-11-28T07:05:32.000000Z","datacontenttype":"application/json","data":{"n": 2}}"#
    );
}

#[tokio::test]
async fn outbox_pattern_processor() {
    let table = "CREATE TABLE outbox (idempotent_key uuid PRIMARY KEY, partition_key uuid NOT NULL, destinations jsonb NOT NULL,
        headers jsonb, payload text NOT NULL, attempts integer NOT NULL DEFAULT 0, created_at timestamptz NOT NULL DEFAULT now(),
        process_after timestamptz NOT NULL DEFAULT now(), processed_at timestamptz)";
    let row = |n: u8| {
        format!(
            "INSERT INTO outbox (idempotent_key, partition_key, destinations, headers, payload, created_at, process_after)
             VALUES ('00000000-0000-0000-0000-00000000000{n}', '00000000-0000-0000-0000-00000000000a',
                 '[{{\"queue_url\": \"x\"}}]', NULL, '{{\"n\":{n}}}', '2026-11-28 07:05:32Z', '2026-11-28 07:05:32Z')"
        )
    };
    let message = published("outbox-pattern-processor", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.events");
    assert_eq!(
        message.body,
        r#"{"id":"00000000-0000-0000-0000-000000000002","aggregate_id":"00000000-0000-0000-0000-00000000000a","occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n":2},"destinations":[{"queue_url": "x"}]}"#
    );
}

#[tokio::test]
async fn mass_transit() {
    let table = r#"CREATE TABLE "OutboxMessage" ("SequenceNumber" bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
        "EnqueueTime" timestamptz, "SentTime" timestamptz NOT NULL, "Headers" text, "Properties" text, "InboxMessageId" uuid,
        "InboxConsumerId" uuid, "OutboxId" uuid, "MessageId" uuid NOT NULL, "ContentType" varchar(256) NOT NULL,
        "MessageType" text NOT NULL, "Body" text NOT NULL, "ConversationId" uuid, "CorrelationId" uuid, "InitiatorId" uuid,
        "RequestId" uuid, "SourceAddress" varchar(256), "DestinationAddress" varchar(256), "ResponseAddress" varchar(256),
        "FaultAddress" varchar(256), "ExpirationTime" timestamptz)"#;
    let row = |n: u8| {
        format!(
            r#"INSERT INTO "OutboxMessage" ("SentTime", "MessageId", "ContentType", "MessageType", "Body")
               VALUES ('2026-11-28 07:05:32Z', '00000000-0000-0000-0000-00000000000{n}', 'application/vnd.masstransit+json',
                   'urn:message:Shop:OrderMade', '{{"message":{{"n":{n}}}}}')"#
        )
    };
    let message = published("MassTransit", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.urn_message_Shop_OrderMade");
    assert_eq!(message.body, r#"{"message":{"n":2}}"#);
    let expected = BTreeMap::from([
        ("id", "00000000-0000-0000-0000-000000000002"),
        ("content-type", "application/vnd.masstransit+json"),
    ]);
    assert_eq!(headers(&message), expected);
}

#[tokio::test]
async fn watermill() {
    let table = r#"CREATE TABLE watermill_orders ("offset" serial, "uuid" varchar(36) NOT NULL,
        "created_at" timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, "payload" json DEFAULT NULL, "metadata" json DEFAULT NULL,
        "transaction_id" xid8 NOT NULL, PRIMARY KEY ("transaction_id", "offset"))"#;
    let row = |n: u8| {
        format!(
            r#"INSERT INTO watermill_orders ("uuid", "payload", "metadata", "transaction_id", "created_at")
               VALUES ('00000000-0000-0000-0000-00000000000{n}', '{{"n":{n}}}', '{{"trace":"x"}}', pg_current_xact_id(),
                   '2026-11-28 07:05:32')"#
        )
    };
    let message = published("Watermill", table, [&row(1), &row(2)]).await;
    assert_eq!(message.subject, "outbox.orders");
    assert_eq!(
        message.body,
        r#"{"id":"00000000-0000-0000-0000-000000000002","event_type":"orders","occurred_at":"2026-11-28T07:05:32.000000Z","payload_json":{"n":2},"metadata":{"trace":"x"}}"#
    );
}
