//! The replication client against a real Postgres.

mod database;
mod sessions;
mod streams;
