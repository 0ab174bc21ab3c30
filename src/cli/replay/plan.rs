//! What a replay reads and where it publishes, before anything is done.
//!
//! In: arguments, settings, both streams. Out: a [`Plan`], or why there is none. Guarantee: reads only, until the target is to be made.

use anyhow::Context as _;

use super::Args;
use crate::bulk::range::{Bound, Held, History, Sight};
use crate::bulk::readdress::{self, Destination, Filter};
use crate::bulk::replayed;
use crate::bulk::stream::Events;
use crate::cli::exit::UsageError;
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stored::count_from;
use crate::nats::stream::{
    self, LANE_RECORD_STREAM, StreamPlan, StreamSettings, StreamSeverity, overlaps,
};
use crate::pipeline::mapping::Format;
use crate::pipeline::record::LaneRecord;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

/// What is to be done.
pub(super) struct Plan {
    source: StreamInfo,
    events: Events,
    /// Both in the range; nothing where the first is above the last.
    range: (u64, u64),
    /// The first message of the range.
    begins: Option<Sight>,
    pub(super) filter: Filter,
    destination: Destination,
    pub(super) target: LaneClient,
    target_plan: StreamPlan,
    /// What the target must be.
    pub(super) wanted: StreamSettings,
}

impl Plan {
    pub(super) async fn make(
        args: &Args,
        settings: &Settings,
        nats: &Admin,
    ) -> anyhow::Result<Plan> {
        let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
        check_fields(args, settings)?;
        let name = args
            .stream
            .clone()
            .unwrap_or_else(|| format!("{stream}_REPLAY"));
        let target = LaneClient::new(nats, &name, slot).map_err(|error| match error {
            LaneError::Name(error) => anyhow::Error::from(UsageError(format!("--stream: {error}"))),
            error => error.into(),
        })?;
        let source = stream::find(nats, stream)
            .await?
            .with_context(|| format!("there is no stream {stream}"))?;
        let lane = LaneClient::new(nats, stream, slot)?;
        let record = lane.record().await?.record;
        let wanted = StreamSettings {
            subjects: vec![readdress::filter(
                &args.subject,
                &settings.nats.subject.filter(),
            )],
            subjects_to_create: vec![readdress::filter(
                &args.subject,
                &settings.nats.subject.filter(),
            )],
            name,
            slot: slot.clone(),
            num_replicas: source.config.num_replicas,
            shared: false,
        };
        let target_plan = plan_target(nats, stream, &wanted).await?;
        let history = History::new(nats, &lane, slot, &source, record.as_ref());
        let range = range(args, stream, &history).await?;
        let begins = match range.0 > range.1 {
            true => None,
            false => history.at(range.0).await?,
        };
        let of_lane = record.filter(|record| record.created == source.created);
        Ok(Plan {
            events: Events {
                stream: stream.clone(),
                slot: settings.nats.shared.then(|| slot.clone()),
                filter: settings.nats.subject.filter(),
                taken_over_sequence: of_lane
                    .map_or(0, |record: LaneRecord| record.taken_over_sequence),
            },
            range,
            begins,
            filter: Filter {
                event_types: args.event_types.clone(),
                aggregate_ids: args.aggregate_ids.clone(),
            },
            destination: Destination {
                replay: replayed::name(&request(args, &source, slot)),
                subject: args.subject.clone(),
                subjects: match &target_plan {
                    StreamPlan::Exists { info, .. } => info.config.subjects.clone(),
                    StreamPlan::Create(config) => config.subjects.clone(),
                },
            },
            source,
            target,
            target_plan,
            wanted,
        })
    }

    pub(super) fn explain(&self, json: bool, account: &mut Account) {
        let mut say = |line: String| match json {
            true => stderr::line(line),
            false => account.line(line),
        };
        let stream = &self.events.stream;
        let (first, last) = self.range;
        match &self.begins {
            Some(begins) => say(format!(
                "reads         stream {stream}, messages {first} to {last}, the first one stored at {}",
                Bound::Time(begins.time)
            )),
            None => say(format!(
                "reads         stream {stream}, which has nothing in this range"
            )),
        }
        let state = match &self.target_plan {
            StreamPlan::Exists { .. } => "found",
            StreamPlan::Create(_) => "to be made",
        };
        say(format!(
            "publishes to  stream {} ({state}), subjects {}",
            self.wanted.name,
            self.wanted.subjects.join(" ")
        ));
        if let StreamPlan::Exists { findings, .. } = &self.target_plan {
            for finding in findings {
                stderr::line(format_args!(
                    "warning: stream {}: {finding}",
                    self.wanted.name
                ));
            }
        }
    }

    /// Makes the stream that is missing.
    pub(super) async fn make_target(&self, nats: &Admin) -> anyhow::Result<()> {
        if let StreamPlan::Create(config) = &self.target_plan {
            stream::create(nats, config)
                .await
                .with_context(|| format!("cannot make stream {}", self.wanted.name))?;
        }
        Ok(())
    }

    /// The last message of the source that an earlier run has published.
    pub(super) async fn reached(&self, nats: &Admin) -> anyhow::Result<u64> {
        match stream::find(nats, &self.wanted.name).await? {
            Some(info) => {
                replayed::reached(nats, &self.target, &info, &self.destination.replay).await
            }
            None => Ok(0),
        }
    }

