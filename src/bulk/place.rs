//! A message that only tells where the lane is.
//!
//! In: a lane, its lease. Out: such a message at the end of its stream. Guarantee: what a command has sent that had the lease before,
//! frozen for however long or still on its way, is not stored behind it. Of a stream in which no lane lives, the same message does that
//! and is removed: whoever reads there later has no place to be told.

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use tokio::sync::mpsc;

use super::fence::{Fence, relay_behind};
use super::lease::Lease;
use super::publisher::Publisher;
use super::{Item, Outcome, Sourced};
use crate::nats::admin::Admin;
use crate::nats::filters::{covers, one_of};
use crate::nats::stream;
use crate::pipeline::dead_letter;
use crate::pipeline::position::{KIND_FENCED, KIND_HEADER};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Stands for what a stream takes anything for in the subject of a message that is nobody's event.
const SUBJECT_TOKEN: &str = "walrelay-fenced";

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

/// Sees to it that nothing is stored any more of what commands have sent that had the lease before, in a stream of the lane's own.
///
/// # Errors
/// As [`tell`].
pub async fn shut_out(settings: &Settings, nats: &Admin, lease: &Lease) -> anyhow::Result<()> {
    let done = put_fence(settings, nats, lease).await;
    done.with_context(|| may_arrive(lease.lane()))?;
    lease.is_fenced_now();
    Ok(())
}

/// The same in a stream in which no lane lives, as that of a replay.
///
/// # Errors
/// The stream takes no message.
pub async fn shut_out_aside(nats: &Admin, lease: &Lease) -> anyhow::Result<()> {
    let lane = lease.lane();
    let name = lane.stream_name();
    let Some(info) = stream::find(nats, name).await? else {
        return Ok(());
    };
    let subject = subject_of_own(&info.config.subjects, lane.slot());
    if let Some(subject) = subject.filter(|_| !info.config.sealed) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", name);
        headers.insert(KIND_HEADER, KIND_FENCED);
        let jetstream = nats.jetstream();
        let publish = async {
            let published = jetstream.publish_with_headers(subject, headers, "{}".into());
            Ok(published.await?.await?)
        };
        // Wherever it comes to stand: what is in front of it is there to be found.
        let stored = nats.allowed(publish).await;
        let stored = stored.with_context(|| {
            format!(
                "{}: let the stream take a message of walrelay's, or delete it, and run this again",
                may_arrive(lane)
            )
        })?;
        stream::erase_message(nats, name, stored.sequence).await?;
    }
    lease.is_fenced_now();
    Ok(())
}

fn may_arrive(lane: &LaneClient) -> String {
    format!(
        "what an earlier command has sent to stream {} for slot {} may still arrive",
        lane.stream_name(),
        lane.slot()
    )
}

/// What the stream takes and no consumer of events asks for, where there is such a subject; none where it takes nothing.
fn subject_of_own(subjects: &[String], slot: &str) -> Option<String> {
    let letters = dead_letter::subject(slot);
    if subjects.iter().any(|taken| covers(taken, &letters)) {
        return Some(letters);
    }
    let is_wide = |taken: &&String| one_of(taken, SUBJECT_TOKEN) != **taken;
    let taken = subjects.iter().find(is_wide).or(subjects.first())?;
    Some(one_of(taken, SUBJECT_TOKEN))
}

async fn put_fence(settings: &Settings, nats: &Admin, lease: &Lease) -> anyhow::Result<()> {
    let lane = lease.lane();
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_its_own_is_on_a_subject_that_events_are_not_on() {
        for (subjects, expected) in [
            (
                &["replay.outbox.>"][..],
                Some("replay.outbox.walrelay-fenced"),
            ),
            (&["a", "b.*.c"], Some("b.walrelay-fenced.c")),
            (&["again.all"], Some("again.all")),
            (&["a.>", "walrelay.dead.slot"], Some("walrelay.dead.slot")),
            (&[], None),
        ] {
            let subjects: Vec<String> = subjects.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(subject_of_own(&subjects, "slot").as_deref(), expected);
        }
    }
}
