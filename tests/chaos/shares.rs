//! Chaos among the instances of an outbox with shares: any of them dies or freezes at any time, and comes back.
//!
//! In: a seed, a time (`make chaos LANE=shares`, or `LANE=reshard`). Out: the verdict, in which the order is that of each aggregate, and for how long a
//! share had no owner at most: a slot that nobody reads, or that a frozen process holds. A share counts from when it carries rows until its
//! slot is dropped. While the number of shares changes, 1 is among the numbers: the lane of all rows, which has instances of its own.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use walrelay::local::ServerBinaries;
use walrelay::nats::stream::{self, StreamPlan, StreamSettings};
use walrelay::pipeline::dead_letter;
use walrelay::pipeline::reshard::lanes_of;
use walrelay::pipeline::shared_end_search::fence_subject;

use crate::history::History;
use crate::process::Paused;
use crate::relay::{Environment, Relays};
use crate::servers::{Broker, Postgres};
use crate::strikes::span;
use crate::verdict::{self, Checker};
use crate::world::{SLOT, STREAM};
use crate::writer::{self, Writer};

/// With the shares' configuration.
const INSTANCES: usize = 3;
/// With that of the lane of all rows.
const UNDIVIDED_INSTANCES: usize = 2;
const SHARES: usize = 4;
/// With another number all the time, at most.
const SHARES_MAX: usize = 8;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Without a further event in the streams.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// A share that had no owner for longer is told of.
const GAP_TOLD: Duration = Duration::from_secs(2);

/// What a run is to be.
pub struct Plan {
    pub seed: u64,
    pub time: Duration,
    /// No share that carries rows may be without an owner for longer.
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
    if plan.reshards {
        create_stream(&broker).await?;
    }
    let environments: Vec<Environment> = (0..plan.instances())
        .map(|place| environment(&postgres, &broker, place, own_streams, plan))
        .collect();
    let relays = Arc::new(Relays::new(environments, Arc::clone(history))?);
    relays.setup().await?;
    for place in 0..plan.instances() {
        relays.start(place)?;
    }
    let tending = tokio::spawn(Arc::clone(&relays).tend());
    let owners = Arc::new(Owners::new(plan.shares()));
    let watch = Arc::clone(&owners).watch(postgres.connect().await?, Arc::clone(history));
    let watching = tokio::spawn(watch);
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
        strike(plan, &relays, &owners, history, &mut random).await?;
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
    for place in 0..plan.instances() {
        relays.stop(place).await?;
    }
    for (kind, count) in history.faults() {
        history.note(format!("{count:>6}  {kind}"));
    }
    history.note(format!(
        "{transactions} transactions, {} events committed, {} in the stream; lost {}, doubled {}, reordered {}, phantom {}, altered {}; \
         no share was without an owner for more than {:?}, and no slot that carries nothing for more than {:?}",
        verdict.committed,
        verdict.in_the_stream,
        verdict.lost,
        verdict.doubled,
        verdict.reordered,
        verdict.phantom,
        verdict.altered,
        ownerless.of_shares,
        ownerless.of_others
    ));
    for example in &verdict.examples {
        history.note(example);
    }
    ensure!(verdict.holds(), "the guarantee does not hold");
    if let Some(max) = plan.ownerless_max {
        ensure!(
            ownerless.of_shares <= max,
            "a share had no owner for {:?}",
            ownerless.of_shares
        );
    }
    Ok(())
}

/// One stream for all lanes there may be, before any of them is made.
async fn create_stream(broker: &Broker) -> anyhow::Result<()> {
    let slot = |part: Option<u32>| match part {
        Some(share) => format!("{SLOT}_{share}"),
        None => SLOT.to_owned(),
    };
    let lanes = lanes_of(1).chain(lanes_of(SHARES_MAX as u32));
    let mut subjects: Vec<String> = lanes
        .map(|part| dead_letter::subject(&slot(part)))
        .collect();
    subjects.extend(["outbox.>".to_owned(), fence_subject(STREAM, "*")]);
    let settings = StreamSettings {
        name: STREAM.to_owned(),
        subjects: subjects.clone(),
        subjects_to_create: subjects,
        slot: SLOT.to_owned(),
        num_replicas: 1,
        shared: true,
    };
    let client = broker.admin().await?;
    let StreamPlan::Create(config) = stream::plan(&client, &settings).await? else {
        anyhow::bail!("stream {STREAM} is there already");
    };
    stream::create(&client, &config).await?;
    Ok(())
}

