//! How a row is emitted, as an event or as a replay.
//!
//! In: a row and its position. Out: a frame for the broker, or why there can be none: see `reject`.

use super::Engine;
use crate::pipeline::envelope::Reject;
use crate::pipeline::message::{Composed, compose};
use crate::pipeline::position::{self, Position};
use crate::pipeline::publish::{Body, EventId, Message, Origin, TooLarge};
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
    ) -> Result<(), Reject> {
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
            outbox: row.outbox_number(),
            first_publication,
        };
        let own = self.headers.len();
        if let Err(reject) = self.try_emit(row, origin, out, now) {
            // What the message would have had stays out of its dead letter.
            self.headers.truncate(own);
            return Err(reject);
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
        let limit = self.settings.epoch.limits.message_limit;
        let composed = compose(
            row,
            &self.settings.epoch.source.outboxes[row.outbox()].mapping,
            &mut self.subject,
            &mut self.headers,
            &mut self.body,
        )
        .map_err(|reject| match reject {
            Reject::TooLarge { bytes, .. } => Reject::TooLarge { bytes, limit },
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
            .map_err(|TooLarge { bytes }| Reject::TooLarge { bytes, limit })
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
        self.confirm
            .lane_end()
            .map_or_else(String::new, |lane_end| {
                lane_end.tail(&self.settings.lane.slot)
            })
    }
}
