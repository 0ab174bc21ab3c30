//! What of a server does not stand in the relay's way today and will hurt later.
//!
//! In: a client. Out: a [`Health`], plain data, and the findings about it. Guarantees: reads only; what the role may not
//! see is `None` and not taken for well.
//!
//! Manual: 19.6 "Replication", 53.20 "pg_replication_slots", 27.2 "The Cumulative Statistics System".

use std::time::Duration;

use serde::Deserialize;

use crate::counted::counted;
use crate::postgres::catalog::{Inspection, Slot};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::findings::{Finding, Kind, warn};
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::slot_wal::SlotWal;
use crate::postgres::startup::DECODING_MEMORY_MIB;
use crate::table_name::quote_identifier;

/// A transaction older than this is somebody's forgotten one.
const OLD: Duration = Duration::from_secs(300);

/// What Kubernetes, a deployment or a weekend may keep a relay away.
const AWAY: Duration = Duration::from_secs(12 * 3600);

/// What the server says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct Health {
    /// `max_replication_slots`, and how many there are.
    pub slots: [i64; 2],
    /// `max_wal_senders`, and how many run.
    pub(crate) senders: [i64; 2],
    /// Connections that the login role may have; -1 for any number.
    pub(crate) connection_limit: i64,
    /// Connections that the database may have, -1 for any number, and how many others have there.
    pub(crate) database_limit: [i64; 2],
    /// Those of `synchronized_standby_slots` (Postgres 17), which a slot with FAILOVER waits for.
    pub(crate) standby_slots: Vec<StandbySlot>,
    /// What decoding has written to disk for the slot, in bytes, and what it was allowed to keep in memory.
    pub(crate) spilled_bytes: Option<i64>,
    /// `logical_decoding_work_mem`, as the server shows it.
    pub(crate) work_mem: String,
    /// Open transactions of clients, the oldest first; of others only what the role may see (pg_read_all_stats).
    pub open_transactions: Vec<OpenTransaction>,
    /// Prepared transactions, the oldest first.
    pub prepared: Vec<Prepared>,
    /// The server's clock, in seconds since 1970.
    pub clock_s: f64,
    /// End of the WAL in bytes.
    pub wal_bytes: i64,
}

/// An open transaction.
#[derive(Debug, Clone, Deserialize)]
pub struct OpenTransaction {
    /// Server process.
    pub pid: i32,
    /// Its age.
    pub seconds: i64,
    /// The role.
    pub(crate) usename: Option<String>,
    /// `application_name`.
    pub application_name: String,
}

/// The physical slot of a standby.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct StandbySlot {
    pub(crate) name: String,
    /// It is there, and its standby reads it.
    pub(crate) is_read: bool,
}

/// A transaction between PREPARE TRANSACTION and its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Prepared {
    /// What COMMIT PREPARED takes.
    pub gid: String,
    /// Its age.
    pub seconds: i64,
    /// The role that prepared it.
    pub owner: String,
    /// Where; it can be ended only there.
    pub database: String,
}

impl Prepared {
    /// What ends it.
    pub(crate) fn mend(&self) -> String {
        let (gid, database) = (quote_literal(&self.gid), quote_identifier(&self.database));
        format!(
            "in database {database}, run COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid}; as its owner meant"
        )
    }
}

const HEALTH: &str = "\
SELECT jsonb_build_object(
  'slots', jsonb_build_array(current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_catalog.pg_replication_slots)),
  'senders', jsonb_build_array(current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_catalog.pg_stat_replication)),
  'connection_limit', (SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = session_user),
  'database_limit', (SELECT jsonb_build_array(datconnlimit, (
       SELECT count(*) FROM pg_catalog.pg_stat_activity a
       WHERE a.datid = d.oid AND a.backend_type = 'client backend' AND a.usename IS DISTINCT FROM session_user))
     FROM pg_catalog.pg_database d WHERE d.datname = current_database()),
  'standby_slots', coalesce((
     SELECT jsonb_agg(jsonb_build_object('name', named.name, 'is_read', coalesce(s.active, false)) ORDER BY place)
     FROM regexp_split_to_table(current_setting('synchronized_standby_slots', true), '[[:space:]\",]+')
       WITH ORDINALITY AS named (name, place)
     LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = named.name::name
     WHERE named.name <> ''), '[]'),
  'spilled_bytes', (SELECT spill_bytes FROM pg_catalog.pg_stat_replication_slots WHERE slot_name = $1::text),
  'work_mem', current_setting('logical_decoding_work_mem'),
  'open_transactions', coalesce((
     SELECT jsonb_agg(jsonb_build_object('pid', pid, 'usename', usename, 'application_name', coalesce(application_name, ''),
       'seconds', extract(epoch FROM clock_timestamp() - xact_start)::int8) ORDER BY xact_start)
     FROM (SELECT * FROM pg_catalog.pg_stat_activity
       WHERE xact_start IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'
       ORDER BY xact_start LIMIT 100) AS open), '[]'),
  'prepared', coalesce((
     SELECT jsonb_agg(jsonb_build_object('gid', gid, 'owner', owner, 'database', database,
       'seconds', extract(epoch FROM clock_timestamp() - prepared)::int8) ORDER BY prepared)
     FROM (SELECT * FROM pg_catalog.pg_prepared_xacts ORDER BY prepared LIMIT 100) AS prepared), '[]'),
  'clock_s', extract(epoch FROM clock_timestamp())::float8,
  'wal_bytes', pg_catalog.pg_wal_lsn_diff(
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
     '0/0')::int8)::text";

