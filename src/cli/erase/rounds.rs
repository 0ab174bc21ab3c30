//! The rounds of an erasure: messages, then the rows, which tell the ids, until there is nothing left to find.
//!
//! In: lanes. Out: what was removed. Guarantees: it is not done while another command has taken over one of the lanes, since that may
//! have published what it had read before: this command may have been frozen for longer than others wait for it. Nor before a look
//! behind the last removal has found no stream that is new: a replay that began meanwhile has a lease there before it reads. What such
//! a command has sent that was killed or frozen before, on however slow a link, is found, or is not stored any more.

use std::collections::BTreeSet;

use anyhow::bail;

use super::Erasing;
use super::leases::Leases;
use super::receipt::Receipt;
use super::rows;
use super::survey::Survey;
use crate::bulk::fence::lives_there;

/// Rows that are inserted meanwhile are erased too, and streams that are made, for so many times.
const ROUNDS_MAX: u32 = 5;

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
        // In front of the look for messages, which finds what has arrived until then.
        leases.shut_out(erasing).await?;
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
        let is_left = lane.has_others(&ids).await?;
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
