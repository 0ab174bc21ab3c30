//! The window between rows and acknowledgements: many messages in flight, in order, without a gap.
//!
//! In: a subject, headers and a body for each row, and the broker's answers. Out: HPUB frames, and how many rows
//! from the first on are acknowledged. The broker itself keeps the order; there are three ways:
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
//!   at all, each fenced by the sequence of the lane's last message on its own fence subject, and each ending with a
//!   message there that tells the lane's position. So a relay that was replaced writes nothing more, and resume finds
//!   the lane by one request in a stream of any size. One batch is in flight at a time.
//!
//! An answer counts only with the expected stream's name and the predicted sequence.

mod answer;
mod atomic;
mod chain;
mod fast;
mod frame;

pub use frame::Body;

use super::fault::Fault;
use super::position::Position;
use answer::{Answer, excerpt};
use bytes::BytesMut;
use frame::{push_number_header, write_frame};
use std::collections::VecDeque;
use std::time::Duration;

/// How messages are published so that the broker keeps the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batches of fast ingest with gap `fail`.
    FastIngest,
    /// Ordinary publishes, each expecting the one before.
    Chain,
    /// Atomic batches behind a fence, on a stream that others write to.
    Atomic,
}

impl Mode {
    /// Name in logs and in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::FastIngest => "fast-ingest",
            Mode::Chain => "chain",
            Mode::Atomic => "atomic",
        }
    }
}

/// What the window may hold and where answers go.
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
    /// Prefix of reply subjects, subscribed as `<inbox>.>`, new for each connection.
    pub inbox: String,
    /// Random, new for each epoch, at most 32 characters: no batch or message id is ever used again.
    pub epoch_token: String,
    /// Most messages in flight.
    pub messages_max: usize,
    /// So many rows at the epoch's beginning go one at a time: the broker refuses one of them and does not say which.
    pub one_by_one: u64,
    /// Most bytes in flight.
    pub bytes_max: usize,
    /// Largest message in bytes, headers and body: the server's max_payload or the stream's max_msg_size.
    pub message_bytes_max: usize,
    /// An epoch without an acknowledgement for so long, with messages in flight, is over.
    pub ack_timeout: Duration,
}

/// A row on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Where it stands in the lane.
    pub position: Position,
    /// The event's id, for the record and the next start's overlap check.
    pub event_id: EventId,
    /// Whether it is the lane's own publication of the row, not a replay.
    pub first_publication: bool,
    bytes: usize,
}

/// An event's id without an allocation where it is a UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventId {
    /// The usual kind.
    Uuid(uuid::Uuid),
    /// Any other text.
    Text(Box<str>),
}

impl EventId {
    /// Takes the text that the server sent.
    #[inline]
    pub fn of(text: &[u8]) -> Self {
        match uuid::Uuid::try_parse_ascii(text) {
            // Only the form that Postgres writes, so that the text can be given back as it was.
            Ok(id) if text.len() == 36 => EventId::Uuid(id),
            _ => EventId::Text(String::from_utf8_lossy(text).into()),
        }
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EventId::Uuid(id) => id.fmt(f),
            EventId::Text(text) => f.write_str(text),
        }
    }
}

/// The value of [`TAIL_HEADER`](crate::pipeline::position::TAIL_HEADER). An id that could end a header line, or is too long for one, is left out: the position
/// alone must then be met at the next start.
pub fn tail_header(slot: &str, position: Position, event_id: Option<&str>) -> String {
    // Nor one that is nothing or ends in a space: header values lose theirs.
    let is_safe = |id: &&str| {
        id.len() <= 200 && id.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) && !id.is_empty()
    };
    let id = event_id.filter(is_safe).unwrap_or("-");
    format!("{slot} {position} {id}")
}

#[derive(Debug)]
struct Batch {
    number: u64,
    /// Rows of the epoch before the batch's first.
    before: u64,
    committing: bool,
}

/// The messages in flight of one epoch.
#[derive(Debug)]
pub struct Window {
    settings: WindowSettings,
    /// The stream's last sequence before the epoch's first message.
    base_sequence: u64,
    /// Sequence of the last acknowledged message; in a shared stream that of the lane's fence.
    last_sequence: u64,
    sent: VecDeque<Sent>,
    bytes: usize,
    published: u64,
    acknowledged: u64,
    batches: u64,
    batch: Option<Batch>,
    /// The atomic batch in flight was refused by its fence: none of it is stored.
    refused_whole: bool,
    /// Where the operation of the latest message of the open batch stands in the turn's frames.
    latest_op_at: Option<usize>,
    waiting_since: Duration,
    headers: Vec<u8>,
    reply: Vec<u8>,
    /// Subject of the open batch's first message: one that the stream takes.
    batch_subject: Vec<u8>,
}

