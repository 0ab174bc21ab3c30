//! How an existing stream fits the relay, and whether there is a way to publish to it.
//!
//! In: its configuration, the settings, the server's version. Out: findings, the worst first. `setup` and `run` ask here, so
//! that both refuse the same.

use crate::nats::admin::Admin;
use crate::nats::api::{StreamConfig, StreamInfo};
use crate::nats::protocol::ServerVersion;
use crate::nats::stream::{
    self, StreamError, StreamFinding, StreamPlan, StreamSettings, StreamSeverity, edits, standing,
};
use crate::pipeline::limit::{Limiter, SizeLimit};
use crate::pipeline::publish::{Mode, NoMode, Offer};
use crate::pipeline::request::Unfit;

/// The code of rows that are large beside what NATS takes.
const MESSAGE_SIZE: &str = "message-size";

/// What of an existing stream does not fit the settings.
pub fn findings(
    config: &StreamConfig,
    settings: &StreamSettings,
    version: ServerVersion,
) -> Vec<StreamFinding> {
    let mut found = stream::findings(config, settings, version);
    found.extend(no_way(config, settings.shared, version));
    found.sort_by_key(|finding| finding.severity);
    by_one_command(&mut found);
    found
}

fn by_one_command(findings: &mut [StreamFinding]) {
    edits::together(findings.iter_mut().filter_map(|it| it.command.as_mut()));
}

/// The findings of one severity, as a running relay tells them.
pub fn texts(
    config: &StreamConfig,
    settings: &StreamSettings,
    version: ServerVersion,
    severity: StreamSeverity,
) -> Vec<String> {
    told(config, &findings(config, settings, version), severity)
}

/// What of a stream is a risk, or slow: of its configuration and its state.
pub(crate) fn warnings(
    info: &StreamInfo,
    settings: &StreamSettings,
    version: ServerVersion,
) -> Vec<String> {
    let mut found = findings(&info.config, settings, version);
    found.extend(standing::findings(info));
    by_one_command(&mut found);
    told(&info.config, &found, StreamSeverity::Warns)
}

/// As [`texts`], of the stream of the lanes' records.
pub(crate) fn record_texts(config: &StreamConfig, severity: StreamSeverity) -> Vec<String> {
    told(config, &stream::lane_record_findings(config), severity)
}

fn told(
    config: &StreamConfig,
    findings: &[StreamFinding],
    severity: StreamSeverity,
) -> Vec<String> {
    let mut told: Vec<(String, &Option<String>)> = Vec::new();
    for finding in findings.iter().filter(|it| it.severity == severity) {
        let same = |(_, command): &&mut (String, &Option<String>)| {
            finding.command.is_some() && **command == finding.command
        };
        match told.iter_mut().find(same) {
            Some((messages, _)) => {
                messages.push_str("; ");
                messages.push_str(&finding.message);
            }
            None => told.push((finding.message.clone(), &finding.command)),
        }
    }
    let each = told.into_iter().map(|(messages, command)| {
        let command = command.as_ref();
        let command = command.map_or_else(String::new, |command| format!(": {command}"));
        format!("stream {}: {messages}{command}", config.name)
    });
    each.collect()
}

/// Why the relay must not publish to the stream as it is configured now, or confirm by what it answers.
pub fn unfit(
    config: &StreamConfig,
    settings: &StreamSettings,
    version: ServerVersion,
) -> Option<Unfit> {
    let refused = texts(config, settings, version, StreamSeverity::Blocks);
    (!refused.is_empty()).then(|| Unfit {
        reason: refused.join("; "),
        drops: config.retention == "interest",
    })
}

/// Looks whether the events' stream exists, and how it fits.
///
/// # Errors
/// See [`stream::plan`].
pub async fn plan(client: &Admin, settings: &StreamSettings) -> Result<StreamPlan, StreamError> {
    let mut plan = stream::plan(client, settings).await?;
    if let StreamPlan::Exists { info, findings } = &mut plan {
        let version = client.server_version()?;
        *findings = self::findings(&info.config, settings, version);
        findings.extend(standing::findings(info));
        by_one_command(findings);
    }
    Ok(plan)
}

