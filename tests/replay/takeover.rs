//! What is in the table when the slot is made, and the takeover from a dispatcher that polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::jetstream::{self, stream};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::lane::by_hand;
use crate::support::{Fixture, Output, Stored, Writer, assert_exactly_once, eventually, uuid};

const NOT_DISPATCHED: &str = "dispatched_at IS NULL";

async fn bare() -> Fixture {
    let fixture = Fixture::with_table().await;
    let column = "ALTER TABLE outbox_events ADD COLUMN IF NOT EXISTS dispatched_at timestamptz";
    fixture.sql.batch_execute(column).await.unwrap();
    fixture
}

/// Each of the committed events is there once, whoever has published it.
fn all_once(mut committed: Vec<Uuid>, mut there: Vec<Uuid>) {
    committed.sort_unstable();
    there.sort_unstable();
    assert_exactly_once(&committed, &there);
}

async fn refused(fixture: &Fixture, arguments: &[&str], expected: &str) -> Output {
    let refused = fixture.walrelay(arguments).await;
    assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.stderr);
    let is_said = refused.stderr.contains(expected);
    assert!(is_said, "{arguments:?}: {}", refused.stderr);
    refused
}

#[tokio::test]
async fn rows_before_the_slot_and_behind_it_come_once_while_writers_write() {
    const OLD: u64 = 5_000;
    let mut fixture = bare().await;
    fixture.insert(1, OLD).await;
    let writer = Writer::start(&fixture).await;
    eventually("500 events are committed", async || {
        (writer.committed() >= 500).then_some(())
    })
    .await;
    let made = fixture.walrelay(&["setup", "--backfill"]).await.success();
    assert!(
        !made.stdout.contains("will not be published"),
        "{}",
        made.stdout
    );
    let behind = writer.committed();
    let relay = fixture.run();
    eventually("500 more are committed", async || {
        (writer.committed() >= behind + 500).then_some(())
    })
    .await;
    let mut committed = writer.stop(&fixture).await;
    committed.extend((1..=OLD).map(uuid));
    fixture.holds(committed.len() as u64).await;
    let stored = fixture.stored().await;
    let backfilled = stored.iter().filter(|stored| stored.kind.is_some()).count() as u64;
    // The writers' rows stand on both sides of the slot.
    assert!(
        backfilled > OLD && backfilled < stored.len() as u64,
        "{backfilled}"
    );
    all_once(committed, stored.iter().map(Stored::id).collect());
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn only_rows_for_which_the_condition_holds_are_published() {
    let fixture = bare().await;
    fixture.insert(1, 10).await;
    let mark =
        "UPDATE outbox_events SET dispatched_at = now() WHERE (payload_json->>'n')::int % 2 = 1";
    fixture.sql.batch_execute(mark).await.unwrap();
    let made = ["setup", "--backfill", "--where", NOT_DISPATCHED];
    fixture.walrelay(&made).await.success();
    let even: Vec<Uuid> = (1..=5).map(|n| uuid(2 * n)).collect();
    assert_eq!(fixture.stored_ids().await, even);
    let again = ["backfill", "--where", "dispatched_at IS NULL -- as before"];
    let again = fixture.walrelay(&again).await.success();
    assert!(again.stdout.starts_with("0 rows"), "{}", again.stdout);
    let quoted = "dispatched_at IS NOT NULL AND $$) OR ($$ <> ')' /* ) OR ( */";
    let dry = ["backfill", "--dry-run", "--where", quoted];
    let dry = fixture.walrelay(&dry).await.success();
    assert!(dry.stdout.starts_with("5 rows"), "{}", dry.stdout);
    fixture.walrelay(&["backfill"]).await.success();
    all_once((1..=10).map(uuid).collect(), fixture.stored_ids().await);
}

#[tokio::test]
async fn a_condition_that_postgres_does_not_understand_is_refused_with_its_words() {
    let fixture = bare().await;
    fixture.insert(1, 10).await;
    let cases = [
        ("nope IS NULL", "column \"nope\" does not exist"),
        ("dispatched_at IS", "syntax error"),
        ("dispatched_at IS NULL)", "syntax error"),
        // Between parentheses it is another statement's.
        (
            "dispatched_at IS NULL) OR (dispatched_at IS NOT NULL",
            "syntax error at or near \")\"",
        ),
        (
            "dispatched_at > $1",
            "nobody gives a value to its parameters",
        ),
        (
            "true); DROP TABLE outbox_events; SELECT (1",
            "cannot insert multiple commands",
        ),
        ("", "give a condition in SQL"),
        ("1", "must be type boolean, not type integer"),
    ];
    for (condition, words) in cases {
        // Before anything is made.
        refused(
            &fixture,
            &["setup", "--backfill", "--where", condition],
            words,
        )
        .await;
    }
    refused(
        &fixture,
        &["setup", "--where", NOT_DISPATCHED],
        "--backfill",
    )
    .await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
    let slots = fixture
        .sql
        .query_one(slots, &[&fixture.name])
        .await
        .unwrap();
    assert_eq!(slots.get::<_, i64>(0), 0);
    fixture.setup().await;
    for (condition, words) in cases {
        refused(&fixture, &["backfill", "--where", condition], words).await;
    }
    // Which only a row tells.
    let condition = "1 / ((payload_json->>'n')::int - 5) > 0";
    refused(
        &fixture,
        &["backfill", "--where", condition],
        "division by zero",
    )
    .await;
    assert_eq!(fixture.message_count().await, 0);
    let rows = fixture
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[])
        .await;
    assert_eq!(rows.unwrap().get::<_, i64>(0), 10);
}

