//! Which rows are old enough, as SQL.
//!
//! In: an age, the column that `occurred_at` comes from. Out: a condition over the table. Guarantee: the column stands alone
//! on its side, so that an index on it serves.

use std::time::Duration;

use anyhow::Context as _;

use crate::cli::exit::UsageError;
use crate::postgres::catalog::Table;
use crate::postgres::client::Client;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::table_name::quote_identifier;

const TIMESTAMP_OID: u32 = 1114;
const BIGINT_OID: u32 = 20;

/// Rows older than this go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cutoff {
    /// The column, unquoted.
    pub(super) column: String,
    /// As Postgres writes it, in UTC.
    pub(super) at: String,
    /// SQL, in the column's own type.
    value: String,
    /// That type, as SQL.
    type_name: String,
}

/// Reads an age such as `7d`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not an age such as 7d, 36h or 30min"))
}

impl Cutoff {
    /// What is older than `age` by the server's clock.
    ///
    /// # Errors
    /// No column tells how old a row is.
    pub(super) async fn of(
        client: &Client,
        table: &Table,
        settings: &PostgresSettings,
        age: Duration,
    ) -> anyhow::Result<Self> {
        let column = settings.columns.occurred_at.column().ok_or_else(|| {
            UsageError(
                "columns.occurred_at names no column, so nothing tells how old a row is: name one that is set when the row \
                 is inserted, or delete the rows by other means"
                    .to_owned(),
            )
        })?;
        let found = table.columns.iter().find(|found| found.name == column);
        let found = found.with_context(|| format!("{} has no column {column}", settings.table))?;
        let query = "SELECT at::text, (extract(epoch FROM at) * 1000)::int8::text \
                     FROM (SELECT now() - make_interval(secs => $1) AS at) AS cutoff";
        let row = client.query_one(query, &[&age.as_secs_f64()]).await?;
        let (at, milliseconds): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let value = match found.base_oid {
            BIGINT_OID => milliseconds,
            TIMESTAMP_OID => format!("'{at}'::timestamptz AT TIME ZONE 'UTC'"),
            _ => format!("'{at}'::timestamptz"),
        };
        Ok(Cutoff {
            column: column.to_owned(),
            at,
            value,
            type_name: found.type_name.clone(),
        })
    }

    /// "all below this bound of a partition, as text, is old enough".
    pub(super) fn has_passed(&self, bound: &str) -> String {
        format!("({bound})::{} <= {}", self.type_name, self.value)
    }

    /// "is old enough".
    pub(super) fn is_older(&self) -> String {
        format!("{} < {}", quote_identifier(&self.column), self.value)
    }
}
