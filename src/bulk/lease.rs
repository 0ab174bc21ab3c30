//! The lease of a lane: which command publishes for it by itself.
//!
//! In: a lane's store, the command's name. Out: the lease, or who has it. Guarantees: each change is stored only behind the
//! one that was read, so two never have it at once by the store; a holder that is not heard for `PATIENCE` loses it to the
//! next who asks. Time decides only who is asked to wait: what fences a message is [`super::fence`].

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::nats::api::StoredMessage;
use crate::relay::lane_client::{LaneClient, LaneError};

/// So often a holder is heard.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// A holder without a sign of life for so long has ended, or stands still.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another command has it.
    #[error(
        "walrelay {command} publishes for this lane already (process {process}, since {since}): wait for its end, and run this \
         again"
    )]
    Held {
        /// Its name.
        command: String,
        /// Its process id, wherever it runs.
        process: u32,
        /// When it began.
        since: String,
    },
    /// It was ours.
    #[error(
        "walrelay {command} (process {process}) has taken over this lane, since this command showed no sign of life for \
         {PATIENCE:?}: run this again once that one has ended"
    )]
    Lost {
        /// Its name.
        command: String,
        /// Its process id, wherever it runs.
        process: u32,
    },
    /// The store does not answer.
    #[error(transparent)]
    Lane(#[from] LaneError),
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    command: String,
    process: u32,
    /// RFC 3339, for people.
    since: String,
    /// Tells two commands apart.
    token: String,
    /// The command has ended.
    released: bool,
}

impl Holder {
    fn read(message: &StoredMessage) -> Result<Self, LaneError> {
        serde_json::from_slice(&message.data).map_err(|error| LaneError::Lease(error.to_string()))
    }

    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always have a JSON form")
    }
}

/// The right to publish for a lane.
#[derive(Debug)]
pub struct Lease {
    held: Arc<Held>,
    renewing: JoinHandle<()>,
}

#[derive(Debug)]
struct Held {
    lane: LaneClient,
    holder: Holder,
    /// Where the store has it.
    sequence: Mutex<u64>,
}

impl Lease {
    /// Takes the lease for `command`. A holder that has not ended is given `PATIENCE` to show a sign of life.
    ///
    /// # Errors
    /// [`LeaseError::Held`] where it was heard.
    pub async fn take(lane: &LaneClient, command: &str) -> Result<Self, LeaseError> {
        let holder = Holder {
            command: command.to_owned(),
            process: std::process::id(),
            since: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            token: format!("{:016x}", rand::random::<u64>()),
            released: false,
        };
        let sequence = loop {
            let behind = free_behind(lane).await?;
            match lane.store_lease(holder.to_json(), behind).await {
                Ok(sequence) => break sequence,
                // Two have asked at once.
                Err(LaneError::Taken) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let held = Arc::new(Held {
            lane: lane.clone(),
            holder,
            sequence: Mutex::new(sequence),
        });
        let renewing = tokio::spawn(keep(held.clone()));
        Ok(Lease { held, renewing })
    }

    /// Makes sure that the lease is ours now.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] where it is not.
    pub(crate) async fn renew(&self) -> Result<(), LeaseError> {
        self.held.store(&self.held.holder).await
    }

    /// Gives it back, so that the next command need not wait.
    pub async fn release(self) {
        self.renewing.abort();
        let holder = Holder {
            released: true,
            ..self.held.holder.clone()
        };
        // Where that fails, the next one waits a little.
        if let Err(error) = self.held.store(&holder).await {
            tracing::debug!(%error, "the lease is not given back");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Held {
    async fn store(&self, holder: &Holder) -> Result<(), LeaseError> {
        let mut sequence = self.sequence.lock().await;
        loop {
            match self.lane.store_lease(holder.to_json(), *sequence).await {
                Ok(stored) => {
                    *sequence = stored;
                    return Ok(());
                }
                Err(LaneError::Taken) => {}
                Err(error) => return Err(error.into()),
            }
            // It may be our own that was stored without an answer.
            let found = self.lane.lease().await?;
            let Some(found) = found else {
                *sequence = 0;
                continue;
            };
            let other = Holder::read(&found)?;
            if other.token != holder.token {
                return Err(LeaseError::Lost {
                    command: other.command,
                    process: other.process,
                });
            }
            *sequence = found.seq;
        }
    }
}

/// Lets the holder be heard until the lease is lost.
async fn keep(held: Arc<Held>) {
    loop {
        sleep(RENEW_INTERVAL).await;
        match held.store(&held.holder).await {
            Ok(()) => {}
            Err(LeaseError::Lane(error)) => {
                tracing::debug!(%error, "the lease is not renewed");
            }
            Err(LeaseError::Lost { .. } | LeaseError::Held { .. }) => return,
        }
    }
}

/// Waits until the lease is free; sequence of the message to replace, 0 for none.
async fn free_behind(lane: &LaneClient) -> Result<u64, LeaseError> {
    let Some(first) = lane.lease().await? else {
        return Ok(0);
    };
    let holder = Holder::read(&first)?;
    if holder.released {
        return Ok(first.seq);
    }
    tracing::info!(
        process = holder.process,
        "walrelay {} has begun and not ended: waiting {PATIENCE:?} for a sign of life from it",
        holder.command
    );
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        sleep(LOOK_INTERVAL).await;
        let Some(now) = lane.lease().await? else {
            return Ok(0);
        };
        if now.seq == first.seq {
            continue;
        }
        let holder = Holder::read(&now)?;
        if holder.released {
            return Ok(now.seq);
        }
        return Err(LeaseError::Held {
            command: holder.command,
            process: holder.process,
            since: holder.since,
        });
    }
    Ok(first.seq)
}
