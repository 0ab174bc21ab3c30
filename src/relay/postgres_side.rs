//! Postgres' side of a start: the catalog is looked at, the slot taken and kept.
//!
//! In: settings, what the last epoch left. Out: a [`PostgresSide`]. Guarantee: a slot that is ours stays ours while something else
//! is waited for.

use crate::pipeline::copy_both::StatusUpdate;
use crate::pipeline::encoding::Encoding;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::history::History;
use crate::pipeline::opening::SlotPlace;
use crate::pipeline::publications::PublicationName;
use crate::postgres::catalog::{self, Inspection, Slot, SlotAndWal};
use crate::postgres::client::{self, Client, SqlError};
use crate::postgres::copy_both::CopyBoth;
use crate::postgres::division::{self, Division};
use crate::postgres::encoding;
use crate::postgres::error::{ReplicationError, SLOT_MISSING};
use crate::postgres::findings::{Kind, Refusals, Severity, findings};
use crate::postgres::locks::{self, Inspected};
use crate::postgres::processes::{self, Process};
use crate::postgres::publications::publication_names;
use crate::postgres::replication::SystemIdentity;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::ROW_FILTERS_SINCE;
use crate::postgres::sibling_slots;
use crate::postgres::slot_wal::SlotWal;
use crate::postgres::startup::{self, SessionSettings};
use crate::postgres::unfinished;
use crate::postgres::waiting;
use crate::relay::board::Board;
use crate::relay::clock;
use crate::relay::open_error::OpenError;
use crate::relay::remembered_columns;
use crate::relay::settings::Settings;
use postgres_types::PgLsn;
use std::time::{Duration, Instant};

/// The server's end of our own replication connection gets so long to go by itself, and once more when it is told to.
pub(super) const OWN_END_LIMIT: Duration = Duration::from_millis(500);
const OWN_END_PAUSE: Duration = Duration::from_millis(20);
/// The server frees the slot when so many status updates in a row have not come.
const STATUS_UPDATES_MISSED_MAX: u32 = 3;

/// Postgres' side of a start.
pub(super) struct PostgresSide {
    pub(super) sql: Client,
    pub(super) inspection: Inspection,
    pub(super) encoding: Encoding,
    pub(super) warnings: Vec<String>,
    /// The lane's share carries no rows. It is read on until its record says that it is at its end.
    pub(super) no_share: Option<Fault>,
    /// Under which names the publication is read.
    pub(super) publications: Vec<PublicationName>,
    pub(super) replication: Option<Replication>,
}

/// Replication that runs.
pub(super) struct Replication {
    pub(super) wal: CopyBoth,
    pub(super) identity: SystemIdentity,
    pub(super) history: History,
    pub(super) walsender_pid: i32,
    pub(super) server_version: String,
    pub(super) status_interval: Duration,
}

impl PostgresSide {
    /// Looks at the catalog, which must be in order.
    pub(super) async fn look(
        settings: &Settings,
        has_streamed: bool,
        board: &Board,
    ) -> Result<Self, OpenError> {
        let conninfo = &settings.postgres.conninfo;
        let sql = client::connect(conninfo)
            .await
            .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
        // On its way in front of the first look, it takes no time of its own.
        let ((), inspected) = tokio::join!(
            waiting::begin(&sql, &settings.postgres.slot),
            locks::inspect(&sql, &settings.postgres),
        );
        let inspection = match inspected? {
            Inspected::Seen(mut inspection) => {
                remembered_columns::remember(settings, &mut inspection).await;
                *inspection
            }
            Inspected::Locked(locked) => {
                let text = format!("{locked}; {}", locked.mend());
                return Err(OpenError::Fault(Fault::Postgres(text)));
            }
        };
        board.looked(
            inspection.server.current_lsn,
            inspection.confirmed_lsn(),
            SlotWal::of(&inspection),
            inspection.server.clock,
        );
        let (no_share, others) = check_shares(&sql, &inspection, &settings.postgres).await?;
        let mut warnings = check_postgres(&inspection, &settings.postgres, has_streamed)?;
        warnings.extend(others);
        let encoding = encoding::of_database(&sql, &settings.postgres.publication).await?;
        Ok(PostgresSide {
            sql,
            encoding,
            inspection,
            warnings,
            no_share,
            publications: Vec::new(),
            replication: None,
        })
    }

