//! The streams that have an aggregate's messages: the lane's own, and copies of it.
//!
//! In: the lane, further names. Out: names of streams, each one from which messages may be erased. Guarantee: no stream in which
//! another lane lives, whose place only its own record tells.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use async_nats::jetstream::stream::{Config, Info};

use super::survey::Survey;
use crate::bulk::replayed;
use crate::cli::move_lane::left_subject;
use crate::cli::stderr;
use crate::nats::admin::Admin;
use crate::nats::stream::{self, LANE_RECORD_STREAM};
use crate::pipeline::record::Moved;
use crate::postgres::client::Client;
use crate::relay::lane_client::LaneClient;
use crate::relay::lane_records;
use crate::relay::settings::Settings;

/// A stream that may have messages of the aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream: String,
    /// Others write there too: only what tells the lane by a header is its own.
    pub(super) is_mixed: bool,
}

/// The streams of a lane.
#[derive(Debug)]
pub(super) struct Places {
    /// Those that it lives in, or has lived in on this NATS.
    pub(super) lanes: Vec<String>,
    /// Its own first.
    pub(super) all: Vec<Place>,
}

/// The lane's stream first, then those that it has left, the replays and copies of all these and of those again, and those that were
/// named.
///
/// # Errors
/// Messages cannot be erased from one of them.
pub(super) async fn with_copies(
    survey: &mut Survey,
    nats: &Admin,
    lane: &LaneClient,
    named: &[String],
) -> anyhow::Result<Places> {
    let own = lane.stream_name();
    let lanes = with_left(survey, nats, lane).await?;
    let mut wanted: BTreeSet<String> = lanes.iter().chain(named).cloned().collect();
    let mut mixed = BTreeSet::new();
    add_copies(&survey.streams, &mut wanted, &mut mixed);
    let names = survey.streams.iter().map(|info| info.config.name.clone());
    let unknown = names.filter(|name| name != LANE_RECORD_STREAM && !wanted.contains(name));
    survey.ask_firsts(nats, unknown.collect()).await?;
    let mut likely = Vec::new();
    let all = &survey.streams;
    for Info { config, .. } in all {
        let name = &config.name;
        if lanes.contains(name) {
            continue;
        }
        unmoved(survey, nats, lane, &lanes, name).await?;
        if wanted.contains(name) || name == LANE_RECORD_STREAM {
            continue;
        }
        if is_replay(survey, lane, &lanes, name) {
            wanted.insert(name.clone());
            mixed.insert(name.clone());
        } else if is_like_a_copy(survey, lane, name) {
            likely.push(name.clone());
        }
    }
    add_copies(all, &mut wanted, &mut mixed);
    let mut streams = Vec::new();
    for Info { config, .. } in all {
        let name = &config.name;
        if !wanted.contains(name) {
            continue;
        }
        let is_lanes = lanes.contains(name);
        ensure!(
            !config.deny_delete,
            "stream {name} was made with deny_delete, which cannot be taken back, so nothing was erased: only its \
             age and limits remove messages, or its deletion"
        );
        ensure!(
            is_lanes || !survey.has_lane(name),
            "another lane lives in stream {name}, which has messages of {own}: run walrelay erase with that lane's configuration \
             for it, and then this one, or let that stream go"
        );
        let place = Place {
            stream: name.clone(),
            is_mixed: mixed.contains(name),
        };
        match name == own {
            true => streams.insert(0, place),
            false => streams.push(place),
        }
    }
    for name in likely {
        tell_likely(survey, lane, name);
    }
    for name in named.iter().map(String::as_str).chain([own]) {
        ensure!(
            streams.iter().any(|found| found.stream == name),
            "there is no stream {name}"
        );
    }
    Ok(Places {
        lanes,
        all: streams,
    })
}

