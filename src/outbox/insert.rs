//! Events into the outbox table.
//!
//! In: events or envelopes, and the caller's open transaction. Out: rows. Guarantee: one statement a call, whether it
//! carries one event or many; the rows of a call take positions in the order in which they were given.

use serde_json::value::RawValue;

use super::{OpenTransaction, Outbox, OutboxError};
use crate::event::{DomainEvent, EventEnvelope};

const COLUMNS: &str = "id, aggregate_id, event_type, event_version, occurred_at, payload_json";

pub(super) fn insert_sql(table: &str) -> String {
    format!("insert into {table} ({COLUMNS}) values ($1, $2, $3, $4, $5, $6)")
}

/// One statement for any number of rows. `with ordinality` and the sort make the order of the rows, which becomes
/// their order in the stream, the array's by contract and not by accident of the plan.
pub(super) fn insert_many_sql(table: &str) -> String {
    format!(
        "insert into {table} ({COLUMNS}) select {COLUMNS} \
         from unnest($1::uuid[], $2::uuid[], $3::text[], $4::int2[], $5::timestamptz[], $6::jsonb[]) \
         with ordinality as given ({COLUMNS}, place) order by place"
    )
}

impl Outbox {
    /// Stores an event in the caller's transaction: the relay publishes it if that commits, and never otherwise.
    ///
    /// Takes the transaction itself, not just any client, since an event outside of the transaction that it tells of is
    /// what the outbox exists to prevent: `&Transaction` of tokio-postgres, `&mut Transaction` of sqlx.
    ///
    /// One round trip. tokio-postgres keeps no state on the connection for it, so it works through a pooler. sqlx
    /// prepares the statement in its first call on a connection, in a round trip of its own, and keeps it as your
    /// connection's options say.
    ///
    /// # Errors
    /// [`OutboxError::Event`], [`OutboxError::EventType`] and [`OutboxError::NulCharacter`] before anything is sent;
    /// otherwise what Postgres answered, such as a unique violation (SQLSTATE 23505) for an event id stored before.
    pub async fn add_event<E: DomainEvent>(
        &self,
        transaction: impl OpenTransaction,
        event: &E,
    ) -> Result<(), OutboxError> {
        self.add_envelope(transaction, &EventEnvelope::from_event(event)?)
            .await
    }

    /// Stores events of one type in one statement, in the given order. See [`Self::add_envelopes`] for several types.
    ///
    /// # Errors
    /// As [`Self::add_event`]; one event that is refused refuses the call.
    pub async fn add_events<E: DomainEvent>(
        &self,
        transaction: impl OpenTransaction,
        events: &[E],
    ) -> Result<(), OutboxError> {
        let envelopes = events
            .iter()
            .map(EventEnvelope::from_event)
            .collect::<Result<Vec<_>, _>>()?;
        self.add_envelopes(transaction, &envelopes).await
    }

    /// Stores an envelope that was made before, such as one that another context handed over.
    ///
    /// # Errors
    /// As [`Self::add_event`].
    pub async fn add_envelope(
        &self,
        transaction: impl OpenTransaction,
        envelope: &EventEnvelope,
    ) -> Result<(), OutboxError> {
        check(envelope)?;
        transaction.insert(self, envelope).await
    }

    /// Stores many envelopes of any types in one statement, in the given order, in one round trip.
    ///
    /// The call is one message to Postgres, held in memory: a few thousand events, or 64 MB, are a good size for one.
    ///
    /// # Errors
    /// As [`Self::add_event`]; one envelope that is refused refuses the call.
    pub async fn add_envelopes(
        &self,
        transaction: impl OpenTransaction,
        envelopes: &[EventEnvelope],
    ) -> Result<(), OutboxError> {
        if envelopes.is_empty() {
            return Ok(());
        }
        envelopes.iter().try_for_each(check)?;
        transaction.insert_many(self, envelopes).await
    }
}

