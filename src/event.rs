//! Domain events and their envelope: what producers write and consumers read.
//!
//! In: an application's own event types. Out: the envelope that `outbox_events` stores and that JetStream carries.
//! Guarantee: an envelope's bytes are the same whoever writes them, the application through [`crate::outbox`] or the
//! relay from a WAL row; a payload is decoded as the type and version that it was written as, or not at all.
//!
//! ```
//! use walrelay::event::{DomainEvent, EventEnvelope, EventError};
//! use walrelay::event::teaching::{LessonPublished, UserEraseRequested};
//! use uuid::Uuid;
//!
//! // The producer's side; walrelay::outbox stores this in the caller's transaction.
//! let event = LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), "Fractions, part two");
//! let on_the_wire = EventEnvelope::from_event(&event)?.to_json()?;
//!
//! // The consumer's side, in another process: look at the type, then ask for it.
//! let envelope = EventEnvelope::from_json(&on_the_wire)?;
//! assert_eq!(envelope.event_type, "lesson.published.v1");
//! assert_eq!(envelope.decode::<LessonPublished>()?, event);
//! assert!(matches!(envelope.decode::<UserEraseRequested>(), Err(EventError::EventType { .. })));
//! # Ok::<(), EventError>(())
//! ```

use chrono::{DateTime, Datelike, SubsecRound, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

#[cfg(any(feature = "consumer", feature = "relay"))]
#[doc(hidden)]
pub mod event_id;
pub(crate) mod exact;
#[cfg(any(feature = "consumer", feature = "relay"))]
#[doc(hidden)]
pub mod position;
#[cfg(any(feature = "consumer", feature = "relay"))]
#[doc(hidden)]
pub mod stored_event;
#[cfg(any(feature = "consumer", feature = "relay"))]
#[doc(hidden)]
pub mod subject;
pub mod teaching;

/// Something that happened in a bounded context and that others are told about.
///
/// The type is its own payload: what serde writes for it is the envelope's `payload_json`, and what consumers decode.
///
/// ```
/// use chrono::{DateTime, Utc};
/// use serde::{Deserialize, Serialize};
/// use uuid::Uuid;
/// use walrelay::event::DomainEvent;
///
/// #[derive(Serialize, Deserialize)]
/// struct InvoicePaid { event_id: Uuid, invoice_id: Uuid, cents: i64, occurred_at: DateTime<Utc> }
///
/// impl DomainEvent for InvoicePaid {
///     const EVENT_TYPE: &'static str = "invoice.paid.v1";
///     fn event_id(&self) -> Uuid { self.event_id }
///     fn aggregate_id(&self) -> Uuid { self.invoice_id }
///     fn occurred_at(&self) -> DateTime<Utc> { self.occurred_at }
/// }
/// assert_eq!(InvoicePaid::EVENT_VERSION, 1);
/// ```
pub trait DomainEvent: Serialize + DeserializeOwned {
    /// Name of the event, such as `lesson.published.v1`. The default subject template puts it into the subject, so it
    /// is tokens joined by dots, without white space, `*` or `>`.
    const EVENT_TYPE: &'static str;

    /// Version of the payload's shape; a consumer that asks for another one is refused.
    const EVENT_VERSION: u8 = 1;

    /// Identity of this very event, made once when it happens: the row's primary key, and what consumers compare.
    fn event_id(&self) -> Uuid;

    /// What the event happened to: a lesson, a user.
    fn aggregate_id(&self) -> Uuid;

    /// When it happened, by the application's clock. Order comes from the database's commits, never from this.
    fn occurred_at(&self) -> DateTime<Utc>;
}

/// A [`DomainEvent`] on its way: a row of the outbox, and the body of a JetStream message.
///
/// On the wire it is UTF-8 JSON with the fields in this order and `occurred_at` in UTC with microseconds:
/// `{"id":"…","aggregate_id":"…","event_type":"lesson.published.v1","event_version":1,"occurred_at":"2026-11-23T04:40:52.846130Z","payload_json":{…}}`.
/// Reading ignores unknown fields, so that a later walrelay may add some.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventEnvelope {
    /// [`DomainEvent::event_id`].
    pub id: Uuid,
    /// [`DomainEvent::aggregate_id`].
    pub aggregate_id: Uuid,
    /// [`DomainEvent::EVENT_TYPE`].
    pub event_type: String,
    /// [`DomainEvent::EVENT_VERSION`].
    pub event_version: u8,
    /// [`DomainEvent::occurred_at`], to the microsecond, as Postgres keeps it.
    #[serde(with = "rfc3339_micros")]
    pub occurred_at: DateTime<Utc>,
    /// The payload's JSON text as it stands: what comes through the relay is Postgres' own jsonb text, byte for byte.
    pub payload_json: Box<RawValue>,
}

