//! `walrelay prune`: deletes rows of the table that are published and confirmed, and old enough.
//!
//! In: settings, an age. Out: fewer rows. Guarantees: what goes was committed before an LSN that every slot of the database is
//! confirmed through; an open dead letter stays, and so does every row where one is missing in the stream; it may be ended at
//! any moment and run again.
//!
//! In this order: table and stream are compared; the LSN below which everything so far was committed, which is waited for; the
//! open dead letters; the rows of before it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use postgres_types::PgLsn;

use super::all_shares;
use super::exit::{Exit, message};
use super::own_lane::own_lane;
use super::signals::{self, Hangup};
use super::{progress, stderr, values};
use crate::nats::admin::Admin;
use crate::pipeline::fields::Field;
use crate::postgres::catalog::inspect;
use crate::postgres::client::{Client, connect};
use crate::postgres::findings::has_columns;
use crate::postgres::id_column::IdColumn;
use crate::postgres::logical_slots::logical_slots;
use crate::postgres::occurred_at::OccurredAt;
use crate::postgres::triggers;
use crate::postgres::wal_end::write_on;
use crate::relay::Shutdown;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

mod age;
mod comparison;
mod confirmed;
mod kept;
pub(super) mod left;
mod partitions;
mod report;
mod rows;
mod shares;
mod waited;
mod whole;

use age::Cutoff;
use confirmed::{Readers, excepted, explained, unhalted};
use kept::Kept;
use partitions::{Partition, Partitions};
use report::Report;
use rows::{Batches, Moment, Snapshot};
use shares::{carried, prunable};
use waited::Waited;
use whole::left_detached;

const EXAMPLES: &str = "\
Examples:
  walrelay prune --older-than 7d --dry-run        how many rows would go
  walrelay prune --older-than 7d                  delete them; once a day from cron, for example
  walrelay prune --older-than 7d --batch 200      in smaller transactions

Only rows go whose transaction every logical slot of the database is confirmed through. That is
waited for: with a relay that runs it takes as long as its hold-back. Postgres does not tell which
tables a slot is read for, so a slot of somebody else counts as well, unless --except-slot leaves
it out.

Rows stay that are open dead letters. Before anything goes, table and stream are compared as
walrelay verify does it: where rows are missing in the stream, for instance those from before the
slot was made, nothing goes until walrelay backfill has published them. --without-comparison
leaves that out, and such rows go too.

How old a row is, its occurred_at tells. Rows that the publication does not carry stay.

To count needs no right to delete. Where the role has none, --dry-run says so and ends with 1.

Exit code 0: done, or nothing was old enough. 1: something must not go, or a slot is behind. 2:
wrong usage, or the table has no occurred_at. 3: row security hides rows of the table.";

/// Delete rows of the table that are published, confirmed, and old enough.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How old a row must be, such as 7d.
    #[arg(long, value_name = "AGE", value_parser = age::parse)]
    older_than: Duration,

    /// Count, wait for nothing and delete nothing.
    #[arg(long)]
    dry_run: bool,

    /// One JSON object.
    #[arg(long)]
    json: bool,

    /// Rows in one transaction.
    #[arg(long, value_name = "ROWS", default_value = "1000")]
    #[arg(value_parser = values::count::<u32>(1..=100_000))]
    batch: u32,

    /// How long to wait for the slots, and for whoever reads a partition that is to go.
    #[arg(long, value_name = "DURATION", default_value = "10min", value_parser = values::duration)]
    wait: Duration,

    /// A slot that is read for other tables alone; may be given several times.
    #[arg(long, value_name = "SLOT", value_parser = values::slot)]
    except_slot: Vec<String>,

    /// Do not compare table and stream: rows that were never published go too.
    #[arg(long)]
    without_comparison: bool,
}

/// Runs the command for the lanes of a table: one, or all its shares.
///
/// # Errors
/// Something must not go, or Postgres or NATS refuse.
pub async fn execute(args: Args, lanes: &[Settings]) -> Result<Exit, anyhow::Error> {
    let shutdown = signals::listen(Hangup::Stops)?;
    let mut gravest = Exit::Done;
    // A partition has rows of all shares, and all of them keep rows.
    let tables = all_shares::first(lanes, "rows go").await?.tables();
    for (table, settings) in tables.iter().enumerate() {
        let done = execute_one(&args, lanes, table, settings, &shutdown).await;
        gravest = gravest.graver(match done {
            // Such as one that does not tell when a row occurred: the others are pruned nevertheless.
            Err(error) if tables.len() > 1 && Exit::of_error(&error) == Exit::Usage => {
                let table = &settings.postgres.table;
                stderr::line(format_args!("error: {table}: {}", message(&error)));
                Exit::Usage
            }
            done => done?,
        });
    }
    Ok(gravest)
}

