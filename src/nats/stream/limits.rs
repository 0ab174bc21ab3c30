//! Limits by which a stream removes what it has stored, and what that means for the hold-back and for dead letters.
//!
//! In: a stream's configuration, how long the hold-back is, how far back a full stream reaches. Out: the limits in words, and findings.
//! Pure.

use std::time::Duration;

use super::{StreamFinding, StreamSeverity, edits};
use crate::nats::api::{StreamConfig, StreamInfo};

/// The code of a limit that removes messages too early.
pub const RETENTION: &str = "retention";

/// Fewer messages than this are a second's or less of a lane under load.
const MESSAGES_MIN: i64 = 10_000;
/// Fewer bytes than this are one large message.
const BYTES_MIN: i64 = 1 << 20;

/// The limits that remove the oldest messages, in words; none where nothing does.
#[must_use]
pub fn that_remove(config: &StreamConfig) -> Option<String> {
    let mut found = Vec::new();
    if !config.max_age.is_zero() {
        found.push(format!(
            "max_age {}",
            humantime::format_duration(config.max_age)
        ));
    }
    if config.discard != "new" {
        for (name, limit) in [
            ("max_bytes", config.max_bytes),
            ("max_msgs", config.max_msgs),
        ] {
            if limit > 0 {
                found.push(format!("{name} {limit}"));
            }
        }
    }
    if config.max_msgs_per_subject > 0 && !config.discard_new_per_subject {
        found.push(format!(
            "max_msgs_per_subject {}",
            config.max_msgs_per_subject
        ));
    }
    (!found.is_empty()).then(|| found.join(", "))
}

/// Flags of `nats stream edit` that lift them.
#[must_use]
pub fn lift(config: &StreamConfig) -> String {
    let limits = [
        ("--max-age=0s", !config.max_age.is_zero()),
        ("--max-bytes=-1", config.max_bytes > 0),
        ("--max-msgs=-1", config.max_msgs > 0),
        ("--max-msgs-per-subject=-1", config.max_msgs_per_subject > 0),
    ];
    let set = limits.into_iter().filter(|(_, is_set)| *is_set);
    set.map(|(flag, _)| flag).collect::<Vec<_>>().join(" ")
}

/// Flags of `nats stream edit` that lift the limits for which the stream refuses a message, by what is said of that; none where it is
/// for none of them.
#[must_use]
pub fn that_refuse(config: &StreamConfig, said: &str) -> Option<String> {
    let discards_new = config.discard == "new";
    let per_subject = discards_new && config.discard_new_per_subject;
    let limits = [
        (
            "--max-msgs=-1",
            discards_new && config.max_msgs > 0,
            "maximum messages exceeded",
        ),
        (
            "--max-bytes=-1",
            discards_new && config.max_bytes > 0,
            "maximum bytes exceeded",
        ),
        (
            "--max-msgs-per-subject=-1",
            per_subject && config.max_msgs_per_subject > 0,
            "maximum messages per subject exceeded",
        ),
        (
            "--max-msg-size=-1",
            config.max_msg_size > 0,
            "message size exceeds maximum",
        ),
        (
            "--max-msg-size=-1",
            config.max_msg_size > 0,
            "the stream's max_msg_size",
        ),
    ];
    let refuses = |(_, is_set, words): &&(&str, bool, &str)| *is_set && said.contains(words);
    let found = limits.iter().find(refuses);
    found.map(|(flag, ..)| (*flag).to_owned())
}

