//! The aggregate's messages in a stream.
//!
//! In: a stream, which aggregate. Out: the sequences of its messages, and these messages erased. Guarantees: the stream is read
//! once, a message at a time; a message that is gone already is no error.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use serde::Serialize;

use super::aggregate::{AggregateId, Shown, shown_anywhere};
use super::rows::{Rowless, Rows};
use super::streams::Place;
use super::tables::Others;
use crate::bulk::replayed;
use crate::cli::exit::UsageError;
use crate::counted::counted;
use crate::nats::admin::Admin;
use crate::nats::stored::StoredMessages;
use crate::nats::stream;
use crate::pipeline::dead_letter::DeadLetter;
use crate::pipeline::dead_letter::remembered::Kept;
use crate::pipeline::event_id::ID_HEADERS;
use crate::pipeline::mapping::Extra;
use crate::pipeline::position::{
    KIND_ADOPTED, KIND_DEAD_LETTER, KIND_DISCARDED, KIND_ERASED, KIND_FENCED, KIND_HEADER,
    KIND_MOVED, KIND_RETRIED, REPLAY_HEADER, TABLE_HEADER, slot_of,
};
use crate::pipeline::shared_end_search::FENCE_PREFIX;
use crate::pipeline::stored_event::StoredEvent;
use crate::relay::settings::Settings;

/// By what a message is known as the aggregate's.
#[derive(Debug)]
pub(super) struct Wanted {
    slot: String,
    /// Of shares that are no more; what they had has no place in a lane any more.
    past_slots: BTreeSet<String>,
    /// Others write to the stream too, of other tables with ids of their own.
    is_shared: bool,
    /// How messages may show the aggregate.
    shown: Shown,
    /// Messages show it in no other way.
    is_exact: bool,
    /// The further table of the lane that its rows are in; none for the lane's own.
    table: Option<String>,
    /// Tables that are looked at by themselves; messages of all others are looked for too. None where they are not.
    beside: Option<Beside>,
    /// The streams of the lane: of what was replayed from there.
    lanes: Vec<String>,
    /// Of its rows: they count where a message does not tell its aggregate, since other rows may have had the same ids before.
    ids: BTreeSet<String>,
    /// Its column.
    column: String,
    /// Headers that tell the aggregate.
    headers: Vec<String>,
    /// Headers that the configuration makes of other columns.
    other_headers: Vec<String>,
}

/// By what messages of tables that are not looked at are known as the aggregate's.
#[derive(Debug)]
struct Beside {
    others: Others,
    /// How messages may show the aggregate.
    shown: Shown,
}

/// What became of a stream's messages; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Erased {
    stream: String,
    /// See [`Place::is_mixed`].
    #[serde(skip)]
    is_mixed: bool,
    /// Sequences of events.
    events: Vec<u64>,
    /// Sequences of dead letters. What was noted about them tells no more than the event's id, and stays.
    dead_letters: Vec<u64>,
    /// Those of the events that have no place in the lane.
    #[serde(skip)]
    outside: Vec<u64>,
    /// How many of these are of each table that the configuration does not name.
    #[serde(skip)]
    pub(super) of_unnamed: BTreeMap<String, u64>,
    /// How many messages of each such table, and of rows that are not there, do not tell their aggregate.
    #[serde(skip)]
    pub(super) untold: BTreeMap<String, u64>,
    /// How many of these have the aggregate's id in a header that the configuration does not name, by header.
    #[serde(skip)]
    pub(super) in_header: BTreeMap<String, u64>,
}

/// What a message of the aggregate is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// An event at its place in the lane.
    Event,
    /// One that was published outside of the lane.
    Outside,
    DeadLetter,
    /// Of a table that the configuration does not name, and it does not tell its aggregate.
    Untold,
    /// It does not tell its aggregate, and its row would, if there is one.
    OfRow(Rowless),
}

