//! `walrelay doctor`: everything that the relay depends on, or that will hurt later.
//!
//! In: the settings of each lane. Out: what was found, why it matters, and what to paste, in the order of the shares. Guarantees: writes
//! nothing, on no server; ends within 15 seconds, whatever the number of shares, and says what could not be looked at instead of calling it
//! well.

use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use super::exit::{Exit, message};
use super::exposed::exposed;
use super::foreseen;
use super::lanes;
use super::stdout::Account;
use crate::config::Loaded;
use crate::nats::stream::{StreamFinding, StreamSeverity, edits};
use crate::pipeline::begin::Begin;
use crate::pipeline::fault::Halt;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::record::{HaltNote, LaneRecord};
use crate::postgres::findings::{Finding, Severity};
use crate::postgres::row_sizes::Sample;
use crate::postgres::unwritten::Unwritten;
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

mod bulk_work;
mod clock;
mod letters;
mod monitoring;
mod nats;
mod postgres;
mod start;

use monitoring::Monitoring;

/// The code of a secret that every user of the machine may read.
const EXPOSED: &str = "exposed";

/// The code of what a relay halts at.
const HALTED: &str = "halted";
/// Of that it halts at, what has a code of its own.
const NO_BEGINNING: &str = "no-beginning";

/// Everything together, of all lanes; each side has half of it.
const LIMIT: Duration = Duration::from_secs(14);
/// Lanes that are looked at beside each other: each takes three sessions of Postgres and four connections of NATS meanwhile.
const LANES_AT_ONCE: usize = 8;
/// All hosts of a list together, of which none answers.
const CONNECT_LIMIT: Duration = Duration::from_secs(12);

const EXAMPLES: &str = "\
Examples:
  walrelay doctor                                 what is wrong, and what will be
  walrelay doctor --json | jq '.findings[].code'
  walrelay doctor --nats-monitoring localhost:8222   JetStream's sync_interval too

Each finding has a code; docs/doctor.md says more of each. It writes nothing.

Exit code 0: all was looked at, and all is well. 1: it found something. 3: something could not be
looked at, whatever else was found.";

/// Look at everything that the relay depends on
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object a line: of an outbox with shares, one for each share.
    #[arg(long)]
    json: bool,

    /// The monitoring port of nats-server, which alone tells JetStream's sync_interval
    #[arg(long, value_name = "HOST:PORT")]
    nats_monitoring: Option<Monitoring>,
}

/// What was found; the names are the JSON keys.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What was looked at.
    looked_at: Vec<String>,
    findings: Vec<Found>,
    /// What could not be looked at, and why.
    not_seen: Vec<String>,
    /// What nobody has asked for, and how to.
    not_asked: Vec<String>,
    /// The largest of some rows.
    #[serde(skip)]
    rows: Option<Sample>,
    /// How large a message may be, and the stream's name.
    #[serde(skip)]
    limit: Option<(SizeLimit, String)>,
    /// Why the last relay has halted.
    #[serde(skip)]
    halted: Option<HaltNote>,
    /// Why one that starts now would.
    #[serde(skip)]
    foreseen: Option<Halt>,
    /// Where the slot begins is not written down.
    #[serde(skip)]
    unwritten: Option<Unwritten>,
    /// The lane's record, where NATS has told: none of one that is elsewhere.
    #[serde(skip)]
    record: Option<Option<Box<LaneRecord>>>,
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
            code: finding.code,
            severity: match finding.severity {
                StreamSeverity::Blocks => "refuse",
                _ => "warn",
            },
            what: finding.message,
            mend: finding.command,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Standard output cannot be written.
pub async fn execute_all(args: &Args, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    let common = Common {
        until: Instant::now() + LIMIT,
        wal_rate: OnceCell::new(),
    };
    let looks = stream::iter(&loaded.lanes).map(|lane| look(args, lane, loaded, &common));
    let mut reports = pin!(looks.buffered(LANES_AT_ONCE));
    let mut gravest = Exit::Done;
    for lane in &loaded.lanes {
        let report = reports.next().await.context("each lane is looked at")?;
        lanes::name(loaded, lane);
        let mut account = Account::default();
        account.line(match args.json {
            true => serde_json::to_string(&report)?,
            false => report.text(),
        });
        account.close()?;
        gravest = gravest.graver(report.exit());
    }
    Ok(gravest)
}

/// What the looks at all lanes have in common.
struct Common {
    /// What has not answered by then is not seen.
    until: Instant,
    /// Bytes of WAL a second, of which the first lane that comes to it takes the measure.
    wal_rate: OnceCell<f64>,
}

