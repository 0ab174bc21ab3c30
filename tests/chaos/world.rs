//! All that runs: servers, proxies, relays, the writer; and what must hold of it when nothing is broken.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::JoinHandle;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;
use walrelay::local::ServerBinaries;
use walrelay::nats::stream::{self, StreamPlan, StreamSettings};
use walrelay::pipeline::dead_letter;
use walrelay::pipeline::shared_end_search::fence_subject;

use crate::history::History;
use crate::others::Others;
use crate::proxy::{Mode, Proxy};
use crate::relay::{Environment, Relays};
use crate::secure;
use crate::servers::{Broker, Postgres};
use crate::verdict::id_of;
use crate::writer::Writer;

pub const SLOT: &str = "walrelay";
pub const STREAM: &str = "OUTBOX";
/// How long the relay may take to catch up once nothing is broken any more.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How far from the stream's end the last event may stand: foreign messages may stand behind it.
const SEARCH_MAX: u64 = 1_000;

/// Everything.
pub struct World {
    // Dropped in this order: who depends on the servers goes first.
    pub writer: Writer,
    pub others: Option<Others>,
    pub relays: Arc<Relays>,
    tending: JoinHandle<()>,
    /// Of each place for a relay.
    pub links: [Links; 2],
    pub broker: Broker,
    pub postgres: Postgres,
    pub history: Arc<History>,
    pub hold_back: Duration,
    pub lane: Lane,
    pub replicas: usize,
    /// `CHAOS_ONLY`: one kind of attack alone, for the person who looks for the shortest scenario.
    pub only: String,
    /// Ids that the test itself removed from the stream.
    pub removed: Mutex<HashSet<Uuid>>,
    pub caught_up_max: Mutex<Duration>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tending.abort();
    }
}

/// How the relay can publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Fast ingest into a stream of its own.
    Fast,
    /// Ordinary publishes, each expecting the one before, into a stream of its own.
    Chain,
    /// Atomic batches into a stream that others write to.
    Shared,
}

/// What differs from seed to seed.
#[derive(Debug, Clone)]
pub struct Shape {
    pub seed: u64,
    pub cluster: bool,
    pub events_per_second: f64,
    pub window_messages: u32,
    pub ack_timeout: Duration,
    /// `relay.hold_back`: so much the broker may lose.
    pub hold_back: Duration,
    pub lane: Lane,
    /// Of the streams.
    pub replicas: usize,
}

/// How a relay reaches the servers.
pub struct Links {
    pub postgres: Proxy,
    /// One for each node.
    pub broker: Vec<Proxy>,
}

impl Links {
    async fn start(postgres: &Postgres, broker: &Broker) -> anyhow::Result<Links> {
        let mut links = Links {
            postgres: Proxy::start(postgres.port).await?,
            broker: Vec::new(),
        };
        for port in &broker.ports {
            links.broker.push(Proxy::start(*port).await?);
        }
        Ok(links)
    }

    pub fn all(&self) -> impl Iterator<Item = &Proxy> {
        self.broker.iter().chain([&self.postgres])
    }

