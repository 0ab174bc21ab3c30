//! `walrelay setup`: makes table, publication, slot and stream where they are missing.
//!
//! In: the settings. Out: a line about each part on stdout, findings and waits on stderr. Guarantees: what exists is
//! never changed; nothing is made when anything that exists does not fit; running it again makes nothing more. The slot
//! comes last, since from then on Postgres keeps WAL for it: what can fail has not failed by then.

use std::time::Duration;

use anyhow::{Context, bail};
use postgres_types::PgLsn;

use crate::bulk::fence::lives_there;
use crate::cli::backfill;
use crate::cli::command_line;
use crate::cli::exit::Exit;
use crate::cli::signals::{self, Hangup};
use crate::cli::stderr;
use crate::cli::stdout::{self, Account};
use crate::cli::values;
use crate::cli::verify;
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::begin::Begin;
use crate::pipeline::history::History;
use crate::pipeline::mapping::Format;
use crate::postgres::beginning;
use crate::postgres::catalog::{Inspection, count_rows, inspect};
use crate::postgres::client::{Client, connect};
use crate::postgres::findings::{Finding, Kind, Severity, findings, slot_misfit};
use crate::postgres::published_rows;
use crate::postgres::replication::SystemIdentity;
use crate::postgres::row_security;
use crate::postgres::setup::{
    Blocker, Part, Step, Unfinished, Wishes, apply, create_slot, drop_slot, plan, until_made,
};
use crate::postgres::startup::{self, SessionSettings};
use crate::postgres::unwritten::Unwritten;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::remembered_columns;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

mod record;
mod shares;
mod streams;

use record::{Recording, write_beginning};
pub(super) use shares::{each_lane, execute_all};
use streams::{make_streams, plan_streams, print_streams, refused_streams, warn_of_sizes};
pub(super) use streams::{refused_by_stream, taken};

/// For a slot that somebody else is making.
const WAIT: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  walrelay setup                  table, publication, slot and stream, where missing
  walrelay setup --dry-run        the SQL and the streams that it would make, and nothing else
  walrelay setup --replicas 3     new streams on three servers of the cluster
  walrelay setup --backfill       publish also the rows that are in the table already

It makes no table beside one of nearly the same name, or of the same name in another schema:
--create-table says that a new one is meant.

Creating the slot waits until every transaction that writes at that moment has ended; after a second
setup says which. Ctrl-C cancels it and leaves no slot behind. One that somebody else is still
making, perhaps a setup that was killed, is waited for, for --wait.

Exit code 0: everything is there and fits. 1: something exists that does not fit; of what is
missing, no more was made than is printed. Or the publication's owner has to run what is printed, or
whoever knows whether a relay has read the slot.
4: the lane has left the stream, by walrelay move.";

/// How setting up ended.
pub(crate) struct SetUp {
    /// By what the relay needs.
    pub(crate) exit: Exit,
    /// The publication's owner has to write down where the slot begins; a relay runs without it.
    is_left_to_owner: bool,
}

impl From<Exit> for SetUp {
    fn from(exit: Exit) -> Self {
        SetUp {
            exit,
            is_left_to_owner: false,
        }
    }
}

/// Make what the relay needs: table, publication, replication slot, stream; each only if it is missing.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print what would be made, and make nothing.
    #[arg(long)]
    dry_run: bool,

    /// Make a slot that follows a failover to a standby (Postgres 17 and later).
    #[arg(long)]
    failover: bool,

    /// Make the table although there is one of nearly the same name, or of the same name in another schema.
    #[arg(long)]
    create_table: bool,

    /// Replicas of the streams that are made [default: 1].
    #[arg(long, value_name = "N", value_parser = values::count::<u8>(1..=5))]
    replicas: Option<u8>,

    /// How long to wait for a slot that another setup, perhaps one that was killed, is still making [default: 1min]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    wait: Option<Duration>,

    /// Then publish the rows that are in the table and not in the slot, as walrelay backfill does. Where the stream has
    /// messages of a dispatcher, the events in them count as published.
    #[arg(long)]
    backfill: bool,

    /// Of these rows only those for which this condition holds, in SQL, such as "dispatched_at IS NULL".
    #[arg(long = "where", value_name = "SQL", requires = "backfill", value_parser = values::condition)]
    only: Option<String>,

    /// Who calls has made the publication in this run.
    #[arg(skip)]
    has_made_publication: bool,
}

impl Args {
    /// By default, of a command that may have made the publication itself.
    pub(super) fn behind_publication(has_made_publication: bool) -> Self {
        Args {
            has_made_publication,
            ..Args::default()
        }
    }
}

