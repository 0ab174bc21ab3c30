//! What the database committed against what the stream holds.
//!
//! In: the committed events in commit order, as the database tells them, and the stream's events in the stream's order.
//! Out: a [`Verdict`]. Guarantee: it knows nothing of positions, slots or acks; it would judge any relay alike.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use super::application::Tally;
use crate::cli::tail::entry::{Class, Entry};
use crate::cli::tail::reader::{Read, Reader, Since};
use crate::relay::settings::NatsSettings;

/// An event as both sides have it, so that it can be compared as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) aggregate_id: Uuid,
    pub(super) event_type: String,
    pub(super) event_version: i16,
    pub(super) occurred_at: DateTime<Utc>,
    pub(super) payload_json: String,
}

/// The sum of it.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) holds: bool,
    /// Distinct events that the database committed.
    pub(super) committed: usize,
    /// Messages with an event in the stream.
    pub(super) in_the_stream: usize,
    /// Committed, not in the stream.
    pub(super) lost: usize,
    /// In the stream once more than once.
    pub(super) doubled: usize,
    /// Behind an event that was committed after it.
    pub(super) out_of_order: usize,
    /// In the stream, never committed.
    pub(super) phantom: usize,
    /// In the stream with other content than in the table.
    pub(super) altered: usize,
    #[serde(serialize_with = "lsn_text")]
    pub(super) confirmed_lsn: PgLsn,
    /// The server's position when the application had stopped.
    #[serde(serialize_with = "lsn_text")]
    pub(super) server_lsn: PgLsn,
    /// From the commit to the stream while nothing was disturbed, median and 99th percentile.
    pub(super) latency_ms: [f64; 2],
    pub(super) application: Tally,
}

impl Verdict {
    pub(super) fn new(
        committed: &[Event],
        stored: &[Event],
        application: Tally,
        [confirmed_lsn, server_lsn]: [PgLsn; 2],
        latency_ms: [f64; 2],
    ) -> Self {
        let ranks: HashMap<Uuid, usize> = committed
            .iter()
            .enumerate()
            .map(|(rank, event)| (event.id, rank))
            .collect();
        let mut seen = HashSet::new();
        let (mut doubled, mut out_of_order, mut phantom, mut altered) = (0, 0, 0, 0);
        let mut highest = None;
        for event in stored {
            let first = seen.insert(event.id);
            match ranks.get(&event.id) {
                None => phantom += 1,
                Some(_) if !first => doubled += 1,
                Some(&rank) => {
                    out_of_order += usize::from(highest > Some(rank));
                    highest = highest.max(Some(rank));
                    altered += usize::from(committed[rank] != *event);
                }
            }
        }
        let lost = committed
            .iter()
            .filter(|event| !seen.contains(&event.id))
            .count();
        let defects = lost + doubled + out_of_order + phantom + altered;
        Self {
            holds: defects == 0 && !committed.is_empty() && confirmed_lsn >= server_lsn,
            committed: committed.len(),
            in_the_stream: stored.len(),
            lost,
            doubled,
            out_of_order,
            phantom,
            altered,
            confirmed_lsn,
            server_lsn,
            latency_ms,
            application,
        }
    }

    pub(super) fn holds(&self) -> bool {
        self.holds
    }
}

/// What was committed, in commit order: the ledger's, joined with the outbox table's own rows.
pub(super) async fn committed(client: &Client) -> anyhow::Result<Vec<Event>> {
    let sql = "select id, aggregate_id, event_type, event_version, occurred_at, payload_json::text \
               from ledger, unnest(event_ids) with ordinality as entry (event_id, place) \
               join outbox_events on id = event_id order by commit_number, place";
    let rows = client
        .query(sql, &[])
        .await
        .context("cannot read the ledger")?;
    let (in_table, in_ledger): (i64, i64) = {
        let sql = "select (select count(*) from outbox_events), (select sum(cardinality(event_ids)) from ledger)::int8";
        let row = client
            .query_one(sql, &[])
            .await
            .context("cannot count the ledger")?;
        (row.get(0), row.get::<_, Option<i64>>(1).unwrap_or(0))
    };
    if in_table != in_ledger || rows.len() as i64 != in_table {
        bail!(
            "the demo's own ledger is wrong: {in_ledger} events in it, {in_table} in the table, {} in both",
            rows.len()
        );
    }
    let event = |row: tokio_postgres::Row| Event {
        id: row.get(0),
        aggregate_id: row.get(1),
        event_type: row.get(2),
        event_version: row.get(3),
        occurred_at: row.get(4),
        payload_json: row.get(5),
    };
    Ok(rows.into_iter().map(event).collect())
}

