//! Chaos among the instances of an outbox with shares: any of them dies or freezes at any time, and comes back.
//!
//! In: a seed, a time (`make chaos LANE=shares`, or `LANE=reshard`). Out: the verdict, in which the order is that of each aggregate, and for how long a
//! share had no owner at most: a slot that nobody reads, or that a frozen process holds.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use walrelay::local::ServerBinaries;

use crate::history::History;
use crate::process::Paused;
use crate::relay::{Environment, Relays};
use crate::servers::{Broker, Postgres};
use crate::strikes::span;
use crate::verdict::{self, Checker};
use crate::writer::{self, Writer};

const INSTANCES: usize = 3;
const SHARES: usize = 4;
/// With another number all the time, at most.
const SHARES_MAX: usize = 8;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

/// What a run is to be.
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    /// No share may be without an owner for longer.
    pub ownerless_max: Option<Duration>,
    /// The number of shares changes all the time, by a command that dies too.
    pub reshards: bool,
}

/// Runs until the time has passed, and judges.
pub async fn run(plan: &Plan, history: &Arc<History>) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let binaries = ServerBinaries::find()?;
    let postgres = Postgres::start(&binaries).await?;
    let broker = Broker::start(&binaries, false).await?;
    Writer::create_tables(&postgres.connect().await?).await?;
    // Only in one stream the order is seen of an aggregate that goes from one share to another.
    let own_streams = random.random_bool(0.5) && !plan.reshards;
    let environments: Vec<Environment> = (0..INSTANCES)
        .map(|place| environment(&postgres, &broker, place, own_streams, plan.shares()))
        .collect();
    let relays = Arc::new(Relays::new(environments, Arc::clone(history))?);
    relays.setup().await?;
    for place in 0..INSTANCES {
        relays.start(place)?;
    }
    let tending = tokio::spawn(Arc::clone(&relays).tend());
    let owners = Arc::new(Owners::new(plan.shares()));
    let watching = tokio::spawn(Arc::clone(&owners).watch(postgres.connect().await?));
    let mut writer = Writer::start(&postgres.url, random.random_range(300.0..900.0), plan.seed);
    history.note(format!("everything runs; a stream each: {own_streams}"));
    owners.are_known().await?;
    let enough = Arc::new(AtomicBool::new(false));
    let resharding = plan.reshards.then(|| {
        let random = StdRng::seed_from_u64(plan.seed + 1);
        let resharder = reshard(
            Arc::clone(&relays),
            Arc::clone(history),
            random,
            Arc::clone(&enough),
        );
        tokio::spawn(resharder)
    });
    while history.elapsed() < plan.time {
        strike(&relays, &owners, history, &mut random).await?;
        tokio::time::sleep(span(&mut random, 0..2_000)).await;
        ensure!(!watching.is_finished(), "nobody sees who has the shares");
        if let Some(failure) = relays.failure() {
            anyhow::bail!(failure);
        }
    }
    enough.store(true, Ordering::Relaxed);
    if let Some(resharding) = resharding {
        resharding.await.context("the resharding panicked")??;
    }
    writer.stop().await?;
    owners.done.store(true, Ordering::Relaxed);
    let ownerless = watching.await.context("the watch panicked")??;
    let client = postgres.connect().await?;
    let (ids, transactions) = writer::committed(&client).await?;
    let verdict = judged(&broker, own_streams, plan.shares(), &ids).await?;
    tending.abort();
    for place in 0..INSTANCES {
        relays.stop(place).await?;
    }
    for (kind, count) in history.faults() {
        history.note(format!("{count:>6}  {kind}"));
    }
    history.note(format!(
        "{transactions} transactions, {} events committed, {} in the stream; lost {}, doubled {}, reordered {}, phantom {}, altered {}; \
         no share was without an owner for more than {ownerless:?}",
        verdict.committed,
        verdict.in_the_stream,
        verdict.lost,
        verdict.doubled,
        verdict.reordered,
        verdict.phantom,
        verdict.altered
    ));
    for example in &verdict.examples {
        history.note(example);
    }
    ensure!(verdict.holds(), "the guarantee does not hold");
    if let Some(max) = plan.ownerless_max {
        ensure!(ownerless <= max, "a share had no owner for {ownerless:?}");
    }
    Ok(())
}

fn environment(
    postgres: &Postgres,
    broker: &Broker,
    place: usize,
    own_streams: bool,
    shares: usize,
) -> Environment {
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?application_name={}",
        postgres.port,
        name(place)
    );
    let mut environment = vec![
        ("WALRELAY_POSTGRES_URL", url),
        ("WALRELAY_NATS_URL", broker.url()),
        ("WALRELAY_HTTP_LISTEN", String::new()),
        ("WALRELAY_RELAY_SHARES", shares.to_string()),
        ("WALRELAY_RELAY_HOLD_BACK", "2s".to_owned()),
        ("WALRELAY_RELAY_SHUTDOWN_TIMEOUT", "3s".to_owned()),
    ];
    if own_streams {
        environment.extend([
            ("WALRELAY_NATS_STREAM", "OUTBOX_{share}".to_owned()),
            (
                "WALRELAY_NATS_SUBJECT",
                "outbox.{share}.{event_type}".to_owned(),
            ),
        ]);
    }
    environment.extend(broker.access.environment.iter().cloned());
    environment
}

fn name(place: usize) -> String {
    format!("instance-{place}")
}

