//! `walrelay teardown`: removes what `setup` made.
//!
//! In: the settings and what is named. Out: a line about each part. Guarantees: table and stream go only when named;
//! nothing goes before somebody has agreed; a slot that is read, or that `setup` would not make, stays; of an outbox with shares all lanes
//! have to be known, since a slot that no configuration names keeps WAL for ever.

use anyhow::Context;

use crate::cli::consent::agreed;
use crate::cli::exit::Exit;
use crate::cli::lanes;
use crate::cli::reshard::{alone, of_all_rows};
use crate::cli::setup::refused;
use crate::cli::stdout::{self, Account};
use crate::config::Loaded;
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::reshard::OtherNumber;
use crate::postgres::catalog::{Inspection, inspect};
use crate::postgres::client::{Client, connect};
use crate::postgres::division;
use crate::postgres::findings::{Finding, Kind, refuse};
use crate::postgres::setup::{Step, apply, teardown_plan};
use crate::relay::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  walrelay teardown                      drops slot and publication, after asking
  walrelay teardown --drop-stream --yes  the stream with all its messages too, without asking
  walrelay teardown --drop-table         the outbox table with all its rows too

What has been committed and not published when the slot goes is in the table only: walrelay backfill
publishes it later. A slot that is made again for the same stream needs walrelay adopt.

Of an outbox with shares, relay.shares has to be the number that there are.

Exit code 0: removed, or there was nothing. 1: the slot is in use, or is not one that setup makes,
or the outbox has another number of shares. 2: nobody agreed.";

/// Drop the slot and the publication; the table and the stream only when named.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Drop the outbox table too, with all its rows.
    // Not --table: that flag says which table it is.
    #[arg(long)]
    drop_table: bool,

    /// Delete the stream too, with all its messages.
    #[arg(long)]
    drop_stream: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// Runs the command for each lane, where there are no others.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub async fn execute_all(args: Args, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    if let Some(first) = loaded.lanes.first() {
        let others = others(&session(first).await?, first).await?;
        if others.is_some() {
            return Ok(refused(others.as_slice()));
        }
    }
    lanes::each(loaded, async |lane| execute(args.clone(), lane).await).await
}

async fn session(settings: &Settings) -> Result<Client, anyhow::Error> {
    let conninfo = &settings.postgres.conninfo;
    let connected = connect(conninfo).await;
    connected.with_context(|| format!("cannot connect to {conninfo}"))
}

/// Lanes that the configuration does not name: of another number of shares, or left behind by a change of it.
async fn others(client: &Client, settings: &Settings) -> Result<Option<Finding>, anyhow::Error> {
    let postgres = &settings.postgres;
    let division = division::division(client, postgres).await?;
    if let Some(other) = division::other_number(client, postgres, &division).await? {
        let undivided = of_all_rows(settings).await;
        let other = OtherNumber { undivided, ..other };
        return Ok(Some(refuse(Kind::RowFilter, other.what(), other.mend())));
    }
    if alone::is_at_work(client, postgres).await? {
        return Ok(None);
    }
    let left = alone::unfinished(client, settings).await?;
    Ok(left.map(|left| refuse(left.kind, left.what, left.mend)))
}

/// The same for one lane, whatever others there are.
///
/// # Errors
/// As [`execute_all`].
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let client = session(settings).await?;
    let inspection = inspect(&client, &settings.postgres).await?;
    let steps = match teardown_plan(&inspection, &settings.postgres, args.drop_table) {
        Ok(steps) => steps,
        Err(refusals) => return Ok(refused(&refusals)),
    };
    let stream = args.drop_stream.then_some(settings.nats.stream.as_str());
    if steps.is_empty() && stream.is_none() {
        stdout::write("nothing to remove\n")?;
        return Ok(Exit::Done);
    }
    let mut account = Account::default();
    describe(&mut account, &steps, stream, &inspection);
    if !agreed(args.yes, "Remove these?", "nothing was removed")? {
        return Ok(Exit::Usage);
    }
    // Before the first step: it must not be the last that can be done.
    let nats = match stream {
        Some(_) => Some(Admin::connect(&settings.nats.connection).await?),
        None => None,
    };
    for step in &steps {
        apply(&client, step)
            .await
            .with_context(|| format!("cannot remove the {}: {}", step.part, step.sql))?;
        account.line(format_args!("{} removed", step.part));
    }
    if let (Some(name), Some(nats)) = (stream, nats) {
        let found = stream::delete(&nats, name).await?;
        stream::delete_lane_record(&nats, name, &settings.postgres.slot).await?;
        account.line(format_args!(
            "stream {name} {}",
            if found { "removed" } else { "was not there" }
        ));
    }
    account.close()?;
    Ok(Exit::Done)
}

fn describe(account: &mut Account, steps: &[Step], stream: Option<&str>, inspection: &Inspection) {
    for step in steps {
        account.line(&step.sql);
    }
    if let Some(filter) = inspection.row_filter() {
        account.line(format_args!(
            "-- this publication carries a share of the rows, those with {filter}: make it again with that before \
             walrelay setup, which makes one for all rows"
        ));
    }
    if let Some(name) = stream {
        account.line(format_args!(
            "-- delete stream {name} with all its messages"
        ));
    }
    if let Some(confirmed) = inspection
        .slot
        .as_ref()
        .and_then(|slot| slot.confirmed_flush_lsn)
    {
        let behind = u64::from(inspection.server.current_lsn).saturating_sub(u64::from(confirmed));
        account.line(format_args!(
            "-- the slot has confirmed {confirmed}, {behind} bytes of WAL behind the server"
        ));
    }
}
