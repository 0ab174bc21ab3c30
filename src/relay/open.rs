//! The start of an epoch, the same every time: check, find the lane's end, take the slot, look again, decide.
//!
//! In: settings. Out: an [`Epoch`] that streams. Guarantee: what decides where the lane goes on was read after the slot
//! became ours; before that another relay may still have been publishing.

use crate::nats::stream;
use crate::pipeline::continuity::{self, Memory, Plan, Refusal, StartView};
use crate::pipeline::engine::{Engine, EngineSettings, Note};
use crate::pipeline::epochs::Refused;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::publish::WindowSettings;
use crate::pipeline::row::Source;
use crate::pipeline::shared_tail::fence_subject;
use crate::pipeline::tail::Tail;
use crate::postgres::catalog::{self, Inspection, SlotAndWal};
use crate::postgres::client::{self, Client, SqlError};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::copy_both::CopyBoth;
use crate::postgres::error::ReplicationError;
use crate::postgres::findings::{Kind, Severity, findings};
use crate::postgres::processes::{self, Process};
use crate::postgres::replication::Session;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::startup::{self, SessionSettings};
use crate::relay::broker::{self, Broker};
use crate::relay::settings::{OnReject, Settings};
use crate::relay::status::Board;
use crate::relay::watch::{self, Watch};
use postgres_types::PgLsn;
use std::time::{Duration, Instant};

/// Room beside the largest message for a row's other columns and the protocol around it.
const FRAME_OVERHEAD_BYTES: usize = 64 * 1024;
/// For a single answer of the JetStream API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// The server's end of our own replication connection gets so long to go by itself, and once more when it is told to.
const OWN_END_LIMIT: Duration = Duration::from_millis(500);
const OWN_END_PAUSE: Duration = Duration::from_millis(20);

/// Why an epoch did not begin.
#[derive(Debug)]
pub enum OpenError {
    /// Passes by itself.
    Fault(Fault),
    /// Does not pass by itself: ends `run` at its first start.
    Permanent(anyhow::Error),
    /// A person has to look.
    Halt(Halt),
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Halt(halt) => OpenError::Halt(halt),
            refusal => OpenError::Permanent(refusal.into()),
        }
    }
}

impl From<SqlError> for OpenError {
    fn from(error: SqlError) -> Self {
        if error.is_transient() {
            OpenError::Fault(Fault::Postgres(error.bare()))
        } else {
            OpenError::Permanent(error.into())
        }
    }
}

impl From<ReplicationError> for OpenError {
    fn from(error: ReplicationError) -> Self {
        match error {
            ReplicationError::SlotActive { slot, pid } => OpenError::Fault(Fault::SlotActive {
                slot,
                pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            }),
            error @ ReplicationError::SlotLost { .. } => {
                OpenError::Halt(Halt::Slot(error.to_string()))
            }
            error if error.is_transient() => OpenError::Fault(Fault::Postgres(error.bare())),
            error => OpenError::Permanent(error.into()),
        }
    }
}

impl OpenError {
    /// The same of an attempt to connect to Postgres: says where.
    fn of_connecting(self, conninfo: &Conninfo) -> Self {
        match self {
            OpenError::Fault(Fault::Postgres(text)) => OpenError::Fault(Fault::Postgres(format!(
                "cannot connect to {conninfo}: {text}"
            ))),
            OpenError::Permanent(error) => {
                OpenError::Permanent(error.context(format!("cannot connect to {conninfo}")))
            }
            other => other,
        }
    }
}

/// What the last epoch leaves to the next.
#[derive(Debug, Clone, Default)]
pub struct Inherited {
    /// `--from`, as far as it is not done.
    pub from: Option<PgLsn>,
    /// The rows that the broker refused.
    pub refused: Refused,
    /// Send so many rows one at a time.
    pub one_by_one: u64,
    /// What the relay knows of the lane by itself.
    pub memory: Option<Memory>,
    /// Dead letters that were in flight: nobody has told of them.
    pub dead_letters: Vec<Note>,
    /// The server's end of the last replication connection. Where the network has lost that one, the server does not
    /// know, and keeps the slot for it.
    pub walsender: Option<Process>,
}

