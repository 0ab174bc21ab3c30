//! How a row is emitted: as an event, as a replay, or as the dead letter that takes its place.
//!
//! In: a row and its position. Out: a frame for the broker, or a halt that waits for what is in flight. Guarantee: a row
//! that was due to leave never leaves nothing.

use super::{Engine, Note, Stop};
use crate::pipeline::dead_letter;
use crate::pipeline::envelope::{Reject, shown};
use crate::pipeline::fault::Halt;
use crate::pipeline::message::{Composed, compose};

use crate::pipeline::position::{self, Position};
use crate::pipeline::publish::{Body, EventId, Message, Origin, TooLarge, tail_header};
use crate::pipeline::row::Row;
use bytes::BytesMut;
use std::time::Duration;

impl Engine {
    #[inline]
    pub(super) fn emit(
        &mut self,
        row: &Row<'_>,
        position: Position,
        first_publication: bool,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Stop> {
        self.headers.clear();
        self.headers.extend_from_slice(&self.position_prefix);
        self.headers
            .extend_from_slice(itoa::Buffer::new().format(position.ordinal).as_bytes());
        self.headers.extend_from_slice(b"\r\n");
        if !first_publication {
            self.mark_replay();
        }
        let origin = Origin {
            position,
            event_id: row.id().and_then(|id| EventId::of(&id)),
            first_publication,
        };
        let own = self.headers.len();
        match self.try_emit(row, origin, out, now) {
            Ok(()) => {}
            // A replay brings again what was published; its dead letters are in the stream already.
            Err(_) if !first_publication => return Ok(()),
            Err(reject) => {
                // What the message would have had stays out of its dead letter.
                self.headers.truncate(own);
                return self.reject(row, position, reject, out, now);
            }
        }
        self.counters.published += 1;
        self.counters.replayed += u64::from(!first_publication);
        self.progress.published();
        Ok(())
    }

    #[inline]
    fn try_emit(
        &mut self,
        row: &Row<'_>,
        origin: Origin,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Reject> {
        if let Some(why) = self.settings.epoch.refused.get(&origin.position) {
            return Err(Reject::Refused(why.clone()));
        }
        let bytes_max = self.settings.epoch.limits.message_bytes_max as u64;
        let composed = compose(
            row,
            &self.settings.epoch.source.mapping,
            &mut self.subject,
            &mut self.headers,
            &mut self.body,
        )
        .map_err(|reject| match reject {
            Reject::TooLarge { bytes, .. } => Reject::TooLarge { bytes, bytes_max },
            reject => reject,
        })?;
        let body = match &composed {
            Composed::Envelope(envelope) => Body::Envelope(envelope),
            Composed::Payload(payload) => Body::Bytes(payload),
            Composed::Written => Body::Bytes(&self.body),
        };
        self.window
            .publish(
                out,
                &Message {
                    subject: &self.subject,
                    headers: &self.headers,
                    body,
                },
                origin,
                now,
            )
            .map_err(|TooLarge { bytes }| Reject::TooLarge { bytes, bytes_max })
    }

    /// Says that this is a replay, and how far the lane is, so that a resume finds it behind any number of replays.
    fn mark_replay(&mut self) {
        self.headers.extend_from_slice(
            format!(
                "{}: {}\r\n{}: {}\r\n",
                position::KIND_HEADER,
                position::KIND_REPLAY,
                position::TAIL_HEADER,
                self.tail_header()
            )
            .as_bytes(),
        );
    }

    /// The lane's last acknowledged position, as [`position::TAIL_HEADER`] has it; empty before the first.
    pub(super) fn tail_header(&self) -> String {
        self.confirm.tail().map_or_else(String::new, |tail| {
            tail_header(
                &self.settings.lane.slot,
                tail.position,
                tail.event_id.as_deref(),
            )
        })
    }

    fn reject(
        &mut self,
        row: &Row<'_>,
        position: Position,
        reject: Reject,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Stop> {
        let event_id = row.id().map_or_else(|| "-".to_owned(), |id| shown(&id));
        let may_pass =
            !self.settings.epoch.halt_on_reject || self.settings.skips().contains(&position);
        self.headers
            .extend_from_slice(dead_letter::headers(&reject).as_bytes());
        let body = dead_letter::body(row, position, &reject);
        let placed = may_pass
            && self
                .window
                .publish(
                    out,
                    &Message {
                        subject: self.dead_letter_subject.as_bytes(),
                        headers: &self.headers,
                        body: Body::Bytes(&body),
                    },
                    Origin {
                        position,
                        event_id: EventId::of(event_id.as_bytes()),
                        first_publication: true,
                    },
                    now,
                )
                .is_ok();
        if !placed {
            // What is in flight before it is still acknowledged; see `check_halt`.
            self.halt = Some(Halt::Rejected {
                position,
                event_id,
                reject,
            });
            return Ok(());
        }
        self.counters.published += 1;
        self.counters.dead_letters += 1;
        self.progress.published();
        let note = Note::DeadLetter {
            position,
            event_id,
            reject,
        };
        self.dead_letters
            .push_back((self.progress.published_rows(), note));
        Ok(())
    }
}
