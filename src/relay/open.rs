//! The start of an epoch, the same every time: check, find the lane's end, take the slot, look again, decide.
//!
//! In: settings. Out: an [`Epoch`] that streams. Guarantee: what decides where the lane goes on was read after the slot
//! became ours; before that another relay may still have been publishing.

use crate::nats::connection::Advertised;
use crate::pipeline::continuity::Plan;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::engine::EpochSettings;
use crate::pipeline::engine::Note;
use crate::pipeline::epochs::Refused;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::history::History;
use crate::pipeline::lane_end::Memory;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::opening::{Known, Opening, SlotPlace, Wanted};
use crate::pipeline::position::Position;
use crate::pipeline::publications::PublicationName;
use crate::pipeline::publish::WindowLimits;
use crate::pipeline::request::Request;
use crate::pipeline::row::Source;
use crate::pipeline::tables::Tables;
use crate::postgres::catalog::{self, Inspection, SlotAndWal, Table};
use crate::postgres::client::{self, Client, SqlError};
use crate::postgres::copy_both::CopyBoth;
use crate::postgres::encoding;
use crate::postgres::findings::{Kind, Severity, findings};
use crate::postgres::processes::{self, Process};
use crate::postgres::publications::publication_names;
use crate::postgres::replication::SystemIdentity;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::slot_wal::SlotWal;
use crate::postgres::startup::{self, SessionSettings};
use crate::relay::broker::Broker;
use crate::relay::open_error::OpenError;
use crate::relay::settings::{OnReject, Settings};
use crate::relay::status::Board;
use crate::relay::turn::{Limits, Turn};
use crate::relay::watch::{First, Watch};
use postgres_types::PgLsn;
use std::time::{Duration, Instant};

