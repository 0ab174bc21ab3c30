//! Who keeps the lane's tables from being looked at.
//!
//! In: a client, settings. Out: the catalog's state, or who has locked a table of the lane; that can be seen while the lock is there.

use std::fmt;

use crate::postgres::catalog::{self, Inspection};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::settings::PostgresSettings;

/// A lock that a migration takes for a moment is waited for.
const WAIT: &str = "SET lock_timeout = '4s'";
/// As every session of ours has it.
const WAIT_ON: &str = "SET lock_timeout = 0";
/// `lock_not_available`.
const TIMED_OUT: &str = "55P03";

/// A process that has a lock under which nothing can be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    table: String,
    pid: i32,
    role: String,
    application: String,
    /// When its transaction began, in UTC.
    since: String,
    /// Else it waits for one, and everybody behind it.
    has_lock: bool,
}

impl Locked {
    /// The table, as SQL has it.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What to do about it.
    #[must_use]
    pub fn mend(&self) -> String {
        let pid = self.pid;
        format!(
            "see what it does with SELECT * FROM pg_stat_activity WHERE pid = {pid}; and wait for its end, or end it with \
             SELECT pg_terminate_backend({pid});"
        )
    }
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "table {} is {} (ACCESS EXCLUSIVE) by process {} of Postgres ({}, {:?}), whose transaction began at {} UTC: nobody can \
             look at it",
            self.table,
            match self.has_lock {
                true => "locked",
                false => "about to be locked",
            },
            self.pid,
            self.role,
            self.application,
            self.since
        )
    }
}

/// What the catalog has, or who keeps it from being read.
#[derive(Debug)]
pub enum Inspected {
    /// All.
    Seen(Box<Inspection>),
    /// This lock is in the way.
    Locked(Locked),
}

/// As [`catalog::inspect`], without waiting for a lock for more than seconds.
///
/// # Errors
/// A failed query; a lock whose holder is gone meanwhile.
pub async fn inspect(client: &Client, settings: &PostgresSettings) -> Result<Inspected, SqlError> {
    client.batch_execute(WAIT).await?;
    let inspected = catalog::inspect(client, settings).await;
    match inspected {
        Err(error) if error.code() == Some(TIMED_OUT) => {
            client.batch_execute(WAIT_ON).await?;
            match holder(client, settings).await? {
                Some(locked) => Ok(Inspected::Locked(locked)),
                None => Err(error),
            }
        }
        inspected => {
            let inspected = inspected?;
            client.batch_execute(WAIT_ON).await?;
            Ok(Inspected::Seen(Box::new(inspected)))
        }
    }
}

/// Who has locked a table of the lane, or is to have it locked next: others wait behind that; the oldest.
async fn holder(client: &Client, settings: &PostgresSettings) -> Result<Option<Locked>, SqlError> {
    let query = "SELECT l.pid, coalesce(a.usename::text, '-'), coalesce(a.application_name, ''), \
                   coalesce(to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS'), '-'), l.granted \
                 FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
                 WHERE l.mode = 'AccessExclusiveLock' AND l.pid IS NOT NULL \
                   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
                   AND n.nspname = $1::text AND c.relname = $2::text \
                 ORDER BY l.granted DESC, a.xact_start LIMIT 1";
    for settings in settings.tables() {
        let table = &settings.table;
        let row = client
            .query_opt(query, &[&table.schema, &table.table])
            .await?;
        if let Some(row) = row {
            return Ok(Some(Locked {
                table: table.to_string(),
                pid: row.try_get(0)?,
                role: row.try_get(1)?,
                application: row.try_get(2)?,
                since: row.try_get(3)?,
                has_lock: row.try_get(4)?,
            }));
        }
    }
    Ok(None)
}
