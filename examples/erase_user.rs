//! A user asks to be forgotten (GDPR, article 17), and a downstream service that holds data of theirs obeys: the whole
//! way from a transaction, through the outbox and the stream, to another service's typed event. Then `walrelay erase` takes
//! the user's rows and messages away, the request among them: so not before every service has obeyed.
//!
//! ```text
//! walrelay run --setup &
//! DATABASE_URL=postgres://localhost/app NATS_URL=nats://localhost cargo run --example erase_user
//! ```

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{AckKind, consumer::pull};
use futures_util::StreamExt as _;
use tokio_postgres::NoTls;
use uuid::Uuid;
use walrelay::event::teaching::UserEraseRequested;
use walrelay::event::{DomainEvent as _, EventEnvelope, EventError};
use walrelay::nats::address::NatsAddress;
use walrelay::nats::admin::Admin;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::outbox::Outbox;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let database =
        std::env::var("DATABASE_URL").context("set DATABASE_URL to the application's database")?;
    let broker = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://localhost:4222".to_owned());

    // The accounts service: its own table and the request, in one transaction.
    let (mut client, connection) = tokio_postgres::connect(&database, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute("create table if not exists users (id uuid primary key, erased boolean)")
        .await?;
    let user_id = Uuid::now_v7();
    let transaction = client.transaction().await?;
    transaction
        .execute("insert into users values ($1, true)", &[&user_id])
        .await?;
    Outbox::default()
        .add_event(&transaction, &UserEraseRequested::new(user_id))
        .await?;
    transaction.commit().await?;
    println!("accounts:  user {user_id} asked to be forgotten");

    // The mailing service, elsewhere: obeys, and only then acknowledges.
    let erased = tokio::time::timeout(Duration::from_secs(30), mailing_service(&broker, user_id));
    erased
        .await
        .context("the request did not arrive within 30 seconds: is `walrelay run` running?")??;

    // The accounts service again, once all others have told it that they obeyed: here there is one.
    let receipt = erase(&database, &broker, user_id).await?;
    println!("accounts:  the receipt of what was erased: {receipt}");
    Ok(())
}

/// Runs `walrelay erase`; returns its receipt. Where it fails, a second run goes on where it ended.
async fn erase(database: &str, broker: &str, user_id: Uuid) -> anyhow::Result<String> {
    let program = std::env::var("WALRELAY").unwrap_or_else(|_| "walrelay".to_owned());
    let output = tokio::process::Command::new(&program)
        .args(["erase", "--yes", "--json", "--aggregate-id"])
        .arg(user_id.to_string())
        .env("DATABASE_URL", database)
        .env("NATS_URL", broker)
        .output()
        .await
        .with_context(|| format!("cannot run {program}: set WALRELAY to its path"))?;
    anyhow::ensure!(
        output.status.success(),
        "walrelay erase failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Handles erasure requests until `wanted` was forgotten.
async fn mailing_service(broker: &str, wanted: Uuid) -> anyhow::Result<()> {
    // As walrelay takes the URL, with user and password or a token in it.
    let (servers, login) = NatsAddress::parse_urls(broker)?;
    let nats = Admin::connect(&ConnectionSettings::new(servers, login)).await?;
    let jetstream = nats.jetstream();
    let stream = jetstream
        .get_stream("OUTBOX")
        .await
        .context("no stream OUTBOX: run `walrelay setup`")?;
    let consumer = stream
        .get_or_create_consumer(
            "mailing-erasure",
            pull::Config {
                durable_name: Some("mailing-erasure".to_owned()),
                filter_subject: format!("outbox.{}", UserEraseRequested::EVENT_TYPE),
                ..Default::default()
            },
        )
        .await?;
    let mut messages = consumer.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        match EventEnvelope::from_slice(&message.payload)
            .and_then(|envelope| envelope.decode::<UserEraseRequested>())
        {
            Ok(event) => {
                // Erasing twice is erasing once, so that a redelivery after a crash right here does no harm.
                println!(
                    "mailing:   user {} is forgotten, as asked at {}",
                    event.user_id, event.requested_at
                );
                message
                    .double_ack()
                    .await
                    .map_err(anyhow::Error::from_boxed)?;
                if event.user_id == wanted {
                    return Ok(());
                }
            }
            // A newer version than this service knows: not ours to guess at, and not to be lost either.
            Err(EventError::EventVersion { found, .. }) => {
                println!(
                    "mailing:   version {found} of the request is left for an update of this service"
                );
                let later = AckKind::Nak(Some(Duration::from_secs(60)));
                message
                    .ack_with(later)
                    .await
                    .map_err(anyhow::Error::from_boxed)?;
            }
            Err(error) => {
                eprintln!("mailing:   {error}; trying again will not help");
                message
                    .ack_with(AckKind::Term)
                    .await
                    .map_err(anyhow::Error::from_boxed)?;
            }
        }
    }
    anyhow::bail!("the broker ended the subscription")
}
