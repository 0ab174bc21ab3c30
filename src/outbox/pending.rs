//! The option of marking: rows that are not marked as dispatched, and marking them.
//!
//! In: the table's rows. Out: envelopes, oldest first. Guarantee: none about what the stream holds. The relay needs
//! neither: it knows from the stream itself what was published, and an UPDATE an event costs a dead tuple each. This is
//! for those who look at `dispatched_at` (the old dispatcher's contract) and for rows older than the slot: what
//! [`Outbox::fetch_pending`] returns before the first `walrelay run` is what `walrelay backfill` would publish.

use serde_json::value::RawValue;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use super::{Outbox, OutboxError};
use crate::event::EventEnvelope;

impl Outbox {
    /// At most `limit` rows with `dispatched_at is null`, by `occurred_at` and then by id.
    ///
    /// That order is a clock's, not that of the commits: only the relay, reading the log, knows the latter.
    ///
    /// # Errors
    /// [`OutboxError::NoDispatchedAt`] where the table is not made for marking, [`OutboxError::EventVersion`] for a row
    /// that is no envelope, or what else Postgres answered.
    pub async fn fetch_pending<C: GenericClient + Sync>(
        &self,
        client: &C,
        limit: u32,
    ) -> Result<Vec<EventEnvelope>, OutboxError> {
        let sql = format!(
            "select id, aggregate_id, event_type::text, event_version::int8, occurred_at, payload_json::text \
             from {} where dispatched_at is null order by occurred_at, id limit $1",
            self.table
        );
        let failed = |source| OutboxError::postgres("reading pending rows of", &self.table, source);
        let rows = client
            .query_typed(&sql, &[(&i64::from(limit), Type::INT8)])
            .await
            .map_err(failed)?;
        rows.iter().map(|row| self.envelope(row)).collect()
    }

    /// Sets `dispatched_at = now()` on the rows that are not marked yet, and returns how many those were.
    ///
    /// # Errors
    /// [`OutboxError::NoDispatchedAt`] where the table is not made for marking, or what else Postgres answered.
    pub async fn mark_dispatched<C: GenericClient + Sync>(
        &self,
        client: &C,
        ids: &[Uuid],
    ) -> Result<u64, OutboxError> {
        let sql = format!(
            "update {} set dispatched_at = now() where id = any($1) and dispatched_at is null",
            self.table
        );
        client
            .execute_typed(&sql, &[(&ids, Type::UUID_ARRAY)])
            .await
            .map_err(|source| OutboxError::postgres("marking rows of", &self.table, source))
    }

    fn envelope(&self, row: &Row) -> Result<EventEnvelope, OutboxError> {
        let failed = |source| OutboxError::postgres("reading a row of", &self.table, source);
        let id: Uuid = row.try_get(0).map_err(failed)?;
        let found: i64 = row.try_get(3).map_err(failed)?;
        let payload: String = row.try_get(5).map_err(failed)?;
        Ok(EventEnvelope {
            id,
            aggregate_id: row.try_get(1).map_err(failed)?,
            event_type: row.try_get(2).map_err(failed)?,
            event_version: found
                .try_into()
                .map_err(|_| OutboxError::EventVersion { id, found })?,
            occurred_at: row.try_get(4).map_err(failed)?,
            payload_json: RawValue::from_string(payload)
                .map_err(crate::event::EventError::Malformed)?,
        })
    }
}
