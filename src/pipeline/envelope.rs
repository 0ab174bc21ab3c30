//! The envelope on the wire, written around the row's own bytes.
//!
//! In: a [`Row`]. Out: UTF-8 JSON with the fields `id`, `aggregate_id`, `event_type`, `event_version`, `occurred_at`,
//! `payload_json`, in this order; the payload is Postgres' own text, byte for byte. Or a [`Reject`]: why this row
//! can be no event. No allocation for a row whose texts need no escaping.

use super::fields::{Field, Fields};
use super::limit::SizeLimit;
use super::pgoutput::Column;
use super::row::Row;
use super::subject::SubjectError;
use bytes::BytesMut;
use std::borrow::Cow;

/// Why a row cannot be published. It will be the same at each try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// NULL where a value is needed.
    #[error("{0} is null")]
    Null(Field),
    /// An attribute of a CloudEvent that must not be empty.
    #[error("{0} is empty, which no CloudEvent permits")]
    Empty(Field),
    /// A value in a form that walrelay did not ask for.
    #[error("{0} came in an unexpected form")]
    Form(Field),
    /// The same of a column that is none of an event's own.
    #[error("column {0} came in an unexpected form")]
    ColumnForm(String),
    /// Bytes that are no text.
    #[error(
        "{0} has bytes that are no text in the database's encoding, or none that UTF-8 can write"
    )]
    NoText(String),
    /// The same of a message of the WAL, which Postgres takes as it is.
    #[error("the message has bytes that are not UTF-8")]
    MessageBytes,
    /// A column that the table did not have.
    #[error("the table had no {0} when the row was inserted")]
    NoColumn(String),
    /// Larger than the server or the stream takes.
    #[error("{bytes} bytes with its headers are more than {limit}")]
    TooLarge {
        /// Size of the message, in bytes; at least, where a column was not gathered.
        bytes: u64,
        /// What was exceeded.
        limit: SizeLimit,
    },
    /// Not in 0..=255.
    #[error("event_version {0:?} is not between 0 and 255")]
    EventVersion(String),
    /// Infinity, before Christ, or beyond the year 9999: RFC 3339 cannot write it.
    #[error("occurred_at {0:?} cannot be written in RFC 3339")]
    OccurredAt(String),
    /// The values give no subject.
    #[error("{error}: {subject:?}")]
    Subject {
        /// What is wrong with it.
        error: SubjectError,
        /// What the values gave, at most 200 characters.
        subject: String,
    },
    /// A value that would end the line of its header.
    #[error("the value of header {0} has a line break")]
    Header(String),
    /// A message of the WAL that is no row.
    #[error("the message is no JSON object of the outbox's columns: {0:?}")]
    Message(String),
    /// The broker refused just this message, and would refuse it again.
    #[error("the broker refuses it: {0}")]
    Refused(String),
}

impl Reject {
    /// A short word for the header and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Reject::Null(_) => "null",
            Reject::Empty(_) => "empty",
            Reject::Form(_) | Reject::ColumnForm(_) => "form",
            Reject::NoText(_) | Reject::MessageBytes => "no-text",
            Reject::NoColumn(_) => "no-column",
            Reject::TooLarge { .. } => "too-large",
            Reject::EventVersion(_) => "event-version",
            Reject::OccurredAt(_) => "occurred-at",
            Reject::Subject { .. } => "subject",
            Reject::Header(_) => "header",
            Reject::Message(_) => "message",
            Reject::Refused(_) => "refused",
        }
    }
}

/// An event ready to be written.
#[derive(Debug)]
pub struct Envelope<'a> {
    id: Cow<'a, [u8]>,
    aggregate_id: Cow<'a, [u8]>,
    event_type: Cow<'a, [u8]>,
    event_version: &'a [u8],
    occurred_at: [u8; OCCURRED_AT_LEN],
    payload: &'a [u8],
}

pub(super) const OCCURRED_AT_LEN: usize = "2026-11-23T04:40:52.846130Z".len();
/// What is written before each value.
const KEYS: Fields<&[u8]> = Fields {
    id: br#"{"id":""#,
    aggregate_id: br#"","aggregate_id":""#,
    event_type: br#"","event_type":""#,
    event_version: br#"","event_version":"#,
    occurred_at: br#","occurred_at":""#,
    payload: br#"","payload_json":"#,
};
const END: &[u8] = b"}";
const KEYS_LEN: usize = KEYS.id.len()
    + KEYS.aggregate_id.len()
    + KEYS.event_type.len()
    + KEYS.event_version.len()
    + KEYS.occurred_at.len()
    + KEYS.payload.len()
    + END.len();

impl<'a> Envelope<'a> {
    /// Makes the envelope of a row whose columns are those of the table that `setup` makes.
    ///
    /// # Errors
    /// Why the row can be no event.
    #[inline]
    pub fn of(row: &Row<'a>) -> Result<Self, Reject> {
        Ok(Envelope {
            id: escaped(text(row, Field::Id)?),
            aggregate_id: escaped(text(row, Field::AggregateId)?),
            event_type: escaped(text(row, Field::EventType)?),
            event_version: event_version(text(row, Field::EventVersion)?)?,
            occurred_at: occurred_at(text(row, Field::OccurredAt)?)?,
            payload: text(row, Field::Payload)?,
        })
    }