/// An application's dispatcher as there are many: it polls, publishes each row, and marks the batch.
struct Poller {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    nats: async_nats::Client,
    task: JoinHandle<()>,
}

const POLL: &str = "SELECT id, event_type, jsonb_build_object('id', id, 'aggregate_id', aggregate_id, 'event_type', event_type,
        'event_version', event_version, 'occurred_at', occurred_at, 'payload_json', payload_json)::text
    FROM outbox_events WHERE dispatched_at IS NULL ORDER BY occurred_at LIMIT 100 FOR UPDATE SKIP LOCKED";

impl Poller {
    /// Publishes under `root`.
    async fn start(fixture: &Fixture, root: &str) -> Poller {
        let url = fixture.servers().postgres.url(&fixture.name);
        let (sql, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        sql.batch_execute("SET application_name = 'dispatcher'")
            .await
            .unwrap();
        let poller = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stop, published) = poller.clone();
        let (nats, root) = (fixture.nats.clone(), root.to_owned());
        let context = jetstream::new(nats.clone());
        let task = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                batch(&sql, &context, &root, &published).await;
            }
        });
        Poller {
            stop: poller.0,
            published: poller.1,
            nats,
            task,
        }
    }

    async fn publishes(&self, count: u64) {
        eventually(format!("{count} dispatched events"), async || {
            (self.published.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    /// Ends behind its batch, or as in a crash; returns once Postgres knows that.
    async fn end(self, fixture: &Fixture, crash: bool) {
        match crash {
            true => self.task.abort(),
            false => self.stop.store(true, Ordering::Relaxed),
        }
        let _ = self.task.await;
        self.nats.flush().await.unwrap();
        let sessions =
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'dispatcher' AND datname = $1";
        eventually("the dispatcher's session ends", async || {
            let found = fixture.sql.query(sessions, &[&fixture.name]).await.unwrap();
            found.is_empty().then_some(())
        })
        .await;
    }
}

async fn batch(sql: &Client, context: &jetstream::Context, root: &str, published: &AtomicU64) {
    sql.batch_execute("BEGIN").await.unwrap();
    let rows = sql.query(POLL, &[]).await.unwrap();
    let mut ids = Vec::new();
    for row in &rows {
        let (id, event_type): (Uuid, String) = (row.get(0), row.get(1));
        let message = jetstream::message::PublishMessage::build()
            .message_id(id.to_string())
            .payload(row.get::<_, String>(2).into());
        let sent = context
            .send_publish(format!("{root}.{event_type}"), message)
            .await;
        sent.unwrap().await.unwrap();
        published.fetch_add(1, Ordering::Relaxed);
        ids.push(id);
    }
    let mark = "UPDATE outbox_events SET dispatched_at = now() WHERE id = ANY($1)";
    sql.execute(mark, &[&ids]).await.unwrap();
    sql.batch_execute("COMMIT").await.unwrap();
}

/// Stops the dispatcher, and goes on with walrelay, under a writer; returns what is committed.
async fn take_over(fixture: &mut Fixture, root: &str, crash: bool) -> Vec<Uuid> {
    let writer = Writer::start(fixture).await;
    let poller = Poller::start(fixture, root).await;
    poller.publishes(1_050).await;
    poller.end(fixture, crash).await;
    let made = ["setup", "--backfill", "--where", NOT_DISPATCHED];
    fixture.walrelay(&made).await.success();
    let behind = writer.committed();
    let relay = fixture.run();
    eventually("500 more are committed", async || {
        (writer.committed() >= behind + 500).then_some(())
    })
    .await;
    let committed = writer.stop(fixture).await;
    let last = *committed.last().expect("events");
    eventually("the last event is there", async || {
        let stored = fixture.stored().await;
        stored
            .iter()
            .any(|stored| stored.id() == last)
            .then_some(())
    })
    .await;
    relay.stop().await;
    committed
}

/// It dies with a batch that is published and not marked: the stream tells what it has.
#[tokio::test]
async fn a_dispatcher_that_dies_is_taken_over_in_its_own_stream() {
    let mut fixture = bare().await;
    let name = fixture.name.clone();
    let subjects = [format!("{name}.>"), format!("walrelay.dead.{name}")];
    let config = by_hand(fixture.stream_name(), &subjects, 1);
    jetstream::new(fixture.nats.clone())
        .create_stream(config)
        .await
        .unwrap();
    let committed = take_over(&mut fixture, &name, true).await;
    all_once(committed, fixture.stored_ids().await);
    fixture.walrelay(&["verify"]).await.success();
}

/// Its stream is another one: what it has marked is published.
#[tokio::test]
async fn a_dispatcher_that_is_stopped_is_taken_over_in_another_stream() {
    let mut fixture = bare().await;
    let (root, old) = (
        format!("old.{}", fixture.name),
        format!("OLD_{}", fixture.name),
    );
    let config = stream::Config {
        name: old.clone(),
        subjects: vec![format!("{root}.>")],
        ..stream::Config::default()
    };
    jetstream::new(fixture.nats.clone())
        .create_stream(config)
        .await
        .unwrap();
    let committed = take_over(&mut fixture, &root, false).await;
    let mut there: Vec<Uuid> = fixture
        .stored_in(&old)
        .await
        .iter()
        .map(Stored::id)
        .collect();
    there.extend(fixture.stored_ids().await);
    all_once(committed, there);
}

/// What a dispatcher published without a type, before walrelay took the stream over.
#[tokio::test]
async fn what_tells_no_type_is_left_out_of_a_replay_by_type_and_counted() {
    let fixture = bare().await;
    let name = fixture.name.clone();
    let subjects = [format!("{name}.>"), format!("walrelay.dead.{name}")];
    let context = jetstream::new(fixture.nats.clone());
    let config = by_hand(fixture.stream_name(), &subjects, 1);
    context.create_stream(config).await.unwrap();
    for number in 101..=103 {
        let id = uuid(number);
        let message = jetstream::message::PublishMessage::build()
            .message_id(id.to_string())
            .payload(format!("{{\"id\":\"{id}\",\"lesson\":{number}}}").into());
        let sent = context.send_publish(format!("{name}.lesson"), message);
        sent.await.unwrap().await.unwrap();
    }
    let made = ["setup", "--backfill"];
    fixture.walrelay(&made).await.success();
    let mut fixture = fixture;
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(8).await;
    relay.stop().await;

    // No position goes across the takeover; the refusal names the time that does.
    let refused = fixture
        .walrelay(&["replay", "--dry-run", "--from", "0/1"])
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let (_, from) = refused.stderr.split_once("with --from ").expect("a time");
    let from = from.split_once(' ').expect("more").0;
    let of_type = ["--from", from, "--event-type", "lesson.published.v1"];
    let dry = [&["replay", "--dry-run"], &of_type[..]].concat();
    let dry = fixture.walrelay(&dry).await.success();
    assert!(
        dry.stdout.contains("5 events would be published"),
        "{dry:?}"
    );
    for published in ["5 events are", "0 events are"] {
        let done = [&["replay", "--yes"], &of_type[..]].concat();
        let done = fixture.walrelay(&done).await.success();
        assert!(done.stdout.contains(published), "{done:?}");
        if published.starts_with('5') {
            assert!(done.stderr.contains("3 messages are left out"), "{done:?}");
        }
        let replayed = fixture.stored_in(&crate::range::target(&fixture)).await;
        let ids: Vec<Uuid> = replayed.iter().map(Stored::id).collect();
        assert_eq!(ids, (1..=5).map(uuid).collect::<Vec<_>>());
    }
    // Without the filter they come.
    let other = format!("{}_ALL", fixture.stream_name());
    let all = [
        "replay",
        "--yes",
        "--from",
        from,
        "--stream",
        &other,
        "--subject",
        "all.{subject}",
    ];
    let all = fixture.walrelay(&all).await.success();
    assert!(all.stdout.contains("8 events are"), "{all:?}");
}
