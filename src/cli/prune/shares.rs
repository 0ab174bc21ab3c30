//! Which rows of the table `prune` is about: those that its lanes publish.
//!
//! In: the lanes of the configuration, their publications. Out: SQL for their rows. Guarantee: of a table with shares, all of them.

use anyhow::bail;

use crate::cli::deletable::deletable;
use crate::cli::exit::UsageError;
use crate::postgres::catalog::{Inspection, Table};
use crate::postgres::client::Client;
use crate::postgres::findings::not_held;
use crate::postgres::settings::PostgresSettings;
use crate::relay::settings::Settings;

/// The first lane. A partition has rows of all shares, and all of them keep rows.
pub(super) fn whole(lanes: &[Settings]) -> Result<&Settings, UsageError> {
    let share = lanes.first().and_then(|lane| lane.postgres.share.as_ref());
    match (lanes.first(), share) {
        (Some(_), Some(share)) if lanes.len() != share.count as usize => Err(UsageError(
            "rows go of all shares together: leave out --share and relay.share".to_owned(),
        )),
        (Some(first), _) => Ok(first),
        (None, _) => Err(UsageError("there is no lane".to_owned())),
    }
}

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
