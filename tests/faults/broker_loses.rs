//! A broker that comes back without what it had acknowledged, and what only looks like it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use uuid::Uuid;

use crate::lane::{
    event_count, events, holds_events, jetstream, judge_events, logs_from, share, stream_of,
};
use crate::support::{
    Fixture, Relay, Servers, Stored, assert_exactly_once, eventually, site, uuid,
};

/// Puts `to` in the place of, or beside, what is there.
pub(crate) fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

/// The folder of one stream in the server's store.
pub(crate) fn stream_dir(fixture: &Fixture) -> PathBuf {
    let store = fixture.servers().nats.store_dir();
    store
        .join("jetstream/$G/streams")
        .join(fixture.stream_name())
}

/// A lane on servers of its own.
pub(crate) async fn fixture(shared: bool, hold_back: &str) -> Fixture {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
    if shared {
        share(&mut [&mut fixture], 1).await;
    } else {
        fixture.setup().await;
    }
    fixture
}

/// Waits until the lane record knows of all that the lane has published.
pub(crate) async fn is_recorded(fixture: &Fixture, tail: u64) {
    let subject = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
    eventually(format!("{tail} is recorded"), async || {
        let records = jetstream(fixture).get_stream("WALRELAY").await.ok()?;
        let record = records
            .get_last_raw_message_by_subject(&subject)
            .await
            .ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record.payload).ok()?;
        (record["sequence"].as_u64()? >= tail).then_some(())
    })
    .await;
}

/// `count` events of the lane are gone with an older copy of `part` of the store.
async fn is_set_back(shared: bool, whole: bool, while_running: bool) {
    let mut fixture = fixture(shared, "1h").await;
    let mut relay = fixture.run();
    fixture.insert(1, 50).await;
    holds_events(&fixture, 50).await;
    let dir = if whole {
        fixture.servers().nats.store_dir()
    } else {
        stream_dir(&fixture)
    };
    let backup = TempDir::new().unwrap();
    let backup = backup.path().join("copy");
    fixture.own_servers().nats.stop().await.unwrap();
    copy(&dir, &backup);
    fixture.own_servers().nats.start_again().await.unwrap();
    fixture.insert(51, 90).await;
    holds_events(&fixture, 90).await;
    let last = stream_of(&fixture).await.cached_info().state.last_sequence;
    is_recorded(&fixture, last).await;
    if !while_running {
        relay.kill();
    }
    fixture.own_servers().nats.stop().await.unwrap();
    copy(&backup, &dir);
    let mut logged = relay.log().len();
    fixture.own_servers().nats.start_again().await.unwrap();
    if !while_running {
        relay = fixture.run();
        logged = 0;
    }
    fixture.insert(91, 100).await;
    judge_events(&fixture, &(1..=100).map(uuid).collect::<Vec<_>>()).await;
    // With the whole store the record went too: then only a relay that has lived through it knows what was lost.
    if while_running || !whole {
        let log = logs_from(&mut relay, logged, "the broker has lost").await;
        let line = log.lines().find(|line| line.contains("has lost")).unwrap();
        assert!(line.contains("ERROR"), "{line}");
        if !shared {
            assert!(
                line.contains("lost up to 40 acknowledged messages"),
                "{line}"
            );
        }
        let (_, behind) = line.split_once(", behind ").expect("it says where");
        let at = |position: &str| position.trim_matches([',', ';']).contains("/");
        let words: Vec<&str> = behind.split(' ').take(3).collect();
        assert!(
            at(words[0]) && words[1] == "through" && at(words[2]),
            "{line}"
        );
    }
    relay.stop().await;
}

#[tokio::test]
async fn the_store_is_set_back_under_a_running_relay() {
    is_set_back(false, true, true).await;
}

#[tokio::test]
async fn the_store_of_a_shared_stream_is_set_back_under_a_running_relay() {
    is_set_back(true, true, true).await;
}

#[tokio::test]
async fn one_stream_is_set_back_while_the_relay_is_dead() {
    is_set_back(false, false, false).await;
}

#[tokio::test]
async fn a_shared_stream_is_set_back_while_the_relay_is_dead() {
    is_set_back(true, false, false).await;
}

#[tokio::test]
async fn the_store_is_set_back_while_the_relay_is_dead() {
    is_set_back(false, true, false).await;
}

/// Cuts off the end of the stream's last message file.
fn truncate(fixture: &Fixture, bytes: u64) {
    let messages = stream_dir(fixture).join("msgs");
    let files = std::fs::read_dir(messages).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let blocks = paths.filter(|path| path.extension().is_some_and(|end| end == "blk"));
    // 1.blk, 2.blk, …
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let last = blocks.max_by_key(number).expect("a file of messages");
    let length = std::fs::metadata(&last).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(last).unwrap();
    assert!(length > bytes, "{length} bytes");
    file.set_len(length - bytes).unwrap();
}

