//! What people do by hand to streams, tables and nodes beside a relay: tried, and held.

use std::time::Duration;

use async_nats::jetstream::stream::PeerInfo;
use rustix::process::Signal;
use uuid::Uuid;
use walrelay::local::LocalNatsCluster;

use crate::lane::{
    LANES, Lane, by_hand, event_count, events, holds_events, jetstream, judge, judge_events,
    logs_from, more_events, move_to_cluster, set_up, set_up_on_three, share, stream_of,
};
use crate::support::wait::eventually_within;
use crate::support::{
    Fixture, Servers, Stored, Writer, assert_exactly_once, binaries, eventually, uuid,
};

const EVENTS_BETWEEN: u64 = 100;
/// How long a command may take that goes through millions of rows.
const BACKFILL_LIMIT: Duration = Duration::from_secs(600);

/// What a person removes from a stream.
#[derive(Debug, Clone, Copy)]
enum Removal {
    Middle,
    AllButTheNewest,
    BySubject,
}

impl Removal {
    /// Removes, of the lane's events 1 to 20 or of ten more; which are left.
    async fn from(self, fixture: &Fixture) -> Vec<Uuid> {
        let stream = stream_of(fixture).await;
        match self {
            Removal::Middle => {
                for stored in events(fixture).await {
                    if (5..=14).any(|number| uuid(number) == stored.id()) {
                        assert!(stream.delete_message(stored.sequence).await.unwrap());
                    }
                }
            }
            Removal::AllButTheNewest => {
                stream.purge().keep(8).await.unwrap();
            }
            Removal::BySubject => {
                let all = format!("{}.>", fixture.name);
                stream.purge().filter(all).await.unwrap();
            }
        }
        events(fixture).await.iter().map(Stored::id).collect()
    }
}

/// Everything is still in the slot, so that what is taken for a loss would come again.
async fn removed_from(lane: Lane, is_running: bool) {
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    set_up(&mut fixture, lane).await;
    let mut relay = Some(fixture.run());
    let mut last = 20;
    fixture.insert(1, last).await;
    holds_events(&fixture, last).await;
    for removal in [
        Removal::Middle,
        Removal::AllButTheNewest,
        Removal::BySubject,
    ] {
        let running = relay.take().expect("one runs");
        let running = match is_running {
            true => Some(running),
            false => {
                running.stop().await;
                None
            }
        };
        let mut wanted = removal.from(&fixture).await;
        let running = running.unwrap_or_else(|| fixture.run());
        fixture.insert(last + 1, last + 10).await;
        wanted.extend((last + 1..=last + 10).map(uuid));
        last += 10;
        eventually("the lane has come so far", async || {
            let ids: Vec<Uuid> = events(&fixture).await.iter().map(Stored::id).collect();
            (ids.last() == wanted.last()).then(|| assert_exactly_once(&wanted, &ids))
        })
        .await;
        let log = running.log();
        assert!(!log.contains("has lost"), "{removal:?}: {log}");
        relay = Some(running);
    }
    relay.expect("one runs").stop().await;
}

#[tokio::test]
async fn messages_are_removed_under_a_running_relay() {
    for lane in LANES {
        removed_from(lane, true).await;
    }
}

#[tokio::test]
async fn messages_are_removed_while_the_relay_is_stopped() {
    for lane in LANES {
        removed_from(lane, false).await;
    }
}

