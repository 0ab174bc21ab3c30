//! The leases of an erasure: of its lanes, and of all other streams that have messages of them.
//!
//! In: lanes, the streams that there are. Out: the leases, or who has one. Guarantees: with them, nobody publishes what may be the
//! aggregate's, and what is still on its way of commands that had them before can be shut out; the id stays in none of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Erasing;
use super::forget::Forget;
use super::survey::Survey;
use crate::bulk::lease::{self, Lease, LeaseError};
use crate::bulk::place;
use crate::cli::command_line;
use crate::relay::lane_client::LaneClient;

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
        let lanes: Vec<LaneClient> = erasing.iter().map(|it| it.lane.clone()).collect();
        let line = command_line::typed_without_value("--aggregate-id");
        let forget = Forget::of(erasing);
        let keeps = |line: &str| forget.line(line);
        let mut leases = Leases {
            lanes: Lease::take_all(&lanes, "erase", &line, &keeps).await?,
            beside: Vec::new(),
        };
        match leases.take_beside(erasing).await {
            Ok(_) => Ok(leases),
            Err(error) => {
                leases.release().await;
                Err(error)
            }
        }
    }

    /// Takes those of the other streams that are not ours yet; whether there are some.
    async fn take_beside(&mut self, erasing: &[Erasing<'_>]) -> anyhow::Result<bool> {
        let forget = Forget::of(erasing);
        let keeps = |line: &str| forget.line(line);
        let ours = self.lanes.iter().chain(&self.beside).map(Lease::lane);
        let ours: BTreeSet<_> = ours.map(name).collect();
        let mut others = BTreeMap::new();
        for lane in erasing {
            let mut targets = lane.targets()?;
            for left in lane.leased()? {
                // A replay of a share that is no more has it by the slot of that one.
                if lane.has(left.stream_name()) || lease::tells_more(&left, &keeps).await? {
                    targets.push(left);
                }
            }
            let targets = targets.into_iter().map(|target| (name(&target), target));
            others.extend(targets.filter(|(name, _)| !ours.contains(name)));
        }
        let others: Vec<LaneClient> = others.into_values().collect();
        let taken = self.lanes[0].also_all(&others, &keeps).await?;
        self.beside.extend(taken);
        Ok(!others.is_empty())
    }

    /// Sees to it that nothing is stored any more of what commands have sent that had one of them before, killed or frozen: what is there
    /// by then is found.
    ///
    /// # Errors
    /// A stream takes no message.
    pub(super) async fn shut_out(&self, erasing: &[Erasing<'_>]) -> anyhow::Result<()> {
        for (lane, lease) in erasing.iter().zip(&self.lanes) {
            if lease.is_unfenced() {
                place::shut_out(&lane.settings, lane.nats, lease).await?;
            }
            for lease in self.beside.iter().filter(|lease| lease.is_unfenced()) {
                place::shut_out_aside(lane.nats, lease).await?;
            }
        }
        Ok(())
    }

    /// Looks again which streams there are, and takes the leases of those that are new; whether there are some, streams or leases.
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
        Ok(self.take_beside(erasing).await? || is_new)
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

/// Stream and slot.
fn name(lane: &LaneClient) -> (String, String) {
    (lane.stream_name().to_owned(), lane.slot().to_owned())
}