impl Wanted {
    pub(super) fn new(
        aggregate: &AggregateId,
        ids: BTreeSet<String>,
        settings: &Settings,
        lanes: Vec<String>,
        past_slots: BTreeSet<String>,
    ) -> Self {
        let mapping = settings.mapping();
        let column = mapping.columns.aggregate_id.column().unwrap_or_default();
        let all = mapping.message.headers.iter();
        let (headers, others): (Vec<_>, Vec<_>) = all.partition(|extra| extra.column == column);
        let names = |extras: Vec<&Extra>| extras.iter().map(|extra| extra.name.clone()).collect();
        Wanted {
            slot: settings.postgres.slot.clone(),
            past_slots,
            is_shared: settings.nats.shared,
            shown: aggregate.shown(),
            is_exact: aggregate.is_exact,
            table: mapping.message.table.clone(),
            beside: None,
            ids,
            lanes,
            column: column.to_owned(),
            headers: names(headers),
            other_headers: names(others),
        }
    }

    /// And by these headers, which told it before.
    pub(super) fn also_by(mut self, headers: &[String]) -> Self {
        self.headers.extend_from_slice(headers);
        self
    }

    /// And messages of tables that are not looked at, by the aggregate as a person gave it.
    pub(super) fn beside(mut self, others: &Others, given: &str) -> Self {
        self.beside = Some(Beside {
            others: others.clone(),
            shown: shown_anywhere(given),
        });
        self
    }

    /// Whether a dead letter that is kept in mind is of one of the rows.
    pub(super) fn is_of_row(&self, letter: &Kept) -> bool {
        letter.table == self.table && letter.id.as_ref().is_some_and(|id| self.ids.contains(id))
    }

    /// What the message is, if it is the aggregate's.
    fn find(&self, headers: Option<&HeaderMap>, body: &[u8], is_mixed: bool) -> Option<Found> {
        let header = |name: &str| Some(headers?.get(name)?.as_str().to_owned());
        let slot = slot_of(|name| Some(headers?.get(name)?.as_str()));
        // A replay of the table has no place in a lane.
        let replayed = header(REPLAY_HEADER);
        let slot = slot.or_else(|| replayed::slot_of_table(replayed.as_deref()?));
        let is_past = slot.is_some_and(|slot| self.past_slots.contains(slot));
        let is_own = match slot {
            Some(slot) => slot == self.slot,
            None if self.is_shared => false,
            None => !is_mixed || self.is_replayed(replayed.as_deref()),
        };
        if !is_own && !is_past {
            return None;
        }
        let table = header(TABLE_HEADER);
        let beside = match table == self.table {
            true => None,
            false => match &self.beside {
                Some(beside) if !beside.others.looked_at.contains(&table) => Some(beside),
                _ => return None,
            },
        };
        let kind = header(KIND_HEADER);
        let what = match kind.as_deref() {
            None if is_past => Found::Outside,
            None => Found::Event,
            Some(KIND_DEAD_LETTER) => Found::DeadLetter,
            Some(
                KIND_RETRIED | KIND_DISCARDED | KIND_ERASED | KIND_FENCED | KIND_ADOPTED
                | KIND_MOVED,
            ) => {
                return None;
            }
            Some(_) => Found::Outside,
        };
        let (id, aggregate_id) = if what == Found::DeadLetter {
            let letter: DeadLetter = serde_json::from_slice(body).unwrap_or_default();
            let row = letter.row.as_ref();
            if row.and_then(|row| row.get(&self.column)) == Some(&None) {
                // Of no aggregate.
                return None;
            }
            (letter.id, letter.aggregate_id)
        } else {
            let event = StoredEvent::read(header, body);
            (event.id, event.aggregate_id)
        };
        if let Some(beside) = beside {
            let is_named = beside.others.named.contains(&table);
            return match aggregate_id {
                Some(told) if what == Found::DeadLetter => {
                    beside.shown.is_in_letter(&told).then_some(what)
                }
                Some(told) => beside.shown.is(&told).then_some(what),
                None => (!is_named).then_some(Found::Untold),
            };
        }
        let tells = match aggregate_id {
            Some(told) if what == Found::DeadLetter => Some(self.shown.is_in_letter(&told)),
            Some(told) => Some(self.shown.is(&told)),
            None => {
                let told = self.headers.iter().filter_map(|name| header(name));
                let told: Vec<bool> = told.filter_map(|told| self.told_by_header(&told)).collect();
                (!told.is_empty()).then(|| told.contains(&true))
            }
        };
        let is_found = match tells {
            Some(true) => true,
            Some(false) if self.is_exact => false,
            _ => id.as_ref().is_some_and(|id| self.ids.contains(id)),
        };
        let is_told = tells.is_some() && self.is_exact;
        match is_found {
            true => Some(what),
            false => (!is_told).then(|| {
                Found::OfRow(Rowless {
                    id,
                    in_header: headers.map_or_else(Vec::new, |headers| self.in_header(headers)),
                })
            }),
        }
    }