/// Adds the streams to which nats-server itself copies one of `wanted`, and the copies of these; to `mixed`, those that have messages
/// from elsewhere too.
fn add_copies(all: &[Info], wanted: &mut BTreeSet<String>, mixed: &mut BTreeSet<String>) {
    loop {
        let before = (wanted.len(), mixed.len());
        for Info { config, .. } in all {
            let mut origins = origins(config).peekable();
            if origins.peek().is_none() || config.name == LANE_RECORD_STREAM {
                continue;
            }
            let (known, unknown): (Vec<&str>, Vec<&str>) =
                origins.partition(|of| wanted.contains(*of));
            if known.is_empty() {
                continue;
            }
            let is_new = wanted.insert(config.name.clone());
            let has_others = !unknown.is_empty() || !config.subjects.is_empty();
            if known.iter().any(|of| mixed.contains(*of)) || is_new && has_others {
                mixed.insert(config.name.clone());
            }
        }
        if before == (wanted.len(), mixed.len()) {
            return;
        }
    }
}

/// The lane's stream, and those from which `walrelay move` has brought the lane there on this NATS.
async fn with_left(
    survey: &Survey,
    nats: &Admin,
    lane: &LaneClient,
) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for Info { config, .. } in &survey.streams {
        let is_left = config.subjects == [left_subject(&config.name)];
        if is_left && survey.has_record(&config.name, lane.slot()) {
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

/// Makes sure that stream `name` is not one to which `walrelay move` is still copying, from where its next run goes on.
async fn unmoved(
    survey: &Survey,
    nats: &Admin,
    lane: &LaneClient,
    lanes: &[String],
    name: &str,
) -> anyhow::Result<()> {
    if !survey.has_record(name, lane.slot()) {
        return Ok(());
    }
    let record = LaneClient::new(nats, name, lane.slot())?;
    let record = record.record().await?.record;
    match record.and_then(|record| record.moved) {
        Some(Moved::From { stream, .. }) if lanes.contains(&stream) => bail!(
            "the lane is on its way from stream {stream} to {name}, so nothing was erased: walrelay move --to-stream {name} ends \
             that; or, where it is given up, delete stream {name} (nats stream rm {name}). Then run this again"
        ),
        _ => Ok(()),
    }
}

/// The streams from which nats-server itself copies to this one.
fn origins(config: &Config) -> impl Iterator<Item = &str> {
    let mirrored = config.mirror.as_ref().map(|of| of.name.as_str());
    let sources = config.sources.iter().flatten().map(|of| of.name.as_str());
    sources.chain(mirrored)
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
    let Some(first) = lanes.first() else {
        return Ok(past);
    };
    let records = lane_records::of_shares(nats, client, &first.postgres).await?;
    for record in records.into_iter().filter(|record| record.retired) {
        if stream::find(nats, &record.stream).await?.is_some() {
            past.push(LaneClient::new(nats, &record.stream, &record.slot)?);
        }
    }
    Ok(past)
}

/// Whether stream `name` has a replay: a command of this slot has had the lease there, or it begins with one of `lanes` or of the
/// slot's table.
fn is_replay(survey: &Survey, lane: &LaneClient, lanes: &[String], name: &str) -> bool {
    let slot = lane.slot();
    if survey.has_lease(name, slot) && !survey.has_lane(name) {
        return true;
    }
    let first = survey.first(name);
    first
        .and_then(|first| first.replay.as_ref())
        .is_some_and(|value| {
            let of = replayed::source_of(value);
            lanes.iter().any(|stream| Some(stream.as_str()) == of)
                || replayed::slot_of_table(value) == Some(slot)
        })
}

/// Whether stream `name` begins with a message of this slot that is no replay: it may be a copy that somebody has made by other means,
/// or another database's.
fn is_like_a_copy(survey: &Survey, lane: &LaneClient, name: &str) -> bool {
    let first = survey.first(name).filter(|first| first.replay.is_none());
    let position = first.and_then(|first| first.position.as_deref());
    let of = position.and_then(|position| position.split(' ').next());
    of == Some(lane.slot()) && !survey.has_lane(name)
}

/// Tells a person of such a stream, once.
fn tell_likely(survey: &mut Survey, lane: &LaneClient, name: String) {
    if !survey.told.contains(&name) {
        stderr::line(format_args!(
            "stream {name} begins with a message of slot {}, and no lane lives there: if it is a copy of stream {}, give \
             --also-stream {name}",
            lane.slot(),
            lane.stream_name()
        ));
        survey.told.insert(name);
    }
}
