//! The reader's side: what a message of the stream says, whatever its format.
//!
//! In: messages as async-nats hands them out. Out: [`Event`]s with their kind and their place in the lane; whether the consumer has
//! had them (`Inbox`, with feature `inbox`). Guarantee: what any mapping of `docs/tables.md` publishes can be read; a number is kept to its last digit, or
//! its reading is an error.
//!
//! ```no_run
//! use futures_util::StreamExt as _;
//! use walrelay::consumer::{Event, subject_filter};
//! use walrelay::event::DomainEvent as _;
//! use walrelay::event::teaching::LessonPublished;
//!
//! # async fn read(stream: async_nats::jetstream::stream::Stream) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let config = async_nats::jetstream::consumer::pull::Config {
//!     durable_name: Some("catalogue".to_owned()),
//!     filter_subject: subject_filter("outbox.{event_type}", LessonPublished::EVENT_TYPE)?,
//!     ..Default::default()
//! };
//! let mut messages = stream.create_consumer(config).await?.messages().await?;
//! while let Some(message) = messages.next().await {
//!     let message = message?;
//!     let event = Event::read(&message)?;
//!     let lesson: LessonPublished = event.decode()?;
//!     println!("{:?} {}", event.place, lesson.title);
//!     message.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "inbox")]
mod inbox;

use std::fmt;

use async_nats::Message;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::event::position::{
    self, KIND_BACKFILL, KIND_DEAD_LETTER, KIND_FENCED, KIND_HEADER, KIND_REPLAY, KIND_RETRY,
    POSITION_HEADER, REASON_HEADER,
};
use crate::event::stored_event::StoredEvent;
use crate::event::subject::SubjectTemplate;
use crate::event::{DomainEvent, EventError};

#[cfg(feature = "inbox")]
pub use self::inbox::{INBOX_SQL, Inbox, InboxError, Taken};
pub use crate::event::position::{Position, PositionError};
pub use crate::event::stored_event::Payload;
pub use crate::event::subject::{SubjectError, TemplateError};

/// Subjects of walrelay's own begin so.
const OWN_ROOT: &str = "walrelay.";
/// What nats-server puts behind the last message of a subject that aged out (ADR-43).
const MARKER_HEADER: &str = "Nats-Marker-Reason";

/// An event as a message of the stream tells it. What the message's format leaves out is none: a payload alone has an id and
/// nothing else, and its subject says what it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// Why it is in the stream.
    pub kind: Kind,
    /// Where it stands in its lane; none of [`Kind::Backfill`] and [`Kind::Retry`], which stand outside.
    pub place: Option<Place>,
    /// The event's id, in the form that the message has: a UUID, a number or any text. Of a dead letter whose row has none, empty.
    pub id: String,
    /// What it happened to.
    pub aggregate_id: Option<String>,
    /// Its type.
    pub event_type: Option<String>,
    /// The type's version.
    pub event_version: Option<u8>,
    /// When it happened, by the application's clock, or when it was committed.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Its payload; of a dead letter what `docs/operating.md` says of its body.
    pub payload: Payload,
}

/// Why a message is in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// An event in its order: each is there once.
    Live,
    /// An event that the stream lacked, or that is older than the slot: `walrelay backfill`.
    Backfill,
    /// The event of a dead letter: `walrelay dead-letters retry`.
    Retry,
    /// An event that somebody asked for again: `walrelay replay`, `walrelay run --from`. It keeps its place.
    Replay,
    /// A row that could not be published, at its place, on `walrelay.dead.<slot>`.
    DeadLetter {
        /// Why, in a word: `too-large`, `null`, `subject`.
        reason: String,
    },
}

/// A place in a lane. Those of one slot are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The lane's slot.
    pub slot: String,
    /// The commit's LSN, and the row's number in its transaction.
    pub position: Position,
}

/// As in `Walrelay-Position`: `walrelay 16/B374D848:3`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.slot, self.position)
    }
}

/// Why a message is no event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A note of walrelay's own, such as the mark of a dead letter that was retried; or nats-server's that a subject aged out
    /// (`subject_delete_marker_ttl`). Acknowledge it and go on.
    #[error(
        "the message on {subject} is a note of walrelay or nats-server, and no event: filter by the events' subjects, and set no \
         subject_delete_marker_ttl"
    )]
    Control {
        /// The message's subject.
        subject: String,
    },
    /// A kind that this version does not know.
    #[error(
        "the message on {subject} has the kind {kind:?}, which this version of walrelay does not know"
    )]
    Kind {
        /// The message's subject.
        subject: String,
        /// Its `Walrelay-Kind`.
        kind: String,
    },
    /// `Walrelay-Position` is not walrelay's.
    #[error("the message on {subject} has no position that can be read")]
    Position {
        /// The message's subject.
        subject: String,
        /// What stands there instead.
        source: PositionError,
    },
    /// Neither a header nor the body tells an id: not published by walrelay.
    #[error("the message on {subject} tells no event's id: is it walrelay's?")]
    NoId {
        /// The message's subject.
        subject: String,
    },
}

