//! Shares and two NATS: what one of them has of the lanes, the other one does not.

use async_nats::jetstream;
use serde_json::{Value, json};
use walrelay::local::{LocalNats, NatsOptions};

use super::load::{CARRY_NOTHING, SLOTS, are_owned, count, reshard, shares, two_shares};
use crate::support::{Fixture, Relay, binaries, eventually};

const PUBLICATIONS: &str = "FROM pg_publication";
const INSERT: &str = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    SELECT gen_random_uuid(), gen_random_uuid(), 'a', '{}' FROM generate_series(1, 200)";

async fn another_nats() -> LocalNats {
    let nats = LocalNats::start(&binaries(), NatsOptions::default()).await;
    nats.expect("it starts")
}

/// Each row is in a stream of the configuration.
async fn all_is_there(fixture: &Fixture) {
    eventually("all is published", async || {
        let verified = fixture.walrelay(&["verify"]).await;
        (verified.code == Some(0)).then_some(())
    })
    .await;
}

async fn is_refused(fixture: &Fixture, to: &str) -> String {
    let catalog = async || {
        [
            count(fixture, SLOTS).await,
            count(fixture, PUBLICATIONS).await,
            count(fixture, CARRY_NOTHING).await,
        ]
    };
    let before = catalog().await;
    let refused = fixture.walrelay(&["reshard", "--shares", to]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(catalog().await, before, "{}", refused.stderr);
    refused.stderr
}

/// What is printed between these words, typed without anybody to ask.
async fn types(fixture: &Fixture, text: &str, begin: &str, end: &str) {
    let (_, line) = text
        .split_once(begin)
        .unwrap_or_else(|| panic!("{begin}: {text}"));
    let (line, _) = line
        .split_once(end)
        .unwrap_or_else(|| panic!("{end}: {text}"));
    let line = line.replace("walrelay move", "walrelay move --yes");
    fixture.types(&line).await.success();
}

/// A relay of two shares, all of which is published.
async fn of_two(fixture: &mut Fixture) -> Relay {
    let relay = fixture.run();
    are_owned(fixture, 2).await;
    fixture.sql.batch_execute(INSERT).await.unwrap();
    all_is_there(fixture).await;
    relay
}

/// Beside a NATS that has one of the lanes, or none of them and another outbox's, nothing is divided.
#[tokio::test]
async fn nothing_is_divided_beside_a_nats_that_does_not_have_all_lanes() {
    let mut fixture = two_shares(true).await;
    let other = another_nats().await;
    let relay = of_two(&mut fixture).await;
    let own = fixture.servers().nats.url();
    let mut of_another = Fixture::bare().await;
    of_another.set("WALRELAY_NATS_URL", other.url());
    of_another.setup().await;
    fixture.set("WALRELAY_NATS_URL", other.url());
    is_refused(&fixture, "4").await;
    fixture.set("WALRELAY_NATS_URL", own.as_str());
    let stream = fixture.stream_name().replace("{share}", "0");
    let there = other.url();
    let moving = ["move", "--yes", "--share", "0", "--to-stream", &stream];
    let moving = [&moving[..], &["--to-nats", &there]].concat();
    fixture.walrelay(&moving).await.success();

    fixture.set("WALRELAY_NATS_URL", other.url());
    let told = is_refused(&fixture, "4").await;
    let slot = format!("slot {}_1 has no lane record", fixture.name);
    assert!(told.contains(&slot), "{told}");
    // The other configuration says the same.
    fixture.set("WALRELAY_NATS_URL", own.as_str());
    is_refused(&fixture, "4").await;
    types(
        &fixture,
        &told,
        "bring the lane here, run ",
        " with that one",
    )
    .await;
    drop(relay);
    fixture.set("WALRELAY_NATS_URL", other.url());
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    are_owned(&fixture, 4).await;
    fixture.sql.batch_execute(INSERT).await.unwrap();
    all_is_there(&fixture).await;
    relay.stop().await;
}

/// Where the broker has lost all that it had, the lanes come first.
#[tokio::test]
async fn nothing_is_divided_beside_a_nats_that_has_lost_the_lanes() {
    let mut fixture = two_shares(true).await;
    of_two(&mut fixture).await.stop().await;
    let other = another_nats().await;
    let mut of_another = Fixture::bare().await;
    of_another.set("WALRELAY_NATS_URL", other.url());
    of_another.setup().await;
    fixture.set("WALRELAY_NATS_URL", other.url());
    let told = is_refused(&fixture, "4").await;
    assert!(told.contains("has lost it, run walrelay setup"), "{told}");
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{}", setup.stderr);
    for share in ["0", "1"] {
        let adopt = format!("adopt --share {share}");
        assert!(setup.stderr.contains(&adopt), "{}", setup.stderr);
        let told = is_refused(&fixture, "4").await;
        assert!(told.contains(&adopt), "{told}");
        fixture
            .walrelay(&["adopt", "--yes", "--share", share])
            .await
            .success();
    }
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.walrelay(&["backfill"]).await.success();
    let relay = fixture.run();
    are_owned(&fixture, 4).await;
    all_is_there(&fixture).await;
    relay.stop().await;
}

/// The last lane record.
async fn record(context: &jetstream::Context, subject: &str) -> Value {
    let records = context.get_stream("WALRELAY").await.unwrap();
    let stored = records.get_last_raw_message_by_subject(subject).await;
    serde_json::from_slice(&stored.unwrap().payload).unwrap()
}

/// A move to another NATS that was killed half way is ended by what is printed there.
#[tokio::test]
async fn one_that_is_on_its_way_from_another_nats_is_taken_there_first() {
    let mut fixture = two_shares(true).await;
    let relay = of_two(&mut fixture).await;
    let other = another_nats().await;
    let (own, there) = (fixture.servers().nats.url(), other.url());
    let stream = fixture.stream_name().replace("{share}", "1");
    let moving = ["move", "--yes", "--share", "1", "--to-stream", &stream];
    let moving = [&moving[..], &["--to-nats", &there]].concat();
    fixture.walrelay(&moving).await.success();
    // As it leaves both records where it is killed behind the last message.
    let stream = fixture.stream_name().replace("{share}", "0");
    let moving = ["move", "--yes", "--share", "0", "--to-stream", &stream];
    let moving = [&moving[..], &["--to-nats", &there]].concat();
    fixture.walrelay(&moving).await.success();
    let subject = format!("walrelay.lane.{stream}.{}_0", fixture.name);
    let there_too = jetstream::new(async_nats::connect(&there).await.unwrap());
    let here = jetstream::new(fixture.nats.clone());
    let [left, mut arrived] = [
        record(&here, &subject).await,
        record(&there_too, &subject).await,
    ];
    let created = &left["created"];
    let from = json!({"stream": stream, "created": created, "nats": own, "is_whole": true});
    arrived["moved"] = json!({ "from": from });
    let stored = there_too.publish(subject, arrived.to_string().into()).await;
    stored.unwrap().await.unwrap();
    drop(relay);

    fixture.set("WALRELAY_NATS_URL", there.as_str());
    let told = is_refused(&fixture, "4").await;
    types(
        &fixture,
        &told,
        "nothing was changed: run ",
        ", which ends that move",
    )
    .await;
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    relay.stop().await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    are_owned(&fixture, 4).await;
    fixture.sql.batch_execute(INSERT).await.unwrap();
    all_is_there(&fixture).await;
    relay.stop().await;
}

/// What shares had that are no more stays behind when the others are moved: nothing is called missing there, or published again, and what
/// is printed brings it.
#[tokio::test]
async fn what_shares_had_that_are_no_more_is_not_missing_at_another_nats() {
    let mut fixture = two_shares(true).await;
    let relay = fixture.run();
    for to in ["4", "2"] {
        reshard(&fixture, to).await;
        fixture.sql.batch_execute(INSERT).await.unwrap();
    }
    all_is_there(&fixture).await;
    let other = another_nats().await;
    let (own, there) = (fixture.servers().nats.url(), other.url());
    let whole = fixture.stream_name().to_owned();
    let name = |share: u32| whole.replace("{share}", &share.to_string());
    for share in [0, 1] {
        let (number, stream) = (share.to_string(), name(share));
        let moving = ["move", "--yes", "--share", &number, "--to-stream", &stream];
        let moving = [&moving[..], &["--to-nats", &there]].concat();
        fixture.walrelay(&moving).await.success();
    }
    drop(relay);
    fixture.set("WALRELAY_NATS_URL", there.as_str());
    fixture.nats = async_nats::connect(&there).await.unwrap();
    let relay = fixture.run();
    are_owned(&fixture, 2).await;
    fixture.sql.batch_execute(INSERT).await.unwrap();

    let counts = async || {
        let mut all = Vec::new();
        for share in [0, 1] {
            all.push(fixture.message_count_of(&name(share)).await);
        }
        all
    };
    let verified = fixture.walrelay(&["verify"]).await;
    assert_eq!(verified.code, Some(3), "{verified:?}");
    assert!(!verified.stdout.contains("missing"), "{verified:?}");
    let before = counts().await;
    for command in [&["backfill"][..], &["verify", "--repair"]] {
        let refused = fixture.walrelay(command).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert_eq!(counts().await, before, "{command:?}");
    }
    let listed = fixture
        .walrelay(&["dead-letters", "list", "--share", "0"])
        .await;
    for told in [&verified.stderr, &listed.stderr] {
        for share in [2, 3] {
            let stream = format!("stream {} at {own}", name(share));
            assert!(told.contains(&stream), "{told}");
        }
    }
    let query = "SELECT aggregate_id::text FROM outbox_events LIMIT 1";
    let row = fixture.sql.query_one(query, &[]).await.unwrap();
    let id: &str = row.get(0);
    let erase = ["erase", "--dry-run", "--json", "--aggregate-id", id];
    let told = fixture.walrelay(&erase).await.success();
    let receipt: Value = serde_json::from_str(&told.stdout).unwrap();
    let left = (0..4).map(|share| json!({"stream": name(share), "nats": own}));
    assert_eq!(receipt["left_elsewhere"], json!(left.collect::<Vec<_>>()));

    types(
        &fixture,
        &verified.stderr,
        "what is missing: ",
        " brings what they have",
    )
    .await;
    all_is_there(&fixture).await;
    fixture.walrelay(&["backfill"]).await.success();
    let listed = fixture
        .walrelay(&["dead-letters", "list", "--share", "0"])
        .await;
    assert!(!listed.stderr.contains(&own), "{}", listed.stderr);
    let told = fixture.walrelay(&erase).await.success();
    let receipt: Value = serde_json::from_str(&told.stdout).unwrap();
    let streams = receipt["streams"].as_array().unwrap();
    assert_eq!(streams.len(), 4, "{receipt}");
    relay.stop().await;
}
