//! The table of a command that deletes rows of it.
//!
//! In: what was looked at. Out: the table, or why nothing can be deleted from it, with what mends that.

use anyhow::{Context as _, ensure};

use crate::postgres::catalog::{Inspection, Table};
use crate::postgres::client::Client;
use crate::postgres::row_security;
use crate::table_name::{TableName, quote_identifier};

/// The table called `name`, all of whose rows this role sees and may delete. To count alone needs no right to delete: why there is none
/// comes with the table then, with what mends that.
pub(super) async fn deletable<'i>(
    sql: &Client,
    inspection: &'i Inspection,
    name: &TableName,
    dry_run: bool,
) -> anyhow::Result<(&'i Table, Option<String>)> {
    ensure!(
        !inspection.server.in_recovery,
        "this server is a standby, which takes no DELETE: name the primary in postgres.url"
    );
    row_security::check(inspection, name)?;
    let table = inspection.table.as_ref();
    let table = table.with_context(|| format!("there is no table {name}"))?;
    let may = "SELECT has_table_privilege($1::oid, 'DELETE')";
    let may: bool = sql.query_one(may, &[&table.oid]).await?.try_get(0)?;
    let why_not = format!(
        "role {role} may not delete from {name}: as the table's owner, run GRANT DELETE ON {name} TO {role};",
        role = quote_identifier(&inspection.server.role)
    );
    ensure!(may || dry_run, why_not);
    Ok((table, (!may).then_some(why_not)))
}
