//! `walrelay adopt`: after a halt, makes the present database and slot the lane's own.
//!
//! In: settings, a person's consent. Out: a new lane record, and where the relay goes on. Guarantees: nothing is written
//! before somebody has agreed, nor while a relay reads from the slot; the stream keeps every message; the record is
//! not written over one that came in between.
//!
//! What slot and stream both have at the same position with the same id counts as published, so that the hold-back's
//! events do not come twice; everything behind the last such event is published. What Debezium has published has no
//! position: there the id alone counts.

mod debezium;
mod explained;
mod in_stream;
mod no_share;

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use postgres_types::PgLsn;

use crate::cli::consent::agreed;
use crate::cli::exit::{Exit, UsageError};
use crate::cli::stdout::Account;
use crate::cli::verify::slot::{Held, Look};
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stream;
use crate::pipeline::dead_letter;
use crate::pipeline::end_search::{Lookup, Told};
use crate::pipeline::history::History;
use crate::pipeline::lane_end::tail_header;
use crate::pipeline::position::{
    EXPECTED_HEADER, KIND_ADOPTED, KIND_HEADER, Lane, POSITION_HEADER, Position, TAIL_HEADER,
};
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::StoredRecord;
use crate::pipeline::shared_end_search::fence_subject;
use crate::pipeline::source::Source;
use crate::pipeline::tables::Period;
use crate::postgres::catalog::{Inspection, inspect_released};
use crate::postgres::client::{Client, connect};
use crate::postgres::publications::publication_list;
use crate::postgres::startup::{self, SessionSettings};
use crate::postgres::unfinished;
use crate::relay::lane_client::LaneClient;
use crate::relay::open::source;
use crate::relay::settings::Settings;
use explained::{explain, numbered};
use in_stream::{InStream, Published};

/// How long a relay that was just stopped or killed may take to let go of the slot.
pub(super) const RELEASE_LIMIT: std::time::Duration = std::time::Duration::from_secs(3);

const EXAMPLES: &str = "\
Examples:
  walrelay adopt                               go on with this database and slot, after asking
  walrelay adopt --yes                         without asking
  walrelay adopt --position 16/B374D848:3      rows at or below this position count as published
  walrelay adopt --debezium                    go on where Debezium was stopped, with its slot

It is the way past a halt (exit code 4 of run): a slot that was advanced, dropped or made again, a
restored or upgraded database, a stream whose end was removed or that was made from another one.
Find out first what happened. Afterwards walrelay verify tells what is missing or doubled, and
walrelay backfill publishes what is missing.

Exit code 0: adopted. 1: a relay reads from the slot, or slot or stream is not there. 2: nobody
agreed.";

/// Make the present database and slot the lane's own, after a halt.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    /// Rows at or below this position count as published; a row must stand there if the slot still holds that place.
    #[arg(long, value_name = "LSN:ORDINAL")]
    position: Option<Position>,

    /// Debezium wrote to this stream from this slot: rows whose ids its messages have in their headers count as published.
    #[arg(long)]
    debezium: bool,
}

