//! How the program gets to NATS, and what it may do there: permissions, logins, TLS, domains; the real program, real
//! servers.

#[path = "../postgres_tls/certificates.rs"]
#[allow(dead_code)] // The tests of Postgres use the rest of it.
mod certificates;
mod logins;
mod permissions;
mod routes;
mod secrets;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports)] // The integration tests use the rest of it.
mod support;
mod tls;
