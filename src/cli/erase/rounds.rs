//! The rounds of an erasure: messages, then the rows, which tell the ids, until there is nothing left to find.
//!
//! In: lanes. Out: what was removed. Guarantee: it is not done while another command has taken over one of the lanes, since that may
//! have published what it had read before: this command may have been frozen for longer than others wait for it.

use std::collections::BTreeSet;

use anyhow::bail;

use super::Erasing;
use super::receipt::Receipt;
use crate::bulk::fence::lives_there;
use crate::bulk::lease::{Lease, LeaseError};
use crate::cli::command_line;

/// Rows that are inserted meanwhile are erased too, for so many times.
const ROUNDS_MAX: u32 = 3;

/// While these are ours, nobody publishes for the lanes, nor from them.
pub(super) struct Leases {
    /// Of each lane.
    lanes: Vec<Lease>,
    /// Of the other streams: a replay that is under way has read messages, and may still publish them.
    beside: Vec<Lease>,
}

impl Leases {
    /// Takes them.
    ///
    /// # Errors
    /// Another command has one.
    pub(super) async fn take(erasing: &[Erasing<'_>]) -> anyhow::Result<Self> {
        let mut leases = Leases {
            lanes: Vec::new(),
            beside: Vec::new(),
        };
        for lane in erasing {
            leases.lanes.push(match leases.lanes.first() {
                None => Lease::take(&lane.lane, "erase", &command_line::typed()).await?,
                Some(first) => first.also(&lane.lane).await?,
            });
        }
        for lane in erasing {
            for target in lane.targets()? {
                leases.beside.push(leases.lanes[0].also(&target).await?);
            }
        }
        Ok(leases)
    }

    /// Moves to another NATS that were killed, as they were typed: at the same one the copies are found, or in the way.
    pub(super) fn unfinished_moves(&self) -> BTreeSet<String> {
        let moves = self.lanes.iter().flat_map(|lease| lease.unfinished("move"));
        let elsewhere = moves.filter(|line| line.contains("--to-nats"));
        elsewhere.map(str::to_owned).collect()
    }

    /// Makes sure that they are ours still.
    ///
    /// # Errors
    /// [`LeaseError::Lost`], with who has taken over.
    pub(super) async fn are_ours(&self) -> Result<(), LeaseError> {
        for lease in self.lanes.iter().chain(&self.beside) {
            lease.renew().await?;
        }
        Ok(())
    }

    pub(super) async fn release(self) {
        for lease in self.lanes.into_iter().chain(self.beside) {
            lease.release().await;
        }
    }
}

/// Erases all that the lanes have.
///
/// # Errors
/// Something could not be removed, or another command has taken over.
pub(super) async fn erase(
    erasing: &mut [Erasing<'_>],
    leases: &Leases,
    receipt: &mut Receipt,
) -> anyhow::Result<()> {
    // With the lease nobody moves it from here on.
    for Erasing { lane, .. } in &*erasing {
        lives_there(lane.record().await?.record.as_ref(), lane.stream_name())?;
    }
    for _ in 0..ROUNDS_MAX {
        leases.are_ours().await?;
        let mut ids = BTreeSet::new();
        for lane in &*erasing {
            ids.append(&mut lane.ids().await?);
        }
        for (lane, lease) in erasing.iter_mut().zip(&leases.lanes) {
            lane.erase(&ids, lease).await?;
        }
        let Some(lane) = erasing.first() else { break };
        receipt.rows += lane.delete(&ids, leases).await?;
        if lane.ids().await?.is_empty() {
            leases.are_ours().await?;
            receipt.done = true;
            return Ok(());
        }
    }
    bail!(
        "rows of the aggregate are still inserted: let the application stop that, and run this again"
    )
}
