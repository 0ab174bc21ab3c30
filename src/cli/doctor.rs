//! `walrelay doctor`: everything that the relay depends on, or that will hurt later.
//!
//! In: the settings. Out: what was found, why it matters, and what to paste. Guarantees: writes nothing, on no server; ends
//! within 15 seconds, and says what could not be looked at instead of calling it well.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Serialize;

use super::exit::{Exit, message};
use super::stdout::Account;
use crate::nats::admin::Admin;
use crate::nats::stream::{self, StreamFinding, StreamPlan, StreamSeverity};
use crate::pipeline::record::HaltNote;
use crate::pipeline::request::StoredRecord;
use crate::postgres::catalog::{Inspection, inspect};
use crate::postgres::client::{Client, connect};
use crate::postgres::division::Division;
use crate::postgres::findings::{Finding, Kind, Severity, findings};
use crate::postgres::health::{self, Health};
use crate::postgres::share::ROW_FILTERS_SINCE;
use crate::postgres::sibling_slots;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;
use crate::table_name::quote_identifier;

/// Everything together; each side has half of it.
const LIMIT: Duration = Duration::from_secs(14);

/// So long the rate of the WAL is measured, twice.
const RATE_TIME: Duration = Duration::from_millis(1500);

/// What two clocks may differ before latencies mislead, in seconds.
const CLOCK_MAX_S: f64 = 0.5;

const EXAMPLES: &str = "\
Examples:
  walrelay doctor                                 what is wrong, and what will be
  walrelay doctor --json | jq '.findings[].code'

Each finding has a code; docs/doctor.md says more of each. It writes nothing.

Exit code 0: all was looked at, and all is well. 1: it found something. 3: something could not be
looked at, whatever else was found.";

/// Look at everything that the relay depends on
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found; the names are the JSON keys.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What was looked at.
    looked_at: Vec<String>,
    findings: Vec<Found>,
    /// What could not be looked at, and why.
    not_seen: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Found {
    /// Stable.
    code: &'static str,
    /// `refuse`: the relay does not start. `warn`: it does.
    severity: &'static str,
    what: String,
    /// What mends it.
    mend: Option<String>,
}

impl From<Finding> for Found {
    fn from(finding: Finding) -> Self {
        Found {
            code: finding.kind.code(),
            severity: match finding.severity {
                Severity::Refuse => "refuse",
                Severity::Warn => "warn",
            },
            what: finding.what,
            mend: Some(finding.mend),
        }
    }
}

impl From<StreamFinding> for Found {
    fn from(finding: StreamFinding) -> Self {
        Found {
            code: STREAM,
            severity: match finding.severity {
                StreamSeverity::Blocks => "refuse",
                _ => "warn",
            },
            what: finding.message,
            mend: finding.command,
        }
    }
}

impl From<HaltNote> for Found {
    fn from(note: HaltNote) -> Self {
        Found {
            code: "halted",
            severity: "refuse",
            what: format!("a relay halted at {}: {}", note.at, note.reason),
            mend: Some(note.remedy),
        }
    }
}

/// The code of what is wrong with a stream.
const STREAM: &str = "stream";

/// Runs the command.
///
/// # Errors
/// Standard output cannot be written.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let mut report = Report::default();
    let (postgres, nats) = tokio::join!(
        tokio::time::timeout(LIMIT, look_at_postgres(settings)),
        tokio::time::timeout(LIMIT, look_at_nats(settings)),
    );
    report.take("Postgres", postgres);
    report.take("NATS", nats);
    let mut account = Account::default();
    account.line(match args.json {
        true => serde_json::to_string(&report)?,
        false => report.text(),
    });
    account.close()?;
    Ok(
        match (report.findings.is_empty(), report.not_seen.is_empty()) {
            (_, false) => Exit::Unchecked,
            (false, true) => Exit::Failed,
            (true, true) => Exit::Done,
        },
    )
}

type Look = Result<anyhow::Result<Report>, tokio::time::error::Elapsed>;

impl Report {
    fn take(&mut self, side: &str, look: Look) {
        match look {
            Ok(Ok(found)) => {
                self.looked_at.extend(found.looked_at);
                self.findings.extend(found.findings);
                self.not_seen.extend(found.not_seen);
            }
            Ok(Err(error)) => self.not_seen.push(format!("{side}: {}", message(&error))),
            Err(_) => self
                .not_seen
                .push(format!("{side}: no answer within {} s", LIMIT.as_secs())),
        }
    }