/// Messages between the server's acknowledgements within a batch, as asked for.
const FLOW: u64 = 200;
/// Most events in an atomic batch: the server takes 1,000 messages, and the last one is the lane's own.
const ATOMIC_EVENTS_MAX: u64 = 999;
const HEADER_VERSION: &[u8] = b"NATS/1.0\r\n";

impl Window {
    /// Begins an epoch behind the stream's last sequence, or behind the lane's fence in a shared stream.
    pub fn new(settings: WindowSettings, base_sequence: u64) -> Self {
        Window {
            settings,
            base_sequence,
            last_sequence: base_sequence,
            sent: VecDeque::new(),
            bytes: 0,
            published: 0,
            acknowledged: 0,
            batches: 0,
            batch: None,
            refused_whole: false,
            latest_op_at: None,
            waiting_since: Duration::ZERO,
            headers: Vec::with_capacity(512),
            reply: Vec::with_capacity(128),
            batch_subject: Vec::with_capacity(256),
        }
    }

    /// Whether a further message may be published now.
    #[inline]
    pub fn has_room(&self) -> bool {
        let alone = self.acknowledged < self.settings.one_by_one;
        self.sent.len() < self.settings.messages_max
            && (!alone || self.sent.is_empty())
            && self.bytes < self.settings.bytes_max
            && !self.batch.as_ref().is_some_and(|batch| {
                batch.committing
                    || (self.settings.mode == Mode::Atomic
                        && self.published - batch.before >= ATOMIC_EVENTS_MAX)
            })
    }

    /// Sequence of the last acknowledged message; in a shared stream that of the lane's fence.
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Stream sequence of the epoch's row with this number, from 1; none in a shared stream, where only the broker knows.
    pub fn sequence_of(&self, row: u64) -> Option<u64> {
        (row > 0 && self.settings.mode != Mode::Atomic).then_some(self.base_sequence + row)
    }

    /// Messages without an acknowledgement.
    pub fn in_flight(&self) -> u64 {
        self.published - self.acknowledged
    }

    /// The oldest row without an acknowledgement.
    pub fn oldest_in_flight(&self) -> Option<Position> {
        self.sent.front().map(|sent| sent.position)
    }

    /// Whether the fate of every message is known: acknowledged, or refused as a whole.
    pub fn is_settled(&self) -> bool {
        self.in_flight() == 0 || self.refused_whole
    }

    /// Appends the frame of one row to the turn's frames. `headers` are whole lines, each with its CR LF.
    ///
    /// # Errors
    /// The size in bytes of headers and body, when it is more than `message_bytes_max`; then nothing is appended.
    ///
    /// # Panics
    /// Behind a commit under way: the caller would be reordering.
    #[inline]
    pub fn publish(
        &mut self,
        out: &mut BytesMut,
        subject: &[u8],
        headers: &[u8],
        body: &Body<'_>,
        row: (Position, EventId, bool),
        now: Duration,
    ) -> Result<(), u64> {
        assert!(
            !self.batch.as_ref().is_some_and(|batch| batch.committing),
            "a message behind a commit"
        );
        self.headers.clear();
        self.headers.extend_from_slice(HEADER_VERSION);
        self.headers.extend_from_slice(headers);
        match self.settings.mode {
            Mode::FastIngest => self.fast_headers(),
            Mode::Chain => self.chained_headers(),
            Mode::Atomic => self.atomic_headers(),
        }
        self.headers.extend_from_slice(b"\r\n");
        let total = self.headers.len() + body.len();
        if total > self.settings.message_bytes_max {
            return Err(total as u64);
        }
        match self.settings.mode {
            Mode::FastIngest => self.fast_append(subject),
            Mode::Chain => self.chained_reply(),
            Mode::Atomic => self.atomic_append(),
        }
        let at = write_frame(out, subject, &self.reply, &self.headers, body);
        self.latest_op_at = (self.settings.mode == Mode::FastIngest)
            .then_some(at + self.reply.len() - ".$FI".len() - 1);
        if self.sent.is_empty() {
            self.waiting_since = now;
        }
        self.published += 1;
        self.bytes += total;
        let (position, event_id, first_publication) = row;
        self.sent.push_back(Sent {
            position,
            event_id,
            first_publication,
            bytes: total,
        });
        Ok(())
    }

    fn expect_last_sequence(&mut self) {
        push_number_header(
            &mut self.headers,
            b"Nats-Expected-Last-Sequence: ",
            self.base_sequence + self.published,
        );
    }

    /// The batch that the next message belongs to, and its sequence there; opens one where none is open.
    fn join_batch(&mut self) -> (u64, u64) {
        if self.batch.is_none() {
            self.batches += 1;
        }
        let batch = self.batch.get_or_insert(Batch {
            number: self.batches,
            before: self.published,
            committing: false,
        });
        (batch.number, self.published - batch.before + 1)
    }

