//! What the catalog says about everything that the relay needs: server, role, slot, publication, table.
//!
//! In: a client and the `[postgres]` settings. Out: an [`Inspection`], plain data; [`crate::postgres::findings`]
//! judges it. Guarantees: reads only, needs no right beyond connecting, and works on Postgres 14 to 18: columns that
//! a server does not have come out as `None`.
//!
//! Manual: 53.20 "pg_replication_slots", 53.18 "pg_publication_tables", 52.7 "pg_attribute".

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use postgres_types::PgLsn;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::pipeline::record::Carrier;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::settings::PostgresSettings;
use crate::table_name::TableName;

/// The state of everything in the database that the relay depends on, at one moment.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The server and the role.
    pub server: Server,
    /// The slot, if it exists.
    pub slot: Option<Slot>,
    /// The publication, if it exists.
    pub publication: Option<Publication>,
    /// Where it does not: publications that carry inserts of the table, by their names.
    pub other_publications: Vec<String>,
    /// The table, if it exists.
    pub table: Option<Table>,
    /// What the role may make.
    pub rights: Rights,
    /// What carries the tables' rows; `None` unless both publication and table exist.
    pub carrier: Option<Carrier>,
    /// The same of the lane's further tables, as in the settings.
    pub further: Vec<Inspection>,
}

/// The server, the database and the role of the session.
#[derive(Debug, Clone)]
pub struct Server {
    /// 180006 for 18.6.
    pub version_num: u32,
    /// minimal, replica or logical.
    pub wal_level: String,
    /// A standby.
    pub in_recovery: bool,
    /// Silence after which the server ends a replication connection; `None` is never.
    pub wal_sender_timeout: Option<Duration>,
    /// WAL that a slot may hold before it is lost, in bytes; `None` is without limit.
    pub max_slot_wal_keep_bytes: Option<u64>,
    /// How long a slot that nobody reads may live, as the server writes it (18); `None` is for ever.
    pub(crate) idle_slot_timeout: Option<String>,
    /// The encoding of the database.
    pub encoding: String,
    /// The database.
    pub dbname: String,
    /// The role whose rights count for SQL.
    pub role: String,
    /// The role that logged in, another one where `ALTER ROLE … SET role` says so; its rights count for replication.
    pub(crate) login_role: String,
    /// Whether the login role may open a replication connection (REPLICATION, superuser, or the managed services' group).
    pub may_replicate: bool,
    /// End of the WAL: written on a primary, replayed on a standby.
    pub current_lsn: PgLsn,
    /// Its clock.
    pub(crate) clock: ServerClock,
    /// For whom commits wait, as configured.
    pub synchronous_standby_names: String,
    /// The physical standbys that follow now, by `application_name`; none where the role may not see them.
    pub(crate) standbys: Vec<String>,
    /// What this session is called there, and the relay's replication connection too.
    pub application_name: String,
}

/// The server's clock at a moment of this machine's, which is known to within a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerClock {
    /// In µs since 2000-01-01 UTC.
    pub(crate) us: i64,
    /// When it was that.
    pub(crate) at: Instant,
}

/// What the role may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Publications.
    pub(crate) create_in_database: bool,
    /// Tables in the schema of the outbox table; `None` where there is no such schema.
    pub(crate) create_in_schema: Option<bool>,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, Deserialize)]
pub struct Slot {
    /// Output plugin; `None` for a physical slot.
    pub(crate) plugin: Option<String>,
    /// logical or physical.
    pub(crate) slot_type: String,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Who reads it now.
    pub active_pid: Option<i32>,
    /// Ends with the session that made it.
    pub temporary: bool,
    /// Decodes prepared transactions at PREPARE.
    #[serde(default)]
    pub two_phase: bool,
    /// Up to where the relay has confirmed.
    #[serde(deserialize_with = "lsn")]
    pub confirmed_flush_lsn: Option<PgLsn>,
    /// Oldest WAL that the slot holds.
    #[serde(deserialize_with = "lsn")]
    pub(crate) restart_lsn: Option<PgLsn>,
    /// reserved, extended, unreserved or lost.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the slot is in danger; `None` without a limit.
    pub(crate) safe_wal_size: Option<i64>,
    /// Why it is lost (Postgres 17).
    #[serde(default)]
    pub(crate) invalidation_reason: Option<String>,
    /// Follows a failover (Postgres 17).
    #[serde(default)]
    pub failover: Option<bool>,
}

/// A publication, and what it holds of the outbox table.
#[derive(Debug, Clone, Deserialize)]
pub struct Publication {
    /// OID.
    pub oid: u32,
    /// The role may drop it.
    pub owned: bool,
    /// Publishes inserts.
    pub(crate) pubinsert: bool,
    /// Publishes updates.
    pub(crate) pubupdate: bool,
    /// FOR ALL TABLES.
    pub(crate) puballtables: bool,
    /// Publishes partitions as their root.
    #[serde(default)]
    pub(crate) pubviaroot: bool,
    /// The outbox table's entry; `None` if the publication does not hold it under its own name.
    #[serde(default)]
    pub entry: Option<PublicationTable>,
}

