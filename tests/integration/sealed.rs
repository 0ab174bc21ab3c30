//! A stream that was sealed: nothing unseals it, and `walrelay move` takes the lane out of it.

use async_nats::jetstream::{self, stream::DiscardPolicy};

use crate::support::{Fixture, uuid};

#[tokio::test]
async fn a_lane_is_moved_out_of_a_sealed_stream() {
    let mut fixture = Fixture::new().await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    let mut relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    let context = jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(&old).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.sealed = true;
    context.update_stream(config).await.unwrap();
    fixture.insert(11, 20).await;
    relay.logs("the stream is sealed").await;
    let doctor = fixture.walrelay(&["doctor"]).await;
    let told = "walrelay move --to-stream with another name";
    assert!(doctor.stdout.contains(told), "{}", doctor.stdout);

    let moving = ["move", "--yes", "--to-stream", &new];
    let moved = fixture.walrelay(&moving).await.success();
    let limit = format!("nats stream edit {new} --max-age");
    assert!(moved.stdout.contains(&limit), "{}", moved.stdout);
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let relay = fixture.run();
    // With the message that tells the lane's place.
    fixture.holds(21).await;
    let stored = fixture.stored().await;
    let events = stored
        .iter()
        .filter(|message| message.subject.starts_with(&fixture.name));
    let ids: Vec<_> = events.map(|event| event.id()).collect();
    assert_eq!(ids, (1..=20).map(uuid).collect::<Vec<_>>());
    fixture.walrelay(&["verify"]).await.success();
    let config = context.get_stream(&new).await.unwrap();
    let config = &config.cached_info().config;
    assert_eq!(config.discard, DiscardPolicy::Old);
    assert!(!config.sealed && !config.deny_delete && !config.deny_purge);
    relay.stop().await;
}
