//! A message that the stream does not take, as people know it.
//!
//! In: a fault, what messages are called, the stream's configuration. Out: a line, with the command that mends it. Pure.

use crate::nats::api::StreamConfig;
use crate::nats::stream::limits;
use crate::pipeline::fault::Fault;
use crate::pipeline::position::Position;

/// The fault; `name` says what the message of a position is called, which is only a number to this program.
pub(super) fn told(
    fault: &Fault,
    stream: &str,
    name: impl Fn(Position) -> Option<String>,
) -> String {
    let name = |position: Position| {
        name(position).unwrap_or_else(|| format!("message {} of its source", position.ordinal))
    };
    let from = |position, in_flight: u64| match in_flight {
        1 => name(position),
        count => format!("one of the {count} messages from {} on", name(position)),
    };
    match fault {
        Fault::Refused {
            position,
            code,
            err_code,
            description,
        } => format!(
            "stream {stream} refuses {}: {description} ({code}/{err_code})",
            name(*position)
        ),
        Fault::NoResponders(position) => {
            format!("no stream takes the subject of {}", name(*position))
        }
        Fault::Frame {
            oldest,
            in_flight,
            text,
        } => format!("the broker refuses {}: {text}", from(*oldest, *in_flight)),
        Fault::Incomplete {
            oldest,
            in_flight,
            text,
        } => format!(
            "stream {stream} lacks {}: {text}",
            from(*oldest, *in_flight)
        ),
        fault => fault.to_string(),
    }
}

/// What lifts the limit for which the stream refuses a message, by what is said of that; `edit` is the command without its flags.
pub(super) fn remedy(config: &StreamConfig, said: &str, edit: &str) -> Option<String> {
    limits::that_refuse(config, said).map(|flags| format!("{edit} {flags}"))
}

/// Why the stream does not take a message, with what lifts its limit where it is for one.
pub(super) fn with_remedy(config: &StreamConfig, why: &str, edit: &str) -> String {
    match remedy(config, why, edit) {
        Some(remedy) => format!("stream {}: {why}: {remedy}", config.name),
        None => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_by_its_name() {
        let position = Position {
            commit_lsn: 0.into(),
            ordinal: 101,
        };
        let refused = Fault::Refused {
            position,
            code: 503,
            err_code: 10_077,
            description: "maximum messages exceeded".to_owned(),
        };
        let said = told(&refused, "AGAIN", |position| {
            Some(format!("message {} of stream OUTBOX", position.ordinal))
        });
        assert_eq!(
            said,
            "stream AGAIN refuses message 101 of stream OUTBOX: maximum messages exceeded (503/10077)"
        );
        let incomplete = Fault::Incomplete {
            oldest: position,
            in_flight: 3,
            text: "batch incomplete".to_owned(),
        };
        let said = told(&incomplete, "AGAIN", |_| None);
        assert!(said.contains("one of the 3 messages from message 101 of its source on"));
    }
}
