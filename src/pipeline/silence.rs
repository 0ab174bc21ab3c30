//! Whether the replication stream still lives.
//!
//! In: when something was heard, the time. Out: when to ask the server for a sign of life, and when to give it up.
//! Guarantee: a stream on which nothing comes, neither data nor an answer, ends within the limit. Without this nobody
//! would notice: the server asks for signs of life, but a connection that the network has forgotten carries no
//! question.

use std::time::Duration;

/// The longest limit: what a person hears of it has to come soon.
const LIMIT_MAX: Duration = Duration::from_secs(10);

/// What is known of the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    limit: Duration,
    heard_at: Duration,
    asked: bool,
}

impl Silence {
    /// Begins to listen. `wal_sender_timeout` is the silence that the server itself endures; `None` is for ever.
    pub fn new(wal_sender_timeout: Option<Duration>, now: Duration) -> Self {
        Silence {
            limit: wal_sender_timeout.map_or(LIMIT_MAX, |timeout| timeout.min(LIMIT_MAX)),
            heard_at: now,
            asked: false,
        }
    }

    /// Something came, or nobody listens for the moment.
    pub fn heard(&mut self, now: Duration) {
        self.heard_at = now;
        self.asked = false;
    }

    /// Whether to ask for a sign of life now: once in each silence.
    pub fn asks(&mut self, now: Duration) -> bool {
        let asks = !self.asked && now >= self.asks_at();
        self.asked |= asks;
        asks
    }

    /// Whether the other side has not answered in time.
    pub(crate) fn is_over(&self, now: Duration) -> bool {
        now >= self.heard_at + self.limit
    }

    /// When to look again.
    pub fn next_time(&self) -> Duration {
        match self.asked {
            false => self.asks_at(),
            true => self.heard_at + self.limit,
        }
    }

    /// Before half of the limit has passed.
    fn asks_at(&self) -> Duration {
        self.heard_at + self.limit * 2 / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn asks_once_in_each_silence_and_ends_with_the_second() {
        let mut silence = Silence::new(Some(at(2_000)), at(100));
        assert!(!silence.asks(at(899)) && silence.next_time() == at(900));
        assert!(silence.asks(at(900)) && !silence.asks(at(901)));
        silence.heard(at(1_000));
        assert!(silence.asks(at(1_800)) && !silence.is_over(at(2_999)));
        assert_eq!(silence.next_time(), at(3_000));
        assert!(silence.is_over(at(3_000)));
    }

    #[test]
    fn a_server_that_waits_for_ever_is_not_waited_for_so_long() {
        for timeout in [None, Some(at(3_600_000))] {
            assert!(Silence::new(timeout, at(0)).is_over(LIMIT_MAX));
        }
    }
}
