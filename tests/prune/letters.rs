//! What `walrelay prune` keeps of dead letters, whatever the stream still has of them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::command::{PRUNE, age, insert_old, pruned, refused};
use crate::platform::{Platform, insert_of_type};

const LIMIT: Duration = Duration::from_secs(180);
/// Where the relay keeps in mind what is open.
const NOTE: &str = "walrelay.lane.OUTBOX.walrelay.letters";

#[tokio::test]
async fn an_open_dead_letter_stays_until_it_is_closed() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.insert(2).await;
    platform.wait_for(3).await;
    age(&platform).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(platform.rows().await, 1);
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(1), &json!(0))
    );
    relay.stop().await;
}

/// What the relay keeps in mind of open dead letters; none before its first look.
async fn kept_letters(platform: &Platform) -> Option<Value> {
    let stream = platform.jetstream.get_stream("WALRELAY").await;
    let stream = stream.expect("a stream");
    let message = stream.get_last_raw_message_by_subject(NOTE).await.ok()?;
    serde_json::from_slice(&message.payload).ok()
}

/// Takes that away.
async fn forget_letters(platform: &Platform) {
    let records = platform.jetstream.get_stream("WALRELAY").await;
    let records = records.expect("a stream");
    records.purge().filter(NOTE).await.expect("purged");
}

/// Waits until it keeps so many.
async fn keeps(platform: &Platform, count: usize) {
    let kept = async {
        loop {
            let kept = kept_letters(platform).await;
            let letters = kept.as_ref().and_then(|kept| kept["letters"].as_array());
            if letters.is_some_and(|letters| letters.len() == count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let kept = tokio::time::timeout(LIMIT, kept).await;
    kept.expect("it takes note in time");
}

/// The stream keeps so many messages and drops the oldest.
async fn keep_the_last(platform: &Platform, messages: i64) {
    let mut config = platform.stream().await.cached_info().config.clone();
    config.max_messages = messages;
    let edited = platform.jetstream.update_stream(&config).await;
    edited.expect("edited");
}

#[tokio::test]
async fn an_open_dead_letter_that_the_stream_has_removed_keeps_its_row() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_of_type(&platform.sql, "no subject").await;
    platform.wait_for(1).await;
    keeps(&platform, 1).await;
    keep_the_last(&platform, 3).await;
    let said = platform.expect(&["doctor"], 1).await;
    assert!(
        said.contains("which removes its oldest messages (max_msgs 3)"),
        "{said}"
    );
    assert!(
        said.contains("nats stream edit OUTBOX --max-msgs=-1\n"),
        "{said}"
    );
    // The letter goes, and events of which nothing is left in the stream.
    platform.insert(5).await;
    platform.wait_for(6).await;
    age(&platform).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(5), &json!(1))
    );
    assert_eq!(platform.rows().await, 1);
    let list = platform.expect(&["dead-letters", "list"], 0).await;
    assert!(list.contains("    gone  "), "{list}");
    let said = platform.expect(&["doctor"], 1).await;
    let remedy = "walrelay dead-letters retry --all";
    assert!(
        said.contains("1 open dead letter is no longer in stream OUTBOX") && said.contains(remedy),
        "{said}"
    );

    // The row is mended, and what is printed publishes it.
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    platform.sql.batch_execute(mend).await.expect("mended");
    let typed: Vec<&str> = remedy.split(' ').skip(1).collect();
    platform.expect(&typed, 0).await;
    assert_eq!(platform.last_sequence().await, 8);
    // Again nothing is published: the mark tells.
    let said = platform.expect(&typed, 0).await;
    assert!(said.contains("no open dead letters"), "{said}");
    keeps(&platform, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(1), &json!(0))
    );
    relay.stop().await;
    platform.verify(0).await;
}

/// Somebody removes the letters while the slot still has their rows, so that it is known that these were never published.
async fn purge_letters(platform: &Platform) {
    let stream = platform.stream().await;
    let purge = stream.purge().filter("walrelay.dead.walrelay");
    purge.await.expect("purged");
}

#[tokio::test]
async fn an_open_dead_letter_that_somebody_has_removed_keeps_its_row() {
    let mut platform = Platform::start().await;
    // The slot has everything still.
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    platform.insert(1).await;
    for _ in 0..2 {
        insert_of_type(&platform.sql, "no subject").await;
    }
    platform.insert(1).await;
    platform.wait_for(4).await;
    age(&platform).await;
    keeps(&platform, 2).await;
    purge_letters(&platform).await;
    // It compares, and finds nothing amiss.
    let dry = pruned(&platform, &["--dry-run"], 0).await;
    assert_eq!(
        (&dry["rows"], &dry["open_dead_letters"]),
        (&json!(2), &json!(2))
    );
    relay.stop().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = platform.relay();
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(platform.rows().await, 2);
    // Given up, they go.
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(
        (&done["rows"], &done["open_dead_letters"]),
        (&json!(2), &json!(0))
    );
    relay.stop().await;
}

/// The relay had not looked yet when they were removed: what is printed, and what that prints, cures it.
#[tokio::test]
async fn removed_dead_letters_of_which_nothing_is_known_are_mended_in_the_table() {
    let mut platform = Platform::start().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = platform.relay();
    keeps(&platform, 0).await;
    relay.stop().await;
    platform.insert(1).await;
    insert_of_type(&platform.sql, "no subject").await;
    platform.insert(1).await;
    // What it has noted by then goes too: the relay had no time to look.
    let relay = platform.relay();
    platform.wait_for(3).await;
    relay.kill().await;
    purge_letters(&platform).await;
    forget_letters(&platform).await;
    age(&platform).await;
    let relay = platform.relay();
    keeps(&platform, 0).await;
    let said = platform.expect(&[PRUNE, &["--dry-run"]].concat(), 1).await;
    let (_, command) = said
        .split_once("so nothing was deleted: walrelay ")
        .expect(&said);
    let (command, then) = command
        .split_once(" publishes what is missing")
        .expect(&said);
    assert!(
        then.contains("says of what can be no event how to mend it"),
        "{said}"
    );
    let typed: Vec<&str> = command.split(' ').collect();
    let said = platform.expect(&typed, 1).await;
    let (_, sql) = said.split_once("This shows it:\n  SELECT *").expect(&said);
    let sql = sql.lines().next().expect("a line");
    let mend = sql.replacen(
        "FROM public.outbox_events",
        "UPDATE public.outbox_events SET event_type = 'lesson.published.v1'",
        1,
    );
    platform
        .sql
        .batch_execute(mend.trim())
        .await
        .expect("it is SQL");
    platform.expect(&typed, 0).await;
    relay.stop().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = platform.relay();
    assert_eq!(pruned(&platform, &[], 0).await["rows"], 3);
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_may_be_dead_letters_of_which_nothing_is_known_stay() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    insert_old(&platform, 5).await;
    platform.wait_for(5).await;
    keeps(&platform, 0).await;
    relay.stop().await;
    keep_the_last(&platform, 3).await;
    forget_letters(&platform).await;
    refused(&platform, &[], "unjudged: 2 rows").await;
    // What it says cures it.
    let relay = platform.relay();
    keeps(&platform, 0).await;
    assert_eq!(pruned(&platform, &[], 0).await["rows"], 5);
    relay.stop().await;
}
