//! The rounds of an erasure: messages, then the rows, which tell the ids, until there is nothing left to find.
//!
//! In: lanes. Out: what was removed. Guarantees: it is not done while another command has taken over one of the lanes, since that may
//! have published what it had read before: this command may have been frozen for longer than others wait for it. Nor before a look
//! behind the last removal has found no stream that is new: a replay that began meanwhile has a lease there before it reads.

use std::collections::BTreeSet;

use anyhow::bail;

use super::Erasing;
use super::forget::Forget;
use super::receipt::Receipt;
use super::rows;
use super::survey::Survey;
use crate::bulk::fence::lives_there;
use crate::bulk::lease::{self, Lease, LeaseError};
use crate::cli::command_line;

/// Rows that are inserted meanwhile are erased too, and streams that are made, for so many times.
const ROUNDS_MAX: u32 = 5;

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
        let line = command_line::typed_without_value("--aggregate-id");
        let forget = Forget::of(erasing);
        let keeps = |line: &str| forget.line(line);
        for lane in erasing {
            leases.lanes.push(match leases.lanes.first() {
                None => Lease::take_keeping(&lane.lane, "erase", &line, &keeps).await?,
                Some(first) => first.also_keeping(&lane.lane, &keeps).await?,
            });
        }
        leases.take_beside(erasing).await?;
        Ok(leases)
    }

    /// Takes those of the other streams that are not ours yet.
    async fn take_beside(&mut self, erasing: &[Erasing<'_>]) -> anyhow::Result<()> {
        let forget = Forget::of(erasing);
        let keeps = |line: &str| forget.line(line);
        for lane in erasing {
            let mut targets = lane.targets()?;
            for left in lane.leased()? {
                if lease::tells_more(&left, &keeps).await? {
                    targets.push(left);
                }
            }
            for target in targets {
                let mut all = self.lanes.iter().chain(&self.beside);
                if !all.any(|lease| lease.is_of(&target)) {
                    let lease = self.lanes[0].also_keeping(&target, &keeps).await?;
                    self.beside.push(lease);
                }
            }
        }
        Ok(())
    }

    /// Looks again which streams there are, and takes the leases of those that are new; whether there are some.
    async fn look(
        &mut self,
        erasing: &mut [Erasing<'_>],
        survey: &mut Survey,
    ) -> anyhow::Result<bool> {
        let Some(lane) = erasing.first() else {
            return Ok(false);
        };
        survey.look_again(lane.nats).await?;
        let mut is_new = false;
        for lane in &mut *erasing {
            is_new |= lane.look(survey).await?;
        }
        self.take_beside(erasing).await?;
        Ok(is_new)
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
/// Something could not be removed, or another command publishes what may be the aggregate's.
pub(super) async fn erase(
    erasing: &mut [Erasing<'_>],
    leases: &mut Leases,
    survey: &mut Survey,
    receipt: &mut Receipt,
) -> anyhow::Result<()> {
    // With the lease nobody moves it from here on.
    for Erasing { lane, .. } in &*erasing {
        lives_there(lane.record().await?.record.as_ref(), lane.stream_name())?;
    }
    // Of rows that are deleted too: what was read before may turn up behind them.
    let mut ids = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        leases.are_ours().await?;
        for lane in &*erasing {
            ids.append(&mut lane.ids().await?);
        }
        for (lane, lease) in erasing.iter_mut().zip(&leases.lanes) {
            lane.erase(&ids, lease).await?;
        }
        if leases.look(erasing, survey).await? {
            continue;
        }
        let Some(lane) = erasing.first() else { break };
        receipt.rows += lane.delete(&ids, leases).await?;
        let is_left = !lane.ids().await?.is_empty();
        rows::all_seen(lane.sql, &lane.table).await?;
        // A replay reads the table, too.
        if !leases.look(erasing, survey).await? && !is_left {
            leases.are_ours().await?;
            receipt.done = true;
            return Ok(());
        }
    }
    bail!(
        "rows of the aggregate are still inserted, or streams made that have its messages: let that be stopped, and run this again"
    )
}
