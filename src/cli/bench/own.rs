//! What the bench makes and removes: table, slot, publication, stream; and a relay on a thread of its own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::oneshot;

use crate::nats::admin::Admin;
use crate::nats::stream::{self, StreamPlan};
use crate::pipeline::begin::Begin;
use crate::pipeline::mapping::{MessageSettings, default_columns};
use crate::postgres::catalog::inspect;
use crate::postgres::client::connect;
use crate::postgres::findings::Refusals;
use crate::postgres::setup::{Wishes, apply, plan, teardown_plan};
use crate::postgres::unwritten::Unwritten;
use crate::relay::settings::Settings;
use crate::relay::{self, Outcome, Shutdown, ShutdownHandle};
use crate::table_name::TableName;

/// Slot, publication and table; the stream in capitals.
const NAME: &str = "walrelay_bench";
const STREAM: &str = "WALRELAY_BENCH";
/// By this comment the bench knows a table that it has made.
const MARK: &str = "made by walrelay bench, which removes it";
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Everything that is the bench's own.
pub(super) struct Own {
    pub(super) settings: Settings,
}

impl Own {
    /// Makes it all; what an interrupted bench has left is removed first.
    ///
    /// # Errors
    /// A table, slot, publication or stream of that name which the bench has not made.
    pub(super) async fn make(configured: &Settings) -> Result<Own, anyhow::Error> {
        let mut settings = configured.clone();
        settings.name = NAME.to_owned();
        settings.postgres.slot = NAME.to_owned();
        settings.postgres.publication = NAME.to_owned();
        settings.postgres.columns = default_columns();
        settings.postgres.extra_columns = Vec::new();
        settings.postgres.further = Vec::new();
        settings.message = MessageSettings::default();
        settings.postgres.table = TableName {
            schema: "public".to_owned(),
            table: NAME.to_owned(),
        };
        settings.nats.stream = STREAM.to_owned();
        settings.nats.subject = format!("{NAME}.{{event_type}}").parse()?;
        settings.nats.further_subjects = Vec::new();
        settings.nats.shared = false;
        // Its stream is gone right afterwards.
        settings.relay.hold_back = Duration::ZERO;
        let own = Own { settings };
        own.clear_leftovers().await?;
        let made = own.make_all().await;
        if made.is_err() {
            // What has been made so far; the error that matters is the first one.
            let _ = own.remove().await;
        }
        made?;
        Ok(own)
    }

    /// Refuses what is not the bench's, and removes what is.
    async fn clear_leftovers(&self) -> Result<(), anyhow::Error> {
        let client = connect(&self.settings.postgres.conninfo).await?;
        let found = client
            .query_opt(
                "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass($1)",
                &[&self.settings.postgres.table.to_string()],
            )
            .await?;
        let nats = Admin::connect(&self.settings.nats.connection).await?;
        let stream_exists = nats.jetstream().get_stream(STREAM).await.is_ok();
        match found {
            Some(row) if row.get::<_, Option<String>>(0).as_deref() == Some(MARK) => {
                self.remove().await
            }
            Some(_) => bail!(
                "table public.{NAME} exists and was not made by walrelay bench: rename it, or measure in another database"
            ),
            None if stream_exists => bail!(
                "stream {STREAM} exists, and its table does not: delete the stream if nobody needs it"
            ),
            None => {
                let slot = client
                    .query_opt(
                        "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1",
                        &[&NAME],
                    )
                    .await?;
                anyhow::ensure!(
                    slot.is_none(),
                    "slot {NAME} exists, and its table does not: drop the slot if nobody needs it"
                );
                Ok(())
            }
        }
    }

