//! `walrelay replay` and what cannot be published: it ends there, and the next run goes on there.

use async_nats::jetstream::stream::DiscardPolicy;

use crate::lane::{by_hand, stream_of};
use crate::range::{ids, published, replay, replayed, uuids};
use crate::refused::edit;
use crate::support::Fixture;

/// The template was another one once: the stream takes both.
async fn published_on_two_subjects() -> (Fixture, String, String) {
    let mut fixture = published().await;
    let (old, new) = (
        format!("{}.>", fixture.name),
        format!("{}newer.>", fixture.name),
    );
    let mut stream = stream_of(&fixture).await;
    let mut config = stream.info().await.unwrap().config.clone();
    config.subjects.push(new.clone());
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.update_stream(config).await.unwrap();
    let template = format!("{}newer.{{event_type}}", fixture.name);
    fixture.set("WALRELAY_NATS_SUBJECT", template);
    let relay = fixture.run();
    fixture.insert(31, 33).await;
    fixture.holds(33).await;
    relay.stop().await;
    (fixture, old, new)
}

#[tokio::test]
async fn a_replay_has_the_events_of_all_subjects_that_the_stream_takes() {
    let (fixture, ..) = published_on_two_subjects().await;
    replay(&fixture, &["--from", "0/1"]).await;
    assert_eq!(ids(&replayed(&fixture).await), uuids(1..=33));
}

#[tokio::test]
async fn a_replay_stops_at_its_first_gap_and_goes_on_there() {
    let (mut fixture, old, new) = published_on_two_subjects().await;
    // By the older template, and a stream that takes no more.
    let template = format!("{}.{{event_type}}", fixture.name);
    fixture.set("WALRELAY_NATS_SUBJECT", template);
    let name = format!("{}_AGAIN", fixture.stream_name());
    let subjects = [format!("replay.{old}")];
    let config = by_hand(&name, &subjects, 1);
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.create_stream(config).await.unwrap();
    let all = ["replay", "--yes", "--from", "0/1", "--stream", &name];
    for _ in 0..2 {
        let stopped = fixture.walrelay(&all).await;
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        assert_eq!(stopped.stderr.matches("cannot be published").count(), 1);
        let wanted = format!("replay.{new}");
        let mend = format!(
            "nats stream edit {name} --subjects='{}' --subjects='{wanted}'",
            subjects[0]
        );
        assert!(stopped.stderr.contains(&mend), "{mend}: {stopped:?}");
        assert_eq!(ids(&fixture.stored_in(&name).await), uuids(1..=30));
    }
    let mut stream = context.get_stream(&name).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.subjects.push(format!("replay.{new}"));
    context.update_stream(config).await.unwrap();
    fixture.walrelay(&all).await.success();
    assert_eq!(ids(&fixture.stored_in(&name).await), uuids(1..=33));
}

/// What only nats-server's answer tells.
#[tokio::test]
async fn a_replay_stops_at_a_message_that_the_other_stream_finds_too_large() {
    let mut fixture = published().await;
    let relay = fixture.run();
    let large = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        VALUES ('00000000-0000-0000-0000-00000000001f', gen_random_uuid(), 'large.v1', jsonb_build_object('text', repeat('x', 5000)))";
    fixture.sql.batch_execute(large).await.unwrap();
    fixture.insert(32, 35).await;
    fixture.holds(35).await;
    relay.stop().await;
    let name = format!("{}_AGAIN", fixture.stream_name());
    let subjects = [format!("replay.{}.>", fixture.name)];
    let mut config = by_hand(&name, &subjects, 1);
    config.max_message_size = 2_000;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.create_stream(config).await.unwrap();
    let all = ["replay", "--yes", "--from", "0/1", "--stream", &name];
    let mut printed = String::new();
    for _ in 0..2 {
        let stopped = fixture.walrelay(&all).await;
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        let event = format!("message 31 of stream {}", fixture.stream_name());
        let said = format!("{event} cannot be published");
        assert!(stopped.stderr.contains(&said), "{stopped:?}");
        assert!(!stopped.stderr.contains("the source failed"), "{stopped:?}");
        assert_eq!(ids(&fixture.stored_in(&name).await), uuids(1..=30));
        printed = stopped.stderr;
    }
    // As it is printed.
    edit(&fixture, &name, &printed).await;
    fixture.walrelay(&all).await.success();
    assert_eq!(ids(&fixture.stored_in(&name).await), uuids(1..=35));
}

#[tokio::test]
async fn a_stream_that_is_full_is_named_with_the_event_and_the_edit_that_cures_it() {
    let fixture = published().await;
    tokio::join!(
        fills_up(&fixture, "max_msgs"),
        fills_up(&fixture, "max_bytes")
    );
}

/// A replay to a stream that this limit keeps from taking all.
async fn fills_up(fixture: &Fixture, limit: &str) {
    let name = format!("{}_{limit}", fixture.stream_name());
    let mut config = by_hand(&name, &[format!("{limit}.{}.>", fixture.name)], 1);
    config.discard = DiscardPolicy::New;
    match limit {
        "max_msgs" => config.max_messages = 12,
        _ => config.max_bytes = 6_000,
    }
    let context = async_nats::jetstream::new(fixture.nats.clone());
    context.create_stream(config).await.unwrap();
    let subject = format!("{limit}.{{subject}}");
    let to = ["--stream", &name, "--subject", &subject];
    let all = [&["replay", "--yes", "--from", "0/1"], &to[..]].concat();
    let stopped = fixture.walrelay(&all).await;
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    let held = fixture.stored_in(&name).await.len() as u64;
    assert!(0 < held && held < 30, "{held}");
    let event = format!("message {} of stream {}", held + 1, fixture.stream_name());
    let refuses = format!("stream {name} refuses {event}: maximum ");
    assert!(stopped.stderr.contains(&refuses), "{refuses}: {stopped:?}");
    // Not at each attempt.
    let warned = stopped.stderr.matches("trying on: ").count();
    assert!(warned <= 2, "{stopped:?}");
    edit(fixture, &name, &stopped.stderr).await;
    fixture.walrelay(&all).await.success();
    assert_eq!(ids(&fixture.stored_in(&name).await), uuids(1..=30));
}
