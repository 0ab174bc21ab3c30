//! The steps before the slot is told to forget: judge the stream, write the lane record, probe the stream, then confirm.
//!
//! In: how far the slot may be confirmed, the broker's answers to record and probes, the time. Out: what to ask the
//! broker next, and the LSN to confirm. Guarantee: an LSN comes out only after a record that names it was stored and
//! the stream was then seen to be the one that acknowledged: same `created`, last sequence not below, our last
//! message there or removed, and so the last one that the LSN covers.
//!
//! A record names only what was acknowledged before the stream was last seen to fit: an edited one may acknowledge what it
//! does not keep.
//!
//! An idle lane is looked at as well: a stream without replicas can come back without what it had while the relay's
//! connection to another node stays up, and then nothing but a look tells, before somebody else's messages hide it.

use super::end_search::StoredMessage;
use super::fault::{Fault, Halt, Stop};
use super::lane_end::LaneEnd;
use super::progress::Confirmable;
use super::request::StreamView;
use postgres_types::PgLsn;
use std::time::Duration;

/// Confirmations are at least this far apart: each costs the broker three small requests.
const INTERVAL: Duration = Duration::from_millis(250);
/// A record that only brings the position up to date may be this late; so much of the stream's end may be removed
/// while the relay is dead before a person has to look.
const RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// The stream is looked at this often even with nothing to confirm.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// And so often while messages in flight have no answer: an edit of the replicas swallows some.
const LOOK_INTERVAL_UNANSWERED: Duration = Duration::from_secs(1);

/// What the broker is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Store the record with this `confirmed_lsn`.
    Record(PgLsn),
    /// STREAM.INFO.
    Info,
    /// The message with this sequence.
    Message(u64),
}

#[derive(Debug)]
enum State {
    Idle,
    /// Before the record: does the stream still fit? It may acknowledge what it does not keep.
    Judging {
        target: PgLsn,
        sequence: u64,
    },
    /// Before the record leaves a message behind: the broker must still have it, or nobody would ever miss it.
    Leaving {
        target: PgLsn,
        sequence: u64,
    },
    /// Somebody else's message stands there: has the lane gone on behind it?
    Replaced {
        sequence: u64,
    },
    Recording {
        target: PgLsn,
    },
    Informing {
        target: PgLsn,
        sequence: u64,
    },
    Seeing {
        target: PgLsn,
    },
    Covering {
        target: PgLsn,
        sequence: u64,
    },
}

/// How far the slot may be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// How far.
    pub confirmable: Confirmable,
    /// More WAL is held back than may be: no pause between two confirmations.
    pub(crate) pressing: bool,
    /// Since when messages in flight wait for an answer.
    pub(crate) unanswered_since: Option<Duration>,
}

/// The confirmation under way.
#[derive(Debug)]
pub struct Confirm {
    state: State,
    stream: String,
    created: String,
    asked_at: Option<Duration>,
    confirmed_lsn: PgLsn,
    recorded_lsn: PgLsn,
    /// The lane's message that the record names.
    recorded: Option<LaneEnd>,
    record_wanted: bool,
    looked_at: Duration,
    lane_end: Option<LaneEnd>,
    /// The last message that was acknowledged before the stream was last seen to fit.
    sound: Option<LaneEnd>,
    /// The last acknowledged one when the STREAM.INFO under way was asked for.
    asked: Option<LaneEnd>,
    /// The stream was seen to acknowledge what it does not keep.
    doubted: bool,
    /// The last message of which the confirmation under way gives up the WAL.
    covered: Option<u64>,
    chained: bool,
    num_replicas: usize,
    timeout: Duration,
}

