//! The catalog while an epoch streams: does the publication still carry the table, is the relay none of the synchronous standbys, and how
//! much WAL may the slot keep?
//!
//! In: what the epoch found at its start, rows to look for. Out: every five seconds a [`Look`], or why there is none; what the
//! table has of a row; or the [`Fault`] that ends the epoch. Needed because Postgres passes over the rows of a table that is not in the publication, and says nothing
//! in the WAL. A look that fails does not end the epoch: whether the server is there is the replication connection's
//! business. How long nothing may be seen is [`crate::pipeline::sight`]'s.

use crate::pipeline::carrier::Carrier;
use crate::pipeline::engine::{RowPresence, RowQuestion};
use crate::pipeline::fault::Fault;
use crate::postgres::catalog::{self, Inspection, ServerClock};
use crate::postgres::client::{self, Client};
use crate::postgres::findings::{Kind, Severity, findings};
use crate::postgres::id_column::IdColumn;
use crate::postgres::presence;
use crate::postgres::processes::{self, Activity};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::slot_wal::SlotWal;
use crate::postgres::startup::{self, SessionSettings};
use crate::relay::open_error::with_cause;
use postgres_types::PgLsn;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// It is noticed so soon that the server has ended the session.
const CLOSED_INTERVAL: Duration = Duration::from_millis(500);
/// A look that takes longer is given up, its connection too.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// What a look has found, with everything in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What carries the table's rows, still the same.
    pub carrier: Carrier,
    /// The walsender is in the middle of a transaction of which it sends nothing, and answers nothing meanwhile.
    pub(crate) is_decoding: bool,
    /// What the slot keeps, and may keep.
    pub wal: SlotWal,
    /// End of the server's WAL.
    pub server_lsn: PgLsn,
    /// The server's clock.
    pub(crate) clock: ServerClock,
    /// What the slot has confirmed.
    pub confirmed_lsn: Option<PgLsn>,
}

/// How a look ended that ends nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// With everything in order.
    Seen(Look),
    /// Without seeing what carries the rows, or the row that was asked for; why.
    Missed(String),
    /// For the row that was asked for.
    Row(RowPresence),
}

/// What the epoch found at its start.
#[derive(Debug)]
pub struct First {
    /// The catalog.
    pub inspection: Inspection,
    /// The server's process that sends the WAL.
    pub walsender_pid: i32,
    /// The server's timeline.
    pub timeline: u32,
}

/// Looks from a task of its own, which ends with this value.
#[derive(Debug)]
pub struct Watch {
    looks: mpsc::Receiver<Result<Looked, Fault>>,
    questions: mpsc::UnboundedSender<RowQuestion>,
}

