//! `walrelay verify`: compares the outbox table with the stream; of a share of the rows, that share.
//!
//! In: settings. Out: what is missing, doubled, out of order, dead-lettered, or in the stream alone; as text or JSON.
//! Guarantees: changes nothing; runs beside a live relay and writers; memory does not grow with the number of events.
//!
//! In this order: each table of the lane under one snapshot, then the stream, once. What is in the snapshot and not in the stream is
//! missing only once the relay has passed the snapshot; so then it is waited for, and the rest of the stream read. What is still
//! to come, the slot itself tells: the broker may have lost what a relay says that it has passed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use indicatif::ProgressBar;

use crate::bulk::fence::lives_there;
use crate::cli::dead_letters::letters::Letters;
use crate::cli::exit::{Exit, message};
use crate::cli::reshard::alone;
use crate::cli::{progress, stderr, values};
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stream;
use crate::pipeline::fields::Field;
use crate::pipeline::misnamed::Misnamed;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::Unfit;
use crate::pipeline::reshard::OtherNumber;
use crate::postgres::catalog::{self, Inspection, inspect};
use crate::postgres::client::{Client, connect};
use crate::postgres::detached;
use crate::postgres::division;
use crate::postgres::findings::{Refusals, has_columns};
use crate::postgres::id_column::IdColumn;
use crate::postgres::occurred_at::OccurredAt;
use crate::postgres::publications::publication_list;
use crate::postgres::row_security;
use crate::postgres::settings::PostgresSettings;
use crate::relay::Shutdown;
use crate::relay::lane_client::LaneClient;
use crate::relay::open::{check_names, source};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;
use crate::relay::taken_over;

mod compare;
mod comparison;
mod deletions;
pub(in crate::cli) mod key;
mod lane;
mod missing;
mod oldest;
mod report;
mod settling;
mod siblings;
pub(in crate::cli) mod slot;
mod sort;
mod table;

use compare::{Group, Verdict};
use comparison::{Comparison, has_missing, has_unpublished, read_stream};
use lane::LaneReading;
pub(in crate::cli) use missing::{Choice, Missing, check_condition, missing};
use report::Report;
use sort::Entries;
use table::Table;

const EXAMPLES: &str = "\
Examples:
  walrelay verify                                 what retention left of the table, and the stream
  walrelay verify --since 2026-11-01T00:00:00Z    rows with an older occurred_at are left out
  walrelay verify --json | jq .missing.count
  walrelay verify --repair                        publish what is missing, and check again

missing        in the table, not in the stream, and the relay has passed it
unjudged       in the table, not in the stream, which may have had its message and removed it
doubled        in the stream more than once; a replay is marked and no double, nor is one backfill
               or one retry of an event that is not there otherwise
out of order   a first publication whose position is not above all before it
dead-lettered  could not be published, and was neither retried nor discarded; walrelay dead-letters
               list shows it
phantom        in the stream, not in the table, though that still has rows of earlier events, and
               nothing was deleted from it. Where rows were deleted, a note counts such events
pending        in the slot, and still to be published; found where the oldest has waited for over 5
               seconds and nobody reads from the slot: the lane stands still. Beside a relay: it had
               published them, the broker has lost them since, and the relay publishes them again
unfit          the stream as it is configured loses events or takes none; the command that mends it
               is named

Rows that share an id need a message each, also where --since leaves one of them out.

Only the slot, as long as it holds a row, tells the row's position. Where the stream has removed
messages at its beginning, or keeps a number of each subject, any other row without a message is
unjudged. If there are more of these than messages that were removed, the others are missing,
though nobody can tell which. Where nothing was removed, all are missing, also rows from before
the slot was made. walrelay backfill publishes what is missing, and with --unjudged the unjudged
rows too. --since leaves rows out that are too old to matter.

Events before the first one whose row is still there are not called phantoms: retention drops the
oldest partitions. Nor is any where rows may have been deleted in whatever order: Postgres has
counted deletions in the table, outbox.after_publish is mark or delete, or the server is a
standby, which does not know; nor where source.messages publishes events without a row.

Where the publication has a row filter, the rows that it carries now are compared. Behind a change
of the number of shares, and where a share's stream lacks some, the streams of all shares are looked
through for them. Where these are not looked through, an event is not seen that two shares have both
published, each in its own lane, as while the row filters of two had the same rows. While filters
are so, or leave rows out, nothing is compared, and it ends with 3.

It needs about 50 MiB of memory, and 24 bytes of temporary files for each row and for each message.

On a standby the table is compared as far as the standby has replayed it, if the slot is there too.

