//! Fast ingest: batches with gap `fail`, each message expecting the last sequence (nats-server 2.14, ADR-50).
//!
//! In: rows and answers. Out: headers, reply subjects, how many rows are stored. Guarantee: an answer counts only for the
//! open batch; anything but flow acknowledgements and the commit's own answer ends the epoch.

use super::answer::excerpt;
use super::{FLOW, Window};
use crate::pipeline::fault::Fault;

impl Window {
    /// Acknowledgements within a batch do not name the stream, so its first message does.
    pub(super) fn fast_headers(&mut self) {
        self.expect_last_sequence();
        if self.batch.is_none() {
            self.headers.extend_from_slice(b"Nats-Expected-Stream: ");
            self.headers
                .extend_from_slice(self.settings.stream.as_bytes());
            self.headers.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn fast_append(&mut self, subject: &[u8]) {
        let opens = self.batch.is_none();
        if opens {
            self.batch_subject.clear();
            self.batch_subject.extend_from_slice(subject);
        }
        let (number, sequence) = self.join_batch();
        self.fast_reply(number, sequence, if opens { b'0' } else { b'1' });
    }

    /// `<inbox>.<batch id>.<flow>.fail.<batch sequence>.<op>.$FI` (ADR-50)
    pub(super) fn fast_reply(&mut self, batch: u64, sequence: u64, op: u8) {
        let mut digits = itoa::Buffer::new();
        let reply = &mut self.reply;
        reply.clear();
        reply.extend_from_slice(self.settings.inbox.as_bytes());
        reply.push(b'.');
        reply.extend_from_slice(self.settings.epoch_token.as_bytes());
        reply.push(b'-');
        reply.extend_from_slice(digits.format(batch).as_bytes());
        reply.push(b'.');
        reply.extend_from_slice(digits.format(FLOW).as_bytes());
        reply.extend_from_slice(b".fail.");
        reply.extend_from_slice(digits.format(sequence).as_bytes());
        reply.push(b'.');
        reply.push(op);
        reply.extend_from_slice(b".$FI");
    }

    pub(super) fn fast_answer(
        &mut self,
        token: &[u8],
        status: Option<u16>,
        payload: &[u8],
    ) -> Result<u64, Fault> {
        let (before, committing, id) = self.answered_batch(token)?;
        // Each answer comes on the reply subject of the message that caused it: <batch>.<flow>.fail.<seq>.<op>.$FI
        let caused_by = token
            .split(|byte| *byte == b'.')
            .nth(3)
            .and_then(|seq| std::str::from_utf8(seq).ok()?.parse::<u64>().ok())
            .unwrap_or(1);
        let number = before.saturating_add(caused_by);
        let answer = self.read_answer(status, payload, number)?;
        match answer.kind.as_deref() {
            // All messages of the batch up to seq are stored, in order: that is what gap `fail` says.
            Some("ack") => {
                let through = before.saturating_add(answer.seq.unwrap_or(0));
                if through > self.published {
                    return Err(Fault::Answer(excerpt(payload)));
                }
                Ok(through.max(self.acknowledged))
            }
            Some(_) => Err(Fault::Sequence(excerpt(payload))),
            None => {
                let count = self.published - before;
                if !committing
                    || answer.batch.as_deref() != Some(&id)
                    || answer.count != Some(count)
                {
                    return Err(Fault::Answer(excerpt(payload)));
                }
                self.check_stored(&answer, self.published)?;
                self.batch = None;
                Ok(self.published)
            }
        }
    }
}