/// The row of `pg_publication_tables` for the outbox table.
#[derive(Debug, Clone, Deserialize, Default)]
pub struct PublicationTable {
    /// Published columns (Postgres 15).
    #[serde(default)]
    pub(crate) attnames: Option<Vec<String>>,
    /// Row filter (Postgres 15).
    #[serde(default)]
    pub(crate) rowfilter: Option<String>,
}

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
    /// Columns that decide about a row's partition.
    pub(crate) partition_keys: Vec<String>,
}

impl Inspection {
    /// What there is of each table, the lane's own first.
    pub fn tables(&self) -> impl Iterator<Item = &Inspection> {
        std::iter::once(self).chain(&self.further)
    }

    /// What the slot has confirmed, if it exists.
    pub fn confirmed_lsn(&self) -> Option<PgLsn> {
        self.slot.as_ref()?.confirmed_flush_lsn
    }

    /// The condition that says which rows of the table are this publication's; `None` where all are.
    ///
    /// SQL over the table's own columns, with names as this session's search path needs them: only for the client that
    /// was asked.
    pub fn row_filter(&self) -> Option<&str> {
        self.publication
            .as_ref()?
            .entry
            .as_ref()?
            .rowfilter
            .as_deref()
    }
}

impl Table {
    /// OIDs of its columns' domains, and of the types that those stand on.
    pub fn domains(&self) -> Vec<(u32, u32)> {
        let columns = self.columns.iter();
        let domains = columns.filter(|column| column.type_oid != column.base_oid);
        domains
            .map(|column| (column.type_oid, column.base_oid))
            .collect()
    }
}

/// A column of the outbox table.
#[derive(Debug, Clone, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
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
}

/// Reads the state.
///
/// # Errors
/// A failed query.
pub async fn inspect(client: &Client, settings: &PostgresSettings) -> Result<Inspection, SqlError> {
    let server = server(client).await?;
    let slot = row_as(client, "pg_replication_slots", SLOT, &[&settings.slot]).await?;
    let all = settings.tables();
    let rights = rights(client, &all).await?;
    let mut tables = Vec::new();
    for settings in all {
        let publication = publication(client, &settings.publication, &settings.table).await?;
        let other_publications = match publication {
            Some(_) => Vec::new(),
            None => publications_of(client, &settings.table).await?,
        };
        tables.push(Inspection {
            server: server.clone(),
            slot: slot.clone(),
            publication,
            other_publications,
            table: table(client, &settings.table).await?,
            rights: rights.in_schema(&settings.table.schema),
            carrier: carrier(client, &server, &settings).await?,
            further: Vec::new(),
        });
    }
    let further = tables.split_off(1);
    let mut own = tables.remove(0);
    if let Some(carrier) = &mut own.carrier {
        for (settings, found) in settings.further.iter().zip(&further) {
            let found = found.carrier.clone();
            carrier
                .further
                .extend(found.map(|found| (settings.name.to_string(), found)));
        }
    }
    Ok(Inspection { further, ..own })
}

/// The same without what a lock on a table keeps from being read: server and slot, as if there were neither table nor publication.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn inspect_server(
    client: &Client,
    settings: &PostgresSettings,
) -> Result<Inspection, SqlError> {
    Ok(Inspection {
        server: server(client).await?,
        slot: row_as(client, "pg_replication_slots", SLOT, &[&settings.slot]).await?,
        publication: None,
        other_publications: Vec::new(),
        table: None,
        rights: rights(client, &settings.tables())
            .await?
            .in_schema(&settings.table.schema),
        carrier: None,
        further: Vec::new(),
    })
}

async fn publications_of(client: &Client, table: &TableName) -> Result<Vec<String>, SqlError> {
    let query = "SELECT array_agg(p.pubname::text ORDER BY p.pubname) FROM pg_catalog.pg_publication p \
                 WHERE p.pubinsert AND EXISTS (SELECT FROM pg_catalog.pg_publication_tables t \
                   WHERE t.pubname = p.pubname AND t.schemaname = $1::text AND t.tablename = $2::text)";
    let row = client
        .query_one(query, &[&table.schema, &table.table])
        .await?;
    let found: Option<Vec<String>> = row.try_get(0)?;
    Ok(found.unwrap_or_default())
}

/// What the role may make, and in which schemas.
#[derive(Deserialize)]
struct AllRights {
    create_in_database: bool,
    /// By the schema's name, where there is one.
    create_in_schema: BTreeMap<String, bool>,
}

