//! An outbox table and its columns, and what is below, above and beside it.

use serde::Deserialize;

use super::row_as;
use crate::nearest::slip;
use crate::pipeline::known_columns::KnownColumn;
use crate::postgres::client::{Client, SqlError};
use crate::table_name::TableName;

/// The outbox table.
#[derive(Debug, Clone, Deserialize)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `r` table, `p` partitioned, and others that cannot serve.
    pub(crate) relkind: char,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub(crate) relpersistence: char,
    /// Whether the role may read it, once it may use the schema.
    pub(crate) may_select: bool,
    /// Whether the role may use its schema.
    pub(crate) may_use_schema: bool,
    /// Whether policies hide rows from the role.
    pub row_security: bool,
    /// The role may publish and drop it.
    pub owned: bool,
    /// In the order of the table.
    pub columns: Vec<Column>,
    /// Leaf partitions whose rows never reach the WAL, as SQL names.
    pub(crate) unlogged_leaves: Vec<String>,
    /// Leaf partitions whose rows never reach this server, as SQL names.
    pub(crate) foreign_leaves: Vec<String>,
    /// Tables that inherit from it and are no partitions, as SQL names.
    pub(crate) heirs: Vec<String>,
    /// The tables that it is a partition of, as SQL names.
    pub(crate) ancestors: Vec<String>,
    /// It holds rows, or has held some.
    pub(crate) has_rows: bool,
    /// Columns that decide about a row's partition, by themselves or in an expression.
    pub(crate) partition_keys: Vec<String>,
    /// The columns of its primary key.
    pub(crate) primary_key: Vec<String>,
    /// Columns that rows were read by before, as the lane record has them; none where nobody has asked.
    #[serde(skip)]
    pub(crate) known: Vec<KnownColumn>,
}

impl Table {
    /// Whether it is one, of which rows can come: a view, a foreign table or an index is none.
    pub(crate) fn has_rows_of_its_own(&self) -> bool {
        matches!(self.relkind, 'r' | 'p')
    }

    /// What has become of a column that rows were read by before: what it is called now, or that it was dropped. None of another one.
    pub(crate) fn fate(&self, name: &str) -> Option<Fate<'_>> {
        let known = self.known.iter().find(|known| known.name == name)?;
        let mut columns = self.columns.iter();
        let renamed = columns.find(|column| column.attnum == known.attnum);
        Some(renamed.map_or(Fate::Dropped, Fate::Renamed))
    }

    /// Those that came behind all that rows were read by.
    pub(crate) fn later_columns(&self) -> impl Iterator<Item = &Column> {
        let last = self.known.iter().map(|known| known.attnum).max();
        let columns = self.columns.iter();
        columns.filter(move |column| last.is_some_and(|last| column.attnum > last))
    }

    /// OIDs of its columns' domains, and of the types that those stand on.
    pub fn domains(&self) -> Vec<(u32, u32)> {
        let columns = self.columns.iter();
        let domains = columns.filter(|column| column.type_oid != column.base_oid);
        domains
            .map(|column| (column.type_oid, column.base_oid))
            .collect()
    }
}

/// What has become of a column.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate<'t> {
    /// It is called otherwise.
    Renamed(&'t Column),
    /// It is no more.
    Dropped,
}

/// A column of the outbox table.
#[derive(Debug, Clone, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `attnum`.
    pub attnum: i16,
    /// The type as declared, as `format_type` writes it.
    pub(crate) type_name: String,
    /// The declared type.
    pub type_oid: u32,
    /// The type, or what a domain, or a domain over domains, stands on.
    pub(crate) base_oid: u32,
    /// `typname` of the type, or of what a domain, or a domain over domains, stands on.
    pub(crate) base_type: String,
    /// `typcategory` of that type: `S` string, `E` enum, ….
    pub(crate) category: char,
    /// NOT NULL.
    pub(crate) not_null: bool,
    /// Computed by the server.
    pub generated: bool,
    /// Of these, one that is computed when it is read (Postgres 18).
    #[serde(default)]
    pub(crate) is_virtual: bool,
    /// Its collation or type calls texts equal that differ, such as those of other cases.
    #[serde(default)]
    pub(crate) is_loose: bool,
    /// Its default, as SQL; none where the server computes it.
    pub(crate) default: Option<String>,
}

/// The table that was probably meant by the name of one that is not there: of the same but for capitals, as somebody has left its quotes
/// out, of the same but for a slip of the fingers, or of the same in another schema. Those of the lane, `known`, were meant themselves.
pub(super) async fn meant(
    client: &Client,
    name: &TableName,
    known: &[TableName],
) -> Result<Option<TableName>, SqlError> {
    let query = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND abs(length(c.relname) - length($1::text)) <= 2 \
                 AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_') ORDER BY 1, 2";
    let mut tables = Vec::new();
    for row in client.query(query, &[&name.table]).await? {
        let table = TableName {
            schema: row.try_get(0)?,
            table: row.try_get(1)?,
        };
        if !known.contains(&table) {
            tables.push(table);
        }
    }
    let plain = |name: &TableName| format!("{}.{}", name.schema, name.table);
    let names: Vec<String> = tables.iter().map(plain).collect();
    let near = slip(&plain(name), names.iter().map(String::as_str));
    let in_capitals = |table: &&TableName| name.differs_in_capitals(table);
    let is_near = |table: &&TableName| near == Some(plain(table).as_str());
    let namesake = |table: &&TableName| table.table == name.table;
    let meant = (tables.iter().find(in_capitals))
        .or_else(|| tables.iter().find(is_near))
        .or_else(|| tables.iter().find(namesake));
    Ok(meant.cloned())
}