Where a row has no message although the relay has passed it, and the slot is not confirmed beyond
it, the slot is looked into, in a copy of it that is gone at the end: Postgres must have room for
one more slot (max_replication_slots).

Exit code 0: nothing was found. 1: something was. 3: the check could not be made, rows are
unjudged, the broker has lost messages that the relay publishes again, or the relay is so far behind
that what is missing cannot be told from what is still to come. So it is where a walrelay reshard is
not at its end.";

/// Compare the outbox table with the stream: missing, doubled, out of order, dead-lettered, phantom.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object a line: one for each table, and of an outbox with shares for each share.
    #[arg(long)]
    pub(in crate::cli) json: bool,

    /// Leave out rows whose occurred_at is older.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(in crate::cli) since: Option<DateTime<Utc>>,

    /// How long to wait for a running relay to pass what the table has.
    #[arg(long, value_name = "DURATION", default_value = "2min", value_parser = values::duration)]
    pub(in crate::cli) wait: Duration,

    /// Publish what is missing, as walrelay backfill does, and check again.
    #[arg(long)]
    pub(in crate::cli) repair: bool,

    /// With --repair, publish also rows that cannot be judged: the stream may have had their messages and removed them.
    #[arg(long, requires = "repair")]
    pub(in crate::cli) unjudged: bool,

    /// Leaves out rows for which this condition does not hold.
    #[arg(skip)]
    only: Option<String>,
}

pub(in crate::cli) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|_| format!("{text:?} is not a time such as 2026-11-23T04:40:00Z"))
}

/// Runs the command.
///
/// # Errors
/// None of its own: what keeps it from checking is exit code 3.
pub(in crate::cli) async fn execute(
    args: &Args,
    settings: &Settings,
    shutdown: &mut Shutdown,
) -> Result<Exit, anyhow::Error> {
    let checked = async {
        let lane = Lane::open(settings).await?;
        let tables: Vec<usize> = (0..lane.tables.len()).collect();
        check(args, &lane, &tables, |_, _, _| Ok(())).await
    };
    let checked = tokio::select! {
        checked = checked => checked,
        () = shutdown.wait() => Err(anyhow::anyhow!("it was stopped before its end")),
    };
    let checked = match checked {
        Ok(checked) => checked,
        Err(error) => return unchecked(error),
    };
    let mut gravest = Exit::Done;
    for of_table in checked {
        let exit = match of_table {
            Ok((report, _)) => {
                report.print(args.json)?;
                report.exit()
            }
            Err(error) => unchecked(error)?,
        };
        gravest = gravest.graver(exit);
    }
    Ok(gravest)
}

/// Says why the check could not be made.
///
/// # Errors
/// The command is used wrongly.
fn unchecked(error: anyhow::Error) -> Result<Exit, anyhow::Error> {
    if Exit::of_error(&error) == Exit::Usage {
        return Err(error);
    }
    if error.is::<Unreadable>() || error.is::<Misnamed>() || error.is::<OtherNumber>() {
        stderr::line(format_args!("error: {error}"));
        return Ok(Exit::Failed);
    }
    stderr::line(format_args!(
        "error: the check could not be made: {}",
        message(&error)
    ));
    Ok(Exit::Unchecked)
}

/// A stream of which to read is to remove.
#[derive(Debug, thiserror::Error)]
#[error("{0}; nothing was compared: to read such a stream removes what is read")]
struct Unreadable(String);

/// A lane whose tables are compared with its stream.
struct Lane<'a> {
    settings: &'a Settings,
    /// Of each table, as [`Settings::tables`] has them.
    tables: Vec<Settings>,
    client: Client,
    inspection: Inspection,
    nats: Admin,
    info: StreamInfo,
    unfit: Option<Unfit>,
    record: Option<LaneRecord>,
}

impl<'a> Lane<'a> {
    async fn open(settings: &'a Settings) -> anyhow::Result<Self> {
        let client = connect(&settings.postgres.conninfo).await?;
        let inspection = inspect(&client, &settings.postgres).await?;
        let division = division::check_number(&client, &settings.postgres).await?;
        let doubts = division.doubts(&inspection, &settings.postgres);
        if !doubts.is_empty() {
            return Err(Refusals(doubts).into());
        }
        let nats = Admin::connect(&settings.nats.connection).await?;
        let name = &settings.nats.stream;
        let info = stream::find(&nats, name)
            .await?
            .with_context(|| format!("there is no stream {name}"))?;
        let unfit = readable(settings, &info, &nats)?;
        let lane = LaneClient::new(&nats, name, &settings.postgres.slot)?;
        let record = lane.record().await?.record;
        lives_there(record.as_ref(), name)?;
        check_names(&inspection, settings, record.as_ref())?;
        Ok(Lane {
            settings,
            tables: settings.tables(),
            client,
            inspection,
            nats,
            info,
            unfit,
            record,
        })
    }

