//! The window between rows and acknowledgements: many messages in flight, in order, without a gap.
//!
//! In: a subject, headers and a body for each row, and the broker's answers. Out: HPUB frames, and how many rows
//! from the first on are acknowledged. The broker itself keeps the order; there are three ways, each a `Publisher`:
//!
//! - *Fast ingest* (nats-server 2.14, ADR-50, stream flag `allow_batched`): a batch with gap `fail`, each message with
//!   `Nats-Expected-Last-Sequence`. A batch is committed as soon as no further row is at hand, so an event never waits
//!   for the next one; while the commit is under way nothing is sent, since a new batch could pass a refused one.
//! - *Chain* (2.10): each message expects the last sequence and the last message id before it. The sequence alone does
//!   not do: when somebody's message takes the place of ours, ours is refused and the next one fits again. The ids are
//!   random for each epoch, so none is ever taken for a duplicate. On a stream with replicas one message is in flight,
//!   without the ids: there nats-server fails for good where an id is not the expected one.
//!
//! - *Atomic* (2.12, stream flag `allow_atomic`), for a stream that others write to: batches that are stored whole or not
//!   at all, each ending with a message on the lane's own fence subject that tells the lane's position and expects the
//!   one before it. So a relay that was replaced writes nothing more, and resume finds the lane by one request in a
//!   stream of any size. One commit is under way at a time; the next batch is filled meanwhile.
//!
//! An answer counts only with the expected stream's name and the predicted sequence.

mod answer;
mod atomic;
mod batch;
mod chain;
mod fast;
mod flight;
mod frame;
mod kept;
mod mode;
mod publisher;

pub use frame::Body;
pub use mode::{Mode, NoMode, Offer};
pub use publisher::Preparation;

use super::fault::{Fault, is_about_frame};
use super::lane_end::{LaneEnd, NOTHING};
use super::limit::SizeLimit;
use super::position::Position;
use bytes::BytesMut;
use flight::{Flight, Reply};
use frame::{Frames, HEADER_VERSION};
use publisher::{Publisher, TurnEnd};
use std::time::Duration;

/// How and where the window publishes.
#[derive(Debug, Clone)]
pub struct WindowSettings {
    /// How to publish.
    pub mode: Mode,
    /// The stream whose acknowledgements count.
    pub stream: String,
    /// The slot, as headers name it.
    pub slot: String,
    /// The lane's own subject in a shared stream, for [`Mode::Atomic`].
    pub fence_subject: String,
    /// The lane's tables, as headers name them, empty for its own; none where that is the only one.
    pub tables: Vec<String>,
    /// What may be in flight.
    pub limits: WindowLimits,
}

impl WindowSettings {
    /// The table that a message tells, or does not; see [`LaneEnd::table`].
    pub(crate) fn table_of(&self, origin: &Origin) -> Option<&str> {
        let table = self.tables.get(usize::from(origin.outbox));
        table.map(String::as_str)
    }
}

/// One connection to the broker, and what may be in flight on it.
#[derive(Debug, Clone)]
pub struct WindowLimits {
    /// Prefix of reply subjects, subscribed as `<inbox>.>`, new for each connection.
    pub inbox: String,
    /// Random, new for each epoch, at most 32 characters: no batch or message id is ever used again.
    pub epoch_token: String,
    /// Most messages in flight.
    pub messages_max: usize,
    /// So many rows at the epoch's beginning go one at a time: the broker refuses one of them and does not say which.
    pub one_by_one: u64,
    /// Most messages of an atomic batch, where the broker has told.
    pub batch_messages_max: Option<u64>,
    /// Most bytes in flight.
    pub bytes_max: usize,
    /// Largest message.
    pub message_limit: SizeLimit,
    /// An epoch without an acknowledgement for so long, with messages in flight, is over.
    pub ack_timeout: Duration,
}

/// The row that a message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Where it stands in the lane.
    pub position: Position,
    /// The event's id, for the record and the next start's overlap check.
    pub event_id: Option<EventId>,
    /// Whose row it is, of [`WindowSettings::tables`].
    pub outbox: u16,
    /// Whether it is the lane's own publication of the row, not a replay.
    pub first_publication: bool,
}

/// What a row's message is made of, but for what belongs to its place in the stream.
#[derive(Debug)]
pub struct Message<'a> {
    /// Where it goes.
    pub subject: &'a [u8],
    /// Whole lines, each with its CR LF.
    pub headers: &'a [u8],
    /// What it carries.
    pub body: Body<'a>,
}

/// A message larger than server or stream take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are too many")]
pub struct TooLarge {
    /// Its size in bytes, headers and body.
    pub bytes: u64,
}

/// An event's id without an allocation where it has the length of a UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventId {
    /// A UUID, as a rule.
    Inline([u8; UUID_BYTES]),
    /// Any other text.
    Text(Box<str>),
}

