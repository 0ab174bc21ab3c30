//! From a row to the parts of its message: subject, headers, body.
//!
//! In: a [`Row`] and the [`Mapping`]. Out: the parts, or a [`Reject`]. The six columns in their envelope go the short way,
//! [`Envelope`]; every other mapping is written here, CloudEvents in `cloud_events`.

mod cloud_events;

use super::bytes::{bytes_of, id_of_bytes};
use super::envelope::{Envelope, Reject, escaped, event_version, shown};
use super::event_id;
use super::fields::Field;
use super::kind::Kind;
use super::limit::SizeLimit;
use super::mapping::{Extra, Format, HeaderValues, Mapping, Value};
use super::pgoutput::Column;
use super::row::Row;
use super::subject::Placeholder;
use super::value::{
    is_json, push_commit_time, push_header, push_id, push_json, push_moment, push_string,
};
use std::borrow::Cow;

/// A message's body.
#[derive(Debug)]
pub enum Composed<'a> {
    /// To be written by itself.
    Envelope(Envelope<'a>),
    /// The payload as it is.
    Payload(&'a [u8]),
    /// What stands in the buffer now.
    Written,
}

/// Makes the parts of a row's message: replaces `subject`, appends whole lines to `headers`, and replaces `body` where that
/// is the answer.
///
/// # Errors
/// Why the row can be no event. What stands in the buffers is then only to be shown.
#[inline]
pub(crate) fn compose<'a>(
    row: &Row<'a>,
    mapping: &Mapping,
    subject: &mut Vec<u8>,
    headers: &mut Vec<u8>,
    body: &mut Vec<u8>,
) -> Result<Composed<'a>, Reject> {
    let composed = if mapping.is_plain() && is_plain(row) {
        Composed::Envelope(Envelope::of(row)?)
    } else {
        let event = Event { row, mapping };
        event.compose(headers, body)?
    };
    let event = Event { row, mapping };
    mapping
        .subject
        .render(|placeholder| event.placeholder(placeholder), subject)
        .map_err(|error| Reject::Subject {
            error,
            subject: shown(subject),
        })?;
    if mapping.has_headers() {
        event.push_headers(headers)?;
    }
    Ok(composed)
}

/// Whether each value goes into the envelope as it is, in quotes or not.
#[inline]
fn is_plain(row: &Row<'_>) -> bool {
    let is_text = |field| matches!(row.kind(field), Kind::Text | Kind::Padded);
    row.kind(Field::Payload) == Kind::Json
        && row.kind(Field::OccurredAt) == Kind::Time
        && is_text(Field::Id)
        && is_text(Field::AggregateId)
}

/// A value with what it is.
type Typed<'a> = (Kind, Cow<'a, [u8]>);

struct Event<'r, 'a> {
    row: &'r Row<'a>,
    mapping: &'r Mapping,
}

