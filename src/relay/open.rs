//! The start of an epoch, the same every time: check, find the lane's end, take the slot, look again, decide.
//!
//! In: settings. Out: an [`Epoch`] that streams. Guarantee: what decides where the lane goes on was read after the slot
//! became ours; before that another relay may still have been publishing.

use crate::nats::connection::Advertised;
use crate::pipeline::begin::Begin;
use crate::pipeline::continuity::Plan;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::engine::{Engine, EpochSettings, Note};
use crate::pipeline::epochs::Refused;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::id_column::IdColumn;
use crate::pipeline::known_columns::KnownColumn;
use crate::pipeline::lane_end::Memory;
use crate::pipeline::limit::SizeLimit;
#[cfg(feature = "cli")]
use crate::pipeline::misnamed::Misnamed;
use crate::pipeline::opening::{Known, Opened, Opening, Wanted};
use crate::pipeline::position::Position;
use crate::pipeline::publish::WindowLimits;
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::Request;
use crate::pipeline::source::{Outbox, Source};
use crate::pipeline::tables::{Former, Tables};
use crate::postgres::catalog::{Inspection, Table};
use crate::postgres::client::Client;
use crate::postgres::copy_both::CopyBoth;
use crate::postgres::findings::{Finding, Kind, Refusals};
use crate::postgres::processes::Process;
use crate::postgres::slot_wal::SlotWal;
use crate::postgres::unwritten::Unwritten;
use crate::relay::board::Board;
use crate::relay::broker::Broker;
use crate::relay::open_error::OpenError;
use crate::relay::postgres_side::{OWN_END_LIMIT, PostgresSide, status_interval};
use crate::relay::settings::{OnReject, Settings};
use crate::relay::turn::{Limits, Turn};
use crate::relay::watch::{First, Watch};
use postgres_types::PgLsn;
use std::time::Duration;

/// Room beside the largest message for a row's other columns and the protocol around it.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;
/// Most bytes of frames in one turn before they are handed to the socket.
const TURN_BYTES_MAX: usize = 1 << 20;
/// For a single answer of the JetStream API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// What the last epoch leaves to the next.
#[derive(Debug, Clone, Default)]
pub struct Inherited {
    /// `--from`, as far as it is not done.
    pub from: Option<PgLsn>,
    /// The rows that the broker refused.
    pub refused: Refused,
    /// The row that fits by a limit that was raised.
    pub limit_raised_for: Option<Position>,
    /// Send so many rows one at a time.
    pub one_by_one: u64,
    /// Most messages of an atomic batch, where the broker has told.
    pub batch_messages_max: Option<u64>,
    /// What the relay knows of the lane by itself.
    pub memory: Option<Memory>,
    /// Dead letters that were in flight: nobody has told of them.
    pub dead_letters: Vec<Note>,
    /// The server's end of the last replication connection. Where the network has lost that one, the server does not
    /// know, and keeps the slot for it.
    pub walsender: Option<Process>,
    /// Why the lane's share carries no rows, if it does not.
    pub(crate) no_share: Option<Fault>,
    /// What is a risk in the catalog.
    pub(crate) warnings: Vec<String>,
    /// The cluster's servers, as the last one told of them.
    pub advertised: Vec<Advertised>,
}

/// An epoch that streams.
pub struct Epoch {
    /// The loop's turns, with the engine and both connections.
    pub turn: Turn<CopyBoth, Broker>,
    /// The catalog, looked at again and again.
    pub watch: Watch,
    /// What a person is told about the start.
    pub summary: Summary,
}

/// What a person is told about the start of an epoch.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Of Postgres.
    pub(crate) postgres_version: String,
    /// Of nats-server.
    pub(crate) nats_version: String,
    /// How messages are published.
    pub mode: &'static str,
    /// Where the lane goes on.
    pub plan: Plan,
    /// What is a risk in catalog and stream.
    pub(crate) warnings: Vec<String>,
}

/// Opens an epoch, and tells the board where the server is. `now` is the engine's time. What decides is
/// [`Opening`]; this asks the servers what it wants to know. `waits` is the session that has told Postgres that this relay waits: it
/// stays until another one tells it. A start that comes to nothing before the slot is ours leaves its own there.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(
    settings: &Settings,
    inherited: &mut Inherited,
    waits: &mut Option<Client>,
    board: &Board,
    now: Duration,
) -> Result<Epoch, OpenError> {
    let looked = PostgresSide::look(settings, inherited.memory.is_some(), board).await;
    *waits = None;
    let mut postgres = match looked {
        // A relay that has been running waits.
        Err(OpenError::Permanent(error)) if inherited.memory.is_none() => {
            return Err(refused(settings, error).await);
        }
        looked => looked?,
    };
    match begin(settings, inherited, &mut postgres, now).await {
        Ok(begun) => Ok(epoch(settings, postgres, begun, now)),
        Err(error) => {
            *waits = postgres.replication.is_none().then_some(postgres.sql);
            Err(error)
        }
    }
}

