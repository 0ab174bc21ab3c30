//! `walrelay erase`: removes what is known of one aggregate from table and streams.
//!
//! In: settings, an aggregate's id. Out: its messages overwritten and its rows deleted, with a receipt. Guarantees: the lane's
//! order and its place stay, since no message goes that the lane record is not behind; nothing goes that is still to be
//! published; one that was ended at any moment is finished by the next, since the rows, which tell the ids, go last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;

use super::all_shares;
use super::consent::agreed;
use super::deletable::deletable;
use super::exit::Exit;
use super::own_lane::own_lane;
use super::signals::{self, Hangup};
use super::stderr;
use super::values;
use crate::bulk::lease::Lease;
use crate::bulk::place;
use crate::config::syntax::parse_stream;
use crate::nats::admin::Admin;
use crate::pipeline::fields::Field;
use crate::pipeline::position::KIND_ERASED;
use crate::pipeline::record::Left;
use crate::postgres::catalog::{Inspection, inspect};
use crate::postgres::client::{Client, connect};
use crate::postgres::findings::has_columns;
use crate::postgres::id_column::IdColumn;
use crate::postgres::wal_end::wal_end;
use crate::relay::Shutdown;
use crate::relay::clock::now_text;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::open::check_names;
use crate::relay::settings::Settings;

mod aggregate;
mod forget;
mod leases;
mod messages;
mod receipt;
mod rounds;
mod rows;
mod streams;
mod survey;
mod tables;
mod waiting;

use aggregate::AggregateId;
use leases::Leases;
use messages::{Erased, Wanted};
use receipt::Receipt;
use streams::Places;
use survey::Survey;
use tables::{LeftOut, Others, Tables};

const EXAMPLES: &str = "\
Examples:
  walrelay erase --aggregate-id 0192f7a0-0000-7000-8000-000000000001 --dry-run   count
  walrelay erase --aggregate-id 0192f7a0-0000-7000-8000-000000000001             erase, after asking
  walrelay erase --aggregate-id … --yes --json > receipt.json                    from a program
  walrelay erase --aggregate-id … --also-stream COPY                             from this one too

It removes the aggregate's rows from the table and its messages from the stream: events and dead
letters. nats-server overwrites each with noise. So it does in the streams that walrelay replay
has published to, in mirrors of all these, in streams that have one as a source, and in those that
walrelay move has left on the same NATS; other copies have to be named with --also-stream. Where
others write to such a stream too, their messages stay.

The id is taken as messages show it, or as Postgres writes it. Tables in which no row can have it
are named and left out; with source.messages, only the rows of the lane's own, since messages of
pg_logical_emit_message have any text. Messages of a table that the configuration names no more go
too, as far as they tell their aggregate; of others the receipt says how many there are, and it is
not done until the table has an entry in [[source.tables]] again.

The relay may run meanwhile: the lane keeps its order and its place. Events that are not published
yet are waited for. First let the application write nothing more about the aggregate.

What it does not reach: consumers and their copies, backups, and Postgres' WAL, which the slot
keeps until it is confirmed. In the formats payload and payload_string a message does not tell its
aggregate, unless a header does: there its rows tell, so erase before they are deleted. It is not
done while there are such messages without a row: the receipt counts them. Where a header told the
aggregate that the configuration names no more, give --also-header; standard error says which one
has the id.

To count needs no right to delete. Where the role has none, --dry-run says so and ends with 1.

Where it was ended, run it again. Exit code 0: erased, or there was nothing. 1: something could
not be erased. 2: nobody agreed, or wrong usage. 3: row security hides rows of the table.";

/// Remove an aggregate's rows and messages for good.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The aggregate, as messages show it or as Postgres writes it.
    #[arg(long, value_name = "ID", value_parser = values::written_id)]
    aggregate_id: String,

    /// Another stream that may have copies; may be given several times.
    // Not --stream: that flag says which one the lane's is.
    #[arg(long, value_name = "STREAM", value_parser = parse_stream)]
    also_stream: Vec<String>,

    /// A header that told the aggregate and that the configuration names no more; may be given several times.
    #[arg(long, value_name = "HEADER", value_parser = values::header_name)]
    also_header: Vec<String>,

    /// Count, and remove nothing.
    #[arg(long)]
    dry_run: bool,

    /// The receipt as one JSON object.
    #[arg(long)]
    json: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    /// How long to wait for the relay.
    #[arg(long, value_name = "DURATION", default_value = "2min", value_parser = values::duration)]
    wait: Duration,
}

