//! How the program gets to NATS, and what it may do there: permissions, logins, TLS, domains; the real program, real
//! servers.

mod permissions;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports)] // The integration tests use the rest of it.
mod support;
