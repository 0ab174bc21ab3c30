//! The catalog while an epoch streams: does the publication still carry the table, and how much WAL may the slot keep?
//!
//! In: what the epoch found at its start. Out: a [`Look`] every five seconds, or the [`Fault`] that ends the epoch.
//! Needed because Postgres passes over the rows of a table that is not in the publication, and says nothing in the WAL.
//! A look that fails says nothing either: whether the server is there is the replication connection's business.

use crate::pipeline::fault::Fault;
use crate::pipeline::progress::WalRoom;
use crate::pipeline::record::Carrier;
use crate::postgres::catalog::{self, Inspection};
use crate::postgres::client::{self, Client, SqlError};
use crate::postgres::findings::{Kind, Severity, findings};
use crate::postgres::processes;
use crate::postgres::settings::PostgresSettings;
use postgres_types::PgLsn;
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// A look that takes longer is given up, its connection too.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// What a look has found, with everything in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What carries the table's rows, still the same.
    pub carrier: Carrier,
    /// What the slot may keep now.
    pub room: WalRoom,
    /// The walsender is in the middle of a transaction of which it sends nothing, and answers nothing meanwhile.
    pub is_decoding: bool,
    /// End of the server's WAL.
    pub server_lsn: PgLsn,
    /// What the slot has confirmed.
    pub confirmed_lsn: Option<PgLsn>,
}

/// What the slot may keep, by what the server says.
pub fn wal_room(inspection: &Inspection) -> WalRoom {
    let slot = inspection.slot.as_ref();
    WalRoom {
        limit_bytes: inspection.server.max_slot_wal_keep_bytes,
        // Below zero the next checkpoint takes the slot.
        free_bytes: slot
            .and_then(|slot| slot.safe_wal_size)
            .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
    }
}

/// Looks from a task of its own, which ends with this value.
#[derive(Debug)]
pub struct Watch {
    looks: mpsc::Receiver<Result<Look, Fault>>,
}

impl Watch {
    /// Begins to look, through `sql`, for changes since `first`, and at the walsender.
    pub fn start(
        sql: Client,
        settings: PostgresSettings,
        first: Inspection,
        walsender_pid: i32,
    ) -> Watch {
        let (sender, looks) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = look_on(sql, &settings, &first, walsender_pid, &sender) => {}
                () = sender.closed() => {}
            }
        });
        Watch { looks }
    }

    /// The next look. Safe to drop and call again.
    ///
    /// # Errors
    /// The rows are no longer carried, or something that carries them was changed.
    pub async fn look(&mut self) -> Result<Look, Fault> {
        match self.looks.recv().await {
            Some(look) => look,
            None => std::future::pending().await,
        }
    }
}

async fn look_on(
    sql: Client,
    settings: &PostgresSettings,
    first: &Inspection,
    walsender_pid: i32,
    sender: &mpsc::Sender<Result<Look, Fault>>,
) {
    let mut sql = Some(sql);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let looking = view(&mut sql, settings, first, walsender_pid);
        let viewed = tokio::time::timeout(LOOK_LIMIT, looking).await;
        let view = match viewed {
            Ok(Ok(view)) => view,
            failed => {
                sql = None;
                tracing::debug!(?failed, "could not look at the catalog");
                continue;
            }
        };
        let look = judge(first, &view, settings).map(|verdict| {
            verdict.map(|carrier| Look {
                carrier,
                room: wal_room(&view.inspection),
                is_decoding: view.is_decoding,
                server_lsn: view.inspection.server.current_lsn,
                confirmed_lsn: view.inspection.confirmed_lsn(),
            })
        });
        if let Some(look) = look
            && sender.send(look).await.is_err()
        {
            return;
        }
    }
}

/// The catalog at a look.
#[derive(Debug)]
struct View {
    inspection: Inspection,
    /// The table of the epoch's start is there, if under another name.
    has_table: bool,
    is_decoding: bool,
}

async fn view(
    sql: &mut Option<Client>,
    settings: &PostgresSettings,
    first: &Inspection,
    walsender_pid: i32,
) -> Result<View, SqlError> {
    let client = match sql.take() {
        Some(client) => client,
        None => client::connect(&settings.conninfo).await?,
    };
    let inspection = catalog::inspect(&client, settings).await?;
    let has_table = match (&inspection.table, &first.table) {
        (None, Some(table)) => catalog::has_relation(&client, table.oid).await?,
        (table, _) => table.is_some(),
    };
    let is_decoding = processes::is_decoding(&client, walsender_pid).await?;
    *sql = Some(client);
    Ok(View {
        inspection,
        has_table,
        is_decoding,
    })
}

/// What a look says; `None` where it says nothing: the table has another name for the moment (its rows are known by the
/// table's oid), or the session came to another server of the list, a standby that may be behind.
fn judge(
    first: &Inspection,
    view: &View,
    settings: &PostgresSettings,
) -> Option<Result<Carrier, Fault>> {
    let now = &view.inspection;
    let is_renamed = now.table.is_none() && view.has_table;
    if is_renamed || now.server.in_recovery != first.server.in_recovery {
        return None;
    }
    let hides_rows = |kind| {
        matches!(
            kind,
            Kind::PublicationMissing
                | Kind::PublicationMismatch
                | Kind::TableMissing
                | Kind::TableMismatch
        )
    };
    let refusals: Vec<String> = findings(now, settings)
        .iter()
        .filter(|finding| finding.severity == Severity::Refuse && hides_rows(finding.kind))
        .map(ToString::to_string)
        .collect();
    if !refusals.is_empty() {
        return Some(Err(Fault::Unready(refusals.join("; "))));
    }
    let (before, now) = (first.carrier.as_ref()?, now.carrier.as_ref()?);
    Some(match before.change(now) {
        Some(_) => Err(Fault::Carrier),
        None => Ok(now.clone()),
    })
}
