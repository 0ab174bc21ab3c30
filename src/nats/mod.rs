//! What touches NATS: addresses and authentication, the hot lane's own connection, the JetStream API, streams.
//!
//! - [`address`]: where a server is and how to authenticate there.
//! - [`login`]: where the credentials come from, read at each connect.
//! - [`protocol`], [`headers`], [`encode`]: bytes ↔ operations of the NATS client protocol; pure.
//! - [`denial`]: what the user may not do, and the permission to add.
//! - [`connection`]: one socket of one epoch, without reconnection.
//! - [`api`]: the JetStream API requests that the relay needs; pure bodies and answers.
//! - [`admin`]: the connection of the commands; on async-nats.
//! - [`stored`]: the messages that a stream has, one after the other.
//! - [`filters`]: which subjects a subject with wildcards takes in.
//! - [`stream`]: plans, creates and deletes streams for setup and teardown.

pub mod address;
pub mod admin;
pub mod api;
pub mod connection;
pub mod denial;
pub mod encode;
pub mod filters;
pub mod headers;
pub mod login;
mod peer;
pub mod protocol;
pub mod settings;
pub mod stored;
pub mod stream;
