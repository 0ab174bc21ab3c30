//! The streams that the lane needs.
//!
//! In: what is wanted of them. Out: a plan, what is in its way, and the streams. Guarantee: one that exists stays as it is.

use anyhow::Context as _;

use super::report;
use crate::cli::exit::{Exit, message};
use crate::cli::stderr;
use crate::cli::stdout::{self, Account};
use crate::nats::admin::Admin;
use crate::nats::stream::{self, StreamPlan};
use crate::pipeline::limit::SizeLimit;
use crate::postgres::catalog::Inspection;
use crate::postgres::client::Client;
use crate::postgres::row_sizes::{self, Sample};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

/// What is wanted of NATS.
pub(super) struct Streams {
    pub(super) plans: Vec<(String, StreamPlan)>,
    /// Other streams in the way.
    taken: Vec<stream::StreamFinding>,
}

/// How the command ends because of what a stream is, which is told; none where it fits or is to be made.
///
/// # Errors
/// NATS refuses to tell.
pub(in crate::cli) async fn refused_by_stream(
    nats: &Admin,
    wanted: stream::StreamSettings,
    lane: &Settings,
) -> Result<Option<Exit>, anyhow::Error> {
    Ok(refused_streams(&plan_streams(nats, wanted, lane).await?))
}

/// Other streams with subjects of the lane's.
///
/// # Errors
/// NATS does not tell.
pub(in crate::cli) async fn taken(
    nats: &Admin,
    wanted: &stream::StreamSettings,
    lane: &Settings,
) -> Result<Vec<stream::StreamFinding>, stream::StreamError> {
    let under_root = lane.nats.subject.under_root();
    let (root, under_root) = match &lane.postgres.share {
        Some(share) => (&share.whole_slot, format!("{{share}}.{under_root}")),
        None => (&lane.postgres.slot, under_root),
    };
    let events = stream::Events {
        root,
        under_root: &under_root,
    };
    stream::taken(nats, wanted, Some(events), lane.postgres.part()).await
}

pub(super) async fn plan_streams(
    nats: &Admin,
    wanted: stream::StreamSettings,
    lane: &Settings,
) -> Result<Streams, anyhow::Error> {
    let fit = stream_fit::plan(nats, &wanted).await?;
    let records = stream::plan_lane_records(nats, wanted.num_replicas).await?;
    let taken = taken(nats, &wanted, lane).await?;
    Ok(Streams {
        plans: vec![
            (wanted.name, fit),
            (stream::LANE_RECORD_STREAM.to_owned(), records),
        ],
        taken,
    })
}

pub(super) fn refused_streams(streams: &Streams) -> Option<Exit> {
    for finding in &streams.taken {
        stderr::line(format_args!("error: {finding}"));
    }
    let mut refused = !streams.taken.is_empty();
    for (name, plan) in &streams.plans {
        if let StreamPlan::Exists { findings, .. } = plan {
            for finding in findings {
                let blocks = finding.severity == stream::StreamSeverity::Blocks;
                let otherwise = match blocks && finding.command.is_none() {
                    true => ": choose another name for nats.stream",
                    false => "",
                };
                stderr::line(format_args!(
                    "{}: stream {name}: {finding}{otherwise}",
                    stream_severity(finding.severity),
                ));
                refused |= blocks;
            }
        }
    }
    refused.then_some(Exit::Failed)
}

fn stream_severity(severity: stream::StreamSeverity) -> &'static str {
    match severity {
        stream::StreamSeverity::Blocks => "error",
        stream::StreamSeverity::Warns => "warning",
    }
}

pub(super) fn print_streams(streams: &[(String, StreamPlan)]) -> Result<(), anyhow::Error> {
    for (name, plan) in streams {
        if let StreamPlan::Create(config) = plan {
            let config = serde_json::to_string(config)?;
            stdout::write(&format!("-- stream {name}\n-- {config}\n\n"))?;
        }
    }
    Ok(())
}

pub(super) async fn make_streams(
    nats: &Admin,
    streams: &[(String, StreamPlan)],
    account: &mut Account,
) -> Result<(), anyhow::Error> {
    for (name, plan) in streams {
        match plan {
            StreamPlan::Exists { .. } => report(account, "stream", name, "found"),
            StreamPlan::Create(config) => {
                let replicas = match config.num_replicas {
                    0 | 1 => String::new(),
                    replicas => format!(
                        " of {replicas} replicas, as --replicas says, which takes as many nats-servers with JetStream in one cluster"
                    ),
                };
                stream::create(nats, config)
                    .await
                    .with_context(|| format!("cannot make stream {name}{replicas}"))?;
                report(account, "stream", name, "made");
            }
        }
    }
    Ok(())
}

/// Says where rows of the tables, or any event, make messages that server or stream hardly take.
pub(super) async fn warn_of_sizes(
    client: &Client,
    nats: &Admin,
    made: &Inspection,
    settings: &Settings,
) -> Result<(), anyhow::Error> {
    let name = &settings.nats.stream;
    let stream = stream::find(nats, name).await?;
    let of_stream = stream.and_then(|stream| stream.config.message_bytes_max());
    let limit = SizeLimit::smaller(nats.client().server_info().max_payload, of_stream);
    let mut largest = Sample::default();
    for (found, of) in made.tables().zip(settings.tables()) {
        let Some(table) = row_sizes::readable(found) else {
            continue;
        };
        match row_sizes::sample(client, table, &of.postgres).await {
            Ok(Some(sample)) if sample.bytes_max >= largest.bytes_max => largest = sample,
            Ok(_) => {}
            // It ends no set-up.
            Err(error) => stderr::line(format_args!(
                "warning: how large rows of {} are is not known: {}",
                of.postgres.table,
                message(&error.into())
            )),
        }
    }
    if let Some(finding) = stream_fit::rows(name, limit, largest.rows, largest.bytes_max) {
        stderr::line(format_args!("warning: stream {name}: {finding}"));
    }
    Ok(())
}
