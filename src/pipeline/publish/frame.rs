//! The bytes of one HPUB frame.
//!
//! In: subject, reply subject, header block, body. Out: the frame, appended. Documentation: NATS client protocol, HPUB.

use crate::pipeline::envelope::Envelope;
use bytes::BytesMut;

/// What a message carries.
#[derive(Debug)]
pub enum Body<'a> {
    /// An event.
    Envelope(&'a Envelope<'a>),
    /// A dead letter.
    Bytes(&'a [u8]),
}

impl Body<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Body::Envelope(envelope) => envelope.len(),
            Body::Bytes(bytes) => bytes.len(),
        }
    }

    fn write(&self, out: &mut BytesMut) {
        match self {
            Body::Envelope(envelope) => envelope.write(out),
            Body::Bytes(bytes) => out.extend_from_slice(bytes),
        }
    }
}

pub(super) fn push_number_header(headers: &mut Vec<u8>, name: &[u8], number: u64) {
    headers.extend_from_slice(name);
    headers.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    headers.extend_from_slice(b"\r\n");
}

/// Appends one HPUB frame; returns where its reply subject begins.
#[inline]
pub(super) fn write_frame(
    out: &mut BytesMut,
    subject: &[u8],
    reply: &[u8],
    headers: &[u8],
    body: &Body<'_>,
) -> usize {
    let total = headers.len() + body.len();
    let mut digits = itoa::Buffer::new();
    out.reserve(subject.len() + reply.len() + total + 40);
    out.extend_from_slice(b"HPUB ");
    out.extend_from_slice(subject);
    out.extend_from_slice(b" ");
    let reply_at = out.len();
    out.extend_from_slice(reply);
    out.extend_from_slice(b" ");
    out.extend_from_slice(digits.format(headers.len()).as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(digits.format(total).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    body.write(out);
    out.extend_from_slice(b"\r\n");
    reply_at
}