    /// Length in bytes of what [`Self::write`] appends.
    #[inline]
    pub fn len(&self) -> usize {
        KEYS_LEN
            + self.id.len()
            + self.aggregate_id.len()
            + self.event_type.len()
            + self.event_version.len()
            + OCCURRED_AT_LEN
            + self.payload.len()
    }

    /// Always false: an envelope has at least its keys.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends the JSON.
    #[inline]
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(self.len());
        for (key, value) in [
            (KEYS.id, &*self.id),
            (KEYS.aggregate_id, &*self.aggregate_id),
            (KEYS.event_type, &*self.event_type),
            (KEYS.event_version, self.event_version),
            (KEYS.occurred_at, &self.occurred_at),
            (KEYS.payload, self.payload),
        ] {
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
        out.extend_from_slice(END);
    }
}

/// A value that must be there, in text form.
#[inline]
pub(super) fn text<'a>(row: &Row<'a>, field: Field) -> Result<&'a [u8], Reject> {
    match row.get(field) {
        Column::Text(value) => Ok(value),
        Column::Null => Err(Reject::Null(field)),
        Column::NoText(_) => Err(Reject::NoText(field.to_string())),
        Column::Absent => Err(Reject::NoColumn(format!("column for {field}"))),
        Column::Unchanged | Column::Binary(_) => Err(Reject::Form(field)),
        Column::Skipped { len } => Err(Reject::TooLarge {
            bytes: len.into(),
            limit: SizeLimit::smaller(0, None),
        }),
    }
}

/// The inside of a JSON string. The value is UTF-8, see `encoding`.
#[inline]
pub(super) fn escaped(value: &[u8]) -> Cow<'_, [u8]> {
    // Each byte, without an early end: the compiler takes 16 at a time.
    let needs_it = value.iter().fold(false, |needs_it, &byte| {
        needs_it | (byte < b' ') | (byte == b'"') | (byte == b'\\')
    });
    if !needs_it {
        return Cow::Borrowed(value);
    }
    let quoted = serde_json::to_vec(&String::from_utf8_lossy(value))
        .expect("a string always has a JSON form");
    Cow::Owned(quoted[1..quoted.len() - 1].to_vec())
}

pub(super) fn event_version(value: &[u8]) -> Result<&[u8], Reject> {
    let in_range = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<u8>().ok())
        .is_some_and(|_| !value.starts_with(b"+"));
    if in_range {
        Ok(value)
    } else {
        Err(Reject::EventVersion(shown(value)))
    }
}

/// `2026-11-23 04:40:52.84613+00` (DateStyle ISO, TimeZone UTC) → `2026-11-23T04:40:52.846130Z`.
pub(crate) fn occurred_at(value: &[u8]) -> Result<[u8; OCCURRED_AT_LEN], Reject> {
    let local = value.strip_suffix(b"+00").unwrap_or(value);
    let mut written = *b"0000-00-00T00:00:00.000000Z";
    let shape_fits = local.len() >= 19
        && local.len() <= 26
        && local[..19]
            .iter()
            .zip(b"0000-00-00 00:00:00")
            .all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                _ => byte == shape,
            })
        && match &local[19..] {
            [] => true,
            [b'.', digits @ ..] => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        };
    if !shape_fits {
        return Err(Reject::OccurredAt(shown(value)));
    }
    written[..10].copy_from_slice(&local[..10]);
    written[11..19].copy_from_slice(&local[11..19]);
    if local.len() > 20 {
        written[20..local.len()].copy_from_slice(&local[20..]);
    }
    Ok(written)
}

/// How much of a value a person is shown.
pub(super) const SHOWN_BYTES_MAX: usize = 200;

/// The beginning of a value, for a message to a person.
pub(super) fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(value: &str) -> Option<String> {
        occurred_at(value.as_bytes())
            .ok()
            .map(|written| String::from_utf8(written.to_vec()).expect("ASCII"))
    }

    #[test]
    fn occurred_at_is_rfc_3339_with_microseconds() {
        let expected = Some("2026-11-23T04:40:52.846130Z".to_owned());
        assert_eq!(time("2026-11-23 04:40:52.84613+00"), expected);
        assert_eq!(time("2026-11-23 04:40:52.846130"), expected);
        assert_eq!(
            time("2026-11-23 04:40:52+00").as_deref(),
            Some("2026-11-23T04:40:52.000000Z")
        );
        for bad in [
            "infinity",
            "-infinity",
            "0044-03-15 00:00:00+00 BC",
            "100000-01-01 00:00:00+00",
            "2026-11-23 04:40:52+01",
            "2026-11-23 04:40:52.+00",
            "2026-11-23 04:40:52.1234567+00",
            "",
        ] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn event_version_is_a_u8() {
        for good in ["0", "1", "255"] {
            assert!(event_version(good.as_bytes()).is_ok());
        }
        for bad in ["256", "-1", "+1", "", "1.0", "x"] {
            assert!(event_version(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_escaped_only_where_needed() {
        assert!(matches!(escaped(b"plain.v1"), Cow::Borrowed(_)));
        assert_eq!(
            &*escaped("a\"b\\c\nd\u{1}é".as_bytes()),
            "a\\\"b\\\\c\\nd\\u0001é".as_bytes()
        );
    }
}
