//! What an event looks like, told by its id alone.
//!
//! In: an id. Out: the row that the writer stores and the message that the checker expects. So the checker needs to
//! remember nothing but ids, and a message that is altered anywhere is seen.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _};
use uuid::Uuid;

/// The broker's `max_payload`: small, so that rows beyond it are cheap to make.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// What is to become of a row; the first byte of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Published as it is.
    Event = 0x0e,
    /// A dead letter: the event type makes no subject.
    BadSubject = 0xd1,
    /// A dead letter: the version does not fit.
    BadVersion = 0xd2,
    /// A dead letter: RFC 3339 cannot write the time.
    BadTime = 0xd3,
    /// A dead letter: more than the broker takes.
    TooLarge = 0xd4,
}

const DEAD: [Kind; 4] = [
    Kind::BadSubject,
    Kind::BadVersion,
    Kind::BadTime,
    Kind::TooLarge,
];

/// One in so many rows becomes a dead letter.
const DEAD_LETTER_ODDS: u32 = 150;

/// A new id.
pub fn new_id(random: &mut StdRng) -> Uuid {
    let kind = match random.random_range(0..DEAD_LETTER_ODDS) {
        0 => *DEAD.choose(random).expect("there are some"),
        _ => Kind::Event,
    };
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    bytes[0] = kind as u8;
    Uuid::from_bytes(bytes)
}

/// The kind in an id; `None` for ids of others.
pub fn kind(id: Uuid) -> Option<Kind> {
    let first = id.as_bytes()[0];
    DEAD.into_iter()
        .chain([Kind::Event])
        .find(|kind| *kind as u8 == first)
}

impl Kind {
    /// The reason header of the dead letter that a row of this kind becomes; none for events.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Kind::Event => None,
            Kind::BadSubject => Some("subject"),
            Kind::BadVersion => Some("event-version"),
            Kind::BadTime => Some("occurred-at"),
            Kind::TooLarge => Some("too-large"),
        }
    }
}

/// A row of `outbox_events`.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    pub id: Uuid,
    pub aggregate_id: Uuid,
    pub event_type: String,
    pub event_version: i16,
    /// As Postgres reads it.
    pub occurred_at: String,
    /// As jsonb writes it.
    pub payload: String,
}

impl Row {
    /// The row with this id.
    pub fn of(id: Uuid) -> Row {
        let kind = kind(id).unwrap_or(Kind::Event);
        let number = id.as_u128() as u64;
        let pad = match (kind, number % 1_009, number % 97) {
            (Kind::TooLarge, ..) => MAX_PAYLOAD_BYTES + (number % 5_000) as usize,
            (_, 0, _) => 40_000,
            (_, _, 0) => 8_000,
            _ => (number % 300) as usize,
        };
        Row {
            id,
            aggregate_id: Uuid::from_u128(u128::from(number % 1_000)),
            event_type: match kind {
                Kind::BadSubject => {
                    ["bad type", "a..b", "all.*", ""][number as usize % 4].to_owned()
                }
                _ => format!("chaos.kind{}.v1", number % 7),
            },
            event_version: match kind {
                Kind::BadVersion => [-1, 256][number as usize % 2],
                _ => (number % 256) as i16,
            },
            occurred_at: match kind {
                Kind::BadTime => {
                    ["infinity", "0044-03-15 12:00:00+00 BC"][number as usize % 2].to_owned()
                }
                _ => time(number),
            },
            // jsonb puts shorter keys first, and a space behind colon and comma.
            payload: format!(r#"{{"id": "{id}", "pad": "{}"}}"#, "x".repeat(pad)),
        }
    }

    /// The envelope that must be in the stream, byte for byte.
    pub fn envelope(&self) -> String {
        format!(
            r#"{{"id":"{}","aggregate_id":"{}","event_type":"{}","event_version":{},"occurred_at":"{}","payload_json":{}}}"#,
            self.id,
            self.aggregate_id,
            self.event_type,
            self.event_version,
            self.occurred_at,
            self.payload
        )
    }
}

/// Some time in 2026, in microseconds.
fn time(number: u64) -> String {
    let micros = 1_767_225_600_000_000 + (number % 31_000_000_000_000) as i64;
    chrono::DateTime::from_timestamp_micros(micros)
        .expect("within the year")
        .to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
