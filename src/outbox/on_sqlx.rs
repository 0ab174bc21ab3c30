//! The inserts over sqlx.
//!
//! In: envelopes that were checked, and a transaction of sqlx. Out: rows, in one round trip a call once the connection
//! has prepared the statement.

use serde_json::value::RawValue;
use sqlx_core::arguments::Arguments;
use sqlx_core::encode::Encode;
use sqlx_core::query::query_with;
use sqlx_core::transaction::Transaction;
use sqlx_core::types::{Json, Type};
use sqlx_postgres::{PgArguments, Postgres};

use super::insert::Columns;
use super::{Insert, OpenTransaction, Outbox, OutboxError};
use crate::event::EventEnvelope;

impl OpenTransaction for &mut Transaction<'_, Postgres> {}

impl Insert for &mut Transaction<'_, Postgres> {
    async fn insert(self, outbox: &Outbox, envelope: &EventEnvelope) -> Result<(), OutboxError> {
        let payload_json: &RawValue = &envelope.payload_json;
        let values = Values::default()
            .with(envelope.id)
            .with(envelope.aggregate_id)
            .with(&*envelope.event_type)
            .with(i16::from(envelope.event_version))
            .with(envelope.occurred_at)
            .with(Json(payload_json));
        values.execute(self, outbox, &outbox.insert_sql).await
    }

    async fn insert_many(
        self,
        outbox: &Outbox,
        envelopes: &[EventEnvelope],
    ) -> Result<(), OutboxError> {
        let columns = Columns::of(envelopes, Json);
        let values = Values::default()
            .with(columns.ids)
            .with(columns.aggregate_ids)
            .with(columns.event_types)
            .with(columns.event_versions)
            .with(columns.occurred_ats)
            .with(columns.payloads);
        values.execute(self, outbox, &outbox.insert_many_sql).await
    }
}

/// The parameters of a statement, or the first that sqlx could not encode.
struct Values(Result<PgArguments, sqlx_core::Error>);

impl Default for Values {
    fn default() -> Self {
        Self(Ok(PgArguments::default()))
    }
}

impl Values {
    fn with<'q, T: Encode<'q, Postgres> + Type<Postgres> + 'q>(self, value: T) -> Self {
        Self(self.0.and_then(|mut arguments| {
            arguments.add(value).map_err(sqlx_core::Error::Encode)?;
            Ok(arguments)
        }))
    }

    async fn execute(
        self,
        transaction: &mut Transaction<'_, Postgres>,
        outbox: &Outbox,
        sql: &str,
    ) -> Result<(), OutboxError> {
        let failed = |source| OutboxError::sqlx("inserting into", &outbox.table, source);
        query_with(sql, self.0.map_err(failed)?)
            .execute(&mut **transaction)
            .await
            .map_err(failed)?;
        Ok(())
    }
}