impl Event {
    /// Reads a message; a `jetstream::Message` gives one by reference.
    ///
    /// # Errors
    /// [`ReadError`]: it is no event. Reading it again will not help.
    pub fn read(message: &Message) -> Result<Self, ReadError> {
        let header = |name: &str| {
            let value = message.headers.as_ref()?.get(name)?;
            Some(value.as_str().to_owned())
        };
        let subject = || message.subject.to_string();
        let kind = match header(KIND_HEADER).as_deref() {
            Some(KIND_DEAD_LETTER) => Kind::DeadLetter {
                reason: header(REASON_HEADER).unwrap_or_default(),
            },
            _ if message.subject.starts_with(OWN_ROOT) || header(MARKER_HEADER).is_some() => {
                return Err(ReadError::Control { subject: subject() });
            }
            None => Kind::Live,
            Some(KIND_BACKFILL) => Kind::Backfill,
            Some(KIND_RETRY) => Kind::Retry,
            Some(KIND_REPLAY) => Kind::Replay,
            // In a stream of replays, for the moment until it is removed.
            Some(KIND_FENCED) => return Err(ReadError::Control { subject: subject() }),
            Some(kind) => {
                return Err(ReadError::Kind {
                    subject: subject(),
                    kind: kind.to_owned(),
                });
            }
        };
        let place = header(POSITION_HEADER)
            .map(|text| {
                let (slot, position) = position::parse_header(&text)?;
                let slot = slot.to_owned();
                Ok(Place { slot, position })
            })
            .transpose()
            .map_err(|source| ReadError::Position {
                subject: subject(),
                source,
            })?;
        let event = StoredEvent::read(header, &message.payload);
        let is_letter = matches!(kind, Kind::DeadLetter { .. });
        let id = match event.id {
            None if is_letter => String::new(),
            None => return Err(ReadError::NoId { subject: subject() }),
            Some(id) => id,
        };
        Ok(Event {
            kind,
            place,
            id,
            aggregate_id: event.aggregate_id,
            event_type: event.event_type,
            event_version: event.event_version,
            occurred_at: event.occurred_at,
            payload: event.payload,
        })
    }

    /// The payload as the event that it was written as. The version is checked where the message tells it.
    ///
    /// # Errors
    /// [`EventError::NoType`] where the message does not tell its type: see [`Self::payload_as`].
    /// [`EventError::EventType`] and [`EventError::EventVersion`] where it is another event, or another version of it; else as
    /// [`Self::payload_as`].
    pub fn decode<E: DomainEvent>(&self) -> Result<E, EventError> {
        let event_type = self
            .event_type
            .as_deref()
            .ok_or_else(|| EventError::NoType {
                id: self.id.clone(),
                expected: E::EVENT_TYPE,
            })?;
        let version = self.event_version.unwrap_or(E::EVENT_VERSION);
        crate::event::check_is::<E>(event_type, version)?;
        self.payload_as()
    }

    /// The payload as any type, such as a consumer of [`Kind::Live`] payloads alone knows by the subject. A field that may hold
    /// numbers beyond a float's is a [`RawValue`](serde_json::value::RawValue), or an `i128`.
    ///
    /// # Errors
    /// [`EventError::NoJson`] where there is none, or bytes; [`EventError::Decode`] where it does not fit, or where a number
    /// would be rounded.
    pub fn payload_as<T: DeserializeOwned>(&self) -> Result<T, EventError> {
        match &self.payload {
            Payload::Json(json) => {
                crate::event::exact::from_json(json).map_err(|source| EventError::Decode {
                    id: self.id.clone(),
                    source,
                })
            }
            Payload::Absent | Payload::Bytes(_) => Err(EventError::NoJson {
                id: self.id.clone(),
            }),
        }
    }
}

/// The `filter_subject` that gives the events of one type: of `nats.subject`'s template `outbox.{event_type}` and
/// `lesson.published.v1`, `outbox.lesson.published.v1`. Another placeholder is `*`, one token; where it ends the template, `>`.
///
/// # Errors
/// The template is none, or does not name the type; the type can be in no subject.
pub fn subject_filter(template: &str, event_type: &str) -> Result<String, TemplateError> {
    template.parse::<SubjectTemplate>()?.filter_of(event_type)
}

#[cfg(test)]
mod tests;