/// An epoch that streams.
pub struct Epoch {
    /// The decisions.
    pub engine: Engine,
    /// The WAL.
    pub wal: CopyBoth,
    /// The catalog, looked at again and again.
    pub watch: Watch,
    /// The broker.
    pub broker: Broker,
    /// Where the lane record is stored.
    pub record_sequence: u64,
    /// Largest value of a column that is gathered, in bytes.
    pub column_bytes_max: usize,
    /// Largest frame that is gathered, in bytes.
    pub frame_bytes_max: usize,
    /// Silence that the server endures; `None` is for ever.
    pub wal_sender_timeout: Option<Duration>,
    /// What a person is told about the start.
    pub summary: Summary,
}

/// What a person is told about the start of an epoch.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Of Postgres.
    pub postgres_version: String,
    /// Of nats-server.
    pub nats_version: String,
    /// How messages are published.
    pub mode: &'static str,
    /// Where the lane goes on.
    pub plan: Plan,
    /// What is a risk in catalog and stream.
    pub warnings: Vec<String>,
}

/// Opens an epoch, and tells the board where the server is. `now` is the engine's time.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(
    settings: &Settings,
    inherited: &mut Inherited,
    board: &Board,
    now: Duration,
) -> Result<Epoch, OpenError> {
    let conninfo = &settings.postgres.conninfo;
    let sql = client::connect(conninfo)
        .await
        .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
    let inspection = catalog::inspect(&sql, &settings.postgres).await?;
    board.looked(inspection.server.current_lsn, inspection.confirmed_lsn());
    let mut warnings = check_postgres(&inspection, &settings.postgres, inherited.memory.is_some())?;
    let slot = &settings.postgres.slot;
    let mut broker = Broker::connect(&settings.nats, &settings.name, slot, API_TIMEOUT).await?;
    let before = view(&mut broker, settings, inherited).await?;
    check_slot_is_free(&sql, &inspection, slot, inherited.walsender.as_ref()).await?;
    let mut session = startup::connect(conninfo, &SessionSettings::default())
        .await
        .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
    let identity = session.identify_system().await?;
    let history = session.timeline_history(identity.timeline).await?;
    let walsender_pid = session.server().backend_pid;
    inherited.walsender = processes::process(&sql, walsender_pid).await?;
    let postgres_version = session.server().server_version.clone();
    let message_bytes_max = message_bytes_max(&broker, &before.stream);
    let (wal, started_at) =
        take_slot(session, settings, &before, inherited, message_bytes_max).await?;
    let after = view(&mut broker, settings, inherited).await?;
    warnings.extend(after.warnings.iter().cloned());
    warnings.extend(removed_end(&after, &settings.nats.stream));
    let SlotAndWal {
        confirmed_flush_lsn,
        server_lsn,
        ..
    } = own_slot(&sql, slot, walsender_pid).await?;
    let lane = identity.lane(slot);
    let carried = after
        .record
        .record
        .as_ref()
        .and_then(|record| record.carrier.as_ref());
    warnings.extend(
        carried
            .zip(inspection.carrier.as_ref())
            .and_then(|(before, now)| before.change(now)),
    );
    let planned = continuity::plan(&StartView {
        lane: &lane,
        confirmed_flush_lsn,
        server_lsn,
        history: &history,
        stream: &settings.nats.stream,
        created: &after.stream.created,
        last_sequence: after.stream.state.last_seq,
        tail: &after.tail,
        record: after.record.record.as_ref(),
        memory: inherited.memory.as_ref(),
        from: inherited.from,
    });
    let mut plan = match planned {
        Err(Refusal::Halt(halt)) => {
            let created = &after.stream.created;
            return Err(broker.confirm_halt(halt, &after.record, created).await);
        }
        planned => planned?,
    };
    if started_at > plan.start_lsn {
        return Err(OpenError::Fault(Fault::StreamLost(format!(
            "it ended at {started_at} before the slot was taken, and at {} behind it",
            plan.start_lsn
        ))));
    }
    let mode = broker::mode(&broker.connection, &after.stream, settings.nats.shared)?;
    let preparation = mode.preparation();
    if preparation.fenced {
        plan.last_sequence = broker.write_fence(plan.tail.as_ref()).await?;
        plan.foreign_messages = 0;
    }
    let mut record = after.record.record.clone();
    if let Some(record) = &mut record {
        // What lies behind the switch is another timeline's, and is not carried over into this one's record.
        let shared_lsn = history.shared_through(record.timeline);
        record.confirmed_lsn = record.confirmed_lsn.min(shared_lsn);
    }
    let engine_settings = EngineSettings {
        lane,
        timeline: identity.timeline,
        created: after.stream.created.clone(),
        epoch: after
            .record
            .record
            .as_ref()
            .map_or(1, |record| record.epoch + 1),
        record: record.clone(),
        source: source(
            inspection.table.as_ref().map_or(0, |table| table.oid),
            &settings.postgres,
        ),
        template: settings.nats.subject.clone(),
        window: WindowSettings {
            mode,
            stream: settings.nats.stream.clone(),
            slot: slot.clone(),
            fence_subject: fence_subject(&settings.nats.stream, slot),
            inbox: broker.connection.inbox().to_owned(),
            epoch_token: format!("e{:016x}", rand::random::<u64>()),
            messages_max: preparation.messages_max(
                after.stream.config.num_replicas,
                settings.relay.window_messages_max,
            ),
            one_by_one: inherited.one_by_one,
            bytes_max: settings.relay.window_bytes_max,
            message_bytes_max,
            ack_timeout: settings.relay.ack_timeout,
        },
        confirmed_flush_lsn,
        hold_back: settings.relay.hold_back,
        held_bytes_max: watch::wal_room(&inspection).held_bytes_max(0),
        status_interval: status_interval(settings, &inspection),
        halt_on_reject: settings.relay.on_reject == OnReject::Halt,
        skips: after
            .record
            .record
            .as_ref()
            .map_or_else(Vec::new, |record| record.skips.clone()),
        refused: inherited.refused.clone(),
        carrier: inspection.carrier.clone(),
    };
    let engine = Engine::new(engine_settings, &plan, now);
    // The record of this epoch, before its first message: a relay that was frozen meanwhile cannot write its own.
    let recorded = record.as_ref().map_or(confirmed_flush_lsn, |record| {
        record.confirmed_lsn.max(confirmed_flush_lsn)
    });
    let record_sequence = broker
        .write_record(&engine.lane_record(recorded), after.record.sequence)
        .await?;
    Ok(Epoch {
        summary: Summary {
            postgres_version,
            nats_version: broker.connection.info().version.to_string(),
            mode: preparation.name,
            plan,
            warnings,
        },
        engine,
        wal_sender_timeout: inspection.server.wal_sender_timeout,
        watch: Watch::start(sql, settings.postgres.clone(), inspection, walsender_pid),
        wal,
        broker,
        record_sequence,
        column_bytes_max: message_bytes_max,
        frame_bytes_max: message_bytes_max + FRAME_OVERHEAD_BYTES,
    })
}

