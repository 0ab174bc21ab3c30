//! The streams that have an aggregate's messages: the lane's own, and copies of it.
//!
//! In: the lane, further names. Out: names of streams, each one from which messages may be erased. Guarantee: no stream in which
//! another lane lives, whose place only its own record tells.

use anyhow::{bail, ensure};
use async_nats::jetstream::stream::{Config, Info};
use futures_util::TryStreamExt as _;

use crate::cli::lane_records;
use crate::cli::move_lane::left_subject;
use crate::nats::admin::Admin;
use crate::nats::stream::{self, LANE_RECORD_STREAM};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::REPLAY_HEADER;
use crate::pipeline::record::Moved;
use crate::postgres::client::Client;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// The lane's stream first, then those that it has left, the replays and copies of all these, and those that were named.
///
/// # Errors
/// Messages cannot be erased from one of them.
pub(super) async fn with_copies(
    nats: &Admin,
    lane: &LaneClient,
    named: &[String],
) -> anyhow::Result<Vec<String>> {
    let own = lane.stream_name();
    let jetstream = nats.jetstream();
    let all = async { Ok(jetstream.streams().try_collect().await?) };
    let all: Vec<Info> = nats.allowed(all).await?;
    let lanes = with_left(nats, lane, &all).await?;
    let mut streams = Vec::new();
    for Info { config, .. } in &all {
        let name = &config.name;
        let is_lanes = lanes.contains(name);
        let is_wanted = is_lanes
            || named.contains(name)
            || name != LANE_RECORD_STREAM
                && (is_copy(config, &lanes) || is_replay(nats, &lanes, name).await?);
        if !is_wanted {
            continue;
        }
        ensure!(
            !config.deny_delete,
            "stream {name} was made with deny_delete, which cannot be taken back, so nothing was erased: only its \
             age and limits remove messages, or its deletion"
        );
        if !is_lanes {
            no_lane_lives_in(nats, lane, name).await?;
        }
        match name == own {
            true => streams.insert(0, name.clone()),
            false => streams.push(name.clone()),
        }
    }
    for name in named.iter().map(String::as_str).chain([own]) {
        ensure!(
            streams.iter().any(|found| found == name),
            "there is no stream {name}"
        );
    }
    Ok(streams)
}

/// The lane's stream, and those from which `walrelay move` has brought the lane there on this NATS.
async fn with_left(nats: &Admin, lane: &LaneClient, all: &[Info]) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for Info { config, .. } in all {
        if config.subjects == [left_subject(&config.name)] {
            let lane = LaneClient::new(nats, &config.name, lane.slot())?;
            let record = lane.record().await?.record;
            if let Some(Moved::To { stream, nats: None }) = record.and_then(|record| record.moved) {
                left.push((config.name.clone(), stream));
            }
        }
    }
    let mut lanes = vec![lane.stream_name().to_owned()];
    while let Some(at) = left.iter().position(|(_, to)| lanes.contains(to)) {
        lanes.push(left.swap_remove(at).0);
    }
    Ok(lanes)
}

/// Whether nats-server itself copies one of `streams` there.
fn is_copy(config: &Config, streams: &[String]) -> bool {
    let mirrored = config.mirror.as_ref().map(|of| &of.name);
    let sources = config.sources.iter().flatten().map(|of| &of.name);
    sources.chain(mirrored).any(|of| streams.contains(of))
}

/// Where shares were that are no more: no relay goes on there, so no place of a lane has to be told.
///
/// # Errors
/// Postgres or NATS refuse.
pub(super) async fn of_shares_before(
    nats: &Admin,
    client: &Client,
    lanes: &[Settings],
) -> anyhow::Result<Vec<LaneClient>> {
    let mut past = Vec::new();
    let share = lanes.first().and_then(|lane| lane.postgres.share.as_ref());
    let Some(share) = share else {
        return Ok(past);
    };
    let records = lane_records::of_shares(nats, client, share).await?;
    for record in records.into_iter().filter(|record| record.retired) {
        if stream::find(nats, &record.stream).await?.is_some() {
            past.push(LaneClient::new(nats, &record.stream, &record.slot)?);
        }
    }
    Ok(past)
}

/// Whether the first message of stream `name` is one that a replay of one of `streams` has published.
async fn is_replay(nats: &Admin, streams: &[String], name: &str) -> anyhow::Result<bool> {
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
    Ok(of.is_some_and(|of| streams.contains(&of)))
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
