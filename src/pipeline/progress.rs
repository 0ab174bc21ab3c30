//! Three marks on the WAL: received ≥ acknowledged ≥ confirmable.
//!
//! In: rows published, transactions completed, keepalives, acknowledgements (a contiguous prefix), the time.
//! Out: how far the slot may be confirmed. Guarantees: never past a row that is not acknowledged, never back, and
//! with everything acknowledged and old enough it reaches the end; an idle system's WAL is confirmed at once.
//!
//! Events are held back for `hold_back` after their acknowledgement, since JetStream acknowledges before it syncs;
//! WAL without events of ours is not. Memory is bounded: one mark for each row in flight, and held marks are merged
//! into about a hundred steps of the hold-back time. Held marks outlive the epoch: their time goes on.

use super::commit_time::{CommitTime, CommitTimes};
use postgres_types::PgLsn;
use std::collections::VecDeque;
use std::time::Duration;

/// Held marks are merged so that no more than about this many wait: the hold-back is exact to 1/128 of itself.
const HELD_MARKS_MAX: u32 = 128;

/// The hold-back never keeps more WAL than this, in bytes.
const HELD_BYTES_MAX: u64 = 1 << 30;

/// How much WAL the slot may keep, as the server says at one moment; none where it sets no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalRoom {
    /// `max_slot_wal_keep_size`, in bytes.
    pub limit_bytes: Option<u64>,
    /// What of it is left: `safe_wal_size`, in bytes.
    pub free_bytes: Option<u64>,
}

impl WalRoom {
    /// Most WAL that the hold-back may keep, where it keeps `held_bytes` now: a quarter of the limit, and of what is free
    /// or held already. Postgres keeps the WAL from restart_lsn on, and that follows the confirmed LSN in steps as large
    /// as what is held back: so the slot keeps about half.
    pub fn held_bytes_max(self, held_bytes: u64) -> u64 {
        let free_or_held = self.free_bytes.map(|free| free.saturating_add(held_bytes));
        [self.limit_bytes, free_or_held]
            .into_iter()
            .flatten()
            .map(|bytes| bytes / 4)
            .fold(HELD_BYTES_MAX, u64::min)
    }
}

/// The end of a transaction, or a keepalive, in the order of the WAL.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Reached once so many rows of this epoch are acknowledged.
    rows: u64,
    /// What may be confirmed then.
    end_lsn: PgLsn,
    /// The mark ends events of ours, not just WAL.
    events: bool,
    /// It ends a transaction of which rows have left for the first time.
    committed_at: Option<CommitTime>,
}

/// A transaction's end, and when it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where it ends; of one that has not come to its end yet, where its commit record begins.
    pub lsn: PgLsn,
    /// In µs since 2000-01-01 UTC.
    pub at_us: i64,
}