/// What a start has come to, beside Postgres' side.
struct Begun {
    engine: Box<Engine>,
    broker: Broker,
    opened: Opened,
    /// Where the slot begins.
    begin: Begin,
}

async fn begin(
    settings: &Settings,
    inherited: &mut Inherited,
    postgres: &mut PostgresSide,
    now: Duration,
) -> Result<Begun, OpenError> {
    let slot = &settings.postgres.slot;
    inherited.no_share = postgres.no_share.take();
    inherited.warnings.clone_from(&postgres.warnings);
    let mut opening = Opening::new(known(settings, inherited));
    opening.catalog_seen();
    let mut broker = connect(settings, inherited).await?;
    broker.may_come_by_move = inherited.memory.is_none() && postgres.inspection.has_passed();
    opening.connected(broker.server());
    let mut engine = loop {
        postgres.hold_slot(broker.answer(&mut opening)).await?;
        match opening.wanted() {
            Wanted::Slot(start_lsn) => {
                let frame_bytes_max = broker.message_limit().bytes + FRAME_OVERHEAD_BYTES;
                let publication = postgres
                    .publication(settings, opening.publications())
                    .await?;
                postgres
                    .take_slot(
                        settings,
                        &mut inherited.walsender,
                        &publication,
                        start_lsn,
                        frame_bytes_max,
                    )
                    .await?;
                opening.slot_taken();
            }
            Wanted::SlotPlace => opening.slot_seen(postgres.slot_place(slot).await?)?,
            Wanted::Settings => {
                let epoch_settings = epoch_settings(settings, inherited, postgres, &broker);
                opening.check_names(&epoch_settings.source)?;
                break opening.begin(epoch_settings, now);
            }
            wanted => unreachable!("{wanted:?} comes before or behind"),
        }
    };
    postgres.hold_slot(broker.answer(&mut opening)).await?;
    let begin = opening.slot_begin();
    let opened = opening.finish(&mut engine);
    Ok(Begun {
        engine,
        broker,
        opened,
        begin,
    })
}

/// Of a lane that has published, what is gone was there: a person has to look before it is made again. What was never made is for
/// `walrelay setup` alone.
async fn refused(settings: &Settings, error: anyhow::Error) -> OpenError {
    let refusals = error.downcast_ref::<Refusals>();
    match refusals.and_then(|refusals| gone(&refusals.0)) {
        Some(halt) if has_published(settings).await => OpenError::Halt(halt),
        _ => OpenError::Permanent(error),
    }
}

fn gone(refusals: &[Finding]) -> Option<Halt> {
    let find = |kind| refusals.iter().find(|finding| finding.kind == kind);
    let told = |finding: &Finding| (finding.what.clone(), finding.mend.clone());
    let slot = find(Kind::SlotMissing).map(told);
    let publication = || find(Kind::PublicationMissing).map(told);
    slot.map(|(what, mend)| Halt::Slot { what, mend })
        .or_else(|| publication().map(|(what, mend)| Halt::PublicationMissing { what, mend }))
}

/// By the lane's record; not where the broker does not tell.
async fn has_published(settings: &Settings) -> bool {
    let Settings { nats, name, .. } = settings;
    let slot = &settings.postgres.slot;
    let Ok(mut broker) = Broker::connect(nats, name, slot, API_TIMEOUT, &[]).await else {
        return false;
    };
    let record = broker.record().await;
    broker.connection.close().await;
    record.is_some_and(|record| {
        record.position.is_some() && !record.retired && record.moved.is_none()
    })
}

