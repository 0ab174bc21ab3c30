//! A message that only tells where the lane is.
//!
//! In: a lane, its lease. Out: such a message at the end of its stream. Guarantee: what a command has sent that had the lease before,
//! frozen for however long or still on its way, is not stored behind it.

use anyhow::bail;
use tokio::sync::mpsc;

use super::fence::{Fence, relay_behind};
use super::lease::Lease;
use super::publisher::Publisher;
use super::{Item, Outcome, Sourced};
use crate::nats::admin::Admin;
use crate::pipeline::dead_letter;
use crate::pipeline::position::{KIND_FENCED, KIND_HEADER};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Stores a message of this kind in a stream of the lane's own.
///
/// # Errors
/// The stream takes none, or the lease is lost.
pub async fn tell(
    settings: &Settings,
    nats: &Admin,
    lane: &LaneClient,
    lease: &Lease,
    kind: &str,
) -> anyhow::Result<()> {
    let fence = Fence::raise(lane, lease, settings, nats.server_version()?).await?;
    put(settings, lane, lease, fence, kind).await
}

async fn put(
    settings: &Settings,
    lane: &LaneClient,
    lease: &Lease,
    fence: Fence,
    kind: &str,
) -> anyhow::Result<()> {
    let mut publisher = Publisher::new(settings, lane, lease, fence).await?;
    let item = Item {
        name: kind.to_owned(),
        subject: dead_letter::subject(lane.slot()).into_bytes(),
        headers: format!("{KIND_HEADER}: {kind}\r\n").into_bytes(),
        body: "{}".into(),
    };
    let (sender, source) = mpsc::channel(1);
    sender.send(Ok(vec![Sourced::Item(item)])).await?;
    drop(sender);
    let mut refused = None;
    let each = |outcome: Outcome<'_>| {
        if let Outcome::Rejected { why, .. } = outcome {
            refused = Some(why.to_owned());
        }
    };
    publisher.run(source, each).await?;
    match refused {
        Some(why) => bail!("the message that tells where the lane is cannot be stored: {why}"),
        None => Ok(()),
    }
}

/// Sees to it that nothing is stored any more of what commands have sent that had the lease before.
///
/// # Errors
/// As [`tell`].
pub async fn shut_out(
    settings: &Settings,
    nats: &Admin,
    lane: &LaneClient,
    lease: &Lease,
) -> anyhow::Result<()> {
    let mut fence = Fence::raise(lane, lease, settings, nats.server_version()?).await?;
    // On a shared stream the fence alone does it.
    if !settings.nats.shared {
        // What still arrives in front of it is where it belongs.
        fence.begun();
        // Whatever they have on its way expects a sequence from before this lease. So a message of the relay does it as well, and
        // beside a busy relay the place behind its last message is hard to meet.
        let behind = lane.stream().await?.state.last_seq;
        tokio::select! {
            stored = put(settings, lane, lease, fence, KIND_FENCED) => stored?,
            passed = relay_behind(lane, behind) => passed?,
        }
    }
    lease.is_fenced_now();
    Ok(())
}
