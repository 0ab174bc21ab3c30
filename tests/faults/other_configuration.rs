//! Commands with a configuration that is not the lane's: nothing is published again, and nothing is removed while a copy of it stays.

use walrelay::local::{LocalNats, NatsOptions};

use crate::support::{Fixture, binaries};

const EVENTS: u64 = 10;
const AGGREGATE: &str = "00000000-0000-0000-0000-0000000000a7";
const ERASE: &[&str] = &["erase", "--yes", "--aggregate-id", AGGREGATE];

/// A lane that has published so many events of one aggregate and runs on.
async fn lane(fixture: &mut Fixture) -> crate::support::Relay {
    let relay = fixture.run();
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT gen_random_uuid(), '{AGGREGATE}', 'lesson.published.v1', '{{}}' FROM generate_series(1, {EVENTS})"
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
    fixture.holds(EVENTS).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay
}

async fn rows(fixture: &Fixture) -> i64 {
    let counted = fixture
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[]);
    counted.await.unwrap().get(0)
}

/// None of the commands that publish beside the lane, or remove for good, does either.
async fn all_are_refused(fixture: &Fixture, why: &str) {
    for arguments in [
        &["backfill"][..],
        &["backfill", "--dry-run"][..],
        &["verify", "--repair"][..],
        &["dead-letters", "retry", "--all"][..],
        &["prune", "--older-than", "0s"][..],
        ERASE,
    ] {
        let refused = fixture.walrelay(arguments).await;
        assert_ne!(refused.code, Some(0), "{arguments:?}: {}", refused.stdout);
        assert!(
            refused.stderr.contains(why),
            "{arguments:?}: {}",
            refused.stderr
        );
    }
    assert_eq!(rows(fixture).await, EVENTS as i64);
}

#[tokio::test]
async fn beside_another_nats_nothing_is_published_again_or_erased() {
    let mut fixture = Fixture::own().await;
    let relay = lane(&mut fixture).await;
    let other = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("it starts");
    let own = fixture.servers().nats.url();
    fixture.set("WALRELAY_NATS_URL", other.url());
    // Makes the streams, and says that a relay would halt there.
    let made = fixture.walrelay(&["setup"]).await;
    assert_eq!(made.code, Some(1), "{}", made.stderr);
    all_are_refused(
        &fixture,
        "and no lane record: what the slot has passed is in another stream",
    )
    .await;
    let seen = async_nats::connect(other.url()).await.unwrap();
    let stream = async_nats::jetstream::new(seen)
        .get_stream(fixture.stream_name())
        .await
        .expect("setup made it");
    assert_eq!(stream.cached_info().state.last_sequence, 0);
    for arguments in [&["doctor"][..], &["status"][..]] {
        let told = fixture.walrelay(arguments).await;
        assert_eq!(told.code, Some(1), "{arguments:?}: {}", told.stdout);
        let move_there = format!(
            "walrelay move --to-stream {} --to-nats {}",
            fixture.stream_name(),
            other.url()
        );
        assert!(told.stdout.contains(&move_there), "{}", told.stdout);
    }
    // As each of them said.
    fixture.set("WALRELAY_NATS_URL", own);
    let erased = fixture.walrelay(ERASE).await.success();
    assert!(erased.stdout.contains("10 rows"), "{}", erased.stdout);
    assert_eq!(rows(&fixture).await, 0);
    relay.stop().await;
}

#[tokio::test]
async fn another_stream_of_the_same_nats_is_reached_by_the_move_that_setup_prints() {
    let mut fixture = Fixture::new().await;
    let mut relay = lane(&mut fixture).await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    let printed = format!("walrelay move --to-stream {new} with the configuration of that one");
    assert!(refused.stderr.contains(&printed), "{}", refused.stderr);
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    let moving = ["move", "--to-stream", &new, "--yes"];
    fixture.walrelay(&moving).await.success();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    // The configuration of before finds nothing to make.
    let left = fixture.walrelay(&["setup"]).await;
    assert_eq!(left.code, Some(4), "{}", left.stdout);
    let told = format!("walrelay move has taken it to stream {new}");
    assert!(left.stderr.contains(&told), "{}", left.stderr);
    let found = fixture.walrelay(&["doctor"]).await;
    assert!(found.stdout.contains("[halted]"), "{}", found.stdout);
    assert!(!found.stdout.contains("[stream]"), "{}", found.stdout);
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 1).await;
    fixture.holds(EVENTS + 1).await;
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}
