//! What each message outside of a lane must expect of the stream, so that the server refuses it once another command has
//! published.
//!
//! In: a lease, how far the command has seen the stream. Out: a [`Place`]. Guarantee: what another command has published is
//! either seen by this one before it decides what to publish, or nothing of this one is stored any more.
//!
//! On a stream of its own, a message expects the stream's last sequence, which is read *before* the lease is made sure of. So
//! whoever lost the lease expects a sequence from before the next holder's first message. That first message alone needs a
//! look at what came since the stream was read: a former holder's last may be there.
//! On a stream that others write to, a message expects the last fence of its kind. A holder stores one before it reads.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::sleep;

use super::doubt::Doubt;
use super::lease::Lease;
use crate::nats::api::StoredMessage;
use crate::nats::protocol::ServerVersion;
use crate::nats::stream::StreamSeverity;
use crate::pipeline::end_search::Lookup;
use crate::pipeline::fault::Fault;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_DISCARDED, KIND_ERASED, KIND_FENCED, KIND_HEADER, KIND_RETRIED, KIND_RETRY,
    REPLAY_HEADER,
};
use crate::pipeline::record::{LaneRecord, Moved, at};
use crate::pipeline::shared_end_search::bulk_fence_subject;
use crate::relay::lane_client::{LaneClient, LaneError};
use crate::relay::lane_store::StoreError;
use crate::relay::settings::Settings;
use crate::relay::stream_fit;

/// Between two looks at a stream for what the relay publishes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What the next message is to expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind the last sequence of a stream of its own.
    Behind {
        /// The sequence.
        last_sequence: u64,
        /// What it tells of the lane that lives in the stream.
        lane_end: Option<String>,
    },
    /// No other fence on `subject` than the one at `sequence`.
    Fenced {
        /// Of the fences.
        subject: String,
        /// Of the last one.
        sequence: u64,
    },
}

/// The fence of one command.
#[derive(Debug)]
pub struct Fence {
    lane: LaneClient,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The lane's own stream.
    Own(Seen),
    /// A stream in which no lane lives.
    Aside(Seen),
    Shared {
        subject: String,
        sequence: u64,
    },
}

/// A stream on whose last sequence messages are put.
#[derive(Debug)]
struct Seen {
    /// It was seen up to here when the command decided what to publish.
    through: u64,
    /// A message of this command is stored.
    begun: bool,
}

/// Makes sure that the lane with this record lives in `stream`, and not where `walrelay move` takes it.
///
/// # Errors
/// It does not.
pub(crate) fn lives_there(record: Option<&LaneRecord>, stream: &str) -> anyhow::Result<()> {
    match record.and_then(|record| record.moved.as_ref()) {
        Some(Moved::To { stream: to, nats }) => bail!(
            "the lane has left stream {stream}: walrelay move has taken it to stream {to}{}; use the configuration of that one",
            at(nats.as_ref())
        ),
        Some(Moved::From {
            stream: from, nats, ..
        }) => bail!(
            "the lane is still on its way from stream {from}{at} to {stream}: walrelay move has not ended; run it again with the \
             configuration of stream {from}{at}",
            at = at(nats.as_ref())
        ),
        None => Ok(()),
    }
}

impl Fence {
    /// The fence of a command that publishes to a stream in which no lane lives. It has the stream's lease, and decides by what
    /// the stream has up to `through`.
    pub fn aside(stream: &LaneClient, through: u64) -> Self {
        Fence {
            lane: stream.clone(),
            state: State::Aside(Seen {
                through,
                begun: false,
            }),
        }
    }

