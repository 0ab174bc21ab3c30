//! An aggregate with a secret in it: its events, its erasure, and whether anything still holds the secret.

use std::path::Path;

use serde_json::Value;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::platform::Platform;

/// Stands in every payload of the aggregate that is erased.
pub const SECRET: &str = "a-name-that-nobody-may-read";
pub const TYPE: &str = "lesson.published.v1";

/// Commits so many events of an aggregate, each with the secret.
pub async fn insert_of(platform: &Platform, aggregate: Uuid, event_type: &str, count: i32) {
    let text = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                SELECT gen_random_uuid(), $1, $2, jsonb_build_object('name', $3::text) FROM generate_series(1, $4::int)";
    let parameters: [&(dyn ToSql + Sync); 4] = [&aggregate, &event_type, &SECRET, &count];
    let inserted = platform.sql.execute(text, &parameters).await;
    inserted.expect("inserted");
}

/// The receipt of a run that ends with this code.
pub async fn erase(platform: &Platform, aggregate: Uuid, more: &[&str], code: i32) -> Value {
    let id = aggregate.to_string();
    let arguments = [&["erase", "--aggregate-id", &id], more].concat();
    platform.json(&arguments, code).await
}

/// Whether this text stands in anything that NATS stores.
pub fn is_stored(platform: &Platform, text: &str) -> bool {
    holds(&platform.nats.store_dir(), text)
}

fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).expect("a folder").any(|entry| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => holds(&path, text),
            false => std::fs::read(&path).is_ok_and(|bytes| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            }),
        }
    })
}
