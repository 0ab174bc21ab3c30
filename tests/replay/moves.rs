//! `walrelay move`: the lane goes to another stream, or another NATS, while writers write; nothing is lost, doubled or out of order.

use async_nats::jetstream::{self, stream::Stream};
use walrelay::local::{LocalNats, NatsOptions};

use crate::lane::{event_count, holds_events, judge, more_events, stream_of};
use crate::support::{Fixture, Relay, Writer, binaries, eventually};

const EVENTS_BEFORE: u64 = 5_000;

/// A relay and writers, once so many events have come through.
async fn under_load(fixture: &mut Fixture) -> (Relay, Writer) {
    let mut relay = fixture.run();
    relay.streams().await;
    let writer = Writer::start(fixture).await;
    more_events(fixture, EVENTS_BEFORE).await;
    (relay, writer)
}

/// How long no event was stored around the move.
async fn pause(old: &Stream, new: &Stream) -> String {
    let gone = old.cached_info().state.last_sequence;
    let last = old
        .get_raw_message(gone - 1)
        .await
        .expect("the last event")
        .time;
    let mut sequence = new.cached_info().state.last_sequence;
    let mut first = new.get_raw_message(sequence).await.expect("an event");
    while first.headers.get("Walrelay-Moved").is_none()
        && first.headers.get("Walrelay-Kind").is_none()
    {
        sequence -= 1;
        let before = new.get_raw_message(sequence).await.expect("a message");
        if before.headers.get("Walrelay-Kind").is_some() {
            break;
        }
        first = before;
    }
    (first.time - last).to_string()
}

/// A relay with the old configuration says where the lane is, and publishes nothing.
async fn is_halted(fixture: &mut Fixture, to: &str) {
    let before = stream_of(fixture).await.cached_info().state.last_sequence;
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{}", halted.stderr);
    assert!(
        halted.stderr.contains(&format!("nats.stream = \"{to}\"")),
        "{}",
        halted.stderr
    );
    for command in [&["backfill"][..], &["dead-letters", "retry", "--all"]] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(to), "{}", refused.stderr);
    }
    let after = stream_of(fixture).await.cached_info().state.last_sequence;
    assert_eq!(after, before);
}

#[tokio::test]
async fn to_another_stream_under_load() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    let (mut relay, writer) = under_load(&mut fixture).await;

    let dry = fixture
        .walrelay(&["move", "--to-stream", &new, "--dry-run"])
        .await
        .success();
    assert!(dry.stdout.contains(&new), "{}", dry.stdout);
    let own = fixture.walrelay(&["move", "--to-stream", &old]).await;
    assert_eq!(own.code, Some(2), "{}", own.stderr);

    let mut moving = fixture.start(&["move", "--yes", "--to-stream", &new]);
    moving.logs("is there: messages are copied").await;
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let mut next = fixture.run();
    assert_eq!(moving.ends().await, Some(0), "{}", moving.log());
    next.streams().await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    more_events(&fixture, 100).await;
    let context = jetstream::new(fixture.nats.clone());
    let streams = (
        context.get_stream(&old).await.unwrap(),
        stream_of(&fixture).await,
    );
    eprintln!(
        "the lane stood still for {}",
        pause(&streams.0, &streams.1).await
    );
    judge(&fixture, writer).await;
    fixture.walrelay(&["verify"]).await.success();

    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    is_halted(&mut fixture, &new).await;
    // A second one has nothing to do.
    let again = fixture
        .walrelay(&["move", "--yes", "--to-stream", &new])
        .await
        .success();
    assert!(again.stdout.contains("there already"), "{}", again.stdout);
    // What was copied can be replayed by its positions, as what came since.
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let events = fixture
        .walrelay(&["replay", "--from", "0/1", "--dry-run"])
        .await
        .success();
    let published = event_count(&fixture).await;
    assert!(
        events
            .stdout
            .contains(&format!("{published} events would be published")),
        "{}",
        events.stdout
    );
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    // The relay with the new configuration reads the slot all the while.
    for command in ["position", "status", "doctor"] {
        let told = fixture.walrelay(&[command]).await.stdout;
        assert!(told.contains("walrelay move has taken it"), "{told}");
        assert!(told.contains(&format!("nats.stream = \"{new}\"")), "{told}");
        assert!(!told.contains("running"), "{told}");
    }
    next.stop().await;
}

