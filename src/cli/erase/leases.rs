//! The leases of an erasure: of its lanes, and of all other streams that have messages of them.
//!
//! In: lanes, the streams that there are. Out: the leases, or who has one. Guarantee: with them, nobody publishes what may be the
//! aggregate's; and the id stays in none of them.

use std::collections::BTreeSet;

use super::Erasing;
use super::forget::Forget;
use super::survey::Survey;
use crate::bulk::lease::{self, Lease, LeaseError};
use crate::cli::command_line;

/// While these are ours, nobody publishes for the lanes, nor from them.
pub(super) struct Leases {
    /// Of each lane.
    pub(super) lanes: Vec<Lease>,
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
    pub(super) async fn look(
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