/// Runs the command for one lane.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    // Listened for where the wait begins: until then a signal ends the process, which is what it is for.
    let stopped = async {
        match signals::listen(Hangup::Stops) {
            Ok(mut shutdown) => shutdown.wait().await,
            Err(_) => std::future::pending().await,
        }
    };
    if let Some(only) = &args.only {
        verify::check_condition(settings, only).await?;
    }
    let then = (args.backfill && !args.dry_run).then(|| args.only.clone());
    let made = execute_until(args, settings, stopped).await?;
    let exit = match (made.exit, then) {
        (Exit::Done, Some(only)) => {
            Box::pin(backfill::execute(backfill::Args::of_rows(only), settings)).await?
        }
        (exit, _) => exit,
    };
    Ok(match made.is_left_to_owner {
        true => exit.graver(Exit::Failed),
        false => exit,
    })
}

/// As [`execute`]; `cancel` gives up the wait for the slot, and no slot is left behind.
///
/// # Errors
/// As [`execute`].
pub(crate) async fn execute_until(
    args: Args,
    settings: &Settings,
    cancel: impl Future<Output = ()>,
) -> Result<SetUp, anyhow::Error> {
    let postgres = &settings.postgres;
    let conninfo = &postgres.conninfo;
    let client = connect(conninfo)
        .await
        .with_context(|| format!("cannot connect to {conninfo}"))?;
    tokio::pin!(cancel);
    let mut before = inspect(&client, postgres).await?;
    let is_awaited = !args.dry_run && is_unfinished(&before);
    if is_awaited {
        let limit = args.wait.unwrap_or(WAIT);
        let made = until_made(&client, &postgres.slot, limit, print_unfinished);
        tokio::select! {
            made = made => made??,
            () = &mut cancel => bail!("stopped while replication slot \"{}\" was being made by somebody else", postgres.slot),
        }
        before = inspect(&client, postgres).await?;
    }
    remembered_columns::remember(settings, &mut before).await;
    let wishes = Wishes {
        failover: args.failover,
        create_table: args.create_table,
    };
    let steps = match plan(&before, postgres, wishes) {
        Ok(steps) => steps,
        Err(refusals) => return Ok(refused(&refusals).into()),
    };
    if args.dry_run {
        for step in &steps {
            stdout::write(&format!("{}\n\n", step.sql.trim()))?;
        }
        if steps.iter().any(|step| step.part == Part::Slot) {
            let found = before.publication.as_ref();
            let comment = found.and_then(|found| found.comment.as_deref());
            let sql =
                beginning::comment_by_hand_sql(&postgres.publication, comment, &postgres.slot);
            let owner = found.filter(|found| !found.owned);
            print_for(owner.map(|found| found.owner.as_str()), &sql)?;
        }
    }
    let nats = Admin::connect(&settings.nats.connection).await?;
    // Of a stream that the lane has left, nothing is to be made as it was.
    let lane = LaneClient::new(&nats, &settings.nats.stream, &postgres.slot)?;
    let record = match lane.record().await {
        Err(LaneError::NoStream(_)) => None,
        stored => stored?.record,
    };
    if let Err(left) = lives_there(record.as_ref(), lane.stream_name()) {
        stderr::line(format_args!("error: {left}"));
        return Ok(Exit::Halted.into());
    }
    let mut wanted = settings.nats.stream_settings(&postgres.slot);
    if let Some(replicas) = args.replicas {
        wanted.num_replicas = usize::from(replicas);
    }
    let streams = plan_streams(&nats, wanted, settings).await?;
    if let Some(exit) = refused_streams(&streams) {
        return Ok(exit.into());
    }
    if args.dry_run {
        let unwritten = Unwritten::of(&before, postgres);
        let begin = |it: &Unwritten| Begin::of(record.as_ref(), it.confirmed_lsn);
        if let Some(unwritten) = unwritten
            && let Some(sql) = unwritten.statement(begin(&unwritten))
        {
            print_for(unwritten.owner(), &sql)?;
        }
        print_streams(&streams.plans)?;
        return Ok(Exit::Done.into());
    }
    let mut account = Account::default();
    let of_publication = match args.has_made_publication {
        true => "made",
        false => "found",
    };
    // What JetStream will refuse, only it knows: nothing else has been made by then.
    make_streams(&nats, &streams.plans, &mut account).await?;
    make_publication(
        &client,
        &steps,
        &before,
        settings,
        of_publication,
        &mut account,
    )
    .await?;
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for (before, table) in before.tables().zip(settings.tables()) {
        rows.extend(rows_before(&client, &nats, before, &table, None).await?);
        limits.extend(version_limit(before, &table));
    }
    let made_lsn = make_slot(&client, &steps, settings, &mut cancel, &mut account).await?;
    let unpublished = rows
        .into_iter()
        .filter(|_| (made_lsn.is_some() || is_awaited) && !args.backfill);
    unpublished
        .chain(limits)
        .for_each(|line| account.line(line));
    let mut left_to_owner = None;
    if let Some(lsn) = made_lsn {
        // What is written down is of one that was there before. A relay that waits for the record sees it.
        let made = inspect(&client, postgres).await?;
        if let Some(unwritten) = Unwritten::anew(&made, postgres) {
            left_to_owner = write_beginning(&client, unwritten, Begin::At(lsn)).await?;
        }
    }
    let recording = Recording {
        client: &client,
        nats: &nats,
        settings,
        before: &before,
        record: record.as_ref(),
        was_awaited: is_awaited,
        made_lsn,
        takes_over: args.backfill && !settings.nats.shared,
    };
    let recorded = recording.store(&mut account).await;
    if recorded.is_err() && made_lsn.is_some() {
        // It would keep WAL for a lane that is not set up.
        match apply(&client, &drop_slot(&postgres.slot)).await {
            Ok(()) => account.line("the replication slot is dropped again"),
            Err(error) => account.line(format_args!("the replication slot stays: {error}")),
        }
    }
    let begins = recorded.context("cannot write the lane's first record")?;
    let found = begins.as_ref().ok().copied().flatten();
    let made = inspect(&client, postgres).await?;
    let unwritten = Unwritten::of(&made, postgres).filter(|_| made_lsn.is_none());
    let stands = found.and(made.confirmed_lsn());
    let is_told = made_lsn.is_some() || is_awaited || args.backfill;
    if let Some(stands) = stands.filter(|_| !is_told) {
        // Of a new lane whose slot was there before.
        for (before, table) in before.tables().zip(settings.tables()) {
            let rows = rows_before(&client, &nats, before, &table, Some(stands)).await?;
            rows.into_iter().for_each(|line| account.line(line));
        }
    }
    if let Some(unwritten) = unwritten.filter(|_| begins.is_ok()) {
        let of_record = |record| Begin::of(Some(record), unwritten.confirmed_lsn);
        // A relay that reads the slot of a new lane writes the record itself.
        let begin = found.or_else(|| record.as_ref().map(of_record));
        if let Some(begin) = begin {
            left_to_owner = write_beginning(&client, unwritten, begin).await?;
        }
    }
    account.close()?;

    let mut left = findings(&made, postgres);
    let after = settings.outbox.after_publish;
    left.extend(published_rows::findings(&client, &made, postgres, after).await?);
    // A relay that runs reads its slot, as it should.
    left.retain(|finding| finding.kind != Kind::SlotActive);
    print_findings(&left);
    print_findings(left_to_owner.as_slice());
    warn_of_sizes(&client, &nats, &made, settings).await?;
    let refusals = left
        .iter()
        .any(|finding| finding.severity == Severity::Refuse);
    if let Err(halt) = &begins {
        let halt = halt.told(postgres.part());
        stderr::line(format_args!("error: walrelay run would halt: {halt}"));
    }
    Ok(SetUp {
        exit: match refusals || begins.is_err() || found == Some(Begin::Unknown) {
            true => Exit::Failed,
            false => Exit::Done,
        },
        is_left_to_owner: left_to_owner.is_some(),
    })
}