    fn text(&self) -> String {
        let mut lines: Vec<String> = self
            .looked_at
            .iter()
            .map(|what| format!("ok        {what}"))
            .collect();
        for found in &self.findings {
            lines.push(format!(
                "{:<8}  {} [{}]",
                found.severity, found.what, found.code
            ));
            lines.extend(found.mend.iter().map(|mend| format!("          {mend}")));
        }
        let unseen = self.not_seen.iter();
        lines.extend(unseen.map(|what| format!("not seen  {what}")));
        lines.push(match (self.findings.len(), self.not_seen.len()) {
            (0, 0) => "All is well.".to_owned(),
            (found, 0) => format!("{found} found."),
            (found, unseen) => format!("{found} found, {unseen} not looked at."),
        });
        lines.join("\n")
    }

    fn warn(&mut self, code: &'static str, what: String, mend: Option<String>) {
        self.findings.push(Found {
            code,
            severity: "warn",
            what,
            mend,
        });
    }
}

async fn look_at_postgres(settings: &Settings) -> anyhow::Result<Report> {
    let postgres = &settings.postgres;
    let client = connect(&postgres.conninfo)
        .await
        .with_context(|| format!("cannot connect to {}", postgres.conninfo))?;
    let mut report = Report::default();
    let inspection = inspect(&client, postgres).await?;
    report.looked_at.push(server_line(&inspection));
    if let Some(share) = &postgres.share
        && inspection.server.version_num >= ROW_FILTERS_SINCE
    {
        let division = Division::look(&client, postgres).await?.unwrap_or_default();
        let others = sibling_slots::others(&client, share, &division).await?;
        let mixed = division.finding(share);
        let found = others.into_iter().chain(mixed);
        report.findings.extend(found.map(Found::from));
    }
    let (before, at) = (health::health(&client, postgres).await?, now_s());
    let rate = wal_rate(&client, settings, &before).await?;
    // A relay that runs reads its slot, as it should.
    let found = findings(&inspection, postgres).into_iter();
    let found = found.filter(|finding| finding.kind != Kind::SlotActive);
    let later = health::findings(&inspection, &before, postgres, rate);
    report.findings.extend(found.chain(later).map(Found::from));
    if before.oldest_transaction.is_none() && !may_see_others(&client).await? {
        report.not_seen.push(
            format!(
                "Postgres: transactions of other roles: let a superuser run GRANT pg_read_all_stats TO {};",
                quote_identifier(&inspection.server.role)
            ),
        );
    }
    clock("Postgres", before.clock_s - at, &mut report);
    Ok(report)
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

fn now_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Latencies are made of two machines' clocks.
fn clock(side: &str, ahead_s: f64, report: &mut Report) {
    if ahead_s.abs() > CLOCK_MAX_S {
        report.warn(
            "clock",
            format!(
                "the clock of {side} is {:.1} s {} this machine's: latencies and times of events mislead by as much",
                ahead_s.abs(),
                if ahead_s > 0.0 { "ahead of" } else { "behind" }
            ),
            Some("let NTP (chrony, systemd-timesyncd) run on both machines".to_owned()),
        );
    }
}

async fn look_at_nats(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let client = Admin::connect(&settings.nats.connection).await?;
    let version = client.server_version()?;
    report.looked_at.push(format!("nats-server {version}"));
    let wanted = settings.nats.stream_settings(&settings.postgres.slot);
    match stream_fit::plan(&client, &wanted).await? {
        StreamPlan::Exists { info, findings } => {
            report.looked_at.push(format!(
                "stream {}: {} messages, {} bytes, {} replica(s), {}",
                wanted.name,
                info.state.messages,
                info.state.bytes,
                info.config.num_replicas,
                info.config.storage
            ));
            report
                .findings
                .extend(findings.into_iter().map(Found::from));
        }
        StreamPlan::Create(_) => report.missing(&wanted.name),
    }
    match stream::plan_lane_records(&client, 1).await? {
        StreamPlan::Exists { findings, .. } => {
            report
                .findings
                .extend(findings.into_iter().map(Found::from));
        }
        StreamPlan::Create(_) => report.missing(stream::LANE_RECORD_STREAM),
    }
    let lane = LaneClient::new(&client, &wanted.name, &settings.postgres.slot)?;
    let stored = match lane.record().await {
        Err(LaneError::NoStream(_)) => StoredRecord::default(),
        stored => stored?,
    };
    let halted = stored.halted().cloned();
    report.findings.extend(halted.map(Found::from));
    Ok(report)
}

impl Report {
    fn missing(&mut self, stream: &str) {
        self.findings.push(Found {
            code: STREAM,
            severity: "refuse",
            what: format!("there is no stream {stream}"),
            mend: Some("run walrelay setup".to_owned()),
        });
    }
}