/// The records expire: a running relay knows its place by itself, and a new one asks a person, who changes nothing.
#[tokio::test]
async fn the_stream_of_the_records_is_given_an_age() {
    let servers = Servers::own().await;
    let mut fixture = Fixture::bare_on(servers).await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let records = jetstream(&fixture).get_stream("WALRELAY").await.unwrap();
    let before = records.cached_info().config.clone();
    let mut config = before.clone();
    config.max_age = Duration::from_millis(200);
    config.duplicate_window = config.max_age;
    let have_expired = async || {
        eventually("the records have expired", async || {
            let records = jetstream(&fixture).get_stream("WALRELAY").await.ok()?;
            (records.cached_info().state.messages == 0).then_some(())
        })
        .await;
    };
    // A running relay waits for its end, and goes on by what it remembers.
    jetstream(&fixture).update_stream(&config).await.unwrap();
    have_expired().await;
    fixture.insert(1, 10).await;
    relay.logs("max_age lets records expire").await;
    jetstream(&fixture).update_stream(&before).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    // One that dies meanwhile does not start before, and remembers nothing then.
    jetstream(&fixture).update_stream(&config).await.unwrap();
    have_expired().await;
    relay.kill();
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(1), "{}", relay.log());
    let refused = relay.log().contains("max_age lets records expire");
    assert!(refused, "{}", relay.log());
    jetstream(&fixture).update_stream(&before).await.unwrap();
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(
        relay.log().contains("has no record of it"),
        "{}",
        relay.log()
    );
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.insert(11, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

/// Each is frozen for longer than any time-out while the other has the slot, again and again.
#[tokio::test]
async fn two_relays_are_frozen_in_turn() {
    for lane in LANES {
        let mut fixture = Fixture::bare().await;
        fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "1s");
        set_up(&mut fixture, lane).await;
        let impatient = format!(
            "ALTER DATABASE {} SET wal_sender_timeout = '1s'",
            fixture.name
        );
        fixture.sql.batch_execute(&impatient).await.unwrap();
        let writer = Writer::start(&fixture).await;
        let mut publishing = fixture.run();
        publishing.streams().await;
        let mut waiting = fixture.run();
        waiting.logs("is in use").await;
        for _ in 0..4 {
            more_events(&fixture, EVENTS_BETWEEN).await;
            let logged = waiting.log().len();
            publishing.signal(Signal::STOP);
            // Only once Postgres has given the frozen one up does the other have the slot.
            logs_from(&mut waiting, logged, "streaming").await;
            more_events(&fixture, EVENTS_BETWEEN).await;
            let logged = publishing.log().len();
            publishing.signal(Signal::CONT);
            logs_from(&mut publishing, logged, "is in use").await;
            std::mem::swap(&mut publishing, &mut waiting);
        }
        judge(&fixture, writer).await;
        publishing.kill();
        waiting.stop().await;
    }
}

/// A wiped node copies each stream from its leader, and on a busy machine waits for elections before.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);

/// Waits until every replica of these streams has what its leader has.
async fn caught_up(fixture: &Fixture, streams: &[&str]) {
    for name in streams {
        eventually_within(
            CATCH_UP_LIMIT,
            format!("the replicas of {name} have caught up"),
            async || {
                let stream = jetstream(fixture).get_stream(*name).await.ok()?;
                let cluster = stream.cached_info().cluster.clone()?;
                let has_all =
                    |peer: &&PeerInfo| peer.current && !peer.offline && peer.lag.unwrap_or(0) == 0;
                let current = cluster.replicas.iter().filter(has_all);
                (cluster.leader.is_some() && current.count() == 2).then_some(())
            },
        )
        .await;
    }
}

/// A follower stands still while another node comes back with an empty disk: the third alone has everything.
#[tokio::test]
#[ignore = "a wiped disk catches up, which takes minutes on a busy machine: make wiped"]
async fn a_disk_is_wiped_beside_a_frozen_follower() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let (mut own, mut shared) = (Fixture::bare().await, Fixture::bare().await);
    for fixture in [&mut own, &mut shared] {
        move_to_cluster(fixture, &cluster).await;
    }
    set_up_on_three(&own).await;
    share(&mut [&mut shared], 3).await;
    let relays = (own.run(), shared.run());
    let mut last = 0;
    for round in 0..2 {
        last += EVENTS_BETWEEN;
        commits(&[&own, &shared], last).await;
        for fixture in [&own, &shared] {
            holds_events(fixture, last).await;
        }
        let leader = cluster.wait_for_leader().await.unwrap();
        let (frozen, wiped) = match round {
            0 => ((leader + 1) % 3, (leader + 2) % 3),
            _ => ((leader + 2) % 3, (leader + 1) % 3),
        };
        cluster.node(frozen).pause();
        // They reach two nodes at most.
        last += EVENTS_BETWEEN;
        commits(&[&own, &shared], last).await;
        let wiped = cluster.node(wiped);
        wiped.kill();
        std::fs::remove_dir_all(wiped.store_dir().join("jetstream")).unwrap();
        wiped.start_again().await.unwrap();
        cluster.node(frozen).resume();
        // Else the next disk may be the only one that has something.
        caught_up(&own, &[own.stream_name(), shared.stream_name(), "WALRELAY"]).await;
    }
    for (fixture, relay) in [(&own, relays.0), (&shared, relays.1)] {
        judge_events(fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
        relay.stop().await;
    }
}