    /// What there is of one of the tables.
    fn found(&self, table: usize) -> &Inspection {
        let mut tables = self.inspection.tables();
        tables.nth(table).expect("each table was looked at")
    }

    /// Reads one of the tables, to be compared.
    async fn read(&self, args: &Args, table: usize) -> anyhow::Result<(Table, Comparison<'_>)> {
        let (settings, inspection) = (&self.tables[table], self.found(table));
        let (client, postgres) = (&self.client, &settings.postgres);
        row_security::check(inspection, &postgres.table)?;
        has_columns(inspection, postgres, &[Field::Id])?;
        let found = table_beside_slot(inspection, postgres)?;
        let older = args.since.map(|since| {
            let occurred_at = OccurredAt::of(found, postgres)?;
            anyhow::Ok(occurred_at.is_before(since))
        });
        let older = older.transpose().context("--since")?;
        let mut entries = Entries::default();
        let id_column = IdColumn::of(found, postgres);
        let bar = bar("table", table::estimate(client, postgres).await?);
        let selection = table::Selection {
            id_column: &id_column,
            row_filter: inspection.row_filter(),
            older: older.as_deref(),
            only: args.only.as_deref(),
        };
        let in_recovery = inspection.server.in_recovery;
        let rows = table::read(
            client,
            postgres,
            selection,
            in_recovery,
            &mut entries,
            |rows| {
                tick(&bar, rows, None);
            },
        );
        let rows = rows.await;
        bar.finish_and_clear();
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                // Others are read on the same connection.
                client.batch_execute("ROLLBACK").await?;
                return Err(error);
            }
        };
        if self.tables.len() > 1 {
            entries.put_away()?;
        }
        let mut outbox = source(&self.inspection, self.settings);
        let record = self.record.as_ref();
        if let Some(record) = record {
            outbox = outbox.continued(&record.tables, 0.into());
        }
        let named = record.map_or(&[][..], |record| &record.publications);
        let (name, state) = (&settings.nats.stream, &self.info.state);
        let former = outbox.outboxes[table]
            .tables
            .former(found.oid, inspection.server.current_lsn);
        let recorded = record.filter(|record| {
            record.created == self.info.created && record.sequence <= state.last_seq
        });
        let comparison = Comparison {
            settings,
            client,
            nats: &self.nats,
            publications: publication_list(client, postgres, inspection, named).await?,
            source: outbox,
            outbox: table,
            lane_client: LaneClient::new(&self.nats, name, &postgres.slot)?,
            id_column,
            snapshot_lsn: rows.snapshot_lsn,
            in_recovery,
            lane: LaneReading::new(
                &self.info,
                name,
                &postgres.slot,
                settings.message.table.as_deref(),
                record,
                rows.snapshot_lsn,
            )
            .beside(former),
            recorded: recorded.and_then(|record| record.position),
            entries,
            pending_for: None,
            removed_elsewhere: 0,
        };
        Ok((rows, comparison))
    }
}

/// What became of one table's comparison; with a report, up to which sequence the stream was read.
type Checked = anyhow::Result<(Report, u64)>;

