//! `relay.shares`: one configuration for several lanes, each with a share of the rows.
//!
//! In: the layers of the whole. Out: for each lane the layers of an ordinary one, with a slot, a publication, and where `{share}` says so
//! a stream and a subject of its own. Guarantee: nothing behind this knows of the other shares.

use super::checked::{checked, invalid, required};
use super::error::ConfigError;
use super::keys::{Key, PLACEHOLDER};
use super::layers::{Layers, Value};
use super::tables;
use crate::nearest::nearest;
use crate::pipeline::reshard::Undivided;
use crate::postgres::share::Share;
use crate::relay::settings::Settings;

/// Postgres has no more slots to give than this by any sane setting.
pub(crate) const SHARES_MAX: u32 = 256;

/// What the lane of all rows has in its subject where its shares have their number.
const ALL: &str = "all";

/// The layers of one lane.
pub(super) struct LaneLayers {
    pub(super) layers: Layers,
    /// None where the lane has all rows.
    pub(super) share: Option<Share>,
    /// See [`PostgresSettings::undivided`](crate::postgres::settings::PostgresSettings::undivided).
    pub(super) undivided: Option<Undivided>,
}

/// A lane for each share, or the only one.
pub(super) fn lanes(whole: &Layers) -> Result<Vec<LaneLayers>, ConfigError> {
    check_stream(required(whole, Key::NatsStream))?;
    let count = checked(
        whole,
        Key::RelayShares,
        "a power of two from 1 to 256",
        |text| {
            let is_count = |count: &u32| *count <= SHARES_MAX && count.is_power_of_two();
            text.parse().ok().filter(is_count)
        },
    )?;
    if count == 1 {
        // In a subject it may be a column's name.
        let stream = required(whole, Key::NatsStream);
        if stream.text.contains(PLACEHOLDER) {
            let expected = "without {share}: relay.shares is 1".to_owned();
            return Err(invalid(Key::NatsStream, stream, expected));
        }
        return Ok(vec![LaneLayers {
            layers: whole.clone(),
            share: None,
            undivided: undivided(whole),
        }]);
    }
    let aggregate = required(whole, Key::ColumnsAggregateId);
    if aggregate.text.is_empty() || aggregate.text.trim_start().starts_with('{') {
        let expected =
            "a column where relay.shares is more than 1: it tells a row's share".to_owned();
        return Err(invalid(Key::ColumnsAggregateId, aggregate, expected));
    }
    let messages = required(whole, Key::SourceMessages);
    if !messages.text.is_empty() {
        let expected =
            "\"\" where relay.shares is more than 1: each slot has all messages".to_owned();
        return Err(invalid(Key::SourceMessages, messages, expected));
    }
    let (stream, subject) = (
        required(whole, Key::NatsStream),
        required(whole, Key::NatsSubject),
    );
    let own_streams = stream.text.contains(PLACEHOLDER);
    if own_streams && !subject.text.contains(PLACEHOLDER) {
        let expected = "with {share} where nats.stream has it, such as \"outbox.{share}.{event_type}\": a subject is in one stream only";
        return Err(invalid(Key::NatsSubject, subject, expected.to_owned()));
    }
    tables::check_divided(whole, own_streams)?;
    Ok((0..count)
        .map(|number| lane(whole, number, count, own_streams))
        .collect())
}

/// A placeholder that is mistyped would be the name of one stream of all shares.
fn check_stream(stream: &Value) -> Result<(), ConfigError> {
    let text = stream.text.replace(PLACEHOLDER, "");
    let Some(open) = text.find(['{', '}']) else {
        return Ok(());
    };
    let named = (text[open..].strip_prefix('{')).and_then(|rest| rest.split_once('}'));
    let expected = match named {
        Some((name, _)) => {
            let known = PLACEHOLDER.trim_matches(['{', '}']);
            let hint = nearest(name, [known]).map(|_| format!("; did you mean {PLACEHOLDER}?"));
            format!(
                "a name whose only placeholder is {PLACEHOLDER}: {{{name}}} is none{}",
                hint.unwrap_or_default()
            )
        }
        None => format!("a name with braces around {PLACEHOLDER} alone: one has no partner"),
    };
    Err(invalid(Key::NatsStream, stream, expected))
}

/// Which of `count` lanes `relay.share` names; none where it names none.
pub(super) fn pinned(layers: &Layers, count: usize) -> Result<Option<usize>, ConfigError> {
    if layers.get(Key::RelayShare).is_none() {
        return Ok(None);
    }
    let expected = format!("a number below relay.shares, which is {count}");
    let parse = |text: &str| text.parse().ok().filter(|share| *share < count);
    checked(layers, Key::RelayShare, &expected, parse).map(Some)
}

