//! A dead letter as the stream has it.
//!
//! In: a message on the subject of a slot's dead letters. Out: the letter with its place, or what the message says of another one.

use crate::nats::admin::Admin;
use crate::nats::api::StoredMessage;
use crate::pipeline::dead_letter::state::Told;
use crate::pipeline::dead_letter::{DeadLetter, subject};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::position::{
    DEAD_LETTER_HEADER, KIND_HEADER, POSITION_HEADER, Position, REASON_HEADER,
};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// A dead letter, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLetter {
    /// The lane's that it is of: that of a lane that is no more is told with another's.
    pub slot: String,
    /// In the stream.
    pub sequence: u64,
    /// When the stream stored it.
    pub stored_at: String,
    /// With its position and its reason, also where it had no room for them.
    pub letter: DeadLetter,
}

impl StoredLetter {
    /// What stands on the subject of a slot's dead letters and is no mark.
    #[must_use]
    pub fn of(message: StoredMessage, position: Position) -> Self {
        let mut letter: DeadLetter = serde_json::from_slice(&message.data).unwrap_or_default();
        letter.position = position.to_string();
        let reason = message.header_text(REASON_HEADER);
        letter.reason = reason.unwrap_or_default().to_owned();
        let slot = message.subject.rsplit('.').next();
        StoredLetter {
            slot: slot.unwrap_or_default().to_owned(),
            sequence: message.seq,
            stored_at: message.time,
            letter,
        }
    }

    /// Reads one with its row; none where there is no dead letter of the slot.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn read(settings: &Settings, sequence: u64) -> anyhow::Result<Option<Self>> {
        let slot = &settings.postgres.slot;
        let nats = Admin::connect(&settings.nats.connection).await?;
        let lane = LaneClient::new(&nats, &settings.nats.stream, slot)?;
        let message = lane.message(Lookup::Message(sequence)).await?;
        let message = message.filter(|message| message.subject == subject(slot));
        Ok(message.and_then(|message| match told(&message, slot) {
            Some(Told::Letter(position)) => Some(StoredLetter::of(message, position)),
            _ => None,
        }))
    }
}

/// What a message on that subject tells.
pub(super) fn told(message: &StoredMessage, slot: &str) -> Option<Told> {
    let header = |name| message.header_text(name);
    let (kind, position) = (header(KIND_HEADER), header(POSITION_HEADER));
    Told::of(slot, kind, position, header(DEAD_LETTER_HEADER))
}
