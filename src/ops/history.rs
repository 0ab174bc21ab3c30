//! The last hour of a lane, for the page.
//!
//! In: a board, looked at each second. Out: points of rate, latency and lag, and the changes of its state. Guarantee: bounded;
//! what was before the last hour is forgotten, and all of it with the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::time::{MissedTickBehavior, interval};

use crate::pipeline::commit_time::Latencies;
use crate::relay::board::Board;
use crate::relay::status::{State, Status};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Of so long a time a point tells.
pub(super) const POINT_SECONDS: usize = 10;
/// An hour.
pub(super) const POINTS_MAX: usize = 3_600 / POINT_SECONDS;
const CHANGES_MAX: usize = 50;

/// What ten seconds were like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Events acknowledged, a second.
    pub(super) events_per_second: f64,
    /// 99 % of the transactions were acknowledged within so long, in µs; none where there were none.
    pub(super) latency_us: Option<u64>,
    /// The longest lag that was seen; none where it was not known, or another relay's.
    pub(super) lag_seconds: Option<u64>,
}

/// The relay has come into this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) at: DateTime<Utc>,
    pub(super) state: State,
    pub(super) reason: Option<String>,
}

/// What is known of a lane's last hour; oldest points first, newest changes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    pub(super) points: VecDeque<Point>,
    pub(super) changes: VecDeque<Change>,
    /// What the next point begins with.
    acknowledged: u64,
    /// When the state last changed; it may have come back between two looks.
    since: DateTime<Utc>,
    latencies: Latencies,
    lag_seconds: Option<u64>,
}

impl Past {
    /// Takes note of what the lane does now.
    fn look(&mut self, status: &Status) {
        let is_ours = status.state != State::Standby;
        self.lag_seconds = self.lag_seconds.max(status.lag_seconds.filter(|_| is_ours));
        let has_changed = self.since != status.since || self.changes.is_empty();
        let last = self.changes.front();
        if has_changed || last.is_some_and(|last| last.reason != status.reason) {
            let at = if has_changed {
                status.since
            } else {
                Utc::now()
            };
            self.since = status.since;
            self.changes.push_front(Change {
                at,
                state: status.state,
                reason: status.reason.clone(),
            });
            self.changes.truncate(CHANGES_MAX);
        }
    }

    /// Adds a point of so long a time.
    fn point(&mut self, status: &Status, elapsed: Duration) {
        let acknowledged = status.totals.acknowledged;
        let events = acknowledged.saturating_sub(self.acknowledged);
        let point = Point {
            events_per_second: events as f64 / elapsed.as_secs_f64().max(1e-3),
            latency_us: status.commit_to_ack.since(&self.latencies).at_most_us(0.99),
            lag_seconds: self.lag_seconds,
        };
        self.acknowledged = acknowledged;
        self.latencies = status.commit_to_ack.clone();
        self.lag_seconds = None;
        self.points.push_back(point);
        if self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }
}

/// The past of each lane, kept by a task.
#[derive(Debug, Clone)]
pub(super) struct History(Arc<Mutex<Vec<Past>>>);

impl History {
    pub(super) fn of(lanes: usize) -> Self {
        History(Arc::new(Mutex::new(vec![Past::default(); lanes])))
    }

    /// As it is now, in the order of the boards.
    pub(super) fn now(&self) -> Vec<Past> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Past>> {
        // What a panic left half written is still a picture.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the boards for ever.
    pub(super) async fn keep(self, boards: Arc<Vec<Board>>) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_point = Instant::now();
        loop {
            looks.tick().await;
            let elapsed = last_point.elapsed();
            let is_point = elapsed.as_secs() >= POINT_SECONDS as u64;
            for (past, board) in self.lock().iter_mut().zip(boards.iter()) {
                let status = board.status();
                past.look(&status);
                if is_point {
                    past.point(&status, elapsed);
                }
            }
            if is_point {
                last_point = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(acknowledged: u64, lag_seconds: u64) -> Status {
        let mut status = Status {
            lag_seconds: Some(lag_seconds),
            ..Status::default()
        };
        status.totals.acknowledged = acknowledged;
        status.commit_to_ack.counts[0] = acknowledged;
        status
    }

    #[test]
    fn a_point_tells_of_its_own_time_alone_and_the_hour_is_all() {
        let mut past = Past::default();
        past.look(&status(0, 7));
        past.look(&status(40, 2));
        past.point(&status(40, 2), Duration::from_secs(10));
        past.look(&Status {
            state: State::Standby,
            ..status(40, 9)
        });
        past.point(&status(40, 0), Duration::from_secs(10));
        let [first, second] = [past.points[0], past.points[1]];
        assert_eq!((first.events_per_second, first.lag_seconds), (4.0, Some(7)));
        assert!(first.latency_us.is_some());
        let nothing = Point {
            events_per_second: 0.0,
            latency_us: None,
            lag_seconds: None,
        };
        assert_eq!(second, nothing);
        for _ in 0..POINTS_MAX {
            past.point(&status(40, 0), Duration::from_secs(10));
        }
        assert_eq!(past.points.len(), POINTS_MAX);
        assert_eq!(past.points[0], nothing);
    }

    #[test]
    fn a_change_is_another_state_or_another_reason() {
        let mut past = Past::default();
        let mut now = status(0, 0);
        past.look(&now);
        past.look(&now);
        now.state = State::Waiting;
        now.since += chrono::TimeDelta::seconds(1);
        now.reason = Some("NATS: away".to_owned());
        past.look(&now);
        now.reason = Some("NATS: refused".to_owned());
        past.look(&now);
        let told: Vec<_> = past.changes.iter().map(|change| change.state).collect();
        assert_eq!(told, [State::Waiting, State::Waiting, State::Starting]);
        // Away and back between two looks.
        now.since += chrono::TimeDelta::seconds(1);
        past.look(&now);
        assert_eq!(past.changes.len(), 4);
    }
}
