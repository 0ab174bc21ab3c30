//! Whether an id that a person gives to an event without one is another event's.
//!
//! In: the dead letter, the id, the lane's stream and table. Out: nothing, or whose it is. Guarantee: an id that a row of the letter's
//! table, another letter of that table or one of its events in the stream has, is refused before anything is published.

use super::letters::{Letters, Standing};
use super::published::{OfLane, messages};
use crate::bulk::rows::{Looked, Rows};
use crate::cli::exit::UsageError;
use crate::nats::admin::Admin;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Where it is looked for.
pub(super) struct Lane<'a> {
    pub(super) nats: &'a Admin,
    pub(super) client: &'a LaneClient,
    pub(super) settings: &'a Settings,
    pub(super) looked: &'a Looked,
    pub(super) letters: &'a Letters,
}

impl Lane<'_> {
    /// Makes sure that nothing else has this value of the id's column.
    ///
    /// # Errors
    /// Something has, or it cannot be looked for.
    pub(super) async fn is_free(&self, letter: &Standing, value: &str) -> anyhow::Result<()> {
        let Some((number, table)) = letter.outbox(self.settings) else {
            // Who makes its event says what to do.
            return Ok(());
        };
        let mut tables = Rows::all(self.looked, self.settings).await?;
        let rows = tables.swap_remove(number);
        let id = rows.id_text(value).await?;
        let position = letter.place.position;
        let mut letters = self.letters.all().iter();
        let other = letters.find(|other| {
            other.place.position != position
                && other.table == letter.table
                && other.id.as_ref() == Some(&id)
        });
        if let Some(other) = other {
            let whose = format!("of the dead letter at {}", other.place.position);
            return Err(taken(&id, &whose, "").into());
        }
        if let Some(sequence) = self.in_stream(letter, &id).await? {
            let stream = &self.settings.nats.stream;
            let whose = format!("of the event at sequence {sequence} of stream {stream}");
            return Err(taken(&id, &whose, "").into());
        }
        if rows.find(&id).await?.is_some() {
            let whose = format!("of a row of {}", table.postgres.table);
            let mended = format!(
                ". If that row is this event, mended: walrelay backfill publishes it, and walrelay dead-letters discard {position} \
                 --reason mended closes the letter"
            );
            return Err(taken(&id, &whose, &mended).into());
        }
        Ok(())
    }

    /// The sequence of an event of the letter's table that has this id and is not the letter's.
    async fn in_stream(&self, letter: &Standing, id: &str) -> anyhow::Result<Option<u64>> {
        let of_lane = OfLane::read(self.settings, self.looked, self.client).await?;
        let mut messages = messages(self.nats, self.client, 1, false).await?;
        while messages.left() > 0 {
            let (sequence, message) = messages.next().await?;
            let event = of_lane.event(sequence, &message).filter(|event| {
                let is_own = event.position == Some(letter.place.position);
                event.id == id && event.table == letter.table && !is_own
            });
            if event.is_some() {
                return Ok(Some(sequence));
            }
        }
        Ok(None)
    }
}

fn taken(id: &str, whose: &str, more: &str) -> UsageError {
    UsageError(format!(
        "--set: {id} is the id {whose}, and an event is known by its id: give one that nothing has{more}"
    ))
}
