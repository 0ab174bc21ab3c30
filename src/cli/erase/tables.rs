//! The lane's tables: those that an aggregate may be in, and those that are left out.
//!
//! In: the lane, an id. Out: which tables to go through, and what is looked for beside them. Guarantee: no table is left out without a
//! word.

use std::collections::BTreeSet;

use serde::Serialize;

use super::aggregate::AggregateId;
use crate::cli::exit::UsageError;
use crate::pipeline::tables::Period;
use crate::postgres::catalog::inspect;
use crate::postgres::client::Client;
use crate::relay::settings::Settings;

/// Tables as messages tell them.
fn named(lane: &Settings, tables: impl Iterator<Item = usize>) -> BTreeSet<Option<String>> {
    let all = lane.tables();
    tables
        .map(|table| all[table].message.table.clone())
        .collect()
}

/// What is looked for beside one table's messages: those of tables that are not looked at.
#[derive(Debug, Clone)]
pub(super) struct Others {
    /// Tables that are looked at, as messages tell them.
    pub(super) looked_at: BTreeSet<Option<String>>,
    /// All that the configuration names.
    pub(super) named: BTreeSet<Option<String>>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Others {
    pub(super) fn of(lane: &Settings, tables: &Tables) -> Self {
        Others {
            looked_at: named(lane, tables.some.iter().copied()),
            named: named(lane, 0..lane.tables().len()),
            left_out: tables.left_out.clone(),
        }
    }
}

/// Whether a column of the lane's own table tells the aggregate.
fn is_mapped(lane: &Settings) -> bool {
    lane.postgres.columns.aggregate_id.column().is_some()
}

/// A table of the lane in which no row can have this id; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct LeftOut {
    pub(super) table: String,
    pub(super) why: String,
}

/// Which of the lane's tables rows of this aggregate may be in, or messages without a row.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Of [`Settings::tables`].
    pub(super) some: Vec<usize>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Tables {
    /// `known` are the tables that the lane record tells of, as messages do.
    ///
    /// # Errors
    /// It can be in none of them: a [`UsageError`] says why.
    pub(super) async fn find(
        sql: &Client,
        lane: &Settings,
        id: &str,
        known: &[Period],
    ) -> anyhow::Result<Self> {
        let inspection = inspect(sql, &lane.postgres).await?;
        let mut tables = Tables::default();
        for (index, (found, settings)) in inspection.tables().zip(lane.tables()).enumerate() {
            let of_table = found.table.as_ref();
            let of_table = of_table.map(|table| AggregateId::of(table, &settings.postgres, id));
            // That it is missing is told where it is looked at.
            let (is_in, why) = match of_table {
                Some(Err(why)) => (false, Some(why.to_string())),
                // Its messages are looked for all the same.
                Some(Ok(id)) => {
                    let has_messages = settings.postgres.messages.is_some();
                    (id.no_rows.is_none() || has_messages, id.no_rows)
                }
                None => (true, None),
            };
            if is_in {
                tables.some.push(index);
            }
            if let Some(why) = why {
                tables.left_out.push(LeftOut {
                    table: settings.postgres.table.to_string(),
                    why,
                });
            }
        }
        // Messages of a table that was taken away may be its: they are looked for beside the lane's own.
        let named = named(lane, 0..lane.tables().len());
        let is_unnamed = |period: &Period| {
            !period.outbox.is_empty() && !named.contains(&Some(period.outbox.clone()))
        };
        if tables.some.is_empty() && known.iter().any(is_unnamed) && is_mapped(lane) {
            tables.some.push(0);
        }
        if !tables.some.is_empty() {
            return Ok(tables);
        }
        let each = |LeftOut { table, why }: &LeftOut| match tables.left_out.len() {
            1 => why.clone(),
            _ => format!("{table}: {why}"),
        };
        let all: Vec<String> = tables.left_out.iter().map(each).collect();
        Err(UsageError(all.join("; ")).into())
    }
}
