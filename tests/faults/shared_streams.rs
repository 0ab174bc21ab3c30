//! Streams that several relays and other publishers write to: each lane exactly once and in order, and a resume that
//! does not look for its lane by reading the stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;

use walrelay::local::{LocalNats, NatsOptions};
use walrelay::nats::address::NatsAuth;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::pipeline::end_search::Lookup;
use walrelay::pipeline::fault::Fault;
use walrelay::pipeline::lane_end::LaneEnd;
use walrelay::pipeline::request::Request;
use walrelay::pipeline::shared_end_search::fence_subject;
use walrelay::relay::broker::Broker;
use walrelay::relay::lane_store::Answer;
use walrelay::relay::open_error::OpenError;
use walrelay::relay::settings::NatsSettings;

use crate::foreign::ForeignPublisher;
use crate::lane::{
    events, holds_events, jetstream, judge, judge_events, more_events, share, stream_of,
};
use crate::support::{
    Fixture, Relay, Servers, Stored, Writer, assert_exactly_once, binaries, eventually, uuid,
};

const EVENTS_BETWEEN: u64 = 200;
/// For one answer of the broker.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn two_relays_and_a_foreign_publisher_interleave() {
    let (mut one, mut two) = (Fixture::bare().await, Fixture::bare().await);
    share(&mut [&mut one, &mut two], 1).await;
    let foreign = ForeignPublisher::start(&one);
    let (mut first, mut second) = (one.run(), two.run());
    let (first_writer, second_writer) = (Writer::start(&one).await, Writer::start(&two).await);
    for _ in 0..4 {
        more_events(&one, EVENTS_BETWEEN).await;
        first.kill();
        first = one.run();
        more_events(&two, EVENTS_BETWEEN).await;
        second.kill();
        second = two.run();
    }
    more_events(&one, EVENTS_BETWEEN).await;
    more_events(&two, EVENTS_BETWEEN).await;
    judge(&one, first_writer).await;
    judge(&two, second_writer).await;
    first.stop().await;
    second.stop().await;

    // They did interleave, and nobody's messages pushed out another's.
    let foreign = foreign.stop().await;
    let stored = one.stored().await;
    let of = |root: &str| {
        stored
            .iter()
            .filter(|m| m.subject.starts_with(root))
            .count()
    };
    assert_eq!(of("foreign.") as u64, foreign);
    let changes = stored
        .windows(2)
        .filter(|pair| pair[0].subject.split('.').next() != pair[1].subject.split('.').next())
        .count();
    assert!(changes > 100, "{changes} changes of the writer");
}

