//! The streams that have an aggregate's messages: the lane's own, and copies of it.
//!
//! In: the lane, further names. Out: names of streams, each one from which messages may be erased. Guarantee: no stream in which
//! another lane lives, whose place only its own record tells.

use anyhow::{bail, ensure};
use futures_util::TryStreamExt as _;

use crate::nats::admin::Admin;
use crate::nats::stream::LANE_RECORD_STREAM;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::REPLAY_HEADER;
use crate::relay::lane_client::LaneClient;

/// The lane's stream first, then the replays and copies of it, then those that were named.
///
/// # Errors
/// Messages cannot be erased from one of them.
pub(super) async fn with_copies(
    nats: &Admin,
    lane: &LaneClient,
    named: &[String],
) -> anyhow::Result<Vec<String>> {
    let own = lane.stream_name();
    let mut streams = vec![own.to_owned()];
    let jetstream = nats.jetstream();
    let mut all = jetstream.streams();
    let mut found = Vec::new();
    loop {
        let next = nats.allowed(async { Ok(all.try_next().await?) }).await?;
        let Some(info) = next else { break };
        let name = &info.config.name;
        let is_copy = {
            let mirrored = info.config.mirror.as_ref().is_some_and(|of| of.name == own);
            let sources = info.config.sources.iter().flatten();
            mirrored || sources.into_iter().any(|of| of.name == own)
        };
        let is_wanted = named.contains(name)
            || name != own
                && name != LANE_RECORD_STREAM
                && (is_copy || is_replay(nats, own, name).await?);
        if name == own || is_wanted {
            ensure!(
                !info.config.deny_delete,
                "stream {name} was made with deny_delete, which cannot be taken back, so nothing was erased: only its \
                 age and limits remove messages, or its deletion"
            );
            found.push(name.clone());
        }
    }
    for name in named.iter().chain(std::iter::once(&streams[0])) {
        ensure!(found.contains(name), "there is no stream {name}");
    }
    found.retain(|name| name != own);
    for name in found {
        no_lane_lives_in(nats, lane, &name).await?;
        streams.push(name);
    }
    Ok(streams)
}

/// Whether the first message of stream `name` is one that a replay of `own` has published.
async fn is_replay(nats: &Admin, own: &str, name: &str) -> anyhow::Result<bool> {
    let stream = LaneClient::new(nats, name, "-")?;
    let first = stream
        .message(Lookup::Next {
            from: 1,
            filter: ">",
        })
        .await?;
    let of = first.and_then(|message| {
        let value = message.header_text(REPLAY_HEADER)?.to_owned();
        Some(value.split(' ').nth(1)?.to_owned())
    });
    Ok(of.as_deref() == Some(own))
}

async fn no_lane_lives_in(nats: &Admin, own: &LaneClient, name: &str) -> anyhow::Result<()> {
    let records = LaneClient::new(nats, LANE_RECORD_STREAM, own.slot())?;
    let filter = format!("walrelay.lane.{name}.*");
    let lookup = Lookup::Next {
        from: 1,
        filter: &filter,
    };
    if records.message(lookup).await?.is_some() {
        bail!(
            "another lane lives in stream {name}, which has messages of {}: run walrelay erase with that lane's configuration \
             for it, and then this one, or let that stream go",
            own.stream_name()
        );
    }
    Ok(())
}