/// Whether somebody else is making the slot.
fn is_unfinished(before: &Inspection) -> bool {
    let slot = before.slot.as_ref();
    slot.is_some_and(|slot| {
        slot.made_by().is_some() && slot_misfit(slot, &before.server.dbname).is_none()
    })
}

fn print_unfinished(unfinished: &Unfinished) {
    stderr::line(format_args!("waiting: {unfinished}"));
}

/// Prints a statement, and who has to run it where that is another role.
fn print_for(owner: Option<&str>, sql: &str) -> Result<(), anyhow::Error> {
    let by = owner.map_or_else(String::new, |owner| {
        format!("-- as {}, or a superuser\n", quote_identifier(owner))
    });
    stdout::write(&format!("{by}{sql}\n\n"))
}

/// The table too.
async fn make_publication(
    client: &Client,
    steps: &[Step],
    before: &Inspection,
    settings: &Settings,
    of_publication: &str,
    account: &mut Account,
) -> Result<(), anyhow::Error> {
    let postgres = &settings.postgres;
    let tables = before.tables().zip(postgres.tables());
    let tables =
        tables.map(|(found, of)| (Part::Table, of.table.to_string(), found.table.is_some()));
    let publication = postgres.publication.clone();
    let publication = (Part::Publication, publication, before.publication.is_some());
    // The plan has a step for each that is missing, in this order.
    let mut steps = steps.iter();
    for (part, name, is_there) in tables.chain([publication]) {
        if is_there {
            let state = match part {
                Part::Publication => of_publication,
                _ => "found",
            };
            report(account, part, &name, state);
            continue;
        }
        let step = steps.next().context("the plan makes what is missing")?;
        apply(client, step)
            .await
            .with_context(|| format!("cannot make {part} {name}"))?;
        report(account, part, &name, "made");
    }
    Ok(())
}