/// A stream of several lanes takes what each of them publishes.
pub(super) fn join_streams(lanes: &mut [Settings]) {
    let own = lanes
        .iter()
        .map(|lane| lane.nats.own_subjects(&lane.postgres.slot));
    let mut subjects: Vec<String> = own.flatten().collect();
    subjects.sort_unstable();
    subjects.dedup();
    for lane in lanes
        .iter_mut()
        .filter(|lane| lane.nats.shared && lane.postgres.share.is_some())
    {
        lane.nats.neighbours.clone_from(&subjects);
    }
}

/// Lanes that one process may have at once; none where it may have all.
pub(super) fn lanes_max(layers: &Layers) -> Result<Option<usize>, ConfigError> {
    let key = Key::RelayMaxSharesPerInstance;
    if layers.get(key).is_none() {
        return Ok(None);
    }
    let is_count = |count: &usize| (1..=SHARES_MAX as usize).contains(count);
    let parse = |text: &str| text.parse().ok().filter(is_count);
    checked(layers, key, "a number from 1 to 256", parse).map(Some)
}

fn lane(whole: &Layers, number: u32, count: u32, own_streams: bool) -> LaneLayers {
    let mut layers = whole.clone();
    for key in [Key::NatsStream, Key::NatsSubject] {
        layers.rewrite(key, |text| text.replace(PLACEHOLDER, &number.to_string()));
    }
    for key in [Key::PostgresSlot, Key::PostgresPublication] {
        layers.rewrite(key, |text| format!("{text}_{number}"));
    }
    if !own_streams {
        // The other shares write to it.
        layers.rewrite(Key::NatsShared, |_| "true".to_owned());
    }
    LaneLayers {
        layers,
        share: Some(Share {
            number,
            count,
            whole_slot: required(whole, Key::PostgresSlot).text.clone(),
            whole_publication: required(whole, Key::PostgresPublication).text.clone(),
        }),
        undivided: undivided(whole),
    }
}

/// Where the lane of all rows publishes: as it is configured, or as the names of the shares' streams and subjects are without the number.
fn undivided(whole: &Layers) -> Option<Undivided> {
    let [stream, subject, slot] = [Key::NatsStream, Key::NatsSubject, Key::PostgresSlot]
        .map(|key| required(whole, key).text.clone());
    let is_own = !stream.contains(PLACEHOLDER);
    if !is_own {
        let named = Some(bare(&stream)).filter(|name| !name.is_empty());
        return Some(Undivided {
            stream: named.unwrap_or_else(|| slot.to_uppercase()),
            subject: bare_subject(&subject),
            is_own,
            is_told: false,
        });
    }
    let is_shared = required(whole, Key::NatsShared).text == "true";
    let is_of_all = required(whole, Key::RelayShares).text.trim() == "1";
    (is_of_all && !is_shared).then_some(Undivided {
        stream,
        subject,
        is_own,
        is_told: true,
    })
}

/// A name without the share's number and what divides that from the rest.
fn bare(name: &str) -> String {
    let divided = ["_", "-"].map(|sign| {
        [
            format!("{sign}{PLACEHOLDER}"),
            format!("{PLACEHOLDER}{sign}"),
        ]
    });
    let parts = divided.as_flattened().iter().map(String::as_str);
    let mut bare = name.to_owned();
    for part in parts.chain([PLACEHOLDER]) {
        bare = bare.replace(part, "");
    }
    bare
}

/// The same of each part of a subject, but [`ALL`] for one that is a number and nothing else: without it the subjects of the lane of all
/// rows would be the shares' too, and those are in other streams.
fn bare_subject(subject: &str) -> String {
    let part = |part| match part {
        PLACEHOLDER => ALL.to_owned(),
        part => bare(part),
    };
    subject.split('.').map(part).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::subject::SubjectTemplate;

    #[test]
    fn names_without_a_number() {
        for (name, expected) in [
            ("OUTBOX_{share}", "OUTBOX"),
            ("{share}-outbox", "outbox"),
            ("A_{share}_B", "A_B"),
            ("S{share}", "S"),
            ("{share}", ""),
        ] {
            assert_eq!(bare(name), expected);
        }
        for (subject, expected) in [
            ("outbox.{share}.{event_type}", "outbox.all.{event_type}"),
            ("outbox-{share}.{event_type}", "outbox.{event_type}"),
            ("{share}.{event_type}", "all.{event_type}"),
        ] {
            let bare = bare_subject(subject);
            assert_eq!(bare, expected);
            assert!(bare.parse::<SubjectTemplate>().is_ok());
        }
    }
}
