//! Partitions that a run has detached which did not end.
//!
//! In: the table. Out: them attached again. Guarantee: no other run detaches or drops meanwhile.

use anyhow::bail;

use super::Prune;
use super::partitions::Partitions;
use super::report::Report;
use super::waited::{Waited, told};
use crate::cli::exit::message;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::detached;
use crate::postgres::named_lock;
use crate::relay::Shutdown;

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
                Some(writer) => {
                    // Whoever waits for this one to end has it dropped.
                    let shutdown = Shutdown::never();
                    let waited = Waited {
                        runs: writer,
                        observer: reader,
                        shutdown: &shutdown,
                    };
                    let (attached, blockers) = waited.run(partitions.attach(&left), |_| {}).await;
                    let Err(error) = attached else { continue };
                    report.done = false;
                    if left.is_pending && !blockers.is_empty() {
                        report.notes.push(format!(
                            "{name} is still being detached from {table} by a walrelay prune that did not end: {}run this again then",
                            told(&blockers)
                        ));
                        continue;
                    }
                    let why = message(&error.into());
                    format!(
                        "and cannot be attached again: {why}{}",
                        match told(&blockers) {
                            told if told.is_empty() => told,
                            told => format!("; {told}run this again then"),
                        }
                    )
                }
            };
            report.notes.push(format!(
                "{name} is detached from {table} by a walrelay prune that did not end, {why}"
            ));
        }
        Ok(())
    }
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
