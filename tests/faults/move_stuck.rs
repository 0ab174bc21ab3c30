//! `walrelay move` out of a stream that does not take the message which ends the lane there.

use async_nats::jetstream::stream::Config;
use serde_json::{Value, json};
use walrelay::local::{LocalNats, NatsOptions};

use crate::lane::{holds_events, jetstream, stream_of};
use crate::remedies::mend;
use crate::support::{Fixture, Output, binaries};

/// Takes the subject of the dead letters out of a stream.
async fn without_dead_letters(fixture: &Fixture, stream: &str) {
    let found = jetstream(fixture).get_stream(stream).await.unwrap();
    let mut config = found.cached_info().config.clone();
    let letters = format!("walrelay.dead.{}", fixture.name);
    config
        .subjects
        .retain(|subject| !subject.ends_with(&letters));
    jetstream(fixture).update_stream(&config).await.unwrap();
}

/// What is printed as `nats stream edit STREAM --subjects=…`, done.
async fn edit(fixture: &Fixture, printed: &str) {
    let words = format!("nats stream edit {} ", fixture.stream_name());
    let (_, flags) = printed.split_once(&words).expect(printed);
    let flags = flags.split(';').next().unwrap();
    let subject = |flag: &str| {
        let subject = flag.strip_prefix("--subjects=").expect(printed);
        subject.trim_matches('\'').to_owned()
    };
    let edited = Config {
        subjects: flags.split(' ').map(subject).collect(),
        ..stream_of(fixture).await.cached_info().config.clone()
    };
    jetstream(fixture).update_stream(&edited).await.unwrap();
}

async fn record(fixture: &Fixture) -> Value {
    let subject = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
    let records = jetstream(fixture).get_stream("WALRELAY").await.unwrap();
    let record = records.get_last_raw_message_by_subject(&subject).await;
    serde_json::from_slice(&record.unwrap().payload).unwrap()
}

/// What a move has written before the message that it could not store: the lane has left.
async fn has_left(fixture: &Fixture, new: &str) {
    let mut record = record(fixture).await;
    record["moved"] = json!({"to": {"stream": new, "nats": null}});
    record["epoch"] = json!(record["epoch"].as_u64().unwrap() + 1);
    let subject = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
    let jetstream = jetstream(fixture);
    let stored = jetstream.publish(subject, record.to_string().into());
    stored.await.unwrap().await.unwrap();
}

fn refused(moved: &Output) {
    assert_eq!(moved.code, Some(1), "{moved:?}");
    assert!(moved.stderr.contains("nats stream edit"), "{moved:?}");
}

/// A lane that has published twenty events; its stream, and the one that it is to go to.
async fn published() -> (Fixture, String, String) {
    let mut fixture = Fixture::new().await;
    fixture.insert(1, 20).await;
    fixture.relay_until(20).await;
    let old = fixture.stream_name().to_owned();
    let new = format!("{old}_NEW");
    (fixture, old, new)
}

#[tokio::test]
async fn a_lane_does_not_leave_a_stream_that_cannot_end_it() {
    let (fixture, old, new) = published().await;
    let moving = ["move", "--yes", "--to-stream", &new];

    // Before anything is made.
    without_dead_letters(&fixture, &old).await;
    refused(
        &fixture
            .walrelay(&["move", "--dry-run", "--to-stream", &new])
            .await,
    );
    let moved = fixture.walrelay(&moving).await;
    refused(&moved);
    assert!(jetstream(&fixture).get_stream(&new).await.is_err());
    assert_eq!(record(&fixture).await["moved"], Value::Null);
    edit(&fixture, &moved.stderr).await;
    fixture.walrelay(&moving).await.success();
    goes_on(fixture, &new).await;
}

