//! How the stream of the lanes' records fits.
//!
//! In: its configuration. Out: findings with the commands that mend them. Pure.

use super::{Findings, StreamFinding, StreamSeverity, missing_subjects, writable};
use crate::nats::api::StreamConfig;
use crate::nats::filters::overlaps;

/// A lane's record has less than this, with many skips and tables.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Room for the records of many lanes.
const RECORDS_BYTES_MIN: i64 = 1 << 20;
/// What to do where an edit does not help: the stream that is missing is made by the next start.
const RECORDS_ANEW: &str = "remove it while its relays are stopped: the next start makes it anew, and where that halts for want of \
                            its record, `walrelay adopt` goes on";

/// The findings about an existing stream of the lanes' records.
pub(in crate::nats::stream) fn lane_record_findings(
    config: &StreamConfig,
    subjects: &str,
) -> Vec<StreamFinding> {
    use StreamSeverity::{Blocks, Warns};
    let mut findings = Findings {
        config,
        found: Vec::new(),
    };
    missing_subjects(&mut findings, &[subjects.to_owned()], None);
    writable(&mut findings, RECORDS_ANEW, RECORDS_ANEW);
    if !config.max_age.is_zero() {
        let message = "max_age lets records expire: a lane without its record cannot resume";
        findings.add(Blocks, message, Some("--max-age=0s"));
    }
    match config.retention.as_str() {
        "limits" => {}
        "interest" => {
            let message = "retention is interest: it acknowledges records and stores nothing, and the edit has removed those that were \
                           there; where the next start halts for want of its record, `walrelay adopt` goes on";
            findings.add(Blocks, message, Some("--retention=limits"));
        }
        other => {
            let message = format!("retention is {other}: records vanish; {RECORDS_ANEW}");
            findings.add(Blocks, message, None);
        }
    }
    if config.storage == "memory" {
        let message = format!(
            "storage is memory: a restart of the server loses the lanes' records; {RECORDS_ANEW}"
        );
        findings.add(Blocks, message, None);
    }
    record_limits(&mut findings);
    if let Some(transform) = &config.subject_transform
        && overlaps(transform.filter(), subjects)
    {
        let message = format!(
            "records are stored as {:?}, and not found again",
            transform.dest
        );
        findings.add(Blocks, message, Some("--no-transform"));
    }
    if config.max_msgs_per_subject != 1 {
        let message = "more than the last record of each lane is kept: the stream grows";
        findings.add(Warns, message, Some("--max-msgs-per-subject=1"));
    }
    for finding in &mut findings.found {
        let anew = || format!("nats stream rm {} --force", config.name);
        finding.command.get_or_insert_with(anew);
    }
    findings.sorted()
}

/// Whether the stream has room for the records of all lanes.
fn record_limits(findings: &mut Findings<'_>) {
    let config = findings.config;
    let full = match config.discard.as_str() {
        "new" => "refuses the lanes' next records when it is full",
        _ => "drops the oldest lane's record when it is full",
    };
    if config.max_msgs > 0 {
        let message = format!("max_msgs is {}: the stream {full}", config.max_msgs);
        findings.add(StreamSeverity::Blocks, message, Some("--max-msgs=-1"));
    }
    if config.max_bytes > 0 && config.max_bytes < RECORDS_BYTES_MIN {
        let message = format!("max_bytes is {}: the stream {full}", config.max_bytes);
        let flag = format!("--max-bytes={RECORDS_BYTES_MIN}");
        findings.add(StreamSeverity::Blocks, message, Some(&flag));
    }
    if let Some(bytes) = config.message_bytes_max()
        && bytes < RECORD_BYTES_MAX
    {
        let message = format!("max_msg_size is {bytes}: a lane's record may not fit");
        findings.add(StreamSeverity::Blocks, message, Some("--max-msg-size=-1"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fitting, mapping};
    use super::*;

    #[test]
    fn records_must_not_expire() {
        let config = StreamConfig {
            subjects: vec!["walrelay.lane.>".into()],
            max_msgs_per_subject: 1,
            ..fitting()
        };
        assert_eq!(lane_record_findings(&config, "walrelay.lane.>"), []);
        let config = StreamConfig {
            max_age: std::time::Duration::from_secs(1),
            ..config
        };
        assert_eq!(
            lane_record_findings(&config, "walrelay.lane.>")[0].severity,
            StreamSeverity::Blocks
        );
    }

    #[test]
    fn records_must_be_kept_whole_and_found_again() {
        let blocks = |change: fn(&mut StreamConfig)| {
            let mut config = StreamConfig {
                subjects: vec!["walrelay.lane.>".into()],
                max_msgs_per_subject: 1,
                ..fitting()
            };
            change(&mut config);
            let found = lane_record_findings(&config, "walrelay.lane.>");
            assert!(
                found
                    .iter()
                    .all(|finding| finding.severity == StreamSeverity::Blocks)
            );
            let commands = found.iter().filter_map(|finding| finding.command.clone());
            commands.collect::<Vec<_>>()
        };
        let edit = |flag: &str| vec![format!("nats stream edit OUTBOX {flag}")];
        assert_eq!(blocks(|config| config.max_msgs = 5), edit("--max-msgs=-1"));
        assert_eq!(
            blocks(|config| config.max_bytes = 5_000),
            edit("--max-bytes=1048576")
        );
        assert_eq!(blocks(|config| config.max_bytes = 1 << 20), [""; 0]);
        assert_eq!(
            blocks(|config| config.max_msg_size = 300),
            edit("--max-msg-size=-1")
        );
        assert_eq!(blocks(|config| config.no_ack = true), edit("--ack"));
        assert_eq!(
            blocks(|config| config.retention = "interest".into()),
            edit("--retention=limits")
        );
        let moved = |config: &mut StreamConfig| config.subject_transform = mapping("", "a.>");
        assert_eq!(blocks(moved), edit("--no-transform"));
        let anew = ["nats stream rm OUTBOX --force"];
        assert_eq!(blocks(|config| config.sealed = true), anew);
        assert_eq!(blocks(|config| config.storage = "memory".into()), anew);
        assert_eq!(blocks(|config| config.retention = "workqueue".into()), anew);
    }
}
