//! The lease of a lane: which command publishes for it by itself.
//!
//! In: a lane's store, the command's name. Out: the lease, or who has it. Guarantees: each change is stored only behind the
//! one that was read, so two never have it at once by the store; a holder that is not heard for `PATIENCE` loses it to the
//! next who asks. Time decides only who is asked to wait: what fences a message is [`super::fence`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::holder::{Keeps, all};
use crate::nats::admin::Admin;
use crate::relay::bulk_work::{BulkWork, Holder, PATIENCE, RENEW_INTERVAL, Watch, Work};
use crate::relay::lane_client::{LaneClient, LaneError};

/// Between two looks at a lease of which it is asked whether its holder lives.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another command has it.
    #[error(
        "walrelay {command} is at work on slot {slot} and stream {stream} (process {process}, since {since}): wait for its end, and \
         run this again"
    )]
    Held {
        /// Of the lane.
        slot: String,
        /// Its stream.
        stream: String,
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

/// The commands that have a lease of this slot, or had one and have ended without finishing: looks until it is known of each whether
/// it lives, which takes as long as `PATIENCE` where one does not.
///
/// # Errors
/// [`LaneError`].
pub(crate) async fn holders(nats: &Admin, slot: &str) -> Result<Vec<BulkWork>, LaneError> {
    let mut watch = Watch::default();
    loop {
        let found = watch.look(nats, slot).await?;
        if !found.is_undecided {
            return Ok(found.works);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Whether what is stored of a lane's lease tells more than is kept.
///
/// # Errors
/// [`LaneError`].
pub(crate) async fn tells_more(lane: &LaneClient, keeps: Keeps<'_>) -> Result<bool, LaneError> {
    let Some(stored) = lane.lease().await? else {
        return Ok(false);
    };
    let holder = Holder::read(&stored)?;
    let mut all = [&holder].into_iter().chain(&holder.unfinished);
    Ok(all.any(|left| {
        let line = left.line.as_deref();
        line.is_some_and(|line| keeps(line).as_deref() != Some(line))
    }))
}

/// How far a command is, as its leases tell it.
#[derive(Debug)]
pub struct Working {
    done: AtomicU64,
    total: AtomicU64,
    stage: std::sync::Mutex<(Option<String>, Instant)>,
}

impl Working {
    fn new() -> Self {
        Working {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stage: std::sync::Mutex::new((None, Instant::now())),
        }
    }

    /// Another stage begins, with nothing of it done.
    pub fn begin(&self, stage: &str) {
        let mut told = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *told = (Some(stage.to_owned()), Instant::now());
        self.tell(0, 0);
    }

    /// So many of `total` are done, which is 0 where it is not known.
    pub fn tell(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    fn now(&self) -> Work {
        let told = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let (stage, begun) = (told.0.clone(), told.1);
        let done = self.done.load(Ordering::Relaxed);
        let seconds = begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        Work {
            stage,
            done,
            total: self.total.load(Ordering::Relaxed),
            per_second: (done as f64 / seconds) as u64,
        }
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
    working: Arc<Working>,
    /// See [`Holder::is_unfenced`].
    is_unfenced: AtomicBool,
    /// Where the store has it.
    sequence: Mutex<u64>,
}

impl Lease {
    /// Takes the lease for `command`, which was typed as `line`. A holder that has not ended is given `PATIENCE` to show a sign
    /// of life.
    ///
    /// # Errors
    /// [`LeaseError::Held`] where it was heard.
    pub async fn take(lane: &LaneClient, command: &str, line: &str) -> Result<Self, LeaseError> {
        let free = free_behind(lane, None).await?;
        let (holder, working) = new(command, line);
        Self::take_as(lane, free, holder, working, &all).await
    }

    /// Takes the leases of several lanes, in this order, or none of them. Holders that have not ended are given `PATIENCE` together. Of
    /// what others have left there, what `keeps` has stays.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub(crate) async fn take_all(
        lanes: &[LaneClient],
        command: &str,
        line: &str,
        keeps: Keeps<'_>,
    ) -> Result<Vec<Self>, LeaseError> {
        Self::take_each(lanes, new(command, line), keeps, None).await
    }

    /// The same for a command of which no other run lives, as the caller has made sure: one that has not ended is given no time.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub async fn take_all_alone(
        lanes: &[LaneClient],
        command: &str,
        line: &str,
    ) -> Result<Vec<Self>, LeaseError> {
        Self::take_each(lanes, new(command, line), &all, Some(command)).await
    }

    /// Takes those of further lanes for the same command, as [`Lease::take_all`].
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub(crate) async fn also_all(
        &self,
        lanes: &[LaneClient],
        keeps: Keeps<'_>,
    ) -> Result<Vec<Self>, LeaseError> {
        let same = (self.held.holder.clone(), self.held.working.clone());
        Self::take_each(lanes, same, keeps, None).await
    }

    async fn take_each(
        lanes: &[LaneClient],
        (holder, working): (Holder, Arc<Working>),
        keeps: Keeps<'_>,
        ended: Option<&str>,
    ) -> Result<Vec<Self>, LeaseError> {
        let free = lanes.iter().map(|lane| free_behind(lane, ended));
        let free = try_join_all(free).await?;
        let mut taken = Vec::new();
        for (lane, free) in lanes.iter().zip(free) {
            match Self::take_as(lane, free, holder.clone(), working.clone(), keeps).await {
                Ok(lease) => taken.push(lease),
                Err(error) => {
                    for lease in taken {
                        lease.release().await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(taken)
    }

    /// Gives back what a `command` had that ended without giving it back, where there is no more to do for it.
    ///
    /// # Errors
    /// As [`Lease::take`].
    pub async fn close_abandoned(
        lane: &LaneClient,
        command: &str,
        line: &str,
    ) -> Result<(), LeaseError> {
        let Some(stored) = lane.lease().await? else {
            return Ok(());
        };
        let last = Holder::read(&stored)?;
        let is_one = |holder: &Holder| holder.command == command && !holder.released;
        if is_one(&last) || last.unfinished.iter().any(is_one) {
            Self::take(lane, command, line).await?.release().await;
        }
        Ok(())
    }

    async fn take_as(
        lane: &LaneClient,
        mut free: Free,
        holder: Holder,
        working: Arc<Working>,
        keeps: Keeps<'_>,
    ) -> Result<Self, LeaseError> {
        let (holder, sequence) = loop {
            let holder = holder.clone().behind(free.before).keeping(keeps);
            match lane.store_lease(holder.to_json(), free.sequence).await {
                Ok(sequence) => break (holder, sequence),
                // Two have asked at once.
                Err(LaneError::Taken) => free = free_behind(lane, None).await?,
                Err(error) => return Err(error.into()),
            }
        };
        let held = Arc::new(Held {
            lane: lane.clone(),
            is_unfenced: AtomicBool::new(holder.is_unfenced),
            holder,
            working,
            sequence: Mutex::new(sequence),
        });
        let renewing = tokio::spawn(keep(held.clone()));
        Ok(Lease { held, renewing })
    }

    /// Whose lease it is.
    pub(crate) fn lane(&self) -> &LaneClient {
        &self.held.lane
    }

    /// Runs of `command` that had the lease before and ended without finishing, as they were typed.
    pub(crate) fn unfinished(&self, command: &str) -> impl Iterator<Item = &str> {
        let unfinished = self.held.holder.unfinished.iter();
        let of_command = unfinished.filter(move |holder| holder.command == command);
        of_command.filter_map(|holder| holder.line.as_deref())
    }

    /// Commands that had the lease before and ended without finishing.
    pub(crate) fn left(&self) -> impl Iterator<Item = BulkWork> {
        let Held { lane, holder, .. } = &*self.held;
        let left = holder.unfinished.iter().cloned();
        left.map(|holder| BulkWork::of(holder, lane.stream_name(), true))
    }

    /// Whether one that had the lease before may have something on its way into the stream.
    pub(crate) fn is_unfenced(&self) -> bool {
        self.held.is_unfenced.load(Ordering::Relaxed)
    }

    /// So it is of what this one has sent.
    pub(super) fn is_unfenced_now(&self) {
        self.held.is_unfenced.store(true, Ordering::Relaxed);
    }

    /// Nothing of such a one is stored any more.
    pub(crate) fn is_fenced_now(&self) {
        self.held.is_unfenced.store(false, Ordering::Relaxed);
    }

    /// Where it is told how far the command is.
    #[must_use]
    pub fn working(&self) -> Arc<Working> {
        self.held.working.clone()
    }

    /// Makes sure that the lease is ours now.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] where it is not.
    pub(crate) async fn renew(&self) -> Result<(), LeaseError> {
        self.held.renew().await
    }

    /// Gives it back, so that the next command need not wait.
    pub async fn release(self) {
        self.renewing.abort();
        let holder = Holder {
            released: true,
            line: None,
            ..self.held.now()
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
    async fn renew(&self) -> Result<(), LeaseError> {
        self.store(&self.now()).await
    }

    fn now(&self) -> Holder {
        Holder {
            work: self.working.now(),
            is_unfenced: self.is_unfenced.load(Ordering::Relaxed),
            ..self.holder.clone()
        }
    }

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

fn new(command: &str, line: &str) -> (Holder, Arc<Working>) {
    (Holder::new(command, line), Arc::new(Working::new()))
}

/// Lets the holder be heard until the lease is lost.
async fn keep(held: Arc<Held>) {
    loop {
        sleep(RENEW_INTERVAL).await;
        match held.renew().await {
            Ok(()) => {}
            Err(LeaseError::Lane(error)) => {
                tracing::debug!(%error, "the lease is not renewed");
            }
            Err(LeaseError::Lost { .. } | LeaseError::Held { .. }) => return,
        }
    }
}

/// A lease that may be taken.
struct Free {
    /// Of the message to replace; 0 for none.
    sequence: u64,
    /// Who had it last.
    before: Option<Holder>,
}

/// Waits until the lease is free; of `ended` no other run lives.
async fn free_behind(lane: &LaneClient, ended: Option<&str>) -> Result<Free, LeaseError> {
    let none = Free {
        sequence: 0,
        before: None,
    };
    let free = |sequence, holder| Free {
        sequence,
        before: Some(holder),
    };
    let Some(first) = lane.lease().await? else {
        return Ok(none);
    };
    let holder = Holder::read(&first)?;
    if holder.released || ended == Some(&holder.command) {
        return Ok(free(first.seq, holder));
    }
    tracing::info!(
        process = holder.process,
        "walrelay {} has begun at stream {} for slot {} and not ended: waiting {PATIENCE:?} for a sign of life from it",
        holder.command,
        lane.stream_name(),
        lane.slot()
    );
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        sleep(LOOK_INTERVAL).await;
        let Some(now) = lane.lease().await? else {
            return Ok(none);
        };
        if now.seq == first.seq {
            continue;
        }
        let holder = Holder::read(&now)?;
        if holder.released {
            return Ok(free(now.seq, holder));
        }
        return Err(LeaseError::Held {
            slot: lane.slot().to_owned(),
            stream: lane.stream_name().to_owned(),
            command: holder.command,
            process: holder.process,
            since: holder.since,
        });
    }
    Ok(free(first.seq, holder))
}