// A partition key's columns, those in its expressions too, depend on the table internally (52.18 "pg_depend").
const TABLE: &str = "\
SELECT jsonb_build_object(
  'oid', c.oid::int8, 'relkind', c.relkind::text, 'relpersistence', c.relpersistence::text,
  'may_select', has_table_privilege(c.oid, 'SELECT'),
  'may_use_schema', has_schema_privilege(c.relnamespace, 'USAGE'), 'row_security', row_security_active(c.oid),
  'owned', pg_has_role(c.relowner, 'USAGE'),
  'has_rows', pg_catalog.pg_relation_size(c.oid) > 0
     OR EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid) WHERE pg_catalog.pg_relation_size(relid) > 0),
  'columns', coalesce((
     SELECT jsonb_agg(jsonb_build_object(
       'name', a.attname, 'attnum', a.attnum, 'type_name', format_type(a.atttypid, a.atttypmod),
       'type_oid', a.atttypid::int8, 'base_oid', b.oid::int8, 'base_type', b.typname, 'category', b.typcategory::text,
       'not_null', a.attnotnull OR b.typnotnull, 'generated', a.attgenerated <> '', 'is_virtual', a.attgenerated = 'v',
       'is_loose', b.typname = 'citext'
         OR NOT coalesce((SELECT collisdeterministic FROM pg_catalog.pg_collation WHERE oid = a.attcollation), true),
       'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END) ORDER BY a.attnum)
     FROM pg_catalog.pg_attribute a
     LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     CROSS JOIN LATERAL (
       WITH RECURSIVE base AS (
         SELECT oid, typtype, typbasetype, typname, typcategory, typnotnull FROM pg_catalog.pg_type WHERE oid = a.atttypid
         UNION ALL
         SELECT t.oid, t.typtype, t.typbasetype, t.typname, t.typcategory, base.typnotnull OR t.typnotnull
         FROM base JOIN pg_catalog.pg_type t ON t.oid = base.typbasetype WHERE base.typtype = 'd')
       SELECT * FROM base WHERE typtype <> 'd') b
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
  'unlogged_leaves', coalesce((
     SELECT jsonb_agg(format('%I.%I', ln.nspname, l.relname) ORDER BY l.relname)
     FROM pg_catalog.pg_partition_tree(c.oid) p
     JOIN pg_catalog.pg_class l ON l.oid = p.relid
     JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
     WHERE p.isleaf AND c.relkind = 'p' AND l.relkind = 'r' AND l.relpersistence <> 'p'), '[]'),
  'foreign_leaves', coalesce((
     SELECT jsonb_agg(format('%I.%I', ln.nspname, l.relname) ORDER BY l.relname)
     FROM pg_catalog.pg_partition_tree(c.oid) p
     JOIN pg_catalog.pg_class l ON l.oid = p.relid
     JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
     WHERE p.isleaf AND c.relkind = 'p' AND l.relkind <> 'r'), '[]'),
  'heirs', coalesce((
     WITH RECURSIVE heir AS (
       SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = c.oid
       UNION SELECT i.inhrelid FROM heir JOIN pg_catalog.pg_inherits i ON i.inhparent = heir.inhrelid)
     SELECT jsonb_agg(format('%I.%I', hn.nspname, h.relname) ORDER BY h.relname)
     FROM heir JOIN pg_catalog.pg_class h ON h.oid = heir.inhrelid
     JOIN pg_catalog.pg_namespace hn ON hn.oid = h.relnamespace WHERE NOT h.relispartition), '[]'),
  'ancestors', coalesce((
     SELECT jsonb_agg(format('%I.%I', an.nspname, a.relname))
     FROM pg_catalog.pg_partition_ancestors(c.oid) p
     JOIN pg_catalog.pg_class a ON a.oid = p.relid AND a.oid <> c.oid
     JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace), '[]'),
  'partition_keys', coalesce((
     SELECT jsonb_agg(DISTINCT k.attname)
     FROM pg_catalog.pg_partition_tree(c.oid) p
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = p.relid AND d.objsubid > 0
       AND d.refclassid = d.classid AND d.refobjid = p.relid AND d.refobjsubid = 0 AND d.deptype = 'i'
     JOIN pg_catalog.pg_attribute k ON k.attrelid = p.relid AND k.attnum = d.objsubid), '[]'),
  'primary_key', coalesce((
     SELECT jsonb_agg(k.attname)
     FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY (i.indkey)
     WHERE i.indrelid = c.oid AND i.indisprimary), '[]'))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname = $2::text";

pub(super) async fn table(client: &Client, table: &TableName) -> Result<Option<Table>, SqlError> {
    row_as(client, "pg_class", TABLE, &[&table.schema, &table.table]).await
}