/// What the broker says.
struct View {
    stream: crate::nats::api::StreamInfo,
    /// What of the stream is a risk, or slow.
    warnings: Vec<String>,
    record: broker::StoredRecord,
    tail: Tail,
}

async fn view(
    broker: &mut Broker,
    settings: &Settings,
    inherited: &Inherited,
) -> Result<View, OpenError> {
    let info = broker.stream().await?;
    let wanted = settings.nats.stream_settings(&settings.postgres.slot);
    let version = broker.connection.info().version;
    let (blocking, warning): (Vec<_>, Vec<_>) = stream::findings(&info.config, &wanted, version)
        .into_iter()
        .partition(|finding| finding.severity == stream::Severity::Blocks);
    let name = &settings.nats.stream;
    if !blocking.is_empty() {
        let blocking: Vec<String> = blocking.iter().map(ToString::to_string).collect();
        let blocking = blocking.join("; ");
        return Err(OpenError::Permanent(anyhow::anyhow!(
            "stream {name}: {blocking}"
        )));
    }
    let warnings = warning
        .iter()
        .map(|finding| format!("stream {name}: {finding}"))
        .collect();
    let mut record = broker.record(info.config.num_replicas).await?;
    if let Some(record) = record
        .record
        .as_mut()
        .filter(|record| record.created == info.created)
    {
        // A stream that was set back below the adoption: what comes there now is the lane's own.
        record.adopted_sequence = record.adopted_sequence.min(info.state.last_seq);
    }
    let tail = broker
        .tail(&info, record.record.as_ref(), inherited.memory.as_ref())
        .await?;
    let again = broker.stream().await?;
    if again.created != info.created || again.state.last_seq < info.state.last_seq {
        return Err(OpenError::Fault(Fault::StreamLost(
            "it changed while it was looked at".into(),
        )));
    }
    Ok(View {
        stream: info,
        warnings,
        record,
        tail,
    })
}

