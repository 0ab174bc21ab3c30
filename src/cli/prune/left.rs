//! Partitions that a run has detached which did not end.
//!
//! In: the table. Out: them attached again. Guarantee: no other run detaches or drops meanwhile.

use super::Prune;
use super::partitions::Partitions;
use super::report::Report;
use crate::cli::exit::message;
use crate::cli::reshard::alone;
use crate::postgres::client::Client;
use crate::postgres::detached;

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
            alone::lock_as(client, "prune", &lock_name(table)).await?;
        }
        for left in detached::of(client, table).await? {
            let name = &left.name;
            let why = match writer {
                None => "and its rows are not counted here".to_owned(),
                Some(_) => match partitions.attach(&left).await {
                    Ok(()) => continue,
                    Err(error) => {
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

/// Of the lock of a run that detaches and drops.
pub(in crate::cli) fn lock_name(table: &str) -> String {
    format!("walrelay prune {table}")
}
