//! `walrelay replay`: publishes events of the stream's history again, to another stream.
//!
//! In: settings, a range, which events, where to. Out: them in the stream's order, marked as a replay. Guarantees: neither the relay
//! nor its slot nor its stream notices; running it again goes on behind what stands in the other stream and doubles nothing.

mod origin;
mod plan;

use std::ops::ControlFlow;

use super::command_line;
use super::exit::{Exit, UsageError};
use super::progress::{Counts, Progress};
use super::signals::{self, Hangup};
use super::stdout::Account;
use super::values;
use crate::bulk::fence::Fence;
use crate::bulk::lease::Lease;
use crate::bulk::publisher::Publisher;
use crate::bulk::range::Bound;
use crate::bulk::{Outcome, Source, Sourced};
use crate::cli::consent::agreed;
use crate::cli::stderr;
use crate::config::syntax::parse_stream;
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::pipeline::subject::SubjectTemplate;
use crate::relay::Shutdown;
use crate::relay::settings::Settings;
use plan::Plan;

/// What the name of the other stream ends with, where none is given.
pub(super) const REPLAY_SUFFIX: &str = "_REPLAY";

const EXAMPLES: &str = "\
Examples:
  walrelay replay --from 2026-11-23T00:00:00Z --dry-run    how many that would be, and where from
  walrelay replay --from 2026-11-23T00:00:00Z --yes        all since then, to stream OUTBOX_REPLAY
  walrelay replay --from 16/B374D848 --to 16/C0000000 --event-type lesson.published.v1
  walrelay replay --from 0/1 --event-type 'lesson.*'       events whose type begins so
  walrelay replay --from 0/1 --stream FOR_BILLING --subject 'billing.{event_type}'
  WALRELAY_NATS_STREAM=SHOP walrelay replay --from 0/1     where others are told --stream SHOP

It reads the events' stream, in its order, and publishes to another one, which is made where it is
missing: consumers choose to see a replay. --stream and --subject are of that other one here; what
other commands take from those flags say nats.stream (WALRELAY_NATS_STREAM) and nats.subject
(WALRELAY_NATS_SUBJECT). Each event has its own headers and
body, and with them Walrelay-Kind: replay. Events that a backfill or a retry has published come
where they stand in the stream; dead letters do not come. The relay, its slot and its stream are
left alone.

An LSN is a whole transaction; walrelay position prints them. A time is when the stream stored the
event: a moment behind the commit, or more where the relay was stopped meanwhile. Both ends are
included. Where the lane has no event of its own before --from, the range begins with what a
backfill put there: --from 0/1 is all. A range whose beginning the stream has removed, or that ends
before it, is refused, with the oldest place that it can give.

--source table reads the table instead: rows whose occurred_at is in the range, as they are now,
in the order of occurred_at. That is not the order of their commits, and what the application has
deleted does not come.

A broker that goes away while it publishes has a minute to come back.

With --event-type or --aggregate-id, messages of another relay that tell no type or no aggregate,
such as a poller's, are left out and counted.

Its first event that cannot be published ends it, with what mends that: mostly the other stream
does not take the event's subject.

Where it was stopped or killed, run it again with the same range, filters and subject: it goes on
behind the last event that stands in the other stream. Without --to, a later run publishes what
has come since.

Exit code 0: done, or there was nothing, and no stream is made for that. 1: the stream does not hold
the range, an event cannot be published, or it was stopped before its end. 2: a range, filter or
target that cannot be, or nobody agreed.";

/// Publish committed events of a range again, in commit order, to another stream.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The first one: an LSN, a position such as 16/B374D848:3, or a time such as 2026-11-23T04:40:00Z.
    #[arg(long, value_name = "LSN|TIME")]
    from: Bound,

    /// The last one [default: the stream's end].
    #[arg(long, value_name = "LSN|TIME")]
    to: Option<Bound>,

    /// What is read: the stream, or rows that the table still has, by occurred_at.
    #[arg(long, value_enum, value_name = "SOURCE", default_value = "stream")]
    source: From,

    /// Only events of this type; several times for several types. `lesson.*` takes all that begin so.
    #[arg(long = "event-type", value_name = "TYPE", value_parser = values::event_type)]
    event_types: Vec<String>,

    /// Only events of this aggregate; may be given more than once.
    #[arg(long = "aggregate-id", value_name = "ID", value_parser = values::aggregate_id)]
    aggregate_ids: Vec<String>,

    /// The stream to publish to; made where it is missing [default: the events' stream with _REPLAY behind it].
    #[arg(long, value_name = "NAME", value_parser = parse_stream)]
    stream: Option<String>,

    /// Their subjects there: {subject} is the event's own, and {event_type}, {aggregate_id}, {event_version}, {id}.
    #[arg(long, value_name = "TEMPLATE", default_value = "replay.{subject}")]
    subject: SubjectTemplate,

    /// Count, and publish nothing.
    #[arg(long)]
    dry_run: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    /// One JSON object a second on standard output, and one at the end, which says done.
    #[arg(long)]
    json: bool,
}

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum From {
    Stream,
    Table,
}