/// Two envelopes are equal when they would be the same bytes on the wire: payloads are compared as text.
impl PartialEq for EventEnvelope {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
            && self.aggregate_id == other.aggregate_id
            && self.event_type == other.event_type
            && self.event_version == other.event_version
            && self.occurred_at.timestamp_micros() == other.occurred_at.timestamp_micros()
            && self.payload_json.get() == other.payload_json.get()
    }
}

impl Eq for EventEnvelope {}

impl EventEnvelope {
    /// Wraps an event; `occurred_at` loses what is finer than a microsecond, as it would in Postgres.
    ///
    /// # Errors
    /// [`EventError::Encode`] where the event's own `Serialize` fails, [`EventError::OccurredAt`] outside of the years
    /// 0 to 9999.
    pub fn from_event<E: DomainEvent>(event: &E) -> Result<Self, EventError> {
        let occurred_at = event.occurred_at();
        if !(0..=9999).contains(&occurred_at.year()) {
            return Err(EventError::OccurredAt { occurred_at });
        }
        let payload_json =
            serde_json::value::to_raw_value(event).map_err(|source| EventError::Encode {
                event_type: E::EVENT_TYPE.to_owned(),
                source,
            })?;
        Ok(Self {
            id: event.event_id(),
            aggregate_id: event.aggregate_id(),
            event_type: E::EVENT_TYPE.to_owned(),
            event_version: E::EVENT_VERSION,
            occurred_at: occurred_at.trunc_subsecs(6),
            payload_json,
        })
    }

    /// The wire form.
    ///
    /// # Errors
    /// [`EventError::Encode`] where `occurred_at` was set outside of the years 0 to 9999, which RFC 3339 cannot say.
    pub fn to_json(&self) -> Result<String, EventError> {
        serde_json::to_string(self).map_err(|source| EventError::Encode {
            event_type: self.event_type.clone(),
            source,
        })
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`EventError::Malformed`] for what is no envelope.
    pub fn from_json(text: &str) -> Result<Self, EventError> {
        serde_json::from_str(text).map_err(EventError::Malformed)
    }

    /// Reads the wire form from a message's bytes.
    ///
    /// # Errors
    /// [`EventError::Malformed`] for what is no envelope, or no UTF-8.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, EventError> {
        serde_json::from_slice(bytes).map_err(EventError::Malformed)
    }

    /// Whether [`Self::decode`] would try to read the payload as an `E`: type and version are E's.
    pub fn is<E: DomainEvent>(&self) -> bool {
        self.event_type == E::EVENT_TYPE && self.event_version == E::EVENT_VERSION
    }

    /// The payload as the event that it was written as.
    ///
    /// # Errors
    /// [`EventError::EventType`] and [`EventError::EventVersion`] where it is another event, or another version of it;
    /// [`EventError::Decode`] where the payload does not fit `E`, or where a number would be rounded to fit a float.
    pub fn decode<E: DomainEvent>(&self) -> Result<E, EventError> {
        check_is::<E>(&self.event_type, self.event_version)?;
        exact::from_json(&self.payload_json).map_err(|source| EventError::Decode {
            id: self.id.to_string(),
            source,
        })
    }
}

/// Whether what is told to be of this type and version is an `E`.
pub(crate) fn check_is<E: DomainEvent>(event_type: &str, version: u8) -> Result<(), EventError> {
    if event_type != E::EVENT_TYPE {
        return Err(EventError::EventType {
            expected: E::EVENT_TYPE,
            found: event_type.to_owned(),
        });
    }
    if version != E::EVENT_VERSION {
        return Err(EventError::EventVersion {
            event_type: E::EVENT_TYPE,
            expected: E::EVENT_VERSION,
            found: version,
        });
    }
    Ok(())
}

