//! A database with an outbox, a backlog in it, and any number of slots that all begin in front of it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tokio_postgres::Client;
use walrelay::outbox::SCHEMA_SQL;

use crate::child::Child;
use crate::servers::Servers;

/// A text like those of [`EVENT_BYTES`]: about 370 bytes once it stands in its envelope.
pub const PAYLOAD: &str = r#"{"title": "The water cycle", "number": 42, "lesson_id": "0192f7a0-0000-7000-8000-000000000001", "teacher_id": "0192f7a0-0000-7000-8000-000000000002"}"#;

const FILL: &str = "
CREATE PROCEDURE fill(events bigint, rows bigint, payload jsonb) LANGUAGE plpgsql AS $$
DECLARE done bigint := 0;
BEGIN
    WHILE done < events LOOP
        INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', payload
        FROM generate_series(1, least(rows, events - done));
        COMMIT;
        done := done + rows;
    END LOOP;
END
$$;";

/// A database of the bench.
pub struct Lane<'a> {
    pub servers: &'a Servers,
    /// Database, publication, and the beginning of all slots' names.
    pub name: String,
    pub sql: Client,
    /// The end of the backlog.
    pub end_lsn: String,
    /// Of the connections to Postgres.
    pub sslmode: &'static str,
    /// The certificate of a nats-server that is to be spoken to over TLS.
    pub nats_certificate: Option<PathBuf>,
    /// Whether others may write to its streams.
    pub shared: bool,
    /// Another build than the one that is measured by itself.
    pub program: Option<PathBuf>,
    /// Further variables of the relay's environment.
    pub environment: Vec<(&'static str, String)>,
    slots: u32,
}

