//! Triggers and rules of the application, which run where walrelay changes its rows.
//!
//! In: a table. Out: SQL that lets them find what they find in the application's sessions; what keeps rows from being deleted. Guarantee:
//! walrelay's own statement is read with walrelay's search path: none of its functions and operators comes from elsewhere.

use super::client::{Client, SqlError};

/// SQL for a condition that always holds. It is computed once, in front of the first row and behind the reading of the statement: from there
/// to the end of the transaction triggers have the search path that the role has in other sessions, and policies of other tables are no error.
pub(crate) const FIND_THEIRS: &str = "(SELECT count(set_config(name, reset_val, true)) FROM pg_settings \
     WHERE name IN ('search_path', 'row_security')) > 0";

/// What may keep rows of a table, or of its partitions, where they are deleted: nothing says of a trigger whether it does.
const KEEPERS: &str = "WITH all_of AS (SELECT $1::text::regclass AS oid UNION SELECT relid FROM pg_partition_tree($1::text::regclass))
     SELECT 'TRIGGER', quote_ident(tgname), tgrelid::regclass::text FROM pg_trigger JOIN all_of ON all_of.oid = tgrelid
       WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgparentid = 0
       -- For each row, before, of a DELETE.
       AND tgtype & 11 = 11
     UNION ALL
     SELECT 'RULE', quote_ident(rulename), ev_class::regclass::text FROM pg_rewrite JOIN all_of ON all_of.oid = ev_class
       WHERE ev_type = '4' AND is_instead AND ev_enabled IN ('O', 'A')
     ORDER BY 1, 2, 3";

/// Why rows that walrelay has deleted may stay, and what to do; none where the table has nothing that could keep them.
///
/// # Errors
/// A failed query.
pub(crate) async fn kept(client: &Client, table: &str) -> Result<Option<String>, SqlError> {
    let keepers = client.query(KEEPERS, &[&table]).await?;
    let (mut names, mut off, mut on) = (Vec::new(), Vec::new(), Vec::new());
    for row in &keepers {
        let (kind, name, of): (&str, &str, &str) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        names.push(format!("{} {name}", kind.to_lowercase()));
        off.push(format!("ALTER TABLE {of} DISABLE {kind} {name};"));
        on.push(format!("ALTER TABLE {of} ENABLE {kind} {name};"));
    }
    Ok((!names.is_empty()).then(|| {
        format!(
            "rows of {table} that are deleted may be kept by {}: let it keep none of these, or, as the table's owner, run {} and {} \
             once they are gone",
            names.join(" and "),
            off.join(" "),
            on.join(" ")
        )
    }))
}