/// What to say of a lane's last message that is gone while older ones are there. Age, limits and purges take the oldest
/// first. A person may have deleted it; but nats-server, too, says so of what a power failure took from its files where
/// the index that it keeps beside them (`index.db`) survived: by `last_seq` and `created` the two are the same.
fn removed_end(view: &View, stream: &str) -> Option<String> {
    let sequence = match view.tail {
        Tail::Removed { sequence } => sequence,
        Tail::FenceRemoved => view.record.record.as_ref()?.sequence,
        _ => return None,
    };
    (view.stream.state.first_seq <= sequence).then(|| {
        format!(
            "message {sequence} at the lane's end in stream {stream} is gone, and older ones are there: somebody deleted it, or \
             nats-server lost it in a crash; `walrelay verify` names the events that are missing, `walrelay backfill` publishes \
             them"
        )
    })
}

/// Starts replication no later than the lane's end, so that WAL which is surely published is not even decoded.
async fn take_slot(
    session: Session,
    settings: &Settings,
    before: &View,
    inherited: &Inherited,
    message_bytes_max: usize,
) -> Result<(CopyBoth, PgLsn), OpenError> {
    let start_lsn = continuity::provisional_start_lsn(
        &before.tail,
        before.record.record.as_ref(),
        inherited.from,
    );
    let wal = session
        .start_replication(
            &settings.postgres.slot,
            start_lsn,
            &[&settings.postgres.publication],
            message_bytes_max + FRAME_OVERHEAD_BYTES,
        )
        .await?;
    Ok((wal, start_lsn))
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
        return Err(OpenError::Halt(Halt::Slot(lost.to_string())));
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

/// The outbox table as the engine knows it; `oid` 0 for none.
pub(crate) fn source(oid: u32, settings: &PostgresSettings) -> Source {
    Source {
        schema: settings.table.schema.clone(),
        table: settings.table.table.clone(),
        oid,
        columns: settings.columns.clone(),
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

fn message_bytes_max(broker: &Broker, stream: &crate::nats::api::StreamInfo) -> usize {
    let server = broker.connection.info().max_payload;
    usize::try_from(stream.config.max_msg_size)
        .ok()
        .filter(|bytes| *bytes > 0)
        .map_or(server, |bytes| bytes.min(server))
}
