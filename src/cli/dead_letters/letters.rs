//! The dead letters of a slot and what has become of each, as the stream tells it.
//!
//! In: a lane. Out: [`Letters`], without their rows. Guarantee: the stream is read once, a message at a time, and a letter's
//! state is what the last mark behind it says.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::bulk::letters::Place;
use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::pipeline::dead_letter::state::{Mark, State, Told};
use crate::pipeline::dead_letter::{self, DeadLetter};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::{
    DEAD_LETTER_HEADER, KIND_HEADER, POSITION_HEADER, Position, TABLE_HEADER,
};
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::settings::Settings;
use crate::relay::taken_over::TakenOver;

/// A dead letter, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Standing {
    pub(in crate::cli) place: Place,
    pub(in crate::cli) id: Option<String>,
    /// It tells that its event never was a row.
    pub(in crate::cli) is_rowless: bool,
    pub(super) state: State,
    /// When it got that state; none for an open one.
    pub(super) state_at: Option<String>,
    /// Why it was discarded.
    pub(super) state_reason: Option<String>,
    /// The further table of the lane that its row is of.
    pub(in crate::cli) table: Option<String>,
    /// The stream has it no more; the relay had seen it open. Its sequence is 0.
    pub(in crate::cli) is_gone: bool,
}

impl Standing {
    /// The lane's table of its row, with its number among the lane's; none where the configuration names it no more.
    pub(super) fn outbox(&self, settings: &Settings) -> Option<(usize, Settings)> {
        let mut tables = settings.tables().into_iter().enumerate();
        tables.find(|(_, table)| table.message.table == self.table)
    }

    /// The mark by which it gets another state.
    pub(in crate::cli) fn mark(&self, reason: Option<&str>) -> Mark {
        Mark {
            id: self.id.clone(),
            position: self.place.position.to_string(),
            was: self.state,
            reason: reason.map(str::to_owned),
            table: self.table.clone(),
        }
    }
}

/// The dead letters that a stream has of a slot, in their order.
#[derive(Debug)]
pub(in crate::cli) struct Letters {
    stream: String,
    slot: String,
    all: Vec<Standing>,
    /// The last one at each position: an adopted lane may come to a position again.
    by_position: BTreeMap<Position, usize>,
}

impl Letters {
    /// Those of a lane that is at its end; none where its stream is gone.
    ///
    /// # Errors
    /// They cannot be read.
    pub(in crate::cli) async fn of(lane: &TakenOver, nats: &Admin) -> anyhow::Result<Option<Self>> {
        let lane = LaneClient::new(nats, &lane.stream, &lane.slot)?;
        match lane.stream().await {
            Err(LaneError::NoStream(_)) => Ok(None),
            found => {
                found?;
                Ok(Some(Letters::read(&lane).await?))
            }
        }
    }

    /// Reads all that the stream has, and those that it has no more and that were open when the relay last looked.
    ///
    /// # Errors
    /// It cannot be read.
    pub(in crate::cli) async fn read(lane: &LaneClient) -> anyhow::Result<Self> {
        let slot = lane.slot();
        let filter = dead_letter::subject(slot);
        let mut letters = Letters {
            stream: lane.stream_name().to_owned(),
            slot: slot.to_owned(),
            all: Vec::new(),
            by_position: BTreeMap::new(),
        };
        if let Some((remembered, _)) = lane.letters().await? {
            for (position, kept) in remembered.letters() {
                letters.add(Standing {
                    place: Place {
                        position,
                        sequence: 0,
                    },
                    id: kept.id.clone(),
                    is_rowless: false,
                    state: State::Open,
                    state_at: None,
                    state_reason: None,
                    table: kept.table.clone(),
                    is_gone: true,
                });
            }
        }
        let mut from = 1;
        loop {
            let lookup = Lookup::Next {
                from,
                filter: &filter,
            };
            let Some(message) = lane.message(lookup).await? else {
                letters.forget_found();
                return Ok(letters);
            };
            from = message.seq + 1;
            letters.take(message);
        }
    }

    fn add(&mut self, standing: Standing) {
        let position = standing.place.position;
        self.by_position.insert(position, self.all.len());
        self.all.push(standing);
    }

    /// Without those of the relay's that the stream has too.
    fn forget_found(&mut self) {
        let all = std::mem::take(&mut self.all);
        let by_position = std::mem::take(&mut self.by_position);
        for (index, standing) in all.into_iter().enumerate() {
            if !standing.is_gone || by_position[&standing.place.position] == index {
                self.add(standing);
            }
        }
    }

    fn take(&mut self, message: StoredMessage) {
        let told = Told::of(
            &self.slot,
            message.header_text(KIND_HEADER),
            message.header_text(POSITION_HEADER),
            message.header_text(DEAD_LETTER_HEADER),
        );
        match told {
            Some(Told::Letter(position)) => {
                let letter: DeadLetter = serde_json::from_slice(&message.data).unwrap_or_default();
                self.add(Standing {
                    place: Place {
                        position,
                        sequence: message.seq,
                    },
                    id: letter.id,
                    is_rowless: letter.kinds.is_some(),
                    state: State::Open,
                    state_at: None,
                    state_reason: None,
                    table: message.header_text(TABLE_HEADER).map(str::to_owned),
                    is_gone: false,
                });
            }
            Some(Told::Mark(position, state)) => {
                let mark: Mark = serde_json::from_slice(&message.data).unwrap_or_default();
                if let Some(index) = self.by_position.get(&position) {
                    let letter = &mut self.all[*index];
                    letter.state = state;
                    letter.state_at = Some(message.time);
                    letter.state_reason = mark.reason;
                }
            }
            None => {}
        }
    }

    pub(super) fn all(&self) -> &[Standing] {
        &self.all
    }

    pub(in crate::cli) fn open(&self) -> impl Iterator<Item = &Standing> {
        self.all.iter().filter(|letter| letter.state == State::Open)
    }

    /// The one at this position.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find(&self, position: Position) -> anyhow::Result<&Standing> {
        let index = self.by_position.get(&position);
        index.map(|index| &self.all[*index]).with_context(|| {
            format!(
                "stream {} has no dead letter of slot {} at {position}: walrelay dead-letters list --all shows what it has",
                self.stream, self.slot
            )
        })
    }
}
