//! `walrelay move`: takes a lane to another stream, or to another NATS.
//!
//! In: settings, a name, a person's consent. Out: the stream's messages in the other one, and the lane behind them. Guarantees: events
//! keep their positions, stand there once and in their order; the lane is in one of the two streams at any moment, and its record in each
//! says in which; one that was ended at any moment is finished by the next.
//!
//! In this order, each step found again by the next run:
//!
//! 1. The target's record says that the lane is on its way, so that no relay publishes there. The target is made.
//! 2. Messages are copied while the relay goes on, until few are left.
//! 3. The old stream's record says that the lane has gone, so that no relay begins there any more; then a message at its end breaks
//!    the chain of the one that runs. Behind it the lane stores nothing there. A sealed stream takes no such message and needs none.
//! 4. The rest is copied, and the target's record says so. On the same NATS the subjects go over.
//! 5. The target's record says that the lane lives there, where the relay goes on with the new configuration.

use anyhow::{Context as _, bail, ensure};

use super::command_line;
use super::consent::agreed;
use super::exit::{Exit, UsageError};
use super::signals::{self, Hangup};
use super::stdout::Account;
use crate::bulk::holder;
use crate::bulk::lease::Lease;
use crate::config::syntax::parse_stream;
use crate::nats::address::{NatsAddress, NatsAuth};
use crate::nats::admin::Admin;
use crate::nats::api::StreamConfig;
use crate::nats::stream::{self, StreamPlan, StreamSeverity};
use crate::pipeline::record::{self, LaneRecord, Moved};
use crate::postgres::client::connect;
use crate::relay::Shutdown;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

mod copying;
mod handover;
mod shares;

use handover::release_slot;
pub(super) use shares::{command_of, is_to_be_moved};

const EXAMPLES: &str = "\
Examples:
  walrelay move --to-stream EVENTS --dry-run       what it would do
  walrelay move --to-stream EVENTS                 to another stream of the same NATS
  walrelay move --to-nats nats://new:4222          to a stream of the same name at another NATS

It copies the stream as it is, then takes the lane there. Give the configuration of the old stream,
and let its relay run. A relay with the new configuration waits, from when the target is made until
the lane is there: start it while messages are copied, and the lane stands still for less than a
second. A relay with the old configuration halts (4) from then on and says where the lane is.

What is copied keeps its position and its order; when it was stored is the time of the copy. The
old stream stays, without its subjects where both are on the same NATS: consumers of it read it to
its end. Keep it for longer than the hold-back. Where it was stopped or killed, run it again.

Exit code 0: the lane is there. 1: it is not; run it again. 2: a target that cannot be, or nobody
agreed.";

/// Take the lane to another stream, or to another NATS.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The stream to move to; it is made [default: the same name, with --to-nats].
    #[arg(long, value_name = "NAME", required_unless_present = "to_nats", value_parser = parse_stream)]
    to_stream: Option<String>,

    /// The servers of another NATS; logins and TLS are those of the configuration, unless the URL has a login.
    #[arg(long, value_name = "URL")]
    to_nats: Option<String>,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// One of the two streams.
struct Side {
    settings: Settings,
    nats: Admin,
    lane: LaneClient,
}

impl Side {
    async fn of(settings: Settings) -> anyhow::Result<Self> {
        let nats = Admin::connect(&settings.nats.connection).await?;
        let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
        let lane = LaneClient::new(&nats, stream, slot)?;
        Ok(Side {
            lane,
            nats,
            settings,
        })
    }

    fn stream(&self) -> &str {
        &self.settings.nats.stream
    }

