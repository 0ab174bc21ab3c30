//! Ways out of halts, typed as the halt prints them.

use tempfile::TempDir;
use walrelay::local::{LocalNats, NatsOptions};

use crate::broker_loses::{copy, is_recorded};
use crate::lane::{by_hand, holds_events, jetstream, judge_events, stream_of};
use crate::support::{Fixture, Relay, Servers, binaries, uuid};

/// It ends with 4 and says this; the commands that it names, without what has to be filled in.
async fn halts(relay: &mut Relay, says: &str) -> Vec<Vec<String>> {
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let log = relay.log();
    let halt = log.lines().rfind(|line| line.contains("halted: "));
    let halt = halt.unwrap_or_else(|| panic!("no halt in {log}"));
    assert!(halt.contains(says), "{halt}");
    let quoted = halt.split('`').skip(1).step_by(2);
    let commands = quoted.filter_map(|command| command.strip_prefix("walrelay "));
    commands
        .map(|command| command.split(' ').map(str::to_owned).collect())
        .collect()
}

/// Types the commands in their order, and yes where one asks.
async fn types(fixture: &Fixture, commands: &[Vec<String>]) {
    for command in commands {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        if matches!(arguments[0], "adopt" | "teardown") {
            arguments.push("--yes");
        }
        let output = fixture.walrelay(&arguments).await;
        // What it is asked for is what is wrong.
        let is_expected =
            output.code == Some(0) || arguments[0] == "verify" && output.code == Some(1);
        assert!(
            is_expected,
            "{command:?}: {}{}",
            output.stdout, output.stderr
        );
    }
}

async fn verified(fixture: &Fixture, code: i32) -> serde_json::Value {
    let output = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(
        output.code,
        Some(code),
        "{}{}",
        output.stdout,
        output.stderr
    );
    serde_json::from_str(&output.stdout).unwrap()
}

