//! Partitions that a run has detached which did not end.
//!
//! In: the table. Out: them attached again. Guarantee: no other run detaches or drops meanwhile.

use std::time::Duration;

use anyhow::bail;

use super::Prune;
use super::partitions::Partitions;
use super::report::Report;
use crate::cli::exit::message;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::detached::{self, Detached};
use crate::postgres::named_lock;
use crate::postgres::setup::{Blocker, blockers};

/// Between two looks at what it waits for.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

impl Prune<'_> {
    /// Attaches again what a run that did not end has detached, before anything is compared: nobody has seen the rows since. From then
    /// on no other run detaches or drops beside this one. Without a writer it is only told.
    pub(super) async fn attach_left(
        &self,
        writer: Option<&Client>,
        reader: &Client,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (client, table) = (writer.unwrap_or(reader), &self.batches.table);
        let postgres = &self.settings.postgres;
        let Some(partitions) = Partitions::of(client, postgres, &self.cutoff).await? else {
            return Ok(());
        };
        if writer.is_some() {
            let other = named_lock::take(client, &lock_name(table)).await?;
            if let Some(other) = other {
                bail!(other.is_another("prune"));
            }
        }
        for left in detached::of(client, table).await? {
            let name = &left.name;
            let why = match writer {
                None => "and its rows are not counted here".to_owned(),
                Some(writer) => match attach(&partitions, &left, writer.pid(), reader).await {
                    (Ok(()), _) => continue,
                    (Err(_), blockers) if left.is_pending && !blockers.is_empty() => {
                        report.done = false;
                        report.notes.push(format!(
                            "{name} is still being detached from {table} by a walrelay prune that did not end: {}run this again then",
                            blockers.iter().map(told).collect::<String>()
                        ));
                        continue;
                    }
                    (Err(error), _) => {
                        report.done = false;
                        format!("and cannot be attached again: {}", message(&error.into()))
                    }
                },
            };
            report.notes.push(format!(
                "{name} is detached from {table} by a walrelay prune that did not end, {why}"
            ));
        }
        Ok(())
    }
}

/// Attaches it again; who has kept it waiting, as an observer sees it meanwhile.
async fn attach(
    partitions: &Partitions<'_>,
    left: &Detached,
    pid: i32,
    observer: &Client,
) -> (Result<(), SqlError>, Vec<Blocker>) {
    let mut waits_for = Vec::new();
    let attach = partitions.attach(left);
    tokio::pin!(attach);
    loop {
        tokio::select! {
            done = &mut attach => return (done, waits_for),
            () = tokio::time::sleep(LOOK_PAUSE) => {}
        }
        // That it could not be looked at is no reason not to attach it.
        if let Ok(found) = blockers(observer, pid).await
            && !found.is_empty()
        {
            waits_for = found;
        }
    }
}

fn told(blocker: &Blocker) -> String {
    format!("{blocker}, has it open: {} ", blocker.mend())
}

/// Whether a run is at work that detaches and drops.
///
/// # Errors
/// Postgres refuses.
pub(in crate::cli) async fn is_at_work(sql: &Client, table: &str) -> Result<bool, SqlError> {
    Ok(named_lock::holder(sql, &lock_name(table)).await?.is_some())
}

fn lock_name(table: &str) -> String {
    format!("walrelay prune {table}")
}
