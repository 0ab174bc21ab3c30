//! The streams that the lane needs.
//!
//! In: what is wanted of them. Out: a plan, what is in its way, and the streams. Guarantee: one that exists stays as it is.

use anyhow::Context as _;

use super::report;
use crate::cli::exit::Exit;
use crate::cli::stderr;
use crate::cli::stdout::{self, Account};
use crate::nats::admin::Admin;
use crate::nats::stream::{self, StreamPlan};
use crate::pipeline::subject::SubjectTemplate;
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
    subject: &SubjectTemplate,
) -> Result<Option<Exit>, anyhow::Error> {
    Ok(refused_streams(&plan_streams(nats, wanted, subject).await?))
}

pub(super) async fn plan_streams(
    nats: &Admin,
    wanted: stream::StreamSettings,
    subject: &SubjectTemplate,
) -> Result<Streams, anyhow::Error> {
    let events = stream_fit::plan(nats, &wanted).await?;
    let records = stream::plan_lane_records(nats, wanted.num_replicas).await?;
    let taken = stream::taken(nats, &wanted, Some(&subject.under_root())).await?;
    Ok(Streams {
        plans: vec![
            (wanted.name, events),
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
                stream::create(nats, config)
                    .await
                    .with_context(|| format!("cannot make stream {name}"))?;
                report(account, "stream", name, "made");
            }
        }
    }
    Ok(())
}