fn environment(
    postgres: &Postgres,
    broker: &Broker,
    place: usize,
    own_streams: bool,
    plan: &Plan,
) -> Environment {
    let is_undivided = place >= INSTANCES;
    let shares = if is_undivided { 1 } else { plan.shares() };
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
    if plan.reshards {
        // One of several lanes in the stream, also while it is the only one.
        environment.push(("WALRELAY_NATS_SHARED", "true".to_owned()));
    }
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

    fn instances(&self) -> usize {
        match self.reshards {
            true => INSTANCES + UNDIVIDED_INSTANCES,
            false => INSTANCES,
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
        let shares = *["1", "2", "4", "8"].choose(&mut random).context("some")?;
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

/// One or two of the instances die, freeze or stop; of each configuration one is left to take over.
async fn strike(
    plan: &Plan,
    relays: &Relays,
    owners: &Owners,
    history: &History,
    random: &mut StdRng,
) -> anyhow::Result<()> {
    let mut places: Vec<usize> = (0..INSTANCES).collect();
    places.remove(random.random_range(0..INSTANCES));
    let mut undivided: Vec<usize> = (INSTANCES..plan.instances()).collect();
    if !undivided.is_empty() {
        undivided.remove(random.random_range(0..undivided.len()));
    }
    places.append(&mut undivided);
    places.shuffle(random);
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
    async fn watch(
        self: Arc<Owners>,
        client: Client,
        history: Arc<History>,
    ) -> anyhow::Result<Ownerless> {
        // pg_publication_tables fails where a publication goes meanwhile.
        let query = "SELECT s.slot_name::text, r.application_name, t.oid IS NOT NULL AND coalesce(pg_get_expr(t.prqual, t.prrelid), '') <> 'false' \
                     FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
                     LEFT JOIN pg_publication p ON p.pubname = s.slot_name LEFT JOIN pg_publication_rel t ON t.prpubid = p.oid";
        let mut slots: HashMap<String, Seen> = HashMap::new();
        let mut longest = Ownerless::default();
        while !self.done.load(Ordering::Relaxed) {
            let mut are_there = HashSet::new();
            for row in client.query(query, &[]).await? {
                let (slot, owner): (String, Option<String>) = (row.get(0), row.get(1));
                let carries: bool = row.get(2);
                let frozen = self.frozen.lock().expect("no holder panics").clone();
                let is_owned = owner.is_some_and(|owner| !frozen.contains(&owner));
                let begins = carries && self.all_known.load(Ordering::Relaxed);
                let seen = slots.get(&slot);
                if let Some(seen) = seen.filter(|seen| seen.carries == carries) {
                    let gap = seen.at.elapsed();
                    longest.note(gap, carries);
                    if is_owned && gap > GAP_TOLD {
                        history.note(format!("{slot} had no owner for {gap:?}"));
                    }
                }
                let is_other = seen.is_some_and(|seen| seen.carries != carries);
                if is_owned || is_other || (begins && seen.is_none()) {
                    let at = Instant::now();
                    slots.insert(slot.clone(), Seen { at, carries });
                }
                are_there.insert(slot);
            }
            // One of the same name later is another.
            slots.retain(|slot, _| are_there.contains(slot));
            self.all_known
                .fetch_or(slots.len() == self.shares, Ordering::Relaxed);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(longest)
    }
}

/// A slot, when it had an owner last, or when it began to need one.
struct Seen {
    at: Instant,
    carries: bool,
}

/// For how long there was no owner at most.
#[derive(Default)]
struct Ownerless {
    /// Of a slot whose publication carries rows.
    of_shares: Duration,
    /// Of one that is not a share yet, or no more.
    of_others: Duration,
}

impl Ownerless {
    fn note(&mut self, gap: Duration, carries: bool) {
        let longest = match carries {
            true => &mut self.of_shares,
            false => &mut self.of_others,
        };
        *longest = gap.max(*longest);
    }
}

/// The verdict, once nothing is missing or nothing more comes.
async fn judged(
    broker: &Broker,
    own_streams: bool,
    shares: usize,
    ids: &[uuid::Uuid],
) -> anyhow::Result<verdict::Verdict> {
    let removed = HashSet::new();
    let (mut stored, mut grown_at) = (0, Instant::now());
    loop {
        let mut checker = Checker::of_aggregates(ids, &removed);
        match own_streams {
            true => {
                for share in 0..shares {
                    let stream = format!("OUTBOX_{share}");
                    verdict::read(broker.connect().await?, &stream, &mut checker).await?;
                }
            }
            false => verdict::read(broker.connect().await?, STREAM, &mut checker).await?,
        }
        let verdict = checker.finish();
        if verdict.in_the_stream > stored {
            (stored, grown_at) = (verdict.in_the_stream, Instant::now());
        }
        if verdict.lost == 0 || grown_at.elapsed() > CATCH_UP_MAX {
            return Ok(verdict);
        }
        tokio::time::sleep(LOOK_INTERVAL * 10).await;
    }
}