    /// The name of the publication to begin under.
    pub(super) async fn publication(
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

    /// Begins to read. `last` is the process of our own that read last, and becomes the one that reads now.
    pub(super) async fn take_slot(
        &mut self,
        settings: &Settings,
        last: &mut Option<Process>,
        publication: &str,
        start_lsn: PgLsn,
        frame_bytes_max: usize,
    ) -> Result<(), OpenError> {
        let PostgresSettings { conninfo, slot, .. } = &settings.postgres;
        check_slot_is_free(&self.sql, &self.inspection, slot, last.as_ref()).await?;
        let status_interval = status_interval(settings, &self.inspection);
        let session_settings = SessionSettings {
            wal_sender_timeout: Some(status_interval * STATUS_UPDATES_MISSED_MAX),
        };
        let mut session = startup::connect(conninfo, &session_settings)
            .await
            .map_err(|error| OpenError::from(error).of_connecting(conninfo))?;
        let identity = session.identify_system().await?;
        let history = session.timeline_history(identity.timeline).await?;
        let walsender_pid = session.server().backend_pid;
        *last = processes::process(&self.sql, walsender_pid).await?;
        let server_version = session.server().server_version.clone();
        if self.encoding != Encoding::Utf8 {
            session.send_bytes().await?;
        }
        let messages = self.reads_messages(&settings.postgres);
        let begun = session
            .start_replication(slot, start_lsn, &[publication], messages, frame_bytes_max)
            .await;
        if begun.is_ok() {
            waiting::end(&self.sql, slot).await;
        }
        let wal = match begun {
            // It was there when the catalog was looked at: its share is no more, or the next look says what is wrong.
            Err(error) if error.server().is_some_and(|it| it.code == SLOT_MISSING) => {
                return Err(match catalog::slot_and_wal(&self.sql, slot).await? {
                    None => OpenError::Fault(Fault::Postgres(error.bare())),
                    Some(_) => error.into(),
                });
            }
            begun => begun?,
        };
        tracing::debug!(
            slot,
            %start_lsn,
            publication,
            walsender_pid,
            postgres = server_version,
            timeline = identity.timeline,
            "replication has begun"
        );
        self.replication = Some(Replication {
            wal,
            identity,
            history,
            walsender_pid,
            server_version,
            status_interval,
        });
        Ok(())
    }

    /// One tells where the number of shares changes, which takes row filters.
    fn reads_messages(&self, settings: &PostgresSettings) -> bool {
        settings.messages.is_some() || self.inspection.server.version_num >= ROW_FILTERS_SINCE
    }

    /// Waits for `other` and meanwhile tells Postgres that we are there, once the slot is ours.
    pub(super) async fn hold_slot(
        &mut self,
        other: impl Future<Output = Result<(), OpenError>>,
    ) -> Result<(), OpenError> {
        let Some(Replication {
            wal,
            status_interval,
            ..
        }) = &mut self.replication
        else {
            return other.await;
        };
        tokio::select! {
            done = other => done,
            error = tell_presence(wal, *status_interval) => Err(error.into()),
        }
    }

    /// Where the slot is that is ours.
    pub(super) async fn slot_place(&self, slot: &str) -> Result<SlotPlace, OpenError> {
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
            begins_lsn: self.inspection.begins_lsn(),
            server_lsn,
        })
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
    if inspection.slot.as_ref().and_then(Slot::made_by).is_some() {
        let text = format!("{}: {}", unfinished::what(slot, pid), unfinished::mend(pid));
        return Err(OpenError::Fault(Fault::Unready(text)));
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

/// Whether the lane's share is none that carries rows, and what there is beside it. Without publication or slot there is nothing to read.
async fn check_shares(
    sql: &Client,
    inspection: &Inspection,
    settings: &PostgresSettings,
) -> Result<(Option<Fault>, Vec<String>), OpenError> {
    if inspection.server.version_num < ROW_FILTERS_SINCE {
        return Ok((None, Vec::new()));
    }
    let division = Division::look(sql, settings).await?;
    let (share, part) = (&settings.any_share(), settings.part());
    let no_share = division.lacks(settings).map(Fault::NoShare);
    let is_readable = inspection.slot.is_some() && division.has(part);
    if let Some(fault) = no_share.clone().filter(|_| !is_readable) {
        return Err(OpenError::Fault(fault));
    }
    let lacks_slot = inspection.slot.is_none() && no_share.is_none() && division.has(part);
    if lacks_slot && !division::has_rows_without_slot(sql, settings).await? {
        let text = "the lane came or went while the catalog was looked at".to_owned();
        return Err(OpenError::Fault(Fault::Postgres(text)));
    }
    if part.is_none() {
        return match division.all_rows_beside(share) {
            Some(both) => Err(OpenError::Permanent(anyhow::anyhow!("{both}"))),
            None => Ok((no_share, Vec::new())),
        };
    }
    if let Some(mixed) = division.finding(share) {
        return Err(OpenError::Permanent(anyhow::anyhow!("{mixed}")));
    }
    let emptied = division.emptied_findings(inspection, settings);
    if !emptied.is_empty() {
        return Err(OpenError::Permanent(Refusals(emptied).into()));
    }
    let others = sibling_slots::others(sql, share, &division).await?;
    Ok((no_share, others.iter().map(ToString::to_string).collect()))
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
        return Err(OpenError::Permanent(Refusals(refusals).into()));
    }
    // A slot in use is waited for, or it is our own that was.
    let warnings = warnings
        .iter()
        .filter(|finding| finding.kind != Kind::SlotActive);
    Ok(warnings.map(ToString::to_string).collect())
}

/// Status updates that confirm nothing, until the connection is gone.
async fn tell_presence(wal: &mut CopyBoth, interval: Duration) -> ReplicationError {
    let update = StatusUpdate {
        write_lsn: 0.into(),
        flush_lsn: 0.into(),
        apply_lsn: 0.into(),
        reply_requested: false,
    };
    loop {
        tokio::time::sleep(interval).await;
        wal.queue_status(update, clock::postgres_clock_us());
        if let Err(error) = wal.write_some().await {
            return error.into();
        }
    }
}

/// As configured, unless the server endures less.
pub(super) fn status_interval(settings: &Settings, inspection: &Inspection) -> Duration {
    let configured = settings.relay.status_interval;
    let timeout = inspection.server.wal_sender_timeout;
    timeout.map_or(configured, |timeout| {
        configured.min(timeout / STATUS_UPDATES_MISSED_MAX)
    })
}