/// Runs the command.
///
/// # Errors
/// The range is none, or one of the streams cannot be used.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let shutdown = signals::listen(Hangup::Stops)?;
    if let Some(to) = args.to
        && args.from.is_behind(to)
    {
        return Err(UsageError(format!(
            "the range is upside down: --from {} is behind --to {to}",
            args.from
        ))
        .into());
    }
    values::check_event_types(&args.event_types, settings)?;
    let nats = Admin::connect(&settings.nats.connection).await?;
    let plan = Plan::make(&args, settings, &nats).await?;
    let mut account = Account::default();
    plan.explain(settings, args.json, &mut account);
    if args.dry_run {
        return count(&args, settings, &plan, &nats, &shutdown, account).await;
    }
    if !agreed(args.yes, "Publish them again?", "nothing was published")? {
        return Ok(Exit::Usage);
    }
    // A stream that is made for nothing would keep its subjects from the next one.
    if plan.makes_target() {
        let mut untold = 0;
        if !has_events(settings, &plan, &shutdown, &mut untold).await? {
            let mut progress = Progress::of(0, args.json);
            (0..untold).for_each(|_| progress.take(Outcome::Untold, &mut account));
            tell(&args, &progress.end(&mut account), false, account)?;
            return Ok(Exit::Done);
        }
    }
    plan.make_target(&nats).await?;
    let lease = Lease::take(&plan.target, "replay", &command_line::typed()).await?;
    let done = replay(&args, settings, plan, &nats, &lease, &shutdown, account).await;
    lease.release().await;
    done
}

/// Reads what would be published.
async fn count(
    args: &Args,
    settings: &Settings,
    plan: &Plan,
    nats: &Admin,
    shutdown: &Shutdown,
    mut account: Account,
) -> anyhow::Result<Exit> {
    let (mut events, mut untold) = (0_u64, 0_u64);
    let reached = plan.reached(nats).await?;
    if let Some(source) = plan.open(settings, reached.as_deref()).await? {
        let counted = |sourced| {
            match sourced {
                Sourced::Item(_) => events += 1,
                Sourced::Rejected { name, why } => {
                    stderr::line(format_args!("{name} cannot be published: {why}"));
                }
                Sourced::Passed | Sourced::Gone { .. } | Sourced::Same { .. } => {}
                Sourced::Untold => untold += 1,
            }
            ControlFlow::Continue(())
        };
        read(source, shutdown, counted).await?;
    }
    match args.json {
        true => {
            Progress::of(events, true).end(&mut account);
        }
        false => account.line(format_args!(
            "{} would be published",
            counted(events, "event", "events")
        )),
    }
    tell_untold(untold);
    account.close()?;
    Ok(Exit::Done)
}

/// Reads until there is nothing more, or `each` has enough.
async fn read(
    mut source: Source,
    shutdown: &Shutdown,
    mut each: impl FnMut(Sourced) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    let mut shutdown = shutdown.clone();
    loop {
        let next = tokio::select! {
            next = source.recv() => next,
            () = shutdown.wait() => anyhow::bail!("stopped before its end: nothing is published"),
        };
        let Some(chunk) = next.transpose()? else {
            return Ok(());
        };
        if chunk.into_iter().try_for_each(&mut each).is_break() {
            return Ok(());
        }
    }
}

/// Whether there is anything to publish. Counts, up to there, what does not tell whether it is asked for.
async fn has_events(
    settings: &Settings,
    plan: &Plan,
    shutdown: &Shutdown,
    untold: &mut u64,
) -> anyhow::Result<bool> {
    let Some(source) = plan.open(settings, None).await? else {
        return Ok(false);
    };
    let mut found = false;
    let look = |sourced| {
        match sourced {
            Sourced::Item(_) | Sourced::Rejected { .. } => found = true,
            Sourced::Passed | Sourced::Gone { .. } | Sourced::Same { .. } => {}
            Sourced::Untold => *untold += 1,
        }
        match found {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    match read(source, shutdown, look).await {
        Ok(()) => Ok(found),
        Err(stopped) if shutdown.is_sent() => Err(stopped),
        // The run itself tells it, with what mends it.
        Err(_) => Ok(true),
    }
}

/// Says what was published, and what a filter could not be asked of.
fn tell(args: &Args, counts: &Counts, stopped: bool, mut account: Account) -> anyhow::Result<()> {
    if !args.json {
        let more = match stopped {
            true => "; stopped: run it again, and it goes on behind the last one",
            false => "",
        };
        let published = counted(counts.published, "event is", "events are");
        account.line(format_args!("{published} published again{more}"));
    }
    account.close()?;
    tell_untold(counts.untold);
    Ok(())
}

/// Says what a filter could not be asked of.
fn tell_untold(count: u64) {
    if count > 0 {
        stderr::line(format_args!(
            "{} left out: another relay published them, and they do not tell what --event-type or --aggregate-id asks for",
            counted(count, "message is", "messages are")
        ));
    }
}

async fn replay(
    args: &Args,
    settings: &Settings,
    plan: Plan,
    nats: &Admin,
    lease: &Lease,
    shutdown: &Shutdown,
    mut account: Account,
) -> anyhow::Result<Exit> {
    // With the lease, so that nothing of an earlier run comes behind what is read now.
    let through = plan.target.stream().await?.state.last_seq;
    let reached = plan.reached(nats).await?;
    let total = plan
        .origin
        .count(nats, settings, reached.as_deref())
        .await?;
    let mut progress = Progress::of(total, args.json).told_by(lease, "publishing events");
    let mut done = Ok(());
    if let Some(source) = plan.open(settings, reached.as_deref()).await? {
        let at_target = plan.settings(settings);
        let fence = Fence::aside(&plan.target, through);
        let wanted = plan.wanted.clone();
        let mut publisher = Publisher::aside(&at_target, &plan.target, lease, fence, wanted)
            .without_gaps()
            .until(shutdown.clone());
        let each = |outcome: Outcome<'_>| progress.take(outcome, &mut account);
        done = publisher.run(source, each).await;
    }
    let counts = progress.end(&mut account);
    let stopped = shutdown.is_sent();
    tell(args, &counts, stopped, account)?;
    done?;
    Ok(match counts.rejected == 0 && !stopped {
        true => Exit::Done,
        false => Exit::Failed,
    })
}
