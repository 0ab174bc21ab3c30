//! When transactions were committed, and how long they took from there to the acknowledgement of their last event.
//!
//! In: commit times as the WAL has them, the server's clock. Out: those that can be believed; a histogram. Guarantee: a commit
//! time is never believed blindly. Under a replication origin it is whatever the origin's session has set, often nothing or the
//! time of its first transaction; and a clock may be set.

use std::num::NonZeroI64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A commit time that is believed, in µs since 2000-01-01 UTC by the server's clock; none where it is not.
pub type CommitTime = Option<NonZeroI64>;

/// Transactions come in the order of their commits, and their times nearly so: one that is further off than this is not believed.
const TOLERANCE_US: i64 = 60_000_000;

/// Upper bounds of the histogram, in µs; what is above the last one is counted behind it.
pub const LATENCY_BOUNDS_US: [u64; 18] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
    7_200_000_000,
];

/// How long transactions took from their commit to the acknowledgement of their last event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// How many at or below each bound and above the one before; the last of them above all bounds.
    pub counts: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// Their sum in µs.
    pub sum_us: u64,
    /// Transactions whose commit time is not believed; they are in none of the others.
    pub unknown: u64,
}

impl Latencies {
    #[inline]
    fn take(&mut self, us: u64) {
        let bound = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        self.counts[bound] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Within which bound, in µs, this share of the transactions was; none where there was none, or it is above all bounds.
    #[allow(clippy::cast_precision_loss)]
    pub fn at_most_us(&self, share: f64) -> Option<u64> {
        let all: u64 = self.counts.iter().sum();
        let mut so_far = 0;
        let reached = self.counts.iter().position(|count| {
            so_far += count;
            all > 0 && so_far as f64 >= share * all as f64
        });
        LATENCY_BOUNDS_US.get(reached?).copied()
    }

    /// What was counted since then.
    pub fn since(&self, before: &Latencies) -> Latencies {
        let mut since = self.clone();
        for (count, before) in since.counts.iter_mut().zip(before.counts) {
            *count = count.saturating_sub(before);
        }
        since.sum_us = self.sum_us.saturating_sub(before.sum_us);
        since.unknown = self.unknown.saturating_sub(before.unknown);
        since
    }

    /// Adds what another epoch has counted.
    pub(crate) fn add(&mut self, other: &Latencies) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.unknown += other.unknown;
    }
}

/// The commit times of one epoch.
#[derive(Debug, Default)]
pub struct CommitTimes {
    /// The server's clock when the relay's began, in µs since 2000-01-01 UTC; none before it was seen.
    server_zero_us: Option<i64>,
    /// The latest one that was believed.
    latest_us: i64,
    latencies: Latencies,
}

impl CommitTimes {
    /// The server's clock showed `server_us` (µs since 2000-01-01 UTC) at `at`, or about then.
    pub fn seen_clock(&mut self, server_us: i64, at: Duration) {
        self.server_zero_us = Some(server_us.saturating_sub(micros(at)));
    }

    /// What can be believed of the commit time of a transaction that comes now, behind all that came before.
    #[inline]
    pub fn believed(&self, committed_at_us: i64, has_origin: bool, now: Duration) -> CommitTime {
        let server_now_us = self.server_zero_us?.saturating_add(micros(now));
        let is_believed = !has_origin
            && committed_at_us <= server_now_us.saturating_add(TOLERANCE_US)
            && committed_at_us >= self.latest_us.saturating_sub(TOLERANCE_US);
        NonZeroI64::new(committed_at_us).filter(|_| is_believed)
    }

    /// As [`Self::believed`], of a transaction that has come to its end.
    #[inline]
    pub fn committed(
        &mut self,
        committed_at_us: i64,
        has_origin: bool,
        now: Duration,
    ) -> CommitTime {
        let believed = self.believed(committed_at_us, has_origin, now);
        if believed.is_some() {
            self.latest_us = self.latest_us.max(committed_at_us);
        }
        believed
    }

    /// The last event of such a transaction is acknowledged.
    #[inline]
    pub fn acknowledged(&mut self, committed_at: CommitTime, now: Duration) {
        match self.server_zero_us.zip(committed_at) {
            Some((zero_us, committed_at)) => {
                let us = zero_us
                    .saturating_add(micros(now))
                    .saturating_sub(committed_at.get());
                // The server's clock is known to within a round trip.
                self.latencies.take(u64::try_from(us).unwrap_or(0));
            }
            None => self.latencies.unknown += 1,
        }
    }

    /// What was counted since the last call.
    pub fn take_latencies(&mut self) -> Latencies {
        std::mem::take(&mut self.latencies)
    }
}

#[inline]
fn micros(time: Duration) -> i64 {
    // In 64 bits: a hundred thousand years.
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_US: i64 = 850_000_000_000_000;
    const SECOND: i64 = 1_000_000;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn times() -> CommitTimes {
        let mut times = CommitTimes::default();
        assert_eq!(
            times.believed(SERVER_US, false, seconds(0)),
            None,
            "no clock was seen"
        );
        times.seen_clock(SERVER_US, seconds(10));
        times
    }

    #[test]
    fn a_commit_time_is_believed_where_clock_and_order_agree() {
        let mut times = times();
        let mut believed = |us, has_origin| times.committed(us, has_origin, seconds(10)).is_some();
        // The backlog of a night.
        assert!(believed(SERVER_US - 30_000 * SECOND, false));
        assert!(believed(SERVER_US - 29_999 * SECOND, false));
        assert!(believed(SERVER_US, false));
        // Two that commit at once may change places.
        assert!(believed(SERVER_US - SECOND, false));
        // An origin's session: nothing, or the time of its first transaction.
        assert!(!believed(0, true));
        assert!(!believed(SERVER_US, true));
        // The same, where the origin was dropped since and nobody says that there was one.
        assert!(!believed(0, false));
        assert!(!believed(SERVER_US - 61 * SECOND, false));
        // A clock that was set back since.
        assert!(!believed(SERVER_US + 61 * SECOND, false));
    }

    #[test]
    fn a_latency_is_counted_by_the_servers_clock() {
        let mut times = times();
        let committed = times.believed(SERVER_US, false, seconds(10));
        times.acknowledged(committed, Duration::from_millis(10_004));
        times.acknowledged(committed, seconds(9));
        times.acknowledged(committed, seconds(100_000));
        times.acknowledged(None, seconds(11));
        let latencies = times.take_latencies();
        let at = |us: u64| {
            LATENCY_BOUNDS_US
                .iter()
                .position(|bound| *bound == us)
                .unwrap()
        };
        assert_eq!(latencies.counts[at(5_000)], 1, "{latencies:?}");
        assert_eq!(latencies.counts[at(1_000)], 1, "{latencies:?}");
        assert_eq!(latencies.counts.last(), Some(&1), "{latencies:?}");
        assert_eq!(latencies.sum_us, 4_000 + 99_990 * 1_000_000);
        assert_eq!(latencies.unknown, 1);
        assert_eq!(latencies.at_most_us(0.5), Some(5_000));
        assert_eq!(latencies.at_most_us(0.99), None);
        assert_eq!(Latencies::default().at_most_us(0.5), None);
        assert_eq!(times.take_latencies(), Latencies::default());
    }
}