/// Reads it.
///
/// # Errors
/// A failed query.
pub async fn health(client: &Client, settings: &PostgresSettings) -> Result<Health, SqlError> {
    let row = client.query_one(HEALTH, &[&settings.slot]).await?;
    let text: &str = row.try_get(0)?;
    Ok(serde_json::from_str(text).expect("the query builds what Health reads"))
}

/// What will hurt. `wal_rate` is in bytes a second.
pub fn findings(
    inspection: &Inspection,
    health: &Health,
    settings: &PostgresSettings,
    wal_rate: f64,
) -> Vec<Finding> {
    let mut found = Vec::new();
    limit(inspection, wal_rate, &mut found);
    places(inspection, health, &mut found);
    waits(inspection, health, &mut found);
    transactions(health, &mut found);
    if let Some(bytes) = health.spilled_bytes.filter(|bytes| *bytes > 0) {
        found.push(warn(
            Kind::Spill,
            format!(
                "decoding for slot \"{}\" has written {} to disk: a transaction was larger than the memory for it, which is {} in the \
                 relay's session and logical_decoding_work_mem ({}) where verify and adopt look into the slot; large transactions \
                 arrive later",
                settings.slot,
                size(bytes as f64),
                size(f64::from(DECODING_MEMORY_MIB) * 1024.0 * 1024.0),
                health.work_mem
            ),
            format!(
                "insert in smaller transactions; run SELECT pg_stat_reset_replication_slot({}); to count anew",
                quote_literal(&settings.slot)
            ),
        ));
    }
    found
}

/// How long the relay may be away.
fn limit(inspection: &Inspection, wal_rate: f64, found: &mut Vec<Finding>) {
    let Some(limit) = inspection.server.max_slot_wal_keep_bytes else {
        found.push(warn(
            Kind::SlotLimit,
            "max_slot_wal_keep_size is not set: while the relay is away, its slot keeps WAL until the disk is full, and the \
             database stops",
            "run ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'; (less than the disk has free) and SELECT pg_reload_conf();",
        ));
        return;
    };
    let slot = inspection.slot.as_ref();
    if slot.is_some_and(Slot::is_lost) {
        return;
    }
    let safe = slot.and_then(|slot| slot.safe_wal_size);
    let left = safe.map_or(limit as f64, |bytes| bytes.max(0) as f64);
    let seconds = left / wal_rate.max(1.0);
    if wal_rate > 1.0 && seconds < AWAY.as_secs_f64() {
        found.push(warn(
            Kind::SlotLimit,
            format!(
                "the slot may hold {} more of WAL, and {}/s are written now: a relay that is away loses its slot after {}",
                size(left),
                size(wal_rate),
                span(seconds)
            ),
            "raise max_slot_wal_keep_size, as far as the disk has free, and run SELECT pg_reload_conf();",
        ));
    }
    let retained = SlotWal::of(inspection).retained_bytes.unwrap_or(0) as f64;
    if retained > limit as f64 / 2.0 {
        found.push(warn(
            Kind::SlotLimit,
            format!(
                "the slot holds {} of WAL, more than half of max_slot_wal_keep_size ({})",
                size(retained),
                size(limit as f64)
            ),
            "see with walrelay status whether the relay runs and what it waits for; raise max_slot_wal_keep_size meanwhile",
        ));
    }
}

