//! Other streams that take the subjects which the relay's stream needs: a subject can be in one stream only.
//!
//! In: an administrative client and the settings. Out: findings. Guarantee: reads only.

use serde::Deserialize;

use super::fit::{STREAM, owner, owners};
use super::{
    StreamError, StreamFinding, StreamSettings, StreamSeverity, answer_error, find, request,
};
use crate::nats::admin::Admin;
use crate::nats::api::{StreamConfig, refuse};
use crate::nats::filters::overlaps;

/// The template of events' subjects, as far as it can be another one.
#[derive(Debug, Clone, Copy)]
pub struct Events<'a> {
    /// A root that nobody else is likely to have.
    pub root: &'a str,
    /// The rest, as the configuration has it.
    pub under_root: &'a str,
}

/// Looks for other streams with subjects of ours, before anything is made: the server would refuse to make the stream. `events`
/// is the template of theirs, where that can be another one; `share` the number of the lane's, where it has one.
///
/// # Errors
/// [`StreamError`].
pub async fn taken(
    client: &Admin,
    settings: &StreamSettings,
    events: Option<Events<'_>>,
    share: Option<u32>,
) -> Result<Vec<StreamFinding>, StreamError> {
    let mut found = Vec::new();
    for (index, subject) in settings.subjects_to_create.iter().enumerate() {
        let events = events.filter(|_| index == 0);
        for name in names(client, settings, subject).await? {
            if name != settings.name
                && let Some(info) = find(client, &name).await?
            {
                found.extend(finding(settings, subject, (events, share), &info.config));
            }
        }
    }
    Ok(found)
}

/// The first of these tokens that a subject may begin with beside what another stream holds; the last where none is.
fn own_root<'t>(tokens: &[&'t str], held: &str) -> &'t str {
    let is_free = |token: &&&str| **token != "walrelay" && !overlaps(&format!("{token}.>"), held);
    let free = tokens.iter().find(is_free).or(tokens.last());
    free.expect("there is a token")
}

/// What to do where `other` takes the subject, of events by their template behind its root or of walrelay's own messages.
fn finding(
    settings: &StreamSettings,
    subject: &str,
    (events, share): (Option<Events<'_>>, Option<u32>),
    other: &StreamConfig,
) -> Option<StreamFinding> {
    let held = other.subjects.iter().find(|held| overlaps(held, subject))?;
    // Where this slot's dead letters go, its relay publishes: that finding alone tells what to do.
    if events.is_some() && owners(other).any(|slot| slot == settings.slot) {
        return None;
    }
    let name = &other.name;
    let message = if held == subject {
        format!("stream {name} already takes {subject}")
    } else {
        format!("stream {name} already takes {held}, and with it {subject}")
    };
    let own = |Events { root, under_root }: Events<'_>| {
        let stream = settings.name.to_lowercase();
        let root = own_root(&[root, &stream, "events"], held);
        format!("nats.subject (and nats.stream) to this relay's own, such as {root}.{under_root}")
    };
    let mend = match (events.map(own), owner(other)) {
        (Some(own), Some(_)) => format!("set {own}"),
        (Some(own), None) => format!("set {own}; or nats.stream to {name}, if events belong there"),
        // The other one is where a relay of this slot publishes: without the subject it would stop.
        (None, _) => {
            let [flag, shares] = match share {
                // That configuration may be of fewer shares, among which this one was none.
                Some(number) => [
                    format!(" --share {number}"),
                    format!(
                        ", and relay.shares = {} or more",
                        (number + 1).next_power_of_two().max(2)
                    ),
                ],
                None => [String::new(), String::new()],
            };
            format!(
                "where this relay has published to {name}, run walrelay move{flag} --to-stream {} with the configuration of that \
                 one{shares}; else set name, or postgres.slot, to one that no other relay at this NATS has",
                settings.name
            )
        }
    };
    Some(StreamFinding {
        code: STREAM,
        severity: StreamSeverity::Blocks,
        message,
        command: Some(mend),
    })
}

/// The streams with subjects that overlap; none where nobody may ask, since the server itself refuses to make another.
async fn names(
    client: &Admin,
    settings: &StreamSettings,
    subject: &str,
) -> Result<Vec<String>, StreamError> {
    #[derive(Deserialize)]
    struct Answer {
        streams: Option<Vec<String>>,
    }
    let failed = |source| answer_error("a search for the subjects", &settings.name)(source);
    let body = serde_json::json!({ "subject": subject }).to_string();
    let api = format!("{}.STREAM.NAMES", client.api_prefix());
    let answer = match request(client, api, body.into()).await {
        Ok(answer) => answer,
        Err(StreamError::Request { .. } | StreamError::Denied(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    refuse(&answer).map_err(failed)?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| failed(error.into()))?;
    Ok(answer.streams.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_proposed_is_accepted() {
        for (tokens, held, root) in [
            (["slot", "orders", "events"], "outbox.>", "slot"),
            (["walrelay", "orders", "events"], "outbox.>", "orders"),
            (["walrelay", "outbox", "events"], "outbox.>", "events"),
        ] {
            assert_eq!(own_root(&tokens, held), root);
            let template = format!("{root}.{{event_type}}");
            assert!(
                template
                    .parse::<crate::event::subject::SubjectTemplate>()
                    .is_ok()
            );
        }
    }
}
