//! What a relay that starts now would halt at.
//!
//! In: the settings. Out: the halt, if there is one.

use anyhow::Context as _;

use super::Report;
use crate::cli::foreseen;
use crate::nats::admin::Admin;
use crate::postgres::client::connect;
use crate::postgres::division;
use crate::postgres::locks::{self, Inspected};
use crate::relay::settings::Settings;

/// Looks as a start does.
///
/// # Errors
/// Postgres or NATS cannot be asked.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let postgres = &settings.postgres;
    let (client, nats) = tokio::join!(
        connect(&postgres.conninfo),
        Admin::connect(&settings.nats.connection)
    );
    let conninfo = &postgres.conninfo;
    let client = client.with_context(|| format!("cannot connect to {conninfo}"))?;
    let nats = nats?;
    let Inspected::Seen(inspection) = locks::inspect(&client, postgres).await? else {
        return Ok(Report::default());
    };
    let division = division::division(&client, postgres).await?;
    Ok(Report {
        foreseen: foreseen::halt(settings, &client, &inspection, &division, &nats).await?,
        ..Report::default()
    })
}
