//! The values of flags: durations, counts, subjects, ids.
//!
//! In: a flag's text. Out: the value, or the form that is expected with an example of it. Guarantee: what passes here is refused by
//! no server for its form, so nothing is asked before.

use std::ops::RangeInclusive;
use std::time::Duration;

use uuid::Uuid;

use super::exit::UsageError;
use crate::config::quantity::parse_duration;
use crate::config::syntax::is_slot;
use crate::event::subject::TemplateError;
use crate::relay::settings::Settings;

/// A duration.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "give a duration such as 30s or 5min".to_owned())
}

/// A whole number within these bounds.
pub(super) fn count<T: TryFrom<u64>>(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let within = text.parse().ok().filter(|count| bounds.contains(count));
        let count = within.and_then(|count: u64| T::try_from(count).ok());
        count.ok_or_else(|| match (bounds.start(), bounds.end()) {
            (first, &u64::MAX) => format!("give a whole number from {first} on, such as 100"),
            (first, last) => format!("give a whole number from {first} to {last}"),
        })
    }
}

/// A subject with NATS' wildcards.
pub(super) fn subject_filter(text: &str) -> Result<String, String> {
    let is_token = |token: &str| {
        let is_wildcard = matches!(token, "*" | ">");
        let has_wildcard = token.contains(['*', '>']);
        let fits = |c: char| !c.is_whitespace() && !c.is_control();
        !token.is_empty() && token.chars().all(fits) && (is_wildcard || !has_wildcard)
    };
    let rest_comes_last = text.split('.').rev().skip(1).all(|token| token != ">");
    match text.split('.').all(is_token) && rest_comes_last {
        true => Ok(text.to_owned()),
        false => Err(
            "give a subject such as outbox.lesson.published.v1, with * for any one token and > for all that follow: outbox.*.v1, \
             outbox.>"
                .to_owned(),
        ),
    }
}

/// What is expected of [`event_type`].
const EVENT_TYPE: &str = "give it as the events have it, such as lesson.published.v1, without blanks around it, or how it begins and one * \
     at the end: 'lesson.*'";

/// An event's type, or how it begins, with a star behind that.
pub(super) fn event_type(text: &str) -> Result<String, String> {
    let stars_end_it = !text.strip_suffix('*').unwrap_or(text).contains('*');
    match is_as_stored(text) && stars_end_it {
        true => Ok(text.to_owned()),
        false => Err(EVENT_TYPE.to_owned()),
    }
}

/// Looks whether events of the lane can have these types, which [`event_type`] has taken: not where each table's subjects have the type
/// as it is, and no subject can have this one.
pub(super) fn check_event_types(wanted: &[String], settings: &Settings) -> Result<(), UsageError> {
    let tables = settings.tables();
    for wanted in wanted {
        // However it goes on.
        let one = match wanted.strip_suffix('*') {
            Some(start) => format!("{start}x"),
            None => wanted.clone(),
        };
        let refused = tables.iter().map(|table| {
            let subject = &table.nats.subject;
            match subject.filter_of(&one) {
                Err(TemplateError::Subject(why)) => Err((subject, why)),
                _ => Ok(()),
            }
        });
        // Where one table's may be, it is fine.
        let refused: Result<Vec<_>, ()> = refused.map(|it| it.err().ok_or(())).collect();
        if let Some((subject, why)) = refused.ok().and_then(|all| all.into_iter().next()) {
            return Err(UsageError(format!(
                "--event-type {wanted:?}: no event has it, since events are published on {subject}, and {why}: {EVENT_TYPE}"
            )));
        }
    }
    Ok(())
}

/// An aggregate's id; a UUID in the form that messages have.
pub(super) fn aggregate_id(text: &str) -> Result<String, String> {
    let uuid = text.parse::<Uuid>().ok().map(|id| id.to_string());
    match is_as_stored(text) {
        true => Ok(uuid.unwrap_or_else(|| text.to_owned())),
        false => Err(
            "give it as the events have it, such as 019a8f3e-7c21-7b60-9d3e-2f4a5b6c7d8e, without blanks around it"
                .to_owned(),
        ),
    }
}

/// An aggregate's id, in whichever way it is written.
pub(super) fn written_id(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err(
            "give it as messages show it or as Postgres writes it, such as 019a8f3e-7c21-7b60-9d3e-2f4a5b6c7d8e"
                .to_owned(),
        ),
        false => Ok(text.to_owned()),
    }
}

/// The name of a slot.
pub(super) fn slot(text: &str) -> Result<String, String> {
    match is_slot(text) {
        true => Ok(text.to_owned()),
        false => Err("a slot's name is 1 to 63 of a-z, 0-9 and _, such as other_slot".to_owned()),
    }
}

/// A condition for a `WHERE`.
pub(super) fn condition(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err(
            "give a condition in SQL, such as \"dispatched_at IS NULL\", or leave it out"
                .to_owned(),
        ),
        false => Ok(text.to_owned()),
    }
}

/// The name of a header.
pub(super) fn header_name(text: &str) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    match !text.is_empty() && text.bytes().all(is_token) {
        true => Ok(text.to_owned()),
        false => Err(
            "a header's name is ASCII without spaces and colons, such as aggregate-id".to_owned(),
        ),
    }
}

fn is_as_stored(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control) && text.trim() == text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_counts_name_the_form_that_is_expected() {
        assert_eq!(duration("5min"), Ok(Duration::from_secs(300)));
        for bad in ["", "soon", "5", "-1s", "5 parsecs"] {
            assert!(duration(bad).unwrap_err().contains("such as 30s"), "{bad}");
        }
        let up_to_five = count::<u8>(1..=5);
        assert_eq!((up_to_five("1"), up_to_five("5")), (Ok(1), Ok(5)));
        for bad in [
            "",
            "x",
            "0",
            "6",
            "-1",
            "1.5",
            "257",
            "99999999999999999999",
        ] {
            let told = up_to_five(bad).unwrap_err();
            assert!(told.contains("from 1 to 5"), "{bad}: {told}");
        }
        let any = count::<u64>(1..=u64::MAX);
        assert_eq!(any("7"), Ok(7));
        assert!(any("0").unwrap_err().contains("from 1 on, such as"));
    }

    #[test]
    fn subjects_are_those_that_nats_takes() {
        for good in ["a", "a.b", "outbox.>", "a.*.c", "*", ">", "a.*.>", "é.1"] {
            assert_eq!(subject_filter(good), Ok(good.to_owned()));
        }
        for bad in [
            "", ".", "a..b", "a.", ".a", "a b", "a\t", "a.>.b", "a*", "a.b>", ">.*",
        ] {
            assert!(subject_filter(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn types_and_ids_are_as_events_have_them() {
        assert_eq!(event_type("lesson.*"), Ok("lesson.*".to_owned()));
        let id = "00000000-0000-0000-0000-0000000000AB";
        assert_eq!(aggregate_id(id), Ok(id.to_lowercase()));
        assert_eq!(aggregate_id("course 7"), Ok("course 7".to_owned()));
        for bad in ["", " a", "a ", "a\n"] {
            assert!(event_type(bad).is_err() && aggregate_id(bad).is_err());
        }
        assert_eq!(event_type("*"), Ok("*".to_owned()));
        for bad in ["*.a", "a*b", "a.**"] {
            assert!(event_type(bad).unwrap_err().contains("'lesson.*'"), "{bad}");
        }
    }
}
