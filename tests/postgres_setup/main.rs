//! Setup, inspection and teardown against a real Postgres.

mod columns;
mod database;
#[path = "../postgres_settings/mod.rs"]
mod postgres_settings;
mod sessions;
mod setup;
#[path = "../statements/mod.rs"]
mod statements;