/// Runs the command for the lanes of a table: one, or all its shares. The aggregate's messages are in the stream of its share, and
/// of the share that it had when there was another number of them.
///
/// # Errors
/// Something could not be erased.
pub async fn execute(args: Args, lanes: &[Settings]) -> Result<Exit, anyhow::Error> {
    let mut shutdown = signals::listen(Hangup::Stops)?;
    let first = all_shares::first(lanes, "an aggregate goes from the streams").await?;
    let sql = connect(&first.postgres.conninfo).await?;
    let nats = Admin::connect(&first.nats.connection).await?;
    // Before anything is removed for any lane.
    let mut known = Vec::new();
    for lane in lanes {
        let client = LaneClient::new(&nats, &lane.nats.stream, &lane.postgres.slot)?;
        let record = own_lane(lane, &sql, &client).await?;
        let inspection = inspect(&sql, &lane.postgres).await?;
        check_names(&inspection, lane, Some(&record))?;
        known.extend(record.tables);
        for (found, settings) in inspection.tables().zip(lane.postgres.tables()) {
            has_columns(found, &settings, &[Field::Id, Field::AggregateId])?;
        }
    }
    let tables = Tables::find(&sql, first, &args.aggregate_id, &known).await?;
    for LeftOut { table, why } in &tables.left_out {
        stderr::line(format_args!(
            "rows of {table} are left out, none can be the aggregate's: {why}"
        ));
    }
    let mut survey = Survey::of(&nats).await?;
    // What one table does not permit is told before another one is erased from.
    for table in tables.some.iter().skip(1) {
        Erasing::new(&args, first, *table, &mut survey, &sql, &nats).await?;
    }
    let mut gravest = Exit::Done;
    for (number, table) in tables.some.iter().enumerate() {
        // Messages of no table that is looked at are looked for once.
        let others = (number == 0).then(|| Others::of(first, &tables));
        if number > 0 {
            // Between two tables no lease keeps others from publishing.
            survey = Survey::of(&nats).await?;
        }
        let one = (*table, others);
        let done = execute_one(&args, lanes, one, (&sql, &nats), &mut survey, &mut shutdown);
        gravest = gravest.graver(done.await?);
    }
    Ok(gravest)
}

