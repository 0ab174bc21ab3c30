//! The server's timelines: how far another timeline's LSNs mean the same on this one.
//!
//! In: the server's timeline and its history file. Out: for any timeline, the LSN up to which the two share their WAL.
//! A promotion and a point-in-time recovery begin a new timeline; LSNs behind the switch are used again there.
//! Documentation: Postgres manual 54.4, TIMELINE_HISTORY.

use postgres_types::PgLsn;

/// Where the server's WAL comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: u32,
    /// Timelines before this one, and where each was left.
    left: Vec<(u32, PgLsn)>,
}

/// A line of a history file that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} cannot be read: {line:?}")]
pub struct HistoryError {
    timeline: u32,
    line: String,
}

impl History {
    /// A timeline without one before it.
    pub fn first(timeline: u32) -> Self {
        History {
            timeline,
            left: Vec::new(),
        }
    }

    /// Reads the history file of a timeline: a line for each one before it, `<timeline> <LSN> <reason>`.
    ///
    /// # Errors
    /// A line of another form.
    pub fn parse(timeline: u32, file: &str) -> Result<Self, HistoryError> {
        let mut left = Vec::new();
        for line in file.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_whitespace();
            let read = fields
                .next()
                .and_then(|field| field.parse().ok())
                .zip(fields.next().and_then(|field| field.parse().ok()));
            left.push(read.ok_or_else(|| HistoryError {
                timeline,
                line: line.chars().take(80).collect(),
            })?);
        }
        Ok(History { timeline, left })
    }

    /// The server's timeline.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Up to where WAL of `timeline` is this server's too; nothing of a timeline that it does not come from.
    pub fn shared_through(&self, timeline: u32) -> PgLsn {
        if timeline == self.timeline {
            return u64::MAX.into();
        }
        self.left
            .iter()
            .find(|(left, _)| *left == timeline)
            .map_or(0.into(), |(_, lsn)| *lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_with_the_timelines_before() {
        let file = "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/5000060\tbefore 2026\n";
        let history = History::parse(3, file).expect("two lines");
        let through = |timeline| history.shared_through(timeline);
        assert_eq!(through(1), PgLsn::from(0x300_0000));
        assert_eq!(through(2), PgLsn::from(0x500_0060));
        assert_eq!(through(3), PgLsn::from(u64::MAX));
        assert_eq!(through(4), PgLsn::from(0), "not one of its own");
        assert_eq!(History::first(1).shared_through(1), PgLsn::from(u64::MAX));
    }

    #[test]
    fn a_line_of_another_form_is_refused() {
        for file in ["1", "x\t0/1\t", "1\tnowhere\t"] {
            assert!(History::parse(2, file).is_err(), "{file}");
        }
    }
}
