//! Shares that are no more: what is left of them are their dead letters.
//!
//! In: a share of today, the records of all lanes. Out: the lanes whose rows are that share's now. Guarantee: each lane that is at its
//! end belongs to one share.

use crate::cli::dead_letters::letters::Letters;
use crate::cli::lane_records;
use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::client::Client;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;

/// A lane that is at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TakenOver {
    /// Its share had this number.
    pub(super) number: u32,
    pub(super) slot: String,
    pub(super) stream: String,
}

impl TakenOver {
    fn of(record: LaneRecord, settings: &Settings) -> Option<Self> {
        let share = settings.postgres.share.as_ref()?;
        let number = share.number_of_slot(&record.slot)?;
        // Half as many shares take over the rows of those whose hashes have the same lower bits.
        let is_taken_over = number >= share.count && number % share.count == share.number;
        let is_at_end = record.retired && record.moved.is_none();
        (is_taken_over && is_at_end).then_some(TakenOver {
            number,
            slot: record.slot,
            stream: record.stream,
        })
    }

    /// Its dead letters; none where its stream is gone.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) async fn letters(&self, nats: &Admin) -> anyhow::Result<Option<Letters>> {
        let lane = LaneClient::new(nats, &self.stream, &self.slot)?;
        match lane.stream().await {
            Err(LaneError::NoStream(_)) => Ok(None),
            found => {
                found?;
                Ok(Some(Letters::read(&lane).await?))
            }
        }
    }
}

/// Those that the share of these settings has taken over; none where the outbox has no shares.
///
/// # Errors
/// Postgres or NATS refuse, or a record cannot be read.
pub(super) async fn by(
    settings: &Settings,
    client: &Client,
    nats: &Admin,
) -> anyhow::Result<Vec<TakenOver>> {
    let Some(share) = &settings.postgres.share else {
        return Ok(Vec::new());
    };
    let records = lane_records::of_shares(nats, client, share).await?;
    let found = records.into_iter();
    Ok(found
        .filter_map(|record| TakenOver::of(record, settings))
        .collect())
}
