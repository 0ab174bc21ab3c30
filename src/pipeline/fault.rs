//! What ends an epoch, and what is to be done about it: the one place where errors are classed.
//!
//! In: whatever went wrong on either side. Out: [`Fault`] (start again as at every start) or [`Halt`] (a person has
//! to look), and for a fault its [`Class`].

use super::position::Position;
use super::reader::DecodeError;
use super::relations::RowError;
use super::reshard::OtherNumber;
use postgres_types::PgLsn;

mod blocks;
mod halt;

pub use blocks::Blocks;
pub use halt::{Halt, of_share};

/// Why an epoch ended. The next one starts from what stream and slot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The connection to Postgres is gone or could not be made.
    #[error("{}", of_side("Postgres", .0))]
    Postgres(String),
    /// The connection to NATS is gone or could not be made.
    #[error("{}", of_side("NATS", .0))]
    Broker(String),
    /// Something is missing or does not fit that was there before; a person may be at it.
    #[error("{0}")]
    Unready(String),
    /// Something that carries the table's rows was changed; the next start says since when.
    #[error("publication or table was changed")]
    Carrier,
    /// The server has left the timeline that the lane's record speaks of.
    #[error("the server has gone over from timeline {before} to {now}: a standby was promoted")]
    Promoted {
        /// The epoch's timeline.
        before: u32,
        /// The server's now.
        now: u32,
    },
    /// A row without a column that the event needs; the next start says whether the table has it again.
    #[error("the table had no column {column:?} when the row at {position} was inserted")]
    Column {
        /// The row.
        position: Position,
        /// The column.
        column: String,
    },
    /// Another table has taken the outbox's name. The lane record must know of it before a row of that one leaves.
    #[error("another table is called {table} from the transaction on that commits at {from}")]
    Successor {
        /// The name, with its schema.
        table: String,
        /// Where in the WAL.
        from: PgLsn,
    },
    /// Another process reads from the slot.
    #[error("slot {slot} is in use by process {pid} of Postgres; waiting for it to go")]
    SlotActive {
        /// The slot.
        slot: String,
        /// Backend process id, 0 where the server does not say.
        pid: u32,
    },
    /// The lane is none of the shares that there are.
    #[error(transparent)]
    NoShare(#[from] OtherNumber),
    /// Bytes that the replication protocol does not know.
    #[error("replication stream: {0}")]
    Protocol(#[from] DecodeError),
    /// A row that does not fit its relation.
    #[error("replication stream: {0}")]
    Row(RowError),
    /// No acknowledgement in time.
    #[error("no acknowledgement from the stream, with messages in flight: {0}")]
    AckTimeout(u64),
    /// Again no acknowledgement, of a stream that looks healthy.
    #[error(
        "stream {0} answers no message and looks healthy. nats-server keeps a stream silent after a write has failed (a full \
         disk), until it is restarted: look at its log and at /healthz of its monitoring port, make room, and restart nats-server"
    )]
    Mute(String),
    /// No stream listens on the subject.
    #[error("no stream takes the subject of the event at {0}")]
    NoResponders(Position),
    /// The stream is further than this epoch knows: somebody else has written to it.
    #[error("the stream's last sequence is not the expected one: {0}")]
    Sequence(String),
    /// The broker refused a message.
    #[error("the broker refuses the event at {position}: {description} ({code}/{err_code})")]
    Refused {
        /// The row.
        position: Position,
        /// HTTP-like status.
        code: u16,
        /// JetStream's error code.
        err_code: u16,
        /// What the server says.
        description: String,
    },
    /// The broker ended the connection over a frame, and does not say which.
    #[error("the broker refuses the frame of {}: {text}", refused_frame(*.oldest, *.in_flight))]
    Frame {
        /// The oldest row in flight.
        oldest: Position,
        /// How many rows were in flight.
        in_flight: u64,
        /// What the server says.
        text: String,
    },
    /// The broker has not the whole of a batch: it refused one of its messages, which it was not asked to say, or has forgotten
    /// the batch.
    #[error("the broker does not have all of {}: {text}", events_from(*.oldest, *.in_flight))]
    Incomplete {
        /// The oldest row in flight.
        oldest: Position,
        /// How many rows were in flight.
        in_flight: u64,
        /// What the server says.
        text: String,
    },
    /// The broker takes fewer messages in a batch.
    #[error(
        "the broker takes atomic batches of {messages_max} messages at most, and the smallest has {BATCH_MESSAGES_MIN}: \
         jetstream.limits.batch.max_msgs of nats-server says so, and counts from its start"
    )]
    BatchTooLarge {
        /// The most that it takes.
        messages_max: u64,
    },
    /// An acknowledgement that is not of the expected stream and sequence.
    #[error("unexpected acknowledgement: {0}")]
    Answer(String),
    /// The probe before a confirmation found that the stream no longer is what was acknowledged.
    #[error("the stream has lost what it had acknowledged: {0}")]
    StreamLost(String),
    /// Somebody else has written the lane's record.
    #[error("the lane record was written by another relay: {0}")]
    RecordTaken(String),
    /// What is kept of the WAL cannot go on behind the stream's end: it is read again from there.
    #[error("what is in flight cannot go on at the stream's end: {0}")]
    Reread(&'static str),
}

