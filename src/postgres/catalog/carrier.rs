//! What carries a table's rows into the slot, in a form that tells whether it is still the same.

use std::collections::BTreeMap;

use super::Server;
use crate::pipeline::carrier::Carrier;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::ROW_FILTERS_SINCE;

/// What ALTER TABLE has rewritten of the table `c`. Rows of an unlogged table never reach the WAL, and the way there and
/// back is two rewrites: each gives the table a new TOAST table, which is then younger than the table's own ctid column.
/// VACUUM FULL, CLUSTER and TRUNCATE change relfilenode too, but keep the TOAST table; and a partition that is made or
/// dropped is no rewrite. A table too narrow for TOAST has only its relfilenode, which is the OID at first.
const REWRITES: &str = "\
SELECT coalesce(array_agg(format('%s/%s', l.oid, coalesce(nullif(l.reltoastrelid, 0), l.relfilenode)) ORDER BY l.oid), '{}')
FROM pg_catalog.pg_class l
LEFT JOIN pg_catalog.pg_attribute made ON made.attrelid = l.oid AND made.attnum = -1
LEFT JOIN pg_catalog.pg_attribute toast ON toast.attrelid = l.reltoastrelid AND toast.attnum = -1
WHERE l.oid IN (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)) AND l.relkind = 'r'
  AND CASE l.reltoastrelid WHEN 0 THEN l.relfilenode <> l.oid ELSE made.xmin <> toast.xmin END";

/// Whether one transaction has written the entries of the table `c` in the publication `p` and in all others of the outbox's lanes that
/// carry rows, of which there is one.
const RESHARDED: &str = "\
coalesce((SELECT bool_and(e.xmin = own.xmin) FROM pg_catalog.pg_publication_rel own, pg_catalog.pg_publication_rel e
  JOIN pg_catalog.pg_publication other ON other.oid = e.prpubid
  WHERE own.prpubid = p.oid AND own.prrelid = c.oid AND e.prrelid = c.oid AND e.prpubid <> p.oid
    AND (other.pubname = $4::text OR other.pubname ~ '_[0-9]+$' AND starts_with(other.pubname, $4::text || '_'))
    AND pg_catalog.pg_get_expr(e.prqual, e.prrelid) IS DISTINCT FROM 'false'), false)";

/// The publication's row, the table, and what ties them: entries of the table, of the partitioned tables above it, and
/// (from Postgres 15 on) of its schema. An entry that is dropped and added again is another one, also with another filter.
/// Beside it what was rewritten, see [`REWRITES`].
pub(super) async fn carrier(
    client: &Client,
    server: &Server,
    settings: &PostgresSettings,
) -> Result<Option<Carrier>, SqlError> {
    let by_schema = if server.version_num >= 150_000 {
        "UNION ALL SELECT n.oid FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = c.relnamespace"
    } else {
        ""
    };
    // The first with row filters, and so with shares.
    let resharded = match server.version_num {
        ROW_FILTERS_SINCE.. => RESHARDED,
        _ => "$4::text IS NULL",
    };
    let query = format!(
        "SELECT format('publication %s/%s, table %s, entries %s', p.oid, p.xmin, c.oid, (
           SELECT string_agg(e.oid::text, ' ' ORDER BY e.oid) FROM (
             SELECT r.oid FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND (r.prrelid = c.oid
               OR r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid))) {by_schema}) e)), ({REWRITES}), {resharded}
         FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
         WHERE p.pubname = $1::text AND s.nspname = $2::text AND c.relname = $3::text"
    );
    let table = &settings.table;
    let row = client
        .query_opt(
            &query,
            &[
                &settings.publication,
                &table.schema,
                &table.table,
                &settings.any_share().whole_publication,
            ],
        )
        .await?;
    row.map(|row| {
        Ok(Carrier {
            identity: row.try_get(0)?,
            rewrites: row.try_get(1)?,
            is_resharded: row.try_get(2)?,
            seen_lsn: server.current_lsn,
            further: BTreeMap::new(),
        })
    })
    .transpose()
}