/// Places that the relay needs and somebody else may take.
fn places(inspection: &Inspection, health: &Health, found: &mut Vec<Finding>) {
    let [max, used] = health.slots;
    if inspection.slot.is_none() && used >= max {
        found.push(warn(
            Kind::Places,
            format!("all {max} replication slots are taken, and walrelay setup needs one"),
            format!(
                "drop one that nobody uses (pg_replication_slots), or run ALTER SYSTEM SET max_replication_slots = {}; and \
                 restart Postgres",
                max + 2
            ),
        ));
    }
    let [max, used] = health.senders;
    let runs = inspection
        .slot
        .as_ref()
        .is_some_and(|slot| slot.active_pid.is_some());
    if !runs && used >= max {
        found.push(warn(
            Kind::Places,
            format!("all {max} WAL senders are taken, and the relay needs one"),
            format!(
                "run ALTER SYSTEM SET max_wal_senders = {}; and restart Postgres",
                max + 2
            ),
        ));
    }
    let role = quote_identifier(&inspection.server.login_role);
    // The relay itself, its SQL sessions, and a command beside it.
    if (0..4).contains(&health.connection_limit) {
        found.push(warn(
            Kind::Places,
            format!(
                "role {role} may have {}: the relay has up to 3, and each command beside it needs one more",
                counted(
                    health.connection_limit.unsigned_abs(),
                    "connection",
                    "connections"
                )
            ),
            format!("run ALTER ROLE {role} CONNECTION LIMIT 8;"),
        ));
    }
    let [limit, of_others] = health.database_limit;
    if limit >= 0 && limit - of_others < 4 {
        let database = quote_identifier(&inspection.server.dbname);
        found.push(warn(
            Kind::Places,
            format!(
                "database {database} may have {}, and others have {of_others}: the relay has up to 3, and each command beside it needs \
                 one more",
                counted(limit.unsigned_abs(), "connection", "connections")
            ),
            format!(
                "run ALTER DATABASE {database} CONNECTION LIMIT {};",
                limit.max(of_others) + 8
            ),
        ));
    }
}

/// Standbys that a slot with FAILOVER waits for, and that are away.
fn waits(inspection: &Inspection, health: &Health, found: &mut Vec<Finding>) {
    let waits = inspection
        .slot
        .as_ref()
        .is_some_and(|slot| slot.failover == Some(true));
    let names = |is_read| {
        let slots = health.standby_slots.iter();
        let slots = slots.filter(|slot| slot.is_read == is_read);
        slots.map(|slot| &*slot.name).collect::<Vec<_>>().join(", ")
    };
    let away = names(false);
    if waits && !away.is_empty() {
        found.push(warn(
            Kind::StandbySlots,
            format!(
                "synchronized_standby_slots names {away}, which no standby reads: nothing that commits is sent to the relay"
            ),
            format!(
                "bring the standby back, or run ALTER SYSTEM SET synchronized_standby_slots = {}; SELECT pg_reload_conf();",
                quote_literal(&names(true))
            ),
        ));
    }
}

/// What holds WAL, and the making of a slot: the oldest, and how many are as old as nobody means them to be.
fn transactions(health: &Health, found: &mut Vec<Finding>) {
    let old = OLD.as_secs().cast_signed();
    let keeps = "the slot keeps its WAL, and no slot can be made before it ends";
    let more = |count: usize, what: &str| match count {
        0 | 1 => String::new(),
        count => format!(
            "; {count} {what} are older than {}",
            span(OLD.as_secs_f64())
        ),
    };
    let open = health.open_transactions.iter();
    let open: Vec<_> = open.filter(|open| open.seconds > old).collect();
    if let Some(oldest) = open.first() {
        let pids: Vec<String> = open.iter().map(|open| open.pid.to_string()).collect();
        found.push(warn(
            Kind::OldTransaction,
            format!(
                "process {} ({}, {:?}) has had a transaction open for {}: {keeps}{}",
                oldest.pid,
                oldest.usename.as_deref().unwrap_or("-"),
                oldest.application_name,
                span(oldest.seconds as f64),
                more(open.len(), "transactions")
            ),
            match &pids[..] {
                [pid] => format!("end it there, or run SELECT pg_terminate_backend({pid});"),
                pids => format!(
                    "end them there, or run SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{}]) AS pid;",
                    pids.join(", ")
                ),
            },
        ));
    }
    let prepared = health.prepared.iter();
    let prepared: Vec<_> = prepared.filter(|prepared| prepared.seconds > old).collect();
    if let Some(oldest) = prepared.first() {
        found.push(warn(
            Kind::OldTransaction,
            format!(
                "transaction {:?} of {} was prepared {} ago: {keeps}{}",
                oldest.gid,
                oldest.owner,
                span(oldest.seconds as f64),
                more(prepared.len(), "prepared transactions (pg_prepared_xacts)")
            ),
            oldest.mend(),
        ));
    }
}

/// Bytes for a person.
fn size(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.0} {}", units[unit])
}

/// Seconds for a person.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(900.0), "900 B");
        assert_eq!(size(3.0 * 1024.0 * 1024.0), "3 MiB");
        assert_eq!(size(5e15), "4547 TiB");
        assert_eq!(span(90.0), "90 s");
        assert_eq!(span(3_600.0), "60 min");
        assert_eq!(span(100_000.0), "28 h");
        assert_eq!(span(1e6), "12 d");
    }
}
