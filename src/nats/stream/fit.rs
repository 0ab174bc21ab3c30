//! How an existing stream fits the relay.
//!
//! In: its configuration, the subjects wanted, the server's version. Out: findings with the commands that mend them. Pure.

pub(super) mod records;

use crate::nats::api::StreamConfig;
use crate::nats::filters::{covers, overlaps};
use crate::nats::protocol::ServerVersion;

/// A fence is all headers, and has less than this with any slot and a usual event id.
const FENCE_BYTES_MAX: usize = 512;
const ANOTHER: &str = "use another stream";
const OUT_OF_SEALED: &str = "walrelay move --to-stream with another name takes the lane there that has published here; else use \
     another stream";

/// What a finding means for the relay. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamSeverity {
    /// The relay cannot work with this stream, or would lose events.
    Blocks,
    /// It works, with a risk or more slowly.
    Warns,
}

/// Something about a stream that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFinding {
    /// The name in `walrelay doctor --json` and in docs/doctor.md; it stays.
    pub code: &'static str,
    /// How bad it is.
    pub severity: StreamSeverity,
    /// What is wrong, and why it matters.
    pub message: String,
    /// What mends it: a shell command, or the keys to set; `None` where only another stream does.
    pub command: Option<String>,
}

/// The code of what is wrong with a stream's configuration.
pub const STREAM: &str = "stream";

impl StreamFinding {
    /// One that `nats stream edit` with these flags mends; without flags, only another stream does.
    pub fn new(
        config: &StreamConfig,
        severity: StreamSeverity,
        message: impl Into<String>,
        flags: Option<&str>,
    ) -> Self {
        StreamFinding {
            code: STREAM,
            severity,
            message: message.into(),
            command: flags.map(|flags| format!("nats stream edit {} {flags}", config.name)),
        }
    }
}

impl std::fmt::Display for StreamFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.command {
            Some(command) => write!(f, "{}: {command}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Gathers findings about one stream.
struct Findings<'a> {
    config: &'a StreamConfig,
    found: Vec<StreamFinding>,
}

impl Findings<'_> {
    fn add(&mut self, severity: StreamSeverity, message: impl Into<String>, flags: Option<&str>) {
        self.found
            .push(StreamFinding::new(self.config, severity, message, flags));
    }

    fn sorted(mut self) -> Vec<StreamFinding> {
        self.found.sort_by_key(|finding| finding.severity);
        self.found
    }
}

/// The findings about an events' stream that must hold `subjects`; `shared` with other relays.
pub(super) fn findings(
    config: &StreamConfig,
    subjects: &[String],
    shared: bool,
    version: ServerVersion,
) -> Vec<StreamFinding> {
    let mut findings = Findings {
        config,
        found: Vec::new(),
    };
    // With our dead letters there too, somebody has decided that already.
    let takes_ours = |subject: &String| config.subjects.contains(subject);
    let is_others = !shared && !subjects.iter().skip(1).any(takes_ours);
    let owner = owner(config).filter(|_| is_others);
    missing_subjects(&mut findings, subjects, owner);
    writable(
        &mut findings,
        ANOTHER,
        if shared { ANOTHER } else { OUT_OF_SEALED },
    );
    retention(&mut findings);
    if config
        .subjects
        .iter()
        .any(|subject| overlaps(subject, "walrelay.lane.>"))
    {
        let message =
            "the stream takes walrelay.lane.>, which the stream of the lanes' records needs";
        findings.add(StreamSeverity::Blocks, message, None);
    }
    if config.storage == "memory" {
        let message = "storage is memory: a restart of the server loses events that Postgres may have forgotten";
        findings.add(StreamSeverity::Warns, message, None);
    }
    if !config.sources.is_empty() {
        let message = "the stream has sources: what they bring arrives between our events and ends an epoch each time";
        findings.add(StreamSeverity::Warns, message, None);
    }
    if !config.subject_delete_marker_ttl.is_zero() {
        let message = "subject_delete_marker_ttl is set: where the last message of a subject ages out, the server puts one of its own \
                       behind our events, without a body; consumers get it, and it ends an epoch";
        findings.add(
            StreamSeverity::Warns,
            message,
            Some("--subject-del-markers-ttl=0s"),
        );
    }
    transform(&mut findings, subjects);
    if let Some(republish) = &config.republish {
        let message = format!(
            "the stream republishes to {:?} with all headers of ours: another stream that takes those subjects drops every message \
             for its Nats-Expected-Last-Sequence; give that stream this one as a source instead",
            republish.dest
        );
        findings.add(StreamSeverity::Warns, message, None);
    }
    if shared
        && config
            .message_bytes_max()
            .is_some_and(|bytes| bytes < FENCE_BYTES_MAX)
    {
        let message = format!(
            "max_msg_size is {}: the fences of the lanes in a shared stream may not fit",
            config.max_msg_size
        );
        let flag = format!("--max-msg-size={FENCE_BYTES_MAX}");
        findings.add(StreamSeverity::Blocks, message, Some(&flag));
    }
    if !shared && version.at_least(2, 14) && !config.allow_batched {
        let message = "fast ingest is off: each event needs an answer of its own, which is slower";
        findings.add(StreamSeverity::Warns, message, Some("--allow-fast"));
    }
    findings.sorted()
}

