//! A lane of one's own: database, slot, publication, stream, and the commands that know them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use postgres_types::PgLsn;
use tempfile::TempDir;
use tokio_postgres::Client;
use uuid::Uuid;

use super::relay::{Output, Relay};
use super::secure;
use super::servers::{Servers, options};
use super::stream::{self, Stored};
use super::wait::eventually;

/// The id of the `number`th event of [`Fixture::insert`].
pub(crate) fn uuid(number: u64) -> Uuid {
    Uuid::from_u128(number.into())
}

/// SQL for that id, of the integer `n`.
const UUID_OF_N: &str = "lpad(to_hex(n), 32, '0')::uuid";

#[derive(Debug)]
enum Where {
    Shared(&'static Servers),
    Own(Box<Servers>),
}

/// A database, and the names that only this test uses on its servers.
pub(crate) struct Fixture {
    /// Slot, publication and database; in capitals the stream.
    pub(crate) name: String,
    /// To the database, as superuser. Broken after a restart of Postgres: see [`Fixture::reconnect`].
    pub(crate) sql: Client,
    pub(crate) nats: async_nats::Client,
    servers: Where,
    environment: BTreeMap<&'static str, String>,
    folder: TempDir,
    config: PathBuf,
    started: AtomicUsize,
}

impl Fixture {
    /// On the shared servers, set up; confirms at the ack.
    pub(crate) async fn new() -> Fixture {
        let fixture = Fixture::bare().await;
        fixture.setup().await;
        fixture
    }

    /// On servers of its own, set up.
    pub(crate) async fn own() -> Fixture {
        Fixture::with_settings(&[]).await
    }

    /// On servers of its own with these settings of Postgres, set up.
    pub(crate) async fn with_settings(settings: &[(&str, &str)]) -> Fixture {
        let servers = Servers::with(options(settings)).await;
        let fixture = Fixture::on(Where::Own(Box::new(servers))).await;
        fixture.setup().await;
        fixture
    }

    /// On the shared servers, with nothing in the database.
    pub(crate) async fn bare() -> Fixture {
        Fixture::on(Where::Shared(Servers::shared().await)).await
    }

    /// On the shared servers, with nothing but the table.
    pub(crate) async fn with_table() -> Fixture {
        let fixture = Fixture::bare().await;
        fixture.make_table().await;
        fixture
    }

    /// On these servers, with nothing in the database.
    pub(crate) async fn bare_on(servers: Servers) -> Fixture {
        Fixture::on(Where::Own(Box::new(servers))).await
    }

    async fn on(servers: Where) -> Fixture {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lane_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let there = match &servers {
            Where::Shared(servers) => servers,
            Where::Own(servers) => &**servers,
        };
        let admin = there.postgres.connect("postgres").await.expect("connects");
        admin
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .expect("the name is free");
        let binding = if there.binds {
            "?channel_binding=require"
        } else {
            ""
        };
        let mut environment = BTreeMap::from([
            ("WALRELAY_NAME", name.clone()),
            ("WALRELAY_POSTGRES_URL", there.postgres.url(&name) + binding),
            ("WALRELAY_NATS_URL", there.nats.url()),
            ("WALRELAY_NATS_STREAM", name.to_uppercase()),
            ("WALRELAY_NATS_SUBJECT", format!("{name}.{{event_type}}")),
            ("WALRELAY_HTTP_LISTEN", String::new()),
            ("WALRELAY_RELAY_HOLD_BACK", "0s".to_owned()),
            // So that Postgres soon knows what has been received.
            ("WALRELAY_RELAY_STATUS_INTERVAL", "1s".to_owned()),
        ]);
        if secure::is_wanted() {
            environment.extend(secure::environment(&there.nats));
            if !there.binds {
                environment.remove("PGPASSFILE");
            }
        }
        let nats = match there.has_logins_of_nats {
            true => secure::client(&secure::files(&there.nats)[0]),
            false => async_nats::ConnectOptions::new(),
        };
        Fixture {
            sql: there.postgres.connect(&name).await.expect("connects"),
            nats: nats.connect(there.nats.url()).await.expect("connects"),
            servers,
            environment,
            folder: TempDir::new().expect("a temporary folder"),
            config: PathBuf::from("/dev/null"),
            started: AtomicUsize::new(0),
            name,
        }
    }

    pub(crate) fn servers(&self) -> &Servers {
        match &self.servers {
            Where::Shared(servers) => servers,
            Where::Own(servers) => servers,
        }
    }