impl Watch {
    /// Begins to look, through `sql`, for changes since `first`, and at the walsender.
    pub fn start(sql: Client, settings: PostgresSettings, first: First) -> Watch {
        let (sender, looks) = mpsc::channel(1);
        // One question waits at a time: the engine asks no other before it has the answer.
        let (questions, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            tokio::select! {
                () = look_on(sql, &settings, &first, asked, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Watch { looks, questions }
    }

    /// Looks for a row of the table as soon as may be.
    pub fn ask(&self, question: RowQuestion) {
        // The task ends only with this value.
        let _sent = self.questions.send(question);
    }

    /// The next look. Safe to drop and call again.
    ///
    /// # Errors
    /// The rows are no longer carried, something that carries them was changed, the server was promoted, or it has ended the
    /// replication connection and waits for us.
    pub async fn look(&mut self) -> Result<Looked, Fault> {
        match self.looks.recv().await {
            Some(looked) => looked,
            None => std::future::pending().await,
        }
    }
}

async fn look_on(
    sql: Client,
    settings: &PostgresSettings,
    first: &First,
    mut asked: mpsc::UnboundedReceiver<RowQuestion>,
    sender: &mpsc::Sender<Result<Looked, Fault>>,
) {
    let mut sql = Some(sql);
    let mut next = Instant::now() + INTERVAL;
    loop {
        tokio::select! {
            () = rest(sql.as_ref(), next) => next = Instant::now() + INTERVAL,
            Some(question) = asked.recv() => {
                let looked = match presence(&mut sql, settings, first, &question).await {
                    Ok(presence) => Looked::Row(presence),
                    Err(reason) => Looked::Missed(reason),
                };
                if sender.send(Ok(looked)).await.is_err() {
                    return;
                }
                continue;
            }
        }
        let viewed = tokio::time::timeout(LOOK_LIMIT, view(&mut sql, settings, first)).await;
        let looked = match viewed {
            Ok(Ok(view)) => judge(first, &view, settings),
            Ok(Err(error)) => Ok(Looked::Missed(with_cause(error.as_ref()))),
            Err(_) => {
                // A session that waits for a lock does not see that its client has gone.
                if let Some(sql) = &sql
                    && let Err(error) = sql.cancel().await
                {
                    tracing::debug!(%error, "the look cannot be cancelled");
                }
                Ok(Looked::Missed(format!(
                    "a look took longer than {LOOK_LIMIT:?}; a lock on the table or the publication does that"
                )))
            }
        };
        if let Ok(Looked::Missed(reason)) = &looked {
            tracing::debug!(reason, "could not look at the catalog");
            // Another session may come to where the walsender is.
            sql = None;
        }
        if sender.send(looked).await.is_err() {
            return;
        }
    }
}

/// Until the next look is due. A session that the server has ended is a reason to look at once: it is shutting down, and may be
/// waiting for a relay that reads nothing while its broker is away.
async fn rest(sql: Option<&Client>, next: Instant) {
    while Instant::now() < next && !sql.is_some_and(|sql| sql.is_closed()) {
        tokio::time::sleep(CLOSED_INTERVAL).await;
    }
}

/// What the table has of a row; on a new session where the server has ended ours.
///
/// # Errors
/// That could not be looked at, and why.
async fn presence(
    sql: &mut Option<Client>,
    settings: &PostgresSettings,
    first: &First,
    question: &RowQuestion,
) -> Result<RowPresence, String> {
    let settings = settings.tables().swap_remove(question.outbox);
    let first = first.inspection.tables().nth(question.outbox);
    let Some(table) = first.and_then(|first| first.table.as_ref()) else {
        let text = format!("there was no table {}", settings.table);
        return Ok(RowPresence::Unseen(text));
    };
    let id_column = IdColumn::of(table, &settings);
    let kept = sql.take().filter(|sql| !sql.is_closed());
    let client = match kept {
        Some(client) => client,
        None => client::connect(&settings.conninfo)
            .await
            .map_err(|error| with_cause(&error))?,
    };
    let presence = presence::look(&client, &settings.table, &id_column, question).await;
    let presence = presence.map_err(|error| with_cause(&error))?;
    *sql = Some(client);
    Ok(presence)
}

/// The catalog at a look.
#[derive(Debug)]
struct View {
    inspection: Inspection,
    /// A table of the epoch's start that is there under another name.
    renamed: Option<String>,
    activity: Activity,
    /// The server's timeline; none where it cannot change.
    timeline: Option<u32>,
}

async fn view(
    sql: &mut Option<Client>,
    settings: &PostgresSettings,
    first: &First,
) -> anyhow::Result<View> {
    // It stays there meanwhile: who gives the look up has to cancel what it waits for.
    let client = match sql {
        Some(client) => client,
        None => sql.insert(client::connect(&settings.conninfo).await?),
    };
    let inspection = catalog::inspect(client, settings).await?;
    let mut renamed = None;
    let tables = inspection.tables().zip(first.inspection.tables());
    for ((now, first), settings) in tables.zip(settings.tables()) {
        if let (None, Some(table)) = (&now.table, &first.table)
            && catalog::has_relation(client, table.oid).await?
        {
            renamed = Some(settings.table.to_string());
        }
    }
    let activity = processes::activity(client, first.walsender_pid).await?;
    let timeline = match first.inspection.server.in_recovery {
        true => Some(timeline(settings).await?),
        false => None,
    };
    Ok(View {
        inspection,
        renamed,
        activity,
        timeline,
    })
}

/// The timeline that the server is on. A standby changes it when it is promoted, and when it follows one that was; only a
/// replication session may ask without further rights.
async fn timeline(settings: &PostgresSettings) -> anyhow::Result<u32> {
    let mut session = startup::connect(&settings.conninfo, &SessionSettings::default()).await?;
    Ok(session.identify_system().await?.timeline)
}

fn judge(first: &First, view: &View, settings: &PostgresSettings) -> Result<Looked, Fault> {
    let now = &view.inspection;
    let reader = now.slot.as_ref().and_then(|slot| slot.active_pid);
    if reader != Some(first.walsender_pid) {
        // Its catalog may be that of a standby that is behind.
        return Ok(Looked::Missed(format!(
            "the session does not see process {} read from slot {}: it has come to another server of postgres.url",
            first.walsender_pid, settings.slot
        )));
    }
    if view.activity == Activity::Ending {
        return Err(Fault::Postgres(format!(
            "the server has ended the replication connection, and process {} waits until all that it sent is read; closing it",
            first.walsender_pid
        )));
    }
    if let Some(now) = view.timeline.filter(|now| *now != first.timeline) {
        let before = first.timeline;
        return Err(Fault::Promoted { before, now });
    }
    if let Some(table) = &view.renamed {
        // Its rows are known by the table's oid.
        return Ok(Looked::Missed(format!(
            "there is no table {table}, the one that it was has another name"
        )));
    }
    let ends_the_epoch = |kind| {
        matches!(
            kind,
            // Each confirmation would release commits that wait for a real one.
            Kind::SynchronousStandby
                // These hide rows.
                | Kind::PublicationMissing
                | Kind::PublicationMismatch
                | Kind::RowFilter
                | Kind::TableMissing
                | Kind::TableMismatch
        )
    };
    let refusals: Vec<String> = findings(now, settings)
        .iter()
        .filter(|finding| finding.severity == Severity::Refuse && ends_the_epoch(finding.kind))
        .map(ToString::to_string)
        .collect();
    if !refusals.is_empty() {
        return Err(Fault::Unready(refusals.join("; ")));
    }
    let (Some(before), Some(carrier)) = (&first.inspection.carrier, &now.carrier) else {
        // Made or dropped between two questions of one look.
        return Err(Fault::Carrier);
    };
    if before.change(carrier).is_some() {
        return Err(Fault::Carrier);
    }
    Ok(Looked::Seen(Look {
        carrier: carrier.clone(),
        wal: SlotWal::of(now),
        is_decoding: view.activity == Activity::Decoding,
        server_lsn: now.server.current_lsn,
        clock: now.server.clock,
        confirmed_lsn: now.confirmed_lsn(),
    }))
}
