//! walrelay: the relay of the transactional outbox for Postgres and NATS JetStream.
//!
//! An application inserts an event into `outbox_events` in the transaction that changes its data. walrelay tails the
//! write-ahead log and puts each committed event into a JetStream stream, exactly once and in commit order, and tells
//! Postgres to forget WAL only when the broker can be trusted to have it.
//!
//! ```text
//! WAL ─ walsender ─▶ replication socket ─▶ pgoutput ─▶ rows with a position ─▶ envelopes ─▶ batches ─▶ JetStream
//!                         ▲                                                                                │ acks
//!                         └── status update: confirmed LSN ◀── probe ◀── lane record ◀── hold-back ◀───────┘
//! ```
//!
//! # Layout
//! | module | what |
//! |---|---|
//! | [`event`] | `DomainEvent`, `EventEnvelope`: what producers write and consumers read |
//! | [`outbox`] | the application's side: add an event in its transaction |
//! | [`consumer`] | the reader's side: what a message says, of any format |
//! | [`postgres`] | replication socket, catalog, set-up |
//! | [`pipeline`] | everything that decides, without I/O, one file a stage |
//! | [`nats`] | the lane's connection, JetStream's API, streams |
//! | [`relay`] | the one loop that joins them: epochs, back-off, shutdown |
//! | [`bulk`] | what is published outside of a lane: backfill, retry |
//! | [`config`] | flags, environment and file → settings |
//! | [`cli`] | the commands, one file each |
//! | [`ops`] | logs, metrics, health, status page |
//! | [`tls`] | files of certificates → TLS as a client, for Postgres and NATS |
//! | [`secret`], [`environment`] | a value that is never printed; the process' environment as a value |
//! | [`local`] | servers of one's own, for the demo, the tests and the benches |
//!
//! # A relay inside an application
//! ```no_run
//! # async fn embed() -> anyhow::Result<()> {
//! let settings = walrelay::relay::settings::Settings::of_urls("postgres://localhost/app", "nats://localhost:4222")?;
//! let mut relay = walrelay::relay::spawn(settings);
//! println!("{:?}", relay.status().state);
//! // …until the application stops, or the relay cannot go on:
//! tokio::select! {
//!     _ = tokio::signal::ctrl_c() => {}
//!     ended = relay.ended() => println!("{ended:?}"),
//! }
//! relay.stop().await?;
//! # Ok(())
//! # }
//! ```

// It panics where standard output is closed or full: `cli::stdout` writes there.
#![warn(clippy::print_stdout)]

#[cfg(feature = "cli")]
pub mod bulk;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod consumer;
pub mod environment;
pub mod event;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod local;
pub mod nats;
mod nearest;
#[cfg(feature = "cli")]
pub mod ops;
pub mod outbox;
pub mod pipeline;
pub mod postgres;
pub mod relay;
pub mod secret;
pub mod tls;