fn epoch(settings: &Settings, postgres: PostgresSide, begun: Begun, now: Duration) -> Epoch {
    let Begun {
        engine,
        mut broker,
        opened,
        begin,
    } = begun;
    let replication = postgres.replication.expect("an epoch opens with its slot");
    let mut warnings = postgres.warnings;
    let unwritten = Unwritten::of(&postgres.inspection, &settings.postgres);
    warnings.extend(unwritten.map(|it| it.finding(begin).to_string()));
    warnings.extend(broker.warnings());
    warnings.extend(opened.warnings);
    let column_bytes_max = broker.message_limit().bytes;
    broker.listen_for_leaders();
    let limits = Limits {
        turn_bytes_max: TURN_BYTES_MAX,
        column_bytes_max,
        frame_bytes_max: column_bytes_max + FRAME_OVERHEAD_BYTES,
        wal_sender_timeout: postgres.inspection.server.wal_sender_timeout,
    };
    Epoch {
        summary: Summary {
            postgres_version: replication.server_version,
            nats_version: broker.connection.info().version.to_string(),
            mode: opened.mode,
            plan: opened.plan,
            warnings,
        },
        turn: Turn::new(*engine, replication.wal, broker, limits, now),
        watch: Watch::start(
            postgres.sql,
            settings.postgres.clone(),
            First {
                inspection: postgres.inspection,
                walsender_pid: replication.walsender_pid,
                timeline: replication.identity.timeline,
            },
        ),
    }
}

/// Reads the WAL on from `lsn` under another name of the publication. The rest of the epoch stays, as long as the slot is where
/// it was: what lies below has been seen to continue the stream.
///
/// # Errors
/// See [`OpenError`].
pub(super) async fn read_on(
    settings: &Settings,
    inherited: &mut Inherited,
    board: &Board,
    epoch: &mut Epoch,
    (publication, lsn): (&str, PgLsn),
    now: Duration,
) -> Result<(), OpenError> {
    // Where the server does not take it, its process is ended below.
    let _late = tokio::time::timeout(OWN_END_LIMIT, epoch.turn.wal.close()).await;
    let mut postgres = PostgresSide::look(settings, inherited.memory.is_some(), board).await?;
    let frame_bytes_max = epoch.turn.frame_bytes_max();
    postgres
        .take_slot(
            settings,
            &mut inherited.walsender,
            publication,
            lsn,
            frame_bytes_max,
        )
        .await?;
    let place = postgres.slot_place(&settings.postgres.slot).await?;
    let carrier = postgres.inspection.carrier.as_ref();
    let checked = epoch.turn.engine.check_slot(&place, carrier);
    checked.map_err(OpenError::Fault)?;
    let replication = postgres.replication.expect("the slot was taken");
    epoch.turn.read_from(replication.wal, now);
    let first = First {
        inspection: postgres.inspection,
        walsender_pid: replication.walsender_pid,
        timeline: replication.identity.timeline,
    };
    epoch.watch = Watch::start(postgres.sql, settings.postgres.clone(), first);
    Ok(())
}

/// What a start knows by itself.
pub(super) fn known<'s>(settings: &'s Settings, inherited: &Inherited) -> Known<'s> {
    Known {
        slot: &settings.postgres.slot,
        stream: &settings.nats.stream,
        nats: settings.nats.connection.servers_text(),
        template: settings.nats.subject.clone(),
        shared: settings.nats.shared,
        memory: inherited.memory.clone(),
        from: inherited.from,
        no_share: inherited.no_share.clone(),
    }
}

/// Connects to the broker, which must keep the lanes' records.
pub(super) async fn connect(
    settings: &Settings,
    inherited: &Inherited,
) -> Result<Broker, OpenError> {
    let slot = &settings.postgres.slot;
    let advertised = &inherited.advertised;
    let Settings { nats, name, .. } = settings;
    let mut broker = Broker::connect(nats, name, slot, API_TIMEOUT, advertised).await?;
    broker.check_records().await?;
    Ok(broker)
}

/// How large a message may be now, as a new connection to the broker is told; none where none comes about.
pub(super) async fn look_at_limit(
    settings: &Settings,
    advertised: Vec<Advertised>,
) -> Option<SizeLimit> {
    let looked = async {
        let Settings { nats, name, .. } = settings;
        let slot = &settings.postgres.slot;
        let mut broker = Broker::connect(nats, name, slot, API_TIMEOUT, &advertised).await?;
        broker.ask(&Request::Stream).await?;
        let limit = broker.message_limit();
        broker.connection.close().await;
        Ok::<_, OpenError>(limit)
    };
    let looked = looked.await;
    if let Err(error) = &looked {
        tracing::debug!(?error, "how large a message may be cannot be looked at");
    }
    looked.ok()
}

