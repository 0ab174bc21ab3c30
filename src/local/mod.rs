//! Postgres and NATS servers of one's own in a temporary folder, for `walrelay demo`, the tests and the benches.
//!
//! In: the folder of the servers' executables ([`ServerBinaries`]) and a few options. Out: a running server on
//! loopback, on a free port, that can be stopped, killed, paused and started again on the same data.
//!
//! Guarantees: a `start` returns when the server accepts connections, or fails with the last lines of its log; a
//! dropped server is gone, with its folder, also after a panic; and should this very process be killed, a small
//! watchdog (see `folder`) ends the server and removes the folder in its place.
//!
//! Not part of the library's promise: the names here may change in any release.

mod binaries;
mod cluster;
mod folder;
mod nats;
mod postgres;
mod process;
mod template;

pub use binaries::ServerBinaries;
pub use cluster::LocalNatsCluster;
pub use nats::{LocalNats, NatsOptions};
pub use postgres::{Authentication, LocalPostgres, Mode, PasswordMethod, PostgresOptions};

use std::io;
use std::time::Duration;

/// Why a local server is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// No executable that is new enough: the caller has to fetch the servers first.
    #[error(
        "no {server} found in {looked_in}: install both servers so that they are on PATH, or name a folder that has postgres/bin \
         and nats/nats-server with WALRELAY_SERVERS; in walrelay's sources scripts/servers.sh (make servers) fetches them"
    )]
    Missing {
        /// Which server, and from which version on.
        server: String,
        /// Where it was looked for.
        looked_in: String,
    },
    /// The server ended or did not become ready.
    #[error("{server} did not start: {reason}{}", log_lines(.log))]
    Start {
        /// Which server.
        server: String,
        /// What was seen from outside.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// The server still runs at the end of the time that it had for stopping.
    #[error("{server} still runs {}s after the request to stop{}", .limit.as_secs_f32(), log_lines(.log))]
    Stop {
        /// Which server.
        server: String,
        /// How long was waited.
        limit: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// The system refused something that has nothing to do with the server itself.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl LocalError {
    /// For `map_err`: what was tried when `source` came up.
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> LocalError {
        let action = action.into();
        move |source| LocalError::Io { action, source }
    }
}

/// A log as the tail of a message.
fn log_lines(log: &str) -> String {
    match log.trim_end() {
        "" => "; its log is empty".to_owned(),
        log => format!("; the end of its log:\n{log}"),
    }
}
