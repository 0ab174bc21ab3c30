//! The relay end to end: real Postgres, real NATS, the real program as a child process.
//!
//! Each test has its own database, slot, publication and stream; those that stop or kill a server have servers of
//! their own. A missing server fails a test, it does not skip it.

mod absent_servers;
mod altered_columns;
mod authentication;
mod backfill_order;
mod beginnings;
mod crashes;
mod delivery;
mod doctor;
mod embedded;
mod formats;
mod idle;
mod inbox;
mod least_privilege;
mod logs;
mod mapping;
mod messages;
mod partitions;
mod pooler;
mod presets;
mod producers;
mod proposals;
#[path = "../chaos/proxy.rs"]
#[allow(dead_code)] // The chaos tests use the rest of it.
mod proxy;
mod refusals;
mod rejects;
mod replay;
mod rights;
mod sealed;
mod setup;
mod several_tables;
mod several_tables_after_publish;
mod several_tables_commands;
mod several_tables_refusals;
mod several_tables_renamed;
mod shares;
mod signals;
mod slow;
#[path = "../statements/mod.rs"]
mod statements;
mod stopping;
mod support;
mod tables;
mod takeover;
mod two_servers;
mod unfinished_slot;
mod versions;
mod waiting_relays;
