//! `walrelay demo`: the guarantee, before one's eyes, in half a minute.
//!
//! In: nothing but the servers' executables. Out: a story in five acts and a verdict. Guarantee: exit code 0 only if
//! every committed event is in the stream once, unaltered and in commit order, and nothing else is; whatever happens,
//! nothing is left running.
//!
//! `demo/application.rs` is the sample application, `demo/relay.rs` the child process that is killed, `demo/watch.rs` looks at
//! the stream as it grows, `demo/verdict.rs` compares what the database committed with what the stream holds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use self::application::Application;
use self::narrator::{Narrator, grouped};
use self::relay::Relay;
use self::verdict::Verdict;
use self::watch::Watcher;
use super::exit::Exit;
use super::signals::{self, Hangup};
use crate::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};
use crate::nats::address::NatsAuth;
use crate::nats::settings::ConnectionSettings;
use crate::relay::settings::NatsSettings;

mod application;
mod narrator;
mod relay;
mod verdict;
mod watch;

/// How often a condition is looked at that has no event to wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long the application runs undisturbed, and how long relay and broker stay away: long enough to read along.
const CALM: Duration = Duration::from_secs(4);
const AWAY: Duration = Duration::from_secs(3);

/// Shortest time between two of the events shown: people read them; in a burst they would miss all but the first.
const LINE_INTERVAL: Duration = Duration::from_millis(280);
const LINE_INTERVAL_BURST: Duration = Duration::from_millis(40);

/// How long catching up may take before the demo gives up; it takes well under a second on anything.
const CATCH_UP_MAX: Duration = Duration::from_secs(20);

/// `[relay] hold_back` of the demo: long enough to be seen, short enough to be waited for.
const HOLD_BACK: &str = "2s";

const EXAMPLES: &str = "\
Needs Postgres 18 and nats-server 2.14 or newer, from PATH or from `make servers`; starts its
own on free ports in temporary folders, and touches no other. `make demo` does all of it.

Examples:
  walrelay demo                   the story
  walrelay demo --json | jq       the verdict as data; the story goes to standard error

Exit code 0: the verdict holds. 1: it does not, or the demo was stopped before it.";

