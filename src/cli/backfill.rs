//! `walrelay backfill`: publishes rows of the table that the stream does not have.
//!
//! In: settings. Out: their events behind the stream's end, marked as backfill, the oldest transaction first. Guarantees:
//! what the relay will still publish is left to it; running it again publishes nothing more; no position of the lane. A dead letter that
//! the stream has no more is closed with its row.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};

use super::command_line;
use super::exit::Exit;
use super::own_lane::own_lane;
use super::progress::{Counts, Progress};
use super::reshard::alone;
use super::signals::{self, Hangup};
use super::stdout::Account;
use super::values;
use super::verify::{self, Choice, Missing};
use crate::bulk::Outcome;
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::bulk::publisher::Publisher;
use crate::bulk::rows::Looked;
use crate::bulk::table;
use crate::cli::stderr;
use crate::counted::{counted, is_or_are};
use crate::nats::admin::Admin;
use crate::postgres::client::connect;
use crate::postgres::id_column::IdColumn;
use crate::relay::Shutdown;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

mod gone;

use gone::GoneLetters;

/// Its name in the lane's lease.
pub(super) const COMMAND: &str = "backfill";

/// Rows that one query shows.
const NAMED_MAX: usize = 20;

const EXAMPLES: &str = "\
Examples:
  walrelay backfill --dry-run                     how many rows it would publish
  walrelay backfill                               publish them
  walrelay backfill --since 2026-11-01T00:00:00Z  leave older rows out
  walrelay backfill --where \"dispatched_at IS NULL\"  what a polling dispatcher has not published
  walrelay backfill --json                        a line of progress each second, for programs

It is for rows from before the slot was made, and for what a slot or a broker has lost: what
`walrelay verify` calls missing. Rows that it calls unjudged are left out, since the stream may
have had their messages and removed them; give --unjudged where you know that it did not. The
events come behind those that are in the stream already, with the header Walrelay-Kind: backfill
and without a place in the lane. A relay that runs meanwhile goes on: the backfill publishes for
about 10 ms at a time, 25 beside one that has nothing to publish, and then gives way to it.

Where it was stopped or killed, run it again: it publishes what the stream still lacks. One
command publishes for a lane at a time; after one that was killed, wait 5 seconds. A broker that
goes away while it publishes has a minute to come back.

A row that can be no event is named with what is wrong, and the query that shows it. UPDATE or
DELETE it in the table, and run the command that is printed; verify counts it as missing, or as
unjudged, until then.

Exit code 0: done, or nothing was missing. 1: some could not be published, or it was stopped
before its end. 3: row security hides rows of the table.";

/// Publish rows of the table that the stream does not have.
#[derive(Debug, Default, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Count, and publish nothing.
    #[arg(long)]
    dry_run: bool,

    /// Leave out rows whose occurred_at is older.
    #[arg(long, value_name = "TIME", value_parser = verify::parse_time)]
    since: Option<DateTime<Utc>>,

    /// Only rows for which this condition holds, in SQL, as the table has them now.
    #[arg(long = "where", value_name = "SQL", value_parser = values::condition)]
    only: Option<String>,

    /// One JSON object a second on standard output, and one at the end, which says done; of an outbox with shares for each share.
    #[arg(long)]
    json: bool,

    /// Publish also rows that cannot be judged: the stream may have had their messages and removed them.
    #[arg(long)]
    unjudged: bool,

    /// How long to wait for a running relay; none for the usual time.
    #[arg(skip)]
    wait: Option<Duration>,
}

impl Args {
    /// What is missing of the rows for which `only` holds.
    pub(super) fn of_rows(only: Option<String>) -> Self {
        Args {
            only,
            ..Args::default()
        }
    }

