//! Atomic batches behind a fence, for a stream that others write to (nats-server 2.12, ADR-50).
//!
//! In: rows and answers. Out: headers, the committing message on the lane's fence subject. Guarantee: a batch is stored whole
//! behind the lane's last fence, or not at all.

use super::Body;
use super::answer::excerpt;
use super::batch::{Batches, Place};
use super::flight::{Flight, Reply};
use super::frame::{Frames, HEADER_VERSION, push_number_header};
use super::publisher::{Preparation, Publisher, TurnEnd};
use crate::pipeline::fault::{BATCH_INCOMPLETE, BATCH_TOO_LARGE, Class, Fault};
use crate::pipeline::lane_end::{LaneEnd, tail_header};
use crate::pipeline::position::TAIL_HEADER;

/// Most messages of an atomic batch, unless `jetstream.limits.batch.max_msgs` of nats-server is another number (ADR-50).
const MESSAGES_MAX: u64 = 1_000;
/// "wrong last sequence": the fence is not the lane's last one any more.
const WRONG_LAST_SEQUENCE: u16 = 10071;

#[derive(Debug)]
pub(super) struct Atomic {
    batches: Batches,
    /// Sequence of the lane's last message on its fence subject.
    fence_sequence: u64,
    /// The batch in flight was refused by its fence: none of it is stored.
    refused_whole: bool,
}

impl Atomic {
    pub(super) fn new(fence_sequence: u64) -> Self {
        Atomic {
            batches: Batches::default(),
            fence_sequence,
            refused_whole: false,
        }
    }

    /// The last message of a batch: on the lane's fence subject, with the position of the batch's last event.
    fn write_commit(
        &mut self,
        flight: &Flight,
        lane_end: Option<&LaneEnd>,
        frames: &mut Frames<'_>,
    ) {
        let tail = tail_value(flight, lane_end);
        frames.headers.clear();
        frames.headers.extend_from_slice(HEADER_VERSION);
        frames
            .headers
            .extend_from_slice(format!("{TAIL_HEADER}: {tail}\r\n").as_bytes());
        let place = self.batches.next(flight.published);
        write_place(flight, place, frames.headers);
        let fence = "Nats-Expected-Last-Subject-Sequence: ";
        push_number_header(frames.headers, fence.as_bytes(), self.fence_sequence);
        frames
            .headers
            .extend_from_slice(b"Nats-Batch-Commit: 1\r\n\r\n");
        write_reply(flight, place, frames.reply);
        frames.write(flight.settings.fence_subject.as_bytes(), &Body::Bytes(b""));
    }
}

impl Publisher for Atomic {
    fn preparation() -> Preparation {
        Preparation {
            name: "atomic",
            fenced: true,
            chained: false,
            replicated_messages_max: None,
        }
    }

    fn write_headers(&self, flight: &Flight, headers: &mut Vec<u8>) {
        write_place(flight, self.batches.next(flight.published), headers);
    }

    fn take_in(&mut self, flight: &Flight, _subject: &[u8], reply: &mut Vec<u8>) {
        let place = self.batches.join(flight.published);
        reply.clear();
        // The answers to the first message and to the commit tell all but which one of the others was refused; an answer to each
        // would cost nats-server a third of what the message costs.
        if place.sequence == 1 {
            write_reply(flight, place, reply);
        }
    }

    fn framed(&mut self, _reply_end: usize) {}

    fn may_send(&self, flight: &Flight) -> bool {
        // The last message of a batch is the lane's own.
        let told = flight.settings.limits.batch_messages_max;
        let events_max = told.unwrap_or(MESSAGES_MAX).saturating_sub(1);
        self.batches
            .open()
            .is_none_or(|batch| flight.published - batch.before < events_max)
    }

    /// A full window commits as well: nothing of a batch is acknowledged before.
    fn end_turn(&mut self, flight: &Flight, end: &TurnEnd<'_>, frames: &mut Frames<'_>) {
        if (end.dry || end.full) && self.batches.may_commit() {
            self.write_commit(flight, end.lane_end, frames);
            self.batches.commit(flight.published);
        }
    }