/// Why an event could not be put into an envelope, or taken out of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Another event than the one asked for; a consumer of several types looks at `event_type` first.
    #[error("the envelope carries {found:?}, not {expected:?}")]
    EventType {
        /// The type that was asked for.
        expected: &'static str,
        /// The envelope's type.
        found: String,
    },
    /// The right event in a shape that this consumer does not know.
    #[error("the envelope carries version {found} of {event_type:?}, not version {expected}")]
    EventVersion {
        /// The type, which fits.
        event_type: &'static str,
        /// The version that was asked for.
        expected: u8,
        /// The envelope's version.
        found: u8,
    },
    /// The payload is not what it is to be read as, or a number in it would be rounded.
    #[error("the payload of event {id} does not fit")]
    Decode {
        /// The event that could not be read.
        id: String,
        /// Where in the payload, and what was expected there.
        source: serde_json::Error,
    },
    /// A tombstone, or bytes.
    #[error("event {id} has no payload that is JSON")]
    NoJson {
        /// The event that could not be read.
        id: String,
    },
    /// The message does not tell of which type its event is: a format of the payload alone.
    #[error(
        "the message of event {id} does not tell its type, so it cannot be checked for {expected:?}"
    )]
    NoType {
        /// The event that could not be read.
        id: String,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// The bytes are no envelope.
    #[error("not an event envelope")]
    Malformed(#[source] serde_json::Error),
    /// The event cannot be written as JSON, such as a map whose keys are no strings.
    #[error("the event {event_type:?} cannot be written as JSON")]
    Encode {
        /// Type of the event.
        event_type: String,
        /// What could not be written.
        source: serde_json::Error,
    },
    /// RFC 3339 has years 0 to 9999.
    #[error("occurred_at {occurred_at} is outside of the years 0 to 9999")]
    OccurredAt {
        /// The time in question.
        occurred_at: DateTime<Utc>,
    },
}

/// `occurred_at` on the wire: RFC 3339, UTC, exactly six fractional digits, `Z`.
mod rfc3339_micros {
    use chrono::{DateTime, Datelike, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(
        time: &DateTime<Utc>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let time = written(time).ok_or_else(|| ser::Error::custom(OUTSIDE))?;
        serializer.collect_str(&time.format("%Y-%m-%dT%H:%M:%S%.6fZ"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DateTime<Utc>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(de::Error::custom)?;
        let time = time.to_utc();
        // An offset or a leap second can lead out of the years that its own text is in.
        match written(&time) {
            Some(_) => Ok(time),
            None => Err(de::Error::custom(OUTSIDE)),
        }
    }

    const OUTSIDE: &str = "occurred_at is outside of the years 0 to 9999";

    /// The moment as it is written: by way of the microseconds, so that a leap second becomes what Postgres would have stored.
    fn written(time: &DateTime<Utc>) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(time.timestamp_micros())
            .filter(|time| (0..=9999).contains(&time.year()))
    }
}

#[cfg(test)]
mod tests {
    use super::teaching::{LessonPublished, UserEraseRequested};
    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    /// The example of the design notes, byte for byte, with Postgres' jsonb spacing in the payload.
    const WIRE: &str = concat!(
        r#"{"id":"0199fd3c-2a5e-7c3b-8d5f-0123456789ab","aggregate_id":"6f1d3a52-93c5-4c0e-9a77-fedcba987654","#,
        r#""event_type":"lesson.published.v1","event_version":1,"occurred_at":"2026-11-23T04:40:52.846130Z","#,
        r#""payload_json":{"title": "Größen & \"mehr\"", "teacher_id": null}}"#
    );

    #[test]
    fn a_moment_that_could_not_be_written_again_is_not_read() {
        let at = |text: &str| {
            EventEnvelope::from_json(&WIRE.replace("2026-11-23T04:40:52.846130Z", text))
        };
        for text in ["9999-12-31T23:59:60Z", "0000-01-01T00:00:00+01:00"] {
            assert!(matches!(at(text), Err(EventError::Malformed(_))), "{text}");
        }
        for text in ["9999-12-31T23:59:59Z", "2016-12-31T23:59:60Z"] {
            at(text).expect(text).to_json().expect(text);
        }
    }

    fn wire_envelope() -> EventEnvelope {
        EventEnvelope {
            id: "0199fd3c-2a5e-7c3b-8d5f-0123456789ab".parse().unwrap(),
            aggregate_id: "6f1d3a52-93c5-4c0e-9a77-fedcba987654".parse().unwrap(),
            event_type: "lesson.published.v1".to_owned(),
            event_version: 1,
            occurred_at: Utc.timestamp_opt(1_795_408_852, 846_130_000).unwrap(),
            payload_json: RawValue::from_string(
                r#"{"title": "Größen & \"mehr\"", "teacher_id": null}"#.to_owned(),
            )
            .unwrap(),
        }
    }

    fn lesson() -> LessonPublished {
        LessonPublished::new(Uuid::now_v7(), Uuid::now_v7(), "Fractions")
    }

    #[test]
    fn wire_form_is_byte_for_byte_the_designs() {
        assert_eq!(wire_envelope().to_json().unwrap(), WIRE);
        let read = EventEnvelope::from_json(WIRE).unwrap();
        assert_eq!(read, wire_envelope());
        assert_eq!(
            EventEnvelope::from_slice(WIRE.as_bytes())
                .unwrap()
                .to_json()
                .unwrap(),
            WIRE
        );
    }

    #[test]
    fn occurred_at_always_has_six_digits_and_a_z() {
        let mut envelope = wire_envelope();
        for (nanoseconds, digits) in [(0, "000000"), (1_999, "000001"), (120_000_000, "120000")] {
            envelope.occurred_at = Utc.timestamp_opt(951_782_400, nanoseconds).unwrap();
            let expected = format!(r#""occurred_at":"2000-02-29T00:00:00.{digits}Z""#);
            assert!(
                envelope.to_json().unwrap().contains(&expected),
                "{nanoseconds}"
            );
        }
        envelope.occurred_at = Utc.timestamp_opt(951_782_399, 1_500_000_000).unwrap();
        assert!(
            envelope
                .to_json()
                .unwrap()
                .contains("2000-02-29T00:00:00.500000Z"),
            "leap second"
        );
    }

    #[test]
    fn occurred_at_is_read_from_any_offset() {
        let offset = WIRE.replace("04:40:52.846130Z", "06:10:52.84613+01:30");
        assert_eq!(EventEnvelope::from_json(&offset).unwrap(), wire_envelope());
    }

    #[test]
    fn years_that_rfc3339_cannot_say_are_refused() {
        let mut event = lesson();
        event.occurred_at = Utc.with_ymd_and_hms(10_000, 1, 1, 0, 0, 0).unwrap();
        assert!(matches!(
            EventEnvelope::from_event(&event),
            Err(EventError::OccurredAt { .. })
        ));
        let mut envelope = wire_envelope();
        envelope.occurred_at = event.occurred_at;
        assert!(matches!(envelope.to_json(), Err(EventError::Encode { .. })));
    }

    #[test]
    fn both_examples_come_back_as_they_went_in() {
        let published = lesson();
        let envelope = EventEnvelope::from_event(&published).unwrap();
        assert_eq!(envelope.id, published.event_id);
        assert_eq!(envelope.aggregate_id, published.lesson_id);
        assert!(envelope.is::<LessonPublished>());
        let wire = envelope.to_json().unwrap();
        let read = EventEnvelope::from_json(&wire).unwrap();
        assert_eq!(read, envelope);
        assert_eq!(read.decode::<LessonPublished>().unwrap(), published);

        let erase = UserEraseRequested::new(Uuid::now_v7());
        let envelope = EventEnvelope::from_event(&erase).unwrap();
        assert_eq!(envelope.event_type, "user.erase_requested.v1");
        assert_eq!(envelope.aggregate_id, erase.user_id);
        assert_eq!(envelope.decode::<UserEraseRequested>().unwrap(), erase);
    }

    #[test]
    fn decode_refuses_another_type_another_version_another_shape() {
        let mut envelope = EventEnvelope::from_event(&lesson()).unwrap();
        assert!(!envelope.is::<UserEraseRequested>());
        assert!(matches!(
            envelope.decode::<UserEraseRequested>(),
            Err(EventError::EventType { expected: "user.erase_requested.v1", found }) if found == "lesson.published.v1"
        ));
        envelope.event_version = 2;
        assert!(matches!(
            envelope.decode::<LessonPublished>(),
            Err(EventError::EventVersion {
                expected: 1,
                found: 2,
                ..
            })
        ));
        envelope.event_version = 1;
        envelope.payload_json = RawValue::from_string("{}".to_owned()).unwrap();
        assert!(matches!(
            envelope.decode::<LessonPublished>(),
            Err(EventError::Decode { id, .. }) if id == envelope.id.to_string()
        ));
    }

    #[test]
    fn event_version_is_one_byte() {
        let largest = WIRE.replace(r#""event_version":1"#, r#""event_version":255"#);
        assert_eq!(
            EventEnvelope::from_json(&largest).unwrap().event_version,
            255
        );
        for outside in ["256", "-1", "1.5", "null"] {
            let wire = WIRE.replace(
                r#""event_version":1"#,
                &format!(r#""event_version":{outside}"#),
            );
            assert!(
                matches!(
                    EventEnvelope::from_json(&wire),
                    Err(EventError::Malformed(_))
                ),
                "{outside}"
            );
        }
    }

    #[test]
    fn an_unknown_field_is_ignored_and_a_missing_one_is_not() {
        let more = WIRE.replacen('{', r#"{"tenant":"north","#, 1);
        assert_eq!(EventEnvelope::from_json(&more).unwrap(), wire_envelope());
        let less = WIRE.replace(r#""event_version":1,"#, "");
        assert!(matches!(
            EventEnvelope::from_json(&less),
            Err(EventError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = EventEnvelope::from_slice(&bytes);
        }

        #[test]
        fn every_time_that_postgres_and_rfc3339_share_survives(
            micros in -62_167_219_200_000_000_i64..=253_402_300_799_999_999_i64,
        ) {
            let mut envelope = wire_envelope();
            envelope.occurred_at = DateTime::from_timestamp_micros(micros).unwrap();
            let read = EventEnvelope::from_json(&envelope.to_json().unwrap()).unwrap();
            prop_assert_eq!(read.occurred_at, envelope.occurred_at);
        }
    }
}