/// Room beside the largest message for a row's other columns and the protocol around it.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;
/// Most bytes of frames in one turn before they are handed to the socket.
const TURN_BYTES_MAX: usize = 1 << 20;
/// For a single answer of the JetStream API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// The server's end of our own replication connection gets so long to go by itself, and once more when it is told to.
const OWN_END_LIMIT: Duration = Duration::from_millis(500);
const OWN_END_PAUSE: Duration = Duration::from_millis(20);

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
    /// What the relay knows of the lane by itself.
    pub memory: Option<Memory>,
    /// Dead letters that were in flight: nobody has told of them.
    pub dead_letters: Vec<Note>,
    /// The server's end of the last replication connection. Where the network has lost that one, the server does not
    /// know, and keeps the slot for it.
    pub walsender: Option<Process>,
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
/// [`Opening`]; this asks the servers what it wants to know.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(
    settings: &Settings,
    inherited: &mut Inherited,
    board: &Board,
    now: Duration,
) -> Result<Epoch, OpenError> {
    let slot = &settings.postgres.slot;
    let mut opening = Opening::new(known(settings, inherited));
    let mut postgres = PostgresSide::look(settings, inherited, board).await?;
    opening.catalog_seen();
    let mut broker = connect(settings, inherited).await?;
    opening.connected(broker.server());
    let mut engine = loop {
        broker.answer(&mut opening).await?;
        match opening.wanted() {
            Wanted::Slot(start_lsn) => {
                let frame_bytes_max = broker.message_limit().bytes + FRAME_OVERHEAD_BYTES;
                let publication = postgres
                    .publication(settings, opening.publications())
                    .await?;
                postgres
                    .take_slot(
                        settings,
                        inherited,
                        &publication,
                        start_lsn,
                        frame_bytes_max,
                    )
                    .await?;
                opening.slot_taken();
            }
            Wanted::SlotPlace => opening.slot_seen(postgres.slot_place(slot).await?)?,
            Wanted::Settings => {
                let epoch_settings = epoch_settings(settings, inherited, &postgres, &broker);
                break opening.begin(epoch_settings, now);
            }
            wanted => unreachable!("{wanted:?} comes before or behind"),
        }
    };
    broker.answer(&mut opening).await?;
    let opened = opening.finish(&mut engine);
    let replication = postgres.replication.expect("an epoch opens with its slot");
    let mut warnings = postgres.warnings;
    warnings.extend(broker.warnings());
    warnings.extend(opened.warnings);
    let column_bytes_max = broker.message_limit().bytes;
    let limits = Limits {
        turn_bytes_max: TURN_BYTES_MAX,
        column_bytes_max,
        frame_bytes_max: column_bytes_max + FRAME_OVERHEAD_BYTES,
        wal_sender_timeout: postgres.inspection.server.wal_sender_timeout,
    };
    Ok(Epoch {
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
    })
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
    let mut postgres = PostgresSide::look(settings, inherited, board).await?;
    let frame_bytes_max = epoch.turn.frame_bytes_max();
    postgres
        .take_slot(settings, inherited, publication, lsn, frame_bytes_max)
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
        template: settings.nats.subject.clone(),
        shared: settings.nats.shared,
        memory: inherited.memory.clone(),
        from: inherited.from,
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

/// Postgres' side of a start.
struct PostgresSide {
    sql: Client,
    inspection: Inspection,
    encoding: Encoding,
    warnings: Vec<String>,
    /// Under which names the publication is read.
    publications: Vec<PublicationName>,
    replication: Option<Replication>,
}

/// Replication that runs.
struct Replication {
    wal: CopyBoth,
    identity: SystemIdentity,
    history: History,
    walsender_pid: i32,
    server_version: String,
}

impl PostgresSide {
    async fn look(
        settings: &Settings,
        inherited: &Inherited,
        board: &Board,
    ) -> Result<Self, OpenError> {
        let conninfo = &settings.postgres.conninfo;
        let sql = client::connect(conninfo)
            .await
            .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
        let inspection = catalog::inspect(&sql, &settings.postgres).await?;
        board.looked(
            inspection.server.current_lsn,
            inspection.confirmed_lsn(),
            SlotWal::of(&inspection),
        );
        let warnings = check_postgres(&inspection, &settings.postgres, inherited.memory.is_some())?;
        let encoding = encoding::of_database(&sql, &settings.postgres.publication).await?;
        Ok(PostgresSide {
            sql,
            encoding,
            inspection,
            warnings,
            publications: Vec::new(),
            replication: None,
        })
    }

    /// The name of the publication to begin under.
    async fn publication(
        &mut self,
        settings: &Settings,
        recorded: &[PublicationName],
    ) -> Result<String, OpenError> {
        let postgres = &settings.postgres;
        let names = publication_names(&self.sql, postgres, &self.inspection, recorded).await?;
        let first = names
            .first()
            .map_or(&postgres.publication, |first| &first.name);
        let first = first.clone();
        self.publications = names;
        Ok(first)
    }

    async fn take_slot(
        &mut self,
        settings: &Settings,
        inherited: &mut Inherited,
        publication: &str,
        start_lsn: PgLsn,
        frame_bytes_max: usize,
    ) -> Result<(), OpenError> {
        let PostgresSettings { conninfo, slot, .. } = &settings.postgres;
        let ours = inherited.walsender.as_ref();
        check_slot_is_free(&self.sql, &self.inspection, slot, ours).await?;
        let mut session = startup::connect(conninfo, &SessionSettings::default())
            .await
            .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
        let identity = session.identify_system().await?;
        let history = session.timeline_history(identity.timeline).await?;
        let walsender_pid = session.server().backend_pid;
        inherited.walsender = processes::process(&self.sql, walsender_pid).await?;
        let server_version = session.server().server_version.clone();
        if self.encoding != Encoding::Utf8 {
            session.send_bytes().await?;
        }
        let wal = session
            .start_replication(slot, start_lsn, &[publication], frame_bytes_max)
            .await?;
        self.replication = Some(Replication {
            wal,
            identity,
            history,
            walsender_pid,
            server_version,
        });
        Ok(())
    }

    async fn slot_place(&self, slot: &str) -> Result<SlotPlace, OpenError> {
        let replication = self.replication.as_ref().expect("the slot was taken");
        let SlotAndWal {
            confirmed_flush_lsn,
            server_lsn,
            ..
        } = own_slot(&self.sql, slot, replication.walsender_pid).await?;
        Ok(SlotPlace {
            lane: replication.identity.lane(slot),
            history: replication.history.clone(),
            confirmed_flush_lsn,
            server_lsn,
        })
    }
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
        bytes_max: settings.relay.window_bytes_max,
        message_limit: broker.message_limit(),
        ack_timeout: settings.relay.ack_timeout,
    }
}

