//! The transaction that changes all publications.
//!
//! In: the publications, another number of shares. Out: the LSN in front of which all is as it was. Guarantees: no transaction with
//! rows of the tables is under way there: Postgres would judge its rows by either filter, as its cache has it (`findings/`), and so
//! might send one twice or never. The tables are waited for in short tries, so that inserts are not held up by who waits.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use postgres_types::PgLsn;

use super::Resharding;
use super::leases::Leases;
use crate::cli::stderr;
use crate::pipeline::reshard::{self, has_lane, lanes_of};
use crate::postgres::catalog::Inspection;
use crate::postgres::client::SqlError;
use crate::postgres::division::Division;
use crate::postgres::findings::shares;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::wal_end::wal_end;
use crate::table_name::quote_identifier;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// A vacuum that runs by itself gives way to who waits for longer than `deadlock_timeout`, 1 s by default.
const VACUUM_WAIT: Duration = Duration::from_secs(10);
/// SQLSTATE lock_not_available and deadlock_detected.
const NOT_NOW: [&str; 2] = ["55P03", "40P01"];

impl Resharding<'_> {
    /// Changes them.
    ///
    /// # Errors
    /// The table was never free, a lease is lost, or Postgres refuses.
    pub(super) async fn change(&self, leases: &Leases) -> anyhow::Result<PgLsn> {
        let statements = self.statements()?;
        let begun = Instant::now();
        let mut is_told = false;
        loop {
            // Others look at the lock of this run's session as well: one may have taken a lease behind this.
            let lost = leases.renew().await;
            lost.context("the publications are as they were")?;
            let tried = self.try_to(&statements).await;
            if tried.is_err() {
                // It says no more than the error does.
                let _ = self.sql.batch_execute("ROLLBACK").await;
            }
            let error = match tried {
                Ok(lsn) => return Ok(lsn),
                Err(error) => error,
            };
            let sql = error
                .chain()
                .find_map(|cause| cause.downcast_ref::<SqlError>());
            let is_busy = sql
                .and_then(SqlError::code)
                .is_some_and(|code| NOT_NOW.contains(&code));
            if !is_busy {
                return Err(error.context("the publications are as they were"));
            }
            let tables = self.tables();
            if begun.elapsed() >= self.args.wait {
                bail!(
                    "the publications are as they were: {tables} was never without a transaction that has written to it. \
                     SELECT pid, query FROM pg_stat_activity WHERE state = 'idle in transaction'; shows who stays in one"
                );
            }
            if !std::mem::replace(&mut is_told, true) {
                stderr::line(format_args!(
                    "waiting for a moment without a transaction that has written to {tables}"
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_to(&self, statements: &[String]) -> anyhow::Result<PgLsn> {
        let (lock, changes) = statements.split_first().context("there is a lock")?;
        let tables = self.tables();
        // The locks are taken one after the other, and what is inserted into the first waits for all of them.
        let lock_wait = self.args.lock_wait / u32::try_from(self.shares[0].tables().len())?;
        let wait =
            |time: Duration| format!("SET LOCAL lock_timeout = '{}ms'", time.as_millis().max(1));
        self.sql
            .batch_execute(&format!(
                "BEGIN; {}; LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE; {}; {lock}",
                wait(VACUUM_WAIT),
                wait(lock_wait)
            ))
            .await?;
        let division = Division::look(&self.sql, &self.shares[0].postgres).await?;
        ensure!(
            division.whole() == Some(self.switch.from),
            "somebody else has changed the publications meanwhile"
        );
        for change in changes {
            let changed = self.sql.batch_execute(change).await;
            changed.with_context(|| format!("cannot run {change}"))?;
        }
        self.sql.batch_execute("COMMIT").await?;
        Ok(wal_end(&self.sql).await?)
    }

    /// What the transaction consists of, the lock first.
    pub(super) fn statements(&self) -> anyhow::Result<Vec<String>> {
        let first = &self.shares[0].postgres;
        let mut statements = vec![format!(
            "LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE;",
            self.tables()
        )];
        let reshard::Switch { from, to } = self.switch;
        let leaving = lanes_of(from).filter(|part| !has_lane(to, *part));
        for part in lanes_of(to).chain(leaving) {
            let mut lane = self.lane(part).postgres.clone();
            lane.share = lane.share.map(|share| share.of(to));
            let mut published = Vec::new();
            for (found, of_table) in self.inspection.tables().zip(lane.tables()) {
                published.push(carried(found, &of_table, part, to)?);
            }
            statements.push(format!(
                "ALTER PUBLICATION {} SET TABLE {};",
                quote_identifier(&lane.publication),
                published.join(", ")
            ));
        }
        statements.push(format!(
            "SELECT pg_logical_emit_message(true, '{}', '{}');",
            reshard::PREFIX,
            self.switch.content(&first.any_share().whole_slot)
        ));
        Ok(statements)
    }

    /// All of them, as SQL has them.
    fn tables(&self) -> String {
        let tables = self.shares[0].postgres.tables().into_iter();
        let names: Vec<String> = tables.map(|it| it.table.to_string()).collect();
        names.join(", ")
    }
}

/// What the publication of a lane carries of a table where there are `to` shares, as SQL has it.
fn carried(
    found: &Inspection,
    of_table: &PostgresSettings,
    part: Option<u32>,
    to: u32,
) -> anyhow::Result<String> {
    let name = &of_table.table;
    let table = found.table.as_ref();
    let table = table.with_context(|| format!("there is no table {name}"))?;
    Ok(match (has_lane(to, part), part) {
        (true, None) => name.to_string(),
        (true, Some(_)) => {
            let wanted = shares::wanted(table, of_table)
                .with_context(|| format!("the aggregate's column of {name} cannot be hashed"))?;
            format!("{name} WHERE {wanted}")
        }
        (false, _) => format!("{name} WHERE (false)"),
    })
}
