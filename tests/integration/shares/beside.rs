//! `walrelay reshard` and commands that publish by themselves: one at a time, and nothing is there twice, whichever of them is killed or
//! frozen.

use std::time::Duration;

use async_nats::jetstream;
use rustix::process::Signal;
use serde_json::Value;
use tokio_postgres::Client;

use super::load::{
    CARRY_NOTHING, FEW_AGGREGATES, SLOTS, change_alone, count, end_as_printed, has, more,
    own_streams, reshard, shares, stops, takes_dead_letters_of, two_shares, writing,
};
use super::verdict::{events_of, streams_of, verdict};
use crate::proxy::{Mode, Proxy};
use crate::slow;
use crate::support::{Fixture, Relay, Stored, Writer, assert_exactly_once, eventually, uuid};

/// Rows from before the slot was made.
const OLD: u64 = 12_000;

/// One lane of all rows, which has published none of those that are there.
async fn with_old_rows() -> Fixture {
    let fixture = Fixture::bare().await;
    insert_old_rows(&fixture).await;
    fixture.setup().await;
    fixture
}

async fn insert_old_rows(fixture: &Fixture) {
    fixture.make_table().await;
    fixture.sql.batch_execute(FEW_AGGREGATES).await.unwrap();
    fixture.insert(1, OLD).await;
}

