//! The application's side of the outbox against a real Postgres.

use chrono::{TimeDelta, Utc};
use serde_json::value::RawValue;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;
use walrelay::event::EventEnvelope;
use walrelay::event::teaching::{LessonPublished, UserEraseRequested};
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};
use walrelay::outbox::{Outbox, OutboxError, SCHEMA_SQL};

/// A server with the outbox table in it, and a connection.
async fn database() -> (LocalPostgres, Client) {
    let binaries = ServerBinaries::find().expect("the servers are there: make servers");
    let options = PostgresOptions {
        fsync: false,
        ..PostgresOptions::default()
    };
    let postgres = LocalPostgres::start(&binaries, options)
        .await
        .expect("Postgres starts");
    let client = postgres
        .connect("postgres")
        .await
        .expect("Postgres accepts connections");
    client
        .batch_execute(SCHEMA_SQL)
        .await
        .expect("the schema is valid");
    (postgres, client)
}

fn lesson(title: &str) -> LessonPublished {
    LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), title)
}

async fn mark_column(client: &Client) {
    client
        .batch_execute("alter table outbox_events add column dispatched_at timestamptz")
        .await
        .unwrap();
}

/// Ids in the order in which their rows were written.
async fn ids_as_written(client: &Client) -> Vec<Uuid> {
    let rows = client
        .query("select id from outbox_events order by ctid", &[])
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn an_event_is_stored_if_and_only_if_its_transaction_commits() {
    let (_postgres, mut client) = database().await;
    let outbox = Outbox::default();
    let (kept, taken_back, draft) = (lesson("kept"), lesson("taken back"), lesson("draft"));

    let transaction = client.transaction().await.unwrap();
    outbox.add_event(&transaction, &taken_back).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(ids_as_written(&client).await.is_empty());

    let mut transaction = client.transaction().await.unwrap();
    outbox.add_event(&transaction, &kept).await.unwrap();
    let savepoint = transaction.savepoint("draft").await.unwrap();
    outbox.add_event(&savepoint, &draft).await.unwrap();
    savepoint.rollback().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(ids_as_written(&client).await, [kept.event_id]);
}

#[tokio::test]
async fn an_event_comes_back_from_the_table_as_it_went_in() {
    let (_postgres, mut client) = database().await;
    mark_column(&client).await;
    let outbox = Outbox::default();
    let published = lesson("«Größe» \\u0000 \"\n\u{1F4DA}\u{1}");
    let mut erase = UserEraseRequested::new(Uuid::now_v7());
    erase.requested_at = published.occurred_at + TimeDelta::microseconds(1);

    let transaction = client.transaction().await.unwrap();
    outbox.add_event(&transaction, &published).await.unwrap();
    outbox
        .prepare(&transaction)
        .await
        .unwrap()
        .add_event(&transaction, &erase)
        .await
        .unwrap();
    transaction.commit().await.unwrap();

    let pending = outbox.fetch_pending(&client, 10).await.unwrap();
    assert_eq!(pending.len(), 2);
    assert_eq!(pending[0].decode::<LessonPublished>().unwrap(), published);
    assert_eq!(pending[1].decode::<UserEraseRequested>().unwrap(), erase);
    // Through the wire too, with the text that jsonb made of the payload.
    let wire = pending[0].to_json().unwrap();
    let read = EventEnvelope::from_json(&wire).unwrap();
    assert_eq!(read, pending[0]);
    assert_eq!(read.decode::<LessonPublished>().unwrap(), published);
    let jsonb: String = client
        .query_one(
            "select payload_json::text from outbox_events where id = $1",
            &[&published.event_id],
        )
        .await
        .unwrap()
        .get(0);
    assert!(wire.ends_with(&format!(r#""payload_json":{jsonb}}}"#)));
}

#[tokio::test]
async fn many_events_take_one_statement_and_keep_their_order() {
    let (_postgres, mut client) = database().await;
    let outbox = Outbox::default();
    let mut events: Vec<_> = (0..500).map(|number| lesson(&number.to_string())).collect();
    // Neither the ids' order nor the clock's is the order that counts.
    events.reverse();
    let transaction = client.transaction().await.unwrap();
    outbox.add_events(&transaction, &events).await.unwrap();
    outbox
        .add_events::<LessonPublished>(&transaction, &[])
        .await
        .unwrap();
    let mixed = [
        EventEnvelope::from_event(&UserEraseRequested::new(Uuid::now_v7())).unwrap(),
        EventEnvelope::from_event(&lesson("last")).unwrap(),
    ];
    outbox.add_envelopes(&transaction, &mixed).await.unwrap();
    transaction.commit().await.unwrap();

    let expected: Vec<_> = events
        .iter()
        .map(|event| event.event_id)
        .chain(mixed.iter().map(|envelope| envelope.id))
        .collect();
    assert_eq!(ids_as_written(&client).await, expected);
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_leaves_the_transaction_usable() {
    let (_postgres, mut client) = database().await;
    let outbox = Outbox::default();
    let nul = lesson("a\0b");
    let good = lesson("good");
    let mut envelope = EventEnvelope::from_event(&good).unwrap();
    envelope.event_type = "lesson published".to_owned();

    let transaction = client.transaction().await.unwrap();
    let refused = outbox.add_event(&transaction, &nul).await;
    assert!(matches!(refused, Err(OutboxError::NulCharacter { id }) if id == nul.event_id));
    let refused = outbox.add_events(&transaction, &[good.clone(), nul]).await;
    assert!(matches!(refused, Err(OutboxError::NulCharacter { .. })));
    let refused = outbox.add_envelope(&transaction, &envelope).await;
    assert!(matches!(refused, Err(OutboxError::EventType { .. })));
    outbox.add_event(&transaction, &good).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(ids_as_written(&client).await, [good.event_id]);

    let transaction = client.transaction().await.unwrap();
    let twice = outbox.add_event(&transaction, &good).await;
    assert!(
        matches!(twice, Err(OutboxError::Postgres { source, .. }) if source.code() == Some(&SqlState::UNIQUE_VIOLATION))
    );
}

#[tokio::test]
async fn marked_rows_are_pending_no_more() {
    let (_postgres, mut client) = database().await;
    let outbox = Outbox::default();
    assert!(matches!(
        outbox.fetch_pending(&client, 1).await,
        Err(OutboxError::NoDispatchedAt { .. })
    ));
    assert!(matches!(
        outbox.mark_dispatched(&client, &[]).await,
        Err(OutboxError::NoDispatchedAt { .. })
    ));
    mark_column(&client).await;

    let mut events = [lesson("third"), lesson("first"), lesson("second")];
    let now = Utc::now();
    for (event, minutes) in events.iter_mut().zip([1, 3, 2]) {
        event.occurred_at = now - TimeDelta::minutes(minutes);
    }
    let [third, first, second] = events.each_ref().map(|event| event.event_id);
    let transaction = client.transaction().await.unwrap();
    outbox.add_events(&transaction, &events).await.unwrap();
    transaction.commit().await.unwrap();

    let ids = |pending: Vec<EventEnvelope>| {
        pending
            .iter()
            .map(|envelope| envelope.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(outbox.fetch_pending(&client, 2).await.unwrap()),
        [first, second]
    );
    assert_eq!(
        outbox
            .mark_dispatched(&client, &[first, third, Uuid::now_v7()])
            .await
            .unwrap(),
        2
    );
    assert_eq!(outbox.mark_dispatched(&client, &[first]).await.unwrap(), 0);
    assert_eq!(
        ids(outbox.fetch_pending(&client, 10).await.unwrap()),
        [second]
    );
}

#[tokio::test]
async fn another_table_with_other_columns_and_types_serves() {
    let (_postgres, mut client) = database().await;
    client
        .batch_execute(
            r#"create schema "My Schema";
               create table "My Schema".outbox (
                   payload_json json not null, tenant text default 'north', event_version int, event_type varchar(80),
                   occurred_at timestamptz, dispatched_at timestamptz, aggregate_id uuid, id uuid)"#,
        )
        .await
        .unwrap();
    let outbox = Outbox::new(&r#""My Schema".outbox"#.parse().unwrap());
    let (one, two) = (lesson("one"), lesson("two"));
    let transaction = client.transaction().await.unwrap();
    outbox.add_event(&transaction, &one).await.unwrap();
    outbox.add_events(&transaction, &[two]).await.unwrap();
    transaction.commit().await.unwrap();
    let pending = outbox.fetch_pending(&client, 10).await.unwrap();
    assert_eq!(pending[0].decode::<LessonPublished>().unwrap(), one);
    assert_eq!(pending.len(), 2);

    let missing = Outbox::new(&"public.nowhere".parse().unwrap());
    let transaction = client.transaction().await.unwrap();
    assert!(matches!(
        missing.add_event(&transaction, &one).await,
        Err(OutboxError::NoTable { .. })
    ));
}

#[tokio::test]
async fn rows_of_other_writers_that_are_no_envelope_are_named() {
    let (_postgres, client) = database().await;
    mark_column(&client).await;
    let outbox = Outbox::default();
    for version in [256_i16, -1] {
        let id = Uuid::now_v7();
        let sql = "insert into outbox_events (id, aggregate_id, event_type, event_version, payload_json) \
                   values ($1, $1, 'a.b', $2, '{}')";
        client.execute(sql, &[&id, &version]).await.unwrap();
        let read = outbox.fetch_pending(&client, 10).await;
        assert!(matches!(read, Err(OutboxError::EventVersion { id: found, .. }) if found == id));
        client
            .execute("delete from outbox_events", &[])
            .await
            .unwrap();
    }
    let envelope = EventEnvelope {
        id: Uuid::now_v7(),
        aggregate_id: Uuid::now_v7(),
        event_type: "a.b".to_owned(),
        event_version: 255,
        occurred_at: Utc::now(),
        payload_json: RawValue::from_string("[1e400, null]".to_owned()).unwrap(),
    };
    let mut client = client;
    let transaction = client.transaction().await.unwrap();
    outbox.add_envelope(&transaction, &envelope).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(
        outbox.fetch_pending(&client, 1).await.unwrap()[0].event_version,
        255
    );
}