/// JSON of about so many bytes that a TOAST compressor would not shorten to nothing.
pub fn payload(bytes: usize) -> String {
    use rand::distr::{Alphanumeric, SampleString as _};
    let text = Alphanumeric.sample_string(&mut rand::rng(), bytes.saturating_sub(9));
    format!(r#"{{"t": "{text}"}}"#)
}

impl<'a> Lane<'a> {
    /// An empty outbox, with a publication and a slot in front of all that follows.
    pub async fn new(servers: &'a Servers, name: &str) -> anyhow::Result<Lane<'a>> {
        let admin = servers.postgres.connect("postgres").await?;
        admin
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await?;
        let sql = servers.postgres.connect(name).await?;
        sql.batch_execute(SCHEMA_SQL).await?;
        // Values as large as they are, so that MB/s are MB/s.
        sql.batch_execute("ALTER TABLE outbox_events ALTER payload_json SET STORAGE EXTERNAL")
            .await?;
        sql.batch_execute(FILL).await?;
        sql.batch_execute(&format!(
            "CREATE PUBLICATION {name} FOR TABLE outbox_events WITH (publish = 'insert', publish_via_partition_root = true)"
        ))
        .await?;
        sql.query_one(
            "SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')",
            &[&format!("{name}_0")],
        )
        .await?;
        let lane = Lane {
            servers,
            name: name.to_owned(),
            sql,
            end_lsn: String::new(),
            sslmode: "prefer",
            nats_certificate: None,
            shared: false,
            program: None,
            environment: Vec::new(),
            slots: 0,
        };
        lane.begins_here(&format!("{name}_0")).await?;
        Ok(lane)
    }

    /// Writes down where a slot begins that walrelay has not made: nothing was read from it.
    async fn begins_here(&self, slot: &str) -> anyhow::Result<()> {
        let sql = "SELECT format('COMMENT ON PUBLICATION %I IS %L', $1::text, \
             concat_ws(', ', obj_description(publication.oid, 'pg_publication'), \
             format('walrelay: slot %s begins at %s', slot_name, confirmed_flush_lsn))) \
             FROM pg_publication AS publication, pg_replication_slots WHERE pubname = $1 AND slot_name = $2";
        let row = self.sql.query_one(sql, &[&self.name, &slot]).await?;
        Ok(self.sql.batch_execute(row.get(0)).await?)
    }

    /// The database, with the lane's sslmode.
    pub fn url(&self) -> String {
        format!(
            "{}?sslmode={}",
            self.servers.postgres.url(&self.name),
            self.sslmode
        )
    }

    /// Commits a backlog. Only the filling goes without waiting for the disk.
    pub async fn fill(&mut self, events: u64, rows: u64, payload: &str) -> anyhow::Result<()> {
        self.sql
            .batch_execute("SET synchronous_commit = off")
            .await?;
        self.sql
            .batch_execute(&format!("CALL fill({events}, {rows}, '{payload}')"))
            .await?;
        self.sql
            .batch_execute("SET synchronous_commit = on")
            .await?;
        self.sql
            .batch_execute("SELECT pg_logical_emit_message(true, 'bench', 'end')")
            .await?;
        self.sql.batch_execute("CHECKPOINT").await?;
        self.end_lsn = Servers::text(&self.sql, "SELECT pg_current_wal_flush_lsn()").await?;
        Ok(())
    }

    /// Another slot in front of the backlog.
    pub async fn slot(&mut self) -> anyhow::Result<String> {
        self.slots += 1;
        let slot = format!("{}_{}", self.name, self.slots);
        self.sql
            .query_one(
                "SELECT lsn FROM pg_copy_logical_replication_slot($1, $2)",
                &[&format!("{}_0", self.name), &slot],
            )
            .await
            .context("cannot copy the slot")?;
        self.begins_here(&slot).await?;
        Ok(slot)
    }

    /// Waits until nobody reads from the slot any more.
    pub async fn free(&self, slot: &str) -> anyhow::Result<()> {
        let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
        while self.sql.query_one(sql, &[&slot]).await?.get(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub async fn drop_slot(&self, slot: &str) -> anyhow::Result<()> {
        self.sql
            .query_one("SELECT pg_drop_replication_slot($1)::text", &[&slot])
            .await?;
        Ok(())
    }

    /// `walrelay` with everything else as it is by default.
    pub fn walrelay(&self, arguments: &[&str], slot: &str, stream: &str) -> Command {
        // Another build may be named, to compare before and after.
        let built = || env!("CARGO_BIN_EXE_walrelay").into();
        let named = || std::env::var_os("WALRELAY_BENCH_BINARY").unwrap_or_else(built);
        let program = self.program.clone();
        let mut command = Command::new(program.unwrap_or_else(|| named().into()));
        for (inherited, _) in std::env::vars_os() {
            let name = inherited.to_string_lossy();
            if ["WALRELAY_", "PG", "DATABASE_URL", "NATS_URL", "OTEL_"]
                .iter()
                .any(|ours| name.starts_with(ours))
            {
                command.env_remove(&inherited);
            }
        }
        command
            .args(arguments)
            .args(["--config", "/dev/null"])
            .current_dir(self.servers.folder.path())
            .env("WALRELAY_POSTGRES_URL", self.url())
            .env("WALRELAY_NATS_URL", self.servers.nats.url())
            .env("WALRELAY_NAME", &self.name)
            .env("WALRELAY_POSTGRES_SLOT", slot)
            .env("WALRELAY_NATS_STREAM", stream)
            .env("WALRELAY_NATS_SUBJECT", format!("{stream}.{{event_type}}"))
            .env("WALRELAY_NATS_SHARED", self.shared.to_string())
            .env("WALRELAY_HTTP_LISTEN", "");
        if let Some(path) = &self.nats_certificate {
            command.env("WALRELAY_NATS_TLS_CA", path);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The stream, made as a user makes it.
    pub fn setup(&self, slot: &str, stream: &str) -> anyhow::Result<()> {
        let output = self.walrelay(&["setup"], slot, stream).output()?;
        anyhow::ensure!(
            output.status.success(),
            "walrelay setup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// `walrelay run`, and the time until it streams.
    pub async fn run(&self, slot: &str, stream: &str) -> anyhow::Result<Child> {
        Child::spawn(self.walrelay(&["run"], slot, stream))
    }

    /// CPU time of the server process that sends WAL now.
    pub async fn walsender_pid(&self) -> anyhow::Result<Option<u32>> {
        let row = self
            .sql
            .query_opt(
                "SELECT pid FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE database = $1",
                &[&self.name],
            )
            .await?;
        Ok(row.and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok()))
    }

    /// Drops the database and what is left of its slots.
    pub async fn close(self) -> anyhow::Result<()> {
        self.sql
            .query(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active",
                &[&self.name],
            )
            .await
            .ok();
        let admin = self.servers.postgres.connect("postgres").await?;
        drop(self.sql);
        admin
            .batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name))
            .await?;
        Ok(())
    }
}
