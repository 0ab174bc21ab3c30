//! `walrelay reshard`: another number of shares, while writers write and relays relay. An outbox that is not divided has one lane, of
//! all rows; that is one share.
//!
//! In: a number. Out: publications, slots and streams for so many shares. Guarantees: all publications change in one transaction,
//! while no other has rows of the table under way, so each row is of one share in front of it and of one behind it; what the WAL
//! tells there keeps the order of each aggregate (`pipeline::reshard`); a share that is no more keeps its slot until all that it had is
//! confirmed; one run is at work at a time, and no command that publishes for one of the lanes by itself; ended at any moment, it is finished by the next run, or undone by one with the number
//! from before.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::exit::{Exit, UsageError};
use super::signals::{self, Hangup};
use super::stderr;
use super::stdout;
use super::values;
use crate::config::{Key, Loaded, SHARES_MAX};
use crate::pipeline::reshard::{Switch, Undivided, has_lane, lanes_of};
use crate::postgres::catalog::{Inspection, inspect, server_version};
use crate::postgres::client::{Client, connect};
use crate::postgres::division::Division;
use crate::postgres::setup::publication_sql;
use crate::postgres::share::{ROW_FILTERS_SINCE, Share};
use crate::relay::Shutdown;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

mod all_rows;
pub(super) mod alone;
mod change;
mod check;
mod leases;
mod leftover;
mod moved;
mod prepare;
mod retire;

pub(super) use all_rows::of_all_rows;
use leases::Leases;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  walrelay reshard --shares 8 --dry-run    what it would do, as SQL
  walrelay reshard --shares 8              do it; writers and relays go on meanwhile
  walrelay reshard --shares 4 --undivided-stream OUTBOX --undivided-subject 'outbox.{event_type}'
                                           from one lane of all rows to a stream for each share

It makes publications, slots and streams for new shares, and then changes all publications in one
transaction. That needs the table without a transaction that has written to it: it is locked for a
moment, and tried again while others are under way. An insert waits for at most --lock-wait.

A relay reads up to there, waits until the shares that had its rows are published up to there, and
goes on: the events of each aggregate stay in order. Where shares become fewer, the rest of those
that are no more is published, by relays or else by this command, which waits until it is confirmed
(as long as relay.hold_back) and drops their slots.

Commands that publish by themselves, as walrelay backfill, are refused meanwhile, and this one while
one of them is at work. One that was killed or stands still is shut out after 5 seconds.

Give relay.shares the new number in every configuration, before or after: a relay with another
number has the shares that there are, of those that it knows. Where this was ended, run it again,
or with the number from before: before the publications are changed, that takes everything back.

Exit code 0: done. 1: something is in the way. 2: wrong usage.";

/// Divide the outbox into another number of shares.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many there shall be: a power of two; 1 is one lane of all rows.
    #[arg(long, value_name = "N", value_parser = parse_shares)]
    shares: u32,

    /// Where nats.stream has {share}: the stream of the lane of all rows, which was before or shall be.
    #[arg(long, value_name = "STREAM", requires = "undivided_subject")]
    undivided_stream: Option<String>,

    /// And its subject.
    #[arg(long, value_name = "TEMPLATE", requires = "undivided_stream")]
    undivided_subject: Option<String>,

    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,

    /// How long an insert may wait for the table; a try takes no longer.
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = values::duration)]
    lock_wait: Duration,

    /// How long to try, and to wait for shares that are no more.
    #[arg(long, value_name = "DURATION", default_value = "15min", value_parser = values::duration)]
    wait: Duration,
}

