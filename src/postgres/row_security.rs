//! Row security, which hides rows of a table from a role.
//!
//! In: an [`Inspection`]. Out: [`RowsHidden`], with what mends it, for commands that compare, count or publish rows. Their
//! sessions have `row_security = off`, so that Postgres refuses a statement instead of leaving rows out.

use crate::postgres::catalog::Inspection;
use crate::postgres::table_name::{TableName, quote_identifier};

/// A policy hides rows of the table from the session's role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "row security hides rows of {table} from role {role}, so that nothing can be said of them: run ALTER ROLE {role} \
     BYPASSRLS; as a superuser, or name another role in postgres.url"
)]
pub struct RowsHidden {
    table: TableName,
    role: String,
}

/// Makes sure that every row of the table is seen.
///
/// # Errors
/// [`RowsHidden`].
pub fn check(inspection: &Inspection, table: &TableName) -> Result<(), RowsHidden> {
    if inspection
        .table
        .as_ref()
        .is_some_and(|found| found.row_security)
    {
        return Err(RowsHidden {
            table: table.clone(),
            role: quote_identifier(&inspection.server.role),
        });
    }
    Ok(())
}