impl<'a> Event<'_, 'a> {
    /// Kind and text of a field; none where the message does without it.
    fn get(&self, field: Field) -> Result<Option<Typed<'a>>, Reject> {
        match self.mapping.columns.get(field) {
            Value::Absent => Ok(None),
            Value::Constant(text) => Ok(Some((Kind::Text, Cow::Owned(text.clone().into_bytes())))),
            Value::Column(_) => {
                let text = super::envelope::text(self.row, field)?;
                Ok(Some((self.row.kind(field), Cow::Borrowed(text))))
            }
        }
    }

    fn placeholder(&self, placeholder: Placeholder) -> Option<Cow<'a, [u8]>> {
        let (kind, text) = match placeholder {
            Placeholder::Column(index) => {
                let (kind, column) = self.row.extras()[index];
                (kind, Cow::Borrowed(column_text(column)?))
            }
            Placeholder::Id => self.get(Field::Id).ok()??,
            Placeholder::EventType => self.get(Field::EventType).ok()??,
            Placeholder::AggregateId => self.get(Field::AggregateId).ok()??,
            Placeholder::EventVersion => self.get(Field::EventVersion).ok()??,
        };
        Some(match kind {
            Kind::Bytes => Cow::Owned(id_of_bytes(&text)),
            _ => text,
        })
    }

    fn push_headers(&self, headers: &mut Vec<u8>) -> Result<(), Reject> {
        headers.extend_from_slice(self.mapping.message.table_header().as_bytes());
        let message = &self.mapping.message;
        for told in self.told(self.mapping.first_header(), &message.headers) {
            let (name, kind, text) = told?;
            headers.extend_from_slice(name.as_bytes());
            headers.extend_from_slice(b": ");
            push_header(headers, name, message.header_values, kind, text)?;
            headers.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn compose(&self, headers: &mut Vec<u8>, body: &mut Vec<u8>) -> Result<Composed<'a>, Reject> {
        body.clear();
        match self.mapping.message.format {
            Format::Envelope => self.envelope(body)?,
            Format::CloudEventsJson => {
                headers.extend_from_slice(b"content-type: application/cloudevents+json\r\n");
                self.cloud_event(body)?;
            }
            Format::Payload | Format::PayloadString => {
                self.push_id_header(headers)?;
                if !self.mapping.message.fields.is_empty() {
                    self.payload_with_fields(body)?;
                } else if self.mapping.message.format == Format::PayloadString {
                    self.push_payload_string(body)?;
                } else {
                    return self.data(body);
                }
            }
            Format::CloudEvents => {
                self.attributes(headers)?;
                return self.data(body);
            }
        }
        Ok(Composed::Written)
    }

    fn id(&self) -> Result<Typed<'a>, Reject> {
        self.get(Field::Id)?.ok_or(Reject::Null(Field::Id))
    }

    /// `id: <value>`. What begins like JSON is always JSON, so that readers need no settings to tell an id; and so is what has blanks at
    /// its ends, which they take off, or is nothing else.
    fn push_id_header(&self, headers: &mut Vec<u8>) -> Result<(), Reject> {
        let (kind, id) = self.id()?;
        headers.extend_from_slice(b"id: ");
        let as_json = self.mapping.message.header_values == HeaderValues::Json;
        if as_json || begins_like_json(&id) || !is_whole(&id) {
            push_id(headers, kind, &id);
        } else {
            let text = id_text(kind, &id);
            push_header(headers, "id", HeaderValues::Text, Kind::Text, &text)?;
        }
        headers.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// The payload by itself; nothing of a tombstone.
    fn data(&self, body: &mut Vec<u8>) -> Result<Composed<'a>, Reject> {
        let Some((kind, text)) = self.payload()? else {
            return Ok(Composed::Payload(b""));
        };
        match (kind, text) {
            (Kind::Bytes, text) => {
                body.extend_from_slice(&bytes_of(&text));
                Ok(Composed::Written)
            }
            (_, Cow::Borrowed(text)) => Ok(Composed::Payload(text)),
            (_, Cow::Owned(text)) => {
                body.extend_from_slice(&text);
                Ok(Composed::Written)
            }
        }
    }

    /// Kind and text of the payload; none for a tombstone.
    fn payload(&self) -> Result<Option<Typed<'a>>, Reject> {
        if self.mapping.message.tombstones && self.row.get(Field::Payload) == Column::Null {
            return Ok(None);
        }
        match self.get(Field::Payload)? {
            Some(payload) => Ok(Some(payload)),
            None => Err(Reject::Null(Field::Payload)),
        }
    }

    /// The payload's text as one JSON string, a bytea in base64; `null` of a tombstone.
    fn push_payload_string(&self, out: &mut Vec<u8>) -> Result<(), Reject> {
        match self.payload()? {
            None => out.extend_from_slice(b"null"),
            Some((Kind::Bytes, text)) => push_json(out, Kind::Bytes, &text),
            Some((_, text)) => push_string(out, &text),
        }
        Ok(())
    }

    fn payload_with_fields(&self, body: &mut Vec<u8>) -> Result<(), Reject> {
        let mut object = Object::open(body);
        match self.mapping.message.format {
            Format::PayloadString => self.push_payload_string(object.key("payload"))?,
            _ => self.push_payload(&mut object, "payload", "payload")?,
        }
        self.push_fields(&mut object)?;
        object.close();
        Ok(())
    }

    fn envelope(&self, body: &mut Vec<u8>) -> Result<(), Reject> {
        let mut object = Object::open(body);
        let (kind, id) = self.id()?;
        push_id(object.key("id"), kind, &id);
        if let Some((kind, id)) = self.get(Field::AggregateId)? {
            push_id(object.key("aggregate_id"), kind, &id);
        }
        if let Some((_, text)) = self.get(Field::EventType)? {
            push_string(object.key("event_type"), &text);
        }
        if let Some((_, text)) = self.get(Field::EventVersion)? {
            let version = event_version(&text)?;
            object.key("event_version").extend_from_slice(version);
        }
        self.moment(object.key("occurred_at"))?;
        self.push_payload(&mut object, "payload_json", "payload_base64")?;
        self.push_fields(&mut object)?;
        object.close();
        Ok(())
    }

    /// When it happened, as a JSON string.
    fn moment(&self, out: &mut Vec<u8>) -> Result<(), Reject> {
        out.push(b'"');
        self.push_moment(out)?;
        out.push(b'"');
        Ok(())
    }

    fn push_moment(&self, out: &mut Vec<u8>) -> Result<(), Reject> {
        match self.get(Field::OccurredAt)? {
            Some((kind, text)) => push_moment(out, kind, &text),
            None => push_commit_time(out, self.row.committed_at_us),
        }
    }

    /// JSON as it is, a text that is no JSON as a string, bytes in base64 under a name of their own, null of a tombstone.
    fn push_payload(
        &self,
        object: &mut Object<'_>,
        json: &str,
        base64: &str,
    ) -> Result<(), Reject> {
        let Some((kind, text)) = self.payload()? else {
            object.key(json).extend_from_slice(b"null");
            return Ok(());
        };
        match kind {
            Kind::Bytes => push_json(object.key(base64), kind, &text),
            Kind::Json => object.key(json).extend_from_slice(&text),
            _ if is_json(&text) => object.key(json).extend_from_slice(&text),
            _ => push_string(object.key(json), &text),
        }
        Ok(())
    }

    fn push_fields(&self, object: &mut Object<'_>) -> Result<(), Reject> {
        for field in self.fields() {
            let (name, kind, text) = field?;
            push_json(object.key(name), kind, text);
        }
        Ok(())
    }

    /// The further fields, but for those that are NULL.
    fn fields(&self) -> impl Iterator<Item = Result<Further<'_>, Reject>> {
        self.told(self.mapping.first_field(), &self.mapping.message.fields)
    }

    /// What these columns tell, the first of which is the row's extra at `first`.
    fn told<'e>(
        &'e self,
        first: usize,
        extras: &'e [Extra],
    ) -> impl Iterator<Item = Result<Further<'e>, Reject>> {
        let columns = self.row.extras()[first..].iter();
        extras.iter().zip(columns).filter_map(|(extra, column)| {
            let (kind, column) = *column;
            let text = not_null(column, &extra.column).transpose()?;
            Some(text.map(|text| (extra.name.as_str(), kind, text)))
        })
    }
}