/// Looks at what one lane depends on.
async fn look(args: &Args, settings: &Settings, loaded: &Loaded, common: &Common) -> Report {
    let settings = &in_time(settings);
    let mut report = Report::default();
    for exposed in exposed(&loaded.secret_files) {
        report.warn(EXPOSED, exposed.what(), Some(exposed.mend()));
    }
    let until = common.until;
    let (postgres, nats, monitoring, letters, bulk_work, start) = tokio::join!(
        timeout_at(until, postgres::look(settings, &common.wal_rate)),
        timeout_at(until, nats::look(settings)),
        timeout_at(
            until,
            monitoring::look(args.nats_monitoring.clone(), settings)
        ),
        timeout_at(until, letters::look(settings)),
        timeout_at(until, bulk_work::look(settings)),
        timeout_at(until, start::look(settings)),
    );
    report.take("Postgres", postgres);
    report.take("NATS", nats);
    report.take("monitoring of NATS", monitoring);
    report.take("dead letters", letters);
    report.take("commands beside the relay", bulk_work);
    // What keeps those from seeing keeps this from seeing.
    if !unseen_why(&start).is_some_and(|why| report.has_told(&why)) {
        report.take("what a start would halt at", start);
    }
    if let Some((limit, stream)) = report.limit.take() {
        let rows = report.rows.unwrap_or_default();
        let large = stream_fit::rows(&stream, limit, rows.rows, rows.bytes_max);
        report.findings.extend(large.map(Found::from));
    }
    report.halts(settings);
    if let (Some(unwritten), Some(record)) = (report.unwritten.take(), report.record.take()) {
        let begin = Begin::of(record.as_deref(), unwritten.confirmed_lsn);
        report.findings.push(unwritten.finding(begin).into());
    }
    edits::together(report.findings.iter_mut().filter_map(|it| it.mend.as_mut()));
    report
}

/// With so little time for each host that all of a list are asked.
fn in_time(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    let share = |hosts: usize| CONNECT_LIMIT / u32::try_from(hosts.max(1)).unwrap_or(u32::MAX);
    let nats = &mut settings.nats.connection;
    nats.connect_timeout = nats.connect_timeout.min(share(nats.servers.len()));
    let postgres = &mut settings.postgres.conninfo;
    let limit = share(postgres.hosts.len());
    postgres.connect_timeout = postgres.connect_timeout.min(limit);
    settings
}

type Look = Result<anyhow::Result<Report>, tokio::time::error::Elapsed>;

/// Why it could not be looked.
fn unseen_why(look: &Look) -> Option<String> {
    match look {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(message(error)),
        Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

impl Report {
    /// What the command ends with.
    fn exit(&self) -> Exit {
        match (self.findings.is_empty(), self.not_seen.is_empty()) {
            (_, false) => Exit::Unchecked,
            (false, true) => Exit::Failed,
            (true, true) => Exit::Done,
        }
    }

    fn take(&mut self, side: &str, look: Look) {
        if let Some(why) = unseen_why(&look) {
            self.unseen(side, &why);
        }
        if let Ok(Ok(found)) = look {
            self.looked_at.extend(found.looked_at);
            self.findings.extend(found.findings);
            self.not_seen.extend(found.not_seen);
            self.not_asked.extend(found.not_asked);
            self.rows = self.rows.or(found.rows);
            self.limit = self.limit.take().or(found.limit);
            self.halted = self.halted.take().or(found.halted);
            self.foreseen = self.foreseen.take().or(found.foreseen);
            self.unwritten = self.unwritten.take().or(found.unwritten);
            self.record = self.record.take().or(found.record);
        }
    }

    /// Whether a look has not seen for this reason.
    fn has_told(&self, why: &str) -> bool {
        let behind = format!(": {why}");
        self.not_seen.iter().any(|told| told.ends_with(&behind))
    }

    /// What a relay has halted at, and what one would halt at that starts now.
    fn halts(&mut self, settings: &Settings) {
        let foreseen = self.foreseen.take();
        let is_other = matches!(foreseen, Some(Halt::OtherLane { .. }));
        let to_come = foreseen.map(|halt| (halt.name(), foreseen::note(&halt, settings)));
        // The record of another database is not about this lane.
        let halted = self.halted.take().filter(|_| !is_other);
        if let Some(note) = &halted {
            self.findings.push(Found {
                code: HALTED,
                severity: "refuse",
                what: format!("a relay halted at {}: {}", note.at, note.reason),
                mend: Some(note.remedy.clone()),
            });
        }
        let to_come = to_come.filter(|(_, note)| halted.is_none_or(|it| !it.is_same(note)));
        self.findings.extend(to_come.map(|(name, note)| Found {
            code: match name {
                NO_BEGINNING => NO_BEGINNING,
                _ => HALTED,
            },
            severity: "refuse",
            what: format!("a relay that starts now would halt: {}", note.reason),
            mend: Some(note.remedy),
        }));
    }

    /// What keeps several looks from seeing is told once.
    fn unseen(&mut self, side: &str, why: &str) {
        let behind = format!(": {why}");
        let same = self.not_seen.iter_mut().find_map(|told| {
            let sides = told.strip_suffix(&behind)?.len();
            Some((told, sides))
        });
        match same {
            Some((told, sides)) => told.insert_str(sides, &format!(", {side}")),
            None => self.not_seen.push(format!("{side}{behind}")),
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
        let unasked = self.not_asked.iter();
        lines.extend(unasked.map(|what| format!("not asked {what}")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_several_looks_from_seeing_is_told_once() {
        let mut report = Report::default();
        report.unseen("Postgres", "no answer");
        report.unseen("NATS", "permission denied: add it");
        report.unseen("dead letters", "permission denied: add it");
        assert_eq!(
            report.not_seen,
            [
                "Postgres: no answer",
                "NATS, dead letters: permission denied: add it"
            ]
        );
    }
}