/// In the middle of the last message, and as much as some messages.
const TRUNCATIONS: [u64; 2] = [7, 3_000];

/// A lane with 40 events, and nats-server away: stopped in good order it leaves an index of the stream behind, which
/// knows of the last message; killed, it has only the messages to go by.
async fn with_the_broker_away(shared: bool, killed: bool) -> (Fixture, Relay) {
    let mut fixture = fixture(shared, "1h").await;
    let relay = fixture.run();
    fixture.insert(1, 20).await;
    fixture.insert(21, 40).await;
    holds_events(&fixture, 40).await;
    let last = stream_of(&fixture).await.cached_info().state.last_sequence;
    is_recorded(&fixture, last).await;
    let nats = &mut fixture.own_servers().nats;
    if killed {
        nats.kill();
    } else {
        nats.stop().await.unwrap();
    }
    (fixture, relay)
}

/// The last file of messages is shorter than it was when nats-server crashed.
async fn is_truncated(shared: bool) {
    for (bytes, while_running) in TRUNCATIONS
        .into_iter()
        .flat_map(|bytes| [(bytes, true), (bytes, false)])
    {
        let (mut fixture, mut relay) = with_the_broker_away(shared, true).await;
        truncate(&fixture, bytes);
        let mut logged = relay.log().len();
        if !while_running {
            relay.kill();
        }
        fixture.own_servers().nats.start_again().await.unwrap();
        if shared {
            // Others do not wait for the lane.
            let subject = format!("foreign.{}.x", fixture.stream_name());
            let sent = jetstream(&fixture).publish(subject, "".into()).await;
            sent.unwrap().await.unwrap();
        }
        if !while_running {
            relay = fixture.run();
            logged = 0;
        }
        fixture.insert(41, 50).await;
        judge_events(&fixture, &(1..=50).map(uuid).collect::<Vec<_>>()).await;
        // In a shared stream the last message is the fence, and no event is lost with it.
        if !shared || bytes != TRUNCATIONS[0] {
            let log = logs_from(&mut relay, logged, "the broker has lost").await;
            assert!(log.contains("the slot still has them all"), "{log}");
        }
        relay.stop().await;
    }
}

#[tokio::test]
async fn the_last_file_is_truncated() {
    is_truncated(false).await;
}

#[tokio::test]
async fn the_last_file_of_a_shared_stream_is_truncated() {
    is_truncated(true).await;
}

#[tokio::test]
async fn a_loss_that_nats_server_takes_for_a_deletion_is_told_of() {
    for shared in [false, true] {
        for while_running in [false, true] {
            let (mut fixture, mut relay) = with_the_broker_away(shared, false).await;
            truncate(&fixture, 3_000);
            let mut logged = relay.log().len();
            if !while_running {
                relay.kill();
            }
            fixture.own_servers().nats.start_again().await.unwrap();
            if !while_running {
                relay = fixture.run();
                logged = 0;
            }
            logs_from(&mut relay, logged, "walrelay verify").await;
            fixture.insert(41, 50).await;
            eventually("it goes on", async || {
                let stored = events(&fixture).await;
                (stored.last()?.id() == uuid(50)).then_some(())
            })
            .await;
            // Nothing came twice, and what is gone is named and mended.
            let lost = 50 - event_count(&fixture).await;
            assert!((1..40).contains(&lost), "{lost} of 50");
            let verified = fixture.walrelay(&["verify", "--json"]).await;
            let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
            assert_eq!(report["missing"]["count"], lost, "{report}");
            relay.stop().await;
            fixture.walrelay(&["backfill"]).await.success();
            fixture.walrelay(&["verify"]).await.success();
        }
    }
}

#[tokio::test]
async fn what_the_slot_no_longer_has_is_named() {
    let mut fixture = fixture(false, "0s").await;
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    let mut relay = fixture.run();
    fixture.insert(1, 50).await;
    fixture.confirms(fixture.server_lsn().await).await;
    let config = stream_of(&fixture).await.cached_info().config.clone();
    let name = fixture.stream_name().to_owned();
    let logged = relay.log().len();
    jetstream(&fixture).delete_stream(&name).await.unwrap();
    jetstream(&fixture).create_stream(config).await.unwrap();
    fixture.insert(51, 60).await;
    let log = logs_from(&mut relay, logged, "the broker has lost").await;
    assert!(log.contains("no longer in the slot"), "{log}");
    // Nothing tells how many, and the alert has to hear of it.
    let (_, metrics) = site::get(address, "/metrics").await.expect("it answers");
    let none_lost = format!(
        "walrelay_lost_messages_total{{relay=\"{}\"}} 0",
        fixture.name
    );
    assert!(
        metrics.contains("walrelay_lost_messages_total{"),
        "{metrics}"
    );
    assert!(!metrics.contains(&none_lost), "{metrics}");
    judge_events(&fixture, &(51..=60).map(uuid).collect::<Vec<_>>()).await;
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["missing"]["count"], 50, "{report}");
    relay.stop().await;
}