#[tokio::test]
async fn resume_does_not_read_the_stream() {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    let relay = fixture.run();
    fixture.insert(1, 20).await;
    holds_events(&fixture, 20).await;
    relay.stop().await;
    let subject = format!("foreign.{}.x", fixture.stream_name());
    let context = jetstream(&fixture);
    let mut acks = Vec::new();
    for _ in 0..3_000 {
        acks.push(context.publish(subject.clone(), "".into()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }

    let requests = format!("$JS.API.STREAM.MSG.GET.{}", fixture.stream_name());
    let mut requests = fixture.nats.subscribe(requests).await.unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let counter = tokio::spawn(async move {
        while requests.next().await.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    fixture.nats.flush().await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    // Three for each of the two looks at a start, and one for what it may confirm at once.
    let asked = seen.load(Ordering::Relaxed);
    assert!((1..=8).contains(&asked), "{asked} messages were asked for");
    fixture.insert(21, 30).await;
    holds_events(&fixture, 30).await;
    relay.stop().await;
    counter.abort();
    judge_events(&fixture, &(1..=30).map(uuid).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_large_transaction_goes_through_in_several_batches() {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    let foreign = ForeignPublisher::start(&fixture);
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5_000).await;
    // In the middle of it.
    holds_events(&fixture, 900).await;
    relay.kill();
    let relay = fixture.run();
    fixture.insert(5_001, 5_010).await;
    judge_events(&fixture, &(1..=5_010).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    foreign.stop().await;
}

/// Takes away everything that tells the lane's place in the stream.
async fn purge(fixture: &Fixture) {
    let subject = format!("walrelay.fence.{}.{}", fixture.stream_name(), fixture.name);
    stream_of(fixture)
        .await
        .purge()
        .filter(subject)
        .await
        .unwrap();
}

/// A relay that has published fifty events among a stranger's messages, and confirmed none: all come again from the slot.
async fn fifty_published() -> (Fixture, ForeignPublisher, Relay) {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let foreign = ForeignPublisher::start(&fixture);
    let relay = fixture.run();
    fixture.insert(1, 50).await;
    holds_events(&fixture, 50).await;
    (fixture, foreign, relay)
}

#[tokio::test]
async fn the_fence_is_purged_while_the_relay_is_stopped() {
    let (mut fixture, foreign, relay) = fifty_published().await;
    relay.stop().await;
    purge(&fixture).await;
    let relay = fixture.run();
    fixture.insert(51, 60).await;
    judge_events(&fixture, &(1..=60).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    foreign.stop().await;
}

#[tokio::test]
async fn the_fence_is_purged_while_the_relay_is_dead() {
    let (mut fixture, foreign, mut relay) = fifty_published().await;
    relay.kill();
    purge(&fixture).await;
    // Whether there was more behind the record nobody can know.
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4));
    assert!(relay.log().contains("walrelay adopt"), "{}", relay.log());
    let ids: Vec<_> = events(&fixture).await.iter().map(Stored::id).collect();
    assert_exactly_once(&(1..=50).map(uuid).collect::<Vec<_>>(), &ids);

    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.insert(51, 60).await;
    judge_events(&fixture, &(1..=60).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    foreign.stop().await;
}

#[tokio::test]
async fn a_purge_of_the_whole_stream_while_the_relay_runs() {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    fixture.insert(1, 50).await;
    holds_events(&fixture, 50).await;
    for round in 0..3 {
        stream_of(&fixture).await.purge().await.unwrap();
        let first = 51 + round * 10;
        fixture.insert(first, first + 9).await;
        eventually("the next events are there, and only they", async || {
            let ids: Vec<_> = events(&fixture).await.iter().map(Stored::id).collect();
            let wanted: Vec<_> = (first..first + 10).map(uuid).collect();
            assert!(ids.len() <= wanted.len(), "published again: {ids:?}");
            (ids == wanted).then_some(())
        })
        .await;
        assert!(relay.runs());
    }
    assert!(!relay.log().contains("lost"), "{}", relay.log());
    relay.stop().await;
}

#[tokio::test]
async fn a_fence_is_not_put_over_what_was_published_since_the_look() {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    let settings = NatsSettings {
        connection: ConnectionSettings::new(
            vec![fixture.servers().nats.url().parse().unwrap()],
            NatsAuth::None,
        ),
        stream: fixture.stream_name().to_owned(),
        subject: format!("{}.{{event_type}}", fixture.name)
            .parse()
            .expect("a template"),
        shared: true,
        further_subjects: Vec::new(),
        neighbours: Vec::new(),
    };
    let slot = &fixture.name;
    let fence = |lane_end: Option<&LaneEnd>, behind| Request::StoreFence {
        lane_end: lane_end.cloned(),
        behind,
    };
    let mut brokers = Vec::new();
    for _ in 0..2 {
        let broker = Broker::connect(&settings, "test", slot, LIMIT, &[]).await;
        brokers.push(broker.unwrap());
    }
    // What the one has published meanwhile, the other's fence would hide.
    let published = LaneEnd {
        sequence: 0,
        position: "0/16B3748:3".parse().unwrap(),
        event_id: None,
        table: None,
    };
    let stored = brokers[0].ask(&fence(Some(&published), 0)).await.unwrap();
    let Answer::Stored(sequence) = stored else {
        panic!("{stored:?}");
    };
    let late = brokers[1].ask(&fence(None, 0)).await;
    assert!(
        matches!(late, Err(OpenError::Fault(Fault::Sequence(_)))),
        "{late:?}"
    );
    let subject = fence_subject(fixture.stream_name(), slot);
    let last = Request::Message(Lookup::Last(&subject));
    let Answer::Message(Some(found)) = brokers[1].ask(&last).await.unwrap() else {
        panic!("the fence is there");
    };
    let told = found.for_search().told_by(slot).expect("the lane's");
    assert_eq!((found.seq, told.position), (sequence, published.position));
    brokers[1]
        .ask(&fence(Some(&published), found.seq))
        .await
        .unwrap();
}

/// `jetstream.limits.batch.max_msgs` of nats-server, which nothing tells but the refusal.
#[tokio::test]
async fn a_server_that_takes_smaller_batches_gets_them() {
    let mut servers = Servers::own().await;
    let options = NatsOptions {
        jetstream_extra: "limits { batch { max_msgs: 50 } }".to_owned(),
        ..NatsOptions::default()
    };
    servers.nats = LocalNats::start(&binaries(), options).await.unwrap();
    let mut fixture = Fixture::bare_on(servers).await;
    share(&mut [&mut fixture], 1).await;
    fixture.insert(1, 300).await;
    let mut relay = fixture.run();
    relay.logs("batches of 50 messages at most").await;
    holds_events(&fixture, 300).await;
    relay.kill();
    fixture.insert(301, 700).await;
    let relay = fixture.run();
    let all: Vec<_> = (1..=700).map(uuid).collect();
    judge_events(&fixture, &all).await;
    relay.stop().await;
    // A command that publishes finds it out by itself.
    let stream = stream_of(&fixture).await;
    let subject = format!("{}.>", fixture.name);
    stream.purge().filter(subject).await.unwrap();
    let backfill = ["backfill", "--unjudged"];
    fixture.walrelay(&backfill).await.success();
    holds_events(&fixture, 700).await;
}