#[tokio::test]
async fn a_move_that_cannot_end_names_what_ends_it() {
    let (fixture, old, new) = published().await;
    let moving = ["move", "--yes", "--to-stream", &new];
    // As far as a move comes that is killed while it copies.
    let config = stream_of(&fixture).await.cached_info().config.clone();
    let prefixed = |subject: &String| format!("walrelay-move.{new}.{subject}");
    let target = Config {
        name: new.clone(),
        subjects: config.subjects.iter().map(prefixed).collect(),
        subject_transform: Some(async_nats::jetstream::stream::SubjectTransform {
            source: format!("walrelay-move.{new}.>"),
            destination: ">".to_owned(),
        }),
        ..config
    };
    jetstream(&fixture).create_stream(target).await.unwrap();
    let mut on_its_way = record(&fixture).await;
    let created = on_its_way["created"].clone();
    on_its_way["stream"] = json!(new);
    on_its_way["moved"] = json!({"from": {"stream": old, "created": created, "is_whole": false}});
    for key in ["position", "event_id", "table"] {
        on_its_way[key] = Value::Null;
    }
    on_its_way["sequence"] = json!(0);
    let subject = format!("walrelay.lane.{new}.{}", fixture.name);
    let context = jetstream(&fixture);
    let stored = context.publish(subject, on_its_way.to_string().into());
    stored.await.unwrap().await.unwrap();

    for stream in [&old, &new] {
        without_dead_letters(&fixture, stream).await;
    }
    has_left(&fixture, &new).await;
    let moved = fixture.walrelay(&moving).await;
    refused(&moved);
    let told = mend(&fixture, "stream").await.expect("the same of doctor");
    assert!(told.contains("walrelay move"), "{told}");
    edit(&fixture, &told).await;
    assert_eq!(mend(&fixture, "stream").await, None);
    fixture.walrelay(&moving).await.success();
    // The old stream's subjects are gone for good now.
    assert_eq!(mend(&fixture, "stream").await, None);
    goes_on(fixture, &new).await;
}

async fn goes_on(mut fixture: Fixture, new: &str) {
    fixture.set("WALRELAY_NATS_STREAM", new);
    let relay = fixture.run();
    fixture.insert(21, 30).await;
    holds_events(&fixture, 30).await;
    fixture.walrelay(&["verify"]).await.success();
    fixture.walrelay(&["setup"]).await.success();
    relay.stop().await;
}

/// To another NATS or to another stream of this one: what is told first does no harm, and the move is named.
#[tokio::test]
async fn a_relay_that_is_started_before_its_move_names_it() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = fixture.run();
    fixture.insert(1, 20).await;
    holds_events(&fixture, 20).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let other = LocalNats::start(&binaries(), NatsOptions::default()).await;
    let other = other.expect("it starts");
    let (here, there) = (fixture.servers().nats.url(), other.url());

    let new = format!("{}_NEW", fixture.stream_name());
    let old = fixture.stream_name().to_owned();
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let early = fixture.walrelay(&["run"]).await;
    names_the_move_first(&early);
    let early = fixture.walrelay(&["setup"]).await;
    assert_eq!(early.code, Some(1), "{early:?}");
    assert!(!early.stderr.contains("set nats.subject"), "{early:?}");
    let (_, printed) = early.stderr.split_once("run walrelay ").expect("a move");
    let (printed, _) = printed
        .split_once(" with the configuration of that one")
        .unwrap();
    let printed: Vec<&str> = printed.split(' ').chain(["--yes"]).collect();
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    fixture.walrelay(&printed).await.success();

    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    fixture.set("WALRELAY_NATS_URL", there.as_str());
    names_the_move_first(&fixture.walrelay(&["run"]).await);
    fixture.set("WALRELAY_NATS_URL", here);
    let moving = ["move", "--yes", "--to-nats", &there];
    fixture.walrelay(&moving).await.success();
    fixture.set("WALRELAY_NATS_URL", there.as_str());
    fixture.nats = async_nats::connect(there).await.unwrap();
    goes_on(fixture, &new).await;
}

fn names_the_move_first(early: &Output) {
    assert_eq!(early.code, Some(1), "{early:?}");
    let said = &early.stderr;
    let of_move = said.find("`walrelay move`").expect(said);
    assert!(
        said.find("`walrelay setup`").is_some_and(|at| at > of_move),
        "{said}"
    );
}
