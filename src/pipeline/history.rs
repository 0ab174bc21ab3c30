//! The server's timelines: how far the LSNs of another history mean the same in this one.
//!
//! In: the server's timeline and its history file. Out: for any other history, the LSN up to which the two share their WAL.
//! A promotion and a point-in-time recovery begin a new timeline; LSNs behind the switch are used again there. The number
//! of a timeline names none: two standbys that are promoted without knowing of each other take the same one.
//! Documentation: Postgres manual 54.4, TIMELINE_HISTORY.

use super::text;
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

/// Where the server's WAL comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: u32,
    switches: Option<Vec<Switch>>,
}

/// The end of a timeline in a history: the next one begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// Which one was left.
    pub timeline: u32,
    /// Where.
    #[serde(with = "text")]
    pub lsn: PgLsn,
}

/// A line of a history file that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} cannot be read: {line:?}")]
pub struct HistoryError {
    timeline: u32,
    line: String,
}

impl History {
    /// A timeline with `switches` before it; none where nobody knows them.
    pub fn new(timeline: u32, switches: Option<Vec<Switch>>) -> Self {
        History { timeline, switches }
    }

    /// The first timeline of a cluster.
    pub fn first() -> Self {
        History::new(1, Some(Vec::new()))
    }

    /// Reads the history file of a timeline: a line for each one before it, `<timeline> <LSN> <reason>`.
    ///
    /// # Errors
    /// A line of another form.
    pub fn parse(timeline: u32, file: &str) -> Result<Self, HistoryError> {
        let mut switches = Vec::new();
        for line in file.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_whitespace();
            let read = fields
                .next()
                .and_then(|field| field.parse().ok())
                .zip(fields.next().and_then(|field| field.parse().ok()));
            let (timeline, lsn) = read.ok_or_else(|| HistoryError {
                timeline,
                line: line.chars().take(80).collect(),
            })?;
            switches.push(Switch { timeline, lsn });
        }
        Ok(History::new(timeline, Some(switches)))
    }

    /// The server's timeline.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The timelines before it, the oldest first; none where nobody knows them.
    pub fn switches(&self) -> Option<&[Switch]> {
        self.switches.as_deref()
    }

    /// Up to where WAL of `other` is this server's too. Where the switches of either are not known, the number of the other's
    /// timeline has to do.
    pub(crate) fn shared_with(&self, other: &History) -> PgLsn {
        if self.switches.is_some() && other.switches.is_some() {
            let mut shared = 0.into();
            for (here, there) in self.stretches().zip(other.stretches()) {
                if here.timeline != there.timeline {
                    break;
                }
                shared = here.lsn.min(there.lsn);
                if here.lsn != there.lsn {
                    break;
                }
            }
            return shared;
        }
        self.stretches()
            .find(|stretch| stretch.timeline == other.timeline)
            .map_or(0.into(), |stretch| stretch.lsn)
    }

    /// Each timeline and its end; the server's own has none yet.
    fn stretches(&self) -> impl Iterator<Item = Switch> + '_ {
        let own = Switch {
            timeline: self.timeline,
            lsn: u64::MAX.into(),
        };
        self.switches.iter().flatten().copied().chain([own])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_with_the_timelines_before() {
        let file = "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/5000060\tbefore 2026\n";
        let history = History::parse(3, file).expect("two lines");
        let through = |timeline| history.shared_with(&History::new(timeline, None));
        assert_eq!(through(1), PgLsn::from(0x300_0000));
        assert_eq!(through(2), PgLsn::from(0x500_0060));
        assert_eq!(through(3), PgLsn::from(u64::MAX));
        assert_eq!(through(4), PgLsn::from(0), "not one of its own");
        let first = History::first();
        assert_eq!(first.shared_with(&first), PgLsn::from(u64::MAX));
    }

    #[test]
    fn a_number_names_no_timeline() {
        let history = |timeline, file| History::parse(timeline, file).expect("a history");
        let shared = |one: &History, other: &History| {
            assert_eq!(one.shared_with(other), other.shared_with(one));
            u64::from(one.shared_with(other))
        };
        let lost = history(2, "1 0/30 promoted");
        let promoted = history(2, "1 0/20 promoted");
        assert_eq!(shared(&lost, &promoted), 0x20);
        assert_eq!(shared(&lost, &lost.clone()), u64::MAX);
        assert_eq!(shared(&lost, &History::first()), 0x30, "set back");
        // Of the lost one's descendants none is the promoted one's.
        let later = history(3, "1 0/30 promoted\n2 0/40 promoted");
        assert_eq!(shared(&lost, &later), 0x40);
        assert_eq!(shared(&promoted, &later), 0x20);
        // Recovered from the first timeline, past the second.
        assert_eq!(shared(&history(3, "1 0/10 recovered"), &later), 0x10);
        assert_eq!(shared(&history(5, ""), &later), 0, "of another cluster");
    }

    #[test]
    fn a_line_of_another_form_is_refused() {
        for file in ["1", "x\t0/1\t", "1\tnowhere\t"] {
            assert!(History::parse(2, file).is_err(), "{file}");
        }
    }
}
