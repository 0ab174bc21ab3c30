//! Rows that stay whatever their age: open dead letters.
//!
//! In: the lane, the lanes of other slots of the database. Out: the ids of their open dead letters. Guarantee: a letter that
//! does not tell its row keeps all of them. In whichever table of the lane: a letter tells the name that its table had then.

use std::collections::HashSet;

use anyhow::{Context as _, bail};

use crate::cli::dead_letters::letters::Letters;
use crate::cli::verify::key;
use crate::nats::admin::Admin;
use crate::pipeline::dead_letter;
use crate::pipeline::record::telling;
use crate::postgres::client::Client;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::lane_records;

/// The ids of rows that stay.
#[derive(Debug, Default)]
pub(super) struct Kept {
    ids: HashSet<String>,
    /// Which of the table's lanes have open ones, by their place among them.
    pub(super) open_in: Vec<usize>,
}

impl Kept {
    /// Reads them from the streams of the table's lanes and of every other lane of the same database; of one that was moved, from the
    /// one that it lives in.
    ///
    /// # Errors
    /// A stream cannot be read, or a letter does not tell its row.
    pub(super) async fn read(
        nats: &Admin,
        client: &Client,
        own: &[LaneClient],
    ) -> anyhow::Result<Self> {
        let mut kept = Kept::default();
        for (place, lane) in own.iter().enumerate() {
            if kept.take(lane).await? {
                kept.open_in.push(place);
            }
        }
        for other in telling(lane_records::of_database(nats, client).await?) {
            let is_own =
                |lane: &LaneClient| other.slot == lane.slot() && other.stream == lane.stream_name();
            if own.iter().any(is_own) {
                continue;
            }
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

    /// Reads those of one lane alone.
    ///
    /// # Errors
    /// As [`Kept::read`].
    pub(super) async fn of(lane: &LaneClient) -> anyhow::Result<Self> {
        let mut kept = Kept::default();
        kept.take(lane).await?;
        Ok(kept)
    }

    /// The ids as a comparison names them; without those that their letters cut.
    pub(super) fn names(&self) -> HashSet<String> {
        let whole = |id: &&String| id.len() < dead_letter::SHOWN_BYTES_MAX;
        let ids = self.ids.iter().filter(whole);
        ids.map(|id| key::text(key::key(id))).collect()
    }

    /// Takes those of a lane; whether there are any.
    async fn take(&mut self, lane: &LaneClient) -> anyhow::Result<bool> {
        let letters = Letters::read(lane).await.with_context(|| {
            format!(
                "cannot read the dead letters of slot {} in stream {}",
                lane.slot(),
                lane.stream_name()
            )
        })?;
        let before = self.ids.len();
        for letter in letters.open().filter(|letter| !letter.is_rowless) {
            let position = letter.place.position;
            let Some(id) = &letter.id else {
                bail!(
                    "the dead letter at {position} of slot {} does not tell its row, which must stay: with the configuration of that \
                     slot, walrelay dead-letters retry {position}, or discard it",
                    lane.slot()
                );
            };
            self.ids.insert(id.clone());
        }
        Ok(self.ids.len() > before)
    }

    /// Whether the row with this id stays.
    pub(super) fn has(&self, id: &str) -> bool {
        // As letters tell it, which cut a long one.
        !self.ids.is_empty() && self.ids.contains(&dead_letter::shown_id(id))
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
        let any: Vec<String> = self.ids.iter().map(is).collect();
        (!any.is_empty()).then(|| any.join(" OR "))
    }
}