/// Why an epoch cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Start again.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A person has to look.
    #[error(transparent)]
    Halt(#[from] Halt),
}

impl From<DecodeError> for Stop {
    fn from(error: DecodeError) -> Self {
        Stop::Fault(Fault::Protocol(error))
    }
}

impl From<RowError> for Stop {
    fn from(error: RowError) -> Self {
        match error {
            RowError::Decode(error) => Stop::Fault(Fault::Protocol(error)),
            error => Stop::Fault(Fault::Row(error)),
        }
    }
}

/// What to do about a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Wait with growing pauses, for ever.
    Transient,
    /// Start again at once: the lane end has the answer.
    Resync,
    /// The row is at fault and would be refused again: it becomes a dead letter, or halts.
    Row,
    /// Would repeat for every row: after [`STUCK_EPOCHS`] epochs at one position the relay halts.
    Permanent,
}

/// So many epochs may end at one position with a permanent refusal.
pub const STUCK_EPOCHS: u32 = 3;

/// JetStream error codes (server/errors.json of nats-server) that are about one message.
const ROW_CODES: [u16; 2] = [
    10054, // message size exceeds maximum allowed
    10097, // header size exceeds maximum allowed of 64k
];
/// "atomic publish: batch incomplete": a message of it was refused, or it is forgotten, after a restart, by another leader, or after
/// 10 s of idleness.
pub(super) const BATCH_INCOMPLETE: u16 = 10176;
/// "atomic publish batch is too large: N": nats-server takes no more than N, by `jetstream.limits.batch.max_msgs`.
pub(super) const BATCH_TOO_LARGE: u16 = 10199;
/// Messages of the smallest atomic batch: an event, and the lane's own that commits it.
const BATCH_MESSAGES_MIN: u64 = 2;
/// Error codes that say that the expectations did not hold.
const SEQUENCE_CODES: [u16; 5] = [
    10071, // wrong last sequence
    10070, // wrong last msg ID
    10164, // wrong last sequence, in a clustered stream
    BATCH_INCOMPLETE,
    10208, // batch publish: unknown batch, after a restart, a gap or 10 s of idleness
];
/// Of these, those that say so of the message alone.
const LAST_SEQUENCE_CODES: [u16; 2] = [10071, 10164];
/// Error codes that get better by waiting: full, overloaded, without a leader or without resources for the moment.
const TRANSIENT_CODES: [u16; 11] = [
    10002, // resource limits exceeded for account
    10008, // JetStream system temporarily unavailable
    10009, // cluster not available
    10023, // insufficient resources
    10028, // account resources exceeded
    10047, // insufficient storage resources available
    10077, // store failed: maximum bytes or messages exceeded, with discard new
    10163, // expected last sequence per subject temporarily unavailable
    10167, // too many requests
    10210, // atomic publish: too many in flight
    10211, // batch publish: too many in flight
];

/// What nats-server says, then closing the connection, of a frame that is too long for its max_control_line or
/// max_payload (server/errors.go).
const FRAME_ERRORS: [&str; 2] = ["maximum control line", "maximum payload"];

/// Whether the text of a -ERR is about a frame that would be refused again.
pub(crate) fn is_about_frame(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    FRAME_ERRORS.iter().any(|error| text.contains(error))
}

fn refused_frame(oldest: Position, in_flight: u64) -> String {
    match in_flight {
        1 => format!("the event at {oldest}"),
        count => format!("one of {}", events_from(oldest, count)),
    }
}

fn events_from(oldest: Position, count: u64) -> String {
    format!("the {count} events from {oldest} on")
}