/// Two lanes in one stream that is meant for one: each gets a stream of its own, or both share it.
#[tokio::test]
async fn two_slots_in_one_stream() {
    for shares in [false, true] {
        let (mut first, mut second) = (Fixture::new().await, Fixture::bare().await);
        let relay = first.run();
        first.insert(1, 5).await;
        holds_events(&first, 5).await;
        relay.stop().await;
        let own = second.stream_name().to_owned();
        second.set("WALRELAY_NATS_STREAM", first.stream_name());
        let mut config = stream_of(&first).await.cached_info().config.clone();
        config.subjects.push(format!("{}.>", second.name));
        config
            .subjects
            .push(format!("walrelay.dead.{}", second.name));
        jetstream(&first).update_stream(config).await.unwrap();
        second.setup().await;
        let records = jetstream(&first).get_stream("WALRELAY").await.unwrap();
        let record = format!("walrelay.lane.{}.{}", second.stream_name(), second.name);
        records.purge().filter(record).await.unwrap();
        second.insert(1, 5).await;
        let commands = halts(&mut second.run(), "was written by the relay of slot").await;
        if shares {
            let stream = first.stream_name().to_owned();
            let mut config = stream_of(&first).await.cached_info().config.clone();
            config.subjects.push(format!("walrelay.fence.{stream}.*"));
            jetstream(&first).update_stream(config).await.unwrap();
            first.set("WALRELAY_NATS_SHARED", "true");
            second.set("WALRELAY_NATS_SHARED", "true");
        } else {
            let mut config = stream_of(&first).await.cached_info().config.clone();
            config
                .subjects
                .retain(|subject| !subject.contains(&second.name));
            jetstream(&first).update_stream(config).await.unwrap();
            second.set("WALRELAY_NATS_STREAM", own);
        }
        types(&second, &commands).await;
        for fixture in [&mut first, &mut second] {
            let relay = fixture.run();
            fixture.insert(6, 10).await;
            judge_events(fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
            relay.stop().await;
            verified(fixture, 0).await;
        }
    }
}

/// A relay that has published five events and confirmed none, on servers of its own.
async fn five_published() -> (Fixture, Relay) {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    (fixture, relay)
}

/// Others' messages by the thousand, and no record that would tell where to look.
#[tokio::test]
async fn the_lane_end_is_too_far_away() {
    let (mut fixture, mut relay) = five_published().await;
    relay.kill();
    let records = jetstream(&fixture).get_stream("WALRELAY").await.unwrap();
    records.purge().await.unwrap();
    strangers(&fixture, 10_001).await;
    fixture.insert(6, 10).await;
    let commands = halts(&mut fixture.run(), "were not written by a relay").await;
    types(&fixture, &commands).await;
    let relay = fixture.run();
    judge_events(&fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    verified(&fixture, 0).await;
}

/// Others put so many messages into the stream.
async fn strangers(fixture: &Fixture, count: u64) {
    let context = jetstream(fixture);
    let mut config = stream_of(fixture).await.cached_info().config.clone();
    let subject = format!("strangers.{}", fixture.name);
    config.subjects.push(subject.clone());
    context.update_stream(config).await.unwrap();
    let mut last = None;
    for _ in 0..count {
        last = Some(context.publish(subject.clone(), "x".into()).await.unwrap());
    }
    last.unwrap().await.unwrap();
}

/// The broker loses acknowledged events, others' messages take their places, and an event stands behind them.
#[tokio::test]
async fn somebody_elses_message_in_the_place_of_an_event() {
    let (mut fixture, mut relay) = five_published().await;
    let store = fixture.servers().nats.store_dir();
    let dir = store
        .join("jetstream/$G/streams")
        .join(fixture.stream_name());
    let backup = TempDir::new().unwrap();
    let backup = backup.path().join("copy");
    fixture.own_servers().nats.stop().await.unwrap();
    copy(&dir, &backup);
    fixture.own_servers().nats.start_again().await.unwrap();
    fixture.insert(6, 10).await;
    holds_events(&fixture, 10).await;
    is_recorded(&fixture, 10).await;
    fixture.insert(11, 11).await;
    holds_events(&fixture, 11).await;
    relay.kill();
    // The last one is on its way through all of it: stored where it was sent to, right behind the tenth place.
    let last = stream_of(&fixture).await.get_raw_message(11).await.unwrap();
    fixture.own_servers().nats.stop().await.unwrap();
    copy(&backup, &dir);
    fixture.own_servers().nats.start_again().await.unwrap();
    strangers(&fixture, 5).await;
    let context = jetstream(&fixture);
    let sent = context
        .publish_with_headers(last.subject, last.headers, last.payload)
        .await;
    assert_eq!(sent.unwrap().await.unwrap().sequence, 11);
    let commands = halts(
        &mut fixture.run(),
        "was acknowledged as an event of this lane",
    )
    .await;
    // So does the next one.
    assert_eq!(
        halts(&mut fixture.run(), "was acknowledged").await,
        commands
    );
    let report = verified(&fixture, 1).await;
    assert_eq!(report["missing"]["count"], 5, "{report}");
    types(&fixture, &commands).await;
    let relay = fixture.run();
    fixture.insert(12, 12).await;
    holds_events(&fixture, 12).await;
    relay.stop().await;
    verified(&fixture, 0).await;
}

/// The account of NATS sends the events to another stream, which refuses each.
#[tokio::test]
async fn another_stream_that_answers_for_each_event() {
    let options = NatsOptions {
        config_extra: r#"mappings { "*.lesson.published.v1": "elsewhere.{{wildcard(1)}}" }"#.into(),
        ..NatsOptions::default()
    };
    let mut servers = Servers::own().await;
    servers.nats = LocalNats::start(&binaries(), options).await.unwrap();
    let mut fixture = Fixture::bare_on(servers).await;
    fixture.set("WALRELAY_RELAY_BACKOFF_MAX", "100ms");
    let elsewhere = by_hand("ELSEWHERE", &["elsewhere.>".to_owned()], 1);
    jetstream(&fixture).create_stream(elsewhere).await.unwrap();
    fixture.setup().await;
    fixture.insert(1, 5).await;
    for _ in 0..2 {
        halts(&mut fixture.run(), "expected stream does not match").await;
    }
    let subject = format!("{}.all.{{event_type}}", fixture.name);
    fixture.set("WALRELAY_NATS_SUBJECT", subject);
    let relay = fixture.run();
    judge_events(&fixture, &(1..=5).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    verified(&fixture, 0).await;
}