    /// As a person gives them, without a login.
    fn servers(&self) -> String {
        self.settings.nats.connection.servers_text()
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing is done.
    Begin,
    /// The target is there, or about to be.
    Copying,
    /// The lane has left the old stream.
    Fenced,
    /// Every message is in the target, and what comes behind them is the lane's.
    Copied,
    /// The lane is there.
    Done,
}

/// A lane on its way.
struct Move {
    from: Side,
    to: Side,
    /// What stands in front of subjects while they are the old stream's: none where the target is at another NATS.
    prefix: String,
    /// The target's servers, as a person gives them, without a login; none where they are the same.
    nats: Option<String>,
    /// When the old stream was created.
    created: String,
    /// It takes nothing any more.
    is_sealed: bool,
    stage: Stage,
}

/// Runs the command.
///
/// # Errors
/// The lane cannot be moved there, or was not yet.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let shutdown = signals::listen(Hangup::Stops)?;
    let moving = Move::plan(&args, settings).await?;
    let mut account = Account::default();
    moving.explain(&mut account);
    if args.dry_run {
        account.close()?;
        return Ok(Exit::Done);
    }
    if moving.stage < Stage::Fenced && !agreed(args.yes, "Move the lane?", "nothing was changed")? {
        return Ok(Exit::Usage);
    }
    make_lane_records(&moving).await?;
    // Nobody else publishes for the lane meanwhile, at either end.
    let lanes = [moving.from.lane.clone(), moving.to.lane.clone()];
    let leases = Lease::take_all(&lanes, "move", &command_line::typed(), &holder::all).await?;
    let done = moving.run(&leases[1], &shutdown).await;
    for lease in leases {
        lease.release().await;
    }
    done.context("the lane is not moved yet: run this again")?;
    account.line(format_args!(
        "moved: the lane lives in stream {}{}; its relay needs {}",
        moving.to.stream(),
        moving.at(),
        moving.needed().await?
    ));
    account.close()?;
    Ok(Exit::Done)
}

impl Move {
    async fn plan(args: &Args, settings: &Settings) -> anyhow::Result<Move> {
        if settings.nats.shared {
            bail!(UsageError(
                "a stream that others publish to (nats.shared) cannot be moved with its lane: stop the relay, make the copy with \
                 the means of nats-server, and run walrelay adopt there"
                    .to_owned()
            ));
        }
        let target = target(args, settings)?;
        let from = Side::of(settings.clone()).await?;
        let to = Side::of(target).await?;
        let nats = Some(to.servers()).filter(|there| *there != from.servers());
        if nats.is_none() && to.stream() == from.stream() {
            bail!(UsageError(format!(
                "--to-stream {}: the lane is there already",
                to.stream()
            )));
        }
        let info = stream::find(&from.nats, from.stream()).await?;
        let info = info.with_context(|| format!("there is no stream {}", from.stream()))?;
        let mut moving = Move {
            prefix: match nats {
                None => format!("walrelay-move.{}.", to.stream()),
                Some(_) => String::new(),
            },
            nats,
            created: info.created,
            is_sealed: info.config.sealed,
            stage: Stage::Begin,
            from,
            to,
        };
        moving.stage = moving.found().await?;
        moving.check_name()?;
        moving.check_dead_letters(moving.stage).await?;
        Ok(moving)
    }

