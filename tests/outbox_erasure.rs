//! The erasure request end to end: a transaction of the application, the outbox, the relay, the stream, another service.

use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;
use tokio::process::Command;
use uuid::Uuid;
use walrelay::event::teaching::{LessonPublished, UserEraseRequested};
use walrelay::event::{DomainEvent as _, EventEnvelope};
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};
use walrelay::outbox::{Outbox, SCHEMA_SQL};

#[tokio::test]
async fn another_service_sees_exactly_the_requests_that_were_committed() {
    let binaries = ServerBinaries::find().expect("the servers are there: make servers");
    let options = PostgresOptions {
        fsync: false,
        ..PostgresOptions::default()
    };
    let postgres = LocalPostgres::start(&binaries, options).await.unwrap();
    let nats = LocalNats::start(&binaries, NatsOptions::default())
        .await
        .unwrap();
    let mut client = postgres.connect("postgres").await.unwrap();
    client.batch_execute(SCHEMA_SQL).await.unwrap();
    let walrelay = |command: &str| {
        let mut walrelay = Command::new(env!("CARGO_BIN_EXE_walrelay"));
        walrelay
            .args([command, "--config", "/dev/null"])
            .env("WALRELAY_POSTGRES_URL", postgres.url("postgres"))
            .env("WALRELAY_NATS_URL", nats.url())
            .env("WALRELAY_HTTP_LISTEN", "")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        walrelay
    };
    assert!(walrelay("setup").status().await.unwrap().success());
    let _relay = walrelay("run").spawn().unwrap();

    let outbox = Outbox::default();
    let requests: Vec<_> = (0..3)
        .map(|_| UserEraseRequested::new(Uuid::now_v7()))
        .collect();
    for (number, request) in requests.iter().enumerate() {
        let transaction = client.transaction().await.unwrap();
        outbox.add_event(&transaction, request).await.unwrap();
        let lesson = LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), "not of interest");
        outbox.add_event(&transaction, &lesson).await.unwrap();
        match number {
            1 => transaction.rollback().await.unwrap(),
            _ => transaction.commit().await.unwrap(),
        }
    }

    let jetstream = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let stream = jetstream.get_stream("OUTBOX").await.unwrap();
    let config = pull::Config {
        durable_name: Some("mailing-erasure".to_owned()),
        filter_subject: format!("outbox.{}", UserEraseRequested::EVENT_TYPE),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let messages = consumer.messages().await.unwrap().take(2).map(|message| {
        let envelope = EventEnvelope::from_slice(&message.unwrap().payload).unwrap();
        envelope.decode::<UserEraseRequested>().unwrap()
    });
    let seen: Vec<_> = tokio::time::timeout(Duration::from_secs(30), messages.collect())
        .await
        .unwrap();
    assert_eq!(seen, [requests[0].clone(), requests[2].clone()]);

    // Every service has obeyed: what is known of the user goes, the request itself among it.
    let user = requests[0].user_id.to_string();
    let mut erase = walrelay("erase");
    erase.args(["--aggregate-id", &user, "--yes", "--json"]);
    let output = erase.output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let receipt: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(receipt["rows"], 1);
    assert_eq!(receipt["streams"][0]["events"], serde_json::json!([1]));
    let left = "SELECT count(*) FROM outbox_events WHERE aggregate_id = $1";
    let left = client.query_one(left, &[&requests[0].user_id]).await;
    assert_eq!(left.unwrap().get::<_, i64>(0), 0);
}
