//! What `walrelay doctor` finds at Postgres.
//!
//! In: the settings. Out: half of the report. Guarantee: reads only.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::OnceCell;

use super::clock::now_s;
use super::{Found, Report};
use crate::cli::exit::message;
use crate::cli::prune;
use crate::cli::reshard::{alone, of_all_rows};
use crate::postgres::catalog::{Inspection, inspect_server};
use crate::postgres::client::{Client, connect};
use crate::postgres::detached;
use crate::postgres::division;
use crate::postgres::findings::Kind;
use crate::postgres::health::{self, Health};
use crate::postgres::locks::{self, Inspected, Locked};
use crate::postgres::published_rows;
use crate::postgres::row_sizes;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::NOTHING;
use crate::postgres::sibling_slots;
use crate::postgres::unwritten::Unwritten;
use crate::relay::remembered_columns;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

/// So long the rate of the WAL is measured, twice.
const RATE_TIME: Duration = Duration::from_millis(1500);

/// Looks at the database; `rate` of the WAL is measured where nobody has.
///
/// # Errors
/// No connection, or a query that failed.
pub(super) async fn look(settings: &Settings, rate: &OnceCell<f64>) -> anyhow::Result<Report> {
    let postgres = &settings.postgres;
    let client = connect(&postgres.conninfo)
        .await
        .with_context(|| format!("cannot connect to {}", postgres.conninfo))?;
    let mut report = Report::default();
    let inspection = match locks::inspect(&client, postgres).await? {
        Inspected::Seen(mut inspection) => {
            remembered_columns::remember(settings, &mut inspection).await;
            *inspection
        }
        Inspected::Locked(locked) => return beside_lock(&client, postgres, &locked).await,
    };
    report.looked_at.push(server_line(&inspection));
    for (found, table) in inspection.tables().zip(settings.tables()) {
        let filter = found.row_filter().filter(|filter| *filter != NOTHING);
        let filter = filter.map(|filter| {
            format!(
                "publication {}: of {} the rows for which {filter}",
                quote_identifier(&postgres.publication),
                table.postgres.table
            )
        });
        report.looked_at.extend(filter);
    }
    let division = division::division(&client, postgres).await?;
    if let Some(share) = &postgres.share {
        let others = sibling_slots::others(&client, share, &division).await?;
        let mixed = division.finding(share);
        let found = others.into_iter().chain(mixed);
        report.findings.extend(found.map(Found::from));
    }
    if !alone::is_at_work(&client, postgres).await? {
        let share = postgres.any_share();
        let undivided = of_all_rows(settings).await;
        let unfinished = division.unfinished(&share, undivided.as_ref());
        report.findings.extend(unfinished.map(Found::from));
    }
    let both = division.all_rows_beside(&postgres.any_share());
    report.findings.extend(both.map(Found::from));
    let after = settings.outbox.after_publish;
    let of_rows = published_rows::findings(&client, &inspection, postgres, after).await?;
    report.findings.extend(of_rows.into_iter().map(Found::from));
    report.unwritten = Unwritten::of(&inspection, postgres);
    let asked_s = now_s();
    let before = health::health(&client, postgres).await?;
    report.clock("Postgres", before.clock_s, asked_s);
    let measured = rate.get_or_try_init(|| wal_rate(&client, settings, &before));
    let rate = *measured.await?;
    // A relay that runs reads its slot, as it should.
    let found = division::findings_among(&client, &inspection, postgres, &division).await?;
    let found = (found.into_iter()).filter(|finding| finding.kind != Kind::SlotActive);
    let later = health::findings(&inspection, &before, postgres, rate);
    report.findings.extend(found.chain(later).map(Found::from));
    if !may_see_others(&client).await? {
        report.not_seen.push(
            format!(
                "Postgres: transactions of other roles: let a superuser run GRANT pg_read_all_stats TO {};",
                quote_identifier(&inspection.server.role)
            ),
        );
    }
    for (found, table) in inspection.tables().zip(settings.tables()) {
        rows(&client, found, &table, &mut report).await;
        let name = table.postgres.table.to_string();
        // One that is at work drops what it has detached, or attaches it again.
        if !prune::left::is_at_work(&client, &name).await? {
            let left = detached::of(&client, &name).await?;
            if let Some((what, mend)) = detached::told(&name, &left) {
                report.warn("detached", what, Some(mend));
            }
        }
    }
    Ok(report)
}