/// What was found.
struct View {
    lane: Lane,
    history: History,
    confirmed_lsn: PgLsn,
    server_lsn: PgLsn,
    stream: StreamInfo,
    record: StoredRecord,
    in_stream: InStream,
    /// Rows that the slot has in front of where the relay will go on, and the stream has not.
    absent: u64,
    /// Sequence of the lane's fence in a shared stream, 0 for none.
    fence_sequence: u64,
    /// Tables whose ids are numbers.
    numbered: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Postgres or NATS cannot be reached or refuses, or a relay is running.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let sql = connect(&settings.postgres.conninfo).await?;
    let nats = Admin::connect(&settings.nats.connection).await?;
    if let Some(exit) = no_share::end(&args, settings, &sql, &nats).await? {
        return Ok(exit);
    }
    let (view, published) = look(&args, settings, &sql, &nats).await?;
    let mut account = Account::default();
    explain(&mut account, &view, published.as_ref(), &args);
    if !agreed(
        args.yes,
        "Adopt this database and slot?",
        "nothing was changed",
    )? {
        return Ok(Exit::Usage);
    }
    let lane_client = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    // Behind this a relay that began while somebody was asked cannot go on, nor this command behind such a relay.
    let recorded = match &view.record.record {
        Some(record) => {
            lane_client
                .store_record(record.clone(), view.record.sequence)
                .await?
        }
        None => view.record.sequence,
    };
    let sequence = match &published {
        Some(published) => Some(match published.sequence {
            // In a shared stream the lane's fence tells its place, not its last event.
            Some(sequence) if !settings.nats.shared && sequence == view.stream.state.last_seq => {
                sequence
            }
            _ => mark(&nats, settings, published, &view).await?,
        }),
        None => None,
    };
    let epoch = view.record.record.as_ref().map_or(0, |record| record.epoch);
    let recorded_here = view.record.record.as_ref();
    let of_lane = recorded_here.filter(|record| record.is_of(&view.lane));
    let (stream, created) = (&settings.nats.stream, &view.stream.created);
    let written = LaneRecord {
        epoch: epoch + 1,
        sequence: sequence.unwrap_or(view.stream.state.last_seq),
        position: published.as_ref().map(|published| published.told.position),
        event_id: published
            .as_ref()
            .and_then(|published| published.told.event_id.clone()),
        table: (published.as_ref()).and_then(|published| published.told.table.clone()),
        confirmed_lsn: view.confirmed_lsn,
        adopted_sequence: sequence.map_or(view.stream.state.last_seq, |sequence| sequence - 1),
        taken_over_sequence: taken_over_sequence(&args, &view),
        tables: of_lane.map_or_else(Vec::new, |record| forget_ids(&record.tables)),
        publications: of_lane.map_or_else(Vec::new, |record| record.publications.clone()),
        switched_lsn: recorded_here.and_then(|record| record.across(&view.lane, &view.history)),
        left: recorded_here.map_or_else(Vec::new, |record| record.left.clone()),
        ..LaneRecord::new(&view.lane, &view.history, stream, created)
    };
    lane_client.store_record(written, recorded).await?;
    account.line("adopted; walrelay run goes on, and walrelay verify compares table and stream");
    account.close()?;
    Ok(Exit::Done)
}

/// Up to where ids alone tell what was published.
fn taken_over_sequence(args: &Args, view: &View) -> u64 {
    let record = view.record.record.as_ref();
    match args.debezium {
        true => view.stream.state.last_seq,
        false => record
            .filter(|record| record.created == view.stream.created)
            .map_or(0, |record| record.taken_over_sequence),
    }
}

