//! The slot's side: what the relay has still to bring.
//!
//! In: a client, the slot, an LSN. Out: whether the relay has passed that LSN, or what of it the slot still holds.
//! Guarantee: the slot itself is looked into only while nobody reads from it; beside a relay, a copy of it is, which ends with the look.

use std::time::{Duration, Instant};

use futures_util::{TryStreamExt as _, pin_mut};
use postgres_types::PgLsn;

use crate::pipeline::encoding::Encoding;
use crate::pipeline::pgoutput::{self, Message};
use crate::pipeline::position::Position;
use crate::pipeline::relations::Relations;
use crate::pipeline::source::Source;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::encoding::{self, SEND_BYTES, SEND_UTF8};
use crate::postgres::error::{
    NO_SLOT_FREE, OBJECT_IN_USE, PUBLICATION_MISSING, PUBLICATION_MISSING_MEND,
    PUBLICATION_MISSING_WHY,
};
use crate::postgres::settings::PostgresSettings;

/// How often the slot is looked at.
pub(in crate::cli) const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The same for what asynchronous commits leave to the WAL writer, three times `wal_writer_delay` (0.2 s) at most.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// How long that may take.
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// Where the relay is, as seen from the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Settled {
    /// The slot is confirmed through the snapshot: nothing of it is to come.
    Confirmed,
    /// The relay says that it has passed the snapshot. The broker may have lost of that since, which the relay then publishes again.
    Passed,
    /// The same, and the broker has.
    SetBack,
    /// Nobody reads from the slot: it tells itself what is to come.
    Idle,
    /// There is no slot: nothing is to come.
    NoSlot,
    /// It had not passed when the time was over.
    Behind,
}

