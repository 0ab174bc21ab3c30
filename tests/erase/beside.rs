//! `walrelay erase` beside other commands that publish for the lane: what they leave is found, or it is not done.

use std::process::Output;
use std::time::Duration;

use async_nats::jetstream::stream::DiscardPolicy;
use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::aggregate::{SECRET, TYPE, erase, insert_of, is_stored};
use crate::platform::{Platform, Relay, ends, object, signal};

pub const LIMIT: Duration = Duration::from_secs(180);

/// The receipt of a command that ended with this code, and what it said.
fn receipt(output: &Output, code: i32) -> (Value, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (object(output, code), said)
}

/// An event of another aggregate and two of this one, published; somebody has locked the rows of this one, so that an erasure of it has
/// removed the messages and waits.
async fn with_locked_rows() -> (Platform, Uuid, Client) {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    platform.relay_until(3).await;
    let lock = format!("SELECT FROM outbox_events WHERE aggregate_id = '{user}' FOR UPDATE");
    let locker = platform.begins(&lock).await;
    (platform, user, locker)
}

/// Starts the erasure, and waits until it waits there.
async fn waiting(platform: &Platform, arguments: &[&str]) -> Child {
    let erasing = platform.spawn(arguments);
    platform.waits_for_a_lock("DELETE").await;
    erasing
}

/// An aggregate's events with many of others between them, published; how many they are. The stream still has its first message
/// once they are erased, so that it can give the whole range.
async fn with_many_between() -> (Platform, Relay, Uuid, u64) {
    const OTHERS: u32 = 10_000;
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.insert(OTHERS).await;
    insert_of(&platform, user, TYPE, 1).await;
    let all = u64::from(OTHERS) + 3;
    platform.wait_for(all).await;
    (platform, relay, user, all)
}

/// A replay of them to this stream that stands still behind the first of the aggregate.
async fn stopped_replay(platform: &Platform, arguments: &[&str], to: &str, all: u64) -> Child {
    let replaying = platform.spawn(arguments);
    platform.holds_in(to, 2).await;
    signal(&replaying, Signal::STOP);
    let reached = platform.messages_in(to).await;
    assert!(reached < all, "the replay has ended before it was stopped");
    replaying
}

/// It goes on, and ends without the rest.
async fn is_told_of_the_erasure(replaying: Child) {
    signal(&replaying, Signal::CONT);
    let replayed = ends(replaying).await;
    let said = String::from_utf8_lossy(&replayed.stderr);
    assert_eq!(replayed.status.code(), Some(1), "{said}");
    assert!(said.contains("walrelay erase"), "{said}");
}

/// The leases that are stored, by their streams.
async fn leases(platform: &Platform) -> Vec<(String, Value)> {
    let records = platform.jetstream.get_stream("WALRELAY").await;
    let records = records.expect("a stream");
    let subjects = records.info_with_subjects("walrelay.lane.*.walrelay.lease");
    let subjects: Vec<_> = subjects.await.expect("subjects").collect().await;
    let mut found = Vec::new();
    for subject in subjects {
        let (subject, _) = subject.expect("a subject");
        // Another one may be stored in its place meanwhile.
        let Ok(lease) = records.get_last_raw_message_by_subject(&subject).await else {
            continue;
        };
        let stream = subject.split('.').nth(2).expect("a stream").to_owned();
        found.push((
            stream,
            serde_json::from_slice(&lease.payload).expect("a lease"),
        ));
    }
    found
}

