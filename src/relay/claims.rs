//! Which lanes a process takes where it may have several: at most so many, and with less haste the more it has.
//!
//! In: how many lanes there are, how many one process may have. Out: a `Claim`, without which a lane does not begin. Guarantee: no
//! coordinator: who has a slot is for Postgres to say, a claim is only about when to try.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A process that has all lanes but one waits so long before it takes that one too: others, which have fewer, are there first.
const PATIENCE: Duration = Duration::from_secs(1);

/// The places for lanes in this process.
#[derive(Debug, Clone)]
pub struct Claims {
    places: Arc<Semaphore>,
    places_max: usize,
    lanes: usize,
}

/// A place for one lane, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    _place: OwnedSemaphorePermit,
}

impl Claims {
    /// Of `lanes`, at most `max` at once.
    #[must_use]
    pub fn new(lanes: usize, max: usize) -> Self {
        let places_max = max.min(lanes);
        Claims {
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            lanes,
        }
    }

    /// Whether the process has as many lanes as it may.
    pub(super) fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// Waits for a place, and then as long as fairness asks.
    pub(super) async fn claim(&self) -> Claim {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("nobody closes it");
        let others = self.places_max - self.places.available_permits() - 1;
        tokio::time::sleep(self.patience(others)).await;
        Claim { _place: place }
    }

    fn patience(&self, others: usize) -> Duration {
        let share = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        PATIENCE * share(others) / share(self.lanes.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_takes_at_most_its_places_and_the_later_ones_later() {
        let claims = Claims::new(4, 2);
        let begin = tokio::time::Instant::now();
        let first = claims.claim().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let _second = claims.claim().await;
        assert_eq!(begin.elapsed(), PATIENCE / 4);
        assert!(claims.is_full());
        drop(first);
        assert!(!claims.is_full());
        assert_eq!(Claims::new(1, 1).patience(0), Duration::ZERO);
    }
}