/// Waits until the relay has passed `lsn`, or nobody reads from the slot.
///
/// A relay confirms as late as its hold-back, so confirmation is not waited for. Up to what it reports as applied, the
/// broker has acknowledged everything; what it has received may still be refused.
pub(in crate::cli) async fn settle(
    client: &Client,
    slot: &str,
    lsn: PgLsn,
    deadline: Instant,
) -> Result<Settled, SqlError> {
    let query = "SELECT s.confirmed_flush_lsn, r.replay_lsn, s.active_pid \
                 FROM pg_catalog.pg_replication_slots s \
                 LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid \
                 WHERE s.slot_name = $1::text";
    loop {
        let Some(row) = client.query_opt(query, &[&slot]).await? else {
            return Ok(Settled::NoSlot);
        };
        let confirmed: Option<PgLsn> = row.try_get(0)?;
        let acknowledged: Option<PgLsn> = row.try_get(1)?;
        let active_pid: Option<i32> = row.try_get(2)?;
        if confirmed.is_some_and(|confirmed| confirmed >= lsn) {
            return Ok(Settled::Confirmed);
        }
        if acknowledged.is_some_and(|acknowledged| acknowledged >= lsn) {
            return Ok(Settled::Passed);
        }
        if active_pid.is_none() {
            return Ok(Settled::Idle);
        }
        if Instant::now() >= deadline {
            return Ok(Settled::Behind);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// An outbox row that the slot holds.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Held<'a> {
    pub(in crate::cli) position: Position,
    /// When its transaction committed, in µs since 2000-01-01 UTC.
    pub(in crate::cli) committed_at_us: i64,
    /// Whose row it is, of [`Source::outboxes`].
    pub(in crate::cli) outbox: usize,
    /// Its id as text.
    pub(in crate::cli) id: Option<&'a str>,
}

/// Where to look for what the slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Look {
    /// Into the slot, which nobody reads.
    Inside,
    /// Into a copy of it, beside the relay that reads it; the copy is gone behind the look.
    Beside,
}

impl Look {
    /// Hands each outbox row that the slot holds, of transactions that end at or below `lsn`, to `each`, read by these
    /// `publications` (quoted, between commas); `false` where somebody has begun to read from the slot.
    ///
    /// # Errors
    /// Postgres refuses, or sends what cannot be read; or it has no room for the copy.
    pub(in crate::cli) async fn peek(
        self,
        client: &Client,
        settings: &PostgresSettings,
        publications: &str,
        source: Source,
        lsn: PgLsn,
        each: impl FnMut(Held<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        if self == Look::Inside {
            return peek(client, settings, publications, source, lsn, each).await;
        }
        let copy = PostgresSettings {
            slot: copied(client, &settings.slot).await?,
            ..settings.clone()
        };
        let peeked = peek(client, &copy, publications, source, lsn, each).await;
        let drop = "SELECT pg_catalog.pg_drop_replication_slot($1::text::name)";
        client.query_one(drop, &[&copy.slot]).await?;
        peeked
    }
}

/// Copies the slot for this session; the copy's name.
async fn copied(client: &Client, slot: &str) -> anyhow::Result<String> {
    let query = "SELECT slot_name::text FROM pg_catalog.pg_copy_logical_replication_slot(\
                 $1::text::name, ('walrelay_look_' || pg_catalog.pg_backend_pid())::name, true)";
    match client.query_one(query, &[&slot]).await {
        Ok(row) => Ok(row.try_get(0)?),
        Err(error) if error.code() == Some(NO_SLOT_FREE) => {
            Err(anyhow::Error::from(error).context(
                "the relay says that it has passed these rows, and only the slot proves it, of which Postgres has no room for a copy: \
                 raise max_replication_slots, or stop the relay meanwhile",
            ))
        }
        Err(error) => Err(anyhow::Error::from(error)
            .context(format!("slot {slot} cannot be copied, to look into it beside its relay"))),
    }
}

async fn peek(
    client: &Client,
    settings: &PostgresSettings,
    publications: &str,
    source: Source,
    lsn: PgLsn,
    each: impl FnMut(Held<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    flushed(client, lsn).await?;
    let encoding = encoding::of_database(client, &settings.publication).await?;
    if encoding == Encoding::Utf8 {
        return peek_as(client, settings, publications, source, lsn, each).await;
    }
    client.batch_execute(SEND_BYTES).await?;
    let source = Source { encoding, ..source };
    let peeked = peek_as(client, settings, publications, source, lsn, each).await;
    client.batch_execute(SEND_UTF8).await?;
    peeked
}

/// Waits until the WAL below `lsn` is flushed: rows of an asynchronous commit are seen before that, and decoded only then.
async fn flushed(client: &Client, lsn: PgLsn) -> anyhow::Result<()> {
    // Where the last record ends with its page, the next one begins behind a header of 24 or 40 bytes, which is flushed with it.
    let query = "SELECT CASE WHEN pg_is_in_recovery() THEN true ELSE flushed >= $1 \
                 OR flushed - '0/0' = trunc((flushed - '0/0') / block) * block AND $1 - flushed IN (24, 40) END \
                 FROM (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS flushed, \
                 current_setting('wal_block_size')::numeric AS block) AS wal";
    let begun = Instant::now();
    loop {
        if client.query_one(query, &[&lsn]).await?.try_get(0)? {
            return Ok(());
        }
        anyhow::ensure!(
            begun.elapsed() < FLUSH_MAX,
            "Postgres has not written its WAL up to {lsn} to disk within {FLUSH_MAX:?}: look at its log and its disk"
        );
        tokio::time::sleep(FLUSH_INTERVAL).await;
    }
}

async fn peek_as(
    client: &Client,
    settings: &PostgresSettings,
    publications: &str,
    source: Source,
    lsn: PgLsn,
    mut each: impl FnMut(Held<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let messages = match source.messages {
        Some(_) => ", 'messages', 'true'",
        None => "",
    };
    let query = format!(
        "SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes($1::text, $2, NULL, \
         'proto_version', '1', 'publication_names', $3::text{messages})"
    );
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&settings.slot, &lsn, &publications];
    let rows = match client.answer(client.query_raw(&query, parameters)).await {
        Ok(rows) => rows,
        Err(error) if error.code() == Some(OBJECT_IN_USE) => return Ok(false),
        Err(error) => return Err(refused(error)),
    };
    pin_mut!(rows);
    let mut relations = Relations::new(source);
    let mut position = Position {
        commit_lsn: 0.into(),
        ordinal: 0,
    };
    let mut committed_at_us = 0;
    loop {
        let row = match client.answer(rows.try_next()).await {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(error) if error.code() == Some(OBJECT_IN_USE) => return Ok(false),
            Err(error) => return Err(refused(error)),
        };
        match pgoutput::decode(row.try_get(0)?)? {
            Message::Begin {
                commit_lsn,
                committed_at_us: at_us,
                ..
            } => {
                relations.begin(commit_lsn);
                position = Position {
                    commit_lsn,
                    ordinal: 0,
                };
                committed_at_us = at_us;
            }
            Message::Relation(relation) => {
                relations.describe(relation);
            }
            Message::Insert { relation_oid, row } => {
                if let Some(row) = relations.read(relation_oid, &row)? {
                    position.ordinal += 1;
                    let mut converted = Vec::new();
                    let row = row.in_utf8(relations.encoding(), &mut converted);
                    let id = row.id();
                    let id = id.as_deref().and_then(|id| std::str::from_utf8(id).ok());
                    each(Held {
                        position,
                        outbox: row.outbox(),
                        committed_at_us,
                        id,
                    })?;
                }
            }
            // Its place counts; the table, with which the rows are compared, never had it.
            Message::Logical(message) => {
                let prefix = relations.messages().map(str::as_bytes);
                if message.is_transactional && prefix == Some(message.prefix) {
                    position.ordinal += 1;
                }
            }
            Message::Commit { .. } | Message::Other(_) => {}
        }
    }
    Ok(true)
}

fn refused(error: SqlError) -> anyhow::Error {
    match error {
        SqlError::Server(said) if said.code == PUBLICATION_MISSING => {
            let said = SqlError::Server(Box::new(said.without_hint()));
            anyhow::Error::from(said).context(format!(
                "{PUBLICATION_MISSING_WHY}: {PUBLICATION_MISSING_MEND}"
            ))
        }
        error => error.into(),
    }
}
