//! What a relay that starts now would halt at, and what waits for one.
//!
//! In: the settings. Out: the halt, if there is one; else rows that nobody reads from the slot.

use std::time::Duration;

use anyhow::Context as _;
use postgres_types::PgLsn;

use super::{Found, Report};
use crate::cli::exit::message;
use crate::cli::foreseen;
use crate::cli::verify::slot::{Held, Look};
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::pipeline::position::Position;
use crate::postgres::catalog::Inspection;
use crate::postgres::client::{Client, connect};
use crate::postgres::division;
use crate::postgres::locks::{self, Inspected};
use crate::postgres::publications::publication_list;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::open;
use crate::relay::settings::Settings;

/// The code of rows that nobody reads.
const WAITING: &str = "waiting";
/// So long a relay that is started anew may leave them.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Postgres gives the look up so soon: it decodes all that the slot holds.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Looks as a start does.
///
/// # Errors
/// Postgres or NATS cannot be asked.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let postgres = &settings.postgres;
    let (client, nats) = tokio::join!(
        connect(&postgres.conninfo),
        Admin::connect(&settings.nats.connection)
    );
    let conninfo = &postgres.conninfo;
    let client = client.with_context(|| format!("cannot connect to {conninfo}"))?;
    let nats = nats?;
    let Inspected::Seen(inspection) = locks::inspect(&client, postgres).await? else {
        return Ok(Report::default());
    };
    let division = division::division(&client, postgres).await?;
    let mut report = Report {
        foreseen: foreseen::halt(settings, &client, &inspection, &division, &nats).await?,
        ..Report::default()
    };
    if report.foreseen.is_none() && is_readable(&inspection) {
        match waiting(settings, &client, &inspection, &nats).await {
            Ok(found) => report.findings.extend(found),
            Err(error) => report.not_seen.push(format!(
                "Postgres: whether rows wait in slot {}: {}",
                postgres.slot,
                message(&error)
            )),
        }
    }
    Ok(report)
}

/// Whether nobody reads the slot, and a relay could.
fn is_readable(inspection: &Inspection) -> bool {
    let is_free = inspection.slot.as_ref().is_some_and(|slot| {
        let is_ours = slot.database.as_ref() == Some(&inspection.server.dbname);
        is_ours && slot.active_pid.is_none() && !slot.is_lost()
    });
    let server = &inspection.server;
    let has_tables = inspection.tables().all(|found| found.table.is_some());
    is_free
        && has_tables
        && inspection.publication.is_some()
        && server.may_replicate
        && !server.in_recovery
}

/// Rows behind the lane's end that the slot holds.
#[derive(Default)]
struct Waiting {
    rows: u64,
    /// When the first of them was committed, in µs since 2000-01-01 UTC.
    first_us: Option<i64>,
}

/// Rows that nobody reads from the slot, as `verify` finds those that are pending.
async fn waiting(
    settings: &Settings,
    client: &Client,
    inspection: &Inspection,
    nats: &Admin,
) -> anyhow::Result<Option<Found>> {
    let postgres = &settings.postgres;
    let lane = LaneClient::new(nats, &settings.nats.stream, &postgres.slot)?;
    let end = match lane.reach(&settings.nats).await {
        // What is missing is told, and why nothing is published.
        Err(LaneError::NoStream(_)) | Ok(Err(_)) => return Ok(None),
        reach => reach?.ok().flatten().map(|end| end.position),
    };
    let record = lane.record().await?.record;
    let (tables, named) = match &record {
        Some(record) => (&record.tables[..], &record.publications[..]),
        None => (&[][..], &[][..]),
    };
    let confirmed_lsn = inspection.confirmed_lsn().unwrap_or(PgLsn::from(0));
    let source = open::source(inspection, settings).continued(tables, confirmed_lsn);
    let publications = publication_list(client, postgres, inspection, named).await?;
    let limit = format!("SET statement_timeout = {}", LOOK_LIMIT.as_millis());
    client.batch_execute(&limit).await?;
    let server = &inspection.server;
    let mut waiting = Waiting::default();
    let take = |held: Held<'_>| {
        waiting.take(held.position, held.committed_at_us, end);
        Ok(())
    };
    let is_whole = Look::Inside
        .peek(
            client,
            postgres,
            &publications,
            source,
            server.current_lsn,
            take,
        )
        .await?;
    // A relay has come.
    let Some(age) = waiting.age(server.clock.us).filter(|_| is_whole) else {
        return Ok(None);
    };
    Ok((age > WAIT_MAX).then(|| Found {
        code: WAITING,
        severity: "warn",
        what: format!(
            "nobody reads slot {}, and it holds {} for the stream, the oldest committed {} ago",
            postgres.slot,
            counted(waiting.rows, "row", "rows"),
            humantime::format_duration(Duration::from_secs(age.as_secs()))
        ),
        mend: Some(
            "start walrelay run; one that runs tells in its log what it waits for".to_owned(),
        ),
    }))
}

impl Waiting {
    fn take(&mut self, position: Position, committed_at_us: i64, end: Option<Position>) {
        if end.is_some_and(|end| position <= end) {
            return;
        }
        self.rows += 1;
        // A replication origin may have set no time, which is 0.
        if committed_at_us > 0 {
            let first_us = self.first_us.get_or_insert(committed_at_us);
            *first_us = committed_at_us.min(*first_us);
        }
    }

    fn age(&self, now_us: i64) -> Option<Duration> {
        let us = now_us.saturating_sub(self.first_us?).max(0);
        Some(Duration::from_micros(us.unsigned_abs()))
    }
}