/// Runs the command for one table, of [`Settings::tables`].
async fn execute_one(
    args: &Args,
    lanes: &[Settings],
    table: usize,
    settings: &Settings,
    shutdown: &Shutdown,
) -> Result<Exit, anyhow::Error> {
    let table_index = table;
    let mut stopped = shutdown.clone();
    let prepared = async {
        let reader = connect(&settings.postgres.conninfo).await?;
        let nats = Admin::connect(&settings.nats.connection).await?;
        let mut clients = Vec::new();
        for lane in lanes {
            let client = LaneClient::new(&nats, &lane.nats.stream, &lane.postgres.slot)?;
            unhalted(&own_lane(lane, &reader, &client).await?)?;
            clients.push(client);
        }
        let own: Vec<&str> = clients.iter().map(LaneClient::slot).collect();
        excepted(&args.except_slot, &own, &logical_slots(&reader).await?)?;
        let mut filters = Vec::new();
        for lane in &lanes[1..] {
            let lane = &lane.tables()[table_index];
            let inspection = inspect(&reader, &lane.postgres).await?;
            has_columns(&inspection, &lane.postgres, &[Field::Id])?;
            prunable(&reader, &inspection, &lane.postgres, args.dry_run).await?;
            filters.push(carried(&inspection));
        }
        let inspection = inspect(&reader, &settings.postgres).await?;
        has_columns(&inspection, &settings.postgres, &[Field::Id])?;
        let (table, may_not) =
            prunable(&reader, &inspection, &settings.postgres, args.dry_run).await?;
        filters.push(carried(&inspection));
        let occurred_at = OccurredAt::of(table, &settings.postgres).context("--older-than")?;
        let cutoff = Cutoff::of(&reader, occurred_at, args.older_than).await?;
        let id_column = IdColumn::of(table, &settings.postgres);
        let batches = Batches {
            table: settings.postgres.table.to_string(),
            condition: format!("{} AND ({})", cutoff.is_older(), filters.join(" OR ")),
            id: id_column.text(),
            size: args.batch,
        };
        let prune = Prune {
            settings,
            lanes,
            table: table_index,
            args,
            clients,
            nats,
            cutoff,
            id_column,
            batches,
        };
        let mut report = prune.report();
        report.is_hindered = may_not.is_some();
        report.notes.extend(may_not);
        let writer = match args.dry_run {
            true => None,
            false => Some(connect(&settings.postgres.conninfo).await?),
        };
        prune
            .attach_left(writer.as_ref(), &reader, &mut report)
            .await?;
        // What is not old enough may be missing: it stays.
        if prune.batches.has_rows(&reader).await? {
            prune.compare().await?;
        }
        anyhow::Ok((prune, reader, writer, report))
    };
    let (prune, reader, writer, mut report) = tokio::select! {
        prepared = prepared => prepared?,
        () = stopped.wait() => bail!("stopped before anything was deleted"),
    };
    match writer {
        None => prune.count(&reader, &mut report).await?,
        Some(writer) => {
            let sessions = (&reader, &writer);
            prune.delete(sessions, shutdown, &mut report).await?;
        }
    }
    report.print(args.json)?;
    Ok(if report.done && !report.is_hindered {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// One run of the command.
struct Prune<'a> {
    /// Of the first lane; of the table they are the same in all.
    settings: &'a Settings,
    lanes: &'a [Settings],
    /// Which of the lane's tables.
    table: usize,
    args: &'a Args,
    nats: Admin,
    /// Of each lane.
    clients: Vec<LaneClient>,
    cutoff: Cutoff,
    id_column: IdColumn,
    batches: Batches,
}

impl Prune<'_> {
    async fn count(&self, reader: &Client, report: &mut Report) -> anyhow::Result<()> {
        let kept = Kept::read(&self.nats, reader, &self.clients).await?;
        report.letters_of = self.shares(&kept.open_in);
        let mut batches = self.batches.clone();
        if let Some(partitions) = self.partitions(reader, report).await? {
            let old = partitions.old(&kept, &self.id_column).await?;
            batches.leave_out(&old);
            report.partitions = names(&old);
        }
        let snapshot = Snapshot::take(reader).await?;
        report.take(snapshot.count(&batches, &kept).await?);
        Ok(())
    }

    async fn delete(
        &self,
        (reader, writer): (&Client, &Client),
        shutdown: &Shutdown,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let partitions = self.partitions(writer, report).await?;
        let detached = match &partitions {
            Some(partitions) => {
                let waited = Waited {
                    runs: writer,
                    observer: reader,
                    shutdown,
                };
                self.detach(partitions, waited, report).await?
            }
            None => Vec::new(),
        };
        // Then there is nothing to wait for.
        if !detached.is_empty() || self.batches.has_rows(reader).await? {
            self.delete_confirmed(
                reader,
                writer,
                partitions.as_ref(),
                &detached,
                shutdown,
                report,
            )
            .await?;
        }
        if let Some(partitions) = &partitions {
            for made in partitions.make_coming().await? {
                match made {
                    Ok(name) => report.partitions_made.push(name),
                    Err(why) => report.notes.push(why),
                }
            }
        }
        Ok(())
    }

    /// Waits until every slot is confirmed through what is there now, and deletes what is old of it.
    async fn delete_confirmed(
        &self,
        reader: &Client,
        writer: &Client,
        partitions: Option<&Partitions<'_>>,
        detached: &[Partition],
        shutdown: &Shutdown,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let moment = Moment::now(reader).await?;
        let mut stopped = shutdown.clone();
        tokio::select! {
            confirmed = self.confirm(writer, moment.lsn) => {
                confirmed.context(left_detached(&names(detached)))?;
            }
            () = stopped.wait() => bail!("stopped: {}", left_detached(&names(detached))),
        }
        report.confirmed_lsn = Some(moment.lsn.to_string());
        // What until then could not be published is in the stream by now.
        let kept = Kept::read(&self.nats, reader, &self.clients).await?;
        report.letters_of = self.shares(&kept.open_in);
        if let Some(partitions) = partitions {
            let waited = Waited {
                runs: writer,
                observer: reader,
                shutdown,
            };
            self.finish(partitions, detached, &kept, waited, report)
                .await?;
        }
        let bar = progress::bar(
            None,
            self.args.json,
            "{spinner} {human_pos} rows deleted, {rate}",
        );
        let batches = self.batches.clone().of_before(&moment);
        let deleted = Snapshot::take(reader)
            .await?
            .delete(writer, &batches, &kept, shutdown, |deleted| {
                bar.set_position(deleted.rows);
            })
            .await;
        bar.finish_and_clear();
        report.take(deleted.context("some rows may be deleted; run this again for the rest")?);
        if report.changed > 0
            && let Some(why) = triggers::kept(writer, &self.batches.table).await?
        {
            report.notes.push(why);
            report.is_hindered = true;
        }
        // The snapshot's transaction has the table open.
        reader.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// The numbers of the shares at these places; of an outbox that is not divided, none.
    fn shares(&self, places: &[usize]) -> Vec<u32> {
        let shares = places
            .iter()
            .map(|place| self.lanes[*place].postgres.part());
        shares.flatten().collect()
    }

    /// The table's partitions, if it has any that are made by age.
    async fn partitions<'c>(
        &'c self,
        client: &'c Client,
        report: &mut Report,
    ) -> anyhow::Result<Option<Partitions<'c>>> {
        let postgres = &self.settings.postgres;
        let partitions = Partitions::of(client, postgres, &self.cutoff).await?;
        if let Some(keeper) = partitions.as_ref().and_then(|found| found.keeper.as_ref()) {
            report.notes.push(format!(
                "{keeper} keeps the partitions of {}: they are left alone, and rows are deleted one by one",
                postgres.table
            ));
        }
        Ok(partitions)
    }

    /// Waits until every slot is confirmed through this LSN.
    async fn confirm(&self, client: &Client, lsn: PgLsn) -> anyhow::Result<()> {
        write_on(client).await?;
        if !self.args.json {
            stderr::line(format_args!(
                "waiting until every slot is confirmed through {lsn}"
            ));
        }
        for lane in &self.clients {
            self.readers(lane).confirm(client, lsn).await?;
            explained(lane, lsn).await?;
        }
        Ok(())
    }

    fn readers<'r>(&'r self, lane: &'r LaneClient) -> Readers<'r> {
        Readers {
            own: lane.slot(),
            except: &self.args.except_slot,
            limit: self.args.wait,
        }
    }

    /// Of nothing yet.
    fn report(&self) -> Report {
        Report {
            table: self.batches.table.clone(),
            cutoff: self.cutoff.text.clone(),
            dry_run: self.args.dry_run,
            rows: 0,
            open_dead_letters: 0,
            letters_of: Vec::new(),
            changed: 0,
            partitions: Vec::new(),
            partitions_made: Vec::new(),
            notes: Vec::new(),
            confirmed_lsn: None,
            done: true,
            is_hindered: false,
        }
    }
}

fn names(partitions: &[Partition]) -> Vec<String> {
    partitions
        .iter()
        .map(|partition| partition.name.clone())
        .collect()
}