fn epoch_settings(
    settings: &Settings,
    inherited: &Inherited,
    postgres: &PostgresSide,
    broker: &Broker,
) -> EpochSettings {
    let inspection = &postgres.inspection;
    EpochSettings {
        source: Source {
            encoding: postgres.encoding.clone(),
            ..source(inspection, settings)
        },
        publications: postgres.publications.clone(),
        carrier: inspection.carrier.clone(),
        catalog_lsn: inspection.server.current_lsn,
        limits: window_limits(settings, inherited, broker),
        hold_back: settings.relay.hold_back,
        held_bytes_max: SlotWal::of(inspection).room().held_bytes_max(0),
        on_timeline: inspection
            .server
            .in_recovery
            .then_some(inspection.server.current_lsn),
        status_interval: status_interval(settings, inspection),
        halt_on_reject: settings.relay.on_reject == OnReject::Halt,
        refused: inherited.refused.clone(),
        share: settings.postgres.part(),
        limit_raised_for: inherited.limit_raised_for,
    }
}

/// A connection to the broker, and what may be in flight on it.
pub(super) fn window_limits(
    settings: &Settings,
    inherited: &Inherited,
    broker: &Broker,
) -> WindowLimits {
    WindowLimits {
        inbox: broker.connection.inbox().to_owned(),
        epoch_token: format!("e{:016x}", rand::random::<u64>()),
        messages_max: settings.relay.window_messages_max,
        one_by_one: inherited.one_by_one,
        batch_messages_max: inherited.batch_messages_max,
        bytes_max: settings.relay.window_bytes_max,
        message_limit: broker.message_limit(),
        ack_timeout: settings.relay.ack_timeout,
    }
}

/// For commands: as [`Opening::check_names`].
#[cfg(feature = "cli")]
pub(crate) fn check_names(
    inspection: &Inspection,
    settings: &Settings,
    record: Option<&LaneRecord>,
) -> Result<(), Misnamed> {
    let recorded = record.map_or(&[][..], |record| &record.tables);
    let has_published = record.is_some_and(|record| record.position.is_some());
    source(inspection, settings).check_names(recorded, has_published)
}

/// Of each table: which of the lane's messages in the stream that was created then are of another one, which was it before.
pub(crate) fn formers(
    inspection: &Inspection,
    settings: &Settings,
    record: Option<&LaneRecord>,
    created: &str,
) -> Vec<Option<Former>> {
    let recorded = record.map_or(&[][..], |record| &record.tables);
    let adopted = record.filter(|record| record.created == created);
    let adopted_sequence = adopted.map_or(0, |record| record.adopted_sequence);
    let source = source(inspection, settings).continued(recorded, 0.into());
    let formers = source.outboxes.iter().zip(inspection.tables());
    let formers = formers.map(|(outbox, found)| {
        let oid = found.table.as_ref().map_or(0, |table| table.oid);
        let former = outbox.tables.former(oid, inspection.server.current_lsn)?;
        Some(former.behind(adopted_sequence))
    });
    formers.collect()
}

/// The lane's tables as the engine knows them, in a database of UTF-8.
pub(crate) fn source(inspection: &Inspection, settings: &Settings) -> Source {
    let outbox = |(inspection, settings): (&Inspection, Settings)| {
        let name = &settings.postgres.table;
        let mapping = settings.mapping();
        let oid = inspection.table.as_ref().map_or(0, |table| table.oid);
        let lsn = inspection.server.current_lsn;
        let find = |name: &str| {
            let mut columns = inspection.table.iter().flat_map(|table| &table.columns);
            columns.find(|column| column.name == name)
        };
        let id = find(settings.postgres.id_column()).map(|column| IdColumn {
            name: column.name.clone(),
            attnum: column.attnum,
            base_type: Some(column.base_type.clone()),
        });
        let mut columns: Vec<KnownColumn> = (mapping.names().filter_map(find))
            .map(|column| KnownColumn::new(column.name.clone(), column.attnum))
            .collect();
        columns.sort_by_key(|column| column.attnum);
        columns.dedup();
        let tables = Tables::new(name.schema.clone(), name.table.clone(), oid, lsn);
        Outbox {
            tables: tables
                .of_id(id)
                .of_columns(&columns)
                .of_further(mapping.message.table.as_deref().unwrap_or_default()),
            mapping,
        }
    };
    let tables = inspection.tables().filter_map(|found| found.table.as_ref());
    Source {
        outboxes: inspection
            .tables()
            .zip(settings.tables())
            .map(outbox)
            .collect(),
        domains: tables.flat_map(Table::domains).collect(),
        encoding: Encoding::Utf8,
        messages: settings.postgres.messages.clone(),
    }
}
