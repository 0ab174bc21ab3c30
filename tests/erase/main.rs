//! `walrelay erase` against real servers: what goes, where it looks, and that nothing else does.

mod aggregate;
mod beside;
mod copies;
mod end;
#[path = "../platform/mod.rs"]
mod platform;