/// Limits that remove messages before the hold-back is over: while it lasts, the stream is what tells whether the broker has lost any.
/// `reach` is how far back the stream reaches.
#[must_use]
pub fn below(
    info: &StreamInfo,
    hold_back: Duration,
    reach: Option<Duration>,
) -> Vec<StreamFinding> {
    let (config, state) = (&info.config, &info.state);
    if hold_back.is_zero() {
        return Vec::new();
    }
    let held = humantime::format_duration(hold_back);
    let mut found = Vec::new();
    let mut warn = |message: String, flag: String| {
        found.push(StreamFinding {
            code: RETENTION,
            ..StreamFinding::new(config, StreamSeverity::Warns, message, Some(&flag))
        });
    };
    if !config.max_age.is_zero() && config.max_age < hold_back {
        warn(
            format!(
                "max_age is {}, less than relay.hold_back ({held}): messages go before it is certain that the broker keeps them, and \
                 consumers that are away for so long miss events",
                humantime::format_duration(config.max_age)
            ),
            format!("--max-age={}s", 2 * hold_back.as_secs().max(1)),
        );
    }
    if config.discard == "new" {
        return found;
    }
    for (name, flag, limit, used, least) in [
        (
            "max_msgs",
            "--max-msgs",
            config.max_msgs,
            state.messages,
            MESSAGES_MIN,
        ),
        (
            "max_bytes",
            "--max-bytes",
            config.max_bytes,
            state.bytes,
            BYTES_MIN,
        ),
    ] {
        let Some(most) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else {
            continue;
        };
        let is_full = used >= most / 10 * 9;
        let short = reach.filter(|reach| is_full && *reach < hold_back);
        let (reaches, wanted) = match short {
            // Twice of what the hold-back takes at the present rate.
            Some(reach) => (
                format!("the stream is full and reaches back {} s", reach.as_secs()),
                u128::from(used) * 2 * hold_back.as_millis() / reach.as_millis().max(1),
            ),
            None if limit < least => (format!("the stream has {used}"), u128::from(most) * 2),
            None => continue,
        };
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        let wanted = wanted
            .max(least.cast_unsigned())
            .min(i64::MAX.cast_unsigned());
        warn(
            format!(
                "{name} is {most} ({reaches}), and the oldest messages are dropped: it may be less than is published within \
                 relay.hold_back ({held}), and consumers that are away miss events"
            ),
            match name {
                "max_bytes" => format!("{flag}={}", edits::bytes(wanted)),
                _ => format!("{flag}={wanted}"),
            },
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::limit::SizeLimit;

    fn info(limits: &str, state: &str) -> StreamInfo {
        let text = format!(
            r#"{{"created":"c","config":{{"name":"S","max_msgs_per_subject":-1,{limits}}},"state":{{{state}}}}}"#
        );
        StreamInfo::parse(text.as_bytes()).expect("an answer")
    }

    fn commands(info: &StreamInfo, reach_s: u64) -> Vec<String> {
        let reach = Some(Duration::from_secs(reach_s));
        let found = below(info, Duration::from_secs(180), reach);
        found
            .into_iter()
            .filter_map(|found| found.command)
            .collect()
    }

    #[test]
    fn what_goes_before_the_hold_back_is_over_is_told_with_figures() {
        let edit = |flag: &str| vec![format!("nats stream edit S {flag}")];
        let aged = info(r#""max_age":179000000000,"discard":"new""#, "");
        assert_eq!(commands(&aged, 9), edit("--max-age=360s"));
        let long = info(r#""max_age":180000000000,"discard":"new""#, "");
        assert_eq!(commands(&long, 9), edit("")[..0]);
        let five = info(r#""max_msgs":5,"discard":"old""#, r#""messages":2"#);
        assert_eq!(commands(&five, 9), edit("--max-msgs=10000"));
        let bytes = info(r#""max_bytes":2000,"discard":"old""#, "");
        assert_eq!(commands(&bytes, 9), edit("--max-bytes=1048576"));
        let refuses = info(r#""max_msgs":5,"max_bytes":9,"discard":"new""#, "");
        assert_eq!(commands(&refuses, 9), edit("")[..0]);
        // A large one that is full, at a thousand a second.
        let full = info(
            r#""max_msgs":100000,"discard":"old""#,
            r#""messages":100000"#,
        );
        assert_eq!(commands(&full, 100), edit("--max-msgs=360000"));
        assert_eq!(commands(&full, 180), edit("")[..0]);
    }

    #[test]
    fn what_refuses_a_message_is_lifted() {
        let config = |limits: &str| info(limits, r#""messages":100"#).config;
        let full = "maximum messages exceeded";
        let new = config(r#""discard":"new","max_msgs":100,"max_bytes":-1,"max_msg_size":50"#);
        assert_eq!(that_refuse(&new, full).as_deref(), Some("--max-msgs=-1"));
        let large = "message size exceeds maximum allowed";
        assert_eq!(
            that_refuse(&new, large).as_deref(),
            Some("--max-msg-size=-1")
        );
        let limit = SizeLimit::smaller(1_000, Some(50));
        let known = format!("70 bytes, more than {limit}");
        assert_eq!(
            that_refuse(&new, &known).as_deref(),
            Some("--max-msg-size=-1")
        );
        let of_server = SizeLimit::smaller(40, Some(50)).to_string();
        assert_eq!(that_refuse(&new, &of_server), None);
        assert_eq!(that_refuse(&new, "maximum bytes exceeded"), None);
        assert_eq!(that_refuse(&new, "no space left on device"), None);
        let old = config(r#""discard":"old","max_msgs":100"#);
        assert_eq!(that_refuse(&old, full), None);
    }

    /// `nats stream edit` reads an age as a duration, and -1 is none.
    #[test]
    fn what_lifts_limits_is_what_the_command_takes() {
        let all = info(
            r#""max_age":5,"max_bytes":5,"max_msgs":5,"discard":"old""#,
            "",
        );
        let lifted = lift(&all.config);
        assert_eq!(lifted, "--max-age=0s --max-bytes=-1 --max-msgs=-1");
        let large = info(
            r#""max_bytes":3000000000,"discard":"old""#,
            r#""bytes":3000000000"#,
        );
        assert_eq!(
            commands(&large, 90),
            ["nats stream edit S --max-bytes=11445M"]
        );
    }

    #[test]
    fn limits_that_refuse_remove_nothing() {
        let told = |limits: &str| that_remove(&info(limits, "").config);
        assert_eq!(told(r#""discard":"old""#), None);
        assert_eq!(told(r#""discard":"new","max_bytes":5"#), None);
        let both = told(r#""discard":"old","max_bytes":5,"max_age":3600000000000"#);
        assert_eq!(both.as_deref(), Some("max_age 1h, max_bytes 5"));
    }
}
