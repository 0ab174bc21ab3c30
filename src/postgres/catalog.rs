//! What the catalog says about everything that the relay needs: server, role, slot, publication, table.
//!
//! In: a client and the `[postgres]` settings. Out: an [`Inspection`], plain data; [`crate::postgres::findings`]
//! judges it. Guarantees: reads only, needs no right beyond connecting, and works on Postgres 14 to 18: columns that
//! a server does not have come out as `None`.
//!
//! Manual: 53.20 "pg_replication_slots", 53.18 "pg_publication_tables", 52.7 "pg_attribute".

mod carrier;
mod server;
mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use postgres_types::PgLsn;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::pipeline::carrier::Carrier;
use crate::pipeline::tables::Period;
use crate::postgres::beginning;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::settings::PostgresSettings;
use crate::table_name::TableName;
use carrier::carrier;
use server::server;
pub use server::{Server, ServerClock, server_version};
pub(crate) use table::Fate;
pub use table::{Column, Table};
use table::{meant, table};

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
    /// Where it does not: a table that was probably meant, none of the lane's.
    pub meant: Option<TableName>,
    /// What the role may make.
    pub rights: Rights,
    /// What carries the tables' rows; `None` unless both publication and table exist.
    pub carrier: Option<Carrier>,
    /// The same of the lane's further tables, as in the settings.
    pub further: Vec<Inspection>,
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
    slot_name: String,
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

impl Slot {
    /// The server's process that is still making it, for as long as transactions run that were under way. Nobody can read it before,
    /// and it goes with that process.
    pub(crate) fn made_by(&self) -> Option<i32> {
        let is_unfinished = self.slot_type == "logical" && self.confirmed_flush_lsn.is_none();
        self.active_pid.filter(|_| is_unfinished && !self.is_lost())
    }

    /// Whether the WAL that it needs is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }
}

/// A publication, and what it holds of the outbox table.
#[derive(Debug, Clone, Deserialize)]
pub struct Publication {
    /// OID.
    pub oid: u32,
    /// The role may drop it.
    pub owned: bool,
    /// Whose it is.
    pub(crate) owner: String,
    /// What COMMENT ON has for it.
    pub(crate) comment: Option<String>,
    /// Publishes inserts.
    pub(crate) pubinsert: bool,
    /// Publishes updates.
    pub(crate) pubupdate: bool,
    /// FOR ALL TABLES.
    pub(crate) puballtables: bool,
    /// Publishes partitions as their root.
    #[serde(default)]
    pub(crate) pubviaroot: bool,
    /// Slots of this database that began with it.
    #[serde(default)]
    pub(crate) slots: Vec<String>,
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

impl Inspection {
    /// What there is of each table, the lane's own first.
    pub fn tables(&self) -> impl Iterator<Item = &Inspection> {
        std::iter::once(self).chain(&self.further)
    }

    /// Takes over by which columns the lane's rows were read before.
    pub(crate) fn remember(&mut self, settings: &PostgresSettings, recorded: &[Period]) {
        let names = settings
            .tables()
            .into_iter()
            .map(|it| it.entry.unwrap_or_default());
        let tables = std::iter::once(&mut self.table)
            .chain(self.further.iter_mut().map(|further| &mut further.table));
        for (table, name) in tables.zip(names) {
            let Some(table) = table else { continue };
            let mut before = recorded.iter().rev();
            let before = before.find(|it| it.outbox == *name && it.oid == table.oid);
            table.known = before.map_or_else(Vec::new, |it| it.columns.clone());
        }
    }

    /// What the slot has confirmed, if it exists.
    pub fn confirmed_lsn(&self) -> Option<PgLsn> {
        self.slot.as_ref()?.confirmed_flush_lsn
    }

    /// Where the slot began, if that was written down.
    pub(crate) fn begins_lsn(&self) -> Option<PgLsn> {
        let comment = self.publication.as_ref()?.comment.as_deref()?;
        beginning::read(comment, &self.slot.as_ref()?.slot_name)
    }

    /// Whether the slot has been confirmed through something since it began, as far as that was written down.
    pub(crate) fn has_passed(&self) -> bool {
        self.begins_lsn()
            .is_some_and(|begins_lsn| self.confirmed_lsn() != Some(begins_lsn))
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

/// Reads the state.
///
/// # Errors
/// A failed query.
pub async fn inspect(client: &Client, settings: &PostgresSettings) -> Result<Inspection, SqlError> {
    let server = server(client).await?;
    let slot = slot(client, &settings.slot).await?;
    let all = settings.tables();
    let rights = rights(client, &all).await?;
    let names: Vec<TableName> = all.iter().map(|it| it.table.clone()).collect();
    let mut tables = Vec::new();
    for settings in all {
        let publication = publication(client, &settings.publication, &settings.table).await?;
        let other_publications = match publication {
            Some(_) => Vec::new(),
            None => publications_of(client, &settings.table).await?,
        };
        let table = table(client, &settings.table).await?;
        let meant = match table {
            Some(_) => None,
            None => meant(client, &settings.table, &names).await?,
        };
        tables.push(Inspection {
            server: server.clone(),
            slot: slot.clone(),
            publication,
            other_publications,
            table,
            meant,
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
        slot: slot(client, &settings.slot).await?,
        publication: None,
        other_publications: Vec::new(),
        table: None,
        meant: None,
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

/// The slot of this name, whoever's it is.
///
/// # Errors
/// A failed query.
pub(crate) async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, SqlError> {
    let query =
        "SELECT to_jsonb(s) FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1::text";
    row_as(client, "pg_replication_slots", query, &[&name]).await
}

/// How many transactions of the slot of this name the server has sent, since it began to count.
///
/// # Errors
/// A failed query.
#[cfg(feature = "cli")]
pub(crate) async fn slot_sent(client: &Client, name: &str) -> Result<Option<i64>, SqlError> {
    let query =
        "SELECT total_txns FROM pg_catalog.pg_stat_replication_slots WHERE slot_name = $1::text";
    match client.query_opt(query, &[&name]).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Ok(None),
    }
}

const PUBLICATION: &str = "\
SELECT to_jsonb(p) || jsonb_build_object('oid', p.oid::int8, 'owned', pg_has_role(p.pubowner, 'USAGE'),
         'owner', pg_get_userbyid(p.pubowner), 'comment', obj_description(p.oid, 'pg_publication'), 'slots',
         (SELECT coalesce(jsonb_agg(s.slot_name ORDER BY s.slot_name), '[]') FROM pg_catalog.pg_replication_slots s
          WHERE s.database = current_database()
          AND strpos(obj_description(p.oid, 'pg_publication'), 'walrelay: slot ' || s.slot_name || ' begins at ') > 0), 'entry',
         (SELECT to_jsonb(t) FROM pg_catalog.pg_publication_tables t
          WHERE t.pubname = p.pubname AND t.schemaname = $2::text AND t.tablename = $3::text LIMIT 1))
FROM pg_catalog.pg_publication p WHERE p.pubname = $1::text";

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
