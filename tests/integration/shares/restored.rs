//! Shares beside servers that were set back: nothing is divided anew while a lane would halt, and set-up tells of all of them.

use std::path::Path;
use std::process::Command;

use async_nats::jetstream;
use uuid::Uuid;
use walrelay::local::Mode;

use super::load::{SLOTS, count, reshard, shares, stops, two_shares, two_shares_on};
use super::verdict::{events_of, streams_of, verdict};
use crate::support::{Fixture, Relay, Servers, Stored, eventually, uuid};

/// With owners and modes.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("it runs").success());
}

async fn while_stopped(fixture: &mut Fixture, change: impl FnOnce(&Path)) {
    let postgres = &mut fixture.own_servers().postgres;
    let data = postgres.data_dir();
    postgres.stop(Mode::Fast).await.expect("it stops");
    change(&data);
    postgres.start_again().await.expect("it starts");
    fixture.reconnect().await;
}

async fn has_halted(relay: &mut Relay, share: u32) {
    relay
        .logs(&format!("`walrelay adopt --share {share}` goes on"))
        .await;
}

#[tokio::test]
async fn behind_a_restored_database_nothing_is_divided_until_each_lane_may_go_on() {
    let fixture = Fixture::bare_on(Servers::own().await).await;
    let mut fixture = two_shares_on(fixture, true).await;
    shares(&mut fixture, 4);
    let streams = streams_of(&fixture, 4);
    let relay = fixture.run();
    fixture.insert(1, 30).await;
    let committed: Vec<Uuid> = (1..=30).map(uuid).collect();
    verdict(&fixture, &committed, &streams[..2]).await;
    stops(relay).await;
    let snapshot = |data: &Path| data.with_file_name("snapshot");
    while_stopped(&mut fixture, |data| copy(data, &snapshot(data))).await;
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    fixture.insert(31, 90).await;
    let committed: Vec<Uuid> = (1..=90).map(uuid).collect();
    verdict(&fixture, &committed, &streams).await;
    stops(relay).await;
    while_stopped(&mut fixture, |data| {
        std::fs::remove_dir_all(data).expect("it is there");
        copy(&snapshot(data), data);
    })
    .await;

    // Who types what the halts say.
    let mut relay = fixture.run();
    has_halted(&mut relay, 0).await;
    has_halted(&mut relay, 1).await;
    relay.kill();
    let mut adopted = Vec::new();
    loop {
        let output = fixture.walrelay(&["reshard", "--shares", "4"]).await;
        if output.code == Some(0) {
            break;
        }
        assert_eq!(count(&fixture, "FROM pg_publication").await, 2);
        assert_eq!(count(&fixture, SLOTS).await, 2, "nothing was made");
        let told = &output.stderr;
        let (_, share) = told.split_once("walrelay adopt --share ").expect(told);
        let share: String = share.chars().take_while(char::is_ascii_digit).collect();
        assert!(!adopted.contains(&share), "{told}");
        let adopt = ["adopt", "--yes", "--share", &share];
        fixture.walrelay(&adopt).await.success();
        adopted.push(share);
    }
    assert_eq!(adopted, ["0", "1", "2", "3"]);
    fixture.insert(101, 160).await;
    let relay = fixture.run();
    let new: Vec<Uuid> = (101..=160).map(uuid).collect();
    let stored = eventually("what is new is published", async || {
        let events = events_of(&fixture, &streams).await;
        let ids = events.iter().flatten().map(Stored::id);
        let mut ids: Vec<Uuid> = ids.filter(|id| new.contains(id)).collect();
        ids.sort_unstable();
        (ids.len() >= new.len()).then_some(ids)
    })
    .await;
    assert_eq!(stored, new, "each once");
    stops(relay).await;
}

#[tokio::test]
async fn set_up_makes_the_streams_of_all_shares_and_tells_of_each_that_would_halt() {
    let mut fixture = two_shares(true).await;
    let relay = fixture.run();
    fixture.insert(1, 40).await;
    let streams = streams_of(&fixture, 2);
    let committed: Vec<Uuid> = (1..=40).map(uuid).collect();
    verdict(&fixture, &committed, &streams).await;
    stops(relay).await;
    // As beside a NATS that was made anew.
    let jetstream = jetstream::new(fixture.nats.clone());
    let records = jetstream.get_stream("WALRELAY").await.unwrap();
    for (stream, share) in streams.iter().zip(0..) {
        jetstream.delete_stream(stream).await.unwrap();
        let record = format!("walrelay.lane.{stream}.{}_{share}", fixture.name);
        records.purge().filter(record).await.unwrap();
    }
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{}", setup.stderr);
    for (stream, share) in streams.iter().zip(0..) {
        let told = format!("`walrelay adopt --share {share}`");
        assert!(setup.stderr.contains(&told), "{}", setup.stderr);
        assert!(jetstream.get_stream(stream).await.is_ok(), "{stream}");
    }
    for share in ["0", "1"] {
        let adopt = ["adopt", "--yes", "--share", share];
        fixture.walrelay(&adopt).await.success();
    }
    fixture.walrelay(&["backfill"]).await.success();
    let events = events_of(&fixture, &streams).await;
    let mut stored: Vec<Uuid> = events.iter().flatten().map(Stored::id).collect();
    stored.sort_unstable();
    assert_eq!(stored, committed, "each once");
}
