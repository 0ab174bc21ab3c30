//! Chaos: real servers, the built relay, and everything dies at random, for seconds or for hours.
//!
//! In: a seed, how many minutes, one nats-server or a cluster of three, and which way of publishing
//! (`make chaos MINUTES=30 SEED=7 CLUSTER=1 LANE=shared`; `LANE=shares` is about several instances).
//! Out: a verdict: lost, doubled, reordered, phantom, altered, all 0, or seed, history and the relays' logs in a
//! folder that stays. The seed decides which faults come in which order and for how long; what they meet is up to the
//! machine.
//!
//! Layout: `event` says by an id alone what is to be in the stream, `writer` commits, `servers`, `proxy` and `relay` are
//! what is attacked, `faults` and `strikes` attack, `others` write to a shared stream, `world` holds all of it, `verdict` compares.

mod event;
mod faults;
mod history;
mod others;
mod process;
mod proxy;
mod relay;
#[path = "../integration/support/secure.rs"]
mod secure;
mod servers;
mod shares;
mod strikes;
mod verdict;
mod world;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use history::History;
use relay::Sample;
use verdict::{Checker, Verdict};
use world::{Lane, STREAM, Shape, World};

/// A relay that keeps to its windows needs no more, in either kind of build.
const RSS_KILOBYTES_MAX: u64 = 128 * 1024;
/// After so many rounds without a fault it must catch up.
const ROUNDS_TO_CATCH_UP: u64 = 5;

/// Part of every test run: short, with a seed that stays.
#[tokio::test]
async fn a_short_while_of_chaos() {
    play(&Plan {
        seed: 101,
        time: Duration::from_secs(25),
        cluster: false,
        hold_back: Duration::from_secs(8),
        lane: Lane::Fast,
        replicas: 1,
    })
    .await;
}

/// The same among instances that share an outbox.
#[tokio::test]
async fn a_short_while_of_chaos_among_instances() {
    play_shares(&shares::Plan {
        seed: 103,
        time: Duration::from_secs(15),
        ownerless_max: None,
        reshards: true,
    })
    .await;
}

/// What a run is to be.
struct Plan {
    seed: u64,
    time: Duration,
    cluster: bool,
    hold_back: Duration,
    lane: Lane,
    replicas: usize,
}

/// As long as wanted: `CHAOS_MINUTES`, `CHAOS_SEED`, `CHAOS_CLUSTER`, `CHAOS_REPLICAS`, `CHAOS_LANE`, which `make chaos` sets.
#[tokio::test]
#[ignore = "takes minutes to hours: make chaos"]
async fn a_long_while_of_chaos() {
    let number = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let parsed = |name, text: String| -> f64 {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
    };
    let minutes = number("CHAOS_MINUTES").map_or(3.0, |text| parsed("CHAOS_MINUTES", text));
    let seed = number("CHAOS_SEED").map_or_else(
        || rand::rng().random_range(1..1_000_000),
        |text| parsed("CHAOS_SEED", text) as u64,
    );
    let cluster = number("CHAOS_CLUSTER").is_some_and(|text| text != "0");
    let replicas = number("CHAOS_REPLICAS").map_or(if cluster { 3 } else { 1 }, |text| {
        parsed("CHAOS_REPLICAS", text) as usize
    });
    let lane = match number("CHAOS_LANE").as_deref() {
        None | Some("fast") => Lane::Fast,
        Some("chain") => Lane::Chain,
        Some("shared") => Lane::Shared,
        Some(lane @ ("shares" | "reshard")) => {
            play_shares(&shares::Plan {
                seed,
                time: Duration::from_secs_f64(minutes * 60.0),
                ownerless_max: Some(Duration::from_secs(5)),
                reshards: lane == "reshard",
            })
            .await;
            return;
        }
        Some(other) => panic!("CHAOS_LANE={other} is none of fast, chain, shared, shares, reshard"),
    };
    play(&Plan {
        seed,
        time: Duration::from_secs_f64(minutes * 60.0),
        cluster,
        hold_back: Duration::from_secs(20),
        lane,
        replicas,
    })
    .await;
}

/// Runs until the time has passed, then heals everything and judges.
async fn play(plan: &Plan) {
    let seed = plan.seed;
    let size = match (plan.cluster, plan.replicas) {
        (false, _) => "single",
        (true, 1) => "cluster-r1",
        (true, _) => "cluster",
    };
    let name = format!("chaos-{seed}-{size}-{:?}", plan.lane).to_lowercase();
    recorded(&name, seed, async |history| run(plan, history).await).await;
}

async fn play_shares(plan: &shares::Plan) {
    let name = format!("chaos-{}-shares", plan.seed);
    recorded(&name, plan.seed, async |history| {
        shares::run(plan, history).await
    })
    .await;
}

/// Keeps the history of a run in a folder of this name, and fails where the run does.
async fn recorded(
    name: &str,
    seed: u64,
    run: impl AsyncFnOnce(&Arc<History>) -> anyhow::Result<()>,
) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for the logs");
    let history = Arc::new(History::new(&folder).expect("a file for the history"));
    let failure = tokio::select! {
        played = run(&history) => played.err(),
        _ = tokio::signal::ctrl_c() => Some(anyhow::anyhow!("stopped by Ctrl-C")),
    };
    let _ = std::fs::remove_file(folder.join("walrelay"));
    if let Some(failure) = failure {
        history.note(format!("FAILED: {failure:#}"));
        panic!(
            "seed {seed}: {failure:#}\nhistory and logs: {}",
            folder.display()
        );
    }
}

