//! Rows that a role may not see: row security hides them, or a right is missing.
//!
//! In: an [`Inspection`]. Out: [`RowsHidden`], with what mends it, for commands that compare, count or publish rows. Their
//! sessions have `row_security = off`, so that Postgres refuses a statement instead of leaving rows out.

use crate::postgres::catalog::Inspection;
use crate::table_name::{TableName, quote_identifier};

/// The session's role does not see every row of the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsHidden {
    /// A policy hides some.
    #[error(
        "row security hides rows of {table} from role {role}, so that nothing can be said of them: {}", policy_mend(.role)
    )]
    Policy {
        /// The table.
        table: TableName,
        /// As SQL.
        role: String,
    },
    /// It may read none.
    #[error("role {role} may not read {table}: as the table's owner, run {grants}")]
    Rights {
        /// The table.
        table: TableName,
        /// As SQL.
        role: String,
        /// What it lacks, as SQL.
        grants: String,
    },
}

impl RowsHidden {
    /// What the role cannot see.
    pub(crate) fn what(&self) -> String {
        match self {
            RowsHidden::Policy { table, role } => {
                format!("role {role} sees not every row of {table} because of row security")
            }
            RowsHidden::Rights { table, role, .. } => format!("role {role} may not read {table}"),
        }
    }

    /// What mends it.
    pub(crate) fn mend(&self) -> String {
        match self {
            RowsHidden::Policy { role, .. } => policy_mend(role),
            RowsHidden::Rights { grants, .. } => format!("run {grants}"),
        }
    }
}

fn policy_mend(role: &str) -> String {
    format!("run ALTER ROLE {role} BYPASSRLS; as a superuser, or name another role in postgres.url")
}

/// What the session's role lacks to read the table, as SQL; `None` where nothing.
pub(crate) fn missing_grants(inspection: &Inspection, table: &TableName) -> Option<String> {
    let found = inspection.table.as_ref()?;
    let role = quote_identifier(&inspection.server.role);
    let schema = quote_identifier(&table.schema);
    let grants = [
        (!found.may_use_schema).then(|| format!("GRANT USAGE ON SCHEMA {schema} TO {role};")),
        (!found.may_select).then(|| format!("GRANT SELECT ON {table} TO {role};")),
    ];
    let grants: Vec<String> = grants.into_iter().flatten().collect();
    (!grants.is_empty()).then(|| grants.join(" "))
}

/// Makes sure that every row of the table is seen.
///
/// # Errors
/// [`RowsHidden`].
pub fn check(inspection: &Inspection, table: &TableName) -> Result<(), RowsHidden> {
    if let Some(grants) = missing_grants(inspection, table) {
        return Err(RowsHidden::Rights {
            table: table.clone(),
            role: quote_identifier(&inspection.server.role),
            grants,
        });
    }
    check_policies(inspection, table)
}

/// Makes sure that no policy hides a row, whatever else the role may do.
///
/// # Errors
/// [`RowsHidden::Policy`].
pub(crate) fn check_policies(inspection: &Inspection, table: &TableName) -> Result<(), RowsHidden> {
    let found = inspection.table.as_ref();
    if found.is_some_and(|found| found.row_security) {
        return Err(RowsHidden::Policy {
            table: table.clone(),
            role: quote_identifier(&inspection.server.role),
        });
    }
    Ok(())
}
