//! What touches NATS: addresses and authentication, the hot lane's own connection, the JetStream API, streams.
//!
//! - [`address`]: where a server is and how to authenticate there.
//! - [`protocol`], [`headers`], [`encode`]: bytes ↔ operations of the NATS client protocol; pure.
//! - [`connection`]: one socket of one epoch, without reconnection.
//! - [`api`]: the JetStream API requests that the relay needs; pure bodies and answers.
//! - [`stream`]: plans, creates and deletes streams for setup and teardown; on async-nats.

pub mod address;
pub mod api;
pub mod connection;
pub mod encode;
pub mod headers;
pub mod protocol;
pub mod settings;
pub mod stream;