/// Runs the command again and again, each run killed once it has logged the next step; what the last one prints.
async fn killed_after_each_step(fixture: &Fixture, arguments: &[&str]) -> String {
    for step in [
        "is there: messages are copied",
        "has left",
        "is copied",
        "takes the events",
        "tells the lane's place",
        "lives in",
    ] {
        let mut moving = fixture.start(arguments);
        // The one before may have come further than the step at which it was to be killed.
        let has_ended = eventually(format!("{step:?} or the end"), async || {
            let has_ended = !moving.runs();
            (has_ended || moving.log().contains(step)).then_some(has_ended)
        })
        .await;
        match has_ended {
            true => assert_eq!(moving.ends().await, Some(0), "{}", moving.log()),
            false => moving.kill(),
        }
    }
    let moved = fixture.walrelay(arguments).await.success();
    assert!(moved.stdout.contains("moved: "), "{}", moved.stdout);
    moved.stdout
}

/// `nats stream rm` as a person types it whose own NATS is that of the configuration.
async fn types_rm(fixture: &Fixture, command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let (there, stream) = match words[..] {
        ["nats", "--server", url, "stream", "rm", stream] => {
            (async_nats::connect(url).await.expect("it answers"), stream)
        }
        ["nats", "stream", "rm", stream] => (fixture.nats.clone(), stream),
        _ => panic!("{command}"),
    };
    let deleted = jetstream::new(there).delete_stream(stream).await;
    deleted.expect("deleted");
}

/// The lane goes back to where it was, once what is printed was done.
async fn goes_back(fixture: &Fixture, arguments: &[&str]) {
    let refused = fixture.walrelay(arguments).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let (_, remedy) = refused.stderr.split_once("delete it (").expect("a remedy");
    let (command, _) = remedy.split_once(')').expect("a command");
    types_rm(fixture, command).await;
    let moved = fixture.walrelay(arguments).await.success();
    assert!(moved.stdout.contains("moved: "), "{}", moved.stdout);
}

/// What commits now comes through too, behind the last of the writer, which may have ended before.
async fn goes_on(fixture: &Fixture) {
    let count = event_count(fixture).await;
    fixture.insert(1, 10).await;
    holds_events(fixture, count + 10).await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn there_and_back() {
    let mut fixture = Fixture::new().await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    let relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    more_events(&fixture, 500).await;
    fixture
        .walrelay(&["move", "--yes", "--to-stream", &new])
        .await
        .success();
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let mut second = fixture.run();
    second.streams().await;
    goes_back(&fixture, &["move", "--yes", "--to-stream", &old]).await;
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    let mut third = fixture.run();
    third.streams().await;
    judge(&fixture, writer).await;
    goes_on(&fixture).await;
    for mut halted in [relay, second] {
        assert_eq!(halted.ends().await, Some(4), "{}", halted.log());
    }
    third.stop().await;
}

#[tokio::test]
async fn killed_at_every_step() {
    let mut fixture = Fixture::new().await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    let (mut relay, writer) = under_load(&mut fixture).await;
    let arguments = ["move", "--yes", "--to-stream", &new];
    killed_after_each_step(&fixture, &arguments).await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    is_halted(&mut fixture, &new).await;
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let relay = fixture.run();
    judge(&fixture, writer).await;
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}

/// The words between the next two backticks, as arguments of the program.
fn printed<'t>(text: &'t str, begin: &'t str) -> Vec<&'t str> {
    let (_, command) = text.split_once(&format!("`walrelay {begin}")).expect(begin);
    let (rest, _) = command.split_once('`').expect("its end");
    std::iter::once(begin)
        .chain(rest.split_whitespace())
        .collect()
}

/// The new configuration is set up and run before the move: the outbox would be in two places.
#[tokio::test]
async fn a_new_nats_is_set_up_and_run_before_the_move() {
    let mut fixture = Fixture::own().await;
    let other = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("it starts");
    let (first, url) = (fixture.servers().nats.url(), other.url());
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 100).await;
    holds_events(&fixture, 100).await;
    let end = fixture.server_lsn().await;
    fixture.confirms(end).await;
    relay.stop().await;

    fixture.set("WALRELAY_NATS_URL", url.as_str());
    let there = async_nats::connect(&url).await.expect("it answers");
    for _ in 0..2 {
        let told = fixture.walrelay(&["setup"]).await;
        assert_eq!(told.code, Some(1), "{}", told.stderr);
        assert!(told.stderr.contains("walrelay move"), "{}", told.stderr);
    }
    fixture.insert(101, 110).await;
    // Each row is in the other stream, and none is missing.
    for command in [&["backfill"][..], &["backfill", "--unjudged"]] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("walrelay move"),
            "{}",
            refused.stderr
        );
    }
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{}", halted.stderr);
    let from = fixture.walrelay(&["run", "--from", "0/1"]).await;
    assert_eq!(from.code, Some(4), "{}", from.stderr);
    let context = jetstream::new(there.clone());
    let stream = context.get_stream(fixture.stream_name()).await.unwrap();
    assert_eq!(stream.cached_info().state.last_sequence, 0);

    // The remedy, as it is printed.
    let mut remedy = printed(&halted.stderr, "move");
    remedy.push("--yes");
    fixture.set("WALRELAY_NATS_URL", first.as_str());
    let moved = fixture.walrelay(&remedy).await.success();
    assert!(moved.stdout.contains("moved: "), "{}", moved.stdout);
    jetstream::new(fixture.nats.clone())
        .delete_stream(fixture.stream_name())
        .await
        .unwrap();
    // The old stream is gone, and where the lane is is known all the same.
    let left = fixture.walrelay(&["run"]).await;
    assert_eq!(left.code, Some(4), "{}", left.stderr);
    assert!(left.stderr.contains(&url), "{}", left.stderr);
    fixture.set("WALRELAY_NATS_URL", url.as_str());
    fixture.nats = there;
    let relay = fixture.run();
    holds_events(&fixture, 110).await;
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}