/// What is known at an epoch's beginning.
#[derive(Debug)]
pub struct Start {
    /// The stream.
    pub stream: String,
    /// When it was created, as the server writes it.
    pub created: String,
    /// What the slot has.
    pub confirmed_lsn: PgLsn,
    /// What the record allows the slot to be told.
    pub recorded_lsn: PgLsn,
    /// The lane's last message, which the record names.
    pub lane_end: Option<LaneEnd>,
    /// Each message tells which one it was to follow: a stream of our own.
    pub(crate) chained: bool,
    /// The stream's replicas.
    pub(crate) num_replicas: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

impl Confirm {
    /// Begins an epoch, at `now`.
    pub fn new(start: Start, now: Duration) -> Self {
        Confirm {
            state: State::Idle,
            stream: start.stream,
            created: start.created,
            asked_at: None,
            confirmed_lsn: start.confirmed_lsn,
            recorded_lsn: start.recorded_lsn.max(start.confirmed_lsn),
            recorded: start.lane_end.clone(),
            record_wanted: false,
            // The start has just looked.
            looked_at: now,
            sound: start.lane_end.clone(),
            asked: None,
            doubted: false,
            lane_end: start.lane_end,
            covered: None,
            chained: start.chained,
            num_replicas: start.num_replicas,
            timeout: start.timeout,
        }
    }

    /// A message of the lane was acknowledged.
    #[inline]
    pub fn acknowledged(&mut self, lane_end: LaneEnd) {
        self.lane_end = Some(lane_end);
    }

    /// The lane's last acknowledged message.
    pub fn lane_end(&self) -> Option<&LaneEnd> {
        self.lane_end.as_ref()
    }

    /// The lane's last message that was acknowledged before the stream was last seen to fit.
    pub fn sound(&self) -> Option<&LaneEnd> {
        self.sound.as_ref()
    }

    /// The stream was seen to acknowledge what it does not keep.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// The message that the record names.
    pub fn recorded_sequence(&self) -> Option<u64> {
        self.recorded.as_ref().map(|lane_end| lane_end.sequence)
    }

    /// What the slot has been told.
    pub fn confirmed_lsn(&self) -> PgLsn {
        self.confirmed_lsn
    }

    /// Nothing is being asked.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// What to ask next, if anything. `acknowledged_lsn` is what a new record allows the slot to be told later: written
    /// long before it is used, it is as safe from a broker's power failure as the events that are held back.
    /// `urgent` leaves no pause (a clean stop).
    pub fn poll(
        &mut self,
        due: Due,
        acknowledged_lsn: PgLsn,
        now: Duration,
        urgent: bool,
    ) -> Option<Ask> {
        if !self.is_idle() {
            return None;
        }
        let since = self.asked_at.map(|at| now.saturating_sub(at));
        let paused = |pause| !urgent && since.is_some_and(|since| since < pause);
        let target = due.confirmable.end_lsn.max(self.confirmed_lsn);
        let may_confirm = target > self.confirmed_lsn && (due.pressing || !paused(INTERVAL));
        let stale = self.record_is_stale() && !paused(RECORD_INTERVAL);
        let look = !urgent && now >= self.look_at(due.unanswered_since);
        if !may_confirm && !stale && !look {
            return None;
        }
        self.asked_at = Some(now);
        self.covered = due.confirmable.sequence.filter(|_| may_confirm);
        self.looked_at = now;
        if stale || target > self.recorded_lsn {
            self.recorded_lsn = self.recorded_lsn.max(acknowledged_lsn).max(target);
            return Some(self.inform(|sequence| State::Judging { target, sequence }));
        }
        Some(self.inform(|sequence| State::Informing { target, sequence }))
    }

    /// The stream fits: the record may say how far the lane came.
    fn judged(&mut self, target: PgLsn) -> Ask {
        let left = self.recorded.as_ref().filter(|_| self.chained);
        match left
            .filter(|left| Some(left.sequence) != self.sound.as_ref().map(|sound| sound.sequence))
        {
            Some(left) => {
                let sequence = left.sequence;
                self.state = State::Leaving { target, sequence };
                Ask::Message(sequence)
            }
            None => self.record(target),
        }
    }

