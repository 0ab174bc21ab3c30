//! The rows that the stream does not have, for whoever publishes them.
//!
//! In: settings, a choice. Out: their ids, the oldest transaction first. Guarantee: what the relay will still publish is not among
//! them.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::oldest::OldestFirst;
use super::{Args, Checked, Lane, check, table};
use crate::postgres::catalog::inspect;
use crate::postgres::client::connect;
use crate::postgres::findings::not_held;
use crate::relay::settings::Settings;

/// How long a running relay is waited for, where nobody says otherwise.
const WAIT: Duration = Duration::from_secs(120);

/// Which of the missing rows are wanted.
#[derive(Debug, Default)]
pub(in crate::cli) struct Choice {
    /// Not those whose occurred_at is older.
    pub(in crate::cli) since: Option<DateTime<Utc>>,
    /// Only those for which this condition holds, in SQL.
    pub(in crate::cli) only: Option<String>,
    /// Also those whose messages the stream may have had and removed.
    pub(in crate::cli) unjudged: bool,
    /// How long to wait for a running relay; none for the usual time.
    pub(in crate::cli) wait: Option<Duration>,
}

/// Rows to be published again.
pub(in crate::cli) struct Missing {
    /// The oldest transaction first.
    pub(in crate::cli) rows: OldestFirst,
    /// Rows that cannot be judged, whether they are among `rows` or not.
    pub(in crate::cli) unjudged: u64,
    /// Those of them whose ids the stream has of another table, which was the outbox before.
    pub(in crate::cli) former: u64,
    /// The stream was read up to this sequence.
    pub(in crate::cli) read_through: u64,
}

/// The rows of each of these tables, of [`Settings::tables`], that the stream does not have although the relay has passed them. Only the
/// publication says which rows are this stream's, so without it there is no answer.
pub(in crate::cli) async fn missing(
    settings: &Settings,
    tables: &[usize],
    choice: Choice,
) -> Result<Vec<Missing>, anyhow::Error> {
    let with_unjudged = choice.unjudged;
    let args = Args {
        json: false,
        since: choice.since,
        wait: choice.wait.unwrap_or(WAIT),
        repair: false,
        unjudged: choice.unjudged,
        only: choice.only,
    };
    let lane = Lane::open(settings).await?;
    for table in tables {
        if let Some(not_held) = not_held(lane.found(*table), &lane.tables[*table].postgres) {
            anyhow::bail!("{not_held}");
        }
    }
    let (mut found, checked) = rows_of(&args, &lane, tables, with_unjudged).await?;
    let mut all = Vec::new();
    for (of_table, table) in checked.into_iter().zip(tables) {
        let (report, read_through) = of_table?;
        if let Some(why) = report.in_the_way() {
            anyhow::bail!(why);
        }
        let (rows, unjudged, former) = found.remove(table).unwrap_or_default();
        all.push(Missing {
            rows,
            unjudged,
            former,
            read_through,
        });
    }
    Ok(all)
}

/// Rows by their tables, how many cannot be judged, and how many of these since another table was the outbox.
type Found = BTreeMap<usize, (OldestFirst, u64, u64)>;

async fn rows_of(
    args: &Args,
    lane: &Lane<'_>,
    tables: &[usize],
    with_unjudged: bool,
) -> anyhow::Result<(Found, Vec<Checked>)> {
    let mut found = Found::new();
    let checked = check(args, lane, tables, |table, group, verdict| {
        if !found.contains_key(&table) {
            // Those of the tables before are complete.
            found
                .values_mut()
                .try_for_each(|(rows, ..)| rows.put_away())?;
        }
        let (rows, unjudged, former) = found.entry(table).or_default();
        *unjudged += verdict.unjudgeable();
        *former += verdict.former;
        let is_wanted = verdict.missing > 0 || with_unjudged && verdict.unjudgeable() > 0;
        match group.inserted.filter(|_| is_wanted) {
            Some(inserted) => rows.push(inserted, group.id),
            None => Ok(()),
        }
    });
    let checked = checked.await?;
    Ok((found, checked))
}

/// Looks whether Postgres understands a condition on rows; says nothing where there is no table yet.
///
/// # Errors
/// A [`crate::cli::exit::UsageError`] with Postgres' words.
pub(in crate::cli) async fn check_condition(settings: &Settings, only: &str) -> anyhow::Result<()> {
    let client = connect(&settings.postgres.conninfo).await?;
    let inspection = inspect(&client, &settings.postgres).await?;
    for (found, settings) in inspection.tables().zip(settings.postgres.tables()) {
        if found.table.is_some() {
            table::check_condition(&client, &settings, only).await?;
        }
    }
    Ok(())
}