/// What the stream holds, read anew from its first message to its last.
pub(super) async fn stored(settings: &NatsSettings) -> anyhow::Result<Vec<Event>> {
    let mut reader = Reader::open(settings, None, Since::All).await?;
    let mut events = Vec::new();
    if reader.is_empty() {
        return Ok(events);
    }
    loop {
        let Read::Message(entry) = reader.next().await? else {
            continue;
        };
        let last = entry.pending == 0;
        match entry.class {
            Class::Event => events.push(event(*entry)?),
            Class::DeadLetter => bail!(
                "a dead letter, though nothing was wrong: {}",
                entry.to_json()
            ),
            Class::Other => {}
        }
        if last {
            return Ok(events);
        }
    }
}

fn event(entry: Entry) -> anyhow::Result<Event> {
    let missing = || format!("message {} is not a complete event", entry.sequence);
    Ok(Event {
        id: entry.uuid().with_context(missing)?,
        aggregate_id: entry
            .aggregate_id
            .as_deref()
            .with_context(missing)?
            .parse()?,
        event_version: entry.event_version.with_context(missing)?.into(),
        occurred_at: entry.occurred_at.with_context(missing)?,
        payload_json: entry
            .payload_json
            .as_ref()
            .with_context(missing)?
            .get()
            .to_owned(),
        event_type: entry.event_type.clone().with_context(missing)?,
    })
}

fn lsn_text<S: Serializer>(lsn: &PgLsn, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(lsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u128) -> Event {
        Event {
            id: Uuid::from_u128(number),
            aggregate_id: Uuid::nil(),
            event_type: "a.b".to_owned(),
            event_version: 1,
            occurred_at: DateTime::UNIX_EPOCH,
            payload_json: "{}".to_owned(),
        }
    }

    /// Lost, doubled, out of order, phantom.
    fn judge(committed: &[u128], stored: &[u128]) -> (bool, [usize; 4]) {
        let events = |numbers: &[u128]| numbers.iter().copied().map(event).collect::<Vec<_>>();
        let lsn = PgLsn::from(1);
        let verdict = Verdict::new(
            &events(committed),
            &events(stored),
            Tally::default(),
            [lsn, lsn],
            [0.0; 2],
        );
        (
            verdict.holds,
            [
                verdict.lost,
                verdict.doubled,
                verdict.out_of_order,
                verdict.phantom,
            ],
        )
    }

    #[test]
    fn each_defect_is_seen_and_named() {
        assert_eq!(judge(&[3, 1, 2], &[3, 1, 2]), (true, [0, 0, 0, 0]));
        assert_eq!(judge(&[3, 1, 2], &[3, 2]), (false, [1, 0, 0, 0]));
        assert_eq!(judge(&[3, 1, 2], &[]), (false, [3, 0, 0, 0]));
        assert_eq!(judge(&[3, 1, 2], &[3, 1, 3, 1, 2]), (false, [0, 2, 0, 0]));
        assert_eq!(judge(&[3, 1, 2], &[1, 3, 2]), (false, [0, 0, 1, 0]));
        assert_eq!(judge(&[3, 1, 2], &[2, 3, 1]), (false, [0, 0, 2, 0]));
        assert_eq!(judge(&[3, 1, 2], &[3, 9, 1, 2]), (false, [0, 0, 0, 1]));
        assert_eq!(
            judge(&[1, 2, 3, 4], &[1, 4, 9, 9, 2, 2]),
            (false, [1, 1, 1, 2])
        );
        assert_eq!(
            judge(&[], &[]),
            (false, [0, 0, 0, 0]),
            "nothing proves nothing"
        );
    }

    #[test]
    fn an_altered_event_and_an_unconfirmed_log_are_seen() {
        let committed = [event(1)];
        let mut stored = committed.clone();
        stored[0].payload_json = "{ }".to_owned();
        let [low, high] = [PgLsn::from(1), PgLsn::from(2)];
        let verdict = Verdict::new(&committed, &stored, Tally::default(), [high, low], [0.0; 2]);
        assert_eq!((verdict.holds, verdict.altered), (false, 1));
        let verdict = Verdict::new(
            &committed,
            &committed,
            Tally::default(),
            [low, high],
            [0.0; 2],
        );
        assert!(!verdict.holds);
    }
}