impl Plan {
    /// How many there are at the beginning.
    fn shares(&self) -> usize {
        match self.reshards {
            true => SHARES_MAX,
            false => SHARES,
        }
    }
}

/// Changes the number of shares until it is enough, and lets the last change come to its end.
async fn reshard(
    relays: Arc<Relays>,
    history: Arc<History>,
    mut random: StdRng,
    enough: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    loop {
        let is_last = enough.load(Ordering::Relaxed);
        let shares = *["2", "4", "8"].choose(&mut random).context("some")?;
        let mut command = relays.command(0, "reshard");
        command.args(["--shares", shares, "--wait", "2min"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let dies = random.random_bool(0.4) && !is_last;
        if dies {
            let after = span(&mut random, 0..3_000);
            history.fault(
                "reshard dies",
                format!("to {shares} shares, after {after:?}"),
            );
            let mut child = command.spawn()?;
            tokio::time::sleep(after).await;
            child.kill().await?;
            continue;
        }
        history.fault("reshard", format!("to {shares} shares"));
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "reshard --shares {shares}: {said}");
        if is_last {
            return Ok(());
        }
        tokio::time::sleep(span(&mut random, 0..5_000)).await;
    }
}

/// One or two of the instances die, freeze or stop; the others are left to take over.
async fn strike(
    relays: &Relays,
    owners: &Owners,
    history: &History,
    random: &mut StdRng,
) -> anyhow::Result<()> {
    let mut places: Vec<usize> = (0..INSTANCES).collect();
    places.remove(random.random_range(0..INSTANCES));
    places.truncate(random.random_range(1..INSTANCES));
    let away = span(random, 0..8_000);
    match random.random_range(0..5) {
        0 | 1 => {
            history.fault("SIGKILL", format!("instances {places:?} die for {away:?}"));
            for place in &places {
                relays.kill(*place).await;
            }
            tokio::time::sleep(away).await;
        }
        2 | 3 => {
            history.fault(
                "SIGSTOP",
                format!("instances {places:?} freeze for {away:?}"),
            );
            let pids = places.iter().filter_map(|place| relays.pid(*place));
            let paused = Paused::new(pids.collect()).await;
            owners.freeze(&places);
            tokio::time::sleep(away).await;
            owners.thaw();
            drop(paused);
        }
        _ => {
            let place = *places.choose(random).context("there is one")?;
            history.fault("SIGTERM", format!("instance {place} is restarted"));
            relays.stop(place).await?;
        }
    }
    for place in places {
        relays.start(place)?;
    }
    Ok(())
}

/// Who has the shares.
struct Owners {
    shares: usize,
    /// Instances that hold what they have, and do nothing with it.
    frozen: Mutex<HashSet<String>>,
    all_known: AtomicBool,
    done: AtomicBool,
}

impl Owners {
    fn new(shares: usize) -> Owners {
        Owners {
            shares,
            frozen: Mutex::default(),
            all_known: AtomicBool::new(false),
            done: AtomicBool::new(false),
        }
    }

    fn freeze(&self, places: &[usize]) {
        let names = places.iter().map(|place| name(*place));
        *self.frozen.lock().expect("no holder panics") = names.collect();
    }

    fn thaw(&self) {
        self.frozen.lock().expect("no holder panics").clear();
    }

    async fn are_known(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !self.all_known.load(Ordering::Relaxed) {
            ensure!(begin.elapsed() < CATCH_UP_MAX, "the shares have no owners");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Looks until it is done; for how long a share had no owner at most, once each had its first.
    async fn watch(self: Arc<Owners>, client: Client) -> anyhow::Result<Duration> {
        let query = "SELECT s.slot_name::text, r.application_name FROM pg_replication_slots s \
                     LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid";
        let mut seen: HashMap<String, Instant> = HashMap::new();
        let mut longest = Duration::ZERO;
        while !self.done.load(Ordering::Relaxed) {
            for row in client.query(query, &[]).await? {
                let (slot, owner): (String, Option<String>) = (row.get(0), row.get(1));
                let frozen = self.frozen.lock().expect("no holder panics");
                let is_owned = owner.is_some_and(|owner| !frozen.contains(&owner));
                if let Some(last) = seen.get(&slot) {
                    longest = longest.max(last.elapsed());
                }
                if is_owned {
                    seen.insert(slot, Instant::now());
                }
            }
            self.all_known
                .fetch_or(seen.len() == self.shares, Ordering::Relaxed);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(longest)
    }
}

/// The verdict, once nothing is missing or that takes too long.
async fn judged(
    broker: &Broker,
    own_streams: bool,
    shares: usize,
    ids: &[uuid::Uuid],
) -> anyhow::Result<verdict::Verdict> {
    let removed = HashSet::new();
    let begin = Instant::now();
    loop {
        let mut checker = Checker::of_aggregates(ids, &removed);
        match own_streams {
            true => {
                for share in 0..shares {
                    let stream = format!("OUTBOX_{share}");
                    verdict::read(broker.connect().await?, &stream, &mut checker).await?;
                }
            }
            false => verdict::read(broker.connect().await?, "OUTBOX", &mut checker).await?,
        }
        let verdict = checker.finish();
        if verdict.lost == 0 || begin.elapsed() > CATCH_UP_MAX {
            return Ok(verdict);
        }
        tokio::time::sleep(LOOK_INTERVAL * 10).await;
    }
}
