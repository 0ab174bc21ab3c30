//! How long the lane has been behind.
//!
//! In: looks at the end of the server's WAL, and how far the lane is. Out: for how long WAL has been there that is not yet
//! acknowledged. Guarantee: one clock, this process' own: a commit's time in the WAL is the server's, and under a replication
//! origin anything. Memory is bounded: however long an outage, about a thousand looks are kept.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// More looks than this are thinned out.
const LOOKS_MAX: usize = 1_000;

#[derive(Debug)]
struct Look {
    server_lsn: u64,
    at: Instant,
}

/// The looks at WAL that the lane has not passed, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Lag {
    looks: VecDeque<Look>,
}

impl Lag {
    /// The server's WAL ends there.
    pub(super) fn looked(&mut self, server_lsn: u64, at: Instant) {
        let last = self.looks.back();
        if last.is_some_and(|last| last.server_lsn >= server_lsn) {
            return;
        }
        if self.looks.len() >= LOOKS_MAX {
            // The oldest one stays: it is the one that counts.
            let mut keep = false;
            self.looks.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.looks.push_back(Look { server_lsn, at });
    }

    /// All below is acknowledged.
    pub(super) fn acknowledged(&mut self, lsn: u64) {
        while self
            .looks
            .front()
            .is_some_and(|look| look.server_lsn <= lsn)
        {
            self.looks.pop_front();
        }
    }

    /// For how long there has been WAL that is not acknowledged: at least so long, and at most the time between two looks
    /// longer.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let oldest = self.looks.front();
        oldest.map_or(Duration::ZERO, |look| {
            now.saturating_duration_since(look.at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_look_that_the_lane_has_not_passed_counts() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        assert_eq!(lag.age(at(9)), Duration::ZERO);
        lag.looked(100, at(0));
        // Nothing new was written.
        lag.looked(100, at(5));
        lag.looked(200, at(10));
        lag.looked(300, at(15));
        assert_eq!(lag.age(at(20)), Duration::from_secs(20));
        lag.acknowledged(99);
        assert_eq!(lag.age(at(20)), Duration::from_secs(20));
        lag.acknowledged(200);
        assert_eq!(lag.age(at(20)), Duration::from_secs(5));
        lag.acknowledged(300);
        assert_eq!(lag.age(at(20)), Duration::ZERO);
    }

    #[test]
    fn a_long_outage_keeps_the_oldest_look_and_few_others() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        for look in 1..100_000 {
            lag.looked(look, at(look));
        }
        assert!(lag.looks.len() <= LOOKS_MAX);
        assert_eq!(lag.age(at(100_000)), Duration::from_secs(99_999));
        lag.acknowledged(99_998);
        assert_eq!(lag.age(at(100_000)), Duration::from_secs(1));
    }
}