    /// The headers that have the aggregate's id, of those that the configuration does not name.
    fn in_header(&self, headers: &HeaderMap) -> Vec<String> {
        let is_own = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.starts_with("nats-") || name.starts_with("walrelay-")
        };
        let is_named = |name: &str| {
            let named = self.headers.iter().chain(&self.other_headers);
            ID_HEADERS.contains(&name) || named.into_iter().any(|it| it == name)
        };
        let mut found = Vec::new();
        for (name, values) in headers.iter() {
            let name: &str = name.as_ref();
            let mut told = values
                .iter()
                .map(|value| self.told_by_header(value.as_str()));
            if !is_own(name) && !is_named(name) && told.any(|told| told == Some(true)) {
                found.push(name.to_owned());
            }
        }
        found
    }

    /// Whether a message was replayed from one of the lane's streams.
    fn is_replayed(&self, mark: Option<&str>) -> bool {
        let source = mark.and_then(replayed::source_of);
        source.is_some_and(|source| self.lanes.iter().any(|stream| stream == source))
    }

    /// Whether a header's value is the aggregate; none where it cannot be told.
    fn told_by_header(&self, told: &str) -> Option<bool> {
        // Where headers are JSON, a text is in quotes.
        let unquoted: Option<String> = match told.starts_with('"') {
            true => serde_json::from_str(told).ok(),
            false => None,
        };
        if self.shown.is(told) || unquoted.is_some_and(|told| self.shown.is(&told)) {
            return Some(true);
        }
        // Readers take blanks off the ends of a header's value.
        let is_trimmed = self.shown.texts.iter().any(|id| id.trim() == told);
        (!is_trimmed).then_some(false)
    }
}

/// Makes sure that `--also-header` names none that the configuration makes of another column.
///
/// # Errors
/// It does.
pub(super) fn check_headers(names: &[String], settings: &Settings) -> Result<(), UsageError> {
    let mapping = settings.mapping();
    let column = mapping.columns.aggregate_id.column();
    for extra in &mapping.message.headers {
        if names.contains(&extra.name) && Some(extra.column.as_str()) != column {
            return Err(UsageError(format!(
                "--also-header {}: message.headers makes it of column {}, so it tells no aggregate",
                extra.name, extra.column
            )));
        }
    }
    Ok(())
}

impl Erased {
    pub(super) fn new(Place { stream, is_mixed }: Place) -> Self {
        Erased {
            stream,
            is_mixed,
            events: Vec::new(),
            dead_letters: Vec::new(),
            outside: Vec::new(),
            of_unnamed: BTreeMap::new(),
            untold: BTreeMap::new(),
            in_header: BTreeMap::new(),
        }
    }

    fn count(&mut self, wanted: &Wanted, found: &Found, headers: Option<&HeaderMap>) {
        let table = headers.and_then(|headers| headers.get(TABLE_HEADER));
        let Some(table) = table.map(|table| table.as_str().to_owned()) else {
            return;
        };
        let others = wanted.beside.as_ref().map(|beside| &beside.others);
        let of_table = Some(table.clone());
        if others.is_some_and(|others| !others.named.contains(&of_table)) {
            let counts = match found {
                Found::Untold => &mut self.untold,
                _ => &mut self.of_unnamed,
            };
            *counts.entry(table).or_default() += 1;
        }
    }