impl Fault {
    /// Whether it is a doubt about the broker alone: a new connection there clears it, and the WAL need not be read again. A
    /// row at fault is not kept as it has to leave then, and whoever has written the record may read the slot as well.
    pub fn is_of_broker(&self) -> bool {
        match self {
            Fault::Broker(_)
            | Fault::AckTimeout(_)
            | Fault::Mute(_)
            | Fault::NoResponders(_)
            | Fault::Sequence(_)
            | Fault::Incomplete { .. }
            | Fault::BatchTooLarge { .. }
            | Fault::Answer(_) => true,
            Fault::Refused { .. } => self.class() != Class::Row,
            Fault::Postgres(_)
            | Fault::Unready(_)
            | Fault::Carrier
            | Fault::Promoted { .. }
            | Fault::Column { .. }
            | Fault::Successor { .. }
            | Fault::SlotActive { .. }
            | Fault::NoShare(_)
            | Fault::Protocol(_)
            | Fault::Row(_)
            | Fault::Frame { .. }
            | Fault::StreamLost(_)
            | Fault::RecordTaken(_)
            | Fault::Reread(_) => false,
        }
    }

    /// The broker refuses a message since it does not follow what it was to follow: it is not stored.
    pub(crate) fn is_out_of_sequence(&self) -> bool {
        matches!(self, Fault::Refused { err_code, .. } if LAST_SEQUENCE_CODES.contains(err_code))
    }

    /// Which side the fault is on, and what kind it is, in a word each: for metrics.
    pub fn name(&self) -> (&'static str, &'static str) {
        match self {
            Fault::Postgres(_) => ("postgres", "connection"),
            Fault::Carrier => ("postgres", "carrier-changed"),
            Fault::Promoted { .. } => ("postgres", "promoted"),
            Fault::Column { .. } => ("postgres", "column-missing"),
            Fault::Successor { .. } => ("postgres", "table-replaced"),
            Fault::SlotActive { .. } => ("postgres", "slot-active"),
            Fault::NoShare(_) => ("postgres", "no-share"),
            Fault::Protocol(_) => ("postgres", "protocol"),
            Fault::Row(_) => ("postgres", "row-mismatch"),
            Fault::Reread(_) => ("postgres", "reread"),
            Fault::Broker(_) => ("nats", "connection"),
            Fault::AckTimeout(_) => ("nats", "ack-timeout"),
            Fault::Mute(_) => ("nats", "mute"),
            Fault::NoResponders(_) => ("nats", "no-responders"),
            Fault::Sequence(_) => ("nats", "sequence"),
            Fault::Refused { .. } => ("nats", "refused"),
            Fault::Frame { .. } => ("nats", "frame-refused"),
            Fault::Incomplete { .. } => ("nats", "batch-incomplete"),
            Fault::BatchTooLarge { .. } => ("nats", "batch-too-large"),
            Fault::Answer(_) => ("nats", "unexpected-answer"),
            Fault::StreamLost(_) => ("nats", "stream-lost"),
            Fault::RecordTaken(_) => ("nats", "record-taken"),
            Fault::Unready(_) => ("either", "unready"),
        }
    }

    /// What to do about it; what is not known is permanent.
    pub fn class(&self) -> Class {
        match self {
            Fault::Postgres(_)
            | Fault::Broker(_)
            | Fault::Unready(_)
            | Fault::SlotActive { .. }
            | Fault::NoShare(_)
            | Fault::AckTimeout(_)
            | Fault::Mute(_)
            | Fault::NoResponders(_) => Class::Transient,
            Fault::Carrier
            | Fault::Promoted { .. }
            | Fault::Column { .. }
            | Fault::Successor { .. }
            | Fault::Sequence(_)
            | Fault::Incomplete { .. }
            | Fault::StreamLost(_)
            | Fault::RecordTaken(_)
            | Fault::Reread(_)
            | Fault::Answer(_) => Class::Resync,
            Fault::Refused { code, err_code, .. } => match err_code {
                code if ROW_CODES.contains(code) => Class::Row,
                code if SEQUENCE_CODES.contains(code) => Class::Resync,
                code if TRANSIENT_CODES.contains(code) => Class::Transient,
                _ if *code == 429 || *code == 503 => Class::Transient,
                _ => Class::Permanent,
            },
            // The next ones are smaller, where they can be.
            Fault::BatchTooLarge { messages_max } => match *messages_max >= BATCH_MESSAGES_MIN {
                true => Class::Resync,
                false => Class::Permanent,
            },
            // Alone in flight, it is the row's.
            Fault::Frame { in_flight: 1, .. } => Class::Row,
            Fault::Frame { .. } | Fault::Protocol(_) | Fault::Row(_) => Class::Permanent,
        }
    }
}

/// Names the side, unless the text begins with it.
fn of_side(side: &str, text: &str) -> String {
    match text.starts_with(&format!("{side} ")) {
        true => text.to_owned(),
        false => format!("{side}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_named_once() {
        let text = |text: &str| Fault::Broker(text.to_owned()).to_string();
        assert_eq!(text("gone"), "NATS: gone");
        assert_eq!(text("NATS at a:1 refused"), "NATS at a:1 refused");
        assert_eq!(text("NATSIO"), "NATS: NATSIO");
    }
}