async fn run(plan: &Plan, history: &Arc<History>) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let shape = Shape {
        seed: plan.seed,
        cluster: plan.cluster,
        hold_back: plan.hold_back,
        lane: plan.lane,
        replicas: plan.replicas,
        events_per_second: random.random_range(300.0..900.0),
        window_messages: [8192, 8192, 1_000, 64, 1][random.random_range(0..5)],
        ack_timeout: Duration::from_millis(random.random_range(1_000..5_000)),
    };
    history.note(format!("{shape:?}"));
    let mut world = World::start(&shape, Arc::clone(history)).await?;
    history.note("everything runs");
    let result = rounds(&world, plan.time, &mut random).await;
    let result = match result {
        Ok(()) => judge(&mut world).await,
        Err(error) => Err(error),
    };
    if result.is_err() {
        history.note(format!(
            "Postgres' log:\n{}",
            world.postgres.log_tail().await
        ));
        for node in 0..world.broker.size() {
            history.note(format!(
                "node {node}'s log:\n{}",
                world.broker.log_tail(node).await
            ));
        }
    }
    result
}

async fn rounds(world: &World, time: Duration, random: &mut StdRng) -> anyhow::Result<()> {
    let mut number = 0;
    while world.history.elapsed() < time {
        number += 1;
        faults::round(world, random).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_200))).await;
        world.check()?;
        if number % ROUNDS_TO_CATCH_UP == 0 {
            let quiet = world.writer.gate.write().await;
            world.wait_until_caught_up().await?;
            world.history.note(format!("round {number}: caught up"));
            drop(quiet);
        }
    }
    Ok(())
}

async fn judge(world: &mut World) -> anyhow::Result<()> {
    world.heal().await?;
    world.others = None;
    world.writer.stop().await?;
    world.history.note("the writer has stopped");
    world.wait_until_caught_up().await?;
    world.history.note("caught up");
    let confirmed = world.wait_for_confirmation().await?;
    for place in 0..2 {
        world.relays.stop(place).await?;
    }
    world.check()?;
    let client = world.postgres.connect().await?;
    let (ids, transactions) = writer::committed(&client).await?;
    let removed = world.removed.lock().expect("no holder panics").clone();
    let mut checker = Checker::new(&ids, &removed);
    verdict::read(world.broker.connect().await?, STREAM, &mut checker).await?;
    let verdict = checker.finish();
    tell(world, &verdict, transactions, confirmed);
    anyhow::ensure!(verdict.holds(), "the guarantee does not hold");
    let peak = peak(&world.relays.samples());
    anyhow::ensure!(
        peak <= RSS_KILOBYTES_MAX,
        "a relay took {peak} kB of memory"
    );
    Ok(())
}

fn peak(samples: &[Sample]) -> u64 {
    samples
        .iter()
        .map(|sample| sample.kilobytes)
        .max()
        .unwrap_or(0)
}

fn tell(
    world: &World,
    verdict: &Verdict,
    transactions: u64,
    [confirmed_lsn, server_lsn]: [tokio_postgres::types::PgLsn; 2],
) {
    let history = &world.history;
    let mut total = 0;
    for (kind, count) in history.faults() {
        history.note(format!("{count:>6}  {kind}"));
        total += count;
    }
    history.note(format!(
        "{total:>6}  faults in {:.1} minutes",
        history.elapsed().as_secs_f64() / 60.0
    ));
    let tally = &world.writer.tally;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    history.note(format!(
        "{transactions} transactions committed, {} rolled back, {} to a savepoint, {} interrupted; {} events rolled back",
        count(&tally.rollbacks),
        count(&tally.savepoints),
        count(&tally.interrupted),
        count(&tally.rolled_back_events),
    ));
    history.note(format!(
        "{} events committed, {} messages in the stream, {} dead letters ({} expected), {} foreign, {} removed by the test",
        verdict.committed,
        verdict.in_the_stream,
        verdict.dead_letters,
        verdict.dead_letters_expected,
        verdict.foreign,
        verdict.removed,
    ));
    history.note(format!(
        "lost {}, doubled {}, reordered {}, phantom {}, altered {}",
        verdict.lost, verdict.doubled, verdict.reordered, verdict.phantom, verdict.altered
    ));
    for example in &verdict.examples {
        history.note(example);
    }
    history.note(format!(
        "confirmed LSN {confirmed_lsn}, the server's {server_lsn}"
    ));
    history.note(format!(
        "slowest catching up {:?}; relays that ended by themselves: {:?}",
        world.caught_up_max.lock().expect("no holder panics"),
        world.relays.ends()
    ));
    let samples = world.relays.samples();
    let middle = history.elapsed() / 2;
    let (first, second): (Vec<Sample>, Vec<Sample>) =
        samples.iter().partition(|sample| sample.at < middle);
    history.note(format!(
        "memory of the relay: peak {} kB in the first half, {} kB in the second, {} samples",
        peak(&first),
        peak(&second),
        samples.len()
    ));
}