    fn record(&mut self, target: PgLsn) -> Ask {
        self.recorded = self.sound.clone();
        self.record_wanted = false;
        self.state = State::Recording { target };
        Ask::Record(self.recorded_lsn)
    }

    fn is_tail(&self, sequence: u64) -> bool {
        self.lane_end
            .as_ref()
            .is_some_and(|lane_end| lane_end.sequence == sequence)
    }

    /// The record is to be written once more, with whatever it says then (a clean stop).
    pub(crate) fn want_record(&mut self) {
        self.record_wanted = true;
    }

    fn record_is_stale(&self) -> bool {
        self.record_wanted || self.lane_end != self.recorded
    }

    fn inform(&mut self, state: impl FnOnce(u64) -> State) -> Ask {
        self.asked = self.lane_end.clone();
        self.state = state(
            self.lane_end
                .as_ref()
                .map_or(0, |lane_end| lane_end.sequence),
        );
        Ask::Info
    }

    /// When the stream is to be looked at, whatever else there is to do.
    fn look_at(&self, unanswered_since: Option<Duration>) -> Duration {
        let at = self.looked_at + LOOK_INTERVAL;
        unanswered_since.map_or(at, |since| {
            at.min(since.max(self.looked_at) + LOOK_INTERVAL_UNANSWERED)
        })
    }

    /// When [`Self::poll`] is worth calling again.
    pub fn next_time(
        &self,
        confirmable: Confirmable,
        unanswered_since: Option<Duration>,
        urgent: bool,
    ) -> Option<Duration> {
        let asked_at = self.asked_at.unwrap_or_default();
        if !self.is_idle() {
            return Some(asked_at + self.timeout);
        }
        if confirmable.end_lsn > self.confirmed_lsn {
            return Some(asked_at + INTERVAL);
        }
        let record = self.record_is_stale().then_some(asked_at + RECORD_INTERVAL);
        let look = (!urgent).then(|| self.look_at(unanswered_since));
        record.into_iter().chain(look).min()
    }

    /// Whether the answer is overdue.
    ///
    /// # Errors
    /// The broker has not answered a record or a probe in time.
    pub(crate) fn check_time(&self, now: Duration) -> Result<(), Fault> {
        match self.asked_at {
            Some(at) if !self.is_idle() && now >= at + self.timeout => Err(Fault::Broker(
                "it does not answer: the lane record or the probe before a confirmation has come to nothing".into(),
            )),
            _ => Ok(()),
        }
    }

    /// The record was stored. Says what to ask next; a record that confirms nothing new needs no probe.
    pub fn recorded(&mut self) -> Option<Ask> {
        let State::Recording { target } = self.state else {
            return None;
        };
        if target <= self.confirmed_lsn {
            self.state = State::Idle;
            return None;
        }
        Some(self.inform(|sequence| State::Informing { target, sequence }))
    }

    /// The answer to STREAM.INFO.
    ///
    /// # Errors
    /// [`Fault::StreamLost`] when it is not the stream that acknowledged; [`Fault::Unready`] when it no longer fits: the
    /// next start says the same; [`Fault::Broker`] when its replicas are others, which decide how to publish.
    pub(crate) fn informed(&mut self, stream: StreamView) -> Result<Option<Ask>, Fault> {
        let (State::Judging { target, sequence } | State::Informing { target, sequence }) =
            self.state
        else {
            return Ok(None);
        };
        let StreamView {
            created,
            last_sequence,
            num_replicas,
            unfit,
            ..
        } = stream;
        if created != self.created {
            return Err(Fault::StreamLost(format!(
                "stream {} was created at {created}, not at {}",
                self.stream, self.created
            )));
        }
        if last_sequence < sequence {
            return Err(Fault::StreamLost(format!(
                "stream {} ends at sequence {last_sequence}, and {sequence} was acknowledged",
                self.stream
            )));
        }
        if let Some(unfit) = unfit {
            self.doubted = unfit.drops;
            return Err(Fault::Unready(unfit.reason));
        }
        if num_replicas != self.num_replicas {
            return Err(Fault::Broker(format!(
                "stream {} has {num_replicas} replicas now and had {}: what was on its way meanwhile may have no answer",
                self.stream, self.num_replicas
            )));
        }
        self.sound = self.asked.take();
        if let State::Judging { .. } = self.state {
            return Ok(Some(self.judged(target)));
        }
        match &self.lane_end {
            Some(lane_end) => {
                self.state = State::Seeing { target };
                Ok(Some(Ask::Message(lane_end.sequence)))
            }
            None => {
                self.done(target);
                Ok(None)
            }
        }
    }

