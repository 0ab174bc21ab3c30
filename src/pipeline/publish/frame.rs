//! The bytes of one HPUB frame.
//!
//! In: subject, reply subject, header block, body. Out: the frame, appended. Documentation: NATS client protocol, HPUB.

use crate::pipeline::envelope::Envelope;
use bytes::BytesMut;

/// How each header block begins.
pub(super) const HEADER_VERSION: &[u8] = b"NATS/1.0\r\n";

/// The turn's frames, and room to make the next one's parts in.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    pub(super) out: &'a mut BytesMut,
    pub(super) headers: &'a mut Vec<u8>,
    pub(super) reply: &'a mut Vec<u8>,
}

impl Frames<'_> {
    /// Appends a frame of headers, reply subject (none where it is empty) and these; returns where its reply subject ends.
    #[inline]
    pub(super) fn write(&mut self, subject: &[u8], body: &Body<'_>) -> usize {
        write_frame(self.out, subject, self.reply, self.headers, body)
    }
}

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

/// The message is stored only right behind the lane's message before it.
pub(super) fn expect_last_sequence(headers: &mut Vec<u8>, sequence: u64) {
    push_number_header(headers, b"Nats-Expected-Last-Sequence: ", sequence);
}

/// Appends one HPUB frame; returns where its reply subject ends.
#[inline]
fn write_frame(
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
    out.extend_from_slice(reply);
    let reply_end = out.len();
    if !reply.is_empty() {
        out.extend_from_slice(b" ");
    }
    out.extend_from_slice(digits.format(headers.len()).as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(digits.format(total).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    body.write(out);
    out.extend_from_slice(b"\r\n");
    reply_end
}
