//! Whether the catalog is still looked at: rows that Postgres passes over are seen there and nowhere else.
//!
//! In: looks that saw something, the reasons of those that did not, the time. Out: what a person is told: once that nothing
//! has been seen for too long, and once that it is over.

use std::time::Duration;

/// So long nothing may be seen before it is told.
pub const BLIND_AFTER: Duration = Duration::from_secs(30);

/// Looks at the catalog of one epoch.
#[derive(Debug)]
pub struct Sight {
    seen_at: Duration,
    reason: Option<String>,
    is_told: bool,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing has been seen for [`BLIND_AFTER`]; why not.
    Blind(String),
    /// The catalog is looked at again.
    Sees,
}

impl Sight {
    /// The epoch's start has seen the catalog.
    pub fn new(now: Duration) -> Self {
        Sight {
            seen_at: now,
            reason: None,
            is_told: false,
        }
    }

    /// A look has seen the catalog.
    pub fn seen(&mut self, now: Duration) -> Option<Change> {
        self.seen_at = now;
        self.reason = None;
        std::mem::take(&mut self.is_told).then_some(Change::Sees)
    }

    /// A look has seen nothing.
    pub fn missed(&mut self, reason: String) {
        self.reason = Some(reason);
    }

    /// What has become due by time.
    pub fn poll(&mut self, now: Duration) -> Option<Change> {
        if self.is_told || now < self.seen_at + BLIND_AFTER {
            return None;
        }
        self.is_told = true;
        let reason = self.reason.clone();
        Some(Change::Blind(
            reason.unwrap_or_else(|| "no look has ended".into()),
        ))
    }

    /// When [`Self::poll`] must be called at the latest; none where everything is told.
    pub fn next_time(&self) -> Option<Duration> {
        (!self.is_told).then_some(self.seen_at + BLIND_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blindness_is_told_once_and_so_is_its_end() {
        let at = Duration::from_secs;
        let mut sight = Sight::new(at(100));
        assert_eq!(sight.poll(at(129)), None);
        assert_eq!(sight.seen(at(110)), None, "nobody was told of anything");
        assert_eq!(sight.next_time(), Some(at(140)));
        sight.missed("a lock".into());
        assert_eq!(sight.poll(at(139)), None);
        sight.missed("refused".into());
        assert_eq!(sight.poll(at(140)), Some(Change::Blind("refused".into())));
        assert_eq!((sight.poll(at(1_000)), sight.next_time()), (None, None));
        assert_eq!(sight.seen(at(1_001)), Some(Change::Sees));
        assert_eq!(sight.poll(at(1_002)), None);
        // A watch that ended without a word is one that sees nothing.
        assert!(matches!(sight.poll(at(1_031)), Some(Change::Blind(_))));
    }
}