    /// The servers, to stop and start.
    ///
    /// # Panics
    /// Where they are shared.
    pub(crate) fn own_servers(&mut self) -> &mut Servers {
        match &mut self.servers {
            Where::Shared(_) => panic!("others use these servers"),
            Where::Own(servers) => servers,
        }
    }

    /// A connection to the database.
    pub(crate) async fn connect(&self) -> Client {
        let connected = self.servers().postgres.connect(&self.name).await;
        connected.expect("Postgres is there")
    }

    /// A session of its own, in a transaction that has done this. It ends with a `COMMIT`, or is taken back with the session.
    pub(crate) async fn begins(&self, sql: &str) -> Client {
        let session = self.connect().await;
        let begun = session.batch_execute(&format!("BEGIN; {sql}")).await;
        begun.expect("it is SQL");
        session
    }

    /// Takes a new connection after a restart of Postgres.
    pub(crate) async fn reconnect(&mut self) {
        self.sql = self.connect().await;
    }

    /// Sets a variable of the environment for all commands to come.
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.insert(name, value.into());
    }

    /// Takes one away.
    pub(crate) fn unset(&mut self, name: &'static str) {
        self.environment.remove(name);
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&mut self, text: &str) {
        self.config = self.folder.path().join("walrelay.toml");
        std::fs::write(&self.config, text).expect("the folder is there");
    }

    /// Where that file is.
    pub(crate) fn configuration(&self) -> std::path::PathBuf {
        self.config.clone()
    }

    /// For a test that gives its nats-server a configuration of its own.
    pub(crate) fn without_tls_and_login_of_nats(&mut self) {
        self.unset("WALRELAY_NATS_TLS_CA");
        self.unset("WALRELAY_NATS_CREDENTIALS");
    }

    pub(crate) fn stream_name(&self) -> &str {
        &self.environment["WALRELAY_NATS_STREAM"]
    }

