//! The server, its clock, and the session's database and role.

use std::time::{Duration, Instant};

use postgres_types::PgLsn;

use crate::postgres::client::{Client, SqlError};

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

/// As `server_version_num`.
///
/// # Errors
/// A failed query.
pub async fn server_version(client: &Client) -> Result<u32, SqlError> {
    let query = "SELECT current_setting('server_version_num')::int4";
    let version: i32 = client.query_one(query, &[]).await?.try_get(0)?;
    Ok(u32::try_from(version).unwrap_or(0))
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

pub(super) async fn server(client: &Client) -> Result<Server, SqlError> {
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
