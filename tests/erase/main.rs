//! `walrelay erase` against real servers: what goes, where it looks, and that nothing else does.

mod aggregate;
mod beside;
mod copies;
mod end;
mod on_the_way;
#[path = "../platform/mod.rs"]
mod platform;
#[path = "../chaos/proxy.rs"]
#[allow(dead_code)] // The chaos tests use the rest of it.
mod proxy;
