//! `walrelay erase` beside other commands that publish for the lane: what they leave is found, or it is not done.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_nats::jetstream::stream::DiscardPolicy;
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::platform::Platform;

const LIMIT: Duration = Duration::from_secs(180);
/// Stands in every payload of the aggregate that is erased.
const SECRET: &str = "a-name-that-nobody-may-read";

async fn insert_of(platform: &Platform, aggregate: Uuid, count: i32) {
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                SELECT gen_random_uuid(), $1, 'lesson.published.v1', jsonb_build_object('name', $2::text) \
                FROM generate_series(1, $3::int)";
    let parameters: [&(dyn ToSql + Sync); 3] = [&aggregate, &SECRET, &count];
    let inserted = platform.sql.execute(text, &parameters).await;
    inserted.expect("inserted");
}

async fn rows(platform: &Platform) -> i64 {
    let row = platform
        .sql
        .query_one("SELECT count(*) FROM outbox_events", &[]);
    row.await.expect("counted").get(0)
}

fn start(platform: &Platform, arguments: &[&str]) -> Child {
    platform
        .command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn signal(command: &Child, signal: Signal) {
    let pid = command.id().expect("it runs").cast_signed();
    kill_process(Pid::from_raw(pid).expect("not 0"), signal).expect("signalled");
}

async fn ends(command: Child) -> Output {
    let output = tokio::time::timeout(LIMIT, command.wait_with_output());
    output.await.expect("it ends in time").expect("it ends")
}

/// The receipt of a command that ended with this code, and what it said.
fn receipt(output: &Output, code: i32) -> (Value, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let receipt = serde_json::from_slice(&output.stdout).expect("a receipt");
    (receipt, said)
}

/// Waits until Postgres shows a statement that begins so, and waits for a lock.
async fn waits_for_a_lock(platform: &Platform, begin: &str) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND starts_with(query, $1)";
    let waits = async {
        loop {
            let row = platform.sql.query_one(query, &[&begin]).await;
            if row.expect("read").get::<_, i64>(0) > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, waits).await.expect("it waits");
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

async fn messages(platform: &Platform, stream: &str) -> u64 {
    let found = platform.jetstream.get_stream(stream).await;
    found.map_or(0, |stream| stream.cached_info().state.messages)
}

fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => holds(&path, text),
            false => std::fs::read(&path).is_ok_and(|bytes| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            }),
        }
    })
}

/// It stands still for longer than others wait, and another command publishes the aggregate's rows again.
#[tokio::test]
async fn an_erasure_that_others_have_taken_over_is_not_done() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, 2).await;
    platform.relay_until(3).await;
    let mut other = platform.postgres.connect("postgres").await;
    let other = other.as_mut().expect("a connection");
    let lock = other.transaction().await.expect("begun");
    let query = "SELECT FROM outbox_events WHERE aggregate_id = $1 FOR UPDATE";
    lock.query(query, &[&user]).await.expect("locked");

    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = start(&platform, &erase);
    waits_for_a_lock(&platform, "DELETE").await;
    signal(&erasing, Signal::STOP);
    platform.expect(&["backfill", "--unjudged"], 0).await;
    signal(&erasing, Signal::CONT);
    drop(lock);
    let (told, said) = receipt(&ends(erasing).await, 1);
    assert_eq!(told["done"], json!(false), "{told} {said}");
    assert!(said.contains("walrelay backfill"), "{said}");
    assert!(said.contains("run this again"), "{said}");
    // They tell whose the messages are where these do not.
    assert_eq!((rows(&platform).await, &told["rows"]), (3, &json!(0)));

    let (told, said) = receipt(&platform.output(&erase).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    assert_eq!(rows(&platform).await, 1);
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    platform.verify(0).await;
}