/// What can be looked at while a table is locked.
async fn beside_lock(
    client: &Client,
    postgres: &PostgresSettings,
    locked: &Locked,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    report.warn("locked", locked.to_string(), Some(locked.mend()));
    let inspection = inspect_server(client, postgres).await?;
    report.looked_at.push(server_line(&inspection));
    let asked_s = now_s();
    let health = health::health(client, postgres).await?;
    report.clock("Postgres", health.clock_s, asked_s);
    // At no rate of the WAL: the time for it went to the wait for the lock.
    let later = health::findings(&inspection, &health, postgres, 0.0);
    report.findings.extend(later.into_iter().map(Found::from));
    report.not_seen.push(format!(
        "Postgres: publication, {} and rights, since {} is locked",
        match postgres.tables().len() {
            1 => "table",
            _ => "tables",
        },
        locked.table()
    ));
    Ok(report)
}

/// How large rows are. Whether the role may look is told as one of its rights.
async fn rows(client: &Client, inspection: &Inspection, settings: &Settings, report: &mut Report) {
    let Some(table) = row_sizes::readable(inspection) else {
        return;
    };
    let missing = row_sizes::missing(table, &settings.postgres);
    if !missing.is_empty() {
        let names: Vec<String> = missing.into_iter().map(quote_identifier).collect();
        report.not_seen.push(format!(
            "Postgres: how large rows of {} are: it has no column {}",
            settings.postgres.table,
            names.join(", ")
        ));
        return;
    }
    match row_sizes::sample(client, table, &settings.postgres).await {
        Ok(Some(sample)) => {
            report.looked_at.push(format!(
                "table {}: {} about {} bytes",
                settings.postgres.table,
                match sample.rows {
                    1 => "its row makes".to_owned(),
                    rows => format!("the largest of {rows} rows makes"),
                },
                sample.bytes_max
            ));
            let largest = report.rows.as_ref();
            if largest.is_none_or(|largest| largest.bytes_max < sample.bytes_max) {
                report.rows = Some(sample);
            }
        }
        Ok(None) => {}
        Err(error) => report.not_seen.push(format!(
            "Postgres: how large rows of {} are: {}",
            settings.postgres.table,
            message(&error.into())
        )),
    }
}

fn server_line(inspection: &Inspection) -> String {
    let server = &inspection.server;
    let version = (server.version_num / 10_000, server.version_num % 10_000);
    let role = if server.in_recovery {
        "standby"
    } else {
        "primary"
    };
    format!(
        "Postgres {}.{}, {role}, database {}, role {}",
        version.0, version.1, server.dbname, server.role
    )
}

/// Bytes of WAL a second: the lower of two measures, since a checkpoint or one large transaction is no rate.
async fn wal_rate(client: &Client, settings: &Settings, before: &Health) -> anyhow::Result<f64> {
    let mut lowest = f64::INFINITY;
    let (mut clock_s, mut wal_bytes) = (before.clock_s, before.wal_bytes);
    for _ in 0..2 {
        tokio::time::sleep(RATE_TIME).await;
        let after = health::health(client, &settings.postgres).await?;
        let written = (after.wal_bytes - wal_bytes).max(0) as f64;
        lowest = lowest.min(written / (after.clock_s - clock_s).max(0.1));
        (clock_s, wal_bytes) = (after.clock_s, after.wal_bytes);
    }
    Ok(lowest)
}

async fn may_see_others(client: &Client) -> anyhow::Result<bool> {
    let sql = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}