/// See it work: real servers, a sample application, a killed relay, a killed broker, a verdict.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print the verdict as one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// Plays the demo. It takes no configuration: it has servers of its own.
///
/// # Errors
/// Where a server or the relay does not start, or ends when it should not; all of it is stopped then.
pub async fn execute(args: Args) -> Result<Exit, anyhow::Error> {
    let narrator = Narrator::new(args.json);
    let mut shutdown = signals::listen(Hangup::Stops)?;
    let verdict = tokio::select! {
        played = play(narrator) => played?,
        () = shutdown.wait() => {
            // Servers, relay and application are owned by the future that was just dropped, and went with it.
            narrator.say("Stopped before the verdict. Nothing is left running.");
            return Ok(Exit::Failed);
        }
    };
    if args.json {
        let json = serde_json::to_string(&verdict).context("cannot write the verdict")?;
        // The exit code is the verdict's, whether or not somebody reads this.
        let _ = super::stdout::write(&format!("{json}\n"));
    }
    Ok(if verdict.holds() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// What the acts work with.
struct Stage {
    narrator: Narrator,
    // Dropped in this order: who depends on the servers goes first.
    application: Application,
    watcher: Watcher,
    relay: Relay,
    admin: Client,
    nats_settings: NatsSettings,
    nats: LocalNats,
    /// From commit to stream while nothing was disturbed: median and 99th percentile.
    latency_ms: [f64; 2],
    _postgres: LocalPostgres,
}

async fn play(narrator: Narrator) -> anyhow::Result<Verdict> {
    let mut stage = set_the_stage(narrator).await?;
    calm(&mut stage).await?;
    kill_the_relay(&mut stage).await?;
    kill_the_broker(&mut stage).await?;
    let verdict = settle(&mut stage).await?;
    narrator.verdict(&verdict);
    Ok(verdict)
}

async fn set_the_stage(narrator: Narrator) -> anyhow::Result<Stage> {
    narrator.act(1, "A database, a broker, and walrelay between them");
    let binaries = ServerBinaries::find()?;
    // Only for the latency from commit to stream.
    let settings = vec![("track_commit_timestamp".to_owned(), "on".to_owned())];
    let options = PostgresOptions {
        settings,
        ..PostgresOptions::default()
    };
    let postgres = LocalPostgres::start(&binaries, options).await?;
    let nats = LocalNats::start(&binaries, NatsOptions::default()).await?;
    let database_url = postgres.url("postgres");
    let admin = postgres.connect("postgres").await?;
    let version: String = admin.query_one("show server_version", &[]).await?.get(0);
    narrator.say(&format!(
        "Postgres {version} on port {}, nats-server on port {}.",
        postgres.port(),
        nats.port()
    ));

    application::create_tables(&admin).await?;
    let mut relay = Relay::new(&database_url, &nats.url(), HOLD_BACK)?;
    relay.setup().await?;
    narrator.say("`walrelay setup`: made the publication, the slot and the stream OUTBOX.");
    relay.start()?;
    narrator.say(&format!(
        "`walrelay run`: process {}.",
        relay.pid().unwrap_or_default()
    ));

    let nats_settings = NatsSettings {
        connection: ConnectionSettings::new(vec![nats.url().parse()?], NatsAuth::None),
        stream: "OUTBOX".to_owned(),
        subject: "outbox.{event_type}".parse()?,
        shared: false,
        further_subjects: Vec::new(),
        neighbours: Vec::new(),
    };
    let watcher = Watcher::start(&nats_settings, narrator).await?;
    let mut clients = Vec::new();
    for _ in 0..application::SESSIONS {
        clients.push(postgres.connect("postgres").await?);
    }
    let application = Application::new(clients);
    Ok(Stage {
        narrator,
        application,
        watcher,
        relay,
        admin,
        nats_settings,
        nats,
        latency_ms: [f64::NAN; 2],
        _postgres: postgres,
    })
}

async fn calm(stage: &mut Stage) -> anyhow::Result<()> {
    let narrator = stage.narrator;
    narrator.act(
        2,
        "A sample application for teaching publishes lessons; some users want to be forgotten",
    );
    narrator.say(&format!(
        "{} sessions commit at once: one row or hundreds, some rolled back, some to a savepoint.",
        application::SESSIONS
    ));
    narrator.say("A few of the events, as they arrive in the stream:");
    narrator.heading();
    stage.watcher.show(12, LINE_INTERVAL);
    stage.application.start();
    stage.run_for(CALM).await?;
    stage.latency_ms = stage.watcher.latency_ms(&stage.admin).await?;
    let [median, most] = stage.latency_ms;
    narrator.say("The latency above counts from the event, so that its transaction is part of it.");
    narrator.say(&format!(
        "From the commit to the stream: half within {median:.1} ms, 99 of 100 within {most:.1} ms."
    ));
    Ok(())
}

async fn kill_the_relay(stage: &mut Stage) -> anyhow::Result<()> {
    let narrator = stage.narrator;
    narrator.act(3, "kill -9 walrelay");
    let pid = stage.relay.pid().unwrap_or_default();
    stage.relay.kill().await?;
    let before = stage.application.tally().events;
    narrator.say(&format!(
        "SIGKILL to process {pid}, in the middle of its work. The application goes on committing."
    ));
    stage.run_for(AWAY).await?;
    let missed = stage.application.tally().events - before;
    narrator.say(&format!(
        "{} events committed that nobody relays. `walrelay run`,",
        grouped(missed)
    ));
    narrator.say("and kill -9 again as soon as the first of them arrive, and `walrelay run`:");
    narrator.heading();
    stage.watcher.show(4, LINE_INTERVAL_BURST);
    let seen = stage.watcher.events();
    stage.relay.start()?;
    stage.wait_for_events(seen + 1).await?;
    stage.relay.kill().await?;
    let begin = Utc::now();
    stage.relay.start()?;
    let caught_up = stage.catch_up().await?;
    narrator.say(&format!(
        "Process {} found its place in the stream and caught up {:.2} s after its start.",
        stage.relay.pid().unwrap_or_default(),
        (caught_up - begin).as_seconds_f64()
    ));
    stage.run_for(AWAY / 2).await
}

async fn kill_the_broker(stage: &mut Stage) -> anyhow::Result<()> {
    let narrator = stage.narrator;
    narrator.act(4, "kill -9 nats-server");
    let pid = stage.nats.pid().unwrap_or_default();
    stage.nats.kill();
    let before = stage.application.tally().events;
    narrator.say(&format!(
        "SIGKILL to process {pid}. The application does not notice; nobody touches the relay."
    ));
    stage.run_for(AWAY).await?;
    let missed = stage.application.tally().events - before;
    narrator.say(&format!(
        "{} events committed. The broker comes back:",
        grouped(missed)
    ));
    narrator.heading();
    stage.watcher.show(4, LINE_INTERVAL_BURST);
    let begin = Utc::now();
    stage.nats.start_again().await?;
    let caught_up = stage.catch_up().await?;
    narrator.say(&format!(
        "The relay connected again by itself and caught up {:.2} s after the broker's restart began.",
        (caught_up - begin).as_seconds_f64()
    ));
    stage.run_for(AWAY / 2).await
}

async fn settle(stage: &mut Stage) -> anyhow::Result<Verdict> {
    let narrator = stage.narrator;
    narrator.act(5, "The books");
    stage.application.stop().await?;
    // The flushed position: what is only written the server sends to nobody.
    let server_lsn: PgLsn = stage
        .admin
        .query_one("select pg_current_wal_flush_lsn()", &[])
        .await?
        .get(0);
    stage.catch_up().await?;
    narrator.say(
        "The application has stopped; every commit of its database is compared with the stream.",
    );
    narrator.say(&format!(
        "The confirmed LSN follows {HOLD_BACK} behind the acks (180s by default), since JetStream acks before it syncs."
    ));
    let confirmed_lsn = stage.wait_for_confirmation(server_lsn).await?;
    let exit_code = stage.relay.stop().await?;
    if exit_code != Some(0) {
        bail!(
            "`walrelay run` ended with {exit_code:?} after SIGTERM:\n{}",
            stage.relay.log_tail()
        );
    }
    let committed = verdict::committed(&stage.admin).await?;
    let stored = verdict::stored(&stage.nats_settings).await?;
    let tally = stage.application.tally();
    Ok(Verdict::new(
        &committed,
        &stored,
        tally,
        [confirmed_lsn, server_lsn],
        stage.latency_ms,
    ))
}

impl Stage {
    /// Lets the application run, and notices at once what should not happen meanwhile.
    async fn run_for(&mut self, span: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + span;
        while Instant::now() < end {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.check().await?;
        }
        Ok(())
    }

    /// Waits until all that was committed up to now was seen in the stream, and says when the broker had it.
    async fn catch_up(&mut self) -> anyhow::Result<DateTime<Utc>> {
        let wanted = self.application.tally().events;
        self.wait_for_events(wanted).await?;
        self.watcher.show(0, LINE_INTERVAL);
        self.watcher
            .stored_at(wanted)
            .context("the stream is empty")
    }

    async fn wait_for_events(&mut self, wanted: u64) -> anyhow::Result<()> {
        let end = Instant::now() + CATCH_UP_MAX;
        while self.watcher.events() < wanted {
            if Instant::now() > end {
                bail!(
                    "only {} of {wanted} events reached the stream within {CATCH_UP_MAX:?}; the relay says:\n{}",
                    self.watcher.events(),
                    self.relay.log_tail()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.check().await?;
        }
        Ok(())
    }

    /// Waits until the slot is confirmed up to `server_lsn`; what it is confirmed to when the time is up otherwise.
    async fn wait_for_confirmation(&mut self, server_lsn: PgLsn) -> anyhow::Result<PgLsn> {
        let end = Instant::now() + CATCH_UP_MAX;
        loop {
            let sql =
                "select confirmed_flush_lsn from pg_replication_slots where slot_type = 'logical'";
            let confirmed_lsn: PgLsn = self.admin.query_one(sql, &[]).await?.get(0);
            if confirmed_lsn >= server_lsn || Instant::now() > end {
                return Ok(confirmed_lsn);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.check().await?;
        }
    }

    async fn check(&mut self) -> anyhow::Result<()> {
        self.relay.check()?;
        self.application.check().await?;
        self.watcher.check().await
    }
}
