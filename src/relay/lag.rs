//! For how long there has been WAL that the lane has not come to.
//!
//! In: samples: that the server's WAL reached an LSN at a time, from looks at the server and from commits as they come. Out: the age
//! of what is behind an LSN. Guarantees: at least so old, and at most the time between two samples older; after a restart behind a backlog
//! it counts from the commit of the first transaction that comes, not from the process' start. Memory is bounded: however long an
//! outage, about a thousand samples are kept.

use std::collections::VecDeque;
use std::time::Duration;

/// More samples than this are thinned out.
const SAMPLES_MAX: usize = 1_000;

#[derive(Debug)]
struct Sample {
    lsn: u64,
    /// On a clock with any zero.
    at_us: i64,
}

/// When the WAL was how long, as far as the lane has not confirmed it; LSNs and times both rise.
#[derive(Debug, Default)]
pub(super) struct Lag {
    samples: VecDeque<Sample>,
}

impl Lag {
    /// The server's WAL reached that LSN then, or before.
    pub(super) fn reached(&mut self, lsn: u64, at_us: i64) {
        let mut index = self.samples.partition_point(|sample| sample.lsn < lsn);
        // A longer WAL was there by then.
        if (self.samples.get(index)).is_some_and(|next| next.at_us <= at_us) {
            return;
        }
        // A shorter one was there before a longer one.
        while index > 0 && self.samples[index - 1].at_us >= at_us {
            index -= 1;
            self.samples.remove(index);
        }
        if self.samples.len() >= SAMPLES_MAX {
            // The oldest one stays: it is the one that counts.
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            index = self.samples.partition_point(|sample| sample.lsn < lsn);
        }
        self.samples.insert(index, Sample { lsn, at_us });
    }

    /// All below needs no age any more.
    pub(super) fn passed(&mut self, lsn: u64) {
        while (self.samples.front()).is_some_and(|sample| sample.lsn <= lsn) {
            self.samples.pop_front();
        }
    }

    /// For how long there has been WAL behind that LSN.
    pub(super) fn age(&self, lsn: u64, now_us: i64) -> Duration {
        let index = self.samples.partition_point(|sample| sample.lsn <= lsn);
        self.samples.get(index).map_or(Duration::ZERO, |sample| {
            Duration::from_micros(u64::try_from(now_us - sample.at_us).unwrap_or(0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn age(lag: &Lag, lsn: u64, now_s: i64) -> u64 {
        lag.age(lsn, now_s * SECOND).as_secs()
    }

    #[test]
    fn the_oldest_sample_that_the_lane_has_not_passed_counts() {
        let mut lag = Lag::default();
        assert_eq!(age(&lag, 0, 9), 0);
        lag.reached(100, 0);
        // Nothing new was written.
        lag.reached(100, 5 * SECOND);
        lag.reached(200, 10 * SECOND);
        lag.reached(300, 15 * SECOND);
        assert_eq!(age(&lag, 99, 20), 20);
        // The lane is further in some respects than in others.
        assert_eq!(age(&lag, 200, 20), 5);
        assert_eq!(age(&lag, 300, 20), 0);
        lag.passed(200);
        assert_eq!(age(&lag, 99, 20), 5);
    }

    #[test]
    fn a_backlog_from_before_the_process_is_as_old_as_its_commits() {
        let mut lag = Lag::default();
        lag.reached(1_000, 0);
        assert_eq!(age(&lag, 100, 3), 3);
        // The first of it comes.
        lag.reached(110, -3_600 * SECOND);
        assert_eq!(age(&lag, 100, 3), 3_603);
        lag.reached(500, -1_800 * SECOND);
        assert_eq!(age(&lag, 110, 3), 1_803);
        assert_eq!(age(&lag, 500, 3), 3);
        // What is told of a place cannot be younger than what lies behind it.
        lag.reached(600, -7_200 * SECOND);
        assert_eq!(age(&lag, 110, 3), 7_203);
    }

    #[test]
    fn a_long_outage_keeps_the_oldest_sample_and_few_others() {
        let mut lag = Lag::default();
        for sample in 1..100_000 {
            lag.reached(sample, sample.cast_signed() * SECOND);
        }
        assert!(lag.samples.len() <= SAMPLES_MAX);
        assert_eq!(age(&lag, 0, 100_000), 99_999);
        assert_eq!(age(&lag, 99_998, 100_000), 1);
    }
}