/// Both streams have one name, so the place says which is meant.
#[tokio::test]
async fn who_waits_for_a_move_from_another_nats_names_it() {
    let mut fixture = Fixture::own().await;
    let other = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("it starts");
    let (first, url) = (fixture.servers().nats.url(), other.url());
    fixture.insert(1, 10).await;
    fixture.relay_until(10).await;
    let arguments = ["move", "--yes", "--to-nats", &url];
    let mut moving = fixture.start(&arguments);
    moving.logs("is there: messages are copied").await;
    moving.kill();
    fixture.set("WALRELAY_NATS_URL", url.as_str());
    let mut relay = fixture.run();
    relay.logs("the lane is still on its way from").await;
    let stream = fixture.stream_name();
    let said = format!("from stream {stream} at {first} to {stream}");
    assert!(relay.log().contains(&said), "{}", relay.log());
    let backfill = fixture.walrelay(&["backfill"]).await;
    assert!(backfill.stderr.contains(&said), "{}", backfill.stderr);
    fixture.set("WALRELAY_NATS_URL", first);
    fixture.walrelay(&arguments).await.success();
    relay.streams().await;
    relay.stop().await;
}

#[tokio::test]
async fn to_another_nats() {
    let mut fixture = Fixture::own().await;
    let other = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("it starts");
    let (stream, url) = (fixture.stream_name().to_owned(), other.url());
    let (mut relay, writer) = under_load(&mut fixture).await;
    let moved = killed_after_each_step(&fixture, &["move", "--yes", "--to-nats", &url]).await;
    assert!(moved.contains(&format!("nats.url = \"{url}\"")), "{moved}");
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(relay.log().contains(&url), "{}", relay.log());
    is_halted(&mut fixture, &stream).await;

    let first = fixture.servers().nats.url();
    fixture.set("WALRELAY_NATS_URL", url.as_str());
    let second = url.clone();
    fixture.nats = async_nats::connect(url).await.expect("it answers");
    let mut relay = fixture.run();
    relay.streams().await;
    erase_names(&fixture, &stream, &first).await;
    goes_back(&fixture, &["move", "--yes", "--to-nats", &first]).await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    fixture.set("WALRELAY_NATS_URL", first.as_str());
    fixture.nats = async_nats::connect(first).await.expect("it answers");
    let mut relay = fixture.run();
    relay.streams().await;
    judge(&fixture, writer).await;
    goes_on(&fixture).await;
    relay.stop().await;
    erase_names(&fixture, &stream, &second).await;
}

/// `erase` says where the lane has left a copy, and nowhere else.
async fn erase_names(fixture: &Fixture, stream: &str, nats: &str) {
    let query = "SELECT aggregate_id::text FROM outbox_events LIMIT 1";
    let row = fixture.sql.query_one(query, &[]).await.expect("a row");
    let id: &str = row.get(0);
    let erase = ["erase", "--dry-run", "--json", "--aggregate-id", id];
    let told = fixture.walrelay(&erase).await.success();
    let receipt: serde_json::Value = serde_json::from_str(&told.stdout).expect("a receipt");
    let left = serde_json::json!([{"stream": stream, "nats": nats}]);
    assert_eq!(receipt["left_elsewhere"], left, "{receipt}");
    let said = format!("nats --server {nats} stream rm {stream}");
    assert!(told.stderr.contains(&said), "{}", told.stderr);
}
