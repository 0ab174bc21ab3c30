//! The creation of a slot, which waits for every transaction that writes.
//!
//! In: the step that makes it. Out: where it begins, and meanwhile what it waits for, with what ends that; the same of one that somebody
//! else is at. Guarantee: one that is cancelled leaves no slot.

use std::fmt;
use std::time::Duration;

use postgres_types::PgLsn;

use super::{Step, as_login};
#[cfg(feature = "cli")]
use crate::postgres::catalog;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::health::Prepared;
#[cfg(feature = "cli")]
use crate::postgres::unfinished;

/// How long it may take before the user hears what it waits for, and between two looks at that.
const WAIT_NOTICE: Duration = Duration::from_secs(1);

/// What the creation of a slot waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A transaction of a session.
    Session(SessionBlocker),
    /// A transaction that was prepared and neither committed nor rolled back: `pg_stat_activity` does not show it.
    Prepared(Prepared),
    /// On a standby: the primary's next record of its running transactions.
    RunningTransactions,
}

/// A session with an open transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBlocker {
    /// Its server process.
    pub pid: i32,
    /// Its application_name.
    pub application_name: String,
    /// active, idle in transaction, …; `None` where the role may not see it.
    pub state: Option<String>,
    /// How long the transaction has been open, in seconds; `None` where the role may not see it.
    pub(crate) open_seconds: Option<i64>,
}

impl Blocker {
    /// What ends it.
    pub fn mend(&self) -> String {
        match self {
            Blocker::Session(SessionBlocker { pid, .. }) => {
                format!("let it end, or run SELECT pg_terminate_backend({pid});")
            }
            Blocker::Prepared(prepared) => prepared.mend(),
            Blocker::RunningTransactions => {
                "on the primary, run SELECT pg_log_standby_snapshot(); or wait until something is written there".to_owned()
            }
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Session(session) => write!(f, "the transaction of {session}"),
            Blocker::Prepared(Prepared { gid, owner, seconds, .. }) => {
                write!(f, "the transaction that {owner} prepared as {gid:?} {seconds} s ago")
            }
            Blocker::RunningTransactions => {
                f.write_str("the primary's next record of its running transactions, which an idle one does not write")
            }
        }
    }
}

impl fmt::Display for SessionBlocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if !self.application_name.is_empty() {
            write!(f, " ({})", self.application_name)?;
        }
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        match self.open_seconds {
            Some(seconds) => write!(f, ", open for {seconds} s"),
            None => Ok(()),
        }
    }
}

/// Runs the step that creates the slot, and returns the position from which it streams.
///
/// The server waits until every transaction that writes at this moment has ended. After a second, and whenever that
/// changes, `waits_for` hears for what; `observer` is a second connection for that question. When `cancel` ends first,
/// the creation is cancelled and leaves no slot.
///
/// # Errors
/// The server's refusal; 57014 after `cancel`.
pub async fn create_slot(
    client: &Client,
    observer: &Client,
    step: &Step,
    mut waits_for: impl FnMut(&[Blocker]),
    cancel: impl Future<Output = ()>,
) -> Result<PgLsn, SqlError> {
    let pid = client.pid();
    let sql = step.sql.trim_end_matches(';');
    let creation = as_login(client, client.query_one(sql, &[]));
    let notices = async {
        let mut told = Vec::new();
        loop {
            tokio::time::sleep(WAIT_NOTICE).await;
            let found = blockers(observer, pid).await.unwrap_or_default();
            // The same ones have other ages.
            let mends: Vec<String> = found.iter().map(Blocker::mend).collect();
            if !found.is_empty() && mends != told {
                waits_for(&found);
                told = mends;
            }
        }
    };
    tokio::pin!(creation, notices, cancel);
    let mut cancelled = false;
    loop {
        tokio::select! {
            row = &mut creation => return Ok(row?.try_get(0)?),
            () = &mut notices => unreachable!("the loop has no end"),
            () = &mut cancel, if !cancelled => {
                cancelled = true;
                client.cancel().await?;
            }
        }
    }
}

/// Between two looks at a slot that somebody else makes.
#[cfg(feature = "cli")]
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// A slot that another process is still making: it is in the catalog, nobody can read it, and it goes with that process where it is
/// ended before. A `walrelay setup` that was killed leaves one for as long as the server does not look whether its client is there.
#[cfg(feature = "cli")]
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {}", unfinished::what(.slot, *.pid), told(.blockers), unfinished::mend(*.pid))]
pub(crate) struct Unfinished {
    pub(crate) slot: String,
    /// The server's process that makes it.
    pub(crate) pid: i32,
    /// What that one waits for.
    pub(crate) blockers: Vec<Blocker>,
}

/// What is waited for, and what ends it.
#[cfg(feature = "cli")]
fn told(blockers: &[Blocker]) -> String {
    let each = |blocker: &Blocker| format!(", which waits for {blocker} ({})", blocker.mend());
    blockers.iter().map(each).collect()
}

/// Waits until nobody is making the slot any more. `waits_for` hears who that is, and what they wait for.
///
/// # Errors
/// It is still being made when the time is over, in the inner result; a failed query.
#[cfg(feature = "cli")]
pub(crate) async fn until_made(
    client: &Client,
    slot: &str,
    limit: Duration,
    mut waits_for: impl FnMut(&Unfinished),
) -> Result<Result<(), Unfinished>, SqlError> {
    let begun = tokio::time::Instant::now();
    let mut told: Option<(i32, Vec<String>)> = None;
    loop {
        let found = catalog::slot(client, slot).await?;
        let Some(pid) = found.and_then(|found| found.made_by()) else {
            return Ok(Ok(()));
        };
        let unfinished = Unfinished {
            slot: slot.to_owned(),
            pid,
            blockers: blockers(client, pid).await.unwrap_or_default(),
        };
        // The same ones have other ages.
        let mends: Vec<String> = unfinished.blockers.iter().map(Blocker::mend).collect();
        let telling = Some((pid, mends));
        if begun.elapsed() >= limit {
            return Ok(Err(unfinished));
        }
        if telling != told {
            waits_for(&unfinished);
            told = telling;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What the server process `pid` waits for in the creation of a slot.
///
/// # Errors
/// A failed query.
pub async fn blockers(client: &Client, pid: i32) -> Result<Vec<Blocker>, SqlError> {
    let sessions = "\
        SELECT pid, coalesce(application_name, ''), state,
               extract(epoch FROM clock_timestamp() - xact_start)::int8
        FROM pg_catalog.pg_stat_activity WHERE pid = ANY (pg_blocking_pids($1)) ORDER BY pid";
    let mut found = Vec::new();
    for row in client.query(sessions, &[&pid]).await? {
        found.push(Blocker::Session(SessionBlocker {
            pid: row.try_get(0)?,
            application_name: row.try_get(1)?,
            state: row.try_get(2)?,
            open_seconds: row.try_get(3)?,
        }));
    }
    let prepared = "\
        SELECT p.gid, p.owner::text, p.database::text, extract(epoch FROM clock_timestamp() - p.prepared)::int8
        FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = l.transactionid
        WHERE l.pid = $1 AND NOT l.granted";
    for row in client.query(prepared, &[&pid]).await? {
        found.push(Blocker::Prepared(Prepared {
            gid: row.try_get(0)?,
            owner: row.try_get(1)?,
            database: row.try_get(2)?,
            seconds: row.try_get(3)?,
        }));
    }
    let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if found.is_empty() && standby.try_get(0)? {
        found.push(Blocker::RunningTransactions);
    }
    Ok(found)
}