/// Length of a UUID as Postgres writes it.
const UUID_BYTES: usize = 36;

impl EventId {
    /// Takes the text that the server sent; none for what a header would not tell from none.
    #[inline]
    pub fn of(text: &[u8]) -> Option<Self> {
        match <[u8; UUID_BYTES]>::try_from(text) {
            Ok(id) => Some(EventId::Inline(id)),
            Err(_) if text == NOTHING.as_bytes() => None,
            Err(_) => Some(EventId::Text(String::from_utf8_lossy(text).into())),
        }
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EventId::Inline(id) => f.write_str(&String::from_utf8_lossy(id)),
            EventId::Text(text) => f.write_str(text),
        }
    }
}

/// What a window has sent in its epoch, and what of it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes of messages handed to the broker, with their headers.
    pub bytes: u64,
    /// Batches opened; none where each message stands alone.
    pub batches: u64,
    /// Bytes of the messages without an acknowledgement.
    pub in_flight_bytes: u64,
    /// So many messages may be without an acknowledgement.
    pub window_messages: u64,
    /// So many bytes may be, but for the last message.
    pub window_bytes: u64,
}

/// The messages in flight of one epoch, and the way they are published.
#[derive(Debug)]
pub struct Window {
    flight: Flight,
    publisher: Box<dyn Publisher>,
    /// Batches of earlier connections.
    batches_before: u64,
    headers: Vec<u8>,
    reply: Vec<u8>,
}

impl Window {
    /// Begins an epoch behind the stream's last sequence, or behind the lane's fence in a shared stream.
    pub fn new(settings: WindowSettings, base_sequence: u64) -> Self {
        Window {
            publisher: settings.mode.publisher(base_sequence),
            flight: Flight::new(settings, base_sequence),
            batches_before: 0,
            headers: Vec::with_capacity(512),
            reply: Vec::with_capacity(128),
        }
    }