impl AllRights {
    fn in_schema(&self, schema: &str) -> Rights {
        Rights {
            create_in_database: self.create_in_database,
            create_in_schema: self.create_in_schema.get(schema).copied(),
        }
    }
}

async fn rights(client: &Client, tables: &[PostgresSettings]) -> Result<AllRights, SqlError> {
    let query = "SELECT jsonb_build_object('create_in_database', has_database_privilege(current_database(), 'CREATE'), \
                 'create_in_schema', coalesce(jsonb_object_agg(nspname, has_schema_privilege(oid, 'CREATE')), '{}')) \
                 FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[])";
    let schemas: Vec<&str> = tables.iter().map(|it| it.table.schema.as_str()).collect();
    let rights = row_as(client, "pg_namespace", query, &[&schemas]).await?;
    Ok(rights.expect("an aggregate has one row"))
}

/// Whether a relation of this oid is there, whatever it is called.
///
/// # Errors
/// A failed query.
pub(crate) async fn has_relation(client: &Client, oid: u32) -> Result<bool, SqlError> {
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1)";
    Ok(client.query_one(query, &[&oid]).await?.try_get(0)?)
}

/// Reads the state, and where the slot is in use again for up to `limit`: the server notices a relay that has just been
/// killed only after a moment.
///
/// # Errors
/// A failed query.
pub async fn inspect_released(
    client: &Client,
    settings: &PostgresSettings,
    limit: Duration,
) -> Result<Inspection, SqlError> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let inspection = inspect(client, settings).await?;
        let in_use = inspection
            .slot
            .as_ref()
            .is_some_and(|slot| slot.active_pid.is_some());
        if !in_use || tokio::time::Instant::now() >= deadline {
            return Ok(inspection);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const SERVER: &str = "\
SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), pg_is_in_recovery(),
       (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'),
       (SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'),
       current_setting('server_encoding'), current_database()::text, current_user::text,
       (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user)
       OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'
                  AND pg_has_role(session_user, oid, 'MEMBER')),
       CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END,
       current_setting('synchronous_standby_names'), current_setting('application_name'),
       session_user::text, nullif(current_setting('idle_replication_slot_timeout', true), '0'),
       (extract(epoch FROM clock_timestamp() - '2000-01-01 00:00:00+00') * 1000000)::int8,
       ARRAY(SELECT DISTINCT application_name FROM pg_catalog.pg_stat_replication r
             WHERE state IN ('streaming', 'catchup') AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
             ORDER BY application_name)";

const SLOT: &str =
    "SELECT to_jsonb(s) FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1::text";

const PUBLICATION: &str = "\
SELECT to_jsonb(p) || jsonb_build_object('oid', p.oid::int8, 'owned', pg_has_role(p.pubowner, 'USAGE'), 'entry',
         (SELECT to_jsonb(t) FROM pg_catalog.pg_publication_tables t
          WHERE t.pubname = p.pubname AND t.schemaname = $2::text AND t.tablename = $3::text LIMIT 1))
FROM pg_catalog.pg_publication p WHERE p.pubname = $1::text";

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
       'name', a.attname, 'type_name', format_type(a.atttypid, a.atttypmod),
       'type_oid', a.atttypid::int8, 'base_oid', b.oid::int8, 'base_type', b.typname, 'category', b.typcategory::text,
       'not_null', a.attnotnull OR b.typnotnull, 'generated', a.attgenerated <> '', 'is_virtual', a.attgenerated = 'v') ORDER BY a.attnum)
     FROM pg_catalog.pg_attribute a
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
     JOIN pg_catalog.pg_partitioned_table pt ON pt.partrelid = p.relid
     JOIN pg_catalog.pg_attribute k ON k.attrelid = p.relid AND k.attnum = ANY (pt.partattrs::int2[])
     WHERE k.attnum > 0), '[]'))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname = $2::text";

async fn server(client: &Client) -> Result<Server, SqlError> {
    let asked_at = Instant::now();
    let row = client.query_one(SERVER, &[]).await?;
    let at = asked_at + asked_at.elapsed() / 2;
    let timeout_ms: i64 = row.try_get(3)?;
    let keep_mib: Option<i64> = row.try_get(4)?;
    Ok(Server {
        version_num: u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or(0),
        wal_level: row.try_get(1)?,
        in_recovery: row.try_get(2)?,
        wal_sender_timeout: u64::try_from(timeout_ms)
            .ok()
            .filter(|ms| *ms > 0)
            .map(Duration::from_millis),
        max_slot_wal_keep_bytes: keep_mib
            .and_then(|mib| u64::try_from(mib).ok())
            .map(|mib| mib << 20),
        encoding: row.try_get(5)?,
        dbname: row.try_get(6)?,
        role: row.try_get(7)?,
        may_replicate: row.try_get::<_, Option<bool>>(8)?.unwrap_or(false),
        current_lsn: row.try_get(9)?,
        clock: ServerClock {
            us: row.try_get(14)?,
            at,
        },
        synchronous_standby_names: row.try_get(10)?,
        application_name: row.try_get(11)?,
        login_role: row.try_get(12)?,
        idle_slot_timeout: row.try_get(13)?,
        standbys: row.try_get(15)?,
    })
}

