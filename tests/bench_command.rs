//! `walrelay bench` against real servers: it measures, removes what it made, and leaves others' tables alone.

use std::process::Output;

use serde_json::Value;
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};

struct Servers {
    postgres: LocalPostgres,
    nats: LocalNats,
}

impl Servers {
    async fn start() -> Servers {
        let binaries = ServerBinaries::find().expect("Postgres and nats-server are there");
        let options = PostgresOptions {
            fsync: false,
            ..PostgresOptions::default()
        };
        Servers {
            postgres: LocalPostgres::start(&binaries, options)
                .await
                .expect("Postgres starts"),
            nats: LocalNats::start(&binaries, NatsOptions::default())
                .await
                .expect("nats-server starts"),
        }
    }

    async fn bench(&self, arguments: &[&str]) -> Output {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_walrelay"));
        command
            .args(["bench", "--json", "--config", "/dev/null"])
            .args(arguments)
            .current_dir(folder.path())
            .env("WALRELAY_POSTGRES_URL", self.postgres.url("postgres"))
            .env("WALRELAY_NATS_URL", self.nats.url())
            .kill_on_drop(true);
        command.output().await.expect("walrelay runs")
    }

    /// Slots, publications and tables that are left, and streams with messages.
    async fn left(&self) -> (i64, u64) {
        let sql = self.postgres.connect("postgres").await.expect("connects");
        let count = sql
            .query_one(
                "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)
                      + (SELECT count(*) FROM pg_tables WHERE schemaname = 'public')",
                &[],
            )
            .await
            .expect("Postgres answers")
            .get(0);
        let client = async_nats::connect(self.nats.url())
            .await
            .expect("connects");
        let account = async_nats::jetstream::new(client).query_account().await;
        let account = account.expect("JetStream answers");
        (count, account.storage)
    }
}

fn measured(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn it_measures_and_removes_what_it_made() {
    let servers = Servers::start().await;
    let rate = measured(
        &servers
            .bench(&["--rate", "200", "--duration", "2s", "--rows", "3"])
            .await,
    );
    assert_eq!(rate["mode"], "rate");
    assert!(rate["events"].as_u64().is_some_and(|events| events >= 3));
    assert!(
        rate["latency_ms"]["p50"]
            .as_f64()
            .is_some_and(|p50| p50 > 0.0)
    );
    assert_eq!(servers.left().await, (0, 0));

    let output = servers.bench(&["--backlog", "5000", "--rows", "10"]).await;
    let backlog = measured(&output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("WARN"), "of its own objects: {stderr}");
    assert_eq!(backlog["mode"], "backlog");
    assert_eq!(backlog["events"], 5_000);
    assert_eq!(servers.left().await, (0, 0));
}

#[tokio::test]
async fn it_takes_no_table_that_somebody_else_has_made() {
    let servers = Servers::start().await;
    let sql = servers
        .postgres
        .connect("postgres")
        .await
        .expect("connects");
    sql.batch_execute(
        "CREATE TABLE public.walrelay_bench (id int); INSERT INTO walrelay_bench VALUES (1)",
    )
    .await
    .expect("creates");
    let refused = servers.bench(&["--rate", "10", "--duration", "1s"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let rows: i64 = sql
        .query_one("SELECT count(*) FROM walrelay_bench", &[])
        .await
        .expect("the table is there")
        .get(0);
    assert_eq!(rows, 1);
    assert_eq!(servers.left().await, (1, 0));
}
