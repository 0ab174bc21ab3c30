//! `walrelay dead-letters`: the rows that could not be published.
//!
//! In: settings, a position. Out: the dead letters of the slot in the stream and what has become of each, and of those of shares that
//! are no more and whose rows are this one's; a retry of one, or that nobody wants it; or a person's permission to skip the row at which `on_reject = "halt"` halted. Guarantees: a dead
//! letter stays where it is; each is retried once; a row is skipped only while no relay runs.

use anyhow::{Context as _, bail};
use clap::{Subcommand, builder::NonEmptyStringValueParser};

use crate::cli::adopt::RELEASE_LIMIT;
use crate::cli::elsewhere::Elsewhere;
use crate::cli::exit::{Exit, UsageError};
use crate::cli::{stderr, stdout};
use crate::nats::admin::Admin;
use crate::pipeline::position::Position;
use crate::postgres::catalog::inspect_released;
use crate::postgres::client::connect;
use crate::relay::lane_client::LaneClient;
use crate::relay::lane_records::{self, was_divided};
use crate::relay::settings::Settings;
use crate::relay::taken_over::{self, TakenOver};

mod close;
pub(in crate::cli) mod letters;
mod list;
mod published;
mod set;
mod taken;

use close::Action as Closing;
use letters::Letters;

const EXAMPLES: &str = "\
Examples:
  walrelay dead-letters list                    the slot's that are open
  walrelay dead-letters list --all              also those that were retried or discarded
  walrelay dead-letters show 16/B374D848:3      one of them, whole
  walrelay dead-letters retry 16/B374D848:3     publish its row, as the table has it now or
                                                else as the dead letter has it
  walrelay dead-letters retry 16/B374D848:3 --set event_type=order.placed.v1
                                                the same, with a column mended
  walrelay dead-letters retry --all             all that are open
  walrelay dead-letters discard 16/B374D848:3 --reason 'a test'
                                                give it up; retry still publishes it
  walrelay dead-letters skip 16/B374D848:3      let the row at which run has halted become one

A dead letter stays in the stream. A small message behind it says that it was retried or
discarded, when, and why: so the stream alone tells which are open. verify ends with 1 while one
is.

Exit code 0: done. 1: there is no such dead letter, it was retried or discarded before, it cannot
be published now either, or a relay is running (skip).";

/// Rows that could not be published: list them, retry them, skip the one that the relay halts at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// A line for each dead letter that is open.
    List {
        /// Also those that were retried or discarded, and when and why.
        #[arg(long)]
        all: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// One dead letter.
    Show {
        /// Where it stands.
        #[arg(value_name = "LSN:ORDINAL")]
        position: Position,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Publish the row, as the table has it now or else as the dead letter has it, marked as a retry, behind the stream's
    /// end. A relay that is running on the stream starts a new epoch for it.
    Retry {
        /// Where the dead letter stands.
        #[arg(value_name = "LSN:ORDINAL", required_unless_present = "all")]
        position: Option<Position>,
        /// All that are open.
        #[arg(long, conflicts_with = "position")]
        all: bool,
        /// Another value of a column, for this publication alone, as Postgres takes it for the column's type; not of the id, unless
        /// the row has none.
        #[arg(long, value_name = "COLUMN=VALUE", conflicts_with = "all", value_parser = assignment)]
        set: Vec<(String, String)>,
    },
    /// Say that nobody wants the event of a dead letter any more. Nothing of it is removed.
    Discard {
        /// Where the dead letter stands.
        #[arg(value_name = "LSN:ORDINAL", required_unless_present = "all")]
        position: Option<Position>,
        /// All that are open.
        #[arg(long, conflicts_with = "position")]
        all: bool,
        /// Why, for those who read the list later.
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        reason: String,
    },
    /// Let the row at which the relay halts become a dead letter, whatever of it does not fit.
    Skip {
        /// The position that the halt names.
        #[arg(value_name = "LSN:ORDINAL")]
        position: Position,
    },
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let parts = text
        .split_once('=')
        .filter(|(column, _)| !column.is_empty());
    let (column, value) = parts.ok_or("write it as COLUMN=VALUE")?;
    Ok((column.to_owned(), value.to_owned()))
}

/// Runs the command; `load` gives the settings of a share that is no more.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub(in crate::cli) async fn execute(
    args: Args,
    settings: &Settings,
    load: impl Fn(&TakenOver) -> Result<Settings, anyhow::Error>,
) -> Result<Exit, anyhow::Error> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let lanes = Lanes::find(&nats, settings, load).await?;
    match args.action {
        Action::List { all, json } => lanes.list(all, json).await,
        Action::Show { position, json } => {
            let lane = lanes.client(lanes.with(position).await?)?;
            list::show(&lane, position, json).await
        }
        Action::Retry { position, set, .. } => lanes.close(position, Closing::Retry { set }).await,
        Action::Discard {
            position, reason, ..
        } => lanes.close(position, Closing::Discard { reason }).await,
        Action::Skip { position } => skip(&lanes.client(settings)?, settings, position).await,
    }
}

/// The lane, and behind it those whose shares are no more and whose rows are its own now, where they have dead letters.
struct Lanes<'a> {
    nats: &'a Admin,
    own: &'a Settings,
    taken_over: Vec<Settings>,
    elsewhere: Option<Elsewhere>,
}

