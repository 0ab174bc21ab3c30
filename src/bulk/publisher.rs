//! From a source into the stream: stint after stint of the lane's own window, each on what the fence tells.
//!
//! In: sources, a lease and its fence. Out: their messages in the stream, in their order, and what became of each. Guarantee: what
//! is in doubt when a stint ends in a fault is looked up before anything else is published.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use tokio::time::Instant as TokioInstant;

use super::doubt::Doubt;
use super::fence::Fence;
use super::lease::Lease;
use super::pace::{Allowance, Pace};
use super::queue::Queue;
use super::source::Gap;
use super::stint::{Ended, Stint, Target, position};
use super::{Outcome, Queued, Source, refused};
use crate::nats::stream::StreamSettings;
use crate::pipeline::epochs::Epochs;
use crate::pipeline::fault::{Class, Fault};
use crate::pipeline::publish::{Mode, Offer};
use crate::pipeline::request::Request;
use crate::postgres::client::connect;
use crate::relay::Shutdown;
use crate::relay::broker::Broker;
use crate::relay::lane_client::LaneClient;
use crate::relay::lane_store::Answer;
use crate::relay::open_error::OpenError;
use crate::relay::settings::Settings;

/// For a single answer of the JetStream API.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// So long a batch is kept open for the source's next message.
const FEED_LIMIT: Duration = Duration::from_millis(20);
/// So long it is tried on without a message that is stored.
pub(super) const STUCK_LIMIT: Duration = Duration::from_secs(60);
/// So long where the stream is full and nobody takes anything out of it by reading.
const FULL_LIMIT: Duration = Duration::from_secs(10);
/// The same warning is not told again before.
const WARNING_INTERVAL: Duration = Duration::from_secs(20);

/// Publishes what sources yield.
pub struct Publisher<'a> {
    settings: &'a Settings,
    lane: LaneClient,
    lease: &'a Lease,
    fence: Fence,
    pace: Pace,
    queue: Queue,
    target: Option<Target>,
    doubt: Option<Doubt>,
    epochs: Epochs,
    clock: Instant,
    progress_at: Instant,
    /// When the first message of the stint was known to be stored.
    began: Option<Instant>,
    /// Number of the last message that is stored.
    done: u64,
    shutdown: Shutdown,
    /// What the stream must be where no lane lives in it.
    wanted: Option<StreamSettings>,
    /// Nothing goes behind a message that cannot be published.
    ends_at_gap: bool,
    /// What edits the stream, without the flags.
    edit: String,
    warned: Option<(String, Instant)>,
}

impl<'a> Publisher<'a> {
    /// Publishes behind `fence`, which was raised before it was decided what.
    ///
    /// # Errors
    /// Postgres cannot be reached.
    pub async fn new(
        settings: &'a Settings,
        lane: &LaneClient,
        lease: &'a Lease,
        fence: Fence,
    ) -> anyhow::Result<Self> {
        let pace = match settings.nats.shared {
            true => Pace::alone(),
            false => {
                let sql = connect(&settings.postgres.conninfo).await?;
                Pace::beside_relay(sql, &settings.postgres.slot)
            }
        };
        Ok(Self::paced(settings, lane, lease, fence, pace))
    }

    /// Publishes to a stream in which no lane lives, and which must be as `wanted`; `settings` name it.
    pub fn aside(
        settings: &'a Settings,
        stream: &LaneClient,
        lease: &'a Lease,
        fence: Fence,
        wanted: StreamSettings,
    ) -> Self {
        let publisher = Self::paced(settings, stream, lease, fence, Pace::alone());
        Publisher {
            wanted: Some(wanted),
            ..publisher
        }
    }

    fn paced(
        settings: &'a Settings,
        lane: &LaneClient,
        lease: &'a Lease,
        fence: Fence,
        pace: Pace,
    ) -> Self {
        Publisher {
            settings,
            lane: lane.clone(),
            lease,
            fence,
            pace,
            queue: Queue::new(),
            target: None,
            doubt: None,
            epochs: Epochs::new(settings.relay.backoff_max),
            clock: Instant::now(),
            progress_at: Instant::now(),
            began: None,
            done: 0,
            shutdown: Shutdown::never(),
            wanted: None,
            ends_at_gap: false,
            edit: format!("nats stream edit {}", lane.stream_name()),
            warned: None,
        }
    }

    /// Ends early by a signal: nothing more is handed over, and what is in flight is waited for.
    pub fn until(self, shutdown: Shutdown) -> Self {
        Publisher { shutdown, ..self }
    }

    /// Ends in front of the first message that the stream cannot take: who goes on behind the last one would miss it.
    pub fn without_gaps(self) -> Self {
        Publisher {
            ends_at_gap: true,
            ..self
        }
    }

    /// Has people edit the stream by this command, where `nats` goes to other servers by itself.
    pub fn edited_by(self, edit: String) -> Self {
        Publisher { edit, ..self }
    }

