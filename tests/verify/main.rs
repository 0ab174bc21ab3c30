//! `walrelay verify` against real servers.

mod found;
#[path = "../platform/mod.rs"]
mod platform;
mod removed;