    /// How far an earlier run has come.
    async fn found(&self) -> anyhow::Result<Stage> {
        let (from, to) = (self.from.stream(), self.to.stream());
        let here = self.record().await?.0;
        // There may be no stream for records yet.
        let there = match stream::find(&self.to.nats, stream::LANE_RECORD_STREAM).await? {
            Some(_) => self.to.lane.record().await?.record,
            None => None,
        };
        let there = there.map(|record| record.moved);
        // Whether the move is this one, and whether it has copied everything.
        let is_on_its_way = |there: &Option<Moved>| match there {
            Some(Moved::From {
                stream, created, ..
            }) => stream == from && *created == self.created,
            _ => false,
        };
        let is_whole = |there| matches!(there, &Some(Moved::From { is_whole: true, .. }));
        match (here.moved, there) {
            (None, None) => {
                self.check_target_is_free().await?;
                Ok(Stage::Begin)
            }
            (None, Some(there)) if is_on_its_way(&there) => Ok(Stage::Copying),
            // The lane was there before, and has left.
            (None, Some(Some(Moved::To { .. }))) => {
                ensure!(
                    stream::find(&self.to.nats, to).await?.is_none(),
                    UsageError(format!(
                        "{}: the lane was there before, and has left that stream behind: once nobody reads it any more, delete it \
                         ({}) and run this again, or give another name with --to-stream",
                        self.target(),
                        self.at_target(&format!("stream rm {to}"))
                    ))
                );
                Ok(Stage::Begin)
            }
            (Some(Moved::To { stream, nats }), _) if stream != to || nats != self.nats => bail!(
                "the lane has gone from stream {from} to {stream}{} already",
                record::at(nats.as_ref())
            ),
            (Some(Moved::To { .. }), Some(there)) if is_on_its_way(&there) => {
                Ok(if is_whole(&there) {
                    Stage::Copied
                } else {
                    Stage::Fenced
                })
            }
            (Some(Moved::To { .. }), Some(_)) => Ok(Stage::Done),
            (Some(Moved::To { .. }), None) => bail!(
                "the lane has left stream {from}, and its record at {to} has gone: walrelay adopt with the configuration of the \
                 one where it is to go on"
            ),
            (Some(Moved::From { stream, .. }), _) => bail!(
                "the lane is still on its way to stream {from}: end that move from {stream} first"
            ),
            (None, Some(_)) => bail!(UsageError(format!(
                "{}: a lane of this slot lives there, or is moved there from elsewhere: give another name with --to-stream",
                self.target()
            ))),
        }
    }

    /// Whether the target is to be made, or was made by `setup` as the move would, and never had a message.
    async fn check_target_is_free(&self) -> anyhow::Result<()> {
        let to = self.to.stream();
        let Some(found) = stream::find(&self.to.nats, to).await? else {
            return Ok(());
        };
        let other = match found.state.last_seq {
            0 if self.is_as_made(&found.config).await? => return Ok(()),
            0 => format!(
                "delete it ({}), since it is empty, and run this again, or give another name with --to-stream",
                self.at_target(&format!("stream rm {to}"))
            ),
            _ => "give another name with --to-stream".to_owned(),
        };
        bail!(UsageError(format!(
            "{}: there is such a stream already, and the move makes its own: {other}",
            self.target()
        )))
    }

    /// Whether it takes the old stream's subjects, and a relay's events.
    async fn is_as_made(&self, found: &StreamConfig) -> anyhow::Result<bool> {
        let sorted = |subjects: &[String]| {
            let mut subjects = subjects.to_vec();
            subjects.sort();
            subjects
        };
        let wanted = self.to.settings.nats.stream_settings(self.to.lane.slot());
        let fits = match stream_fit::plan(&self.to.nats, &wanted).await? {
            StreamPlan::Exists { findings, .. } => {
                (findings.iter()).all(|finding| finding.severity != StreamSeverity::Blocks)
            }
            StreamPlan::Create(_) => true,
        };
        let old = self.config_of_old().await?;
        Ok(fits && self.prefix.is_empty() && sorted(&found.subjects) == sorted(&old.subjects))
    }

    /// The lane's record at the old stream, and where it is stored.
    async fn record(&self) -> anyhow::Result<(LaneRecord, u64)> {
        let stored = self.from.lane.record().await?;
        let record = stored.record.with_context(|| {
            format!(
                "no relay has published to stream {} yet: there is nothing to move; change the configuration, and run walrelay \
                 setup",
                self.from.stream()
            )
        })?;
        if record.moved.is_none() {
            if let Some(halted) = &record.halted {
                bail!("the relay has halted: {}; {}", halted.reason, halted.remedy);
            }
            ensure!(
                !record.doubted && record.replaced.is_none(),
                "stream {} was seen to lose what it had acknowledged: walrelay verify and walrelay adopt first",
                self.from.stream()
            );
        }
        Ok((record, stored.sequence))
    }

    /// The target by the flags that say it.
    fn target(&self) -> String {
        let to = self.to.stream();
        match &self.nats {
            None => format!("--to-stream {to}"),
            Some(nats) => format!("--to-nats {nats}, stream {to}"),
        }
    }

    /// A command of `nats` about the target.
    fn at_target(&self, command: &str) -> String {
        command_line::nats(self.nats.as_deref(), command)
    }