    /// What that check calls missing, and what it is to publish of the rest.
    pub(super) fn of_missing(check: &verify::Args) -> Self {
        Args {
            since: check.since,
            unjudged: check.unjudged,
            json: check.json,
            wait: Some(check.wait),
            ..Args::default()
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Table and stream cannot be compared.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    execute_until(args, settings, signals::listen(Hangup::Stops)?).await
}

/// As [`execute`], for a command that listens for signals itself.
///
/// # Errors
/// As [`execute`].
pub(super) async fn execute_until(
    args: Args,
    settings: &Settings,
    shutdown: Shutdown,
) -> Result<Exit, anyhow::Error> {
    if let Some(only) = &args.only {
        verify::check_condition(settings, only).await?;
    }
    let nats = Admin::connect(&settings.nats.connection).await?;
    let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    own_lane(
        settings,
        &connect(&settings.postgres.conninfo).await?,
        &lane,
    )
    .await?;
    if args.dry_run {
        let mut account = Account::default();
        missing(&args, settings, &mut account, &shutdown).await?;
        account.close()?;
        return Ok(Exit::Done);
    }
    let lease = Lease::take(&lane, COMMAND, &command_line::typed()).await?;
    let done = backfill(&args, settings, &nats, &lane, &lease, &shutdown).await;
    lease.release().await;
    done
}

/// So many rows: of which table, where the lane has several.
pub(super) fn counted_rows(count: u64, settings: &Settings, table: usize) -> String {
    let rows = counted(count, "row", "rows");
    format!("{rows}{}", of_table(settings, table))
}

/// The table, where the lane has several.
fn of_table(settings: &Settings, table: usize) -> String {
    let mut tables = settings.postgres.tables();
    match tables.len() {
        1 => String::new(),
        _ => format!(" of {}", tables.swap_remove(table).table),
    }
}

/// What is to be published of each table; says how much that is where nothing will be done about it.
async fn missing(
    args: &Args,
    settings: &Settings,
    account: &mut Account,
    shutdown: &Shutdown,
) -> anyhow::Result<Vec<Missing>> {
    let mut shutdown = shutdown.clone();
    let choice = Choice {
        since: args.since,
        only: args.only.clone(),
        unjudged: args.unjudged,
        wait: args.wait,
    };
    let tables: Vec<usize> = (0..settings.tables().len()).collect();
    let found = tokio::select! {
        found = verify::missing(settings, &tables, choice) => found,
        () = shutdown.wait() => bail!("stopped while table and stream were compared: nothing is published"),
    };
    let all = found.context("table and stream cannot be compared")?;
    for (found, table) in all.iter().zip(tables) {
        tell(
            args,
            found,
            |count| counted_rows(count, settings, table),
            account,
        );
    }
    Ok(all)
}

/// Says what is left out, and how much there is where nothing will be done about it.
fn tell(args: &Args, found: &Missing, rows: impl Fn(u64) -> String, account: &mut Account) {
    let of_others =
        "the stream has their ids of another table, which was the outbox before this one";
    let removed = "the stream may have had their messages and removed them";
    for (count, why) in [
        (found.unjudged - found.former, removed),
        (found.former, of_others),
    ] {
        if count == 0 || args.unjudged {
            continue;
        }
        let text = format_args!(
            "{} cannot be judged and {} left out: {why}; walrelay verify names some, --unjudged publishes them too",
            rows(count),
            is_or_are(count)
        );
        match args.json {
            true => stderr::line(text),
            false => account.line(text),
        }
    }
    if args.dry_run || found.rows.is_empty() {
        let total = found.rows.len() as u64;
        match args.json {
            true => {
                Progress::of(total, true).end(account);
            }
            false => account.line(format_args!(
                "{} {} not in the stream",
                rows(total),
                is_or_are(total)
            )),
        }
    }
}

async fn backfill(
    args: &Args,
    settings: &Settings,
    nats: &Admin,
    lane: &LaneClient,
    lease: &Lease,
    shutdown: &Shutdown,
) -> anyhow::Result<Exit> {
    // With the lease no change of shares begins from here on.
    let sql = connect(&settings.postgres.conninfo).await?;
    alone::none_at_work(&sql, &settings.postgres).await?;
    alone::none_unfinished(&sql, settings).await?;
    drop(sql);
    let version = nats.server_version()?;
    lease.working().begin("comparing table and stream");
    let mut fence = Fence::raise(lane, lease, settings, version).await?;
    let mut account = Account::default();
    let mut all = missing(args, settings, &mut account, shutdown).await?;
    // What came since the first of them was read, the fence looks through.
    if let Some(through) = all.iter().map(|found| found.read_through).min() {
        fence.has_read(through);
    }
    let mut gravest = Exit::Done;
    if all.iter().any(|found| !found.rows.is_empty()) {
        let publisher = Publisher::new(settings, lane, lease, fence).await?;
        let mut publisher = publisher.until(shutdown.clone());
        let mut gone = GoneLetters::read(lane).await?;
        for (table, found) in all.iter_mut().enumerate() {
            if found.rows.is_empty() {
                continue;
            }
            let done = publish(
                args,
                settings,
                (table, found),
                (&mut publisher, &mut gone),
                lease,
                shutdown,
            );
            gravest = gravest.graver(done.await?);
        }
        // Also where a signal has ended the rows: these are in the stream.
        let mut publisher = publisher.until(Shutdown::never());
        let closed = gone.close(&settings.postgres.slot, &mut publisher).await;
        let closed = closed.context(
            "the rows are published, and dead letters of some, which the stream has no more, are not closed: walrelay dead-letters retry \
             --all closes them",
        )?;
        tell_closed(args, closed, &mut account);
    }
    account.close()?;
    Ok(gravest)
}

/// Publishes the rows of a table.
async fn publish(
    args: &Args,
    settings: &Settings,
    (table, found): (usize, &mut Missing),
    (publisher, letters): (&mut Publisher<'_>, &mut GoneLetters),
    lease: &Lease,
    shutdown: &Shutdown,
) -> anyhow::Result<Exit> {
    let Missing { rows, unjudged, .. } = found;
    let (total, unjudged) = (rows.len() as u64, *unjudged);
    let of_table = settings.tables().swap_remove(table);
    let source = table::source(&of_table, rows.rows()?);
    let mut account = Account::default();
    let mut progress = Progress::of(total, args.json).told_by(
        lease,
        &format!("publishing rows{}", self::of_table(settings, table)),
    );
    let mut refused = Vec::new();
    let each = |outcome: Outcome<'_>| {
        match outcome {
            Outcome::Published { name } => letters.take(of_table.message.table.as_deref(), name),
            Outcome::Rejected { name, .. } if refused.len() < NAMED_MAX => {
                refused.push(name.to_owned());
            }
            _ => {}
        }
        progress.take(outcome, &mut account);
    };
    let done = publisher.run(source, each).await;
    let Counts {
        published, gone, ..
    } = progress.end(&mut account);
    let total = total - gone;
    if !args.json {
        let more = match shutdown.is_sent() {
            true => "; stopped: run it again, and it publishes what the stream still lacks",
            false => "",
        };
        account.line(format_args!(
            "published {published} of {} that the stream did not have{more}",
            counted_rows(total, settings, table)
        ));
    }
    if gone > 0 {
        tell_gone(args, &counted_rows(gone, settings, table), &mut account);
    }
    account.close()?;
    done?;
    if !refused.is_empty() {
        tell_refused(&of_table, &refused, again(args, unjudged, total)).await?;
    }
    Ok(match published == total {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

/// Says how many rows are missing no more, since somebody has deleted them.
fn tell_gone(args: &Args, rows: &str, account: &mut Account) {
    let text = format_args!("deleted meanwhile, and so not published: {rows}");
    match args.json {
        true => stderr::line(text),
        false => account.line(text),
    }
}

/// Says that dead letters are open no more.
fn tell_closed(args: &Args, closed: u64, account: &mut Account) {
    if closed == 0 {
        return;
    }
    let text = format_args!(
        "{} open, which the stream has no more: {} published, and walrelay dead-letters list --all says so",
        counted(closed, "dead letter was", "dead letters were"),
        if closed == 1 {
            "its row is"
        } else {
            "their rows are"
        }
    );
    match args.json {
        true => stderr::line(text),
        false => account.line(text),
    }
}

/// Says what a person can do about rows that can be no event: no dead letter has them. Told with the command that publishes them then,
/// and with what verify calls them before.
async fn tell_refused(
    settings: &Settings,
    ids: &[String],
    (command, verdict): (String, &str),
) -> anyhow::Result<()> {
    let looked = Looked::at(settings).await?;
    let name = &settings.postgres.table;
    let Some(table) = &looked.inspection.table else {
        return Ok(());
    };
    let ids = ids.iter().map(String::as_str);
    let condition = IdColumn::of(table, &settings.postgres).is_one_of(ids);
    stderr::line(format_args!(
        "what cannot be published is to be mended in the table: UPDATE it, or DELETE it where nobody wants it, and run {command}; \
         walrelay verify counts it as {verdict} until then. This shows it:\n  SELECT * FROM {name} WHERE {condition};"
    ));
    Ok(())
}

/// The command that publishes rows once they are mended, and what verify calls them before: of `unjudged` ones among `total`.
fn again(args: &Args, unjudged: u64, total: u64) -> (String, &'static str) {
    let with_unjudged = args.unjudged && unjudged > 0;
    let verdict = match with_unjudged {
        false => "missing",
        true if unjudged >= total => "unjudged",
        true => "missing or unjudged",
    };
    let only = args.only.as_deref();
    (
        command_line::backfill(args.since, only, with_unjudged),
        verdict,
    )
}