    fn environment(&self, shape: &Shape) -> Environment {
        let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
        let mut urls: Vec<String> = self
            .broker
            .iter()
            .map(|proxy| format!("nats://127.0.0.1:{}", proxy.port()))
            .collect();
        // A relay takes the first that answers, and a stream without replicas often lives on the first node.
        let first = shape.seed as usize % urls.len();
        urls.rotate_left(first);
        let postgres = format!(
            "postgres://postgres@127.0.0.1:{}/postgres?connect_timeout=3{}",
            self.postgres.port(),
            match secure::is_wanted() {
                true => "&channel_binding=require",
                false => "",
            }
        );
        let shared = shape.lane == Lane::Shared;
        vec![
            ("WALRELAY_POSTGRES_URL", postgres),
            ("WALRELAY_NATS_URL", urls.join(",")),
            ("WALRELAY_NATS_CONNECT_TIMEOUT", "2s".to_owned()),
            ("WALRELAY_NATS_SHARED", shared.to_string()),
            ("WALRELAY_HTTP_LISTEN", String::new()),
            ("WALRELAY_RELAY_HOLD_BACK", milliseconds(shape.hold_back)),
            ("WALRELAY_RELAY_BACKOFF_MAX", "1s".to_owned()),
            ("WALRELAY_RELAY_STATUS_INTERVAL", "1s".to_owned()),
            (
                "WALRELAY_RELAY_ACK_TIMEOUT",
                milliseconds(shape.ack_timeout),
            ),
            (
                "WALRELAY_RELAY_WINDOW_MESSAGES",
                shape.window_messages.to_string(),
            ),
            ("WALRELAY_RELAY_SHUTDOWN_TIMEOUT", "3s".to_owned()),
        ]
    }
}

impl World {
    pub async fn start(shape: &Shape, history: Arc<History>) -> anyhow::Result<World> {
        let mut binaries = ServerBinaries::find()?;
        if secure::is_wanted() {
            binaries = binaries.with_postgres_tls()?;
        }
        let postgres = Postgres::start(&binaries).await?;
        let broker = Broker::start(&binaries, shape.cluster).await?;
        let links = [
            Links::start(&postgres, &broker).await?,
            Links::start(&postgres, &broker).await?,
        ];
        Writer::create_tables(&postgres.connect().await?).await?;
        create_streams(&broker, shape).await?;
        let environments = [0, 1].map(|place: usize| {
            let mut environment = links[place].environment(shape);
            environment.extend(broker.access.environment.iter().cloned());
            environment
        });
        let relays = Arc::new(Relays::new(environments.to_vec(), Arc::clone(&history))?);
        relays.setup().await?;
        relays.start(0)?;
        let tending = tokio::spawn(Arc::clone(&relays).tend());
        let writer = Writer::start(&postgres.url, shape.events_per_second, shape.seed);
        let others = (shape.lane == Lane::Shared).then(|| {
            Others::start(
                broker.url(),
                broker.access.clone(),
                Arc::clone(&writer.gate),
            )
        });
        Ok(World {
            writer,
            others,
            relays,
            tending,
            links,
            broker,
            postgres,
            history,
            hold_back: shape.hold_back,
            lane: shape.lane,
            replicas: shape.replicas,
            only: std::env::var("CHAOS_ONLY").unwrap_or_default(),
            removed: Mutex::default(),
            caught_up_max: Mutex::default(),
        })
    }

