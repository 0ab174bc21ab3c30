//! Whether what has no message is still to come.
//!
//! In: a comparison whose table and stream were read. Out: how the relay stands to the snapshot, and which rows the slot still has for
//! it. Guarantee: a row is taken for passed only where the slot does not hold it, or the stream reaches beyond it as a start of the
//! relay sees it; what a relay says of itself is not enough, since its broker may have lost that.

use std::time::{Duration, Instant};

use super::comparison::{Comparison, has_unpublished};
use super::slot::{self, Held, Look, POLL_INTERVAL, Settled};
use super::sort::{Entries, Entry, Kind};
use super::{key, table};

/// A relay that reaches its broker has noticed within this what that has lost, and has published it again.
const SET_BACK_WAIT: Duration = Duration::from_secs(10);

/// Rows of the snapshot that the slot holds.
#[derive(Default)]
struct Rows {
    entries: Entries,
    /// How many of them are still to be published.
    pending: u64,
    /// Age of the oldest of these.
    oldest: Option<Duration>,
}

impl Comparison<'_> {
    /// Waits until the relay has passed the snapshot, if a row has no message, and asks the slot about those.
    pub(super) async fn settle(&mut self, wait: Duration) -> anyhow::Result<Settled> {
        if !has_unpublished(&mut self.entries)? {
            return Ok(Settled::Passed);
        }
        let deadline = Instant::now() + wait;
        let mut set_back_until = None;
        loop {
            let slot = &self.settings.postgres.slot;
            let settled = slot::settle(self.client, slot, self.snapshot_lsn, deadline).await?;
            self.read_stream().await?;
            let look = match settled {
                Settled::Idle => Look::Inside,
                Settled::Passed if has_unpublished(&mut self.entries)? => Look::Beside,
                _ => return Ok(settled),
            };
            // A relay may have taken the slot; then it publishes what is pending, and is waited for.
            let Some(rows) = self.held(look).await? else {
                continue;
            };
            if look == Look::Inside {
                self.entries.append(rows.entries)?;
                self.pending_for = rows.oldest;
                return Ok(settled);
            }
            if rows.pending == 0 {
                return Ok(settled);
            }
            let until =
                *set_back_until.get_or_insert_with(|| deadline.min(Instant::now() + SET_BACK_WAIT));
            if Instant::now() >= until {
                self.entries.append(rows.entries)?;
                return Ok(Settled::SetBack);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// What the slot holds of the snapshot's rows; none where somebody reads from the slot.
    async fn held(&self, look: Look) -> anyhow::Result<Option<Rows>> {
        let now_us = table::clock_us(self.client).await?;
        let reach = match self.lane_client.reach(&self.settings.nats).await? {
            Ok(lane_end) => lane_end.map(|lane_end| lane_end.position),
            // Nothing is published before a person has looked, who is told by what is known.
            Err(_) => self.lane.lane_end().max(self.recorded),
        };
        let mut rows = Rows::default();
        let take = |held: Held<'_>| -> anyhow::Result<()> {
            if held.outbox != self.outbox {
                return Ok(());
            }
            let id = held.id.map(key::key);
            let kind = self.lane.held(held.position, reach);
            if let (Some(kind), Some(id)) = (kind, id) {
                rows.entries.push(Entry::new(id, kind, 0))?;
                rows.pending += u64::from(kind == Kind::Pending);
                // A replication origin may have set no time, which is 0.
                if kind == Kind::Pending && held.committed_at_us > 0 {
                    let us = now_us.saturating_sub(held.committed_at_us).max(0);
                    let age = Duration::from_micros(us.unsigned_abs());
                    rows.oldest = rows.oldest.max(Some(age));
                }
            }
            Ok(())
        };
        let (client, postgres) = (self.client, &self.settings.postgres);
        let (publications, source) = (&self.publications, self.source.clone());
        let lsn = self.snapshot_lsn;
        let is_whole = look
            .peek(client, postgres, publications, source, lsn, take)
            .await?;
        Ok(is_whole.then_some(rows))
    }
}