    /// The answer to the request for a message, as its position header; `None` when it was removed. Says what to ask next.
    ///
    /// # Errors
    /// [`Fault::StreamLost`] when another message stands in the place of the lane's last: the next epoch begins before it.
    /// [`Halt::Replaced`] when one stands in the place of an earlier message, and the lane went on behind it.
    pub fn seen(&mut self, found: Option<&StoredMessage<'_>>) -> Result<Option<Ask>, Stop> {
        match self.state {
            State::Seeing { target } => {
                self.check_tail(found)?;
                let covered = self.covered.take();
                if let Some(sequence) = covered.filter(|sequence| !self.is_tail(*sequence)) {
                    self.state = State::Covering { target, sequence };
                    return Ok(Some(Ask::Message(sequence)));
                }
                self.done(target);
            }
            // The lane's last message is there, it has just been seen.
            State::Covering { sequence, .. } if is_replaced(found) => {
                return Err(self.replaced(sequence).into());
            }
            State::Covering { target, .. } => self.done(target),
            State::Leaving { sequence, .. } if is_replaced(found) => {
                self.state = State::Replaced { sequence };
                return Ok(self
                    .lane_end
                    .as_ref()
                    .map(|lane_end| Ask::Message(lane_end.sequence)));
            }
            State::Leaving { target, .. } => return Ok(Some(self.record(target))),
            State::Replaced { sequence } => {
                self.check_tail(found)?;
                return Err(match found {
                    Some(_) => self.replaced(sequence).into(),
                    None => Fault::StreamLost(format!(
                        "message {sequence} of stream {} is not the lane's any more",
                        self.stream
                    ))
                    .into(),
                });
            }
            State::Idle
            | State::Judging { .. }
            | State::Recording { .. }
            | State::Informing { .. } => {}
        }
        Ok(None)
    }

    fn replaced(&self, sequence: u64) -> Halt {
        Halt::Replaced {
            stream: self.stream.clone(),
            sequence,
        }
    }

    fn check_tail(&self, found: Option<&StoredMessage<'_>>) -> Result<(), Fault> {
        let Some(found) = found else {
            return Ok(());
        };
        let told = found.told_position();
        // An answer for an older message than the newest is fine: the chain proves what came after it.
        let Some(lane_end) = self
            .lane_end
            .as_ref()
            .filter(|lane_end| lane_end.sequence == found.sequence)
        else {
            return Ok(());
        };
        let is_ours = match found.is_first_publication() {
            true => told.map(|(_, position)| position) == Some(lane_end.position),
            false => told.is_some(),
        };
        if is_ours && (found.is_in_place() || !self.chained) {
            return Ok(());
        }
        Err(Fault::StreamLost(format!(
            "message {} of stream {} is not the event at {}",
            found.sequence, self.stream, lane_end.position
        )))
    }

    fn done(&mut self, target: PgLsn) {
        assert!(
            target >= self.confirmed_lsn && target <= self.recorded_lsn,
            "confirmed LSN would go from {} to {target}, recorded {}",
            self.confirmed_lsn,
            self.recorded_lsn
        );
        self.confirmed_lsn = target;
        self.state = State::Idle;
    }
}

/// Somebody else's message stands there.
fn is_replaced(found: Option<&StoredMessage<'_>>) -> bool {
    found.is_some_and(|found| !found.is_in_place())
}