async fn publication(
    client: &Client,
    name: &str,
    table: &TableName,
) -> Result<Option<Publication>, SqlError> {
    row_as(
        client,
        "pg_publication",
        PUBLICATION,
        &[&name, &table.schema, &table.table],
    )
    .await
}

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

/// The publication's row, the table, and what ties them: entries of the table, of the partitioned tables above it, and
/// (from Postgres 15 on) of its schema. An entry that is dropped and added again is another one, also with another filter.
/// Beside it what was rewritten, see [`REWRITES`].
async fn carrier(
    client: &Client,
    server: &Server,
    settings: &PostgresSettings,
) -> Result<Option<Carrier>, SqlError> {
    let by_schema = if server.version_num >= 150_000 {
        "UNION ALL SELECT n.oid FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = c.relnamespace"
    } else {
        ""
    };
    let query = format!(
        "SELECT format('publication %s/%s, table %s, entries %s', p.oid, p.xmin, c.oid, (
           SELECT string_agg(e.oid::text, ' ' ORDER BY e.oid) FROM (
             SELECT r.oid FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND (r.prrelid = c.oid
               OR r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid))) {by_schema}) e)), ({REWRITES})
         FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
         WHERE p.pubname = $1::text AND s.nspname = $2::text AND c.relname = $3::text"
    );
    let table = &settings.table;
    let row = client
        .query_opt(
            &query,
            &[&settings.publication, &table.schema, &table.table],
        )
        .await?;
    row.map(|row| {
        Ok(Carrier {
            identity: row.try_get(0)?,
            rewrites: row.try_get(1)?,
            seen_lsn: server.current_lsn,
            further: BTreeMap::new(),
        })
    })
    .transpose()
}

async fn table(client: &Client, table: &TableName) -> Result<Option<Table>, SqlError> {
    row_as(client, "pg_class", TABLE, &[&table.schema, &table.table]).await
}

/// The one row of a query that returns one jsonb column. Through JSON, because the views have more columns from
/// version to version, and a name that is missing there is an error in SQL and a `None` here.
async fn row_as<T: DeserializeOwned>(
    client: &Client,
    view: &'static str,
    query: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Option<T>, SqlError> {
    let Some(row) = client.query_opt(query, parameters).await? else {
        return Ok(None);
    };
    let value: serde_json::Value = row.try_get(0)?;
    serde_json::from_value(value)
        .map(Some)
        .map_err(|source| SqlError::Catalog { view, source })
}

fn lsn<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PgLsn>, D::Error> {
    let text: Option<String> = Deserialize::deserialize(deserializer)?;
    text.map(|text| {
        text.parse()
            .map_err(|_| serde::de::Error::custom("not an LSN"))
    })
    .transpose()
}

/// Rows that are in the table now and that the publication would carry, see [`Inspection::row_filter`].
///
/// # Errors
/// A failed query, such as a missing right to read.
pub async fn count_rows(
    client: &Client,
    table: &TableName,
    row_filter: Option<&str>,
) -> Result<i64, SqlError> {
    let query = format!(
        "SELECT count(*) FROM {table} WHERE ({})",
        row_filter.unwrap_or("true")
    );
    let row = client.query_one(&query, &[]).await?;
    Ok(row.try_get(0)?)
}

/// A slot that is being read, and the server's WAL beside it, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotAndWal {
    /// Up to where the relay has confirmed.
    pub confirmed_flush_lsn: PgLsn,
    /// Who reads the slot.
    pub active_pid: Option<i32>,
    /// End of the WAL: written on a primary, replayed on a standby.
    pub server_lsn: PgLsn,
}

/// Where the slot and the server's WAL are at this moment; `None` when there is no such slot.
///
/// # Errors
/// A failed query.
pub(crate) async fn slot_and_wal(
    client: &Client,
    slot: &str,
) -> Result<Option<SlotAndWal>, SqlError> {
    let query = "SELECT confirmed_flush_lsn, active_pid, \
         CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text AND confirmed_flush_lsn IS NOT NULL";
    let Some(row) = client.query_opt(query, &[&slot]).await? else {
        return Ok(None);
    };
    Ok(Some(SlotAndWal {
        confirmed_flush_lsn: row.try_get(0)?,
        active_pid: row.try_get(1)?,
        server_lsn: row.try_get(2)?,
    }))
}