/// Runs the command; `load` gives the configuration of so many shares, with further values.
///
/// # Errors
/// Something is in the way, or Postgres or NATS refuse.
pub(super) async fn execute(
    args: Args,
    load: impl Fn(u32, Vec<(Key, String)>) -> Result<Loaded, anyhow::Error>,
) -> Result<Exit, anyhow::Error> {
    let to = args.shares;
    let shares = shares(&load, to.max(2))?;
    let first = &shares[0].postgres;
    let sql = connect(&first.conninfo)
        .await
        .with_context(|| format!("cannot connect to {}", first.conninfo))?;
    ensure!(
        server_version(&sql).await? >= ROW_FILTERS_SINCE,
        "shares need publications with row filters, which came with Postgres 15"
    );
    if !args.dry_run {
        alone::lock(&sql, first).await?;
    }
    let division = Division::look(&sql, first).await?;
    let from = whole(&division, &first.any_share())?;
    let last = division.last().map_or(0, |last| last + 1);
    let shares = self::shares(&load, last.max(from).max(to).max(2).next_power_of_two())?;
    let is_undivided = [from, to].contains(&1) || division.has(None);
    let undivided = match is_undivided {
        true => Some(undivided(&args, of_all_rows(&shares[0]).await, &load)?),
        false => None,
    };
    let inspection = inspect(&sql, &shares[0].postgres).await?;
    let resharding = Resharding {
        switch: Switch { from, to },
        args: &args,
        division,
        shares,
        undivided,
        inspection,
        sql,
    };
    if let Some(exit) = resharding.refused().await? {
        return Ok(exit);
    }
    if args.dry_run {
        resharding.print()?;
        return Ok(Exit::Done);
    }
    let shutdown = signals::listen(Hangup::Stops)?;
    let leases = resharding.lease().await?;
    let done = resharding.run(&leases, shutdown).await;
    leases.release().await;
    done
}

fn parse_shares(text: &str) -> Result<u32, String> {
    let count = text.parse().ok();
    let count = count.filter(|count: &u32| count.is_power_of_two() && *count <= SHARES_MAX);
    count.ok_or_else(|| format!("expected a power of two from 1 to {SHARES_MAX}"))
}

/// A lane for each of so many shares.
fn shares(
    load: &impl Fn(u32, Vec<(Key, String)>) -> Result<Loaded, anyhow::Error>,
    count: u32,
) -> Result<Vec<Settings>, anyhow::Error> {
    let lanes = load(count, Vec::new())?.lanes;
    if lanes.len() != count as usize {
        let why = "this is about all shares: leave out --share and relay.share";
        return Err(UsageError(why.to_owned()).into());
    }
    Ok(lanes)
}

/// The lane of all rows.
fn undivided(
    args: &Args,
    told: Option<Undivided>,
    load: &impl Fn(u32, Vec<(Key, String)>) -> Result<Loaded, anyhow::Error>,
) -> Result<Settings, anyhow::Error> {
    let given = [
        (Key::NatsStream, &args.undivided_stream),
        (Key::NatsSubject, &args.undivided_subject),
    ];
    let given = given
        .into_iter()
        .filter_map(|(key, text)| Some((key, text.clone()?)));
    let loaded = load(1, given.collect());
    let is_given = args.undivided_stream.is_some();
    let loaded = loaded.map_err(|error| match told.as_ref().filter(|_| !is_given) {
        None => error,
        Some(told) => UsageError(format!(
            "the lane of all rows publishes elsewhere than its shares: give {}",
            told.flags()
        ))
        .into(),
    })?;
    Ok(loaded.lane()?.clone())
}

fn whole(division: &Division, share: &Share) -> anyhow::Result<u32> {
    let found = division.all_rows_beside(share);
    if let Some(found) = found.or_else(|| division.finding(share)) {
        bail!("{found}");
    }
    match (division.whole(), division.count()) {
        (Some(count), _) => Ok(count),
        (None, None) if division.has(None) => bail!(
            "publication {} has a row filter of its own: only one of all rows can be divided",
            share.whole_publication
        ),
        (None, None) => bail!(
            "no publication {} or {}_0 and on holds the table by FOR TABLE: run walrelay setup",
            share.whole_publication,
            share.whole_publication
        ),
        (None, Some(count)) => bail!(
            "the publications are not those of {count} shares: walrelay doctor says which is not, and the command that mends it"
        ),
    }
}