    async fn make_all(&self) -> Result<(), anyhow::Error> {
        let postgres = &self.settings.postgres;
        let client = connect(&postgres.conninfo).await?;
        let inspection = inspect(&client, postgres).await?;
        let steps = plan(&inspection, postgres, Wishes::default()).map_err(Refusals)?;
        for step in &steps {
            apply(&client, step)
                .await
                .with_context(|| format!("cannot make the {}: {}", step.part, step.sql))?;
            if step.part == crate::postgres::setup::Part::Table {
                let comment = format!("COMMENT ON TABLE {} IS '{MARK}'", postgres.table);
                client.batch_execute(&comment).await?;
            }
        }
        let made = inspect(&client, postgres).await?;
        if let Some(unwritten) = Unwritten::anew(&made, postgres)
            && let Some(sql) = unwritten.statement(Begin::At(unwritten.confirmed_lsn))
        {
            client.batch_execute(&sql).await?;
        }
        let nats = Admin::connect(&self.settings.nats.connection).await?;
        let wanted = self.settings.nats.stream_settings(NAME);
        let plans = [
            stream::plan(&nats, &wanted).await?,
            stream::plan_lane_records(&nats, wanted.num_replicas).await?,
        ];
        for plan in &plans {
            if let StreamPlan::Create(config) = plan {
                stream::create(&nats, config).await?;
            }
        }
        Ok(())
    }

    /// Removes it all.
    pub(super) async fn remove(&self) -> Result<(), anyhow::Error> {
        let postgres = &self.settings.postgres;
        let client = connect(&postgres.conninfo).await?;
        let inspection = inspect(&client, postgres).await?;
        let steps = teardown_plan(&inspection, postgres, true).map_err(Refusals)?;
        for step in &steps {
            apply(&client, step)
                .await
                .with_context(|| format!("cannot remove the {}: {}", step.part, step.sql))?;
        }
        let nats = Admin::connect(&self.settings.nats.connection).await?;
        stream::delete(&nats, STREAM).await?;
        // The lane's record in the stream that all lanes share; another lane's is not touched.
        stream::delete_lane_record(&nats, STREAM, NAME).await?;
        Ok(())
    }

    /// Waits until the stream holds so many messages.
    pub(super) async fn fills(
        &self,
        messages: u64,
        silence_max: Duration,
    ) -> Result<(), anyhow::Error> {
        let nats = Admin::connect(&self.settings.nats.connection).await?;
        let mut stream = nats.jetstream().get_stream(STREAM).await?;
        let (mut found, mut since) = (0, Instant::now());
        while found < messages {
            let now = stream.info().await?.state.messages;
            if now > found {
                (found, since) = (now, Instant::now());
            }
            anyhow::ensure!(
                since.elapsed() < silence_max,
                "{found} of {messages} events arrived, then none for {silence_max:?}"
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

/// A relay on a thread of its own, so that its CPU time can be told from the load's.
pub(super) struct RelayThread {
    shutdown: ShutdownHandle,
    ended: oneshot::Receiver<Result<Outcome, anyhow::Error>>,
    /// Of the thread, for /proc.
    thread_id: Option<i32>,
}

impl RelayThread {
    pub(super) fn start(settings: &Settings) -> Result<RelayThread, anyhow::Error> {
        let settings = settings.clone();
        let (handle, shutdown) = Shutdown::new();
        let (tell_end, ended) = oneshot::channel();
        let (tell_id, id) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("relay".into())
            .spawn(move || {
                let _ = tell_id.send(thread_id());
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let outcome = runtime
                    .context("the relay's runtime cannot start")
                    .and_then(|runtime| runtime.block_on(relay::run(&settings, None, shutdown)));
                let _ = tell_end.send(outcome);
            })
            .context("the relay's thread cannot start")?;
        Ok(RelayThread {
            shutdown: handle,
            ended,
            thread_id: id.recv().ok().flatten(),
        })
    }

    /// Its CPU time so far; `None` where the system does not tell.
    pub(super) fn cpu(&self) -> Option<Duration> {
        // proc_pid_schedstat: the first number is the time on a CPU, in ns.
        let text =
            std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread_id?))
                .ok()?;
        text.split_whitespace()
            .next()?
            .parse()
            .ok()
            .map(Duration::from_nanos)
    }

    pub(super) async fn stop(self) -> Result<(), anyhow::Error> {
        self.shutdown.stop();
        match self.ended.await.context("the relay panicked")?? {
            Outcome::Stopped => Ok(()),
            Outcome::Halted(halt) => bail!("the relay halted: {halt}"),
        }
    }
}

/// This thread's, where there is a /proc.
fn thread_id() -> Option<i32> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// The CPU time of a process so far; `None` where there is none, or no /proc.
pub(super) fn process_cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    // proc_pid_stat(5): utime and stime in ticks of 10 ms are the fields 14 and 15, the third is the first behind the name.
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}