/// Those of `subjects` that the stream does not store, with the command that adds them.
#[must_use]
pub fn untaken(config: &StreamConfig, subjects: &[String]) -> Option<StreamFinding> {
    let mut findings = Findings {
        config,
        found: Vec::new(),
    };
    missing_subjects(&mut findings, subjects, None);
    findings.found.pop()
}

/// The slot whose dead letters the stream takes: it was made for the relay of that slot.
pub(super) fn owner(config: &StreamConfig) -> Option<&str> {
    owners(config).next()
}

/// All slots whose dead letters the stream takes.
pub(super) fn owners(config: &StreamConfig) -> impl Iterator<Item = &str> {
    let subjects = config.subjects.iter();
    subjects.filter_map(|subject| subject.strip_prefix("walrelay.dead."))
}

/// Subjects that the stream does not store. `owner` is the slot of another relay that has the stream for itself: merely
/// to add the subjects would let two relays write into one stream, each of which takes the other's events for foreign ones.
fn missing_subjects(findings: &mut Findings<'_>, wanted: &[String], owner: Option<&str>) {
    let held = &findings.config.subjects;
    let is_held = |subject: &&String| held.iter().any(|filter| covers(filter, subject));
    let missing: Vec<_> = wanted.iter().filter(|subject| !is_held(subject)).collect();
    if missing.is_empty() || findings.config.mirror.is_some() {
        return;
    }
    // The command sets the whole list, and subjects of one stream must not overlap.
    let kept = held
        .iter()
        .filter(|held| !missing.iter().any(|subject| covers(subject, held)));
    let flags: Vec<_> = kept
        .chain(missing.iter().copied())
        .map(|subject| format!("--subjects='{subject}'"))
        .collect();
    let missing: Vec<_> = missing.iter().map(|subject| subject.as_str()).collect();
    let mut message = format!("the stream does not take {}", missing.join(" and "));
    if let Some(owner) = owner {
        message.push_str(&format!(
            ", but the dead letters of slot {owner}: it is that relay's own. Set nats.stream and nats.subject to this \
             relay's own, or nats.shared = true for both"
        ));
    }
    findings.add(StreamSeverity::Blocks, message, Some(&flags.join(" ")));
    if let (Some(owner), Some(finding)) = (owner, findings.found.last_mut()) {
        let command = finding.command.take();
        finding.command =
            command.map(|command| format!("only where slot {owner} is no more: {command}"));
    }
}

/// Whether what is looked for by its subject is stored under it.
fn transform(findings: &mut Findings<'_>, subjects: &[String]) {
    let Some(transform) = &findings.config.subject_transform else {
        return;
    };
    let (from, to) = (transform.filter(), &transform.dest);
    for own in subjects.iter().filter(|own| own.starts_with("walrelay.")) {
        if overlaps(from, own) {
            let message = format!(
                "subjects {from:?} are stored as {to:?}: of {own} the stream must store what the relay publishes, or it is not \
                 found again"
            );
            findings.add(StreamSeverity::Blocks, message, Some("--no-transform"));
        }
    }
    let message = format!("subjects {from:?} are stored as {to:?}: consumers must ask for those");
    findings.add(StreamSeverity::Warns, message, Some("--no-transform"));
}

