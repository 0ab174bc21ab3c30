//! Whether a server's clock is this machine's.
//!
//! In: what it said, and when it was asked and had answered. Out: how far it is ahead. Guarantee: a slow answer is no difference.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Report;

/// What two clocks may differ before latencies mislead, in seconds.
const CLOCK_MAX_S: f64 = 0.5;

/// This machine's, in seconds since 1970.
pub(super) fn now_s() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// How far a clock that showed `server_s` at some time from `asked_s` to `answered_s` is ahead at least, in seconds; negative where it
/// is behind.
fn ahead_s(server_s: f64, asked_s: f64, answered_s: f64) -> f64 {
    server_s - server_s.clamp(asked_s, answered_s.max(asked_s))
}

impl Report {
    /// Latencies are made of two machines' clocks.
    pub(super) fn clock(&mut self, side: &str, server_s: f64, asked_s: f64) {
        let ahead_s = ahead_s(server_s, asked_s, now_s());
        if ahead_s.abs() > CLOCK_MAX_S {
            let way = if ahead_s > 0.0 { "ahead of" } else { "behind" };
            self.warn(
                "clock",
                format!(
                    "the clock of {side} is {:.1} s {way} this machine's: latencies and times of events mislead by as much",
                    ahead_s.abs()
                ),
                Some("let NTP (chrony, systemd-timesyncd) run on both machines".to_owned()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_time_of_the_answer_does_not_explain_is_a_difference() {
        for (server_s, expected) in [
            (7.0, -3.0),
            (10.0, 0.0),
            (11.5, 0.0),
            (12.0, 0.0),
            (14.0, 2.0),
        ] {
            assert_eq!(ahead_s(server_s, 10.0, 12.0), expected, "{server_s}");
        }
        // Ours was set back meanwhile.
        assert_eq!(ahead_s(10.0, 10.0, 9.0), 0.0);
        let mut report = Report::default();
        report.clock("NATS", now_s() - 60.0, now_s());
        let found = &report.findings[0];
        assert!(found.what.contains("behind this machine's"), "{found:?}");
        report.clock("NATS", now_s() + 60.0, now_s());
        let found = &report.findings[1];
        assert!(found.what.contains("ahead of this machine's"), "{found:?}");
        report.clock("NATS", now_s(), now_s());
        assert_eq!(report.findings.len(), 2);
    }
}
