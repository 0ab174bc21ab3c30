//! `walrelay prune` against real servers: what goes, what stays, and what a killed one leaves.

mod command;
mod ended;
mod in_use;
mod letters;
mod partitions;
#[path = "../platform/mod.rs"]
mod platform;
mod rows;
