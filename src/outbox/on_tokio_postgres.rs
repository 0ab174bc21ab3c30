//! The inserts over tokio-postgres.
//!
//! In: envelopes that were checked, and a transaction of tokio-postgres. Out: rows, in one round trip a call.

use serde_json::value::RawValue;
use tokio_postgres::types::{Json, ToSql, Type};
use tokio_postgres::{GenericClient, Statement, Transaction};

use super::insert::{self, Columns};
use super::{Insert, OpenTransaction, Outbox, OutboxError};
use crate::event::{DomainEvent, EventEnvelope};

const COLUMN_TYPES: [Type; 6] = [
    Type::UUID,
    Type::UUID,
    Type::TEXT,
    Type::INT2,
    Type::TIMESTAMPTZ,
    Type::JSONB,
];

const ARRAY_TYPES: [Type; 6] = [
    Type::UUID_ARRAY,
    Type::UUID_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT2_ARRAY,
    Type::TIMESTAMPTZ_ARRAY,
    Type::JSONB_ARRAY,
];

impl OpenTransaction for &Transaction<'_> {}

impl Insert for &Transaction<'_> {
    async fn insert(self, outbox: &Outbox, envelope: &EventEnvelope) -> Result<(), OutboxError> {
        let row = Row::of(envelope);
        let values: Vec<_> = row.parameters().into_iter().zip(COLUMN_TYPES).collect();
        self.execute_typed(&outbox.insert_sql, &values)
            .await
            .map_err(|source| OutboxError::postgres("inserting into", &outbox.table, source))?;
        Ok(())
    }

    async fn insert_many(
        self,
        outbox: &Outbox,
        envelopes: &[EventEnvelope],
    ) -> Result<(), OutboxError> {
        let columns = Columns::of(envelopes, Json);
        let arrays: [&(dyn ToSql + Sync); 6] = [
            &columns.ids,
            &columns.aggregate_ids,
            &columns.event_types,
            &columns.event_versions,
            &columns.occurred_ats,
            &columns.payloads,
        ];
        let values: Vec<_> = arrays.into_iter().zip(ARRAY_TYPES).collect();
        self.execute_typed(&outbox.insert_many_sql, &values)
            .await
            .map_err(|source| OutboxError::postgres("inserting into", &outbox.table, source))?;
        Ok(())
    }
}

/// With tokio-postgres.
impl Outbox {
    /// Parses and plans the insert once for a connection that will store many events, one a transaction.
    ///
    /// # Errors
    /// [`OutboxError::NoTable`], or what else Postgres answered.
    pub async fn prepare<C: GenericClient + Sync>(
        &self,
        client: &C,
    ) -> Result<PreparedOutbox, OutboxError> {
        let insert = client
            .prepare_typed(&self.insert_sql, &COLUMN_TYPES)
            .await
            .map_err(|source| {
                OutboxError::postgres("preparing the insert into", &self.table, source)
            })?;
        Ok(PreparedOutbox {
            insert,
            table: self.table.clone(),
        })
    }
}

/// An [`Outbox`] whose insert is prepared on one connection, and belongs to it: saves Postgres the parsing of each
/// call. Not for a pooler in transaction mode that knows no prepared statements.
#[derive(Clone, Debug)]
pub struct PreparedOutbox {
    insert: Statement,
    table: String,
}

impl PreparedOutbox {
    /// Stores an event in a transaction of the connection that this was prepared on.
    ///
    /// # Errors
    /// As [`Outbox::add_event`].
    pub async fn add_event<E: DomainEvent>(
        &self,
        transaction: &Transaction<'_>,
        event: &E,
    ) -> Result<(), OutboxError> {
        self.add_envelope(transaction, &EventEnvelope::from_event(event)?)
            .await
    }

    /// Stores an envelope in a transaction of the connection that this was prepared on.
    ///
    /// # Errors
    /// As [`Outbox::add_event`].
    pub async fn add_envelope(
        &self,
        transaction: &Transaction<'_>,
        envelope: &EventEnvelope,
    ) -> Result<(), OutboxError> {
        insert::check(envelope)?;
        transaction
            .execute(&self.insert, &Row::of(envelope).parameters())
            .await
            .map_err(|source| OutboxError::postgres("inserting into", &self.table, source))?;
        Ok(())
    }
}

/// One envelope as parameters.
struct Row<'a> {
    envelope: &'a EventEnvelope,
    event_version: i16,
    payload_json: Json<&'a RawValue>,
}

impl<'a> Row<'a> {
    fn of(envelope: &'a EventEnvelope) -> Self {
        Self {
            envelope,
            event_version: envelope.event_version.into(),
            payload_json: Json(&envelope.payload_json),
        }
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 6] {
        [
            &self.envelope.id,
            &self.envelope.aggregate_id,
            &self.envelope.event_type,
            &self.event_version,
            &self.envelope.occurred_at,
            &self.payload_json,
        ]
    }
}