/// A relay that waits for its slot has looked at everything else before: what is wrong must not come out only when it is
/// to take over.
async fn check_slot_is_free(
    sql: &Client,
    inspection: &Inspection,
    slot: &str,
    ours: Option<&Process>,
) -> Result<(), OpenError> {
    let Some(pid) = inspection.slot.as_ref().and_then(|slot| slot.active_pid) else {
        return Ok(());
    };
    if let Some(ours) = ours.filter(|ours| ours.pid == pid)
        && has_ended(sql, ours).await?
    {
        return Ok(());
    }
    Err(OpenError::Fault(Fault::SlotActive {
        slot: slot.to_owned(),
        pid: u32::try_from(pid).unwrap_or(0),
    }))
}

/// The server's end of a connection that this relay has closed goes by itself where the network says so. Else it would
/// keep the slot until `wal_sender_timeout`.
async fn has_ended(sql: &Client, ours: &Process) -> Result<bool, SqlError> {
    let begin = Instant::now();
    while begin.elapsed() < OWN_END_LIMIT {
        if processes::process(sql, ours.pid).await?.as_ref() != Some(ours) {
            return Ok(true);
        }
        tokio::time::sleep(OWN_END_PAUSE).await;
    }
    tracing::debug!(
        pid = ours.pid,
        "the server has not noticed that the replication connection is gone, ending it there"
    );
    match processes::end_process(sql, ours, OWN_END_LIMIT).await {
        // A session whose role is not the login's.
        Err(error) if error.code() == Some("42501") => Ok(false),
        ended => ended,
    }
}

/// The slot that this relay reads. Where the SQL session has come to another server of the list, a standby, what that one
/// says of slot and WAL tells nothing about the lane.
async fn own_slot(sql: &Client, slot: &str, walsender_pid: i32) -> Result<SlotAndWal, OpenError> {
    catalog::slot_and_wal(sql, slot)
        .await?
        .filter(|slot| slot.active_pid == Some(walsender_pid))
        .ok_or_else(|| {
            OpenError::Fault(Fault::Postgres(format!(
                "the SQL session does not see process {walsender_pid} read from slot {slot}: it has ended meanwhile, or the two \
                 are on different servers; one host in postgres.url, or target_session_attrs=read-write, keeps them together"
            )))
        })
}

fn check_postgres(
    inspection: &Inspection,
    settings: &PostgresSettings,
    has_streamed: bool,
) -> Result<Vec<String>, OpenError> {
    let (refusals, warnings): (Vec<_>, Vec<_>) = findings(inspection, settings)
        .into_iter()
        .partition(|finding| finding.severity == Severity::Refuse);
    if let Some(lost) = refusals.iter().find(|finding| match finding.kind {
        Kind::SlotLost => true,
        // It was there: what it held is gone with it, and a new one would begin behind that.
        // A standby that the session came to need not have it.
        Kind::SlotMissing => has_streamed && !inspection.server.in_recovery,
        _ => false,
    }) {
        return Err(OpenError::Halt(Halt::Slot {
            what: lost.what.clone(),
            mend: lost.mend.clone(),
        }));
    }
    if !refusals.is_empty() {
        let lines: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        return Err(OpenError::Permanent(anyhow::anyhow!(lines.join("; "))));
    }
    // A slot in use is waited for, or it is our own that was.
    let warnings = warnings
        .iter()
        .filter(|finding| finding.kind != Kind::SlotActive);
    Ok(warnings.map(ToString::to_string).collect())
}

/// The outbox table as the engine knows it, in a database of UTF-8.
pub(crate) fn source(inspection: &Inspection, settings: &Settings) -> Source {
    let table = inspection.table.as_ref();
    let name = &settings.postgres.table;
    Source {
        tables: Tables::new(
            name.schema.clone(),
            name.table.clone(),
            table.map_or(0, |table| table.oid),
            inspection.server.current_lsn,
        ),
        domains: table.map_or_else(Vec::new, Table::domains),
        encoding: Encoding::Utf8,
        mapping: settings.mapping(),
    }
}

/// A third of what the server allows, and never longer than configured.
fn status_interval(settings: &Settings, inspection: &Inspection) -> Duration {
    inspection
        .server
        .wal_sender_timeout
        .map_or(settings.relay.status_interval, |timeout| {
            settings.relay.status_interval.min(timeout / 3)
        })
}
