//! `walrelay dead-letters list` and `show`.
//!
//! In: a lane. Out: its dead letters on standard output, as text or JSON. Reads only.

use anyhow::Context as _;
use serde::Serialize;

use super::letters::{Letters, Standing};
use crate::cli::exit::Exit;
use crate::cli::{stderr, stdout};
use crate::pipeline::dead_letter::DeadLetter;
use crate::pipeline::dead_letter::state::State;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::Position;
use crate::pipeline::value::push_commit_time;
use crate::relay::lane_client::LaneClient;
use crate::relay::stored_letter::StoredLetter;

/// A dead letter; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Letter {
    /// In the stream; none where that has it no more.
    sequence: Option<u64>,
    /// When the stream stored it.
    stored_at: Option<String>,
    state: State,
    /// When it was retried or discarded.
    state_at: Option<String>,
    /// Why it was discarded.
    state_reason: Option<String>,
    /// The further table of the lane that its row is of; none for the lane's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<String>,
    #[serde(flatten)]
    body: DeadLetter,
}

pub(super) async fn list(lane: &LaneClient, all: bool, json: bool) -> Result<Exit, anyhow::Error> {
    let letters = Letters::read(lane).await?;
    let wanted: Vec<&Standing> = match all {
        true => letters.all().iter().collect(),
        false => letters.open().collect(),
    };
    let with_table = wanted.iter().any(|letter| letter.table.is_some());
    if !json && !wanted.is_empty() {
        let more = if all { "  STATE" } else { "" };
        let table = if with_table { "TABLE  " } else { "" };
        stdout::write(&format!(
            "SEQUENCE  POSITION              REASON         {table}ID                                    EVENT TYPE{more}\n"
        ))?;
    }
    for standing in &wanted {
        // Removed since it was read.
        let Some(letter) = letter(lane, standing).await? else {
            continue;
        };
        let line = match json {
            true => serde_json::to_string(&letter)?,
            false => line(&letter, with_table, all),
        };
        stdout::write(&format!("{line}\n"))?;
    }
    let gone = wanted
        .iter()
        .filter(|standing| standing.is_gone && standing.state == State::Open)
        .count();
    if !json && gone > 0 {
        stderr::line(format_args!(
            "{gone} {} gone from the stream, whose limits or somebody removed them: walrelay dead-letters retry publishes their rows \
             as the table has them",
            if gone == 1 { "is" } else { "are" }
        ));
    }
    if !json && wanted.is_empty() {
        let slot = lane.slot();
        match letters.all().len() {
            0 => stderr::line(format_args!("no dead letters of slot {slot}")),
            closed => stderr::line(format_args!(
                "no open dead letters of slot {slot}; {closed} are retried or discarded: walrelay dead-letters list --all"
            )),
        }
    }
    Ok(Exit::Done)
}

fn line(letter: &Letter, with_table: bool, with_state: bool) -> String {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let table = match with_table {
        true => format!("{}  ", or_none(&letter.table)),
        false => String::new(),
    };
    let event_type = match &letter.body.event_type {
        Some(event_type) => format!("{event_type:?}"),
        None => "-".to_owned(),
    };
    let mut line = format!(
        "{:>8}  {:<20}  {:<13}  {table}{:<36}  {event_type}",
        letter
            .sequence
            .map_or_else(|| "gone".to_owned(), |sequence| sequence.to_string()),
        letter.body.position,
        letter.body.reason,
        or_none(&letter.body.id)
    );
    if with_state {
        line.push_str(&format!("  {}", letter.state.name()));
        if let Some(at) = &letter.state_at {
            line.push_str(&format!(" {at}"));
        }
        if let Some(reason) = &letter.state_reason {
            line.push_str(&format!(" {reason:?}"));
        }
    }
    line
}

pub(super) async fn show(
    lane: &LaneClient,
    position: Position,
    json: bool,
) -> Result<Exit, anyhow::Error> {
    let letters = Letters::read(lane).await?;
    let letter = letter(lane, letters.find(position)?).await?;
    let letter = letter.with_context(|| format!("{position} was removed from the stream"))?;
    if json {
        stdout::write(&format!("{}\n", serde_json::to_string(&letter)?))?;
        return Ok(Exit::Done);
    }
    let value = serde_json::to_value(&letter)?;
    let keys = value.as_object().context("a dead letter is an object")?;
    let mut text = String::new();
    for (key, value) in keys {
        match value
            .as_i64()
            .filter(|_| key == "committed_at_us")
            .and_then(moment)
        {
            Some(at) => text.push_str(&format!("{:<14} \"{at}\"\n", "committed_at")),
            None => text.push_str(&format!("{key:<14} {value}\n")),
        }
    }
    stdout::write(&text)?;
    Ok(Exit::Done)
}

/// A commit's time for a person; none where a replication origin has set none.
fn moment(us: i64) -> Option<String> {
    let mut text = Vec::new();
    push_commit_time(&mut text, us).ok().filter(|()| us > 0)?;
    String::from_utf8(text).ok()
}

/// The letter itself; none where the stream no longer has it.
async fn letter(lane: &LaneClient, standing: &Standing) -> anyhow::Result<Option<Letter>> {
    if standing.is_gone {
        return Ok(Some(Letter {
            sequence: None,
            stored_at: None,
            state: standing.state,
            state_at: standing.state_at.clone(),
            state_reason: standing.state_reason.clone(),
            table: standing.table.clone(),
            body: DeadLetter {
                position: standing.place.position.to_string(),
                id: standing.id.clone(),
                reason: "-".to_owned(),
                ..DeadLetter::default()
            },
        }));
    }
    let lookup = Lookup::Message(standing.place.sequence);
    let Some(message) = lane.message(lookup).await? else {
        return Ok(None);
    };
    let stored = StoredLetter::of(message, standing.place.position);
    Ok(Some(Letter {
        sequence: Some(stored.sequence),
        stored_at: Some(stored.stored_at),
        state: standing.state,
        state_at: standing.state_at.clone(),
        state_reason: standing.state_reason.clone(),
        table: standing.table.clone(),
        body: stored.letter,
    }))
}
