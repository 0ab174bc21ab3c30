//! Ranges of history that are published again: `replay`, `backfill`, `verify --repair`, on real servers.

mod broker;
#[path = "../faults/lane.rs"]
#[allow(dead_code)] // The fault tests use the rest of it.
mod lane;
mod moves;
mod of_table;
mod range;
mod refused;
mod repair;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports)] // The integration tests use the rest of it.
mod support;
mod takeover;
