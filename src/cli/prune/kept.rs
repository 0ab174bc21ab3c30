//! Rows that stay whatever their age: open dead letters.
//!
//! In: the lane, the lanes of other slots of the database. Out: the ids of their open dead letters. Guarantee: a letter that
//! does not tell its row keeps all of them.

use std::collections::HashSet;

use anyhow::{Context as _, bail};

use crate::cli::dead_letters::letters::Letters;
use crate::nats::admin::Admin;
use crate::nats::stream::LANE_RECORD_STREAM;
use crate::pipeline::dead_letter;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::record::LaneRecord;
use crate::relay::lane_client::{LaneClient, LaneError};

/// The records of all lanes, and nothing else of theirs.
const RECORD_SUBJECTS: &str = "walrelay.lane.*.*";

/// The ids of rows that stay.
#[derive(Debug, Default)]
pub(super) struct Kept(HashSet<String>);

impl Kept {
    /// Reads them from the streams of `own` and of every other lane of the same database.
    ///
    /// # Errors
    /// A stream cannot be read, or a letter does not tell its row.
    pub(super) async fn read(
        nats: &Admin,
        own: &LaneClient,
        record: &LaneRecord,
    ) -> anyhow::Result<Self> {
        let mut kept = Kept::default();
        kept.take(own).await?;
        for other in lanes(nats, record).await? {
            let lane = LaneClient::new(nats, &other.stream, &other.slot)?;
            match lane.stream().await {
                Err(LaneError::NoStream(_)) => {}
                found => {
                    found?;
                    kept.take(&lane).await?;
                }
            }
        }
        Ok(kept)
    }

    async fn take(&mut self, lane: &LaneClient) -> anyhow::Result<()> {
        let letters = Letters::read(lane).await.with_context(|| {
            format!(
                "cannot read the dead letters of slot {} in stream {}",
                lane.slot(),
                lane.stream_name()
            )
        })?;
        for letter in letters.open() {
            let position = letter.place.position;
            let Some(id) = &letter.id else {
                bail!(
                    "the dead letter at {position} of slot {} does not tell its row, which must stay: walrelay dead-letters retry \
                     {position}, or discard it",
                    lane.slot()
                );
            };
            self.0.insert(id.clone());
        }
        Ok(())
    }

    /// Whether the row with this id stays.
    pub(super) fn has(&self, id: &str) -> bool {
        // As letters tell it, which cut a long one.
        !self.0.is_empty() && self.0.contains(&dead_letter::shown_id(id))
    }

    /// SQL for "is one of these", of an id's text; none where no row stays.
    pub(super) fn are_in(&self, id: &str) -> Option<String> {
        let is = |kept: &String| {
            let text = kept.trim_end_matches('\u{fffd}').replace('\'', "''");
            match kept.len() < dead_letter::SHOWN_BYTES_MAX {
                true => format!("({id})::text = '{text}'"),
                // Perhaps the beginning of a longer one.
                false => format!("starts_with(({id})::text, '{text}')"),
            }
        };
        let any: Vec<String> = self.0.iter().map(is).collect();
        (!any.is_empty()).then(|| any.join(" OR "))
    }
}

/// The records of the database's other lanes.
async fn lanes(nats: &Admin, own: &LaneRecord) -> anyhow::Result<Vec<LaneRecord>> {
    let records = LaneClient::new(nats, LANE_RECORD_STREAM, &own.slot)?;
    let mut found = Vec::new();
    let mut from = 1;
    loop {
        let lookup = Lookup::Next {
            from,
            filter: RECORD_SUBJECTS,
        };
        let Some(message) = records.message(lookup).await? else {
            return Ok(found);
        };
        from = message.seq + 1;
        let record = LaneRecord::from_json(&message.data)?;
        let is_same_database =
            record.system_identifier == own.system_identifier && record.database == own.database;
        let is_own = record.slot == own.slot && record.stream == own.stream;
        if is_same_database && !is_own {
            found.push(record);
        }
    }
}