    /// Whether a further message may be published now.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.flight.has_room() && self.publisher.may_send(&self.flight)
    }

    /// Sequence of the last acknowledged message; in a shared stream that of the lane's fence.
    pub fn last_sequence(&self) -> u64 {
        self.publisher.last_sequence(&self.flight)
    }

    /// The atomic batch whose commit is under way, as its messages name it: it has the oldest of what is in flight.
    pub fn committing(&self) -> Option<String> {
        self.publisher.committing(&self.flight)
    }

    /// Goes on with a new connection, behind the stream's last sequence or the lane's fence. Rows up to `through` are stored
    /// and handed to `each`; the others wait to be sent again. Returns how many rows of the epoch are acknowledged.
    pub fn reopen(
        &mut self,
        settings: WindowSettings,
        base_sequence: u64,
        through: Option<Position>,
        each: impl FnMut(&Origin),
    ) -> u64 {
        self.batches_before += self.publisher.batches();
        self.publisher = settings.mode.publisher(base_sequence);
        self.flight.reopen(settings, base_sequence, through, each);
        self.flight.acknowledged
    }

    /// Sends again the next row that waits for it, if there is one and room for it; false where not.
    ///
    /// # Errors
    /// It has more than the limit now.
    pub fn send_again(&mut self, out: &mut BytesMut, now: Duration) -> Result<bool, TooLarge> {
        if !self.has_room() {
            return Ok(false);
        }
        let Some(row) = self.flight.next_waiting() else {
            return Ok(false);
        };
        let mut frames = Frames {
            out,
            headers: &mut self.headers,
            reply: &mut self.reply,
        };
        let bytes = write(&mut *self.publisher, &self.flight, &mut frames, &row)?;
        self.flight.sent_again(bytes, now);
        Ok(true)
    }

    /// Whether rows wait to be sent again: nothing else may leave before them.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        self.flight.waiting() > 0
    }

    /// The table that a message tells, or does not; see [`LaneEnd::table`].
    pub(crate) fn table_of(&self, origin: &Origin) -> Option<&str> {
        self.flight.settings.table_of(origin)
    }

    /// Whether the lane's message at `lane_end` can be a row without an acknowledgement.
    pub fn has(&self, lane_end: &LaneEnd) -> bool {
        self.flight
            .has(lane_end.position, lane_end.event_id.as_deref())
    }

    /// Rows without an acknowledgement.
    pub fn in_flight(&self) -> u64 {
        self.sent() + self.flight.waiting()
    }

    /// Of these, sent on this connection.
    pub fn sent(&self) -> u64 {
        self.flight.len()
    }

    /// What has been sent, and how much of the window is taken.
    pub fn traffic(&self) -> Traffic {
        let limits = &self.flight.settings.limits;
        Traffic {
            bytes: self.flight.bytes_sent,
            batches: self.batches_before + self.publisher.batches(),
            in_flight_bytes: self.flight.bytes(),
            window_messages: limits.messages_max as u64,
            window_bytes: limits.bytes_max as u64,
        }
    }

    /// What a -ERR of the broker ends the connection for.
    pub(crate) fn fault_of(&self, error: &str) -> Fault {
        match self.flight.oldest() {
            Some(oldest) if is_about_frame(error) => Fault::Frame {
                oldest,
                in_flight: self.sent(),
                text: error.to_owned(),
            },
            _ => Fault::Broker(format!("the server answers -ERR {error}")),
        }
    }

    /// Whether the fate of every message is known: acknowledged, or refused as a whole.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight() == 0 || self.publisher.is_refused_whole()
    }

    /// How many bytes the body of the next message may have behind these `headers`.
    pub fn room(&mut self, headers: &[u8]) -> usize {
        frame_headers(&*self.publisher, &self.flight, &mut self.headers, headers);
        let bytes_max = self.flight.settings.limits.message_limit.bytes;
        bytes_max.saturating_sub(self.headers.len())
    }

    /// Appends the frame of one row to the turn's frames, and keeps the row.
    ///
    /// # Errors
    /// Headers and body have more than the limit; then nothing is appended.
    ///
    /// # Panics
    /// Behind a commit under way, or in front of rows that wait to be sent again: the caller would be reordering.
    #[inline]
    pub fn publish(
        &mut self,
        out: &mut BytesMut,
        row: &Message<'_>,
        origin: Origin,
        now: Duration,
    ) -> Result<(), TooLarge> {
        assert!(!self.has_waiting(), "a row in front of an older one");
        let mut frames = Frames {
            out,
            headers: &mut self.headers,
            reply: &mut self.reply,
        };
        let bytes = write(&mut *self.publisher, &self.flight, &mut frames, row)?;
        let body_bytes = bytes - self.headers.len();
        self.flight.push(row, out, body_bytes, origin, bytes, now);
        Ok(())
    }

    /// Ends a turn. `dry` says that no further row is at hand: then an open batch is committed. `lane_end` is the lane's last
    /// acknowledged message, for a batch of replays alone.
    pub fn end_turn(&mut self, out: &mut BytesMut, dry: bool, lane_end: Option<&LaneEnd>) {
        let end = TurnEnd {
            dry,
            full: !self.has_room(),
            lane_end,
        };
        let mut frames = Frames {
            out,
            headers: &mut self.headers,
            reply: &mut self.reply,
        };
        self.publisher.end_turn(&self.flight, &end, &mut frames);
    }

    /// Since when something in flight waits for an answer.
    pub fn unanswered_since(&self) -> Option<Duration> {
        self.flight
            .unanswered_since(self.publisher.has_open_batch())
    }

    /// When the epoch is over unless an acknowledgement comes before.
    pub fn ack_deadline(&self) -> Option<Duration> {
        self.flight.ack_deadline(self.publisher.has_open_batch())
    }

    /// Takes an answer; `token` is the reply subject behind `<inbox>.`. Returns how many rows of this epoch are
    /// acknowledged, and hands the newly acknowledged ones to `each`.
    ///
    /// # Errors
    /// Anything but the one expected acknowledgement ends the epoch.
    pub fn answer(
        &mut self,
        token: &[u8],
        status: Option<u16>,
        payload: &[u8],
        now: Duration,
        each: impl FnMut(&Origin),
    ) -> Result<u64, Fault> {
        let reply = Reply {
            token,
            status,
            payload,
        };
        let through = self.publisher.answer(&self.flight, &reply)?;
        self.flight.acknowledge(through, now, each)
    }
}

/// Makes the header block of a message that brings these `headers`.
#[inline]
fn frame_headers(publisher: &dyn Publisher, flight: &Flight, block: &mut Vec<u8>, headers: &[u8]) {
    block.clear();
    block.extend_from_slice(HEADER_VERSION);
    block.extend_from_slice(headers);
    publisher.write_headers(flight, block);
    block.extend_from_slice(b"\r\n");
}

/// Appends the frame of one row, and returns the size of its message in bytes.
#[inline]
fn write(
    publisher: &mut dyn Publisher,
    flight: &Flight,
    frames: &mut Frames<'_>,
    row: &Message<'_>,
) -> Result<usize, TooLarge> {
    frame_headers(publisher, flight, frames.headers, row.headers);
    let bytes = frames.headers.len() + row.body.len();
    if bytes > flight.settings.limits.message_limit.bytes {
        return Err(TooLarge {
            bytes: bytes as u64,
        });
    }
    publisher.take_in(flight, row.subject, frames.reply);
    let reply_end = frames.write(row.subject, &row.body);
    publisher.framed(reply_end);
    Ok(bytes)
}
