//! A stream's messages as they are, for a stream that the lane is moved to.
//!
//! In: the stream, between which sequences. Out: its messages in its order, and how far the other stream has them. Guarantees: positions,
//! kinds, headers and bodies stay; a message that no relay put where it stands becomes one without a place, so that it does not
//! count as one that a relay put where it stands there.

use anyhow::{Context as _, ensure};
use async_nats::jetstream::Message;

use super::stream::{is_in_place, read};
use super::{Item, Source, Sourced};
use crate::nats::api::{StoredMessage, StreamInfo};
use crate::nats::settings::ConnectionSettings;
use crate::nats::stored::Headers;
use crate::pipeline::end_search::{Lookup, split_tail};
use crate::pipeline::position::{KIND_HEADER, KIND_MOVED, MOVED_HEADER, TAIL_HEADER};
use crate::relay::lane_client::LaneClient;

/// What is copied, and how.
#[derive(Debug, Clone)]
pub struct Copied {
    /// The stream.
    pub stream: String,
    /// When it was created.
    pub created: String,
    /// Up to here messages count wherever they stand: the lane was adopted behind it.
    pub adopted_sequence: u64,
    /// What comes in front of their subjects.
    pub prefix: String,
}

impl Copied {
    /// The messages from sequence `first` to `last`, both included, but for what was removed.
    pub fn source(self, connection: &ConnectionSettings, range: (u64, u64)) -> Source {
        let stream = self.stream.clone();
        let sourced = move |sequence, message: &Message| Ok(self.sourced(sequence, message));
        read(connection, stream, range, false, sourced)
    }

    /// The sequence in the stream of the last message that `target` has of it.
    ///
    /// # Errors
    /// The last message there is another one.
    pub async fn reached(&self, target: &LaneClient, info: &StreamInfo) -> anyhow::Result<u64> {
        if info.state.messages == 0 {
            return Ok(0);
        }
        // The last ones may have been erased there.
        for sequence in (info.state.first_seq..=info.state.last_seq).rev() {
            if let Some(last) = target.message(Lookup::Message(sequence)).await? {
                return copied_from(&last, &self.created).with_context(|| {
                    format!(
                        "message {sequence} of stream {} is none that was copied there: somebody else publishes to it",
                        info.config.name
                    )
                });
            }
        }
        Ok(0)
    }

    fn sourced(&self, sequence: u64, message: &Message) -> Sourced {
        let headers = Headers::of(message);
        if headers.get(KIND_HEADER) == Some(KIND_MOVED) {
            return Sourced::Passed;
        }
        let is_of_lane = sequence <= self.adopted_sequence || is_in_place(sequence, &headers);
        let mut lines = format!("{MOVED_HEADER}: {} {sequence}\r\n", self.created);
        headers.write(&mut lines, |name, value| {
            // Where a sequence tells the lane's place, it is one of the other stream.
            let tells = name != TAIL_HEADER || split_tail(value).is_some();
            tells
                && !name.starts_with("Nats-")
                && name != MOVED_HEADER
                && (is_of_lane || !name.starts_with("Walrelay-"))
        });
        Sourced::Item(Item {
            name: format!("message {sequence}"),
            subject: format!("{}{}", self.prefix, message.subject).into_bytes(),
            headers: lines.into_bytes(),
            body: message.payload.clone(),
        })
    }
}

/// The sequence that `message` had in the stream that was created at that time.
pub fn copied_from(message: &StoredMessage, created: &str) -> Option<u64> {
    origin(message.header_text(MOVED_HEADER)?, created)
}

/// The same, by the message's [`MOVED_HEADER`].
pub(crate) fn origin(moved: &str, created: &str) -> Option<u64> {
    let (of, sequence) = moved.split_once(' ')?;
    (of == created).then(|| sequence.parse().ok())?
}

/// Makes sure that the stream can be copied as it is.
///
/// # Errors
/// Why not.
pub fn check(config: &async_nats::jetstream::stream::Config) -> anyhow::Result<()> {
    let name = &config.name;
    let copies =
        config.mirror.is_some() || config.sources.as_ref().is_some_and(|all| !all.is_empty());
    ensure!(
        !copies,
        "stream {name} is itself a copy of others: take its mirror or sources out first"
    );
    ensure!(
        config.subject_transform.is_none(),
        "stream {name} stores subjects as others: take its subject transform out first"
    );
    Ok(())
}
