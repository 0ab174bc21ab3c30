//! Fast ingest: batches with gap `fail`, each message expecting the last sequence (nats-server 2.14, ADR-50).
//!
//! In: rows and answers. Out: headers, reply subjects, how many rows are stored. Guarantee: an answer counts only for the
//! open batch; anything but flow acknowledgements and the commit's own answer ends the epoch.

use super::Body;
use super::answer::excerpt;
use super::batch::{Batches, Place};
use super::flight::{Flight, Reply};
use super::frame::{Frames, HEADER_VERSION, expect_last_sequence};
use super::publisher::{Preparation, Publisher, TurnEnd};
use crate::pipeline::fault::Fault;

/// Messages between the server's acknowledgements within a batch, as asked for.
const FLOW: u64 = 200;

/// What a message does to its batch, as its reply subject says it.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Operation {
    Open = b'0',
    Append = b'1',
    /// Is the batch's last message.
    AppendAndCommit = b'2',
    /// Ends the batch, and is not stored.
    Commit = b'3',
}

#[derive(Debug, Default)]
pub(super) struct FastIngest {
    batches: Batches,
    /// Where the operation of the latest message of the open batch stands in the turn's frames.
    latest_operation_at: Option<usize>,
    /// Subject of the open batch's first message: one that the stream takes.
    batch_subject: Vec<u8>,
    /// The open batch's first message did not follow what it was to follow, with nothing older in flight: there is no batch.
    refused: bool,
}

impl Publisher for FastIngest {
    fn preparation() -> Preparation {
        Preparation {
            name: "fast-ingest",
            fenced: false,
            chained: true,
            replicated_messages_max: None,
        }
    }

    /// Acknowledgements within a batch do not name the stream, so its first message does.
    fn write_headers(&self, flight: &Flight, headers: &mut Vec<u8>) {
        expect_last_sequence(headers, flight.sequence_of(flight.published));
        if self.batches.open().is_none() {
            headers.extend_from_slice(b"Nats-Expected-Stream: ");
            headers.extend_from_slice(flight.settings.stream.as_bytes());
            headers.extend_from_slice(b"\r\n");
        }
    }

    fn take_in(&mut self, flight: &Flight, subject: &[u8], reply: &mut Vec<u8>) {
        assert!(!self.batches.is_committing(), "a message behind a commit");
        let place = self.batches.join(flight.published);
        let mut operation = Operation::Append;
        if place.sequence == 1 {
            operation = Operation::Open;
            self.batch_subject.clear();
            self.batch_subject.extend_from_slice(subject);
        }
        write_reply(flight, place, operation, reply);
    }

    fn framed(&mut self, reply_end: usize) {
        self.latest_operation_at = Some(reply_end - ".$FI".len() - 1);
    }

    fn may_send(&self, _flight: &Flight) -> bool {
        !self.batches.is_committing()
    }

    fn end_turn(&mut self, flight: &Flight, end: &TurnEnd<'_>, frames: &mut Frames<'_>) {
        let latest_operation_at = self.latest_operation_at.take();
        // A full window waits for the batch's own acknowledgements, unless it is too small for them to come.
        let starved = end.full && flight.len() <= 2 * FLOW;
        let place = self.batches.next(flight.published);
        if !(end.dry || starved) || !self.batches.may_commit() {
            return;
        }
        self.batches.commit(flight.published);
        if let Some(at) = latest_operation_at {
            frames.out[at] = Operation::AppendAndCommit as u8;
            return;
        }
        frames.headers.clear();
        frames.headers.extend_from_slice(HEADER_VERSION);
        frames.headers.extend_from_slice(b"\r\n");
        write_reply(flight, place, Operation::Commit, frames.reply);
        frames.write(&self.batch_subject, &Body::Bytes(b""));
    }

    fn answer(&mut self, flight: &Flight, reply: &Reply<'_>) -> Result<u64, Fault> {
        let answered = self
            .batches
            .answered(reply.token, &flight.settings.limits.epoch_token)?;
        let before = answered.batch.before;
        // Each answer comes on the reply subject of the message that caused it: <batch>.<flow>.fail.<seq>.<op>.$FI
        let caused_by = reply
            .token
            .split(|byte| *byte == b'.')
            .nth(3)
            .and_then(|seq| std::str::from_utf8(seq).ok()?.parse::<u64>().ok())
            .unwrap_or(1);
        let number = before.saturating_add(caused_by);
        let answer = flight.read_answer(reply, number).inspect_err(|fault| {
            let is_first = caused_by == 1 && before == flight.acknowledged;
            self.refused |= is_first && fault.is_out_of_sequence();
        })?;
        match answer.kind.as_deref() {
            // All messages of the batch up to seq are stored, in order: that is what gap `fail` says.
            Some("ack") => {
                let through = before.saturating_add(answer.seq.unwrap_or(0));
                if through > flight.published {
                    return Err(Fault::Answer(excerpt(reply.payload)));
                }
                Ok(through.max(flight.acknowledged))
            }
            Some(_) => Err(Fault::Sequence(excerpt(reply.payload))),
            None => {
                let count = flight.published - before;
                if answered.through.is_none()
                    || answer.batch.as_deref() != Some(&answered.id)
                    || answer.count != Some(count)
                {
                    return Err(Fault::Answer(excerpt(reply.payload)));
                }
                flight.check_stored(&answer, flight.published)?;
                self.batches.close();
                Ok(flight.published)
            }
        }
    }

    fn last_sequence(&self, flight: &Flight) -> u64 {
        flight.sequence_of(flight.acknowledged)
    }

    fn has_open_batch(&self) -> bool {
        self.batches.any()
    }

    fn batches(&self) -> u64 {
        self.batches.opened()
    }

    fn is_refused_whole(&self) -> bool {
        self.refused
    }
}

/// `<inbox>.<batch id>.<flow>.fail.<batch sequence>.<op>.$FI` (ADR-50)
fn write_reply(flight: &Flight, place: Place, operation: Operation, reply: &mut Vec<u8>) {
    let mut digits = itoa::Buffer::new();
    reply.clear();
    reply.extend_from_slice(flight.settings.limits.inbox.as_bytes());
    reply.push(b'.');
    reply.extend_from_slice(flight.settings.limits.epoch_token.as_bytes());
    reply.push(b'-');
    reply.extend_from_slice(digits.format(place.batch).as_bytes());
    reply.push(b'.');
    reply.extend_from_slice(digits.format(FLOW).as_bytes());
    reply.extend_from_slice(b".fail.");
    reply.extend_from_slice(digits.format(place.sequence).as_bytes());
    reply.push(b'.');
    reply.push(operation as u8);
    reply.extend_from_slice(b".$FI");
}
