//! `walrelay setup` of an outbox with shares: all of them or none.
//!
//! In: the configuration's lanes. Out: each of them set up. Guarantee: nothing is made while the server has no room for all of them,
//! or has slots or publications of another number of shares, which may be one.

use anyhow::Context as _;

use super::{Args, execute, refused};
use crate::cli::exit::Exit;
use crate::cli::lanes;
use crate::config::Loaded;
use crate::postgres::catalog::slot_and_wal;
use crate::postgres::client::{Client, SqlError, connect};
use crate::postgres::division::Division;
use crate::postgres::findings::{Finding, Kind, Severity, refuse};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::ROW_FILTERS_SINCE;
use crate::postgres::sibling_slots;
use crate::relay::settings::Settings;

/// Runs the command for each lane.
///
/// # Errors
/// As [`execute`].
pub async fn execute_all(args: Args, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    each_lane(loaded, async |lane| execute(args.clone(), lane).await).await
}

/// Sets up each lane, once it is clear that nothing stands in the way of all of them.
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
    for lane in &loaded.lanes {
        lanes::name(loaded, lane);
        let exit = set_up(lane).await?;
        if exit != Exit::Done {
            // What does not fit one share, such as another number of them, is no place to make the next.
            return Ok(exit);
        }
    }
    Ok(Exit::Done)
}

/// What stands in the way of the lanes together.
async fn refusals(lanes: &[Settings]) -> Result<Vec<Finding>, anyhow::Error> {
    let first = lanes.first().map(|lane| &lane.postgres);
    let Some(postgres) = first else {
        return Ok(Vec::new());
    };
    let share = &postgres.any_share();
    let conninfo = &postgres.conninfo;
    let client = connect(conninfo)
        .await
        .with_context(|| format!("cannot connect to {conninfo}"))?;
    let division = division(&client, postgres).await?;
    let mut refusals = Vec::new();
    if postgres.share.is_some() {
        refusals = sibling_slots::others(&client, share, &division).await?;
        for finding in &mut refusals {
            finding.severity = Severity::Refuse;
        }
        refusals.extend(division.finding(share));
    }
    refusals.extend(other_number(&client, postgres, &division).await?);
    if postgres.share.is_none() {
        return Ok(refusals);
    }
    let slots: Vec<&str> = (lanes.iter())
        .map(|lane| lane.postgres.slot.as_str())
        .collect();
    refusals.extend(sibling_slots::room(&client, &slots).await?);
    Ok(refusals)
}

/// How the outbox is divided; without row filters it is not.
pub(crate) async fn division(
    client: &Client,
    postgres: &PostgresSettings,
) -> Result<Division, SqlError> {
    match server_version(client).await? {
        ROW_FILTERS_SINCE.. => Division::look(client, postgres).await,
        _ => Ok(Division::default()),
    }
}

/// That the outbox has another number of shares than the settings say.
pub(crate) async fn other_number(
    client: &Client,
    postgres: &PostgresSettings,
    division: &Division,
) -> Result<Option<Finding>, SqlError> {
    let share = &postgres.any_share();
    let wanted = share.count;
    let found = division.count().filter(|found| *found != wanted);
    let Some(found) = found else {
        return Ok(None);
    };
    // A publication that nobody reads divides nothing.
    if found == 1 && slot_and_wal(client, &share.slot(None)).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(refuse(
        Kind::RowFilter,
        match found {
            1 => format!("the outbox is not divided, and relay.shares is {wanted}"),
            _ => format!("the outbox has {found} shares, and relay.shares is {wanted}"),
        },
        format!(
            "set relay.shares = {found} in every configuration, or run walrelay reshard --shares {wanted}"
        ),
    )))
}

/// As `server_version_num`.
pub(crate) async fn server_version(client: &Client) -> Result<u32, SqlError> {
    let query = "SELECT current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(query, &[]).await?.try_get(0)?;
    Ok(u32::try_from(version).unwrap_or(0))
}
