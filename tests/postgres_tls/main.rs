//! TLS with a real Postgres: each `sslmode` against each kind of server, case by case as `psql` has it, and SCRAM bound
//! to the channel.

mod bind;
mod certificates;
mod hosts;
mod password;
mod support;
mod system;
mod table;
mod tampering;