    /// Publishes all of a source, and tells `each` what became of one after the other.
    ///
    /// # Errors
    /// The source failed, the lease is lost, or the stream does not take messages; what is stored stays.
    pub async fn run(
        &mut self,
        source: Source,
        each: impl FnMut(Outcome<'_>),
    ) -> anyhow::Result<()> {
        let done = self.publish_all(source, each).await;
        if self.doubt.is_some() {
            // It may be on its way still once the lease is given back.
            self.lease.is_unfenced_now();
        }
        done
    }

    async fn publish_all(
        &mut self,
        source: Source,
        mut each: impl FnMut(Outcome<'_>),
    ) -> anyhow::Result<()> {
        self.queue.feed(source);
        let mut shutdown = self.shutdown.clone();
        while !shutdown.is_sent() {
            if self.doubt.is_none() {
                let has_next = tokio::select! {
                    has_next = self.queue.has_next(&mut each) => has_next?,
                    () = shutdown.wait() => false,
                };
                if !has_next {
                    break;
                }
            }
            let allowance = self.pace.allowance().await?;
            if allowance.contended {
                // What is not at hand by then would keep the relay waiting.
                let bytes_max = self.settings.relay.window_bytes_max;
                let gathered = self.queue.gather(allowance.messages, bytes_max, &mut each);
                tokio::select! {
                    () = gathered => {}
                    () = shutdown.wait() => break,
                }
            }
            let before = self.done;
            self.began = None;
            match self.stint(allowance, &mut each).await {
                Ok(last_sequence) => {
                    let took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
                    let stored = (self.done - before, took);
                    self.pace.rest(&self.lane, last_sequence, stored).await?;
                }
                Err(Ended::Fault(fault)) => self.pause(&fault, before).await?,
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
        if let Some(target) = self.target.take() {
            target.broker.connection.close().await;
        }
        Ok(())
    }

    /// One window's life: behind its place, until its allowance is used up or the source has ended. Returns its last sequence.
    async fn stint(
        &mut self,
        allowance: Allowance,
        each: &mut impl FnMut(Outcome<'_>),
    ) -> Result<u64, Ended> {
        let target = match self.target.take() {
            Some(target) => target,
            None => self.connect().await?,
        };
        let (place, stored) = self
            .fence
            .place_behind(self.lease, self.doubt.as_ref())
            .await?;
        if let Some(mut doubt) = self.doubt.take() {
            for stored in doubt.items.drain(..stored) {
                self.stored(&stored, each);
            }
            self.queue.put_back(doubt.items);
            if stored > 0 {
                self.progress_at = Instant::now();
            }
        }
        let mut stint = Stint::new(
            self.settings,
            target,
            &place,
            allowance,
            self.one_by_one(allowance),
            self.epochs.batch_messages_max(),
        );
        let ended = self.publish(&mut stint, each).await;
        match ended {
            Ok(()) => {
                let last_sequence = stint.window.last_sequence();
                self.fence.moved(last_sequence);
                self.target = Some(stint.target);
                Ok(last_sequence)
            }
            Err(ended) if stint.is_refused_alone(&ended) => {
                self.queue.put_back(stint.sent);
                self.target = Some(stint.target);
                Err(ended)
            }
            Err(ended) => {
                self.doubt = Some(Doubt {
                    last_sequence: stint.window.last_sequence(),
                    batch: stint.window.committing(),
                    items: stint.sent,
                });
                Err(ended)
            }
        }
    }

    fn stored(&mut self, stored: &Queued, each: &mut impl FnMut(Outcome<'_>)) {
        self.done = stored.number;
        each(Outcome::Published {
            name: &stored.item.name,
        });
    }

    fn one_by_one(&self, allowance: Allowance) -> u64 {
        self.epochs.one_by_one().max(u64::from(allowance.contended))
    }

    async fn publish(
        &mut self,
        stint: &mut Stint,
        each: &mut impl FnMut(Outcome<'_>),
    ) -> Result<(), Ended> {
        loop {
            let now = self.clock.elapsed();
            let ended = stint.take_answers(now);
            let stored = stint.take_stored();
            if !stored.is_empty() {
                self.fence.begun();
                self.progress_at = Instant::now();
                self.began.get_or_insert(self.progress_at);
            }
            for stored in stored {
                self.stored(&stored, each);
            }
            // Behind what is stored: the rest alone is in doubt.
            ended?;
            self.fill(stint, now, each);
            let deadline = stint.window.ack_deadline();
            if deadline.is_none() && (stint.left == 0 || self.queue.is_done()) {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(Fault::AckTimeout(stint.window.in_flight()).into());
            }
            let mut until = deadline.map_or(stint.until, |deadline| self.clock + deadline);
            if let Some(fed_at) = stint.fed_at {
                until = until.min(fed_at + FEED_LIMIT);
            }
            let reads = stint.left > 0 && stint.window.has_room();
            tokio::select! {
                exchanged = stint.target.broker.connection.exchange() => {
                    exchanged.map_err(|error| Fault::Broker(error.to_string()))?;
                }
                next = self.queue.next_of_source(), if reads => {
                    self.queue.take(next, each);
                }
                () = tokio::time::sleep_until(TokioInstant::from_std(until)) => {}
                () = self.shutdown.wait(), if stint.left > 0 => {}
            }
        }
    }

    /// Hands over what is at hand and has room.
    fn fill(&mut self, stint: &mut Stint, now: Duration, each: &mut impl FnMut(Outcome<'_>)) {
        if Instant::now() >= stint.until || self.shutdown.is_sent() {
            stint.left = 0;
        }
        while stint.left > 0 && stint.has_room() {
            let Some(next) = self.queue.next_ready(each) else {
                break;
            };
            stint.fed_at = Some(Instant::now());
            let refused = self.epochs.refused().get(&position(next.number));
            let rejected = match refused {
                Some(why) => Err((next.item.name, why.clone())),
                None => stint.send(next, now),
            };
            if let Err((name, why)) = rejected {
                match self.ends_at_gap {
                    true => {
                        let why = refused::with_remedy(&stint.target.config, &why, &self.edit);
                        self.queue.end(Gap::new(&name, &why).into());
                    }
                    false => each(Outcome::Rejected {
                        name: &name,
                        why: &why,
                    }),
                }
            }
        }
        // A source that is slow for a moment ends no batch.
        let is_starved = |fed_at: Instant| fed_at.elapsed() >= FEED_LIMIT;
        let dry = stint.left == 0 || self.queue.is_done() || stint.fed_at.is_some_and(is_starved);
        if dry {
            stint.fed_at = None;
        }
        let out = stint.target.broker.connection.outgoing();
        stint.window.end_turn(out, dry, None);
    }

    async fn connect(&self) -> Result<Target, Ended> {
        let Settings {
            nats,
            postgres,
            relay,
            name,
            ..
        } = self.settings;
        let mut broker = Broker::connect(nats, name, &postgres.slot, API_TIMEOUT, &[]).await?;
        if let Some(wanted) = &self.wanted {
            broker = broker.judging(wanted.clone());
        }
        let Answer::Stream(info, view) = broker.ask(&Request::Stream).await? else {
            unreachable!("the stream is asked for");
        };
        if let Some(unfit) = view.unfit {
            return Err(OpenError::Unfit(unfit).into());
        }
        let mode = Mode::pick(&Offer {
            server: broker.server().version,
            allow_batched: info.config.allow_batched,
            allow_atomic: info.config.allow_atomic,
            shared: nats.shared,
        });
        let mode = mode.map_err(|no_mode| Ended::Failed(no_mode.into()))?;
        let replicas = info.config.num_replicas;
        Ok(Target {
            broker,
            mode,
            messages_max: mode
                .preparation()
                .messages_max(replicas, relay.window_messages_max),
            config: info.config,
        })
    }

    /// Waits before the next stint, where waiting helps.
    async fn pause(&mut self, fault: &Fault, before: u64) -> anyhow::Result<()> {
        let told = self.told(fault);
        match fault.class() {
            Class::Transient => self.warn(&told),
            _ => tracing::debug!("the stint has ended: {told}"),
        }
        let stuck_for = self.progress_at.elapsed();
        if stuck_for > FULL_LIMIT
            && let Some(full) = self.full(fault, stuck_for > STUCK_LIMIT).await
        {
            bail!(
                "nothing could be published for {} s: {told}: lift that limit, and run this again: {full}",
                stuck_for.as_secs()
            );
        }
        if stuck_for > STUCK_LIMIT {
            bail!("nothing could be published for {STUCK_LIMIT:?}: {told}");
        }
        let progressed = self.done > before;
        let pause = self
            .epochs
            .ended(fault, Some(position(self.done)), progressed, 1.0)
            .map_err(|_| anyhow!("{told}"))?;
        // A place that another has taken is looked up again at once: the relay does not wait for us either.
        if fault.class() != Class::Resync {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// The fault, with its message as people know it.
    fn told(&self, fault: &Fault) -> String {
        let in_doubt = || self.doubt.iter().flat_map(|doubt| &doubt.items);
        refused::told(fault, self.lane.stream_name(), |position| {
            let mut all = in_doubt().chain(self.queue.ready());
            let found = all.find(|queued| queued.number == position.ordinal);
            found.map(|queued| queued.item.name.clone())
        })
    }

    /// What lifts the limit for which the stream refuses the message: where nothing goes out of it by being read, or it has been waited
    /// for that long enough.
    async fn full(&self, fault: &Fault, at_last: bool) -> Option<String> {
        let Fault::Refused { description, .. } = fault else {
            return None;
        };
        let config = self.lane.stream().await.ok()?.config;
        let remedy = refused::remedy(&config, description, &self.edit)?;
        (at_last || config.retention == "limits").then_some(remedy)
    }

    fn warn(&mut self, told: &str) {
        let is_told =
            |(last, at): &(String, Instant)| last == told && at.elapsed() < WARNING_INTERVAL;
        if !self.warned.as_ref().is_some_and(is_told) {
            tracing::warn!("trying on: {told}");
            self.warned = Some((told.to_owned(), Instant::now()));
        }
    }
}
