//! Whether the table's row with a dead letter's id is still the letter's.
//!
//! In: a letter, a row. Out: what tells that it is another one: an id may be given out again (`TRUNCATE … RESTART IDENTITY`).
//! Guarantee: a row that was mended is the letter's, whatever column the letter complains of, and so is one whose id is a UUID.

use std::collections::BTreeMap;

use super::{DeadLetter, shown_id};
use crate::pipeline::envelope;
use crate::pipeline::event_id;
use crate::pipeline::fields::Field;
use crate::pipeline::mapping::Mapping;

/// The column of `row`, by its columns' names, that tells that it is not the letter's; none where it is.
pub(crate) fn of_another<'m>(
    letter: &DeadLetter,
    row: &BTreeMap<String, Option<String>>,
    mapping: &'m Mapping,
) -> Option<&'m str> {
    if (letter.id.as_deref()).is_some_and(event_id::is_uuid) {
        return None;
    }
    // What nobody changes who mends an event, unless it is what is wrong.
    [Field::AggregateId, Field::OccurredAt]
        .into_iter()
        .filter(|field| !may_be_mended(*field, &letter.reason))
        .find_map(|field| {
            let column = mapping.columns.get(field).column()?;
            differs(letter, row, field, column).then_some(column)
        })
}

/// Whether a letter with this reason may complain of the field.
fn may_be_mended(field: Field, reason: &str) -> bool {
    match reason {
        // Of the type's version, and of the payload's length.
        "event-version" | "too-large" => false,
        "subject" | "header" | "refused" => field == Field::AggregateId,
        "occurred-at" => field == Field::OccurredAt,
        // NULL is told as such.
        "null" => false,
        _ => true,
    }
}

fn differs(
    letter: &DeadLetter,
    row: &BTreeMap<String, Option<String>>,
    field: Field,
    column: &str,
) -> bool {
    if letter.truncated.contains_key(column) {
        return false;
    }
    let beside = match field {
        Field::AggregateId => &letter.aggregate_id,
        _ => &letter.occurred_at,
    };
    let whole = letter.row.as_ref().and_then(|row| row.get(column));
    let now = row.get(column).and_then(Option::as_deref);
    let (told, now) = match (whole, beside, now) {
        (Some(Some(told)), _, Some(now)) => (told.clone(), now.to_owned()),
        (None, Some(told), Some(now)) => (told.clone(), shown_id(now)),
        _ => return false,
    };
    comparable(field, &told) != comparable(field, &now)
}

/// A time in one form, a text without the padding of char(n).
fn comparable(field: Field, value: &str) -> Vec<u8> {
    let moment = match field {
        Field::OccurredAt => envelope::occurred_at(value.as_bytes()).ok(),
        _ => None,
    };
    match moment {
        Some(moment) => moment.to_vec(),
        None => value.trim_end_matches(' ').as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(aggregate_id: &str, occurred_at: &str) -> BTreeMap<String, Option<String>> {
        [
            ("id", "1"),
            ("aggregate_id", aggregate_id),
            ("occurred_at", occurred_at),
        ]
        .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
        .into()
    }

    #[test]
    fn what_is_not_wrong_tells_the_row() {
        let (now, then) = ("2026-11-28 07:00:00.5+00", "2026-11-28 07:00:00+00");
        let mapping = Mapping::default();
        for (reason, found, another) in [
            ("subject", row("a", then), false),
            ("subject", row("b", then), false),
            ("subject", row("b", now), true),
            ("occurred-at", row("a", now), false),
            ("occurred-at", row("b", then), true),
            (
                "too-large",
                row("a", "2026-11-28 07:00:00.000000+00"),
                false,
            ),
            ("too-large", row("b", then), true),
            ("no-text", row("b", now), false),
        ] {
            let mut letter = DeadLetter {
                reason: reason.to_owned(),
                aggregate_id: Some("a".to_owned()),
                occurred_at: Some(then.to_owned()),
                row: Some(row("a", then)),
                ..DeadLetter::default()
            };
            assert_eq!(
                of_another(&letter, &found, &mapping).is_some(),
                another,
                "{reason}"
            );
            letter.row = None;
            assert_eq!(
                of_another(&letter, &found, &mapping).is_some(),
                another,
                "{reason}"
            );
        }
        let told = of_another(&DeadLetter::default(), &row("a", then), &mapping);
        assert_eq!(told, None);
    }
}