impl Commit {
    /// None where the time is not believed.
    pub(super) fn of(lsn: PgLsn, at: CommitTime) -> Option<Self> {
        at.map(|at| Commit {
            lsn,
            at_us: at.get(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Of the last message before it; see [`Confirmable`].
    sequence: Option<u64>,
    end_lsn: PgLsn,
    /// When the first of the merged marks came.
    opened: Duration,
    due: Duration,
}

/// Acknowledged marks that wait for their time, as one epoch leaves them to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldMarks(VecDeque<Held>);

/// How far the slot may be confirmed, and through which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmable {
    /// All WAL below it is either without events, or its events are acknowledged and old enough.
    pub end_lsn: PgLsn,
    /// Stream sequence of the last message that this covers; none where only the broker knows it, or where none of this
    /// process' own is covered.
    pub sequence: Option<u64>,
}

/// The marks of one epoch.
#[derive(Debug)]
pub struct Progress {
    hold_back: Duration,
    held_bytes_max: u64,
    received_lsn: PgLsn,
    acknowledged_lsn: PgLsn,
    published: u64,
    acknowledged: u64,
    /// Of the last acknowledged row, where that is known.
    last_sequence: Option<u64>,
    in_flight: VecDeque<Mark>,
    held: VecDeque<Held>,
    confirmable: Confirmable,
    held_cut_short: u64,
    commit_times: CommitTimes,
    last_commit: Option<Commit>,
}

impl Progress {
    /// Begins an epoch at the slot's confirmed LSN. `held_bytes_max` bounds the WAL that the hold-back may keep.
    pub fn new(confirmed_flush_lsn: PgLsn, hold_back: Duration, held_bytes_max: u64) -> Self {
        Progress {
            hold_back,
            held_bytes_max,
            received_lsn: confirmed_flush_lsn,
            acknowledged_lsn: confirmed_flush_lsn,
            published: 0,
            acknowledged: 0,
            last_sequence: None,
            in_flight: VecDeque::new(),
            held: VecDeque::new(),
            confirmable: Confirmable {
                end_lsn: confirmed_flush_lsn,
                sequence: None,
            },
            held_cut_short: 0,
            commit_times: CommitTimes::default(),
            last_commit: None,
        }
    }

    /// The commit times of this epoch, to be read.
    pub(super) fn known_commit_times(&self) -> &CommitTimes {
        &self.commit_times
    }

    /// The commit times of this epoch.
    pub fn commit_times(&mut self) -> &mut CommitTimes {
        &mut self.commit_times
    }

    /// The oldest transaction whose events are not all acknowledged, of those that have come whole.
    pub(super) fn oldest_commit(&self) -> Option<Commit> {
        let mark = self.in_flight.front()?;
        Commit::of(mark.end_lsn, mark.committed_at.flatten())
    }

    /// The last transaction whose events are all acknowledged.
    pub(super) fn last_commit(&self) -> Option<Commit> {
        self.last_commit
    }

    /// The marks that wait for their time.
    pub fn held(&self) -> HeldMarks {
        HeldMarks(self.held.clone())
    }

    /// Goes on with the held marks of the epoch before, at their own times. The caller has seen that what they cover still
    /// stands. An epoch that has marks already keeps its own.
    pub fn adopt(&mut self, HeldMarks(mut held): HeldMarks) {
        if !self.held.is_empty() || !self.in_flight.is_empty() {
            return;
        }
        held.retain(|mark| mark.end_lsn > self.acknowledged_lsn);
        if let Some(last) = held.back() {
            self.acknowledged_lsn = last.end_lsn;
            self.received(last.end_lsn);
        }
        self.held = held;
    }

    /// All that is held is held from now on: what has acknowledged it is gone, and may not have synced it.
    pub(crate) fn hold_anew(&mut self, now: Duration) {
        for held in &mut self.held {
            (held.opened, held.due) = (now, now + self.hold_back);
        }
    }

    /// The slot may keep so much WAL from now on. What an outage has filled is free again once it is confirmed, and a
    /// person may have changed the limit.
    pub fn may_keep(&mut self, room: WalRoom) {
        self.held_bytes_max = room.held_bytes_max(self.held_bytes());
    }

    /// WAL that has arrived and may not be confirmed yet, in bytes.
    fn held_bytes(&self) -> u64 {
        u64::from(self.received_lsn).saturating_sub(self.confirmable.end_lsn.into())
    }

    /// WAL up to `lsn` has arrived.
    #[inline]
    pub fn received(&mut self, lsn: PgLsn) {
        self.received_lsn = self.received_lsn.max(lsn);
    }

    /// One more row has been handed to the broker.
    #[inline]
    pub fn published(&mut self) {
        self.published += 1;
    }

    /// A transaction with rows of ours is complete. Where some of them have left for the first time, it was committed then;
    /// none where all were published before.
    #[inline]
    pub fn committed(&mut self, end_lsn: PgLsn, at: Option<CommitTime>, now: Duration) {
        self.mark(end_lsn, true, at, now);
    }

    /// WAL without events: a transaction that has none, or a keepalive between transactions, before which all has come
    /// that commits at or below its LSN.
    pub fn idle(&mut self, lsn: PgLsn, now: Duration) {
        self.mark(lsn, false, None, now);
    }

    #[inline]
    fn mark(
        &mut self,
        end_lsn: PgLsn,
        events: bool,
        committed_at: Option<CommitTime>,
        now: Duration,
    ) {
        self.received(end_lsn);
        if end_lsn <= self.latest_marked() {
            return;
        }
        let mark = Mark {
            rows: self.published,
            end_lsn,
            events,
            committed_at,
        };
        match self.in_flight.back_mut() {
            Some(last) if last.rows == mark.rows => {
                last.end_lsn = end_lsn;
                last.events |= events;
            }
            _ => self.in_flight.push_back(mark),
        }
        self.settle(now);
    }

    fn latest_marked(&self) -> PgLsn {
        self.in_flight
            .back()
            .map_or(self.acknowledged_lsn, |mark| mark.end_lsn)
    }

    /// The first `count` rows of this epoch are acknowledged, the last of them as the message with this sequence, if that is
    /// known; those that were not acknowledged before stand right before it.
    ///
    /// # Panics
    /// When more rows are acknowledged than were published: then no mark could be trusted any more.
    #[inline]
    pub fn acknowledged(&mut self, count: u64, sequence: Option<u64>, now: Duration) {
        assert!(
            count <= self.published,
            "{count} rows acknowledged of {} published",
            self.published
        );
        if count > self.acknowledged {
            (self.acknowledged, self.last_sequence) = (count, sequence);
        }
        self.settle(now);
    }

    /// Moves reached marks from in flight to held.
    fn settle(&mut self, now: Duration) {
        while let Some(mark) = self
            .in_flight
            .front()
            .copied()
            .filter(|mark| mark.rows <= self.acknowledged)
        {
            self.in_flight.pop_front();
            assert!(
                mark.end_lsn >= self.acknowledged_lsn,
                "acknowledged LSN would go back from {} to {}",
                self.acknowledged_lsn,
                mark.end_lsn
            );
            self.acknowledged_lsn = mark.end_lsn;
            if let Some(committed_at) = mark.committed_at {
                self.commit_times.acknowledged(committed_at, now);
                self.last_commit = Commit::of(mark.end_lsn, committed_at).or(self.last_commit);
            }
            self.hold(mark, now);
        }
    }

    fn hold(&mut self, mark: Mark, now: Duration) {
        let due = if mark.events {
            now + self.hold_back
        } else {
            now
        };
        let step = self.hold_back / HELD_MARKS_MAX;
        let behind = self.acknowledged - mark.rows;
        let sequence = self.last_sequence.filter(|_| mark.rows > 0);
        let earlier = self.held.back().and_then(|last| last.sequence);
        let held = Held {
            sequence: sequence.map(|last| last - behind).or(earlier),
            end_lsn: mark.end_lsn,
            opened: now,
            due,
        };
        match self.held.back_mut() {
            // WAL without events waits only for the events before it.
            Some(last) if !mark.events => {
                (last.sequence, last.end_lsn) = (held.sequence, held.end_lsn);
            }
            // Merging delays the older events by at most a step; it confirms none early.
            Some(last) if now.saturating_sub(last.opened) < step => {
                *last = Held {
                    opened: last.opened,
                    ..held
                };
            }
            _ => self.held.push_back(held),
        }
    }

    /// How far the slot may be confirmed now.
    pub fn confirmable(&mut self, now: Duration) -> Confirmable {
        while let Some(held) = self.held.front().copied() {
            let too_much_wal = self.held_bytes() > self.held_bytes_max;
            if held.due > now && !too_much_wal {
                break;
            }
            if held.due > now {
                self.held_cut_short += 1;
            }
            self.held.pop_front();
            assert!(held.end_lsn >= self.confirmable.end_lsn);
            self.confirmable = Confirmable {
                end_lsn: held.end_lsn,
                sequence: held.sequence,
            };
        }
        self.confirmable
    }

    /// Whether the slot, confirmed up to `confirmed_lsn`, keeps more WAL than the hold-back may keep.
    pub(crate) fn keeps_too_much(&self, confirmed_lsn: PgLsn) -> bool {
        u64::from(self.received_lsn).saturating_sub(confirmed_lsn.into()) > self.held_bytes_max
    }

    /// When [`Self::confirmable`] will next grow by the passing of time alone.
    pub fn next_due(&self) -> Option<Duration> {
        self.held.front().map(|held| held.due)
    }

    /// How much WAL has arrived.
    pub(crate) fn received_lsn(&self) -> PgLsn {
        self.received_lsn
    }

    /// End of the last transaction or idle WAL of which all is acknowledged.
    pub fn acknowledged_lsn(&self) -> PgLsn {
        self.acknowledged_lsn
    }

    /// Rows handed to the broker in this epoch.
    pub(crate) fn published_rows(&self) -> u64 {
        self.published
    }

    /// Rows acknowledged in this epoch, a contiguous prefix.
    pub(crate) fn acknowledged_rows(&self) -> u64 {
        self.acknowledged
    }

    /// How often the hold-back was cut short because it held too much WAL.
    pub(crate) fn held_cut_short(&self) -> u64 {
        self.held_cut_short
    }
}
