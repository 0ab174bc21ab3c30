//! Which rows of the table `prune` is about: those that its lanes publish.
//!
//! In: the lanes of the configuration, their publications. Out: SQL for their rows. Guarantee: of a table with shares, all of them.

use anyhow::bail;

use crate::cli::deletable::deletable;
use crate::postgres::catalog::{Inspection, Table};
use crate::postgres::client::Client;
use crate::postgres::findings::not_held;
use crate::postgres::settings::PostgresSettings;

/// SQL for the rows that a lane's publication carries.
pub(super) fn carried(inspection: &Inspection) -> String {
    format!("({})", inspection.row_filter().unwrap_or("true"))
}

/// The table, where rows may be deleted from it, or are only counted, and their slot tells about them; and why they may not be deleted.
pub(super) async fn prunable<'i>(
    client: &Client,
    inspection: &'i Inspection,
    postgres: &PostgresSettings,
    dry_run: bool,
) -> anyhow::Result<(&'i Table, Option<String>)> {
    let deletable = deletable(client, inspection, &postgres.table, dry_run).await?;
    match not_held(inspection, postgres) {
        Some(not_held) => bail!("{not_held}"),
        None => Ok(deletable),
    }
}