/// From one lane of all rows to two shares with a stream each.
fn divide(fixture: &Fixture) -> [String; 7] {
    let name = &fixture.name;
    let subject = format!("{name}.{{event_type}}");
    let words = ["reshard", "--shares", "2", "--undivided-stream"];
    let [a, b, c, d] = words.map(str::to_owned);
    let flag = "--undivided-subject".to_owned();
    [a, b, c, d, name.to_uppercase(), flag, subject]
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// A backfill on a network of its own that is slow, once the stream has some of its rows.
async fn slow_backfill(fixture: &Fixture, arguments: &[&str]) -> (Relay, Proxy) {
    let (mut command, proxy) = slow::start(fixture, arguments).await;
    let streams = streams_of(fixture, 1);
    eventually("the backfill publishes", async || {
        assert!(command.runs(), "{}", command.log());
        let events = events_of(fixture, &streams).await;
        (!events[0].is_empty()).then_some(())
    })
    .await;
    (command, proxy)
}

/// A change to two shares with a stream each that waits for somebody who writes to the table.
async fn waiting_change(fixture: &mut Fixture) -> (Relay, Client) {
    let writer = writing(fixture).await;
    own_streams(fixture, 2);
    let mut resharding = fixture.start(&words(&divide(fixture)));
    resharding.logs("waiting for a moment without").await;
    (resharding, writer)
}

/// Every old row is there once, wherever, and in no share's eyes missing.
async fn all_once(fixture: &Fixture, streams: &[String]) {
    let all = events_of(fixture, streams).await;
    let mut ids: Vec<_> = all.iter().flatten().map(Stored::id).collect();
    ids.sort_unstable();
    assert_exactly_once(&(1..=OLD).map(uuid).collect::<Vec<_>>(), &ids);
    fixture.walrelay(&["verify"]).await.success();
}

/// The streams of two shares, and of the lane of all rows before them.
fn all_streams(fixture: &Fixture) -> Vec<String> {
    let mut streams = streams_of(fixture, 2);
    streams.push(fixture.name.to_uppercase());
    streams
}

#[tokio::test]
async fn it_waits_for_the_end_of_a_backfill_that_lives() {
    let mut fixture = with_old_rows().await;
    let (mut backfill, proxy) = slow_backfill(&fixture, &["backfill"]).await;
    own_streams(&mut fixture, 2);
    let divide = divide(&fixture);
    let refused = fixture.walrelay(&words(&divide)).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    for told in ["walrelay backfill", &format!("process {}", backfill.pid())] {
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    let remedy = "wait for its end, and run this again";
    assert!(refused.stderr.contains(remedy), "{}", refused.stderr);
    assert_eq!(count(&fixture, SLOTS).await, 1, "nothing was made");
    proxy.set(Mode::Pass);
    assert_eq!(backfill.ends().await, Some(0), "{}", backfill.log());
    fixture.walrelay(&words(&divide)).await.success();
    fixture.walrelay(&["backfill"]).await.success();
    all_once(&fixture, &all_streams(&fixture)).await;
}

/// In a stream of its own, where a message expects the last sequence, and in one of several lanes, where it expects a fence.
#[tokio::test]
async fn a_backfill_that_was_frozen_publishes_nothing_behind_it() {
    let mut fixture = with_old_rows().await;
    let (backfill, proxy) = slow_backfill(&fixture, &["backfill"]).await;
    backfill.signal(Signal::STOP);
    own_streams(&mut fixture, 2);
    fixture.walrelay(&words(&divide(&fixture))).await.success();
    let streams = all_streams(&fixture);
    fixture.walrelay(&["backfill"]).await.success();
    proxy.set(Mode::Pass);
    backfill.signal(Signal::CONT);
    was_shut_out(backfill).await;
    all_once(&fixture, &streams).await;

    let mut fixture = Fixture::bare().await;
    insert_old_rows(&fixture).await;
    super::divide(&mut fixture, false);
    shares(&mut fixture, 2);
    fixture.setup().await;
    takes_dead_letters_of(&fixture, "4").await;
    let (backfill, proxy) = slow_backfill(&fixture, &["backfill", "--share", "0"]).await;
    backfill.signal(Signal::STOP);
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    // It has rows that share 0 had.
    let of_new = ["backfill", "--share", "2"];
    fixture.walrelay(&of_new).await.success();
    proxy.set(Mode::Pass);
    backfill.signal(Signal::CONT);
    was_shut_out(backfill).await;
    fixture.walrelay(&["backfill"]).await.success();
    all_once(&fixture, &streams_of(&fixture, 1)).await;
}

async fn was_shut_out(mut backfill: Relay) {
    assert_eq!(backfill.ends().await, Some(1), "{}", backfill.log());
    let log = backfill.log();
    let told = "walrelay reshard (process";
    assert!(
        log.contains(told) && log.contains("has taken over this lane"),
        "{log}"
    );
}

/// Types the command that is printed.
async fn type_reshard(fixture: &Fixture, printed: &str) {
    let (_, line) = printed.split_once("run walrelay reshard").expect(printed);
    let (line, _) = line.split_once(',').expect(printed);
    let line = format!("walrelay reshard{line}");
    fixture.types(&line).await.success();
}

/// What it has sent may be on its way still.
#[tokio::test]
async fn what_a_killed_backfill_has_published_is_not_published_again() {
    let mut fixture = with_old_rows().await;
    let (mut backfill, proxy) = slow_backfill(&fixture, &["backfill"]).await;
    backfill.kill();
    own_streams(&mut fixture, 2);
    let told = fixture.walrelay(&words(&divide(&fixture))).await.success();
    let left = "has ended without finishing: publishing rows";
    assert!(told.stderr.contains(left), "{}", told.stderr);
    let streams = all_streams(&fixture);
    let before = fixture.message_count_of(&streams[2]).await;
    assert!(before < OLD, "{before}");
    fixture.walrelay(&["backfill"]).await.success();
    all_once(&fixture, &streams).await;
    // All of what is on its way has come.
    proxy.set(Mode::Pass);
    let again = fixture.walrelay(&["backfill"]).await.success();
    let nothing = again.stdout.matches("0 rows are not in").count();
    assert_eq!(nothing, 2, "{again:?}");
    all_once(&fixture, &streams).await;
}

#[tokio::test]
async fn a_backfill_is_refused_while_it_is_at_work() {
    let mut fixture = with_old_rows().await;
    let (mut resharding, writer) = waiting_change(&mut fixture).await;
    own_streams(&mut fixture, 1);
    let status = fixture.walrelay(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let work = &status["bulk_work"][0];
    assert_eq!(work["process"], resharding.pid(), "{status}");
    assert_eq!(work["ended"], false, "{status}");
    for command in [&["backfill"][..], &["dead-letters", "retry", "--all"]] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        for told in [
            "walrelay reshard",
            &format!("process {}", resharding.pid()),
            "wait for its end, and run this again",
        ] {
            assert!(refused.stderr.contains(told), "{}", refused.stderr);
        }
    }
    writer.batch_execute("COMMIT").await.unwrap();
    assert_eq!(resharding.ends().await, Some(0), "{}", resharding.log());
    own_streams(&mut fixture, 2);
    fixture.walrelay(&["backfill"]).await.success();
    all_once(&fixture, &all_streams(&fixture)).await;
}

/// Frozen for so long that it is taken for ended, it still would change the publications once it wakes up.
#[tokio::test]
async fn a_backfill_is_refused_beside_one_that_is_frozen() {
    let mut fixture = with_old_rows().await;
    let (mut resharding, writer) = waiting_change(&mut fixture).await;
    resharding.signal(Signal::STOP);
    own_streams(&mut fixture, 1);
    let refused = fixture.walrelay(&["backfill"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    end_as_printed(&fixture, &refused).await;
    // What it had made is taken back.
    let refused = fixture.walrelay(&["backfill"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    own_streams(&mut fixture, 2);
    type_reshard(&fixture, &refused.stderr).await;
    own_streams(&mut fixture, 1);
    let (mut backfill, proxy) = slow_backfill(&fixture, &["backfill"]).await;
    writer.batch_execute("COMMIT").await.unwrap();
    resharding.signal(Signal::CONT);
    assert_eq!(resharding.ends().await, Some(1), "{}", resharding.log());
    proxy.set(Mode::Pass);
    assert_eq!(backfill.ends().await, Some(0), "{}", backfill.log());
    all_once(&fixture, &streams_of(&fixture, 1)).await;
}

/// `status` and `doctor` tell of it, and what they print goes on with it.
#[tokio::test]
async fn one_that_was_killed_is_told_until_it_was_run_again() {
    let mut fixture = with_old_rows().await;
    let (mut killed, writer) = waiting_change(&mut fixture).await;
    killed.kill();
    writer.batch_execute("COMMIT").await.unwrap();
    let mut printed = String::new();
    for command in ["status", "doctor"] {
        let text = fixture.walrelay(&[command, "--share", "1"]).await.stdout;
        assert!(text.contains("has ended without finishing"), "{text}");
        let (_, line) = text.split_once("run it again: ").expect(&text);
        printed = line.lines().next().unwrap().to_owned();
        assert!(printed.starts_with("walrelay reshard --shares 2"), "{text}");
    }
    fixture.types(&printed).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 2);
    for command in ["status", "doctor"] {
        let text = fixture.walrelay(&[command, "--share", "1"]).await.stdout;
        assert!(!text.contains("without finishing"), "{text}");
    }
    fixture.walrelay(&["backfill"]).await.success();
    all_once(&fixture, &all_streams(&fixture)).await;
}

/// What the shares had that are no more is still in their slots: a backfill of those that have their rows now would publish it too.
#[tokio::test]
async fn nothing_is_backfilled_before_what_shares_had_that_are_no_more_is_published() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.insert(1, OLD).await;
    let streams = streams_of(&fixture, 4);
    // As if it had been killed at the change.
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    has(&fixture, "two carry nothing", CARRY_NOTHING, 2).await;
    shares(&mut fixture, 2);
    let refused = fixture.walrelay(&["backfill"]).await;
    let published = events_of(&fixture, &streams).await;
    assert!(published.iter().all(Vec::is_empty), "{}", refused.stdout);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let relay = fixture.run();
    type_reshard(&fixture, &refused.stderr).await;
    fixture.walrelay(&["backfill"]).await.success();
    relay.stop().await;
    all_once(&fixture, &streams).await;
}

/// Many leases cost no time, nor does it disturb relays to shut out whoever had them.
#[tokio::test]
async fn leases_of_several_that_were_killed_are_waited_for_together() {
    for has_own_streams in [false, true] {
        let mut fixture = two_shares(has_own_streams).await;
        if !has_own_streams {
            takes_dead_letters_of(&fixture, "8").await;
        }
        reshard(&fixture, "8").await;
        shares(&mut fixture, 8);
        let streams = streams_of(&fixture, 8);
        for (share, stream) in streams.iter().enumerate() {
            abandon(&fixture, stream, share).await;
        }
        let writer = Writer::start(&fixture).await;
        let relay = fixture.run();
        more(&fixture, &writer, &streams[0]).await;
        let told = reshard(&fixture, "2").await;
        let waited = told.stderr.matches("waiting 5s for a sign").count();
        assert_eq!(waited, 8, "{}", told.stderr);
        more(&fixture, &writer, &streams[0]).await;
        let fences = fixture.stored_in(&streams[7]).await;
        let is_fence = |message: &&Stored| message.kind.as_deref() == Some("fenced");
        // None where a message of the relay came first, and in a shared stream.
        let most = usize::from(has_own_streams);
        assert!(fences.iter().filter(is_fence).count() <= most);
        // They are shut out by now, and nobody is waited for again.
        let told = reshard(&fixture, "8").await;
        assert!(!told.stderr.contains("waiting 5s"), "{}", told.stderr);
        let committed = writer.stop(&fixture).await;
        let streams = match has_own_streams {
            true => streams,
            false => streams_of(&fixture, 1),
        };
        verdict(&fixture, &committed, &streams).await;
        stops(relay).await;
        let relay = fixture.run();
        fixture.walrelay(&["verify"]).await.success();
        stops(relay).await;
    }
}

/// It has taken the lease of one share, and is refused that of the other.
#[tokio::test]
async fn a_refused_erasure_leaves_no_lease_that_the_next_command_waits_for() {
    let fixture = two_shares(true).await;
    let streams = streams_of(&fixture, 2);
    let aggregate = uuid(1).to_string();
    let erase = ["erase", "--yes", "--aggregate-id", &aggregate];
    let refused = tokio::select! {
        refused = fixture.walrelay(&erase) => refused,
        () = hold(&fixture, &streams[1], 1) => unreachable!("it is held"),
    };
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let told = "walrelay backfill is at work";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    let next = ["backfill", "--share", "0"];
    let next = fixture.walrelay(&next).await.success();
    assert!(!next.stderr.contains("waiting 5s"), "{}", next.stderr);
}

/// As a command holds the lease of a share's lane that lives.
async fn hold(fixture: &Fixture, stream: &str, share: usize) {
    loop {
        abandon(fixture, stream, share).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As a command leaves the lease of a share's lane that is killed.
async fn abandon(fixture: &Fixture, stream: &str, share: usize) {
    let subject = format!("walrelay.lane.{stream}.{}_{share}.lease", fixture.name);
    let lease = r#"{"command":"backfill","process":7,"since":"2026-11-29T07:00:00Z","token":"t","released":false}"#;
    let jetstream = jetstream::new(fixture.nats.clone());
    let stored = jetstream.publish(subject, lease.into()).await;
    stored.unwrap().await.unwrap();
}