    /// Where it is, with nothing found yet.
    pub(super) fn place(&self) -> Place {
        Place {
            stream: self.stream.clone(),
            is_mixed: self.is_mixed,
        }
    }

    pub(super) fn stream(&self) -> &str {
        &self.stream
    }

    /// Adds what another lane had in the same stream.
    pub(super) fn add(&mut self, other: Erased) {
        self.events.extend(other.events);
        self.dead_letters.extend(other.dead_letters);
        for (counts, others) in [
            (&mut self.of_unnamed, other.of_unnamed),
            (&mut self.untold, other.untold),
            (&mut self.in_header, other.in_header),
        ] {
            for (table, count) in others {
                *counts.entry(table).or_default() += count;
            }
        }
    }

    /// Whether there is a dead letter of the aggregate at this sequence.
    pub(super) fn has_letter(&self, sequence: u64) -> bool {
        self.dead_letters.contains(&sequence)
    }

    /// The last one that has a place in the lane.
    pub(super) fn last_in_lane(&self) -> Option<u64> {
        let events = self.events.iter();
        let events = events.filter(|sequence| !self.outside.contains(sequence));
        events.chain(&self.dead_letters).max().copied()
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<u64> {
        self.events.iter().chain(&self.dead_letters).max().copied()
    }

    pub(super) fn summary(&self) -> String {
        let letters = match self.dead_letters.len() {
            0 => String::new(),
            count => format!(", {}", counted(count as u64, "dead letter", "dead letters")),
        };
        let events = counted(self.events.len() as u64, "event", "events");
        format!("{events}{letters}")
    }
}

/// Finds the aggregate's messages among those that the stream has now.
///
/// # Errors
/// It cannot be read.
pub(super) async fn find(
    nats: &Admin,
    wanted: &Wanted,
    rows: Rows<'_>,
    found: &mut Erased,
) -> anyhow::Result<()> {
    let info = stream::find(nats, &found.stream).await?;
    let info = info.with_context(|| format!("there is no stream {}", found.stream))?;
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        ..OrderedConfig::default()
    };
    let mut messages = StoredMessages::from(nats, &found.stream, config).await?;
    let mut rowless = rows.counting();
    while messages.left() > 0 {
        let (sequence, message) = messages.next().await?;
        if sequence > info.state.last_seq {
            break;
        }
        // A shared stream's lanes have such messages, which tell places alone.
        if message.subject.starts_with(FENCE_PREFIX) {
            continue;
        }
        let headers = message.headers.as_ref();
        let is = wanted.find(headers, &message.payload, found.is_mixed);
        if let Some(is) = &is {
            found.count(wanted, is, headers);
        }
        match is {
            Some(Found::OfRow(event)) => rowless.take(event).await?,
            Some(Found::DeadLetter) => found.dead_letters.push(sequence),
            Some(Found::Event) => found.events.push(sequence),
            Some(Found::Outside) => {
                found.events.push(sequence);
                found.outside.push(sequence);
            }
            Some(Found::Untold) | None => {}
        }
    }
    let (table, count, in_header) = rowless.end().await?;
    if count > 0 {
        *found.untold.entry(table).or_default() += count;
        for (header, count) in in_header {
            *found.in_header.entry(header).or_default() += count;
        }
    }
    Ok(())
}

/// Has nats-server overwrite what was found.
///
/// # Errors
/// It refuses.
pub(super) async fn erase(nats: &Admin, found: &Erased, erased: &mut Erased) -> anyhow::Result<()> {
    for (table, count) in &found.of_unnamed {
        *erased.of_unnamed.entry(table.clone()).or_default() += count;
    }
    // What is left stays, each time it is looked for.
    erased.untold.clone_from(&found.untold);
    erased.in_header.clone_from(&found.in_header);
    for sequence in &found.events {
        stream::erase_message(nats, &found.stream, *sequence).await?;
        erased.events.push(*sequence);
    }
    for sequence in &found.dead_letters {
        stream::erase_message(nats, &found.stream, *sequence).await?;
        erased.dead_letters.push(*sequence);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
