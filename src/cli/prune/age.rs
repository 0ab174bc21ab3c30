//! Which rows are old enough, as SQL.
//!
//! In: an age, the column that `occurred_at` comes from. Out: a condition over the table.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};

use crate::config::quantity::parse_duration;
use crate::postgres::client::Client;
use crate::postgres::occurred_at::OccurredAt;

/// Postgres has times from 4713 BC on. A year is 365.25 days, as in `1000y`.
const AGE_MAX: Duration = Duration::from_secs(1_000 * 31_557_600);

/// Rows older than this go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cutoff {
    pub(super) occurred_at: OccurredAt,
    at: DateTime<Utc>,
    /// As Postgres writes it, in UTC.
    pub(super) text: String,
}

/// Reads an age such as `7d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    // It takes a lone 0.
    let has_unit = text.contains(|c: char| c.is_ascii_alphabetic());
    let age = parse_duration(text).filter(|age| has_unit && *age <= AGE_MAX);
    age.ok_or_else(|| format!("{text:?} is not an age such as 7d, 36h or 30min, up to 1000y"))
}

impl Cutoff {
    /// What is older than `age` by the server's clock.
    ///
    /// # Errors
    /// Postgres has no time so long ago.
    pub(super) async fn of(
        client: &Client,
        occurred_at: OccurredAt,
        age: Duration,
    ) -> anyhow::Result<Self> {
        let query = "SELECT at::text, (extract(epoch FROM at) * 1000000)::int8 \
                     FROM (SELECT now() - make_interval(secs => $1) AS at) AS cutoff";
        let row = client.query_one(query, &[&age.as_secs_f64()]).await?;
        Ok(Cutoff {
            occurred_at,
            at: DateTime::from_timestamp_micros(row.try_get(1)?).context("no such time")?,
            text: row.try_get(0)?,
        })
    }

    /// "all below this bound of a partition, as text, is old enough".
    pub(super) fn has_passed(&self, bound: &str) -> String {
        self.occurred_at.is_through(bound, self.at)
    }

    /// "is old enough".
    pub(super) fn is_older(&self) -> String {
        self.occurred_at.is_before(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_one_that_postgres_has_a_time_for() {
        for (text, seconds) in [("7d", 604_800), ("0s", 0), ("1000y", 31_557_600_000)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["0", "7", "a week", "1001y", "99999y"] {
            assert!(parse(text).unwrap_err().ends_with("up to 1000y"), "{text}");
        }
    }
}