impl<'a> Lanes<'a> {
    async fn find(
        nats: &'a Admin,
        own: &'a Settings,
        load: impl Fn(&TakenOver) -> Result<Settings, anyhow::Error>,
    ) -> anyhow::Result<Self> {
        let (mut taken_over, mut elsewhere) = (Vec::new(), None);
        if was_divided(nats, &own.postgres).await? {
            let client = connect(&own.postgres.conninfo).await?;
            let records = lane_records::of_shares(nats, &client, &own.postgres).await?;
            elsewhere = Elsewhere::by(&records, own);
            for lane in taken_over::by(own, &client, nats).await? {
                let letters = Letters::of(&lane, nats).await?;
                if letters.is_some_and(|letters| !letters.all().is_empty()) {
                    let mut settings = load(&lane)?;
                    if own.postgres.share.is_none() {
                        // Of a stream without {share} it cannot tell whether the shares had one each.
                        settings.nats.shared = own.nats.shared;
                    }
                    taken_over.push(settings);
                }
            }
        }
        Ok(Lanes {
            nats,
            own,
            taken_over,
            elsewhere,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Settings> {
        std::iter::once(self.own).chain(&self.taken_over)
    }

    fn client(&self, lane: &Settings) -> anyhow::Result<LaneClient> {
        let (stream, slot) = (&lane.nats.stream, &lane.postgres.slot);
        Ok(LaneClient::new(self.nats, stream, slot)?)
    }

    async fn list(&self, all: bool, json: bool) -> Result<Exit, anyhow::Error> {
        list::list(&self.client(self.own)?, all, json).await?;
        for lane in &self.taken_over {
            let (slot, stream) = (&lane.postgres.slot, &lane.nats.stream);
            stderr::line(format_args!(
                "of slot {slot} in stream {stream}, whose share is no more:"
            ));
            list::list(&self.client(lane)?, all, json).await?;
        }
        if let Some(elsewhere) = &self.elsewhere {
            stderr::line(format_args!(
                "{elsewhere} may have dead letters too, of shares that were no more when walrelay move brought the lanes from there: {} \
                 brings them here",
                elsewhere.bring()
            ));
        }
        Ok(Exit::Done)
    }

    /// The lane whose dead letter at this position is meant: one that is open before one that is not.
    async fn with(&self, position: Position) -> anyhow::Result<&Settings> {
        let (mut open, mut closed) = (Vec::new(), None);
        for lane in self.all().filter(|_| !self.taken_over.is_empty()) {
            let letters = Letters::read(&self.client(lane)?).await?;
            if letters
                .open()
                .any(|letter| letter.place.position == position)
            {
                open.push(lane);
            } else if letters.find(position).is_ok() {
                closed.get_or_insert(lane);
            }
        }
        match &open[..] {
            [] => Ok(closed.unwrap_or(self.own)),
            [lane] => Ok(lane),
            [.., last] => {
                let share = last.postgres.any_share();
                let (slot, count) = (&last.postgres.slot, share.count);
                let which = match share.part() {
                    Some(number) => format!("--share {number}"),
                    None => format!("--stream {}", last.nats.stream),
                };
                let why = format!(
                    "several slots have an open dead letter at {position}: WALRELAY_RELAY_SHARES={count} with {which} means that of \
                     {slot} alone"
                );
                Err(UsageError(why).into())
            }
        }
    }

    async fn close(
        &self,
        position: Option<Position>,
        action: Closing,
    ) -> Result<Exit, anyhow::Error> {
        if let Some(at) = position {
            return self.close_of(self.with(at).await?, position, action).await;
        }
        let mut gravest = Exit::Done;
        for lane in self.all() {
            gravest = gravest.graver(self.close_of(lane, None, action.clone()).await?);
        }
        Ok(gravest)
    }

    /// Between a lane of all rows and shares, this configuration need not tell on which subject the other one published.
    async fn close_of(
        &self,
        lane: &Settings,
        position: Option<Position>,
        action: Closing,
    ) -> Result<Exit, anyhow::Error> {
        let closed = close::close(self.nats, lane, position, action).await;
        let (slot, stream) = (&lane.postgres.slot, &lane.nats.stream);
        let its = match (lane.postgres.part(), self.own.postgres.part()) {
            (None, Some(_)) => {
                format!("WALRELAY_RELAY_SHARES=1 --stream {stream} and its --subject")
            }
            (Some(share), None) => {
                format!(
                    "relay.shares, nats.stream and nats.subject as they were, and --share {share}"
                )
            }
            _ => return closed,
        };
        closed.with_context(|| {
            format!("slot {slot}, whose lane is no more: with {its} this command is about that lane alone")
        })
    }
}

/// Writes into the lane record that the row may become a dead letter.
async fn skip(
    lane: &LaneClient,
    settings: &Settings,
    position: Position,
) -> Result<Exit, anyhow::Error> {
    let slot = &settings.postgres.slot;
    let client = connect(&settings.postgres.conninfo).await?;
    let inspection = inspect_released(&client, &settings.postgres, RELEASE_LIMIT).await?;
    if let Some(pid) = inspection.slot.as_ref().and_then(|slot| slot.active_pid) {
        bail!(
            "replication slot \"{slot}\" is in use by process {pid} of Postgres: a relay that halts at {position} has ended; \
             stop the one that runs first"
        );
    }
    let stored = lane.record().await?;
    let mut record = stored.record.with_context(|| {
        format!("there is no lane record of slot {slot}: walrelay run writes it before it can halt at a row")
    })?;
    if let Some(at) = record.position.filter(|at| *at >= position) {
        bail!("the lane is already at {at}, beyond {position}");
    }
    if record.skips.contains(&position) {
        stdout::write(&format!("{position} is already marked to be skipped\n"))?;
        return Ok(Exit::Done);
    }
    record.skips.push(position);
    lane.store_record(record, stored.sequence).await?;
    stdout::write(&format!(
        "{position} may be skipped: walrelay run makes it a dead letter if it still cannot be published, and goes on\n"
    ))?;
    Ok(Exit::Done)
}