/// Many envelopes as one array a column; `Json` is a payload as the client takes it.
pub(super) struct Columns<'a, Json> {
    pub ids: Vec<uuid::Uuid>,
    pub aggregate_ids: Vec<uuid::Uuid>,
    pub event_types: Vec<&'a str>,
    pub event_versions: Vec<i16>,
    pub occurred_ats: Vec<chrono::DateTime<chrono::Utc>>,
    pub payloads: Vec<Json>,
}

impl<'a, Json> Columns<'a, Json> {
    pub fn of(envelopes: &'a [EventEnvelope], json: fn(&'a RawValue) -> Json) -> Self {
        Self {
            ids: envelopes.iter().map(|envelope| envelope.id).collect(),
            aggregate_ids: envelopes
                .iter()
                .map(|envelope| envelope.aggregate_id)
                .collect(),
            event_types: envelopes
                .iter()
                .map(|envelope| envelope.event_type.as_str())
                .collect(),
            event_versions: envelopes
                .iter()
                .map(|envelope| envelope.event_version.into())
                .collect(),
            occurred_ats: envelopes
                .iter()
                .map(|envelope| envelope.occurred_at)
                .collect(),
            payloads: envelopes
                .iter()
                .map(|envelope| json(&envelope.payload_json))
                .collect(),
        }
    }
}

/// What would be refused later, by jsonb or by a NATS subject, is refused here, before the transaction is harmed.
pub(super) fn check(envelope: &EventEnvelope) -> Result<(), OutboxError> {
    if !is_subject_part(&envelope.event_type) {
        let event_type = envelope.event_type.clone();
        return Err(OutboxError::EventType {
            id: envelope.id,
            event_type,
        });
    }
    if holds_nul(envelope.payload_json.get()) {
        return Err(OutboxError::NulCharacter { id: envelope.id });
    }
    Ok(())
}

/// Tokens joined by dots, none of them empty; no white space, control character or wildcard.
fn is_subject_part(event_type: &str) -> bool {
    event_type.split('.').all(|token| {
        !token.is_empty()
            && !token
                .contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
    })
}

/// Whether a JSON text holds the escape of U+0000. Escapes occur in strings only, so pairs are enough: what follows a
/// backslash is looked at once, and `\\u0000`, an escaped backslash and five letters, is none.
fn holds_nul(json: &str) -> bool {
    let mut rest = json.as_bytes();
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let escape = &rest[at + 1..];
        if escape.starts_with(b"u0000") {
            return true;
        }
        rest = escape.get(1..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::teaching::UserEraseRequested;

    #[test]
    fn finds_the_escape_of_nul_and_nothing_like_it() {
        for json in [
            r#""\u0000""#,
            r#"{"a\u0000b":1}"#,
            r#"["\\\u0000"]"#,
            r#""\n\"\u0000""#,
        ] {
            assert!(holds_nul(json), "{json}");
        }
        for json in [
            "null",
            r#""\\u0000""#,
            r#""u0000""#,
            r#""\u0001""#,
            r#""\\\\u0000""#,
            "\"\\",
        ] {
            assert!(!holds_nul(json), "{json}");
        }
    }

    #[test]
    fn an_event_type_has_to_fit_a_subject() {
        for event_type in ["lesson.published.v1", "a", "größe.v1", "$x", "a-b_c.d"] {
            assert!(is_subject_part(event_type), "{event_type}");
        }
        for event_type in [
            "", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\0", "a\n", "a\u{a0}b",
        ] {
            assert!(!is_subject_part(event_type), "{event_type:?}");
        }
    }

    #[test]
    fn an_envelope_is_refused_before_it_is_sent() {
        let mut envelope =
            EventEnvelope::from_event(&UserEraseRequested::new(uuid::Uuid::now_v7())).unwrap();
        assert!(check(&envelope).is_ok());
        envelope.payload_json = RawValue::from_string(r#"{"name":"a\u0000b"}"#.to_owned()).unwrap();
        assert!(
            matches!(check(&envelope), Err(OutboxError::NulCharacter { id }) if id == envelope.id)
        );
        envelope.event_type = "user erase".to_owned();
        assert!(matches!(
            check(&envelope),
            Err(OutboxError::EventType { .. })
        ));
    }
}
