//! Ranges of history that are published again: `replay`, `backfill`, `verify --repair`, on real servers.

mod at_work;
mod beginnings;
mod broker;
mod gaps;
#[path = "../faults/lane.rs"]
#[allow(dead_code)] // The fault tests use the rest of it.
mod lane;
mod moves;
mod of_table;
#[path = "../chaos/proxy.rs"]
#[allow(dead_code)] // The tests of chaos use the rest of it.
mod proxy;
mod range;
mod refused;
mod repair;
#[path = "../integration/slow.rs"]
mod slow;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports)] // The integration tests use the rest of it.
mod support;
mod takeover;
