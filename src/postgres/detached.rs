//! Partitions that `walrelay prune` has detached and not dropped: it is at work, or was ended. Nobody sees their rows.
//!
//! In: a table. Out: them, with what attaches them again. Guarantee: reads only.

use crate::postgres::client::{Client, SqlError};

/// Begins the comment of such a partition; its table and where it belongs there follow.
const COMMENT: &str = "walrelay prune: detached from ";

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Detached {
    /// As SQL.
    pub(crate) name: String,
    /// `FOR VALUES …`, as SQL.
    bound: String,
    /// DETACH … CONCURRENTLY was interrupted in its midst.
    pub(crate) is_pending: bool,
}

/// SQL that says of a partition, ahead of its detaching, where it belongs.
pub(crate) fn comment(table: &str, name: &str, bound: &str) -> String {
    let comment = format!("{COMMENT}{table}, {bound}").replace('\'', "''");
    format!("COMMENT ON TABLE {name} IS '{comment}'")
}

/// Those of the table.
///
/// # Errors
/// Postgres refuses.
pub(crate) async fn of(client: &Client, table: &str) -> Result<Vec<Detached>, SqlError> {
    let query = "SELECT c.oid::regclass::text, i.inhrelid IS NOT NULL, \
                   CASE WHEN i.inhrelid IS NULL THEN substr(d.description, length($1) + 1) ELSE pg_get_expr(c.relpartbound, c.oid) END \
                 FROM pg_class c \
                 LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = to_regclass($2) AND i.inhdetachpending \
                 LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0 \
                   AND starts_with(d.description, $1) AND NOT c.relispartition \
                 WHERE c.relkind IN ('r', 'p') AND (i.inhrelid IS NOT NULL OR d.objoid IS NOT NULL) ORDER BY c.oid";
    let begin = format!("{COMMENT}{table}, ");
    let rows = client.query(query, &[&begin, &table]).await?;
    let one = |row: &tokio_postgres::Row| {
        Ok(Detached {
            name: row.try_get(0)?,
            is_pending: row.try_get(1)?,
            bound: row.try_get(2)?,
        })
    };
    rows.iter().map(one).collect()
}

impl Detached {
    /// SQL that attaches it again, one transaction after the other.
    pub(crate) fn attach(&self, table: &str) -> Vec<String> {
        let Detached { name, bound, .. } = self;
        let finalize = format!("ALTER TABLE {table} DETACH PARTITION {name} FINALIZE;");
        let attach = format!(
            "ALTER TABLE {table} ATTACH PARTITION {name} {bound}; COMMENT ON TABLE {name} IS NULL;"
        );
        let finalize = self.is_pending.then_some(finalize);
        finalize.into_iter().chain([attach]).collect()
    }
}

/// What they are, for a person, and what mends it where no prune is at work; none where there are none.
pub(crate) fn told(table: &str, all: &[Detached]) -> Option<(String, String)> {
    let names: Vec<&str> = all.iter().map(|found| found.name.as_str()).collect();
    let sql: Vec<String> = all.iter().flat_map(|found| found.attach(table)).collect();
    let what = format!(
        "a walrelay prune has detached {} from {table}, and nobody sees the rows there",
        names.join(", ")
    );
    let mend = format!(
        "the next walrelay prune attaches it again; or, as the owner of the table, run {}",
        sql.join(" ")
    );
    (!all.is_empty()).then_some((what, mend))
}
