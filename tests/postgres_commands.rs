//! The commands setup, position and teardown against a real Postgres and NATS.

mod postgres_settings;

use std::time::Duration;

use clap::FromArgMatches;
use postgres_settings::postgres_settings;
use walrelay::cli::exit::Exit;
use walrelay::cli::{position, setup, teardown};
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};
use walrelay::nats::address::NatsAuth;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::postgres::catalog::inspect;
use walrelay::relay::settings::{NatsSettings, OnReject, RelaySettings, Settings};

const LIMIT: Duration = Duration::from_secs(20);

fn args<A: clap::Args + FromArgMatches>(line: &[&str]) -> A {
    let command = A::augment_args(clap::Command::new("test").no_binary_name(true));
    A::from_arg_matches(&command.get_matches_from(line)).unwrap()
}

#[tokio::test]
async fn the_commands_make_and_remove_postgres_and_stream_together() {
    let options = PostgresOptions {
        fsync: false,
        ..Default::default()
    };
    let server = LocalPostgres::start(&ServerBinaries::find().unwrap(), options)
        .await
        .unwrap();
    let nats = LocalNats::start(&ServerBinaries::find().unwrap(), NatsOptions::default())
        .await
        .unwrap();
    let settings = Settings {
        name: "walrelay".to_owned(),
        postgres: postgres_settings(&server),
        nats: NatsSettings {
            connection: ConnectionSettings::new(vec![nats.url().parse().unwrap()], NatsAuth::None),
            stream: "OUTBOX".to_owned(),
            subject: "outbox.{event_type}".parse().expect("a template"),
            shared: false,
            further_subjects: Vec::new(),
            neighbours: Vec::new(),
        },
        message: walrelay::pipeline::mapping::MessageSettings::default(),
        relay: RelaySettings {
            hold_back: Duration::ZERO,
            on_reject: OnReject::DeadLetter,
            window_messages_max: 100,
            window_bytes_max: 1 << 20,
            ack_timeout: LIMIT,
            shutdown_timeout: LIMIT,
            status_interval: LIMIT,
            backoff_max: LIMIT,
        },
        outbox: walrelay::relay::settings::OutboxSettings::default(),
    };
    let client = walrelay::postgres::client::connect(&settings.postgres.conninfo)
        .await
        .unwrap();
    let exists = async || {
        let inspection = inspect(&client, &settings.postgres).await.unwrap();
        let admin = walrelay::nats::admin::Admin::connect(&settings.nats.connection)
            .await
            .unwrap();
        let stream = walrelay::nats::stream::find(&admin, "OUTBOX")
            .await
            .unwrap();
        (
            inspection.table.is_some(),
            inspection.slot.is_some(),
            stream.is_some(),
        )
    };

    let run_setup = async |line: &[&str]| setup::execute(args(line), &settings).await.unwrap();
    assert_eq!(run_setup(&["--dry-run"]).await, Exit::Done);
    assert_eq!(exists().await, (false, false, false));
    assert_eq!(run_setup(&[]).await, Exit::Done);
    assert_eq!(exists().await, (true, true, true));
    assert_eq!(run_setup(&[]).await, Exit::Done);

    let printed = position::execute(args(&["--json"]), &settings)
        .await
        .unwrap();
    assert_eq!(printed, Exit::Done);
    let empty = position::read(&settings).await.unwrap();
    assert!(empty.confirmed_lsn.is_some() && empty.position.is_none());
    let admin = walrelay::nats::admin::Admin::connect(&settings.nats.connection)
        .await
        .unwrap()
        .jetstream();
    // The last two are another slot's, and a copy.
    for (subject, position, expected) in [
        ("outbox.a", "walrelay 0/1A:1", Some("0")),
        ("outbox.b", "walrelay 0/1A:2", Some("1")),
        ("outbox.c", "other 0/2B:1", Some("2")),
        ("outbox.a", "walrelay 0/1A:1", None),
    ] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Walrelay-Position", position);
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Sequence", expected);
        }
        admin
            .publish_with_headers(subject, headers, "{}".into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let last = position::read(&settings).await.unwrap();
    assert_eq!(
        (last.position.as_deref(), last.stream_sequence),
        (Some("0/1A:2"), Some(2))
    );
    assert_eq!(last.acknowledged_lsn.as_deref(), Some("0/1A"));

    let run_teardown =
        async |line: &[&str]| teardown::execute(args(line), &settings).await.unwrap();
    assert_eq!(run_teardown(&["--yes"]).await, Exit::Done);
    assert_eq!(exists().await, (true, false, true));
    assert_eq!(
        position::execute(args(&[]), &settings).await.unwrap(),
        Exit::Failed
    );
    assert_eq!(
        run_teardown(&["--yes", "--drop-table", "--drop-stream"]).await,
        Exit::Done
    );
    assert_eq!(exists().await, (false, false, false));
}
