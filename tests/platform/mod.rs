//! A Postgres, a NATS and the walrelay program between them, for the tests of its commands.

#![allow(dead_code, reason = "each test program uses a part")]

use std::process::{Output, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use uuid::Uuid;
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub struct Platform {
    pub postgres: LocalPostgres,
    pub nats: LocalNats,
    pub sql: tokio_postgres::Client,
    pub jetstream: Context,
    pub environment: Vec<(&'static str, String)>,
}

pub struct Relay(Child);

impl Platform {
    /// Servers, and what `walrelay setup` makes.
    pub async fn start() -> Platform {
        let platform = Platform::servers().await;
        platform.expect(&["setup"], 0).await;
        platform
    }

    pub async fn servers() -> Platform {
        let binaries = ServerBinaries::find().expect("the servers are there: make servers");
        let nats = LocalNats::start(&binaries, NatsOptions::default())
            .await
            .expect("nats-server starts");
        let options = PostgresOptions {
            fsync: false,
            ..PostgresOptions::default()
        };
        let postgres = LocalPostgres::start(&binaries, options)
            .await
            .expect("Postgres starts");
        let sql = postgres.connect("postgres").await.expect("a connection");
        let client = async_nats::connect(nats.url()).await.expect("a connection");
        let environment = vec![
            ("DATABASE_URL", postgres.url("postgres")),
            ("NATS_URL", nats.url()),
            ("WALRELAY_HTTP_LISTEN", String::new()),
            ("WALRELAY_RELAY_HOLD_BACK", "0s".to_owned()),
            ("WALRELAY_RELAY_BACKOFF_MAX", "200ms".to_owned()),
            ("WALRELAY_RELAY_STATUS_INTERVAL", "200ms".to_owned()),
            ("WALRELAY_RELAY_ACK_TIMEOUT", "2s".to_owned()),
        ];
        Platform {
            postgres,
            nats,
            sql,
            jetstream: jetstream::new(client),
            environment,
        }
    }

    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub async fn output(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(LIMIT, self.command(arguments).output())
            .await
            .expect("the command ends in time")
            .expect("the command runs")
    }

    /// Starts a command; what it writes is kept for who waits for its end.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("it starts")
    }

    /// Runs a command that must end with this code; returns what it wrote.
    pub async fn expect(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments).await;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    /// Runs a command with `--json` that must end with this code; the one object that it writes.
    pub async fn json(&self, arguments: &[&str], code: i32) -> serde_json::Value {
        object(&self.output(&[arguments, &["--json"]].concat()).await, code)
    }

    /// `walrelay verify --json`.
    pub async fn verify(&self, code: i32) -> serde_json::Value {
        self.json(&["verify", "--wait", "20s"], code).await
    }

    pub fn relay(&self) -> Relay {
        Relay(
            self.command(&["run"])
                .process_group(0)
                .spawn()
                .expect("the relay starts"),
        )
    }

    /// Runs the relay until the stream's last sequence is this, then stops it in good order.
    pub async fn relay_until(&self, last_sequence: u64) {
        let relay = self.relay();
        self.wait_for(last_sequence).await;
        relay.stop().await;
    }

    /// The same, by the number of events on their own subjects, for a stream with other messages too.
    pub async fn relay_until_events(&self, count: usize) {
        let relay = self.relay();
        self.holds_events(count).await;
        relay.stop().await;
    }

    pub async fn holds_events(&self, count: usize) {
        let reached = async {
            loop {
                let stream = self.stream().await;
                let subjects = stream
                    .info_with_subjects("outbox.lesson.>")
                    .await
                    .expect("subjects");
                let counts: Vec<(String, usize)> = subjects
                    .map(|found| found.expect("a subject"))
                    .collect()
                    .await;
                if counts.iter().map(|(_, count)| count).sum::<usize>() >= count {
                    return;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(LIMIT, reached)
            .await
            .expect("the stream gets there in time");
    }

    /// The events' stream.
    pub async fn stream(&self) -> jetstream::stream::Stream {
        let set = |(name, _): &&(&str, String)| *name == "WALRELAY_NATS_STREAM";
        let name = self.environment.iter().find(set);
        let name = name.map_or("OUTBOX", |(_, value)| value);
        self.jetstream.get_stream(name).await.expect("a stream")
    }

    pub async fn last_sequence(&self) -> u64 {
        let stream = self.stream().await;
        stream.cached_info().state.last_sequence
    }

    /// How many messages another stream holds; none where it is not there.
    pub async fn messages_in(&self, stream: &str) -> u64 {
        let found = self.jetstream.get_stream(stream).await;
        found.map_or(0, |stream| stream.cached_info().state.messages)
    }

    /// Waits until another stream holds so many messages, or more.
    pub async fn holds_in(&self, stream: &str, messages: u64) {
        let reached = async {
            while self.messages_in(stream).await < messages {
                tokio::task::yield_now().await;
            }
        };
        let reached = tokio::time::timeout(LIMIT, reached).await;
        reached.unwrap_or_else(|_| panic!("{stream} holds {messages} messages in time"));
    }

    pub async fn wait_for(&self, last_sequence: u64) {
        let reached = async {
            while self.last_sequence().await < last_sequence {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(LIMIT, reached)
            .await
            .expect("the stream gets there in time");
        assert_eq!(self.last_sequence().await, last_sequence);
    }

    /// Commits one transaction with so many events.
    pub async fn insert(&self, count: u32) {
        insert(&self.sql, count).await;
    }

    /// How many rows the table has.
    pub async fn rows(&self) -> i64 {
        self.number("SELECT count(*) FROM outbox_events").await
    }

    /// What a query of one number answers.
    pub async fn number(&self, query: &str) -> i64 {
        let row = self.sql.query_one(query, &[]).await;
        row.expect("read").get(0)
    }

    /// Waits until the query counts so many.
    pub async fn counts(&self, query: &str, count: i64) {
        let counted = async {
            while self.number(query).await != count {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let counted = tokio::time::timeout(LIMIT, counted).await;
        let now = self.number(query).await;
        counted.unwrap_or_else(|_| panic!("{now}, not {count}: {query}"));
    }

    /// Waits until a statement that begins so waits for a lock.
    pub async fn waits_for_a_lock(&self, begin: &str) {
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND starts_with(query, '{begin}')"
        );
        self.counts(&waits, 1).await;
    }

    /// A session of its own, in a transaction that has done this. It ends with a `COMMIT`, or is taken back with the session.
    pub async fn begins(&self, sql: &str) -> tokio_postgres::Client {
        let session = self.postgres.connect("postgres").await;
        let session = session.expect("a connection");
        let begun = session.batch_execute(&format!("BEGIN; {sql}")).await;
        begun.expect("begun");
        session
    }

    /// A stored message's body, and walrelay's own headers.
    pub async fn message(&self, sequence: u64) -> (HeaderMap, Vec<u8>) {
        let stream = self.stream().await;
        let message = stream.get_raw_message(sequence).await.expect("a message");
        let mut headers = HeaderMap::new();
        for (name, values) in message.headers.iter() {
            if name.to_string().starts_with("Walrelay-") {
                headers.insert(name.clone(), values[0].clone());
            }
        }
        (headers, message.payload.to_vec())
    }

    pub async fn publish(&self, subject: &str, headers: HeaderMap, body: Vec<u8>) -> u64 {
        let ack = self
            .jetstream
            .publish_with_headers(subject.to_owned(), headers, body.into())
            .await
            .expect("sent");
        ack.await.expect("an acknowledgement").sequence
    }

    pub async fn delete_message(&self, sequence: u64) {
        let stream = self.stream().await;
        assert!(stream.delete_message(sequence).await.expect("deleted"));
    }
}

/// What a command with `--json` has written that ended with this code.
pub fn object(output: &Output, code: i32) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}{errors}");
    serde_json::from_str(&text).expect("one JSON object")
}

/// Sends a signal to a command that runs.
pub fn signal(command: &Child, signal: Signal) {
    let pid = command.id().expect("it runs").cast_signed();
    kill_process(Pid::from_raw(pid).expect("not 0"), signal).expect("signalled");
}

/// Its end, and what it has written.
pub async fn ends(command: Child) -> Output {
    let output = tokio::time::timeout(LIMIT, command.wait_with_output());
    output.await.expect("it ends in time").expect("it ends")
}

/// Commits one transaction with so many events.
pub async fn insert(sql: &tokio_postgres::Client, count: u32) {
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                SELECT gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', jsonb_build_object('n', n) \
                FROM generate_series(1, $1::int) AS n";
    let rows = sql
        .execute(text, &[&i32::try_from(count).unwrap()])
        .await
        .expect("inserted");
    assert_eq!(rows, u64::from(count));
}

/// Inserts one row as given, with an event type of its own.
pub async fn insert_of_type(sql: &tokio_postgres::Client, event_type: &str) -> Uuid {
    let id = Uuid::new_v4();
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                VALUES ($1, gen_random_uuid(), $2, '{}')";
    sql.execute(text, &[&id, &event_type])
        .await
        .expect("inserted");
    id
}

impl Relay {
    /// SIGTERM, and exit code 0.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = tokio::time::timeout(LIMIT, self.0.wait())
            .await
            .expect("it stops in time")
            .expect("waited for");
        assert_eq!(status.code(), Some(0));
    }

    pub fn signal(&self, signal: Signal) {
        self::signal(&self.0, signal);
    }

    pub async fn kill(mut self) {
        self.0.kill().await.expect("killed");
    }
}
