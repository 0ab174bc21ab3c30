//! `walrelay dead-letters`: the rows that could not be published.
//!
//! In: settings, a position. Out: the dead letters of the slot in the stream; a retry of one, or a person's permission to
//! skip the row at which `on_reject = "halt"` halted. Guarantees: a dead letter stays where it is; each is retried once;
//! a row is skipped only while no relay runs.

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde::Serialize;

use crate::cli::adopt::RELEASE_LIMIT;
use crate::cli::exit::Exit;
use crate::cli::stderr;
use crate::cli::stdout;
use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::pipeline::dead_letter::{self, DeadLetter};
use crate::pipeline::position::{
    KIND_DEAD_LETTER, KIND_HEADER, POSITION_HEADER, Position, REASON_HEADER, parse_header,
};
use crate::postgres::catalog::inspect_released;
use crate::postgres::client::connect;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

mod retry;

const EXAMPLES: &str = "\
Examples:
  walrelay dead-letters list                    all of the slot's that the stream still has
  walrelay dead-letters show 16/B374D848:3      one of them, whole
  walrelay dead-letters retry 16/B374D848:3     publish its row, as the table has it now or else as the dead letter has it
  walrelay dead-letters retry 16/B374D848:3 --set event_type=order.placed.v1
                                                the same, with a column mended
  walrelay dead-letters retry --all             all that have not been retried yet
  walrelay dead-letters skip 16/B374D848:3      let the row at which run has halted become a dead letter

Exit code 0: done. 1: there is no such dead letter, it cannot be published now either, or a relay is running
(skip).";

/// Rows that could not be published: list them, retry them, skip the one that the relay halts at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// A line for each dead letter.
    List {
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
        /// All that have not been retried yet.
        #[arg(long, conflicts_with = "position")]
        all: bool,
        /// Another value of a column, for this publication alone.
        #[arg(long, value_name = "COLUMN=VALUE", requires = "position", value_parser = assignment)]
        set: Vec<(String, String)>,
    },
    /// Let the row at which the relay halts become a dead letter, whatever of it does not fit.
    Skip {
        /// The position that the halt names.
        #[arg(value_name = "LSN:ORDINAL")]
        position: Position,
    },
}

/// A dead letter; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Letter {
    /// In the stream.
    sequence: u64,
    /// When the stream stored it.
    stored_at: String,
    #[serde(flatten)]
    body: DeadLetter,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let parts = text
        .split_once('=')
        .filter(|(column, _)| !column.is_empty());
    let (column, value) = parts.ok_or("write it as COLUMN=VALUE")?;
    Ok((column.to_owned(), value.to_owned()))
}

/// Runs the command.
///
/// # Errors
/// Postgres or NATS cannot be reached, or refuses.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    match args.action {
        Action::List { json } => list(&nats, settings, json).await,
        Action::Show { position, json } => show(&nats, settings, position, json).await,
        Action::Retry { position, set, .. } => retry::retry(&nats, settings, position, &set).await,
        Action::Skip { position } => skip(&nats, settings, position).await,
    }
}

async fn list(nats: &Admin, settings: &Settings, json: bool) -> Result<Exit, anyhow::Error> {
    let mut from = 1;
    let mut count = 0_u64;
    while let Some((_, letter)) = next(nats, settings, &mut from).await? {
        if !json && count == 0 {
            stdout::write(
                "SEQUENCE  POSITION              REASON         ID                                    EVENT TYPE\n",
            )?;
        }
        count += 1;
        let line = if json {
            serde_json::to_string(&letter)?
        } else {
            let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            format!(
                "{:>8}  {:<20}  {:<13}  {:<36}  {:?}",
                letter.sequence,
                letter.body.position,
                letter.body.reason,
                or_none(&letter.body.id),
                or_none(&letter.body.event_type)
            )
        };
        stdout::write(&format!("{line}\n"))?;
    }
    if !json && count == 0 {
        stderr::line(format_args!(
            "no dead letters of slot {}",
            settings.postgres.slot
        ));
    }
    Ok(Exit::Done)
}

async fn show(
    nats: &Admin,
    settings: &Settings,
    position: Position,
    json: bool,
) -> Result<Exit, anyhow::Error> {
    let letter = find(nats, settings, position).await?;
    if json {
        stdout::write(&format!("{}\n", serde_json::to_string(&letter)?))?;
        return Ok(Exit::Done);
    }
    let value = serde_json::to_value(&letter)?;
    let keys = value.as_object().context("a dead letter is an object")?;
    let mut text = String::new();
    for (key, value) in keys {
        text.push_str(&format!("{key:<14} {value}\n"));
    }
    stdout::write(&text)?;
    Ok(Exit::Done)
}

async fn find(nats: &Admin, settings: &Settings, position: Position) -> anyhow::Result<Letter> {
    let mut from = 1;
    while let Some((at, letter)) = next(nats, settings, &mut from).await? {
        if at == position {
            return Ok(letter);
        }
    }
    bail!(
        "stream {} has no dead letter of slot {} at {position}: walrelay dead-letters list shows what it has",
        settings.nats.stream,
        settings.postgres.slot
    )
}

/// The next dead letter at or behind sequence `from`, which is moved behind it.
async fn next(
    nats: &Admin,
    settings: &Settings,
    from: &mut u64,
) -> anyhow::Result<Option<(Position, Letter)>> {
    let slot = &settings.postgres.slot;
    loop {
        let request = serde_json::json!({
            "seq": *from,
            "next_by_subj": dead_letter::subject(slot),
        });
        let subject = format!(
            "{}.STREAM.MSG.GET.{}",
            nats.api_prefix(),
            settings.nats.stream
        );
        let answer = nats
            .request(subject, request.to_string().into())
            .await
            .with_context(|| {
                format!(
                    "cannot ask stream {} for dead letters",
                    settings.nats.stream
                )
            })?;
        let Some(message) = StoredMessage::parse(&answer.payload)? else {
            return Ok(None);
        };
        *from = message.seq + 1;
        let header = |name| {
            message
                .header(name)
                .and_then(|value| std::str::from_utf8(value).ok())
        };
        let position = header(POSITION_HEADER)
            .and_then(|value| parse_header(value).ok())
            .filter(|(of_slot, _)| of_slot == slot)
            .map(|(_, position)| position);
        // Others may publish on the subject; only what a relay wrote is a dead letter.
        if header(KIND_HEADER) == Some(KIND_DEAD_LETTER)
            && let Some(position) = position
            && let Ok(mut body) = serde_json::from_slice::<DeadLetter>(&message.data)
        {
            body.position = position.to_string();
            body.reason = header(REASON_HEADER).unwrap_or_default().to_owned();
            let letter = Letter {
                sequence: message.seq,
                stored_at: message.time,
                body,
            };
            return Ok(Some((position, letter)));
        }
    }
}

/// Writes into the lane record that the row may become a dead letter.
async fn skip(
    nats: &Admin,
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
    let lane = LaneClient::new(nats, &settings.nats.stream, slot)?;
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