    /// Puts up the fence: what is read from the stream behind this has all that former holders have published.
    ///
    /// # Errors
    /// The stream cannot be published to, or the lease is lost.
    pub(crate) async fn raise(
        lane: &LaneClient,
        lease: &Lease,
        settings: &Settings,
        version: ServerVersion,
    ) -> anyhow::Result<Self> {
        let (nats, slot) = (&settings.nats, &settings.postgres.slot);
        lives_there(lane.record().await?.record.as_ref(), &nats.stream)?;
        let info = lane.stream().await?;
        let mut wanted = nats.stream_settings(slot);
        let subject = bulk_fence_subject(&nats.stream, slot);
        if nats.shared {
            wanted.subjects.push(subject.clone());
        }
        let refused: Vec<String> = stream_fit::findings(&info.config, &wanted, version)
            .iter()
            .filter(|finding| finding.severity == StreamSeverity::Blocks)
            .map(ToString::to_string)
            .collect();
        ensure!(
            refused.is_empty(),
            "stream {}: {}",
            nats.stream,
            refused.join("; ")
        );
        let state = match nats.shared {
            false => State::Own(Seen {
                through: info.state.last_seq,
                begun: false,
            }),
            true => State::Shared {
                sequence: store_fence(lane, lease, &subject).await?,
                subject,
            },
        };
        Ok(Fence {
            lane: lane.clone(),
            state,
        })
    }

    /// The command has read the stream up to this sequence, and decides by what it has read.
    pub fn has_read(&mut self, through: u64) {
        if let State::Own(seen) | State::Aside(seen) = &mut self.state
            && !seen.begun
        {
            seen.through = through.max(seen.through);
        }
    }

    /// A message of the command is stored, or it decides nothing by what the stream has.
    pub fn begun(&mut self) {
        if let State::Own(seen) | State::Aside(seen) = &mut self.state {
            seen.begun = true;
        }
    }

    /// The command's last message on a shared stream is a fence of its own.
    pub fn moved(&mut self, to: u64) {
        if let State::Shared { sequence, .. } = &mut self.state {
            *sequence = to;
        }
    }

    /// What the next message is to expect, at first and wherever one was refused for that; and how many of those in doubt are
    /// stored. The others never will be, once the next message is.
    ///
    /// # Errors
    /// The lease is lost, or another command has published since this one has read the stream.
    pub(super) async fn place_behind(
        &mut self,
        lease: &Lease,
        doubt: Option<&Doubt>,
    ) -> anyhow::Result<(Place, usize)> {
        match &mut self.state {
            State::Own(seen) => {
                let (info, record) = self.lane.stream_and_record().await?;
                let last_sequence = info.state.last_seq;
                // Not before the last sequence was read: see the head of this file. What stands there does not change.
                let (stored, lane_end, ()) = tokio::try_join!(
                    seen.settle(&self.lane, doubt, last_sequence),
                    async { Ok(self.lane.lane_end(&info, record.record.as_ref()).await?) },
                    async { Ok(lease.renew().await?) },
                )?;
                let place = Place::Behind {
                    last_sequence,
                    lane_end: Some(lane_end),
                };
                Ok((place, stored))
            }
            State::Aside(seen) => {
                let last_sequence = self.lane.stream().await?.state.last_seq;
                // Where it is lost, what stands there may be removed already.
                lease.renew().await?;
                let stored = seen.settle(&self.lane, doubt, last_sequence).await?;
                let place = Place::Behind {
                    last_sequence,
                    lane_end: None,
                };
                Ok((place, stored))
            }
            State::Shared { subject, sequence } => {
                let mut stored = 0;
                if let Some(doubt) = doubt {
                    (*sequence, stored) = settle(&self.lane, lease, subject, doubt).await?;
                }
                lease.renew().await?;
                let place = Place::Fenced {
                    subject: subject.clone(),
                    sequence: *sequence,
                };
                Ok((place, stored))
            }
        }
    }
}

impl Seen {
    /// How many of the messages in doubt are stored in the stream, which ends at `last_sequence`.
    async fn settle(
        &mut self,
        lane: &LaneClient,
        doubt: Option<&Doubt>,
        last_sequence: u64,
    ) -> anyhow::Result<usize> {
        ensure!(
            last_sequence >= self.through,
            "the stream was deleted and made anew meanwhile: run this again"
        );
        let stored = match doubt {
            Some(doubt) => stored(lane, doubt, last_sequence).await?,
            None => 0,
        };
        if !self.begun {
            look(lane, self.through + 1 + stored as u64, last_sequence).await?;
            self.through = last_sequence;
            self.begun = stored > 0;
        }
        Ok(stored)
    }
}

