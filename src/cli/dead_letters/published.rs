//! Which dead letters have their events in the stream already.
//!
//! In: a lane's stream, the dead letters that are meant. Out: where a retry of one stands; and where its row's event does, whoever of
//! the lane has published it. Guarantee: the stream is read once; a message of another lane, of another table, or of an earlier row
//! with the id, is no such event.

use std::collections::{BTreeMap, HashMap};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};

use super::letters::Standing;
use crate::bulk::rows::Looked;
use crate::nats::admin::Admin;
use crate::nats::stored::{StoredMessages, header};
use crate::pipeline::event_id;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_HEADER, KIND_RETRY, POSITION_HEADER, Position, RETRY_HEADER, TABLE_HEADER,
    parse_header, slot_of,
};
use crate::pipeline::tables::Former;
use crate::relay::lane_client::LaneClient;
use crate::relay::open::formers;
use crate::relay::settings::Settings;

/// An event that the stream has.
pub(super) struct Event {
    pub(super) id: String,
    /// The further table of the lane that its row is of.
    pub(super) table: Option<String>,
    /// Where its row, or its row's dead letter, stands in the lane; none for a backfill.
    pub(super) position: Option<Position>,
}

/// What tells the lane's events.
pub(super) struct OfLane {
    slot: String,
    /// Of each table, by its name in messages: what is of another table, which was the outbox before.
    formers: HashMap<Option<String>, Option<Former>>,
}

impl OfLane {
    /// By a look at the tables.
    ///
    /// # Errors
    /// The stream or the lane record cannot be read.
    pub(super) async fn read(
        settings: &Settings,
        looked: &Looked,
        lane: &LaneClient,
    ) -> anyhow::Result<Self> {
        let created = lane.stream().await?.created;
        let record = lane.record().await?.record;
        let formers = formers(&looked.inspection, settings, record.as_ref(), &created);
        let tables = settings.tables().into_iter();
        Ok(OfLane {
            slot: settings.postgres.slot.clone(),
            formers: tables
                .map(|table| table.message.table)
                .zip(formers)
                .collect(),
        })
    }

    /// What a message tells of an event; none where it is no event of a row of the lane's tables, or a replay.
    pub(super) fn event(&self, sequence: u64, message: &Message) -> Option<Event> {
        let header = |name: &'static str| header(message, name);
        let own = |name| {
            let (slot, position) = parse_header(header(name)?).ok()?;
            (slot == self.slot).then_some(position)
        };
        let position = match header(KIND_HEADER) {
            None => Some(own(POSITION_HEADER)?),
            Some(KIND_RETRY) => Some(own(RETRY_HEADER)?),
            Some(KIND_BACKFILL) if slot_of(header) == Some(self.slot.as_str()) => None,
            Some(_) => return None,
        };
        let id = event_id::of_headers(event_id::ID_HEADERS.map(header))
            .or_else(|| event_id::of_body(&message.payload))?;
        let table = header(TABLE_HEADER).map(str::to_owned);
        let former = *self.formers.get(&table)?;
        let is_former = former.is_some_and(|former| former.has(sequence, &id, header));
        (!is_former).then_some(Event {
            id,
            table,
            position,
        })
    }
}

/// Where the events of dead letters are.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The last retry of each.
    retries: BTreeMap<Position, u64>,
    /// The last event of the row. Somebody may have mended it by DELETE and INSERT.
    rows: BTreeMap<Position, u64>,
}

impl Published {
    /// Reads the stream from the first of these letters on, which is all of it where one is gone. Without `of_lane`, which tells the
    /// lane's events, only retries are found.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) async fn read(
        nats: &Admin,
        lane: &LaneClient,
        letters: &[&Standing],
        of_lane: Option<&OfLane>,
    ) -> anyhow::Result<Self> {
        let mut of_rows: HashMap<(Option<&str>, &str), Vec<&Standing>> = HashMap::new();
        for letter in letters {
            // What is no UUID may have been given out again, and be of another event by now.
            let is_sure = |id: &&String| letter.is_gone || event_id::is_uuid(id);
            if let Some(id) = letter.id.as_ref().filter(is_sure) {
                let of_row = of_rows.entry((letter.table.as_deref(), id)).or_default();
                of_row.push(letter);
            }
        }
        let of_lane = of_lane.filter(|_| !of_rows.is_empty());
        let first = letters.iter().map(|letter| letter.place.sequence).min();
        let mut messages =
            messages(nats, lane, first.unwrap_or_default(), of_lane.is_none()).await?;
        let mut found = Published::default();
        // Of a letter that is gone all the stream is read, which may have nothing.
        while messages.left() > 0 {
            let (sequence, message) = messages.next().await?;
            if header(&message, KIND_HEADER) == Some(KIND_RETRY)
                && let Some(Ok((slot, position))) = header(&message, RETRY_HEADER).map(parse_header)
                && slot == lane.slot()
            {
                found.retries.insert(position, sequence);
            }
            let Some(event) = of_lane.and_then(|of_lane| of_lane.event(sequence, &message)) else {
                continue;
            };
            let of_row = of_rows.get(&(event.table.as_deref(), event.id.as_str()));
            for letter in of_row.into_iter().flatten() {
                let place = letter.place;
                // What stands in front of the letter is of an earlier row with its id.
                let is_behind = match letter.is_gone {
                    true => event
                        .position
                        .is_none_or(|position| position >= place.position),
                    false => sequence > place.sequence,
                };
                if is_behind {
                    found.rows.insert(place.position, sequence);
                }
            }
        }
        Ok(found)
    }

    /// Whether the stream has this letter's event.
    pub(super) fn has(&self, letter: &Standing) -> bool {
        let at = |of: &BTreeMap<Position, u64>| of.get(&letter.place.position).copied();
        at(&self.retries).is_some_and(|sequence| sequence > letter.place.sequence)
            || at(&self.rows).is_some()
    }
}

/// The stream's messages at or behind sequence `from`.
pub(super) async fn messages<'a>(
    nats: &'a Admin,
    lane: &LaneClient,
    from: u64,
    headers_only: bool,
) -> anyhow::Result<StoredMessages<'a>> {
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: from.max(1),
        },
        headers_only,
        ..OrderedConfig::default()
    };
    StoredMessages::from(nats, lane.stream_name(), config).await
}
