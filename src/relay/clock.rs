//! The only clocks of the relay: a monotonic one for the engine, the wall clock for status updates and for what is told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// 2000-01-01 00:00:00 UTC in seconds of Unix time, where Postgres' clock begins.
const POSTGRES_EPOCH_UNIX_S: u64 = 946_684_800;

/// Time since the relay's start.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at zero.
    pub fn start() -> Self {
        Clock {
            start: Instant::now(),
        }
    }

    /// Time since the start.
    #[inline]
    pub fn now(self) -> Duration {
        self.start.elapsed()
    }

    /// That moment on this clock; its zero for one before.
    pub(super) fn at(self, moment: std::time::Instant) -> Duration {
        moment.saturating_duration_since(self.start.into_std())
    }
}

/// Sleeps until that time of the clock.
pub(super) async fn sleep_until(clock: Clock, until: Duration) {
    tokio::time::sleep_until(clock.start + until).await;
}

/// The wall clock as records and people have it: RFC 3339, to the second.
pub(crate) fn now_text() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// The wall clock in µs since 2000-01-01 UTC, as the replication protocol wants it.
pub(super) fn postgres_clock_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(POSTGRES_EPOCH_UNIX_S))
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        })
}
