//! How an existing stream stands: where its copies are, and how full it is.
//!
//! In: what the server says of the stream. Out: findings. Pure.

use super::{StreamFinding, StreamSeverity, edits};
use crate::nats::api::StreamInfo;

/// What is fuller than this, in percent, is full before somebody looks again.
pub(super) const FULL_PERCENT: u64 = 80;

/// The code of what is wrong with the copies of a stream.
pub const REPLICAS: &str = "replicas";
/// The code of a limit on what is stored that is close.
pub const STORAGE_LIMIT: &str = "storage-limit";

/// What of its state will hurt.
#[must_use]
pub fn findings(info: &StreamInfo) -> Vec<StreamFinding> {
    let mut found: Vec<StreamFinding> = copies(info).into_iter().collect();
    found.extend(away(info));
    found.extend(fills(info));
    found
}

fn warn(
    info: &StreamInfo,
    code: &'static str,
    message: String,
    flags: Option<&str>,
) -> StreamFinding {
    StreamFinding {
        code,
        ..StreamFinding::new(&info.config, StreamSeverity::Warns, message, flags)
    }
}

fn copies(info: &StreamInfo) -> Option<StreamFinding> {
    let cluster = info.cluster.as_ref()?;
    let name = cluster.name.as_ref()?;
    (info.config.num_replicas < 2).then(|| {
        let server = cluster.leader.as_deref().unwrap_or("its server");
        let message = format!(
            "it has one replica in cluster {name}: while {server} is away the relay waits, and with its disk \
             the events are lost"
        );
        warn(info, REPLICAS, message, Some("--replicas=3"))
    })
}

/// `why` are the server's words.
pub(super) fn leaderless(why: &str) -> StreamFinding {
    StreamFinding {
        code: REPLICAS,
        severity: StreamSeverity::Blocks,
        message: format!(
            "nobody leads it ({why}): nothing is stored until its servers have elected one"
        ),
        command: Some(
            "start the servers of its replicas: more than half of them must run".to_owned(),
        ),
    }
}

/// Copies that cannot take over.
fn away(info: &StreamInfo) -> Option<StreamFinding> {
    let cluster = info.cluster.as_ref()?;
    if cluster.name.is_some() && cluster.leader.is_none() {
        return Some(leaderless("no leader"));
    }
    let behind = cluster.replicas.iter().filter(|copy| !copy.current);
    let behind: Vec<String> = behind
        .map(|copy| match copy.offline {
            true => format!("{} is away", copy.name),
            false => format!("{} is behind", copy.name),
        })
        .collect();
    (!behind.is_empty()).then(|| StreamFinding {
        command: Some("start the servers that are away; those that run catch up".to_owned()),
        ..warn(
            info,
            REPLICAS,
            format!(
                "of its replicas, {}: without a majority nothing is stored",
                behind.join(", ")
            ),
            None,
        )
    })
}

/// A stream that refuses what is new once it is full. One that drops what is old is never full.
fn fills(info: &StreamInfo) -> Vec<StreamFinding> {
    let (config, state) = (&info.config, &info.state);
    if config.discard != "new" {
        return Vec::new();
    }
    let limits = [
        ("bytes", "--max-bytes", config.max_bytes, state.bytes),
        ("messages", "--max-msgs", config.max_msgs, state.messages),
    ];
    let near = limits.into_iter().filter_map(|(what, flag, limit, used)| {
        let limit = limit_near(limit, used)?;
        let message = format!(
            "it has {used} of {limit} {what} and refuses new events when it is full (discard new): then the relay waits"
        );
        // One that was lowered afterwards has more than its limit.
        let wanted = limit.max(used).saturating_mul(2);
        let flags = match what {
            "bytes" => format!("{flag}={}", edits::bytes(wanted)),
            _ => format!("{flag}={wanted}"),
        };
        Some(warn(info, STORAGE_LIMIT, message, Some(&flags)))
    });
    near.collect()
}

/// The limit, where there is one and it is close.
fn limit_near(limit: i64, used: u64) -> Option<u64> {
    let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0)?;
    (used >= limit / 100 * FULL_PERCENT).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> StreamInfo {
        StreamInfo::parse(text.as_bytes()).expect("an answer")
    }

    fn codes(info: &StreamInfo) -> Vec<&'static str> {
        findings(info).iter().map(|found| found.code).collect()
    }

    #[test]
    fn copies_that_are_missing_or_behind_are_told() {
        let with = |replicas: u8, cluster: &str| {
            info(&format!(
                r#"{{"created":"c","config":{{"name":"S","num_replicas":{replicas}}},"state":{{}},"cluster":{cluster}}}"#
            ))
        };
        let alone = with(1, r#"{"name":"C","leader":"n1"}"#);
        assert_eq!(codes(&alone), [REPLICAS]);
        let command = findings(&alone)[0].command.clone();
        assert_eq!(command.as_deref(), Some("nats stream edit S --replicas=3"));
        // No cluster: nobody could have a copy.
        assert_eq!(codes(&with(1, "null")), Vec::<&str>::new());
        assert_eq!(codes(&with(1, r#"{"leader":"n1"}"#)), Vec::<&str>::new());
        let copy = |current, offline| {
            let copy = format!(r#"{{"name":"n2","current":{current},"offline":{offline}}}"#);
            with(
                3,
                &format!(r#"{{"name":"C","leader":"n1","replicas":[{copy}]}}"#),
            )
        };
        assert_eq!(codes(&copy(true, false)), Vec::<&str>::new());
        assert!(
            findings(&copy(false, true))[0]
                .message
                .contains("n2 is away")
        );
        assert!(
            findings(&copy(false, false))[0]
                .message
                .contains("n2 is behind")
        );
        let lost = with(3, r#"{"name":"C","replicas":null}"#);
        assert!(findings(&lost)[0].message.contains("no leader"));
    }

    #[test]
    fn a_stream_that_refuses_is_told_before_it_does() {
        let with = |discard: &str, bytes: u64| {
            codes(&info(&format!(
                r#"{{"created":"c","config":{{"name":"S","discard":"{discard}","max_bytes":1000,"max_msgs":-1}},
                    "state":{{"bytes":{bytes},"messages":5}}}}"#
            )))
        };
        assert_eq!(with("new", 799), Vec::<&str>::new());
        assert_eq!(with("new", 800), [STORAGE_LIMIT]);
        assert_eq!(with("old", 1000), Vec::<&str>::new());
    }

    #[test]
    fn the_limit_that_is_proposed_has_room_beside_what_is_stored() {
        let text = r#"{"created":"c","config":{"name":"S","discard":"new","max_bytes":2000,"max_msgs":10},
            "state":{"bytes":8998714,"messages":5000}}"#;
        let found = findings(&info(text)).into_iter();
        let commands: Vec<_> = found.filter_map(|found| found.command).collect();
        let edit = |flag: &str| format!("nats stream edit S {flag}");
        assert_eq!(
            commands,
            [edit("--max-bytes=17997428"), edit("--max-msgs=10000")]
        );
    }
}