fn counted(shares: u32) -> String {
    match shares {
        1 => "one lane of all rows".to_owned(),
        _ => format!("{shares} shares"),
    }
}

/// One run of the command.
struct Resharding<'a> {
    args: &'a Args,
    switch: Switch,
    division: Division,
    /// Of every share that there is, was or shall be.
    shares: Vec<Settings>,
    /// The lane of all rows, where there is, was or shall be one.
    undivided: Option<Settings>,
    inspection: Inspection,
    sql: Client,
}

impl Resharding<'_> {
    async fn run(&self, leases: &Leases, shutdown: Shutdown) -> Result<Exit, anyhow::Error> {
        let Switch { from, to } = self.switch;
        // Until they were ours, another command may have been at work.
        if let Some(exit) = self.refused().await? {
            return Ok(exit);
        }
        leases.begin("shutting out commands that were killed");
        self.shut_out(leases).await?;
        leases.begin("making what the new lanes need");
        for part in self.coming() {
            let exit = self.prepare(part, shutdown.clone()).await?;
            if exit != Exit::Done {
                return Ok(exit);
            }
        }
        let mut stopped = shutdown.clone();
        let rest = async {
            if from != to {
                self.tell_of_changes().await?;
                leases.begin("changing the publications");
                let lsn = self.change(leases).await?;
                stdout::write(&format!("from {lsn} on the outbox has {}\n", counted(to)))?;
            }
            leases.begin("publishing what lanes had that are no more");
            self.retire(leases).await
        };
        tokio::select! {
            done = rest => done?,
            () = stopped.wait() => bail!("stopped before its end: run it again"),
        }
        stderr::line(format_args!(
            "relay.shares = {to} belongs into every configuration by now"
        ));
        Ok(Exit::Done)
    }

    /// The lane of a share, or of all rows.
    fn lane(&self, part: Option<u32>) -> &Settings {
        match part {
            Some(number) => &self.shares[number as usize],
            None => (self.undivided.as_ref()).expect("it is loaded where it is about it"),
        }
    }

    fn create(&self, lane: &Settings) -> String {
        let tables = lane.postgres.tables().into_iter();
        let nothing: Vec<String> = tables
            .map(|it| format!("{} WHERE (false)", it.table))
            .collect();
        publication_sql(&self.inspection, &lane.postgres, &nothing)
    }

    fn print(&self) -> anyhow::Result<()> {
        let Switch { from, to } = self.switch;
        let mut text = String::new();
        for part in self.coming().filter(|part| !self.division.has(*part)) {
            let lane = self.lane(part);
            text.push_str(&self.create(lane));
            text.push_str(&format!(
                "\n-- and walrelay setup of slot {} and stream {}\n",
                lane.postgres.slot, lane.nats.stream
            ));
        }
        if from != to {
            text.push_str(&format!(
                "BEGIN;\n{}\nCOMMIT;\n",
                self.statements()?.join("\n")
            ));
        }
        for part in self.leaving() {
            let lane = &self.lane(part).postgres;
            text.push_str(&format!(
                "-- once slot {} is confirmed up to there\nSELECT pg_drop_replication_slot('{}');\nDROP PUBLICATION {};\n",
                lane.slot,
                lane.slot,
                quote_identifier(&lane.publication)
            ));
        }
        if text.is_empty() {
            text.push_str(&format!("-- the outbox has {}\n", counted(to)));
        }
        stdout::write(&text)?;
        Ok(())
    }

    /// Lanes that were none before.
    fn coming(&self) -> impl Iterator<Item = Option<u32>> {
        let Switch { from, to } = self.switch;
        lanes_of(to).filter(move |part| !has_lane(from, *part))
    }

    /// Lanes that will be none any more.
    fn leaving(&self) -> impl Iterator<Item = Option<u32>> {
        let to = self.switch.to;
        let is_leaving = move |part: &Option<u32>| !has_lane(to, *part);
        self.division.parts().filter(is_leaving)
    }
}
