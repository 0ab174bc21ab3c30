//! Atomic batches behind a fence, for a stream that others write to (nats-server 2.12, ADR-50).
//!
//! In: rows and answers. Out: headers, the committing message on the lane's fence subject. Guarantee: a batch is stored whole
//! behind the lane's last fence, or not at all.

use super::answer::excerpt;
use super::frame::{push_number_header, write_frame};
use super::{Body, HEADER_VERSION, Window, tail_header};
use crate::pipeline::fault::{Class, Fault};
use crate::pipeline::position::TAIL_HEADER;
use bytes::BytesMut;

impl Window {
    pub(super) fn atomic_headers(&mut self) {
        let (number, sequence) = match &self.batch {
            Some(batch) => (batch.number, self.published - batch.before + 1),
            None => (self.batches + 1, 1),
        };
        self.headers.extend_from_slice(b"Nats-Batch-Id: ");
        self.headers
            .extend_from_slice(self.settings.epoch_token.as_bytes());
        push_number_header(&mut self.headers, b"-", number);
        push_number_header(&mut self.headers, b"Nats-Batch-Sequence: ", sequence);
        if sequence == 1 {
            push_number_header(
                &mut self.headers,
                b"Nats-Expected-Last-Subject-Sequence: ",
                self.last_sequence,
            );
            let fence = format!(
                "Nats-Expected-Last-Subject-Sequence-Subject: {}\r\nNats-Expected-Stream: {}\r\n",
                self.settings.fence_subject, self.settings.stream
            );
            self.headers.extend_from_slice(fence.as_bytes());
        }
    }

    pub(super) fn atomic_append(&mut self) {
        let (number, sequence) = self.join_batch();
        self.atomic_reply(number, sequence);
    }

    pub(super) fn atomic_reply(&mut self, batch: u64, sequence: u64) {
        self.reply.clear();
        self.reply.extend_from_slice(
            format!(
                "{}.{}-{batch}.{sequence}",
                self.settings.inbox, self.settings.epoch_token
            )
            .as_bytes(),
        );
    }

    /// The last message of an atomic batch: on the lane's fence subject, with the position of the batch's last event.
    pub(super) fn atomic_commit(&mut self, out: &mut BytesMut, tail: &str) {
        self.headers.clear();
        self.headers.extend_from_slice(HEADER_VERSION);
        self.headers
            .extend_from_slice(format!("{TAIL_HEADER}: {tail}\r\n").as_bytes());
        self.atomic_headers();
        self.headers
            .extend_from_slice(b"Nats-Batch-Commit: 1\r\n\r\n");
        let (number, sequence) = self.join_batch();
        self.atomic_reply(number, sequence);
        let subject = self.settings.fence_subject.clone();
        write_frame(
            out,
            subject.as_bytes(),
            &self.reply,
            &self.headers,
            &Body::Bytes(b""),
        );
    }

    /// The lane's last position once everything published is stored, as its fence tells it.
    pub(super) fn lane_tail(&self) -> Option<String> {
        let sent = self.sent.iter().rev().find(|sent| sent.first_publication)?;
        Some(tail_header(
            &self.settings.slot,
            sent.position,
            Some(&sent.event_id.to_string()),
        ))
    }

    pub(super) fn atomic_answer(
        &mut self,
        token: &[u8],
        status: Option<u16>,
        payload: &[u8],
    ) -> Result<u64, Fault> {
        let (before, committing, id) = self.answered_batch(token)?;
        if payload.is_empty() && status.is_none() {
            // Taken into the batch, not stored yet.
            return Ok(self.acknowledged);
        }
        // The reply subject says which message is answered; the one behind the rows is the lane's own.
        let number = token
            .get(id.len() + 1..)
            .and_then(|rest| std::str::from_utf8(rest).ok()?.parse::<u64>().ok())
            .map_or(before + 1, |sequence| before.saturating_add(sequence));
        let is_own = committing && number > self.published;
        let answer = match self.read_answer(status, payload, number) {
            Err(Fault::Sequence(text)) => {
                self.refused_whole = true;
                return Err(Fault::Sequence(text));
            }
            Err(refused @ Fault::Refused { .. }) if is_own && refused.class() == Class::Row => {
                return Err(Fault::Broker(format!(
                    "stream {} does not take the lane's own message: {}",
                    self.settings.stream,
                    excerpt(payload)
                )));
            }
            answer => answer?,
        };
        let count = self.published - before + 1;
        match answer.seq {
            Some(sequence)
                if committing
                    && answer.stream.as_deref() == Some(&self.settings.stream)
                    && answer.batch.as_deref() == Some(&id)
                    && answer.count == Some(count)
                    && sequence >= self.last_sequence + count =>
            {
                self.last_sequence = sequence;
                self.batch = None;
                Ok(self.published)
            }
            _ => Err(Fault::Answer(excerpt(payload))),
        }
    }
}