/// Returns where the slot begins, if it was made.
async fn make_slot(
    client: &Client,
    steps: &[Step],
    settings: &Settings,
    cancel: impl Future<Output = ()>,
    account: &mut Account,
) -> Result<Option<PgLsn>, anyhow::Error> {
    let postgres = &settings.postgres;
    let (part, name) = (Part::Slot, &postgres.slot);
    let Some(step) = steps.iter().find(|step| step.part == part) else {
        report(account, part, name, "found");
        return Ok(None);
    };
    let observer = connect(&postgres.conninfo).await?;
    let lsn = create_slot(client, &observer, step, print_blockers, cancel)
        .await
        .with_context(|| format!("cannot make {part} {name}"))?;
    report(account, part, name, &format!("made, streams from {lsn}"));
    Ok(Some(lsn))
}

/// What to say of a column that takes versions which no event can have.
fn version_limit(before: &Inspection, settings: &Settings) -> Option<String> {
    let postgres = &settings.postgres;
    let name = postgres.columns.event_version.column()?;
    // What no message carries has no limit.
    let format = settings.mapping().message.format;
    if matches!(format, Format::Payload | Format::PayloadString) {
        return None;
    }
    let mut columns = before.table.as_ref()?.columns.iter();
    let column = columns.find(|column| column.name == name)?;
    matches!(column.base_type.as_str(), "int4" | "int8").then(|| {
        format!(
            "{name} of {} is {}: an event's version is a number from 0 to 255, and a row with another one becomes a dead letter",
            postgres.table, column.base_type
        )
    })
}

/// What to say of the rows that are in the table before the slot is made, and so lie before its first position. One that was there stands
/// at `stands`, and may hold some of them.
async fn rows_before(
    client: &Client,
    nats: &Admin,
    before: &Inspection,
    settings: &Settings,
    stands: Option<PgLsn>,
) -> Result<Option<String>, anyhow::Error> {
    let table = &settings.postgres.table;
    if before.table.is_none() {
        return Ok(None);
    }
    // The findings say why, and what mends it.
    if row_security::check(before, table).is_err() {
        return Ok(Some(format!(
            "rows that are already in {table} will not be published, and are not counted: this role does not see all of them"
        )));
    }
    let rows = count_rows(client, table, before.row_filter()).await?;
    let rows = u64::try_from(rows).unwrap_or(0);
    if rows == 0 {
        return Ok(None);
    }
    if let Some(lsn) = stands {
        return Ok(Some(format!(
            "{} already in {table}: those that committed before {lsn}, where the slot stands, will not be published. Once the relay runs, \
             {} publishes them",
            counted(rows, "row is", "rows are"),
            command_line::backfill(None, None, false)
        )));
    }
    let stream = stream::find(nats, &settings.nats.stream).await?;
    Ok(Some(match stream {
        Some(stream) if stream.state.last_seq > 0 => format!(
            "{} in {table} already: walrelay verify tells which of them the stream does not have, {} publishes those",
            counted(rows, "row is", "rows are"),
            command_line::backfill(None, None, false)
        ),
        _ => format!(
            "{} already in {table} and will not be published: {} publishes them",
            counted(rows, "row is", "rows are"),
            command_line::backfill(None, None, false)
        ),
    }))
}

pub(super) async fn identify(settings: &Settings) -> anyhow::Result<(SystemIdentity, History)> {
    let conninfo = &settings.postgres.conninfo;
    let mut session = startup::connect(conninfo, &SessionSettings::default()).await?;
    let identity = session.identify_system().await?;
    let history = session.timeline_history(identity.timeline).await?;
    Ok((identity, history))
}

fn print_blockers(blockers: &[Blocker]) {
    for blocker in blockers {
        stderr::line(format_args!(
            "the slot waits for {blocker}: {}",
            blocker.mend()
        ));
    }
}

fn report(account: &mut Account, part: impl ToString, name: &str, state: &str) {
    account.line(format_args!("{:<16} {name:<24} {state}", part.to_string()));
}

/// Says why nothing was made.
pub(crate) fn refused(refusals: &[Finding]) -> Exit {
    print_findings(refusals);
    Exit::Failed
}

fn print_findings(findings: &[Finding]) {
    for finding in findings {
        let severity = match finding.severity {
            Severity::Refuse => "error",
            Severity::Warn => "warning",
        };
        stderr::line(format_args!("{severity}: {finding}"));
    }
}