/// Node by node, while writers write to a stream of their own and to a shared one.
#[tokio::test]
#[ignore = "needs nats-server 2.14 and 2.15: make versions"]
async fn a_cluster_is_upgraded_under_load() {
    let [old, new] = [14, 15].map(|minor| binaries().with_nats_minor(minor).expect("it is there"));
    let mut cluster = LocalNatsCluster::start(&old, 3).await.unwrap();
    let (mut own, mut shared) = (Fixture::bare().await, Fixture::bare().await);
    for fixture in [&mut own, &mut shared] {
        move_to_cluster(fixture, &cluster).await;
    }
    set_up_on_three(&own).await;
    share(&mut [&mut shared], 3).await;
    let mut relays = [own.run(), shared.run()];
    let writers = [Writer::start(&own).await, Writer::start(&shared).await];
    for index in 0..3 {
        for fixture in [&own, &shared] {
            more_events(fixture, EVENTS_BETWEEN).await;
        }
        let node = cluster.node(index);
        node.stop().await.unwrap();
        node.start_again_as(&new).await.unwrap();
        let client = async_nats::connect(node.url()).await.unwrap();
        let version = client.server_info().version;
        assert!(version.starts_with("2.15."), "{version}");
        caught_up(&own, &[own.stream_name(), shared.stream_name(), "WALRELAY"]).await;
    }
    for (fixture, writer) in [&own, &shared].into_iter().zip(writers) {
        more_events(fixture, EVENTS_BETWEEN).await;
        judge(fixture, writer).await;
    }
    for relay in &mut relays {
        assert!(relay.runs(), "{}", relay.log());
    }
    for relay in relays {
        relay.stop().await;
    }
}

/// A backlog, in turns into a stream with one copy and into one with three, of the same cluster.
#[tokio::test]
#[ignore = "measures, and needs an optimised build of walrelay in WALRELAY_THIS"]
async fn one_and_three_replicas_take_a_backlog() {
    const ROWS: u64 = 200_000;
    const PER_TRANSACTION: u64 = 1_000;
    let build = std::env::var("WALRELAY_THIS").expect("WALRELAY_THIS names a build");
    let cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    for round in 1..=3 {
        for replicas in [1, 3] {
            let mut fixture = Fixture::bare().await;
            move_to_cluster(&mut fixture, &cluster).await;
            let subjects = [
                format!("{}.>", fixture.name),
                format!("walrelay.dead.{}", fixture.name),
            ];
            let config = by_hand(fixture.stream_name(), &subjects, replicas);
            jetstream(&fixture).create_stream(config).await.unwrap();
            fixture.setup().await;
            for part in 0..ROWS / PER_TRANSACTION {
                let first = part * PER_TRANSACTION;
                fixture.insert(first + 1, first + PER_TRANSACTION).await;
            }
            let begun = std::time::Instant::now();
            let relay = fixture.run_by(&build, &["run"]);
            eventually_within(BACKFILL_LIMIT, "all are published", async || {
                (event_count(&fixture).await >= ROWS).then_some(())
            })
            .await;
            let rate = ROWS as f64 / begun.elapsed().as_secs_f64();
            eprintln!("round {round}, {replicas} replicas: {rate:.0}/s");
            relay.stop().await;
        }
    }
}

/// Commits the last [`EVENTS_BETWEEN`] events up to `last` on both lanes.
async fn commits(fixtures: &[&Fixture], last: u64) {
    for fixture in fixtures {
        fixture.insert(last + 1 - EVENTS_BETWEEN, last).await;
    }
}