/// Only these are in the stream.
async fn holds_only(fixture: &Fixture, first: u64, last: u64) {
    let wanted: Vec<Uuid> = (first..=last).map(uuid).collect();
    holds_events(fixture, wanted.len() as u64).await;
    let ids: Vec<Uuid> = events(fixture).await.iter().map(Stored::id).collect();
    assert_exactly_once(&wanted, &ids);
}

#[tokio::test]
async fn a_purge_is_no_loss() {
    let mut fixture = fixture(false, "1h").await;
    let mut relay = fixture.run();
    fixture.insert(1, 10).await;
    holds_events(&fixture, 10).await;
    // While it runs.
    stream_of(&fixture).await.purge().await.unwrap();
    fixture.insert(11, 20).await;
    holds_only(&fixture, 11, 20).await;
    // While it is stopped.
    relay.stop().await;
    stream_of(&fixture).await.purge().await.unwrap();
    relay = fixture.run();
    fixture.insert(21, 30).await;
    holds_only(&fixture, 21, 30).await;
    // While it is dead, its record up to date.
    let last = stream_of(&fixture).await.cached_info().state.last_sequence;
    is_recorded(&fixture, last).await;
    relay.kill();
    stream_of(&fixture).await.purge().await.unwrap();
    relay = fixture.run();
    fixture.insert(31, 40).await;
    holds_only(&fixture, 31, 40).await;
    assert!(!relay.log().contains("has lost"), "{}", relay.log());
    relay.stop().await;
}

/// What the relay does over the weekend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weekend {
    Runs,
    Stopped,
    Dead,
}

const WEEKENDS: [Weekend; 3] = [Weekend::Runs, Weekend::Stopped, Weekend::Dead];

#[tokio::test]
async fn a_quiet_weekend_beyond_max_age_is_no_loss() {
    for weekend in WEEKENDS {
        has_a_quiet_weekend(false, weekend).await;
    }
}

#[tokio::test]
async fn a_quiet_weekend_of_a_shared_stream_is_no_loss() {
    for weekend in WEEKENDS {
        has_a_quiet_weekend(true, weekend).await;
    }
}

/// The slot holds everything all the time, and all of it expires: none of it may come again.
async fn has_a_quiet_weekend(shared: bool, weekend: Weekend) {
    let mut fixture = fixture(shared, "1h").await;
    let mut config = stream_of(&fixture).await.cached_info().config.clone();
    config.max_age = std::time::Duration::from_millis(700);
    config.duplicate_window = config.max_age;
    jetstream(&fixture).update_stream(config).await.unwrap();
    let mut running: Option<Relay> = None;
    for round in 0..3 {
        let mut relay = running.take().unwrap_or_else(|| fixture.run());
        let first = 1 + 10 * round;
        fixture.insert(first, first + 9).await;
        holds_only(&fixture, first, first + 9).await;
        for word in ["has lost", "is gone"] {
            assert!(!relay.log().contains(word), "{}", relay.log());
        }
        let last = stream_of(&fixture).await.cached_info().state.last_sequence;
        match weekend {
            Weekend::Stopped => relay.stop().await,
            Weekend::Dead => {
                is_recorded(&fixture, last).await;
                relay.kill();
            }
            Weekend::Runs => running = Some(relay),
        }
        eventually("all has expired", async || {
            (fixture.message_count().await == 0).then_some(())
        })
        .await;
    }
    if let Some(relay) = running {
        relay.stop().await;
    }
}

/// The relay brings everything back by itself: nothing else is to be done than to make the stream.
#[tokio::test]
async fn setup_beside_a_relay_whose_broker_has_lost_its_disk_says_that_it_goes_on() {
    let mut fixture = fixture(false, "1h").await;
    let mut relay = fixture.run();
    relay.streams().await;
    // Of no event, so that it is confirmed at once.
    let wal = "SELECT pg_logical_emit_message(true, 'test', 'x')";
    fixture.sql.batch_execute(wal).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    fixture.insert(1, 50).await;
    holds_events(&fixture, 50).await;
    let nats = &mut fixture.own_servers().nats;
    nats.kill();
    std::fs::remove_dir_all(nats.store_dir().join("jetstream")).unwrap();
    nats.start_again().await.unwrap();
    relay.logs("NATS has no stream").await;
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(made.stdout.contains("which goes on"), "{made:?}");
    assert!(!made.stderr.contains("would halt"), "{made:?}");
    holds_events(&fixture, 50).await;
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}
