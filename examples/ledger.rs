//! A service that keeps balances: each payment's event counts exactly once, however often it is delivered.
//!
//! ```text
//! DATABASE_URL=postgres://localhost/ledger NATS_URL=nats://localhost:4222 cargo run --example ledger
//! ```
//!
//! Its own database has the inbox (`sql/inbox.sql`) and the balances. Kill it whenever you like; start two of it. The same in
//! Python: `examples/ledger.py`.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio_postgres::NoTls;
use walrelay::consumer::{Event, INBOX_SQL, Inbox, Taken, subject_filter};

const EVENT_TYPE: &str = "payment.received.v1";

/// The payload of `payment.received.v1`.
#[derive(Deserialize)]
struct Payment {
    account: String,
    cents: i64,
}

#[allow(dead_code, reason = "a test runs `serve` with a stream of its own")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let database = std::env::var("DATABASE_URL").context("set DATABASE_URL to its own database")?;
    let broker = std::env::var("NATS_URL").context("set NATS_URL to the broker")?;
    let nats = async_nats::connect(&broker).await?;
    serve(&database, nats, "OUTBOX", "outbox.{event_type}").await
}

/// Applies payments until the process ends.
pub async fn serve(
    database: &str,
    nats: async_nats::Client,
    stream: &str,
    template: &str,
) -> anyhow::Result<()> {
    let (mut client, connection) = tokio_postgres::connect(database, NoTls).await?;
    tokio::spawn(connection);
    let setup = client.transaction().await?;
    // Instances that start at the same time make the tables one after the other.
    setup
        .batch_execute("select pg_advisory_xact_lock(hashtext('ledger'))")
        .await?;
    setup.batch_execute(INBOX_SQL).await?;
    let sql =
        "create table if not exists balances (account text primary key, cents bigint not null)";
    setup.batch_execute(sql).await?;
    setup.commit().await?;

    let stream = async_nats::jetstream::new(nats).get_stream(stream).await?;
    let config = pull::Config {
        durable_name: Some("ledger".to_owned()),
        filter_subject: subject_filter(template, EVENT_TYPE)?,
        // What a killed instance had is given to the next one after so long.
        ack_wait: Duration::from_secs(2),
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer("ledger", config).await?;
    loop {
        // Some messages in one transaction: fewer commits, and no other effect.
        let mut batch = consumer
            .fetch()
            .max_messages(50)
            .expires(Duration::from_secs(1))
            .messages()
            .await?;
        let mut messages = Vec::new();
        while let Some(message) = batch.next().await {
            messages.push(message.map_err(anyhow::Error::from_boxed)?);
        }
        // Two instances may wait for each other's accounts: Postgres then refuses one of them (SQLSTATE 40P01).
        let answer = match apply(&mut client, &messages).await {
            Ok(()) => AckKind::Ack,
            Err(error) if is_worth_a_retry(&error) => AckKind::Nak(None),
            Err(error) => return Err(error),
        };
        for message in messages {
            let answered = message.ack_with(answer).await;
            answered.map_err(anyhow::Error::from_boxed)?;
        }
    }
}

/// Deadlocks and what is alike: the transaction is rolled back, and may succeed the next time.
fn is_worth_a_retry(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let code = cause
            .downcast_ref::<tokio_postgres::Error>()
            .and_then(tokio_postgres::Error::code);
        code.is_some_and(|code| code.code().starts_with("40"))
    })
}

/// All of them, or none.
async fn apply(client: &mut tokio_postgres::Client, messages: &[Message]) -> anyhow::Result<()> {
    let inbox = Inbox::new("ledger");
    let transaction = client.transaction().await?;
    for message in messages {
        let event = Event::read(message)?;
        if inbox.take(&transaction, &event).await? == Taken::Again {
            continue;
        }
        let payment: Payment = event.payload_as()?;
        let sql = "insert into balances as b values ($1, $2)
                   on conflict (account) do update set cents = b.cents + excluded.cents";
        transaction
            .execute(sql, &[&payment.account, &payment.cents])
            .await?;
    }
    // Killed behind it and before the acknowledgement, the service is given the messages again, and leaves it at that.
    Ok(transaction.commit().await?)
}