/// A further header or field: its name, its kind and its text.
type Further<'e> = (&'e str, Kind, &'e [u8]);

fn begins_like_json(id: &[u8]) -> bool {
    (event_id::JSON_BEGINS.iter()).any(|&c| id.first() == Some(&(c as u8)))
}

/// Whether a reader that takes blanks off the ends has the id itself.
fn is_whole(id: &[u8]) -> bool {
    let is_plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    match is_plain(id.first()) && is_plain(id.last()) {
        true => std::str::from_utf8(id).is_ok(),
        false => std::str::from_utf8(id).is_ok_and(|id| !id.is_empty() && id.trim() == id),
    }
}

/// The text of an id.
fn id_text<'a>(kind: Kind, text: &'a [u8]) -> Cow<'a, [u8]> {
    match kind {
        Kind::Bytes => Cow::Owned(id_of_bytes(text)),
        _ => Cow::Borrowed(text),
    }
}

fn column_text(column: Column<'_>) -> Option<&[u8]> {
    match column {
        Column::Text(text) => Some(text),
        _ => None,
    }
}

/// The text of a column beyond the event's own; none for NULL.
fn not_null<'a>(column: Column<'a>, name: &str) -> Result<Option<&'a [u8]>, Reject> {
    match column {
        Column::Text(text) => Ok(Some(text)),
        Column::Null => Ok(None),
        Column::Skipped { len } => Err(Reject::TooLarge {
            bytes: len.into(),
            limit: SizeLimit::smaller(0, None),
        }),
        Column::Absent => Err(Reject::NoColumn(format!("column {name}"))),
        Column::NoText(_) => Err(Reject::NoText(format!("column {name}"))),
        Column::Unchanged | Column::Binary(_) => Err(Reject::ColumnForm(name.to_owned())),
    }
}

/// A JSON object that is written key by key.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Object {
            out,
            is_empty: true,
        }
    }

    /// Writes a key; its value is to be appended to what is returned.
    fn key(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(&escaped(name.as_bytes()));
        self.out.extend_from_slice(b"\":");
        self.out
    }

    fn close(self) {
        self.out.push(b'}');
    }
}
