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
//! # What for whom
//! | feature | module | for |
//! |---|---|---|
//! | none | `event` | `DomainEvent`, `EventEnvelope`: producers with inserts of their own |
//! | `outbox` | `outbox` | producers on tokio-postgres: an event in the caller's transaction |
//! | `outbox-sqlx` | `outbox` | producers on sqlx |
//! | `consumer` | `consumer` | consumers on async-nats: what a message says, of any format |
//! | `inbox` | `consumer` | and their effects in Postgres, exactly once |
//! | `relay` | `relay`, `config` | the relay inside an application |
//! | `cli`, `inbox` by default | | the program, and everything above |
//!
//! ```toml
//! walrelay = { version = "0.1", default-features = false, features = ["outbox"] }
//! ```
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

// What is not for applications is there for the program and the tests: rustdoc alone leaves it out, so that it keeps its docs.
#[cfg(feature = "cli")]
#[cfg_attr(doc, doc(hidden))]
pub mod bulk;
#[cfg(feature = "cli")]
#[cfg_attr(doc, doc(hidden))]
pub mod cli;
#[cfg(feature = "relay")]
pub mod config;
#[cfg(feature = "consumer")]
pub mod consumer;
#[cfg(feature = "relay")]
mod counted;
#[cfg(feature = "relay")]
#[cfg_attr(doc, doc(hidden))]
pub mod environment;
pub mod event;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod local;
#[cfg(feature = "relay")]
pub mod nats;
#[cfg(feature = "relay")]
mod nearest;
#[cfg(feature = "cli")]
#[cfg_attr(doc, doc(hidden))]
pub mod ops;
#[cfg(any(feature = "outbox", feature = "outbox-sqlx"))]
pub mod outbox;
#[cfg(feature = "relay")]
#[cfg_attr(doc, doc(hidden))]
pub mod pipeline;
#[cfg(feature = "relay")]
pub mod postgres;
#[cfg(feature = "relay")]
pub mod relay;
#[cfg(feature = "relay")]
#[cfg_attr(doc, doc(hidden))]
pub mod secret;
#[cfg(any(feature = "outbox", feature = "outbox-sqlx", feature = "relay"))]
#[doc(hidden)]
pub mod table_name;
#[cfg(feature = "relay")]
#[cfg_attr(doc, doc(hidden))]
pub mod tls;
