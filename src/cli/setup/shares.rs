//! `walrelay setup` of an outbox with shares.
//!
//! In: the configuration's lanes. Out: each of them set up. Guarantee: nothing is made while the server has no room for all of them,
//! or has slots or publications of another number of shares, which may be one, or somebody else's of their names.

use anyhow::Context as _;

use super::{Args, execute, print_findings, refused};
use crate::cli::exit::Exit;
use crate::cli::lanes;
use crate::cli::reshard::{alone, of_all_rows};
use crate::config::Loaded;
use crate::pipeline::reshard::OtherNumber;
use crate::postgres::catalog::inspect;
use crate::postgres::client::connect;
use crate::postgres::division;
use crate::postgres::findings::{Finding, Kind, Severity, refuse};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::{share_names, sibling_slots};
use crate::relay::settings::Settings;

/// Runs the command for each lane.
///
/// # Errors
/// As [`execute`].
pub async fn execute_all(args: Args, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    each_lane(loaded, async |lane| execute(args.clone(), lane).await).await
}

/// Sets up each lane, once it is clear that nothing stands in the way of all of them: where one does not fit, or would halt, the others
/// are set up all the same. The gravest exit code.
///
/// # Errors
/// As `set_up`, or Postgres cannot be reached.
pub(crate) async fn each_lane(
    loaded: &Loaded,
    set_up: impl AsyncFn(&Settings) -> Result<Exit, anyhow::Error>,
) -> Result<Exit, anyhow::Error> {
    let refusals = refusals(&loaded.lanes).await?;
    if !refusals.is_empty() {
        return Ok(refused(&refusals));
    }
    lanes::each(loaded, set_up).await
}

/// What stands in the way of the lanes together.
async fn refusals(lanes: &[Settings]) -> Result<Vec<Finding>, anyhow::Error> {
    let Some(first) = lanes.first() else {
        return Ok(Vec::new());
    };
    let postgres = &first.postgres;
    let share = &postgres.any_share();
    let conninfo = &postgres.conninfo;
    let client = connect(conninfo)
        .await
        .with_context(|| format!("cannot connect to {conninfo}"))?;
    let division = division::division(&client, postgres).await?;
    let undivided = of_all_rows(first).await;
    if !alone::is_at_work(&client, postgres).await? {
        let unfinished = division.unfinished(share, undivided.as_ref());
        print_findings(unfinished.as_slice());
    }
    let mut refusals = Vec::new();
    if postgres.share.is_some() {
        refusals = sibling_slots::others(&client, share, &division).await?;
        for finding in &mut refusals {
            finding.severity = Severity::Refuse;
        }
        refusals.extend(division.finding(share));
        for lane in lanes.iter().map(|lane| &lane.postgres) {
            let inspection = inspect(&client, lane).await?;
            refusals.extend(division.emptied_findings(&inspection, lane));
        }
    }
    let other = division::other_number(&client, postgres, &division).await?;
    if let Some(other) = other {
        let other = OtherNumber { undivided, ..other };
        refusals.push(refuse(Kind::RowFilter, other.what(), other.mend()));
    }
    if postgres.share.is_some() {
        let names: Vec<&PostgresSettings> = lanes.iter().map(|lane| &lane.postgres).collect();
        refusals.extend(share_names::taken_by_some(&client, &names, &division).await?);
    }
    let slots: Vec<&str> = (lanes.iter())
        .map(|lane| lane.postgres.slot.as_str())
        .collect();
    refusals.extend(sibling_slots::room(&client, &slots).await?);
    Ok(refusals)
}