/// What an event has beside its columns: the envelope's names, subject and headers.
const BESIDE_BYTES: u64 = 512;

/// Rows whose messages are close to what server and stream take: `bytes` is the largest of `rows`. Of no row, what any event has.
#[must_use]
pub fn rows(stream: &str, limit: SizeLimit, rows: i64, bytes: i64) -> Option<StreamFinding> {
    let message_bytes = bytes.unsigned_abs().saturating_add(BESIDE_BYTES);
    let limit_bytes = limit.bytes as u64;
    if message_bytes <= limit_bytes / 2 {
        return None;
    }
    let wanted = message_bytes.saturating_mul(2).next_power_of_two();
    let mend = match limit.by {
        Limiter::Stream => format!("nats stream edit {stream} --max-msg-size={wanted}"),
        Limiter::Server => format!(
            "set max_payload: {wanted} in nats-server's configuration, of leaf nodes and their hub too, and reload it; or keep \
             large payloads elsewhere, and their address in the event"
        ),
    };
    let becomes = match message_bytes > limit_bytes {
        true => "such a row becomes a dead letter",
        false if rows == 0 => "a row of a few hundred bytes becomes a dead letter",
        false => "a row twice as large becomes a dead letter",
    };
    let whose = match rows {
        0 => "an event with nothing in its columns".to_owned(),
        1 => "the table's row".to_owned(),
        _ => format!("the largest of {rows} rows"),
    };
    Some(StreamFinding {
        code: MESSAGE_SIZE,
        severity: StreamSeverity::Warns,
        message: format!(
            "{whose} makes a message of about {message_bytes} bytes, beside {limit}: {becomes}"
        ),
        command: Some(mend),
    })
}

/// Why no way of publishing serves.
fn no_way(config: &StreamConfig, shared: bool, version: ServerVersion) -> Option<StreamFinding> {
    let offer = Offer {
        server: (version.major, version.minor),
        allow_batched: config.allow_batched,
        allow_atomic: config.allow_atomic,
        shared,
    };
    let error = Mode::pick(&offer).err()?;
    let flags = match error {
        NoMode::ServerTooOld { .. } => None,
        NoMode::AtomicOff => Some("--allow-batch"),
    };
    let message = error.to_string();
    Some(StreamFinding::new(
        config,
        StreamSeverity::Blocks,
        message,
        flags,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_way_of(shared: bool, allow_atomic: bool, minor: u16) -> Option<StreamFinding> {
        let config = StreamConfig {
            name: "OUTBOX".into(),
            allow_atomic,
            ..StreamConfig::default()
        };
        let version = ServerVersion {
            major: 2,
            minor,
            patch: 0,
        };
        no_way(&config, shared, version)
    }

    #[test]
    fn a_stream_that_hardly_takes_an_event_is_found_without_a_row() {
        let rows = |bytes| {
            let by = Limiter::Stream;
            rows("OUTBOX", SizeLimit { bytes, by }, 0, 0)
        };
        let tiny = rows(100).expect("a finding");
        assert_eq!(
            tiny.command.as_deref(),
            Some("nats stream edit OUTBOX --max-msg-size=1024")
        );
        assert_eq!(rows(1_024), None);
    }

    #[test]
    fn a_shared_stream_without_atomic_batches_blocks() {
        let off = no_way_of(true, false, 15).expect("a finding");
        assert_eq!(off.severity, StreamSeverity::Blocks);
        assert_eq!(
            off.command.as_deref(),
            Some("nats stream edit OUTBOX --allow-batch")
        );
        let old = no_way_of(true, true, 11).expect("a finding");
        assert_eq!(old.severity, StreamSeverity::Blocks);
        assert_eq!(old.command, None);
        assert!(old.message.contains("2.11"), "{old}");
    }

    #[test]
    fn a_stream_of_its_own_can_always_be_published_to() {
        assert_eq!(no_way_of(false, false, 10), None);
        assert_eq!(no_way_of(true, true, 15), None);
    }
}