async fn look(
    args: &Args,
    settings: &Settings,
    sql: &Client,
    nats: &Admin,
) -> anyhow::Result<(View, Option<Published>)> {
    if args.debezium && !settings.postgres.further.is_empty() {
        return Err(UsageError(
            "--debezium: Debezium's messages do not tell their table: adopt without source.tables, and name further tables then"
                .to_owned(),
        )
        .into());
    }
    let name = &settings.postgres.slot;
    let inspection = inspect_released(sql, &settings.postgres, RELEASE_LIMIT).await?;
    let confirmed_lsn = confirmed_lsn(&inspection, name)?;
    let stream = stream::find(nats, &settings.nats.stream)
        .await?
        .with_context(|| {
            format!(
                "there is no stream {}: run walrelay setup first",
                settings.nats.stream
            )
        })?;
    let record = LaneClient::new(nats, &settings.nats.stream, name)?
        .record()
        .await?;
    let conninfo = &settings.postgres.conninfo;
    let mut session = startup::connect(conninfo, &SessionSettings::default()).await?;
    let identity = session.identify_system().await?;
    let history = session.timeline_history(identity.timeline).await?;
    let lane = identity.lane(name);
    let mut in_stream = in_stream::read(nats, settings, &stream, confirmed_lsn).await?;
    // What the stream had and has removed; what it has lost counts lower than the record.
    if let Some(record) = &record.record
        && record.is_of(&lane)
        && record.created == stream.created
        && record.sequence <= stream.state.last_seq
        && let Some(position) = record.position
        && in_stream::still_stands(nats, settings, record.sequence, position).await?
    {
        let told = || Told {
            position,
            event_id: record.event_id.clone(),
            table: record.table.clone(),
        };
        in_stream.events.entry(position).or_insert_with(told);
    }
    let server_lsn = inspection.server.current_lsn;
    let (published, absent) = match args.position {
        Some(position) => (Some(given(position, server_lsn)?), 0),
        None => {
            let recorded = record.record.as_ref().filter(|record| record.is_of(&lane));
            let tables = recorded.map_or(&[][..], |record| &record.tables);
            let source = source(&inspection, settings).continued(tables, confirmed_lsn);
            let named = recorded.map_or(&[][..], |record| &record.publications);
            let publications =
                publication_list(sql, &settings.postgres, &inspection, named).await?;
            let ids = match args.debezium {
                true => debezium::ids(nats, settings, &stream).await?,
                false => HashSet::new(),
            };
            common(
                sql,
                settings,
                &publications,
                source,
                server_lsn,
                &in_stream,
                &ids,
            )
            .await?
        }
    };
    let view = View {
        lane,
        history,
        confirmed_lsn,
        server_lsn,
        stream,
        record,
        in_stream,
        absent,
        fence_sequence: fence_sequence(nats, settings).await?,
        numbered: numbered(&inspection, settings),
    };
    Ok((view, published))
}

/// The slot's confirmed LSN, where nobody reads from the slot and it can still be read.
fn confirmed_lsn(inspection: &Inspection, name: &str) -> anyhow::Result<PgLsn> {
    let slot = inspection.slot.as_ref().with_context(|| {
        format!("there is no replication slot \"{name}\": run walrelay setup first")
    })?;
    if let Some(pid) = slot.made_by() {
        bail!("{}: {}", unfinished::what(name, pid), unfinished::mend(pid));
    }
    if let Some(pid) = slot.active_pid {
        bail!(in_use(name, Some(pid)));
    }
    if slot.is_lost() {
        bail!(
            "replication slot \"{name}\" is lost: run walrelay teardown and walrelay setup first"
        );
    }
    slot.confirmed_flush_lsn
        .with_context(|| format!("replication slot \"{name}\" is not a logical slot"))
}

/// What `--position` says.
fn given(position: Position, server_lsn: PgLsn) -> Result<Published, UsageError> {
    if position.commit_lsn >= server_lsn {
        return Err(UsageError(format!(
            "--position {position} is above the end of the server's WAL, {server_lsn}"
        )));
    }
    let told = Told {
        position,
        event_id: None,
        table: None,
    };
    Ok(Published {
        told,
        sequence: None,
    })
}

fn in_use(slot: &str, pid: Option<i32>) -> String {
    let process = pid.map_or_else(String::new, |pid| format!(" by process {pid} of Postgres"));
    format!("replication slot \"{slot}\" is in use{process}: stop the relay first")
}

async fn fence_sequence(nats: &Admin, settings: &Settings) -> anyhow::Result<u64> {
    if !settings.nats.shared {
        return Ok(0);
    }
    let lane = LaneClient::new(nats, &settings.nats.stream, &settings.postgres.slot)?;
    let subject = fence_subject(&settings.nats.stream, &settings.postgres.slot);
    let found = lane.message(Lookup::Last(&subject)).await?;
    Ok(found.map_or(0, |message| message.seq))
}

