//! A server, and what setup and the findings make of its database.

use std::time::Duration;

use postgres_types::PgLsn;
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};
use walrelay::postgres::catalog::inspect;
use walrelay::postgres::client::{Client, connect};
use walrelay::postgres::findings::{Kind, Severity, findings};
use walrelay::postgres::settings::PostgresSettings;
use walrelay::postgres::setup::{Part, Step, Wishes, apply, create_slot, plan};

use crate::postgres_settings::postgres_settings;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn server(settings: &[(&str, &str)]) -> LocalPostgres {
    let settings = settings
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let options = PostgresOptions {
        settings,
        fsync: false,
        ..Default::default()
    };
    LocalPostgres::start(&ServerBinaries::find().unwrap(), options)
        .await
        .unwrap()
}

/// A session in which names without a schema are those of public, as in psql.
pub(crate) async fn as_a_person(settings: &PostgresSettings) -> Client {
    let client = connect(&settings.conninfo).await.unwrap();
    client
        .batch_execute("SET search_path = public")
        .await
        .unwrap();
    client
}

/// A server with nothing in it, and that session on it.
pub(crate) async fn fresh() -> (LocalPostgres, PostgresSettings, Client) {
    let server = server(&[]).await;
    let settings = postgres_settings(&server);
    let client = as_a_person(&settings).await;
    (server, settings, client)
}

/// Kinds of what is found, with their gravity.
pub(crate) async fn found(client: &Client, settings: &PostgresSettings) -> Vec<(Severity, Kind)> {
    let inspection = inspect(client, settings).await.unwrap();
    findings(&inspection, settings)
        .into_iter()
        .map(|finding| (finding.severity, finding.kind))
        .collect()
}

/// Makes table and publication; returns the step that makes the slot.
pub(crate) async fn up_to_slot(client: &Client, settings: &PostgresSettings) -> Step {
    let inspection = inspect(client, settings).await.unwrap();
    let steps = plan(&inspection, settings, Wishes::default()).unwrap();
    let [table, publication, make_slot]: [Step; 3] = steps.try_into().expect("three steps");
    for step in [table, publication] {
        apply(client, &step).await.unwrap();
    }
    make_slot
}

/// Runs every step that setup plans.
pub(crate) async fn make(
    client: &Client,
    server: &LocalPostgres,
    settings: &PostgresSettings,
) -> Vec<Part> {
    let steps = plan(
        &inspect(client, settings).await.unwrap(),
        settings,
        Wishes::default(),
    )
    .unwrap();
    for step in &steps {
        run(client, server, step).await;
    }
    steps.into_iter().map(|step| step.part).collect()
}

pub(crate) async fn run(client: &Client, server: &LocalPostgres, step: &Step) {
    if step.part == Part::Slot {
        let observer = connect(&postgres_settings(server).conninfo).await.unwrap();
        let lsn = create_slot(client, &observer, step, |_| (), std::future::pending())
            .await
            .unwrap();
        assert!(lsn > PgLsn::from(0));
    } else {
        apply(client, step).await.unwrap();
    }
}

pub(crate) async fn refusals(client: &Client, settings: &PostgresSettings) -> Vec<Kind> {
    let inspection = inspect(client, settings).await.unwrap();
    plan(&inspection, settings, Wishes::default())
        .unwrap_err()
        .into_iter()
        .map(|finding| finding.kind)
        .collect()
}
