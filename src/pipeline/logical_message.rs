//! A message that was written into the WAL without a table, `pg_logical_emit_message`, as a row of the outbox.
//!
//! In: its content: a JSON object whose keys are the names of the outbox's columns. Out: a [`Row`], which every mapping takes as it takes
//! those of the table; or why it is none.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::envelope::{Reject, shown};
use super::fields::{Field, Fields};
use super::kind::Kind;
use super::limit::SizeLimit;
use super::mapping::{Mapping, Value};
use super::pgoutput::Column;
use super::relations::Relations;
use super::row::Row;

/// The content, taken apart: by the name of its column what each value is, and its text as Postgres would send it; none of null.
#[derive(Debug, Default)]
pub struct MessageRow {
    values: BTreeMap<String, Option<(Kind, String)>>,
}

impl MessageRow {
    /// Takes a content apart. What it names as a column was called before has the column's name of now.
    ///
    /// # Errors
    /// It is no JSON object, no text, or was too long to be gathered.
    pub(crate) fn read_of(content: Column<'_>, relations: &Relations) -> Result<Self, Reject> {
        Self::read(content, relations.mapping(), |name, has| {
            let mut former = relations.former_names(name);
            former.find(|former| has(former)).map(str::to_owned)
        })
    }

    /// As [`Self::read_of`]; `former` gives the former name of a column that the content has.
    fn read(
        content: Column<'_>,
        mapping: &Mapping,
        former: impl Fn(&str, &dyn Fn(&str) -> bool) -> Option<String>,
    ) -> Result<Self, Reject> {
        let content = match content {
            Column::Text(content) if str::from_utf8(content).is_ok() => content,
            Column::Text(_) => return Err(Reject::MessageBytes),
            Column::Skipped { len } => {
                return Err(Reject::TooLarge {
                    bytes: len.into(),
                    limit: SizeLimit::smaller(0, None),
                });
            }
            _ => return Err(Reject::NoText("the message".to_owned())),
        };
        let refused = |_| Reject::Message(shown(content));
        let mut object: BTreeMap<String, &RawValue> =
            serde_json::from_slice(content).map_err(refused)?;
        for name in mapping.names() {
            if object.contains_key(name) {
                continue;
            }
            let before = former(name, &|former| object.contains_key(former));
            if let Some(value) = before.and_then(|before| object.remove(&before)) {
                object.insert(name.to_owned(), value);
            }
        }
        let is = |name: &str, value: &Value| value.column() == Some(name);
        let values = object.into_iter().map(|(name, json)| {
            let json = json.get();
            let value = match json.as_bytes().first() {
                Some(b'n') => None,
                _ if is(&name, &mapping.columns.payload) => Some((Kind::Json, json.to_owned())),
                _ if is(&name, &mapping.columns.occurred_at) => Some(moment(json)),
                _ => Some(typed(json)),
            };
            (name, value)
        });
        Ok(MessageRow {
            values: values.collect(),
        })
    }

    /// What the mapping takes of it. A key that is not there is a NULL.
    pub fn row(&self, mapping: &Mapping, committed_at_us: i64) -> Row<'_> {
        let of_field = |field: Field| self.of(mapping.columns.get(field).column());
        let fields = Fields {
            id: Field::Id,
            aggregate_id: Field::AggregateId,
            event_type: Field::EventType,
            event_version: Field::EventVersion,
            occurred_at: Field::OccurredAt,
            payload: Field::Payload,
        };
        let extras = mapping.extras().iter().map(|name| self.of(Some(name)));
        Row::new(
            fields.map(|field| of_field(field).1),
            fields.map(|field| of_field(field).0),
            extras.collect(),
            committed_at_us,
        )
    }

    /// All that it holds, for its dead letter.
    pub fn columns(&self) -> Vec<(String, Column<'_>)> {
        let names = self.values.keys();
        names
            .map(|name| (name.clone(), self.of(Some(name)).1))
            .collect()
    }

    /// What its values are.
    pub fn kinds(&self) -> BTreeMap<String, Kind> {
        let kinds = self.values.iter();
        kinds
            .filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.0)))
            .collect()
    }

    fn of(&self, name: Option<&str>) -> (Kind, Column<'_>) {
        match name.and_then(|name| self.values.get(name)?.as_ref()) {
            Some((kind, text)) => (*kind, Column::Text(text.as_bytes())),
            None => (Kind::default(), Column::Null),
        }
    }
}

fn typed(json: &str) -> (Kind, String) {
    match json.as_bytes().first() {
        Some(b'"') => (Kind::Text, serde_json::from_str(json).unwrap_or_default()),
        Some(b't' | b'f') => (Kind::Truth, json.to_owned()),
        Some(b'{' | b'[') => (Kind::Json, json.to_owned()),
        _ if json.contains(['.', 'e', 'E']) => (Kind::Number, json.to_owned()),
        _ => (Kind::Integer, json.to_owned()),
    }
}

/// A time as Postgres sends it, which JSON functions write in RFC 3339 with the session's offset; or milliseconds.
fn moment(json: &str) -> (Kind, String) {
    let (kind, text) = typed(json);
    if kind != Kind::Text {
        return (kind, text);
    }
    let utc = chrono::DateTime::parse_from_rfc3339(&text).map(|time| {
        let utc = time.to_utc();
        utc.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
    });
    (Kind::Time, utc.unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_columns_and_values_have_their_kinds() {
        let mapping = Mapping::default();
        let text = |text| Column::Text(text);
        let content = br#"{"id":"a\"b","aggregate_id":7,"event_type":"x.y","occurred_at":"2026-11-28T08:05:32.5+01:00",
            "payload_json":{"n": 1e400},"event_version":null,"tenant":true}"#;
        let read = |content| MessageRow::read(content, &mapping, |_, _| None);
        let message = read(text(content)).unwrap();
        let row = message.row(&mapping, 0);
        assert_eq!(row.get(Field::Id), text(b"a\"b"));
        assert_eq!(
            (row.kind(Field::AggregateId), row.get(Field::AggregateId)),
            (Kind::Integer, text(b"7"))
        );
        assert_eq!(
            row.get(Field::OccurredAt),
            text(b"2026-11-28 07:05:32.500000+00")
        );
        assert_eq!(row.get(Field::Payload), text(br#"{"n": 1e400}"#));
        assert_eq!(row.get(Field::EventVersion), Column::Null);
        assert_eq!(message.columns().len(), 7);
        assert_eq!(message.of(Some("tenant")), (Kind::Truth, text(b"true")));
        for bad in [&b""[..], b"[1]", b"x", b"\"text\""] {
            assert!(matches!(read(text(bad)), Err(Reject::Message(_))));
        }
        let bytes = read(text(b"\xff"));
        assert!(matches!(bytes, Err(Reject::MessageBytes)));
    }

    #[test]
    fn a_key_may_be_what_its_column_was_called() {
        let mapping = Mapping::default();
        let former = |name: &str, has: &dyn Fn(&str) -> bool| {
            let former = name == "payload_json" && has("body");
            former.then(|| "body".to_owned())
        };
        let payload = |content: &[u8]| {
            let message = MessageRow::read(Column::Text(content), &mapping, former).unwrap();
            match message.row(&mapping, 0).get(Field::Payload) {
                Column::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(payload(br#"{"body":{"n": 1}}"#), r#"{"n": 1}"#);
        // What it is called now goes before.
        assert_eq!(payload(br#"{"body":1,"payload_json":2}"#), "2");
    }
}
