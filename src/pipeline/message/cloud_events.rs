//! A row's message as a CloudEvent (1.0.2): in structured mode one JSON object, in binary mode a header for each attribute.
//!
//! In: an [`Event`]. Out: its body or its headers, or a [`Reject`].

use super::{Event, Object, Typed, id_text};
use crate::pipeline::bytes::id_of_bytes;
use crate::pipeline::envelope::{Reject, event_version};
use crate::pipeline::fields::Field;
use crate::pipeline::kind::Kind;
use crate::pipeline::mapping::HeaderValues;
use crate::pipeline::value::{is_json, push_header, push_json, push_string};
use std::borrow::Cow;

impl<'a> Event<'_, 'a> {
    /// Structured mode. CloudEvents 1.0.2, JSON event format.
    pub(super) fn cloud_event(&self, body: &mut Vec<u8>) -> Result<(), Reject> {
        let mut object = Object::open(body);
        push_string(object.key("specversion"), b"1.0");
        let (kind, id) = self.id()?;
        push_string(object.key("id"), required(Field::Id, &id_text(kind, &id))?);
        push_string(object.key("source"), self.mapping.message.source.as_bytes());
        let (_, text) = self.event_type()?;
        let text = required(Field::EventType, &text)?;
        push_string(object.key("type"), text);
        self.moment(object.key("time"))?;
        if let Some(subject) = self.cloud_subject()? {
            push_string(object.key("subject"), &subject);
        }
        if let Some((_, text)) = self.get(Field::EventVersion)? {
            let version = event_version(&text)?;
            object.key("eventversion").extend_from_slice(version);
        }
        self.push_attributes(&mut object)?;
        if let Some(content_type) = self.content_type()? {
            push_string(object.key("datacontenttype"), content_type);
            self.push_payload(&mut object, "data", "data_base64")?;
        }
        object.close();
        Ok(())
    }

    /// Binary mode: each attribute in a header of its own (CloudEvents, NATS protocol binding, working draft).
    pub(super) fn attributes(&self, headers: &mut Vec<u8>) -> Result<(), Reject> {
        headers.extend_from_slice(b"ce-specversion: 1.0\r\n");
        let (kind, id) = self.id()?;
        attribute(headers, "id", required(Field::Id, &id_text(kind, &id))?);
        attribute(headers, "source", self.mapping.message.source.as_bytes());
        let (_, text) = self.event_type()?;
        attribute(headers, "type", required(Field::EventType, &text)?);
        headers.extend_from_slice(b"ce-time: ");
        self.push_moment(headers)?;
        headers.extend_from_slice(b"\r\n");
        if let Some(subject) = self.cloud_subject()? {
            attribute(headers, "subject", &subject);
        }
        if let Some((_, text)) = self.get(Field::EventVersion)? {
            attribute(headers, "eventversion", event_version(&text)?);
        }
        for field in self.fields() {
            let (name, kind, text) = field?;
            let mut value = Vec::new();
            push_header(&mut value, name, HeaderValues::Text, kind, text)?;
            attribute(headers, name, &value);
        }
        if let Some(content_type) = self.content_type()? {
            attribute(headers, "datacontenttype", content_type);
        }
        Ok(())
    }

    /// Further attributes, whose types are CloudEvents' own (1.0.2, 3, "Type System"): Boolean, an Integer of 32 bits, else a String,
    /// which has what the header of binary mode has.
    fn push_attributes(&self, object: &mut Object<'_>) -> Result<(), Reject> {
        for field in self.fields() {
            let (name, kind, text) = field?;
            let out = object.key(name);
            match kind {
                Kind::Number | Kind::Json => push_string(out, text),
                Kind::Integer if !is_cloud_integer(text) => push_string(out, text),
                _ => push_json(out, kind, text),
            }
        }
        Ok(())
    }

    fn event_type(&self) -> Result<Typed<'a>, Reject> {
        self.get(Field::EventType)?
            .ok_or(Reject::Null(Field::EventType))
    }

    /// The aggregate. An attribute that is there is not empty (CloudEvents 1.0.2, 3.1.2).
    fn cloud_subject(&self) -> Result<Option<Cow<'a, [u8]>>, Reject> {
        let typed = self.get(Field::AggregateId)?;
        let text = typed.map(|(kind, id)| match kind {
            Kind::Bytes => Cow::Owned(id_of_bytes(&id)),
            _ => id,
        });
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// Of a text by what it holds: beside any other type than JSON, `data` has to be a string (CloudEvents 1.0.2, JSON event format,
    /// 3.1.1).
    fn content_type(&self) -> Result<Option<&'static [u8]>, Reject> {
        Ok(self.payload()?.map(|(kind, text)| match kind {
            Kind::Bytes => b"application/octet-stream".as_slice(),
            Kind::Json => b"application/json",
            _ if is_json(&text) => b"application/json",
            _ => b"text/plain",
        }))
    }
}

/// A required attribute of a CloudEvent, which must not be empty (1.0.2, 3.1.1).
fn required(field: Field, text: &[u8]) -> Result<&[u8], Reject> {
    match text.is_empty() {
        true => Err(Reject::Empty(field)),
        false => Ok(text),
    }
}

/// Whether a whole number is an Integer of CloudEvents.
fn is_cloud_integer(text: &[u8]) -> bool {
    str::from_utf8(text).is_ok_and(|text| text.parse::<i32>().is_ok())
}

/// `ce-<name>: <value>`. What is no printable ASCII, and space, `"` and `%`, is percent-encoded (HTTP protocol binding, 3.1.3.2).
fn attribute(headers: &mut Vec<u8>, name: &str, text: &[u8]) {
    headers.extend_from_slice(b"ce-");
    headers.extend_from_slice(name.as_bytes());
    headers.extend_from_slice(b": ");
    for &byte in text {
        match byte {
            b'"' | b'%' => percent(headers, byte),
            b'!'..=b'~' => headers.push(byte),
            _ => percent(headers, byte),
        }
    }
    headers.extend_from_slice(b"\r\n");
}

fn percent(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[
        b'%',
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}
