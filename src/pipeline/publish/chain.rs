//! The chain: ordinary publishes, each expecting the last sequence and the last message id before it (nats-server 2.10).
//!
//! In: rows and answers. Out: headers, reply subjects, the number of the acknowledged row. Guarantee: behind a refused
//! message every later one is refused too, also when somebody else's message has taken its place.

use super::answer::excerpt;
use super::flight::{Flight, Reply};
use super::frame::{Frames, expect_last_sequence, push_number_header};
use super::publisher::{Preparation, Publisher, TurnEnd};
use crate::pipeline::fault::Fault;

#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The oldest message in flight did not follow what it was to follow; so none behind it does.
    refused: bool,
}

impl Publisher for Chain {
    /// A chain on a stream with replicas has one message in flight: nats-server (2.15.0) checks the expected message id
    /// there only when it applies the log, and a foreign message in the middle of the chain then stops the stream on
    /// all nodes for good ("critical write error: last msgid mismatch"). Without the ids a pipelined chain could leave a
    /// gap.
    fn preparation() -> Preparation {
        Preparation {
            name: "chain",
            fenced: false,
            chained: true,
            replicated_messages_max: Some(1),
        }
    }

    fn write_headers(&self, flight: &Flight, headers: &mut Vec<u8>) {
        expect_last_sequence(headers, flight.sequence_of(flight.published));
        let token = flight.settings.limits.epoch_token.as_bytes();
        // With one in flight the sequence says it all.
        if flight.published > flight.begun && flight.settings.limits.messages_max > 1 {
            headers.extend_from_slice(b"Nats-Expected-Last-Msg-Id: ");
            headers.extend_from_slice(token);
            push_number_header(headers, b".", flight.published);
        }
        headers.extend_from_slice(b"Nats-Msg-Id: ");
        headers.extend_from_slice(token);
        push_number_header(headers, b".", flight.published + 1);
    }

    fn take_in(&mut self, flight: &Flight, _subject: &[u8], reply: &mut Vec<u8>) {
        reply.clear();
        reply.extend_from_slice(flight.settings.limits.inbox.as_bytes());
        reply.push(b'.');
        reply.extend_from_slice(itoa::Buffer::new().format(flight.published + 1).as_bytes());
    }

    fn framed(&mut self, _reply_end: usize) {}

    fn may_send(&self, _flight: &Flight) -> bool {
        true
    }

    /// Each message is acknowledged by itself: there is nothing to commit.
    fn end_turn(&mut self, _flight: &Flight, _end: &TurnEnd<'_>, _frames: &mut Frames<'_>) {}

    fn answer(&mut self, flight: &Flight, reply: &Reply<'_>) -> Result<u64, Fault> {
        let number = std::str::from_utf8(reply.token)
            .ok()
            .and_then(|token| token.parse::<u64>().ok())
            .filter(|number| (1..=flight.published).contains(number))
            .ok_or_else(|| Fault::Answer(excerpt(reply.token)))?;
        let answer = flight.read_answer(reply, number).inspect_err(|fault| {
            self.refused |= number == flight.acknowledged + 1 && fault.is_out_of_sequence();
        })?;
        flight.check_stored(&answer, number)?;
        Ok(number)
    }

    fn last_sequence(&self, flight: &Flight) -> u64 {
        flight.sequence_of(flight.acknowledged)
    }

    fn has_open_batch(&self) -> bool {
        false
    }

    fn batches(&self) -> u64 {
        0
    }

    fn is_refused_whole(&self) -> bool {
        self.refused
    }
}