    /// What is left of the range behind `reached`.
    pub(super) fn left(&self, reached: u64) -> Option<(u64, u64)> {
        let first = self.range.0.max(reached + 1);
        (first <= self.range.1).then_some((first, self.range.1))
    }

    /// How many messages that are, whatever they are.
    pub(super) async fn count(&self, nats: &Admin, reached: u64) -> anyhow::Result<u64> {
        let Some((first, last)) = self.left(reached) else {
            return Ok(0);
        };
        let span = last - first + 1;
        if self.source.state.num_deleted == 0 {
            return Ok(span);
        }
        let stream = &self.events.stream;
        let behind = count_from(nats, stream, last + 1).await?;
        let count = count_from(nats, stream, first)
            .await?
            .saturating_sub(behind);
        Ok(count.min(span))
    }

    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    pub(super) fn destination(&self) -> Destination {
        self.destination.clone()
    }

    /// Settings by which messages go to the target.
    pub(super) fn settings(&self, settings: &Settings) -> Settings {
        let mut at_target = settings.clone();
        at_target.nats.stream.clone_from(&self.wanted.name);
        at_target.nats.shared = false;
        at_target
    }
}

/// What makes one replay another than the next.
fn request(args: &Args, source: &StreamInfo, slot: &str) -> Vec<String> {
    let sorted = |values: &[String]| {
        let mut values = values.to_vec();
        values.sort();
        values.dedup();
        values.join("\t")
    };
    vec![
        source.config.name.clone(),
        source.created.clone(),
        slot.to_owned(),
        args.from.to_string(),
        args.to.map_or_else(String::new, |to| to.to_string()),
        sorted(&args.event_types),
        sorted(&args.aggregate_ids),
        args.subject.to_string(),
    ]
}

/// Whether messages tell what is asked for.
fn check_fields(args: &Args, settings: &Settings) -> Result<(), UsageError> {
    if !readdress::is_of_messages(&args.subject) {
        return Err(UsageError(format!(
            "--subject {}: a message has no columns of the table: use {{subject}}, {{event_type}}, {{aggregate_id}}, \
             {{event_version}} or {{id}}",
            args.subject
        )));
    }
    let has_fields = !matches!(
        settings.message.format,
        Format::Payload | Format::PayloadString
    );
    let asks = readdress::asks_for_fields(&args.subject)
        || !args.event_types.is_empty()
        || !args.aggregate_ids.is_empty();
    match has_fields || !asks {
        true => Ok(()),
        false => Err(UsageError(
            "messages in this format (message.format) are the payload alone and tell neither type nor aggregate: leave out \
             --event-type and --aggregate-id, and use {subject} alone in --subject"
                .to_owned(),
        )),
    }
}

async fn range(args: &Args, stream: &str, history: &History<'_>) -> anyhow::Result<(u64, u64)> {
    match history.find(args.from, args.to).await? {
        Held::Between { first, last } if first > last + 1 => Err(UsageError(format!(
            "the range is upside down: in stream {stream}, --from {} is behind --to {}",
            args.from,
            args.to.map_or_else(String::new, |to| to.to_string())
        ))
        .into()),
        Held::Between { first, last } => Ok((first, last)),
        Held::Gone {
            oldest: Some(oldest),
        } => anyhow::bail!(
            "stream {stream} no longer holds the events from {} on: the oldest that it can give is --from {}, stored at {}",
            args.from,
            oldest.bound(),
            Bound::Time(oldest.time)
        ),
        Held::Gone { oldest: None } => anyhow::bail!(
            "stream {stream} no longer holds the events from {} on, nor any other of this lane",
            args.from
        ),
    }
}

/// Looks at the stream that is to take the events.
async fn plan_target(
    nats: &Admin,
    source: &str,
    wanted: &StreamSettings,
) -> anyhow::Result<StreamPlan> {
    let name = &wanted.name;
    let refused = |why: String| Err(UsageError(why).into());
    if name == source || name == LANE_RECORD_STREAM {
        return refused(format!(
            "--stream {name}: the relay itself publishes there; give another one, or leave --stream out for {source}_REPLAY"
        ));
    }
    let plan = match stream_fit::plan(nats, wanted).await? {
        StreamPlan::Create(mut config) => {
            if let Some(taken) = stream::taken(nats, wanted).await?.first() {
                return refused(format!("{}: give another --subject", taken.message));
            }
            config.description = Some(format!(
                "Events of stream {source} again, by walrelay replay"
            ));
            return Ok(StreamPlan::Create(config));
        }
        plan @ StreamPlan::Exists { .. } => plan,
    };
    let StreamPlan::Exists { info, findings } = &plan else {
        return Ok(plan);
    };
    let subjects = &info.config.subjects;
    if let Some(own) = subjects
        .iter()
        .find(|subject| overlaps(subject, "walrelay.>"))
    {
        return refused(format!(
            "--stream {name}: it takes {own}, so a relay may publish to it, and a replay would disturb that; give another one, \
             or leave --stream out for {source}_REPLAY"
        ));
    }
    let blocks = |finding: &&stream::StreamFinding| finding.severity == StreamSeverity::Blocks;
    match findings.iter().find(blocks) {
        Some(finding) => refused(format!("--stream {name}: {finding}")),
        None => Ok(plan),
    }
}