/// The last row that both slot and stream have, at the same position of the same table with the same id or with one of `ids`,
/// and how many rows that the slot has before it the stream has not. The relay published in order, so it has passed everything before that row, even where the
/// stream has removed some of it.
async fn common(
    sql: &Client,
    settings: &Settings,
    publications: &str,
    source: Source,
    server_lsn: PgLsn,
    in_stream: &InStream,
    ids: &HashSet<String>,
) -> anyhow::Result<(Option<Published>, u64)> {
    let mut common: Option<Published> = None;
    let (mut absent, mut absent_since) = (0, 0);
    if in_stream.events.is_empty() && ids.is_empty() {
        return Ok((None, 0));
    }
    let tables = source.tables();
    let free = Look::Inside
        .peek(
            sql,
            &settings.postgres,
            publications,
            source,
            server_lsn,
            |held| {
                let Held {
                    position,
                    id,
                    outbox,
                    ..
                } = held;
                let table = tables.get(outbox).cloned();
                let is_known = in_stream.events.get(&position).is_some_and(|told| {
                    told.event_id.as_deref() == id
                        && of_same_table(told.table.as_deref(), table.as_deref())
                });
                if !id.is_some_and(|id| is_known || ids.contains(id)) {
                    absent_since += 1;
                    return Ok(());
                }
                absent += std::mem::take(&mut absent_since);
                let event_id = id.map(str::to_owned);
                common = Some(Published {
                    told: Told {
                        position,
                        event_id,
                        table,
                    },
                    sequence: in_stream.sequence_of(position),
                });
                Ok(())
            },
        )
        .await?;
    if !free {
        bail!(in_use(&settings.postgres.slot, None));
    }
    Ok((common, absent))
}

/// A message that tells the lane's position, where the next start finds it as it finds an event.
pub(super) struct Mark<'a> {
    pub(super) stream: &'a str,
    pub(super) slot: &'a str,
    pub(super) told: &'a Told,
}

impl Mark<'_> {
    /// Puts it at the end of a stream of its own, behind this sequence. Nothing is stored if somebody has published since.
    ///
    /// # Errors
    /// The stream refuses it.
    pub(super) async fn behind(&self, nats: &Admin, sequence: u64) -> anyhow::Result<u64> {
        let subject = dead_letter::subject(self.slot);
        self.store(nats, subject, EXPECTED_HEADER, sequence).await
    }

    async fn store(
        &self,
        nats: &Admin,
        subject: String,
        expected: &'static str,
        sequence: u64,
    ) -> anyhow::Result<u64> {
        let Mark { stream, slot, told } = self;
        let (event_id, table) = (told.event_id.as_deref(), told.table.as_deref());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", *stream);
        headers.insert(expected, sequence.to_string());
        headers.insert(KIND_HEADER, KIND_ADOPTED);
        headers.insert(POSITION_HEADER, format!("{slot} {}", told.position));
        let tail = tail_header(slot, told.position, event_id, table);
        headers.insert(TAIL_HEADER, tail);
        let jetstream = nats.jetstream();
        let publish = async {
            let published = jetstream.publish_with_headers(subject, headers, "{}".into());
            Ok(published.await?.await?)
        };
        let ack = nats
            .allowed(publish)
            .await
            .context("the stream refuses the message that marks the lane's position")?;
        Ok(ack.sequence)
    }
}

/// Marks the adopted position where the relay looks: on the lane's own subject of a shared stream, else at the stream's end.
async fn mark(
    nats: &Admin,
    settings: &Settings,
    published: &Published,
    view: &View,
) -> anyhow::Result<u64> {
    let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
    let mark = Mark {
        stream,
        slot,
        told: &published.told,
    };
    match settings.nats.shared {
        true => {
            let expected = "Nats-Expected-Last-Subject-Sequence";
            let subject = fence_subject(stream, slot);
            mark.store(nats, subject, expected, view.fence_sequence)
                .await
        }
        false => mark.behind(nats, view.stream.state.last_seq).await,
    }
}

/// The tables, whatever column tells their ids from now on.
fn forget_ids(tables: &[Period]) -> Vec<Period> {
    let forgotten = tables.iter().map(|period| Period {
        id: None,
        ..period.clone()
    });
    forgotten.collect()
}

/// Whether both are of one table, as far as it is told.
fn of_same_table(told: Option<&str>, table: Option<&str>) -> bool {
    told.is_none() || table.is_none() || told == table
}