/// Runs the command for one table, of [`Settings::tables`].
async fn execute_one(
    args: &Args,
    lanes: &[Settings],
    (table, others): (usize, Option<Others>),
    (sql, nats): (&Client, &Admin),
    survey: &mut Survey,
    shutdown: &mut Shutdown,
) -> Result<Exit, anyhow::Error> {
    let mut erasing = Vec::new();
    for lane in lanes {
        erasing.push(Erasing::new(args, lane, table, survey, sql, nats).await?);
    }
    for lane in &mut erasing {
        lane.others.clone_from(&others);
    }
    erasing[0].past = streams::of_shares_before(nats, sql, lanes).await?;
    erasing[0].look(survey).await?;
    let mut receipt = Receipt {
        aggregate_id: args.aggregate_id.clone(),
        at: now_text(),
        dry_run: args.dry_run,
        table: erasing[0].table.clone(),
        rows: 0,
        streams: Vec::new(),
        left_out: others.map_or_else(Vec::new, |others| others.left_out),
        of_unnamed: BTreeMap::new(),
        untold: BTreeMap::new(),
        untold_with_header: BTreeMap::new(),
        unfinished_moves: BTreeSet::new(),
        left_elsewhere: (erasing.iter().flat_map(|lane| lane.left.clone()))
            .map(|left| Left { slot: None, ..left })
            .collect(),
        may_not_delete: erasing[0].may_not.clone(),
        done: false,
    };
    let done = if args.dry_run {
        count(&mut erasing, &mut receipt).await
    } else {
        if !agreed(args.yes, &question(&erasing), "nothing was erased")? {
            return Ok(Exit::Usage);
        }
        let mut leases = Leases::take(&erasing).await?;
        receipt.unfinished_moves = leases.unfinished_moves();
        let done = tokio::select! {
            done = rounds::erase(&mut erasing, &mut leases, survey, &mut receipt) => done,
            () = shutdown.wait() => Err(anyhow::anyhow!("stopped before its end: run it again")),
        };
        leases.release().await;
        done
    };
    // What was removed is told also where the rest could not be.
    receipt.take(erasing.into_iter().flat_map(|lane| lane.streams));
    receipt.say_what_stays();
    receipt.print(args.json)?;
    done?;
    let is_counted = args.dry_run && receipt.may_not_delete.is_none();
    Ok(if receipt.done || is_counted {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn question(erasing: &[Erasing<'_>]) -> String {
    let streams: BTreeSet<&str> = (erasing.iter())
        .flat_map(|lane| lane.streams.iter().map(Erased::stream))
        .collect();
    let streams: Vec<&str> = streams.into_iter().collect();
    let args = erasing.first().map(|lane| (lane.args, &lane.table));
    args.map_or_else(String::new, |(args, table)| {
        format!(
            "Erase aggregate {} from {table} and from {} for good?",
            args.aggregate_id,
            streams.join(", ")
        )
    })
}

async fn count(erasing: &mut [Erasing<'_>], receipt: &mut Receipt) -> anyhow::Result<()> {
    for lane in erasing {
        let ids = lane.ids().await?;
        receipt.rows = ids.len() as u64;
        let wanted = lane.wanted(ids);
        let mut streams = std::mem::take(&mut lane.streams);
        for erased in &mut streams {
            messages::find(lane.nats, &wanted, lane.rows(), erased).await?;
        }
        lane.streams = streams;
    }
    Ok(())
}

/// One run of the command, for one lane.
struct Erasing<'a> {
    /// With all its tables.
    whole: &'a Settings,
    /// Which of them.
    outbox: usize,
    settings: Settings,
    args: &'a Args,
    sql: &'a Client,
    id_column: IdColumn,
    inspection: Inspection,
    id: AggregateId,
    others: Option<Others>,
    nats: &'a Admin,
    lane: LaneClient,
    table: String,
    streams: Vec<Erased>,
    /// Why rows may not be deleted, of a dry run.
    may_not: Option<String>,
    /// What it has left at other NATS'.
    left: Vec<Left>,
    /// The streams that the lane lives in, or has lived in.
    lanes: Vec<String>,
    /// Of shares that are no more.
    past: Vec<LaneClient>,
    /// The streams and slots of all leases of these.
    leased: BTreeSet<(String, String)>,
}

impl<'a> Erasing<'a> {
    async fn new(
        args: &'a Args,
        whole: &'a Settings,
        outbox: usize,
        survey: &mut Survey,
        sql: &'a Client,
        nats: &'a Admin,
    ) -> anyhow::Result<Self> {
        let inspection = inspect(sql, &whole.postgres).await?;
        let settings = whole.tables().swap_remove(outbox);
        let found = inspection.tables().nth(outbox).expect("each was looked at");
        let name = &settings.postgres.table;
        let (table, may_not) = deletable(sql, found, name, args.dry_run).await?;
        rows::all_seen(sql, &settings.postgres.table.to_string()).await?;
        let id = AggregateId::of(table, &settings.postgres, &args.aggregate_id)?;
        messages::check_headers(&args.also_header, &settings)?;
        let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
        let record = lane.record().await?.record;
        let mut erasing = Erasing {
            id_column: IdColumn::of(table, &settings.postgres),
            table: settings.postgres.table.to_string(),
            whole,
            outbox,
            settings,
            args,
            sql,
            inspection,
            id,
            others: None,
            nats,
            lane,
            streams: Vec::new(),
            may_not,
            left: record.map_or_else(Vec::new, |record| record.left),
            lanes: Vec::new(),
            past: Vec::new(),
            leased: BTreeSet::new(),
        };
        erasing.look(survey).await?;
        Ok(erasing)
    }

    /// The lanes of replays in the other streams.
    fn targets(&self) -> anyhow::Result<Vec<LaneClient>> {
        let streams = self.streams.iter().map(Erased::stream);
        let others = streams.filter(|stream| *stream != self.settings.nats.stream);
        let targets = others.map(|stream| LaneClient::new(self.nats, stream, self.lane.slot()));
        Ok(targets.collect::<Result<_, _>>()?)
    }

    /// Whether it looks into this stream.
    fn has(&self, stream: &str) -> bool {
        self.streams.iter().any(|known| known.stream() == stream)
    }

    /// The lanes of leases elsewhere, as of streams that are gone: they may tell the id.
    fn leased(&self) -> anyhow::Result<Vec<LaneClient>> {
        let leased = self.leased.iter();
        let leased = leased.map(|(stream, slot)| LaneClient::new(self.nats, stream, slot));
        Ok(leased.collect::<Result<_, _>>()?)
    }

    /// What to look for.
    fn wanted(&self, ids: BTreeSet<String>) -> Wanted {
        let past = self.past.iter().map(LaneClient::slot);
        let past = past.filter(|slot| *slot != self.lane.slot());
        let past_slots = past.map(str::to_owned).collect();
        let lanes = self.lanes.clone();
        let wanted = Wanted::new(&self.id, ids, &self.settings, lanes, past_slots);
        let wanted = wanted.also_by(&self.args.also_header);
        match &self.others {
            Some(others) => wanted.beside(others, &self.args.aggregate_id),
            None => wanted,
        }
    }

    /// Looks which streams there are: its own, copies and replays, and those of lanes that are no more; whether one is new.
    async fn look(&mut self, survey: &mut Survey) -> anyhow::Result<bool> {
        let named = &self.args.also_stream;
        let mut found = streams::with_copies(survey, self.nats, &self.lane, named).await?;
        for lane in &self.past {
            let Places { lanes, all } = streams::with_copies(survey, self.nats, lane, &[]).await?;
            found.lanes.extend(lanes);
            found.all.extend(all);
        }
        self.lanes = found.lanes;
        for lane in [&self.lane].into_iter().chain(&self.past) {
            let streams = survey.with_leases(lane.slot());
            let leased = streams.map(|stream| (stream.to_owned(), lane.slot().to_owned()));
            self.leased.extend(leased);
        }
        let before = self.streams.len();
        for place in found.all {
            if !self.has(&place.stream) {
                self.streams.push(Erased::new(place));
            }
        }
        Ok(self.streams.len() > before)
    }

    /// Erases the lane's messages, once these rows are published.
    async fn erase(&mut self, ids: &BTreeSet<String>, lease: &Lease) -> anyhow::Result<()> {
        lease.working().begin("waiting for the relay");
        self.published(ids, wal_end(self.sql).await?).await?;
        let wanted = self.wanted(ids.clone());
        for index in 0..self.streams.len() {
            let stage = format!("erasing from stream {}", self.streams[index].stream());
            lease.working().begin(&stage);
            self.erase_messages(index, &wanted, lease).await?;
        }
        Ok(())
    }

    async fn erase_messages(
        &mut self,
        index: usize,
        wanted: &Wanted,
        lease: &Lease,
    ) -> anyhow::Result<()> {
        let mut found = Erased::new(self.streams[index].place());
        messages::find(self.nats, wanted, self.rows(), &mut found).await?;
        if found.stream() == self.settings.nats.stream {
            let recorded = self.recorded(found.last_in_lane()).await?;
            // On a shared stream the fence tells where the lane is.
            if !self.settings.nats.shared && found.last().is_some_and(|last| last > recorded) {
                // Without it, nobody could tell whether what is gone behind the recorded end was the lane's.
                let place = place::tell(&self.settings, self.nats, &self.lane, lease, KIND_ERASED);
                place.await.context("nothing was erased")?;
            }
        }
        self.forget_letters(&found, wanted).await?;
        messages::erase(self.nats, &found, &mut self.streams[index]).await?;
        // The relay may have looked in between.
        self.forget_letters(&found, wanted).await
    }

    /// Takes dead letters that are erased out of what the relay keeps in mind: nobody waits for them.
    async fn forget_letters(&self, found: &Erased, wanted: &Wanted) -> anyhow::Result<()> {
        if found.stream() != self.settings.nats.stream {
            return Ok(());
        }
        loop {
            let Some((mut letters, behind)) = self.lane.letters().await? else {
                return Ok(());
            };
            if !letters
                .forget(|letter| found.has_letter(letter.sequence) || wanted.is_of_row(letter))
            {
                return Ok(());
            }
            match self.lane.store_letters(&letters, behind).await {
                // The relay has looked again.
                Err(LaneError::Taken) => {}
                stored => return stored.map(|_| ()).map_err(Into::into),
            }
        }
    }
}