/// Compares tables of the lane, each by itself; the stream is read once for all of them.
///
/// # Errors
/// Nothing can be compared.
async fn check(
    args: &Args,
    lane: &Lane<'_>,
    tables: &[usize],
    mut each: impl FnMut(usize, &Group, &Verdict) -> std::io::Result<()>,
) -> anyhow::Result<Vec<Checked>> {
    let mut read = Vec::new();
    for table in tables {
        read.push(lane.read(args, *table).await);
    }
    let mut comparisons: Vec<_> = read.iter_mut().flatten().map(|(_, it)| it).collect();
    read_stream(&mut comparisons).await?;
    let mut settled = Vec::new();
    for of_table in read {
        settled.push(match of_table {
            Ok((rows, mut comparison)) => match comparison.settle(args.wait).await {
                Ok(settled) => Ok((rows, comparison, settled)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        });
    }
    // Behind the lane, which waits for theirs where the number of shares changes. What is missing may be there also where no record tells
    // of a change: a row has changed its share with its aggregate, or the records were lost.
    let mut others = siblings::of(lane.settings, &lane.client, &lane.nats).await?;
    if !others.tell_of_change {
        let misses = settled.iter_mut().flatten();
        let misses = misses.map(|(_, it, _)| has_unpublished(&mut it.entries));
        if !misses.collect::<std::io::Result<Vec<_>>>()?.contains(&true) {
            others.siblings.clear();
        }
    }
    for sibling in others.siblings {
        let mut tables: Vec<_> = settled
            .iter_mut()
            .flatten()
            .map(|(_, it, _)| siblings::OfTable {
                name: it.settings.message.table.clone(),
                former: it.lane.former(),
                entries: &mut it.entries,
            })
            .collect();
        let removed = sibling.read(&lane.nats, &mut tables).await?;
        for (_, comparison, _) in settled.iter_mut().flatten() {
            comparison.removed_elsewhere += removed;
        }
    }
    if let Some(elsewhere) = others.elsewhere.filter(|_| !args.unjudged) {
        for (_, comparison, _) in settled.iter_mut().flatten() {
            ensure!(
                !has_missing(&mut comparison.entries)?,
                "rows that no stream here has may be in {elsewhere}, of shares that were no more when walrelay move brought the lanes from \
                 there, so nothing tells what is missing: {} brings what they have here. Where that is gone for good, walrelay backfill \
                 --unjudged publishes such rows again; --since a moment behind the change of shares leaves them out",
                elsewhere.bring()
            );
        }
    }
    let mut letters = Vec::new();
    for gone in taken_over::by(lane.settings, &lane.client, &lane.nats).await? {
        letters.extend(
            Letters::of(&gone, &lane.nats)
                .await?
                .map(|found| (gone.slot, found)),
        );
    }
    let left = alone::left_behind(&lane.client, lane.settings).await?;
    let mut checked = Vec::new();
    for (of_table, table) in settled.into_iter().zip(tables) {
        let (rows, mut comparison, settled) = match of_table {
            Ok(settled) => settled,
            Err(error) => {
                checked.push(Err(error));
                continue;
            }
        };
        let several =
            (lane.tables.len() > 1).then(|| comparison.settings.postgres.table.to_string());
        let unfit = lane.unfit.as_ref().map(|unfit| unfit.reason.clone());
        let (reading, pending_for) = (&comparison.lane, comparison.pending_for);
        let read_through = reading.read_through();
        let mut report = Report::new(several, &rows, reading, settled, pending_for, unfit);
        report.since = args.since;
        report.left.clone_from(&left);
        let name = comparison.settings.postgres.table.to_string();
        let detached = detached::of(&lane.client, &name).await?;
        report.detached = detached::told(&name, &detached)
            .map(|(what, mend)| format!("{what}, which were not compared: {mend}"));
        for (slot, letters) in &letters {
            report.take_letters(slot, letters);
        }
        let judged = comparison.judge(report, |group, verdict| each(*table, group, verdict));
        checked.push(judged.await.map(|report| (report, read_through)));
    }
    Ok(checked)
}

/// The table, on a server whose slot says how far the stream may be.
fn table_beside_slot<'i>(
    inspection: &'i Inspection,
    postgres: &PostgresSettings,
) -> anyhow::Result<&'i catalog::Table> {
    let found = inspection
        .table
        .as_ref()
        .with_context(|| format!("there is no table {}", postgres.table))?;
    anyhow::ensure!(
        !inspection.server.in_recovery || inspection.slot.is_some(),
        "this server is a standby and has no slot {}, so that the stream may be ahead of its table: give the server that \
         has the slot in postgres.url",
        postgres.slot
    );
    Ok(found)
}

/// What does not fit of a stream that can be read without removing anything.
fn readable(settings: &Settings, info: &StreamInfo, nats: &Admin) -> anyhow::Result<Option<Unfit>> {
    let wanted = settings.nats.stream_settings(&settings.postgres.slot);
    let unfit = stream_fit::unfit(&info.config, &wanted, nats.server_version()?);
    match unfit {
        Some(unfit) if unfit.drops => Err(Unreadable(unfit.reason).into()),
        unfit => Ok(unfit),
    }
}

/// A bar for what is read.
fn bar(what: &'static str, length: u64) -> ProgressBar {
    let template = "{prefix:7} {wide_bar} {count} {rate} {left}";
    progress::bar(Some(length), false, template).with_prefix(what)
}

/// Every thousandth: a bar costs more than an entry.
fn tick(bar: &ProgressBar, position: u64, length: Option<u64>) {
    if position.is_multiple_of(1_000) {
        if let Some(length) = length {
            bar.set_length(length);
        }
        bar.set_position(position);
    }
}
