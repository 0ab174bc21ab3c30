//! The broker refuses, stands still or changes under a running relay: it waits with a clear line, or goes on another
//! way, and loses, doubles and reorders nothing.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use uuid::Uuid;

use crate::lane::{
    LANES, Lane, Restraint, ends_well, event_count, events, holds_events, jetstream, judge_events,
    logs_from, running, set_up, stream_of,
};
use crate::support::{Fixture, Relay, Stored, uuid};

/// How long a relay is watched while it waits.
const WATCH: Duration = Duration::from_millis(1_500);

/// A lane on the shared servers; nothing is confirmed.
async fn fixture(lane: Lane) -> Fixture {
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    set_up(&mut fixture, lane).await;
    fixture
}

/// Changes the stream as a person would.
async fn edit(fixture: &Fixture, change: impl FnOnce(&mut Config)) {
    let mut config = stream_of(fixture).await.cached_info().config.clone();
    change(&mut config);
    jetstream(fixture).update_stream(config).await.unwrap();
}

/// The relay says `words` and waits in quiet.
async fn waits(relay: &mut Relay, logged: usize, words: &str) {
    let log = logs_from(relay, logged, words).await;
    assert!(
        log.contains("waiting: ") || log.contains("starting again"),
        "{log}"
    );
    Restraint::of(relay).keeps(relay, WATCH).await;
    assert!(relay.runs());
}

#[tokio::test]
async fn a_stream_that_is_full() {
    for lane in LANES {
        let mut fixture = fixture(lane).await;
        let mut relay = running(&mut fixture, 10).await;
        let messages = fixture.message_count().await;
        let logged = relay.log().len();
        edit(&fixture, |config| {
            config.discard = DiscardPolicy::New;
            config.max_messages = messages as i64 + 20;
        })
        .await;
        fixture.insert(11, 60).await;
        waits(&mut relay, logged, "maximum messages exceeded").await;
        // A restart finds it full from the start.
        relay.kill();
        relay = fixture.run();
        waits(&mut relay, 0, "maximum messages exceeded").await;
        assert!(event_count(&fixture).await < 60);
        edit(&fixture, |config| config.max_messages = -1).await;
        fixture.insert(61, 70).await;
        ends_well(&fixture, relay, 70).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_again() {
    for lane in LANES {
        let mut fixture = fixture(lane).await;
        let mut relay = running(&mut fixture, 10).await;
        let config = stream_of(&fixture).await.cached_info().config.clone();
        let name = fixture.stream_name().to_owned();
        let logged = relay.log().len();
        jetstream(&fixture).delete_stream(&name).await.unwrap();
        fixture.insert(11, 20).await;
        waits(&mut relay, logged, &name).await;
        jetstream(&fixture).create_stream(config).await.unwrap();
        let log = logs_from(&mut relay, logged, "the broker has lost").await;
        assert!(log.contains("published again now"), "{log}");
        ends_well(&fixture, relay, 20).await;
    }
}

#[tokio::test]
async fn a_stream_whose_subjects_change() {
    for lane in LANES {
        let mut fixture = fixture(lane).await;
        let mut relay = running(&mut fixture, 10).await;
        let subjects = stream_of(&fixture)
            .await
            .cached_info()
            .config
            .subjects
            .clone();
        let root = format!("{}.>", fixture.name);
        // The relay looks at its stream now and then, and may tell it before the next event.
        let logged = relay.log().len();
        edit(&fixture, |config| {
            config.subjects.retain(|held| *held != root)
        })
        .await;
        fixture.insert(11, 20).await;
        waits(&mut relay, logged, "does not take").await;
        edit(&fixture, |config| config.subjects = subjects).await;
        ends_well(&fixture, relay, 20).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_sealed() {
    for lane in LANES {
        let mut fixture = fixture(lane).await;
        let mut relay = running(&mut fixture, 10).await;
        let logged = relay.log().len();
        edit(&fixture, |config| config.sealed = true).await;
        fixture.insert(11, 20).await;
        waits(&mut relay, logged, "sealed").await;
        relay.kill();
        // A start says it and ends.
        let output = fixture.walrelay(&["run"]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains("sealed"), "{}", output.stderr);
        let ids: Vec<Uuid> = events(&fixture).await.iter().map(Stored::id).collect();
        assert_eq!(ids, (1..=10).map(uuid).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn fast_ingest_that_is_turned_off_and_on() {
    let mut fixture = fixture(Lane::FastIngest).await;
    let mut relay = running(&mut fixture, 10).await;
    edit(&fixture, |config| config.allow_batch_publish = false).await;
    fixture.insert(11, 20).await;
    relay.logs("publish=\"chain\"").await;
    holds_events(&fixture, 20).await;
    edit(&fixture, |config| config.allow_batch_publish = true).await;
    fixture.insert(21, 30).await;
    ends_well(&fixture, relay, 30).await;
}

#[tokio::test]
async fn atomic_batches_that_are_turned_off() {
    let mut fixture = fixture(Lane::Shared).await;
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    edit(&fixture, |config| config.allow_atomic_publish = false).await;
    fixture.insert(11, 20).await;
    waits(&mut relay, logged, "--allow-batch").await;
    edit(&fixture, |config| config.allow_atomic_publish = true).await;
    ends_well(&fixture, relay, 20).await;
}

#[tokio::test]
async fn messages_that_become_too_large() {
    for lane in LANES {
        let mut fixture = fixture(lane).await;
        let mut relay = running(&mut fixture, 10).await;
        edit(&fixture, |config| config.max_message_size = 900).await;
        let large =
            "UPDATE pg_temp.new SET payload_json = to_jsonb(repeat('x', 2000)) WHERE n IN (13, 15)";
        let sql = format!(
            "CREATE TEMP TABLE new AS SELECT n, gen_random_uuid() AS aggregate_id, '{{}}'::jsonb AS payload_json
               FROM generate_series(11, 20) n;
             {large};
             INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
             SELECT lpad(to_hex(n), 32, '0')::uuid, aggregate_id, 't', payload_json FROM new ORDER BY n;
             DROP TABLE new"
        );
        fixture.sql.batch_execute(&sql).await.unwrap();
        relay.logs("became a dead letter").await;
        let is_large = |n: &u64| [13, 15].contains(n);
        let others: Vec<Uuid> = (1..=20).filter(|n| !is_large(n)).map(uuid).collect();
        judge_events(&fixture, &others).await;
        let stored = fixture.stored().await;
        let dead: Vec<_> = (0..stored.len())
            .filter(|at| stored[*at].kind.is_some())
            .collect();
        assert_eq!(dead.len(), 2, "{lane:?}");
        for (at, n) in dead.into_iter().zip([13, 15]) {
            assert_eq!(stored[at].field("id"), uuid(n).to_string());
            let before = stored[..at]
                .iter()
                .rfind(|m| m.subject.starts_with(&fixture.name));
            assert_eq!(before.map(Stored::id), Some(uuid(n - 1)), "{lane:?}");
        }

        // Not even a dead letter fits; in a shared stream not even the fence.
        let logged = relay.log().len();
        edit(&fixture, |config| config.max_message_size = 60).await;
        fixture.insert(21, 21).await;
        if lane == Lane::Shared {
            waits(&mut relay, logged, "--max-msg-size=512").await;
            relay.kill();
        } else {
            assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
        }
        edit(&fixture, |config| config.max_message_size = -1).await;
        let relay = fixture.run();
        fixture.insert(22, 22).await;
        let others: Vec<Uuid> = (1..=22).filter(|n| !is_large(n)).map(uuid).collect();
        judge_events(&fixture, &others).await;
        relay.stop().await;
    }
}
