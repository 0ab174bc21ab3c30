//! Which of many alike occurrences are told in full: the first one, and then how many more there are, at times.
//!
//! In: occurrences, the time. Out: whether one is told in full, and counts of the others. Guarantee: each occurrence is told or
//! counted once, and a burst takes two lines at first and one each [`INTERVAL`], however many they are.

use std::time::Duration;

/// So often the others are counted; a burst ends with the first interval that has none.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Occurrences of one kind.
#[derive(Debug, Default)]
pub struct Burst {
    /// When the interval of now is over; none outside of a burst.
    until: Option<Duration>,
    untold: u64,
}

impl Burst {
    /// Something has occurred. Whether it is told in full; else it is counted.
    pub fn occurs(&mut self, now: Duration) -> bool {
        let in_burst = self.until.is_some();
        match in_burst {
            true => self.untold += 1,
            false => self.until = Some(now + INTERVAL),
        }
        !in_burst
    }

    /// How many more have occurred, where an interval that had any is over.
    pub fn poll(&mut self, now: Duration) -> Option<u64> {
        self.until.filter(|until| now >= *until)?;
        let more = self.end();
        self.until = more.map(|_| now + INTERVAL);
        more
    }

    /// How many were not told of yet, where nobody will poll any more.
    pub fn end(&mut self) -> Option<u64> {
        self.until = None;
        Some(std::mem::take(&mut self.untold)).filter(|more| *more > 0)
    }

    /// When [`Self::poll`] must be called at the latest.
    pub fn next_time(&self) -> Option<Duration> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_others_are_counted_once() {
        let at = Duration::from_secs;
        let mut burst = Burst::default();
        assert_eq!((burst.poll(at(1)), burst.next_time()), (None, None));
        assert!(burst.occurs(at(100)));
        assert!((0..5_000).all(|_| !burst.occurs(at(101))));
        assert_eq!(burst.poll(at(109)), None);
        assert_eq!(burst.next_time(), Some(at(110)));
        assert_eq!(burst.poll(at(110)), Some(5_000));
        // It goes on.
        assert!(!burst.occurs(at(119)));
        assert_eq!(burst.poll(at(120)), Some(1));
        // An interval without any ends it.
        assert_eq!((burst.poll(at(130)), burst.next_time()), (None, None));
        assert!(burst.occurs(at(131)));
        assert!(!burst.occurs(at(132)));
        assert_eq!((burst.end(), burst.end()), (Some(1), None));
    }

    #[test]
    fn ones_that_are_far_apart_are_told_in_full() {
        let at = Duration::from_secs;
        let mut burst = Burst::default();
        for time in [0, 20, 40] {
            assert!(burst.occurs(at(time)));
            assert_eq!(burst.poll(at(time + 10)), None);
        }
    }
}