/// A replay that began once the erasure had looked which streams there are, and that stands still with what it has read.
#[tokio::test]
async fn what_is_replayed_to_a_new_stream_meanwhile_goes_too() {
    const OTHERS: u32 = 10_000;
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, 1).await;
    platform.insert(OTHERS).await;
    insert_of(&platform, user, 1).await;
    let last = u64::from(OTHERS) + 3;
    platform.wait_for(last).await;
    takes(&platform, last.cast_signed()).await;
    insert_of(&platform, user, 1).await;

    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = start(&platform, &erase);
    lease_is(&platform, "OUTBOX", |lease| {
        lease["work"]["stage"] == "waiting for the relay"
    })
    .await;
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", "FRESH"];
    let replaying = start(&platform, &replay);
    while messages(&platform, "FRESH").await < 2 {
        tokio::task::yield_now().await;
    }
    signal(&replaying, Signal::STOP);
    let reached = messages(&platform, "FRESH").await;
    assert!(reached < last, "the replay has ended before it was stopped");
    takes(&platform, -1).await;
    let (told, said) = receipt(&ends(erasing).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    let fresh = &told["streams"].as_array().expect("a list")[1];
    assert_eq!(fresh["stream"], "FRESH", "{told}");
    assert_eq!(fresh["events"][0], json!(2), "{told}");

    signal(&replaying, Signal::CONT);
    let replayed = ends(replaying).await;
    let said = String::from_utf8_lossy(&replayed.stderr);
    assert_eq!(replayed.status.code(), Some(1), "{said}");
    assert!(said.contains("walrelay erase"), "{said}");
    relay.stop().await;
    assert!(!holds(&platform.nats.store_dir(), SECRET));
    platform.verify(0).await;
}

/// One that reads the rows, once their messages are gone, and ends before they are.
#[tokio::test]
async fn what_is_replayed_from_the_table_meanwhile_goes_too() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, 2).await;
    platform.relay_until(3).await;
    let mut other = platform.postgres.connect("postgres").await;
    let other = other.as_mut().expect("a connection");
    let lock = other.transaction().await.expect("begun");
    let query = "SELECT FROM outbox_events WHERE aggregate_id = $1 FOR UPDATE";
    lock.query(query, &[&user]).await.expect("locked");
    let id = user.to_string();
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &id];
    let erasing = start(&platform, &erase);
    waits_for_a_lock(&platform, "DELETE").await;
    let replay = ["replay", "--yes", "--from", "2020-01-01T00:00:00Z"];
    let to = ["--source", "table", "--stream", "FRESH"];
    platform.expect(&[&replay[..], &to].concat(), 0).await;
    assert_eq!(messages(&platform, "FRESH").await, 3);
    drop(lock);
    let (told, said) = receipt(&ends(erasing).await, 0);
    assert_eq!(told["done"], json!(true), "{told} {said}");
    assert_eq!(messages(&platform, "FRESH").await, 1, "{told}");
    assert_eq!(told["rows"], json!(2), "{told}");
    assert!(!holds(&platform.nats.store_dir(), SECRET));
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
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, 2).await;
    platform.relay_until(3).await;
    let mut other = platform.postgres.connect("postgres").await;
    let other = other.as_mut().expect("a connection");
    let lock = other.transaction().await.expect("begun");
    let query = "SELECT FROM outbox_events WHERE aggregate_id = $1 FOR UPDATE";
    lock.query(query, &[&user]).await.expect("locked");
    let given = user.to_string().to_uppercase();
    let id = format!("--aggregate-id={given}");
    let mut erasing = start(&platform, &["erase", &id, "--yes", "--also-header", "user"]);
    waits_for_a_lock(&platform, "DELETE").await;
    erasing.kill().await.expect("killed");
    drop(lock);
    // Its messages are gone.
    for id in [&user.to_string(), &given] {
        assert!(!holds(&platform.nats.store_dir(), id), "{id}");
    }
    let told = unfinished(&platform).await;
    let line = "walrelay erase --aggregate-id=<ID> --yes --also-header user";
    assert_eq!(told, [line]);
    typed(&platform, line, &given).await;
    assert_eq!(unfinished(&platform).await, Vec::<String>::new());
    assert_eq!(rows(&platform).await, 1);
}

/// Kills a replay in its midst.
async fn killed_replay(platform: &Platform, stream: &str, more: &[&str]) {
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", stream];
    let subject = format!("{stream}.{{event_type}}");
    let arguments = [&replay[..], &["--subject", &subject], more].concat();
    let mut replaying = start(platform, &arguments);
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
    insert_of(&platform, user, 1).await;
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
