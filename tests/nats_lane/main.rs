//! The lane's connection against a real nats-server.

mod atomic_batch;
mod authentication;
mod experiments;
mod fast_ingest;
mod lane;
mod server;
mod streams;