    /// # Errors
    /// A relay ended as it should not have.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.relays.failure() {
            Some(failure) => bail!(failure),
            None => Ok(()),
        }
    }

    /// All servers and links as they should be, and a relay that runs.
    pub async fn heal(&self) -> anyhow::Result<()> {
        for links in &self.links {
            links.all().for_each(|proxy| proxy.set(Mode::Pass));
        }
        self.postgres.start_again().await?;
        for node in 0..self.broker.size() {
            self.broker.start_again(node).await?;
        }
        if !self.relays.is_wanted(0) && !self.relays.is_wanted(1) {
            self.relays.start(0)?;
        }
        self.check()
    }

    /// With the writer at rest and nothing broken: waits until the last event that was committed is in the stream.
    ///
    /// # Errors
    /// It is not there after [`CATCH_UP_MAX`].
    pub async fn wait_until_caught_up(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        let last = loop {
            match self.last_committed().await {
                Ok(last) => break last,
                Err(error) if begin.elapsed() > CATCH_UP_MAX => {
                    return Err(error.context("cannot ask the database"));
                }
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        };
        let Some(last) = last else { return Ok(()) };
        let mut state = String::new();
        while begin.elapsed() < CATCH_UP_MAX {
            self.check()?;
            match self.end_of_stream(last).await {
                Ok(true) => {
                    let mut most = self.caught_up_max.lock().expect("no holder panics");
                    *most = (*most).max(begin.elapsed());
                    return Ok(());
                }
                Ok(false) => "it is not there".clone_into(&mut state),
                Err(error) => state = format!("{error:#}"),
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        bail!(
            "{CATCH_UP_MAX:?} after everything was healed, event {last} is not in the stream: {state}"
        )
    }

    async fn last_committed(&self) -> anyhow::Result<Option<Uuid>> {
        let client = self.postgres.connect().await?;
        let sql = "select event_ids[cardinality(event_ids)] from ledger order by commit_number desc limit 1";
        Ok(client.query_opt(sql, &[]).await?.map(|row| row.get(0)))
    }

    /// Whether the event stands near the stream's end.
    async fn end_of_stream(&self, id: Uuid) -> anyhow::Result<bool> {
        let client = self.broker.connect().await?;
        let mut stream = async_nats::jetstream::new(client)
            .get_stream(STREAM)
            .await?;
        let last = stream.info().await?.state.last_sequence;
        for sequence in (last.saturating_sub(SEARCH_MAX) + 1..=last).rev() {
            let Ok(message) = stream.get_raw_message(sequence).await else {
                continue;
            };
            if let Some(found) = id_of(&message.payload) {
                return Ok(
                    found == id || self.removed.lock().expect("no holder panics").contains(&id)
                );
            }
        }
        Ok(false)
    }

    /// Waits until the slot is confirmed up to where the server is now. The writer must have stopped.
    ///
    /// # Errors
    /// It is not within the hold-back and [`CATCH_UP_MAX`].
    pub async fn wait_for_confirmation(&self) -> anyhow::Result<[PgLsn; 2]> {
        let client = self.postgres.connect().await?;
        let server_lsn: PgLsn = client
            .query_one("select pg_current_wal_flush_lsn()", &[])
            .await?
            .get(0);
        let begin = Instant::now();
        loop {
            self.check()?;
            let sql = "select confirmed_flush_lsn from pg_replication_slots where slot_name = $1";
            let confirmed_lsn: PgLsn = client.query_one(sql, &[&SLOT]).await?.get(0);
            if confirmed_lsn >= server_lsn {
                return Ok([confirmed_lsn, server_lsn]);
            }
            if begin.elapsed() > self.hold_back + CATCH_UP_MAX {
                bail!(
                    "the slot is confirmed up to {confirmed_lsn}, the server stands at {server_lsn}"
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// As `walrelay setup` does, but with three replicas in a cluster, and without fast ingest where it is not wanted.
async fn create_streams(broker: &Broker, shape: &Shape) -> anyhow::Result<()> {
    let (lane, num_replicas) = (shape.lane, shape.replicas);
    let is_shared = lane == Lane::Shared;
    let fence = is_shared.then(|| fence_subject(STREAM, SLOT));
    let own = ["outbox.>".to_owned(), dead_letter::subject(SLOT)];
    let subjects: Vec<String> = own.into_iter().chain(fence).collect();
    let settings = StreamSettings {
        name: STREAM.to_owned(),
        subjects: subjects.clone(),
        subjects_to_create: subjects,
        slot: SLOT.to_owned(),
        num_replicas,
        shared: is_shared,
    };
    let begin = Instant::now();
    loop {
        let result = async {
            let client = broker.admin().await?;
            for plan in [
                stream::plan(&client, &settings).await?,
                stream::plan_lane_records(&client, num_replicas).await?,
            ] {
                if let StreamPlan::Create(mut config) = plan {
                    config.allow_batch_publish &= lane != Lane::Chain;
                    stream::create(&client, &config).await?;
                }
            }
            anyhow::Ok(())
        };
        match result.await {
            Ok(()) => return Ok(()),
            // A cluster needs a moment after its election.
            Err(error) if begin.elapsed() > CATCH_UP_MAX => {
                return Err(error).context("cannot create the streams");
            }
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}
