//! `walrelay backfill`: publishes rows of the table that the stream does not have.
//!
//! In: settings. Out: their events behind the stream's end, marked as backfill, the oldest transaction first. Guarantees:
//! what the relay will still publish is left to it; running it again publishes nothing more; no position of the lane.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;

use super::exit::{Exit, message};
use super::republish::{Outcome, Republish};
use super::stdout::Account;
use super::verify::{self, Missing};
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::cli::stderr;
use crate::nats::admin::Admin;
use crate::pipeline::position::{KIND_BACKFILL, KIND_HEADER};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// So long it publishes, and so long it then lets the relay.
const BURST: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  walrelay backfill --dry-run                     how many rows it would publish
  walrelay backfill                               publish them
  walrelay backfill --since 2026-11-01T00:00:00Z  leave older rows out

It is for rows from before the slot was made, and for what a slot or a broker has lost: what `walrelay verify` calls
missing. Rows that it calls unjudged are left out, since the stream may have had their messages and removed them; give
--unjudged where you know that it did not. The events come behind those that are in the stream already, with the header Walrelay-Kind: backfill and
without a place in the lane. A relay that runs meanwhile looks at the stream's end anew, and goes on: it gets as much
time as the backfill takes.

Exit code 0: done, or nothing was missing. 1: some could not be published. 3: row security hides rows of the table.";

/// Publish rows of the table that the stream does not have.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Count, and publish nothing.
    #[arg(long)]
    dry_run: bool,

    /// Leave out rows whose occurred_at is older.
    #[arg(long, value_name = "TIME", value_parser = verify::parse_time)]
    since: Option<String>,

    /// Publish also rows that cannot be judged: the stream may have had their messages and removed them.
    #[arg(long)]
    unjudged: bool,
}

/// Runs the command.
///
/// # Errors
/// Table and stream cannot be compared.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    if args.dry_run {
        let mut account = Account::default();
        missing(args, settings, &mut account).await?;
        account.close()?;
        return Ok(Exit::Done);
    }
    let lease = Lease::take(&lane, "backfill").await?;
    let done = backfill(args, settings, &nats, &lane, &lease).await;
    lease.release().await;
    done
}

/// What is to be published; says how much that is where nothing will be done about it.
async fn missing(
    args: Args,
    settings: &Settings,
    account: &mut Account,
) -> anyhow::Result<Missing> {
    let found = verify::missing(settings, args.since, args.unjudged)
        .await
        .context("table and stream cannot be compared")?;
    if found.unjudged > 0 && !args.unjudged {
        account.line(format_args!(
            "{} rows cannot be judged and are left out: the stream may have had their messages and removed them; walrelay \
             verify names some, --unjudged publishes them too",
            found.unjudged
        ));
    }
    if args.dry_run || found.rows.is_empty() {
        account.line(format_args!(
            "{} rows are not in the stream",
            found.rows.len()
        ));
    }
    Ok(found)
}

async fn backfill(
    args: Args,
    settings: &Settings,
    nats: &Admin,
    lane: &LaneClient,
    lease: &Lease,
) -> anyhow::Result<Exit> {
    let version = nats.server_version()?;
    let mut fence = Fence::raise(lane, lease, settings, version).await?;
    let mut account = Account::default();
    let found = missing(args, settings, &mut account).await?;
    fence.has_read(found.read_through);
    let mut rows = found.rows;
    if rows.is_empty() {
        account.close()?;
        return Ok(Exit::Done);
    }
    let mut republish = Republish::open(nats, settings, lease, fence).await?;
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(rows.len() as u64)
    } else {
        ProgressBar::hidden()
    };
    let mut published = 0_u64;
    let mut burst = Instant::now();
    for id in rows.ids()? {
        let id = id?;
        let marks = [(KIND_HEADER, KIND_BACKFILL.to_owned())];
        match republish.publish(&id, &marks).await? {
            Outcome::Published(_) => published += 1,
            Outcome::Rejected(error) => bar.suspend(|| {
                stderr::line(format_args!(
                    "{id} cannot be published: {}",
                    message(&error)
                ));
            }),
        }
        bar.inc(1);
        // Each message costs a relay that runs on this stream a fresh start: it gets as much time as the backfill takes.
        if burst.elapsed() >= BURST {
            tokio::time::sleep(BURST).await;
            burst = Instant::now();
        }
    }
    bar.finish_and_clear();
    account.line(format_args!(
        "{published} of {} rows that were not in the stream are published",
        rows.len()
    ));
    account.close()?;
    Ok(if published == rows.len() as u64 {
        Exit::Done
    } else {
        Exit::Failed
    })
}