    fn at(&self) -> String {
        record::at(self.nats.as_ref())
    }

    /// The servers that the lane leaves, where the target has others.
    fn origin(&self) -> Option<String> {
        self.nats.as_ref().map(|_| self.from.servers())
    }

    fn explain(&self, account: &mut Account) {
        let (from, to) = (self.from.stream(), self.to.stream());
        account.line(format_args!("lane    slot {}", self.from.lane.slot()));
        account.line(format_args!("from    stream {from}"));
        account.line(format_args!("to      stream {to}{}", self.at()));
        account.line(match self.stage {
            Stage::Begin => {
                "It makes that stream as this one is, copies the messages, and takes the lane there.".to_owned()
            }
            Stage::Copying => "An earlier run has begun to copy: it goes on behind that.".to_owned(),
            Stage::Fenced => {
                "The lane has left the old stream; what is left is copied, and the lane goes on there.".to_owned()
            }
            Stage::Copied => "Everything is copied: the lane goes on there.".to_owned(),
            Stage::Done => "The lane is there already.".to_owned(),
        });
        if self.is_sealed && self.stage < Stage::Done {
            account.line(format_args!(
                "Stream {from} is sealed, which took its age limit away: the new one has none until {} --max-age gives it one.",
                self.at_target(&format!("stream edit {to}"))
            ));
        }
        if self.stage < Stage::Fenced {
            account.line(format_args!(
                "Start a relay with {} once messages are copied: it waits until the lane is there.",
                self.keys_of_lane()
            ));
        }
    }

    async fn run(&self, lease: &Lease, shutdown: &Shutdown) -> anyhow::Result<()> {
        // One that was waited for may have come further.
        let stage = self.found().await?;
        if stage == Stage::Begin {
            self.announce().await?;
        }
        if stage <= Stage::Copying {
            self.make_target().await?;
            if stage == Stage::Copying {
                self.erase_what_is_gone(lease).await?;
            }
            tracing::info!("stream {} is there: messages are copied", self.to.stream());
            self.copy_history(lease, shutdown).await?;
        }
        // From here on it is a matter of moments, and stopping would leave the lane nowhere.
        if stage < Stage::Done {
            let sql = connect(&self.from.settings.postgres.conninfo).await?;
            let reader = self.reader(&sql).await?;
            let working = lease.working();
            working.begin(copying::BETWEEN);
            lease.renew().await?;
            self.check_dead_letters(stage.max(Stage::Copying)).await?;
            if stage < Stage::Copied {
                let last = self.fence().await?;
                tracing::info!("the lane has left stream {}", self.from.stream());
                self.copy_rest(lease, last).await?;
                tracing::info!("everything is copied");
            }
            self.take_subjects().await?;
            tracing::info!("stream {} takes the events", self.to.stream());
            self.arrive(&sql).await?;
            tracing::info!("the lane lives in stream {}", self.to.stream());
            release_slot(&sql, reader).await?;
        }
        Ok(())
    }
}

/// What a stream listens on once its subjects are those of another one on the same NATS.
pub(super) fn left_subject(stream: &str) -> String {
    format!("walrelay-moved.{stream}")
}

/// The settings of the relay that goes on.
fn target(args: &Args, settings: &Settings) -> anyhow::Result<Settings> {
    let mut at = settings.clone();
    if let Some(stream) = &args.to_stream {
        at.nats.stream.clone_from(stream);
    }
    if let Some(url) = &args.to_nats {
        let (servers, auth) = NatsAddress::parse_urls(url)
            .map_err(|error| UsageError(format!("--to-nats: {error}")))?;
        at.nats.connection.servers = servers;
        if auth != NatsAuth::None {
            at.nats.connection.login = auth.into();
        }
    }
    Ok(at)
}

/// Makes the stream of the lanes' records where there is none.
async fn make_lane_records(moving: &Move) -> anyhow::Result<()> {
    let plan = stream::plan_lane_records(&moving.to.nats, 1).await?;
    if let StreamPlan::Create(config) = plan {
        stream::create(&moving.to.nats, &config).await?;
    }
    Ok(())
}