    /// `walrelay` with these arguments, with this lane's settings and nothing inherited.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_walrelay"), arguments)
    }

    /// The same of another build.
    fn command_of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (inherited, _) in std::env::vars_os() {
            let name = inherited.to_string_lossy();
            let ours = ["WALRELAY_", "PG"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if ours || name == "DATABASE_URL" || name == "NATS_URL" {
                command.env_remove(&inherited);
            }
        }
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .envs(&self.environment)
            .current_dir(self.folder.path());
        command
    }

    /// Types a line that walrelay has printed, which names its configuration.
    #[allow(dead_code)] // Not all programs type any.
    pub(crate) async fn types(&self, line: &str) -> Output {
        let like = self.command(&[]);
        let mut shell = Command::new("sh");
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_walrelay"));
        let folder = program.parent().expect("a folder").display();
        let path = std::env::var("PATH").expect("it is set");
        shell.env("PATH", format!("{folder}:{path}"));
        shell.args(["-c", line]).current_dir(self.folder.path());
        Output::of(&mut shell).await
    }

    /// Runs a command that ends by itself.
    pub(crate) async fn walrelay(&self, arguments: &[&str]) -> Output {
        Output::of(&mut self.command(arguments)).await
    }

    /// `walrelay prune` with these arguments, once all transactions of the server that run now have ended, those of other tests too: a
    /// row stays that is younger than one of them.
    #[allow(dead_code)] // Not all programs prune.
    pub(crate) async fn prune(&self, arguments: &[&str]) -> Output {
        let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
        let next: String = self.sql.query_one(next, &[]).await.expect("read").get(0);
        let ended = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";
        eventually("the transactions of others have ended", async || {
            let row = self.sql.query_one(ended, &[&next]).await;
            row.expect("read").get::<_, bool>(0).then_some(())
        })
        .await;
        self.walrelay(&[&["prune"], arguments].concat()).await
    }

    /// Makes the table, as an application does before anybody thinks of a relay.
    pub(crate) async fn make_table(&self) {
        let made = self.sql.batch_execute(walrelay::outbox::SCHEMA_SQL).await;
        made.expect("the database has none yet");
    }

    /// `walrelay setup`.
    pub(crate) async fn setup(&self) {
        self.walrelay(&["setup"]).await.success();
    }

    /// What a halt names where the slot can give nothing more: a new slot behind the lane, and what is missing from the table.
    pub(crate) async fn begin_again(&self) {
        for command in [
            &["teardown", "--yes"][..],
            &["setup"],
            &["adopt", "--yes"],
            &["backfill"],
        ] {
            self.walrelay(command).await.success();
        }
    }

    /// Starts `walrelay run`.
    pub(crate) fn run(&mut self) -> Relay {
        self.run_with(&[])
    }

    /// Runs a relay until the stream holds so many messages, and stops it.
    pub(crate) async fn relay_until(&mut self, count: u64) {
        let relay = self.run();
        self.holds(count).await;
        relay.stop().await;
    }

    /// Starts `walrelay run` with further arguments.
    pub(crate) fn run_with(&mut self, arguments: &[&str]) -> Relay {
        let arguments: Vec<&str> = ["run"].iter().chain(arguments).copied().collect();
        self.start(&arguments)
    }

    /// Starts `walrelay run` by another program: another build, or one that starts it elsewhere.
    #[allow(dead_code)] // Only the tests of faults do.
    pub(crate) fn run_by(&mut self, program: &str, arguments: &[&str]) -> Relay {
        self.start_command(self.command_of(program, arguments))
    }

    /// Starts a command that runs beside the test.
    pub(crate) fn start(&self, arguments: &[&str]) -> Relay {
        self.start_command(self.command(arguments))
    }

    /// The same of a command that is not as all are.
    pub(crate) fn start_command(&self, command: Command) -> Relay {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.path().join(format!("relay-{number}.log"));
        Relay::start(command, log)
    }

    /// Commits the events `first..=last` in one transaction; the `n`th has the id [`uuid`]`(n)` and payload `{"n": n}`.
    pub(crate) async fn insert(&self, first: u64, last: u64) {
        self.sql
            .batch_execute(&insert_sql(first, last))
            .await
            .expect("the insert succeeds");
    }

    /// How far the slot is confirmed.
    pub(crate) async fn confirmed_lsn(&self) -> PgLsn {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.sql.query_one(sql, &[&self.name]).await;
        row.expect("the slot is there").get(0)
    }

    /// The end of the WAL.
    pub(crate) async fn server_lsn(&self) -> PgLsn {
        let row = self.sql.query_one("SELECT pg_current_wal_lsn()", &[]).await;
        row.expect("Postgres answers").get(0)
    }

    /// Waits until the slot is confirmed up to `lsn`.
    pub(crate) async fn confirms(&self, lsn: PgLsn) {
        eventually(format!("the slot is confirmed up to {lsn}"), async || {
            (self.confirmed_lsn().await >= lsn).then_some(())
        })
        .await;
    }

    /// Waits until the relay says that it has received the WAL up to `lsn`.
    pub(crate) async fn receives(&self, lsn: PgLsn) {
        let sql = "SELECT write_lsn FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
                   WHERE slot_name = $1";
        eventually(format!("the relay has received {lsn}"), async || {
            let row = self.sql.query_opt(sql, &[&self.name]).await;
            let received: Option<PgLsn> = row.expect("Postgres answers")?.get(0);
            (received? >= lsn).then_some(())
        })
        .await;
    }

    /// How many messages the stream holds.
    pub(crate) async fn message_count(&self) -> u64 {
        self.message_count_of(self.stream_name()).await
    }

    /// How many messages another stream holds.
    pub(crate) async fn message_count_of(&self, name: &str) -> u64 {
        stream::message_count(&self.nats, name).await
    }

    /// Waits until the stream holds so many messages, or more.
    pub(crate) async fn holds(&self, count: u64) {
        let what = format!("stream {} holds {count} messages", self.stream_name());
        eventually(what, async || {
            (self.message_count().await >= count).then_some(())
        })
        .await;
    }

    /// Everything that the stream holds.
    pub(crate) async fn stored(&self) -> Vec<Stored> {
        stream::read(&self.nats, self.stream_name()).await
    }

    /// Everything that another stream holds.
    #[allow(dead_code)] // Only the tests of replays read another one.
    pub(crate) async fn stored_in(&self, name: &str) -> Vec<Stored> {
        stream::read(&self.nats, name).await
    }

    /// The ids of what the stream holds.
    pub(crate) async fn stored_ids(&self) -> Vec<Uuid> {
        self.stored().await.iter().map(Stored::id).collect()
    }
}

/// The SQL of [`Fixture::insert`].
pub(crate) fn insert_sql(first: u64, last: u64) -> String {
    format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT {UUID_OF_N}, gen_random_uuid(), 'lesson.published.v1', jsonb_build_object('n', n)
         FROM generate_series({first}, {last}) AS n"
    )
}