    /// Ends a turn. `dry` says that no further row is at hand: then the open batch is committed by its last message,
    /// or by a message of its own where that one has gone out already. `tail` is the lane's acknowledged position as
    /// [`TAIL_HEADER`](crate::pipeline::position::TAIL_HEADER) has it, for a batch of replays alone.
    pub fn end_turn(&mut self, out: &mut BytesMut, dry: bool, tail: &str) {
        let latest_op_at = self.latest_op_at.take();
        // A full window waits for the batch's own acknowledgements, unless it is too small for them to come.
        let starved = !self.has_room()
            && (self.settings.mode == Mode::Atomic || self.sent.len() as u64 <= 2 * FLOW);
        if !dry && !starved {
            return;
        }
        let Some(batch) = self.batch.as_mut().filter(|batch| !batch.committing) else {
            return;
        };
        if self.settings.mode == Mode::Atomic {
            let tail = self.lane_tail().unwrap_or_else(|| tail.to_owned());
            self.atomic_commit(out, &tail);
            self.batch
                .as_mut()
                .expect("a commit joins the open batch")
                .committing = true;
            return;
        }
        batch.committing = true;
        let (number, sequence) = (batch.number, self.published - batch.before + 1);
        match latest_op_at {
            Some(at) => out[at] = b'2',
            None => {
                self.fast_reply(number, sequence, b'3');
                write_frame(
                    out,
                    &self.batch_subject,
                    &self.reply,
                    b"NATS/1.0\r\n\r\n",
                    &Body::Bytes(b""),
                );
            }
        }
    }

    /// When the epoch is over unless an acknowledgement comes before.
    pub fn ack_deadline(&self) -> Option<Duration> {
        (!self.sent.is_empty() || self.batch.is_some())
            .then(|| self.waiting_since + self.settings.ack_timeout)
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
        mut each: impl FnMut(&Sent),
    ) -> Result<u64, Fault> {
        let through = match self.settings.mode {
            Mode::Chain => self.chained_answer(token, status, payload)?,
            Mode::FastIngest => self.fast_answer(token, status, payload)?,
            Mode::Atomic => self.atomic_answer(token, status, payload)?,
        };
        while self.acknowledged < through {
            let Some(sent) = self.sent.pop_front() else {
                return Err(Fault::Answer(format!(
                    "row {through} of {}",
                    self.published
                )));
            };
            self.acknowledged += 1;
            self.bytes -= sent.bytes;
            each(&sent);
        }
        if self.settings.mode != Mode::Atomic {
            self.last_sequence = self.base_sequence + self.acknowledged;
        }
        self.waiting_since = now;
        Ok(self.acknowledged)
    }

    /// The row with this number of the epoch, from 1; the oldest in flight where the number tells nothing.
    fn position_of(&self, number: u64) -> Position {
        let index = number.saturating_sub(self.acknowledged + 1);
        usize::try_from(index)
            .ok()
            .and_then(|index| self.sent.get(index))
            .or(self.sent.front())
            .map_or(
                Position {
                    commit_lsn: 0.into(),
                    ordinal: 0,
                },
                |sent| sent.position,
            )
    }

    /// The open batch, provided that the answer is one of its own: number, rows before it, whether it is committing, id.
    fn answered_batch(&self, token: &[u8]) -> Result<(u64, bool, String), Fault> {
        let Some(batch) = &self.batch else {
            return Err(Fault::Answer(format!("{} behind a batch", excerpt(token))));
        };
        let id = format!("{}-{}", self.settings.epoch_token, batch.number);
        let is_ours = token
            .strip_prefix(id.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"."));
        if !is_ours {
            return Err(Fault::Answer(excerpt(token)));
        }
        Ok((batch.before, batch.committing, id))
    }

    fn check_stored(&self, answer: &Answer, number: u64) -> Result<(), Fault> {
        let expected = self.base_sequence + number;
        if answer.stream.as_deref() == Some(&self.settings.stream)
            && answer.seq == Some(expected)
            && !answer.duplicate
        {
            return Ok(());
        }
        Err(Fault::Answer(format!(
            "expected sequence {expected} of stream {}, got {answer:?}",
            self.settings.stream
        )))
    }

    fn read_answer(
        &self,
        status: Option<u16>,
        payload: &[u8],
        number: u64,
    ) -> Result<Answer, Fault> {
        if status == Some(503) && payload.is_empty() {
            return Err(Fault::NoResponders(self.position_of(number)));
        }
        let answer: Answer =
            serde_json::from_slice(payload).map_err(|_| Fault::Answer(excerpt(payload)))?;
        let Some(error) = answer.error else {
            return Ok(answer);
        };
        if self.settings.mode == Mode::Atomic && error.err_code == 10071 {
            return Err(Fault::Sequence(error.description));
        }
        Err(Fault::Refused {
            position: self.position_of(number),
            code: error.code,
            err_code: error.err_code,
            description: error.description,
        })
    }
}