/// Whether publishing works at all, and an acknowledgement means what it says.
fn writable(findings: &mut Findings<'_>, instead: &str, instead_of_sealed: &str) {
    let config = findings.config;
    if config.sealed {
        let message = format!(
            "the stream is sealed: it takes nothing any more, and that cannot be undone; {instead_of_sealed}"
        );
        findings.add(StreamSeverity::Blocks, message, None);
    }
    if let Some(mirror) = &config.mirror {
        let message = format!(
            "the stream mirrors {}: nobody can publish to it; {instead}",
            mirror.name
        );
        findings.add(StreamSeverity::Blocks, message, None);
    }
    if config.allow_msg_counter {
        let message = format!(
            "the stream takes counters alone (allow_msg_counter), which cannot be changed; {instead}"
        );
        findings.add(StreamSeverity::Blocks, message, None);
    }
    if config.no_ack {
        findings.add(
            StreamSeverity::Blocks,
            "the stream does not acknowledge what it stores",
            Some("--ack"),
        );
    }
    if config.persist_mode.as_deref() == Some("async") {
        let message = format!("persist_mode is async: it acknowledges before it writes; {instead}");
        findings.add(StreamSeverity::Blocks, message, None);
    }
}

/// Whether the stream keeps what it acknowledged.
fn retention(findings: &mut Findings<'_>) {
    let config = findings.config;
    match config.retention.as_str() {
        "interest" => {
            let message = "retention is interest: without a consumer it acknowledges events and stores nothing";
            findings.add(StreamSeverity::Blocks, message, Some("--retention=limits"));
        }
        "workqueue" => {
            let message = "retention is workqueue: events vanish when consumed, so nothing tells where to resume, and it cannot be changed; use another stream";
            findings.add(StreamSeverity::Blocks, message, None);
        }
        _ => {}
    }
    if config.discard == "new" && config.discard_new_per_subject {
        let message = "a subject that is full refuses new events, which halts the whole lane";
        findings.add(
            StreamSeverity::Warns,
            message,
            Some("--no-discard-per-subject --discard=old"),
        );
    }
    if config.max_msgs_per_subject > 0 {
        let message = format!(
            "only the last {} of each subject {} kept: a slow consumer misses others",
            match config.max_msgs_per_subject {
                1 => "event".to_owned(),
                most => format!("{most} events"),
            },
            match config.max_msgs_per_subject {
                1 => "is",
                _ => "are",
            }
        );
        findings.add(
            StreamSeverity::Warns,
            message,
            Some("--max-msgs-per-subject=-1"),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nats::api::{StreamSource, SubjectMapping};

    const VERSION: ServerVersion = ServerVersion {
        major: 2,
        minor: 15,
        patch: 0,
    };

    pub(super) fn fitting() -> StreamConfig {
        StreamConfig {
            name: "OUTBOX".into(),
            subjects: vec!["outbox.>".into(), "walrelay.dead.s".into()],
            retention: "limits".into(),
            storage: "file".into(),
            discard: "old".into(),
            max_msgs_per_subject: -1,
            allow_batched: true,
            allow_atomic: true,
            ..StreamConfig::default()
        }
    }

    fn found(change: impl FnOnce(&mut StreamConfig)) -> Vec<StreamFinding> {
        let mut config = fitting();
        change(&mut config);
        findings(
            &config,
            &["outbox.>".into(), "walrelay.dead.s".into()],
            false,
            VERSION,
        )
    }

    fn severities(change: impl FnOnce(&mut StreamConfig)) -> Vec<StreamSeverity> {
        found(change)
            .iter()
            .map(|finding| finding.severity)
            .collect()
    }

    #[test]
    fn a_stream_of_our_own_fits() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn what_loses_events_blocks() {
        use StreamSeverity::Blocks;
        assert_eq!(
            severities(|config| config.retention = "workqueue".into()),
            [Blocks]
        );
        assert_eq!(
            severities(|config| config.retention = "interest".into()),
            [Blocks]
        );
        assert_eq!(severities(|config| config.sealed = true), [Blocks]);
        assert_eq!(severities(|config| config.no_ack = true), [Blocks]);
        assert_eq!(
            severities(|config| config.allow_msg_counter = true),
            [Blocks]
        );
        assert_eq!(
            severities(|config| config.persist_mode = Some("async".into())),
            [Blocks]
        );
        let mirror = |config: &mut StreamConfig| {
            config.mirror = Some(StreamSource { name: "A".into() });
            config.subjects.clear();
        };
        assert_eq!(severities(mirror), [Blocks]);
        assert_eq!(
            severities(|config| config.subjects = vec![">".into()]),
            [Blocks]
        );
    }

    #[test]
    fn risks_warn() {
        use StreamSeverity::Warns;
        assert_eq!(
            severities(|config| config.storage = "memory".into()),
            [Warns]
        );
        assert_eq!(severities(|config| config.allow_batched = false), [Warns]);
        let marking = Duration::from_secs(60);
        assert_eq!(
            severities(|config| config.subject_delete_marker_ttl = marking),
            [Warns]
        );
        // Each way to publish where it is taken.
        assert_eq!(severities(|config| config.allow_atomic = false), []);
        let shared = |change: fn(&mut StreamConfig)| {
            let mut config = fitting();
            change(&mut config);
            findings(&config, &config.subjects, true, VERSION)
        };
        assert_eq!(shared(|config| config.allow_batched = false), []);
        let small = shared(|config| config.max_msg_size = 511);
        let command = small[0].command.as_deref();
        assert_eq!(command, Some("nats stream edit OUTBOX --max-msg-size=512"));
        assert_eq!(shared(|config| config.max_msg_size = 512), []);
        assert_eq!(
            severities(|config| config.max_msgs_per_subject = 5),
            [Warns]
        );
        assert_eq!(
            severities(|config| config.sources.push(StreamSource::default())),
            [Warns]
        );
    }

    pub(super) fn mapping(src: &str, dest: &str) -> Option<SubjectMapping> {
        Some(SubjectMapping {
            src: src.into(),
            dest: dest.into(),
        })
    }

    #[test]
    fn what_is_looked_for_by_its_subject_is_not_transformed() {
        use StreamSeverity::{Blocks, Warns};
        let moved = |src: &str| severities(|config| config.subject_transform = mapping(src, "a.>"));
        assert_eq!(moved("outbox.>"), [Warns]);
        assert_eq!(moved("walrelay.dead.>"), [Blocks, Warns]);
        assert_eq!(moved(">"), [Blocks, Warns]);
        assert_eq!(moved(""), [Blocks, Warns]);
        let republished = severities(|config| config.republish = mapping(">", "copy.>"));
        assert_eq!(republished, [Warns]);
    }

    #[test]
    fn the_worst_comes_first() {
        let both = |config: &mut StreamConfig| {
            config.storage = "memory".into();
            config.subjects.pop();
        };
        assert_eq!(
            severities(both),
            [StreamSeverity::Blocks, StreamSeverity::Warns]
        );
    }

    #[test]
    fn a_missing_subject_comes_with_its_command() {
        let found = found(|config| config.subjects = vec!["outbox.a".into(), "other.>".into()]);
        let command = found[0].command.as_deref();
        assert_eq!(
            command,
            Some(
                "nats stream edit OUTBOX --subjects='other.>' --subjects='outbox.>' --subjects='walrelay.dead.s'"
            )
        );
    }

    #[test]
    fn the_stream_of_another_relay_is_not_given_away() {
        let taken = vec!["outbox.>".into(), "walrelay.dead.other".into()];
        let others = StreamConfig {
            subjects: taken,
            ..fitting()
        };
        let wanted = ["outbox.>".into(), "walrelay.dead.s".into()];
        let found = findings(&others, &wanted, false, VERSION);
        assert_eq!(found[0].severity, StreamSeverity::Blocks);
        for word in ["slot other", "nats.stream and nats.subject", "nats.shared"] {
            assert!(found[0].message.contains(word), "{}", found[0]);
        }
        // Where it is to be shared, the subject alone is missing.
        let shared = findings(&others, &wanted, true, VERSION);
        assert!(!shared[0].message.contains("slot other"), "{}", shared[0]);
        // A relay whose events' subjects have changed misses them in its own stream.
        let mine = ["events.>".into(), "walrelay.dead.other".into()];
        let moved = findings(&others, &mine, false, VERSION);
        assert!(!moved[0].message.contains("slot other"), "{}", moved[0]);
    }
}