/// Two builds take the lane from each other: killed, stopped, and one as the other's standby.
#[tokio::test]
#[ignore = "needs another build of walrelay in WALRELAY_OTHER"]
async fn two_versions_take_turns_on_a_lane() {
    const ROUNDS: usize = 4;
    let other = std::env::var("WALRELAY_OTHER").expect("WALRELAY_OTHER names another build");
    for lane in LANES {
        let mut fixture = Fixture::bare().await;
        set_up(&mut fixture, lane).await;
        let writer = Writer::start(&fixture).await;
        for round in 0..ROUNDS {
            let mut old = fixture.run_by(&other, &["run"]);
            more_events(&fixture, EVENTS_BETWEEN).await;
            let mut new = match round % 2 {
                0 => {
                    old.stop().await;
                    fixture.run()
                }
                _ => {
                    let mut new = fixture.run();
                    new.logs("is in use").await;
                    old.kill();
                    new
                }
            };
            more_events(&fixture, EVENTS_BETWEEN).await;
            match round {
                0 => new.stop().await,
                _ => new.kill(),
            }
        }
        let last = fixture.run();
        judge(&fixture, writer).await;
        last.stop().await;
    }
}

/// Rows from before the slot come once, however often the command is killed, while writers write and the relay publishes.
#[tokio::test]
#[ignore = "takes minutes, and needs an optimised build of walrelay in WALRELAY_THIS"]
async fn two_million_old_rows_through_ten_kills() {
    const ROWS: u64 = 2_000_000;
    const KILLS: u64 = 10;
    let build = std::env::var("WALRELAY_THIS").expect("WALRELAY_THIS names a build");
    let mut fixture = Fixture::with_table().await;
    for part in 0..100 {
        let first = part * ROWS / 100;
        fixture.insert(first + 1, first + ROWS / 100).await;
    }
    set_up(&mut fixture, Lane::FastIngest).await;
    let relay = fixture.run_by(&build, &["run"]);
    let writer = Writer::start(&fixture).await;
    let begun = std::time::Instant::now();
    for kill in 1..=KILLS {
        let mut killed = fixture.run_by(&build, &["backfill"]);
        let aim = kill * ROWS / (KILLS + 1);
        eventually_within(BACKFILL_LIMIT, format!("{aim} events"), async || {
            (event_count(&fixture).await >= aim).then_some(())
        })
        .await;
        assert!(killed.runs(), "it has ended before kill {kill}");
        killed.kill();
        let stored = event_count(&fixture).await;
        eprintln!("killed at {stored} events, after {:?}", begun.elapsed());
    }
    let mut last = fixture.run_by(&build, &["backfill"]);
    eventually_within(BACKFILL_LIMIT, "the backfill ends", async || {
        (!last.runs()).then_some(())
    })
    .await;
    assert_eq!(last.ends().await, Some(0), "{}", last.log());
    eprintln!("done after {:?}", begun.elapsed());
    let written = writer.stop(&fixture).await.len() as u64;
    holds_events(&fixture, ROWS + written).await;
    assert_eq!(event_count(&fixture).await, ROWS + written);
    // Missing, doubled, out of order: each would end it with 1.
    let mut verify = fixture.run_by(&build, &["verify"]);
    eventually_within(BACKFILL_LIMIT, "verify ends", async || {
        (!verify.runs()).then_some(())
    })
    .await;
    assert_eq!(verify.ends().await, Some(0), "{}", verify.log());
    relay.stop().await;
}

/// How long two builds take for the same backlog, in turns: medians, and their ratio.
#[tokio::test]
#[ignore = "needs two builds of walrelay in WALRELAY_THIS and WALRELAY_OTHER"]
async fn two_versions_drain_a_backlog() {
    const EVENTS: u64 = 900_000;
    let builds = ["WALRELAY_OTHER", "WALRELAY_THIS"].map(|name| std::env::var(name).expect(name));
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..5 {
        for (build, took) in builds.iter().zip(&mut took) {
            let mut fixture = Fixture::bare().await;
            fixture.setup().await;
            for part in 0..30 {
                let first = part * EVENTS / 30;
                fixture.insert(first + 1, first + EVENTS / 30).await;
            }
            let begun = std::time::Instant::now();
            let relay = fixture.run_by(build, &["run"]);
            while fixture.message_count().await < EVENTS {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            took.push(begun.elapsed());
            relay.stop().await;
            eprintln!("round {round}: {build} {:?}", begun.elapsed());
            fixture
                .walrelay(&["teardown", "--yes", "--drop-stream"])
                .await;
        }
    }
    let [other, this] = took.map(|mut took| {
        took.sort();
        took[took.len() / 2].as_secs_f64()
    });
    eprintln!(
        "other {other:.2} s, this {this:.2} s: {:.2} times as fast",
        other / this
    );
}