    fn answer(&mut self, flight: &Flight, reply: &Reply<'_>) -> Result<u64, Fault> {
        let answered = self
            .batches
            .answered(reply.token, &flight.settings.limits.epoch_token)?;
        let before = answered.batch.before;
        if reply.payload.is_empty() && reply.status.is_none() {
            // Taken into the batch, not stored yet.
            return Ok(flight.acknowledged);
        }
        // The reply subject says which message is answered; the one behind the rows is the lane's own.
        let number = reply
            .token
            .get(answered.id.len() + 1..)
            .and_then(|rest| std::str::from_utf8(rest).ok()?.parse::<u64>().ok())
            .map_or(before + 1, |sequence| before.saturating_add(sequence));
        let own = answered.through.filter(|through| number > *through);
        let answer = match flight.read_answer(reply, number) {
            Err(Fault::Refused {
                err_code: BATCH_TOO_LARGE,
                description,
                ..
            }) => {
                let messages_max = largest(&description);
                let messages_max = messages_max.ok_or(Fault::Answer(description))?;
                return Err(Fault::BatchTooLarge { messages_max });
            }
            Err(Fault::Refused {
                err_code: WRONG_LAST_SEQUENCE,
                description,
                ..
            }) => {
                self.refused_whole = true;
                return Err(Fault::Sequence(description));
            }
            Err(Fault::Refused {
                err_code: BATCH_INCOMPLETE,
                description,
                position,
                ..
            }) if own.is_some_and(|through| through > before + 1) => {
                return Err(Fault::Incomplete {
                    oldest: flight.oldest().unwrap_or(position),
                    in_flight: flight.len(),
                    text: description,
                });
            }
            Err(refused @ Fault::Refused { .. })
                if own.is_some() && refused.class() == Class::Row =>
            {
                return Err(Fault::Broker(format!(
                    "stream {} does not take the lane's own message: {}",
                    flight.settings.stream,
                    excerpt(reply.payload)
                )));
            }
            answer => answer?,
        };
        let Some(through) = answered.through else {
            return Err(Fault::Answer(excerpt(reply.payload)));
        };
        let count = through - before + 1;
        match answer.seq {
            Some(sequence)
                if answer.stream.as_deref() == Some(&flight.settings.stream)
                    && answer.batch.as_deref() == Some(&answered.id)
                    && answer.count == Some(count)
                    && sequence >= self.fence_sequence + count =>
            {
                self.fence_sequence = sequence;
                self.batches.close();
                Ok(through)
            }
            _ => Err(Fault::Answer(excerpt(reply.payload))),
        }
    }

    fn last_sequence(&self, _flight: &Flight) -> u64 {
        self.fence_sequence
    }

    fn has_open_batch(&self) -> bool {
        self.batches.any()
    }

    fn committing(&self, flight: &Flight) -> Option<String> {
        let token = &flight.settings.limits.epoch_token;
        let batch = self.batches.committing()?;
        Some(batch.id(token))
    }

    fn batches(&self) -> u64 {
        self.batches.opened()
    }

    fn is_refused_whole(&self) -> bool {
        self.refused_whole
    }
}

/// How many messages a batch may have, by the words of its refusal: "atomic publish batch is too large: 50".
fn largest(description: &str) -> Option<u64> {
    description.rsplit(' ').next()?.parse().ok()
}

fn write_reply(flight: &Flight, place: Place, reply: &mut Vec<u8>) {
    reply.clear();
    reply.extend_from_slice(
        format!(
            "{}.{}-{}.{}",
            flight.settings.limits.inbox,
            flight.settings.limits.epoch_token,
            place.batch,
            place.sequence
        )
        .as_bytes(),
    );
}

/// Appends a message's place among those of its batch; the first one names the stream.
fn write_place(flight: &Flight, place: Place, headers: &mut Vec<u8>) {
    headers.extend_from_slice(b"Nats-Batch-Id: ");
    headers.extend_from_slice(flight.settings.limits.epoch_token.as_bytes());
    push_number_header(headers, b"-", place.batch);
    push_number_header(headers, b"Nats-Batch-Sequence: ", place.sequence);
    if place.sequence == 1 {
        let stream = format!("Nats-Expected-Stream: {}\r\n", flight.settings.stream);
        headers.extend_from_slice(stream.as_bytes());
    }
}

/// The lane's last position once everything published is stored, as its fence tells it; in a batch of replays alone the
/// acknowledged one, empty before the first.
fn tail_value(flight: &Flight, acknowledged: Option<&LaneEnd>) -> String {
    let slot = &flight.settings.slot;
    if let Some(origin) = flight.last_first_publication() {
        let event_id = origin.event_id.as_ref().map(ToString::to_string);
        let table = flight.settings.table_of(origin);
        return tail_header(slot, origin.position, event_id.as_deref(), table);
    }
    acknowledged.map_or_else(String::new, |lane_end| lane_end.tail(slot))
}
