//! What a replay reads and where it publishes, before anything is done.
//!
//! In: arguments, settings, both streams. Out: a [`Plan`], or why there is none. Guarantee: reads only, until the target is to be made.

use anyhow::Context as _;

use super::origin::Origin;
use super::{Args, From, REPLAY_SUFFIX};
use crate::bulk::Source;
use crate::bulk::readdress::{self, Destination, Filter};
use crate::bulk::replayed;
use crate::cli::exit::UsageError;
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::filters::{covers, overlaps, widest};
use crate::nats::settings::DEFAULT_INBOX_PREFIX;
use crate::nats::stream::{self, LANE_RECORD_STREAM, StreamPlan, StreamSettings, StreamSeverity};
use crate::pipeline::mapping::Format;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

/// What is to be done.
pub(super) struct Plan {
    pub(super) origin: Origin,
    filter: Filter,
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
        check_inbox(args, settings)?;
        let name = args.stream.clone();
        let name = name.unwrap_or_else(|| format!("{stream}{REPLAY_SUFFIX}"));
        let target = LaneClient::new(nats, &name, slot).map_err(|error| match error {
            LaneError::Name(error) => anyhow::Error::from(UsageError(format!("--stream: {error}"))),
            error => error.into(),
        })?;
        let source = stream::find(nats, stream)
            .await?
            .with_context(|| format!("there is no stream {stream}"))?;
        let wanted = StreamSettings {
            subjects_to_create: there(args, &subjects_of(&source, settings)),
            subjects: there(args, &settings.nats.event_subjects()),
            name,
            slot: slot.clone(),
            num_replicas: source.config.num_replicas,
            shared: false,
        };
        let target_plan = plan_target(nats, stream, &wanted).await?;
        let origin = match args.source {
            From::Stream => Origin::of_stream(args, settings, nats, source).await?,
            From::Table => Origin::of_table(args, settings).await?,
        };
        Ok(Plan {
            filter: Filter {
                event_types: args.event_types.clone(),
                aggregate_ids: args.aggregate_ids.clone(),
            },
            destination: Destination {
                replay: replayed::name(&request(args, origin.name(settings), slot)),
                subject: args.subject.clone(),
                stream: wanted.name.clone(),
                subjects_to_create: wanted.subjects_to_create.clone(),
                subjects: match &target_plan {
                    StreamPlan::Exists { info, .. } => info.config.subjects.clone(),
                    StreamPlan::Create(config) => config.subjects.clone(),
                },
            },
            origin,
            target,
            target_plan,
            wanted,
        })
    }

    pub(super) fn explain(&self, settings: &Settings, json: bool, account: &mut Account) {
        let mut say = |line: String| match json {
            true => stderr::line(line),
            false => account.line(line),
        };
        say(format!("reads         {}", self.origin.explained(settings)));
        let state = match &self.target_plan {
            StreamPlan::Exists { .. } => "found",
            StreamPlan::Create(_) => "to be made",
        };
        say(format!(
            "publishes to  stream {} ({state}), subjects {}",
            self.wanted.name,
            self.destination.subjects.join(" ")
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

    /// Whether the stream that is to take the events is still to be made.
    pub(super) fn makes_target(&self) -> bool {
        matches!(self.target_plan, StreamPlan::Create(_))
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

    /// The place of the last event that an earlier run has published.
    pub(super) async fn reached(&self, nats: &Admin) -> anyhow::Result<Option<String>> {
        match stream::find(nats, &self.wanted.name).await? {
            Some(info) => {
                replayed::reached(nats, &self.target, &info, &self.destination.replay).await
            }
            None => Ok(None),
        }
    }

    /// What is left behind that place; none where that is nothing.
    pub(super) async fn open(
        &self,
        settings: &Settings,
        reached: Option<&str>,
    ) -> anyhow::Result<Option<Source>> {
        let to = (self.filter.clone(), self.destination.clone());
        self.origin.open(settings, reached, to).await
    }

    /// Settings by which messages go to the target.
    pub(super) fn settings(&self, settings: &Settings) -> Settings {
        let mut at_target = settings.clone();
        at_target.nats.stream.clone_from(&self.wanted.name);
        at_target.nats.shared = false;
        at_target
    }
}

/// What the lane's events may stand on: what they are published on today, and what else the stream takes, where it is the lane's
/// own, since the template may have been another one.
fn subjects_of(source: &StreamInfo, settings: &Settings) -> Vec<String> {
    let mut subjects = settings.nats.event_subjects();
    let more = source.config.subjects.iter();
    let is_ours = |subject: &&String| !settings.nats.shared && !overlaps(subject, "walrelay.>");
    subjects.extend(more.filter(is_ours).cloned());
    subjects
}

/// What events on these subjects come on in the other stream.
fn there(args: &Args, subjects: &[String]) -> Vec<String> {
    widest((subjects.iter()).map(|subject| readdress::filter(&args.subject, subject)))
}

/// Those of `wanted` that a stream with the subjects `held` does not store.
fn lacking(held: &[String], wanted: &[String]) -> Vec<String> {
    let is_held = |subject: &String| held.iter().any(|held| covers(held, subject));
    wanted.iter().filter(|it| !is_held(it)).cloned().collect()
}

/// What makes one replay another than the next.
fn request(args: &Args, [source, of_source]: [String; 2], slot: &str) -> Vec<String> {
    let sorted = |values: &[String]| {
        let mut values = values.to_vec();
        values.sort();
        values.dedup();
        values.join("\t")
    };
    vec![
        source,
        of_source,
        slot.to_owned(),
        args.from.to_string(),
        args.to.map_or_else(String::new, |to| to.to_string()),
        sorted(&args.event_types),
        sorted(&args.aggregate_ids),
        args.subject.to_string(),
    ]
}

/// A stream that takes what is answered to somebody stores it among the events, and each answer to this replay itself.
fn check_inbox(args: &Args, settings: &Settings) -> Result<(), UsageError> {
    let own = &settings.nats.connection.inbox_prefix;
    let inboxes = [own.as_str(), DEFAULT_INBOX_PREFIX].map(|prefix| format!("{prefix}.>"));
    let subjects = there(args, &settings.nats.event_subjects());
    let is_inbox = |inbox: &&String| subjects.iter().any(|subject| overlaps(subject, inbox));
    match inboxes.iter().find(is_inbox) {
        None => Ok(()),
        Some(inbox) => Err(UsageError(format!(
            "--subject {}: answers come on {inbox} (nats.inbox_prefix), and the stream would store them: give another --subject",
            args.subject
        ))),
    }
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
    let tables = settings.tables();
    let bare = tables.iter().find(|table| {
        let format = table.message.format;
        matches!(format, Format::Payload | Format::PayloadString)
    });
    let asks = readdress::asks_for_fields(&args.subject)
        || !args.event_types.is_empty()
        || !args.aggregate_ids.is_empty();
    match bare.filter(|_| asks) {
        None => Ok(()),
        Some(bare) => {
            let whose = match tables.len() {
                1 => String::new(),
                _ => format!("of {} ", bare.postgres.table),
            };
            Err(UsageError(format!(
                "messages {whose}in this format (message.format) are the payload alone and tell neither type nor aggregate: leave \
                 out --event-type and --aggregate-id, and use {{subject}} alone in --subject"
            )))
        }
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
    let plan = stream_fit::plan(nats, wanted).await?;
    let lacks = match &plan {
        StreamPlan::Create(_) => wanted.subjects_to_create.clone(),
        StreamPlan::Exists { info, .. } => lacking(&info.config.subjects, &wanted.subjects),
    };
    // Before an edit is printed as well: the server refuses it where another stream has the subjects.
    let those = StreamSettings {
        subjects_to_create: lacks,
        ..wanted.clone()
    };
    if let Some(taken) = stream::taken(nats, &those, None, None).await?.first() {
        return refused(format!("{}: give another --subject", taken.message));
    }
    let plan = match plan {
        StreamPlan::Create(mut config) => {
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
