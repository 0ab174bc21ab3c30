//! What tests of several lanes, of dead letters, of streams made by hand and of clusters need beyond one fixture.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt as _;
use uuid::Uuid;
use walrelay::local::{LocalNats, LocalNatsCluster};

use crate::support::{Fixture, Relay, Stored, Writer, assert_exactly_once, eventually, uuid};

/// How long a reader may not see what the stream's leader has.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// A stream's own client.
pub(crate) fn jetstream(fixture: &Fixture) -> jetstream::Context {
    jetstream::new(fixture.nats.clone())
}

/// The lane's stream.
pub(crate) async fn stream_of(fixture: &Fixture) -> stream::Stream {
    let found = jetstream(fixture).get_stream(fixture.stream_name()).await;
    found.expect("the stream is there")
}

/// A stream of the lane's own on three nodes, and the rest of its set-up.
pub(crate) async fn set_up_on_three(fixture: &Fixture) {
    let subjects = [
        format!("{}.>", fixture.name),
        format!("walrelay.dead.{}", fixture.name),
    ];
    let config = by_hand(fixture.stream_name(), &subjects, 3);
    jetstream(fixture).create_stream(config).await.unwrap();
    fixture.setup().await;
}

/// A stream's configuration as a person would make it for these lanes.
pub(crate) fn by_hand(name: &str, subjects: &[String], replicas: usize) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: subjects.to_vec(),
        num_replicas: replicas,
        allow_atomic_publish: true,
        allow_batch_publish: true,
        ..stream::Config::default()
    }
}

/// The subjects of a lane in a shared stream.
pub(crate) fn subjects(fixture: &Fixture, stream: &str) -> Vec<String> {
    let name = &fixture.name;
    vec![
        format!("{name}.>"),
        format!("walrelay.dead.{name}"),
        format!("walrelay.fence.{stream}.{name}"),
        format!("walrelay.fence.{stream}.{name}-bulk"),
    ]
}

/// The ways of publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    FastIngest,
    Chain,
    Shared,
}

pub(crate) const LANES: [Lane; 3] = [Lane::FastIngest, Lane::Chain, Lane::Shared];

/// Sets the lane up to publish in this way.
pub(crate) async fn set_up(fixture: &mut Fixture, lane: Lane) {
    match lane {
        Lane::FastIngest => fixture.setup().await,
        Lane::Shared => share(&mut [fixture], 1).await,
        Lane::Chain => chain(fixture, 1).await,
    }
}

/// Makes the lane a stream of its own that takes no batches, and sets it up.
pub(crate) async fn chain(fixture: &Fixture, replicas: usize) {
    let name = &fixture.name;
    let subjects = [format!("{name}.>"), format!("walrelay.dead.{name}")];
    let config = stream::Config {
        allow_batch_publish: false,
        ..by_hand(fixture.stream_name(), &subjects, replicas)
    };
    let made = jetstream(fixture).create_stream(config).await;
    made.expect("the stream is made");
    fixture.setup().await;
}

/// Makes a stream that the lanes and the subject `foreign.>` of this name share, and sets the lanes up for it.
pub(crate) async fn share(fixtures: &mut [&mut Fixture], replicas: usize) {
    let stream = format!("SHARED_{}", fixtures[0].name);
    let mut held = vec![format!("foreign.{stream}.>")];
    for fixture in fixtures.iter_mut() {
        fixture.set("WALRELAY_NATS_STREAM", stream.as_str());
        fixture.set("WALRELAY_NATS_SHARED", "true");
        held.extend(subjects(fixture, &stream));
    }
    // A cluster may still take a node that is back for one that is away.
    eventually("the shared stream is made", async || {
        let config = by_hand(&stream, &held, replicas);
        let made = jetstream(fixtures[0]).create_stream(config).await;
        made.ok().map(|_| ())
    })
    .await;
    for fixture in fixtures {
        fixture.setup().await;
    }
}

/// Moves a lane onto a cluster of three, its stream and the lanes' records with three replicas.
pub(crate) async fn move_to_cluster(fixture: &mut Fixture, cluster: &LocalNatsCluster) {
    fixture.set("WALRELAY_NATS_URL", cluster.url());
    let urls: Vec<String> = cluster.nodes().iter().map(LocalNats::url).collect();
    let connected = async_nats::connect(urls).await;
    fixture.nats = connected.expect("the cluster is there");
    let records = stream::Config {
        max_messages_per_subject: 1,
        ..by_hand("WALRELAY", &["walrelay.lane.>".to_owned()], 3)
    };
    // The first stream of a young cluster may have to wait for its peers.
    eventually("the stream of the lanes' records is made", async || {
        let made = jetstream(fixture).create_stream(records.clone()).await;
        made.ok().map(|_| ())
    })
    .await;
}

/// How many events of the lane its stream holds; 0 also where it does not answer.
pub(crate) async fn event_count(fixture: &Fixture) -> u64 {
    let filter = format!("{}.>", fixture.name);
    // Nobody may answer while the stream has no leader.
    let Ok(stream) = jetstream(fixture).get_stream(fixture.stream_name()).await else {
        return 0;
    };
    let info = stream.info_with_subjects(filter).await;
    let Ok(subjects) = info else { return 0 };
    let counts: Vec<(String, usize)> = subjects.try_collect().await.unwrap_or_default();
    counts.iter().map(|(_, count)| *count as u64).sum()
}

