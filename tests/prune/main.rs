//! `walrelay prune` against real servers: what goes, what stays, and what a killed one leaves.

mod ended;
#[path = "../platform/mod.rs"]
mod platform;
mod rows;