/// Waits until the lease at this stream is so.
async fn lease_is(platform: &Platform, at: &str, is: impl Fn(&Value) -> bool) {
    let found = async {
        while !(leases(platform).await.iter()).any(|(stream, lease)| stream == at && is(lease)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, found)
        .await
        .expect("it is stored in time");
}

/// Edits the events' stream: so many messages, and then it takes no more.
async fn takes(platform: &Platform, messages: i64) {
    let mut config = platform.stream().await.cached_info().config.clone();
    config.discard = DiscardPolicy::New;
    config.max_messages = messages;
    let edited = platform.jetstream.update_stream(&config).await;
    edited.expect("edited");
}

/// It stands still for longer than others wait, and another command publishes the aggregate's rows again.
#[tokio::test]
async fn an_erasure_that_others_have_taken_over_is_not_done() {
    let (platform, user, locker) = with_locked_rows().await;
    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = waiting(&platform, &erase).await;
    signal(&erasing, Signal::STOP);
    platform.expect(&["backfill", "--unjudged"], 0).await;
    signal(&erasing, Signal::CONT);
    drop(locker);
    let (told, said) = receipt(&ends(erasing).await, 1);
    assert_eq!(told["done"], json!(false), "{told} {said}");
    assert!(said.contains("walrelay backfill"), "{said}");
    assert!(said.contains("run this again"), "{said}");
    // They tell whose the messages are where these do not.
    assert_eq!((platform.rows().await, &told["rows"]), (3, &json!(0)));

    let (told, said) = receipt(&platform.output(&erase).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    assert_eq!(platform.rows().await, 1);
    assert!(!is_stored(&platform, SECRET));
    platform.verify(0).await;
}

/// A replay that began once the erasure had looked which streams there are, and that stands still with what it has read.
#[tokio::test]
async fn what_is_replayed_to_a_new_stream_meanwhile_goes_too() {
    let (platform, relay, user, all) = with_many_between().await;
    takes(&platform, all.cast_signed()).await;
    insert_of(&platform, user, TYPE, 1).await;

    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = platform.spawn(&erase);
    lease_is(&platform, "OUTBOX", |lease| {
        lease["work"]["stage"] == "waiting for the relay"
    })
    .await;
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", "FRESH"];
    let replaying = stopped_replay(&platform, &replay, "FRESH", all).await;
    takes(&platform, -1).await;
    let (told, said) = receipt(&ends(erasing).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    let fresh = &told["streams"].as_array().expect("a list")[1];
    assert_eq!(fresh["stream"], "FRESH", "{told}");
    assert_eq!(fresh["events"][0], json!(2), "{told}");

    is_told_of_the_erasure(replaying).await;
    relay.stop().await;
    assert!(!is_stored(&platform, SECRET));
    platform.verify(0).await;
}

/// One that reads the rows, once their messages are gone, and ends before they are.
#[tokio::test]
async fn what_is_replayed_from_the_table_meanwhile_goes_too() {
    let (platform, user, locker) = with_locked_rows().await;
    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = waiting(&platform, &erase).await;
    let replay = ["replay", "--yes", "--from", "2020-01-01T00:00:00Z"];
    let to = ["--source", "table", "--stream", "FRESH"];
    platform.expect(&[&replay[..], &to].concat(), 0).await;
    assert_eq!(platform.messages_in("FRESH").await, 3);
    drop(locker);
    let (told, said) = receipt(&ends(erasing).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    assert_eq!(platform.messages_in("FRESH").await, 1, "{told}");
    assert_eq!(told["rows"], json!(2), "{told}");
    assert!(!is_stored(&platform, SECRET));
}

/// What `status` and `doctor` say of commands that have ended without finishing.
async fn unfinished(platform: &Platform) -> Vec<String> {
    let status = platform.output(&["status", "--json"]).await;
    let status: Value = serde_json::from_slice(&status.stdout).expect("one object");
    let works = status["bulk_work"].as_array().cloned().unwrap_or_default();
    let ended = works.iter().filter(|work| work["ended"] == true);
    let lines = ended.map(|work| work["command"].as_str().expect("a text").to_owned());
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    let doctor = platform.output(&["doctor"]).await;
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.matches("[unfinished]").count(), lines.len());
    for line in &lines {
        let again = format!("run it again: {line}");
        assert!(doctor.contains(&again), "{line}: {doctor}");
    }
    lines
}

/// Types what is printed, with the id in the place that is left for it.
async fn typed(platform: &Platform, line: &str, id: &str) {
    let line = line.replace("<ID>", id);
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    platform.expect(&words, 0).await;
}

#[tokio::test]
async fn a_killed_erasure_leaves_no_id_behind() {
    let (platform, user, locker) = with_locked_rows().await;
    let given = user.to_string().to_uppercase();
    let id = format!("--aggregate-id={given}");
    let erase = ["erase", &id, "--yes", "--also-header", "user"];
    let mut erasing = waiting(&platform, &erase).await;
    erasing.kill().await.expect("killed");
    drop(locker);
    // Its messages are gone.
    for id in [&user.to_string(), &given] {
        assert!(!is_stored(&platform, id), "{id}");
    }
    let told = unfinished(&platform).await;
    let line = "walrelay erase --aggregate-id=<ID> --yes --also-header user";
    assert_eq!(told, [line]);
    typed(&platform, line, &given).await;
    assert_eq!(unfinished(&platform).await, Vec::<String>::new());
    assert_eq!(platform.rows().await, 1);
}

/// Kills a replay in its midst.
async fn killed_replay(platform: &Platform, stream: &str, more: &[&str]) {
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", stream];
    let subject = format!("{stream}.{{event_type}}");
    let arguments = [&replay[..], &["--subject", &subject], more].concat();
    let mut replaying = platform.spawn(&arguments);
    let is_at_work = |lease: &Value| lease["released"] == false;
    lease_is(platform, stream, is_at_work).await;
    replaying.kill().await.expect("killed");
    let stored = leases(platform).await;
    let stays = |(at, lease): &(String, Value)| at == stream && is_at_work(lease);
    assert!(
        stored.iter().any(stays),
        "it has ended before it was killed"
    );
}

#[tokio::test]
async fn an_erasure_takes_its_id_out_of_what_is_kept_of_killed_commands() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let (user, other) = (Uuid::new_v4(), Uuid::new_v4());
    // The stream still has its first message afterwards, so that it can give the whole range.
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.insert(10_000).await;
    platform.wait_for(10_002).await;
    let (id, other) = (user.to_string(), other.to_string());
    let given = id.to_uppercase();
    let of_user = ["--aggregate-id", given.as_str()];
    let of_both = [&of_user[..], &["--aggregate-id", &other]].concat();
    killed_replay(&platform, "ALONE", &of_user).await;
    killed_replay(&platform, "BOTH", &of_both).await;
    killed_replay(&platform, "GONE", &of_both).await;
    let deleted = platform.jetstream.delete_stream("GONE").await;
    deleted.expect("deleted");
    assert_eq!(unfinished(&platform).await.len(), 3);

    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    receipt(&platform.output(&erase).await, 0);
    for (stream, lease) in leases(&platform).await {
        let kept = lease.to_string().to_lowercase();
        assert!(!kept.contains(&id), "{stream}: {kept}");
    }
    // One that was about nothing else has nothing left to do.
    let line = |stream: &str| {
        format!(
            "walrelay replay --yes --from 0/1 --stream {stream} --subject '{stream}.{{event_type}}' --aggregate-id <ID> \
             --aggregate-id {other}"
        )
    };
    let both = line("BOTH");
    assert_eq!(unfinished(&platform).await, [both.clone(), line("GONE")]);
    typed(&platform, &both.replace('\'', ""), &id).await;
    assert_eq!(unfinished(&platform).await, [line("GONE")]);
    relay.stop().await;
}

/// A replay that was stopped in its midst, with the aggregate's last event read or still to be read.
#[tokio::test]
async fn a_replay_that_goes_on_publishes_nothing_that_was_erased() {
    let (platform, relay, user, all) = with_many_between().await;
    let replay = ["replay", "--from", "2020-01-01T00:00:00Z", "--yes"];
    let replaying = stopped_replay(&platform, &replay, "OUTBOX_REPLAY", all).await;
    assert_eq!(platform.rows().await, all.cast_signed());

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 2);
    is_told_of_the_erasure(replaying).await;
    platform.expect(&replay, 0).await;
    let dry = erase(&platform, user, &["--dry-run"], 0).await;
    assert_eq!(dry["rows"], 0, "{dry}");
    for stream in dry["streams"].as_array().expect("a list") {
        assert_eq!(stream["events"], json!([]), "{dry}");
    }
    assert!(!is_stored(&platform, SECRET));
    relay.stop().await;
}
