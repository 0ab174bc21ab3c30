//! What `walrelay doctor` finds at NATS.
//!
//! In: the settings. Out: half of the report. Guarantee: reads only.

use std::{slice, time::Duration};

use super::clock::now_s;
use super::{Found, Report};
use crate::cli::exit::message;
use crate::cli::move_lane::left_subject;
use crate::cli::setup;
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stream::account::Wanted;
use crate::nats::stream::{
    self, STREAM, StreamFinding, StreamPlan, StreamSettings, limits, untaken,
};
use crate::pipeline::dead_letter;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::position::{KIND_HEADER, KIND_MOVED};
use crate::pipeline::record::{LaneRecord, Moved};
use crate::pipeline::request::StoredRecord;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

/// Looks at the streams.
///
/// # Errors
/// No connection, or a stream that does not answer.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let client = Admin::connect(&settings.nats.connection).await?;
    let version = client.server_version()?;
    report.looked_at.push(format!("nats-server {version}"));
    let wanted = settings.nats.stream_settings(&settings.postgres.slot);
    let (mut replicas, mut storage) = (wanted.num_replicas, "file".to_owned());
    let (mut there, mut missing) = (Vec::new(), 0);
    let asked_s = now_s();
    match stream_fit::plan(&client, &wanted).await {
        Err(error) => {
            let leaderless = error.leaderless().ok_or(error)?;
            report.of_stream(&wanted.name, vec![leaderless]);
        }
        Ok(StreamPlan::Exists { info, findings }) => {
            (replicas, storage) = (info.config.num_replicas, info.config.storage.clone());
            let max_payload = client.client().server_info().max_payload;
            let limit = SizeLimit::smaller(max_payload, info.config.message_bytes_max());
            report.limit = Some((limit, wanted.name.clone()));
            if let Some(server_s) = info.ts.as_deref().and_then(seconds) {
                report.clock("NATS", server_s, asked_s);
            }
            report.looked_at.push(format!(
                "stream {}: {}, {} bytes, {}, {}",
                wanted.name,
                counted(info.state.messages, "message", "messages"),
                info.state.bytes,
                counted(info.config.num_replicas as u64, "replica", "replicas"),
                info.config.storage
            ));
            let now = info.ts.as_deref().and_then(seconds);
            let first = info.state.first_ts.as_deref().and_then(seconds);
            let reach = now.zip(first).map(|(now, first)| now - first);
            let reach = reach.and_then(|reach| Duration::try_from_secs_f64(reach).ok());
            report.of_stream(&wanted.name, findings);
            let removed = limits::below(&info, settings.relay.hold_back, reach);
            report.of_stream(&wanted.name, removed);
            there.push(*info);
        }
        Ok(StreamPlan::Create(_)) => {
            missing += 1;
            report.missing(&wanted.name);
            report.taken(&client, &wanted, settings).await;
        }
    }
    match stream::plan_lane_records(&client, 1).await? {
        StreamPlan::Exists { info, findings } => {
            report.of_stream(stream::LANE_RECORD_STREAM, findings);
            there.push(*info);
        }
        StreamPlan::Create(_) => {
            missing += 1;
            report.missing(stream::LANE_RECORD_STREAM);
        }
    }
    let lane = LaneClient::new(&client, &wanted.name, &settings.postgres.slot)?;
    let stored = match lane.record().await {
        Err(LaneError::NoStream(_)) => StoredRecord::default(),
        stored => stored?,
    };
    let moved = |record: &LaneRecord| matches!(record.moved, Some(Moved::To { .. }));
    let is_elsewhere = stored.record.as_ref().is_some_and(moved);
    if is_elsewhere {
        // What the stream is like matters to nobody: the lane is elsewhere, or it cannot leave.
        report.findings.clear();
        if let Some(info) = there.iter().find(|info| info.config.name == wanted.name) {
            let held = held_back(&lane, info).await?;
            report.of_stream(&wanted.name, held.into_iter().collect());
        }
    }
    report.halted = stored.halted().cloned();
    if let Some(record) = &stored.record {
        report.version(record);
    }
    report.record = (!is_elsewhere).then(|| stored.record.map(Box::new));
    match stream::account(&client).await {
        Ok(account) => {
            let wanted = Wanted {
                replicas,
                storage: &storage,
                there: &there,
                missing,
            };
            report.looked_at.extend(account.text(&wanted));
            let found = account.findings(&wanted);
            report.findings.extend(found.into_iter().map(Found::from));
        }
        Err(error) => report.not_seen.push(format!(
            "NATS: the account's limits: {}",
            message(&error.into())
        )),
    }
    Ok(report)
}

/// Why a move that has begun cannot end the lane in this stream: it does not take the message that does.
async fn held_back(lane: &LaneClient, info: &StreamInfo) -> anyhow::Result<Option<StreamFinding>> {
    let subject = dead_letter::subject(lane.slot());
    let config = &info.config;
    let is_left = config.sealed || config.subjects == [left_subject(&config.name)];
    let Some(finding) = untaken(config, slice::from_ref(&subject)).filter(|_| !is_left) else {
        return Ok(None);
    };
    let last = lane.message(Lookup::Last(&subject)).await?;
    let is_ended = last.is_some_and(|last| last.header_text(KIND_HEADER) == Some(KIND_MOVED));
    Ok((!is_ended).then(|| StreamFinding {
        message: format!(
            "{}, on which walrelay move ends the lane there",
            finding.message
        ),
        command: finding
            .command
            .map(|command| format!("{command}; then run walrelay move again")),
        ..finding
    }))
}

/// Seconds since 1970 of a time in RFC 3339.
fn seconds(time: &str) -> Option<f64> {
    let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
    Some(time.timestamp_micros() as f64 / 1e6)
}

impl Report {
    fn of_stream(&mut self, name: &str, findings: Vec<StreamFinding>) {
        let found = findings.into_iter().map(Found::from);
        self.findings.extend(found.map(|found| Found {
            what: format!("stream {name}: {}", found.what),
            ..found
        }));
    }

    /// Subjects that another stream has, so that setup could not make this one.
    async fn taken(&mut self, client: &Admin, wanted: &StreamSettings, lane: &Settings) {
        match setup::taken(client, wanted, lane).await {
            Ok(found) => self.findings.extend(found.into_iter().map(Found::from)),
            Err(error) => self.not_seen.push(format!(
                "NATS: whether another stream has the subjects: {}",
                message(&error.into())
            )),
        }
    }

    /// A relay of another version than this command.
    fn version(&mut self, record: &LaneRecord) {
        let ours = env!("CARGO_PKG_VERSION");
        let others = record.walrelay.as_deref().unwrap_or("an older one");
        // What has stopped may be on its way to the next version.
        if record.active && others != ours {
            self.warn(
                "version",
                format!(
                    "the relay of this lane is walrelay {others}, and this is {ours}: they may judge lane and streams by other rules"
                ),
                Some(format!(
                    "stop the relay, install walrelay {ours} there, and start it again; or run this with the relay's version"
                )),
            );
        }
    }

    fn missing(&mut self, stream: &str) {
        self.findings.push(Found {
            code: STREAM,
            severity: "refuse",
            what: format!("there is no stream {stream}"),
            mend: Some("run walrelay setup".to_owned()),
        });
    }
}
