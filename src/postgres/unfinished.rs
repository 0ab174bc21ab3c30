//! A slot that a process of Postgres is still making, as a person is told of it.
//!
//! In: slot and process. Out: words. It is in the catalog, nobody can read it, and it goes with that process where that is ended before.
//! A `walrelay setup` that was killed leaves one for as long as the server does not look whether its client is there.

/// What is so.
pub(crate) fn what(slot: &str, pid: i32) -> String {
    format!("replication slot \"{slot}\" is still being made, by process {pid} of Postgres")
}

/// What ends that.
pub(crate) fn mend(pid: i32) -> String {
    format!(
        "wait for the end of the transactions that were under way; or run SELECT pg_terminate_backend({pid}); and then walrelay setup, \
         which makes it anew"
    )
}