/// How many of the messages in doubt are stored: they are chained, so only the first so many can be, one behind the other.
async fn stored(lane: &LaneClient, doubt: &Doubt, last_sequence: u64) -> anyhow::Result<usize> {
    let most = last_sequence.saturating_sub(doubt.last_sequence);
    let (mut stored, mut above) = (0, doubt.items.len().min(usize::try_from(most)?));
    while stored < above {
        let middle = stored + (above - stored) / 2;
        let sequence = doubt.last_sequence + 1 + middle as u64;
        let message = lane.message(Lookup::Message(sequence)).await?;
        let message = message.with_context(|| {
            format!("message {sequence} was removed from the stream meanwhile: run this again")
        })?;
        match doubt.is_stored_as(middle, &message) {
            true => stored = middle + 1,
            false => above = middle,
        }
    }
    Ok(stored)
}

/// Finds out whether a batch in doubt is stored, and makes sure that it will not be if it is not. The last fence, behind which no batch of
/// before is stored any more, and how many of the messages in doubt are stored.
async fn settle(
    lane: &LaneClient,
    lease: &Lease,
    subject: &str,
    doubt: &Doubt,
) -> anyhow::Result<(u64, usize)> {
    match lane.store_bulk_fence(doubt.last_sequence).await {
        Ok(sequence) => return Ok((sequence, 0)),
        Err(LaneError::Store(StoreError::NotStored(Fault::Sequence(_)))) => {}
        Err(error) => return Err(error.into()),
    }
    let last = lane.message(Lookup::Last(subject)).await?;
    let last = last.context("the fence was removed meanwhile: run this again")?;
    // With the lease still ours, it is our own: of the batch, or one of here whose answer was lost.
    lease.renew().await?;
    Ok((last.seq, doubt.stored_before(&last)?))
}

/// Looks for what another command has published from `from` on, up to `through`.
async fn look(lane: &LaneClient, mut from: u64, through: u64) -> anyhow::Result<()> {
    while from <= through {
        let Some(message) = lane.message(Lookup::Next { from, filter: ">" }).await? else {
            return Ok(());
        };
        if let Some(kind) = kind_of_command(&message) {
            bail!(
                "another command has published ({kind}) at sequence {} since this one has read the stream: run this again",
                message.seq
            );
        }
        from = message.seq + 1;
    }
    Ok(())
}

/// What a command has published by itself calls itself; none of what the lane's relay has published.
fn kind_of_command(message: &StoredMessage) -> Option<&str> {
    match message.header_text(KIND_HEADER) {
        Some(
            kind @ (KIND_BACKFILL | KIND_RETRY | KIND_RETRIED | KIND_DISCARDED | KIND_ERASED
            | KIND_FENCED),
        ) => Some(kind),
        _ => message.header(REPLAY_HEADER).map(|_| "replay"),
    }
}

/// Waits until the relay has published something behind `sequence` to the lane's own stream.
///
/// # Errors
/// The stream cannot be read.
pub(super) async fn relay_behind(lane: &LaneClient, sequence: u64) -> Result<(), LaneError> {
    let mut from = sequence + 1;
    loop {
        match lane.message(Lookup::Next { from, filter: ">" }).await? {
            Some(message) if kind_of_command(&message).is_none() => return Ok(()),
            Some(message) => from = message.seq + 1,
            None => sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Stores a fence behind the last one.
async fn store_fence(lane: &LaneClient, lease: &Lease, subject: &str) -> anyhow::Result<u64> {
    loop {
        let last = lane.message(Lookup::Last(subject)).await?;
        // Who stores one behind ours has taken the lease before.
        lease.renew().await?;
        let behind = last.map_or(0, |message| message.seq);
        match lane.store_bulk_fence(behind).await {
            Err(LaneError::Store(StoreError::NotStored(Fault::Sequence(_)))) => {}
            stored => return stored.context("the stream takes no fence"),
        }
    }
}