/// Waits until the stream holds so many events of the lane.
pub(crate) async fn holds_events(fixture: &Fixture, count: u64) {
    let what = format!("{} has {count} events in its stream", fixture.name);
    eventually(what, async || {
        (event_count(fixture).await >= count).then_some(())
    })
    .await;
}

/// Waits until so many more events of the lane have come through.
pub(crate) async fn more_events(fixture: &Fixture, count: u64) {
    let now = eventually("the stream answers", async || {
        match event_count(fixture).await {
            0 => None,
            now => Some(now),
        }
    });
    holds_events(fixture, now.await + count).await;
}

/// The lane's events in the stream, without fences and other lanes'.
pub(crate) async fn events(fixture: &Fixture) -> Vec<Stored> {
    let root = format!("{}.", fixture.name);
    let mut stored = fixture.stored().await;
    stored.retain(|message| message.subject.starts_with(&root));
    stored
}

/// Stops the writer, waits until all has come through; the relay goes on.
///
/// # Panics
/// Unless each committed event is in the stream once, in commit order.
pub(crate) async fn judge(fixture: &Fixture, writer: Writer) {
    let committed = writer.stop(fixture).await;
    judge_events(fixture, &committed).await;
}

/// As [`judge`], with these events.
pub(crate) async fn judge_events(fixture: &Fixture, committed: &[Uuid]) {
    holds_events(fixture, committed.len() as u64).await;
    // In a cluster the reader's replica may be behind for a moment: once more where the end is missing.
    let begin = Instant::now();
    loop {
        let ids: Vec<Uuid> = events(fixture).await.iter().map(Stored::id).collect();
        if ids.last() == committed.last() || begin.elapsed() > READ_LIMIT {
            return assert_exactly_once(committed, &ids);
        }
    }
}

/// A relay with the events `1..=count` behind it.
pub(crate) async fn running(fixture: &mut Fixture, count: u64) -> Relay {
    let relay = fixture.run();
    fixture.insert(1, count).await;
    holds_events(fixture, count).await;
    relay
}

/// The events `1..=last` are in the stream, and the relay stops in good order.
pub(crate) async fn ends_well(fixture: &Fixture, relay: Relay, last: u64) {
    judge_events(fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

/// Waits until the relay logs `needle` behind the first `from` bytes of its log; what is there then.
pub(crate) async fn logs_from(relay: &mut Relay, from: usize, needle: &str) -> String {
    eventually(
        format!("{needle:?} in the log from {from} on"),
        async || {
            let log = relay.log();
            if log[from..].contains(needle) {
                return Some(log[from..].to_owned());
            }
            assert!(relay.runs(), "the relay ended without {needle:?}");
            None
        },
    )
    .await
}

/// What a relay that waits may cost, seen over a while of waiting.
pub(crate) struct Restraint {
    began: Instant,
    cpu_ticks: u64,
    log_bytes: usize,
}

/// Most lines that a relay logs while it comes to wait for one thing, however long it then waits: a stream may still take
/// some, and what ends an epoch and what keeps the next from beginning need a line each.
const LINES_MAX: usize = 8;
/// Most CPU time of a relay that waits, in a debug build: 30 ticks of 10 ms in a second.
const TICKS_PER_S_MAX: u64 = 30;

impl Restraint {
    /// Begins to look.
    pub(crate) fn of(relay: &Relay) -> Restraint {
        Restraint {
            began: Instant::now(),
            cpu_ticks: relay.cpu_ticks().unwrap_or(0),
            log_bytes: relay.log().len(),
        }
    }

    /// Lets `wait` pass, and judges.
    ///
    /// # Panics
    /// Where the relay spun or chattered.
    pub(crate) async fn keeps(self, relay: &Relay, wait: Duration) {
        tokio::time::sleep(wait.saturating_sub(self.began.elapsed())).await;
        let seconds = self.began.elapsed().as_secs() + 1;
        let ticks = relay.cpu_ticks().unwrap_or(0) - self.cpu_ticks;
        assert!(
            ticks <= TICKS_PER_S_MAX * seconds,
            "{ticks} ticks of CPU time in {seconds} s"
        );
        let log = relay.log();
        let log = &log[self.log_bytes..];
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines.len() <= LINES_MAX, "in {seconds} s:\n{log}");
        // Behind the time each is another: an attempt that ends as the one before is no news.
        let news: HashSet<&str> = lines
            .iter()
            .map(|line| line.split_once(' ').map_or(*line, |(_, news)| news))
            .collect();
        assert_eq!(news.len(), lines.len(), "in {seconds} s:\n{log}");
    }
}

/// The dead letters, once there are so many.
pub(crate) async fn letters(fixture: &Fixture, count: usize) -> Vec<Stored> {
    eventually(format!("{count} dead letters"), async || {
        let letters = of_kind(fixture, "dead-letter").await;
        (letters.len() >= count).then_some(letters)
    })
    .await
}

pub(crate) async fn of_kind(fixture: &Fixture, kind: &str) -> Vec<Stored> {
    let mut stored = fixture.stored().await;
    stored.retain(|message| message.kind.as_deref() == Some(kind));
    stored
}

/// Waits until nobody reads from the slot: a server process outlives its client a little.
pub(crate) async fn slot_is_free(fixture: &Fixture) {
    let sql = "SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = $1";
    eventually("the slot is free", async || {
        let row = fixture.sql.query_one(sql, &[&fixture.name]).await;
        let is_free: bool = row.expect("the slot is there").get(0);
        is_free.then_some(())
    })
    .await;
}
