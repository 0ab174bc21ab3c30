//! The load: sessions that commit events at a fixed rate, or as fast as they can.

use std::time::{Duration, Instant};

use rand::distr::{Alphanumeric, SampleString as _};
use tokio_postgres::Statement;
use uuid::Uuid;

use super::watch::Sent;
use crate::postgres::client::{Client, connect};
use crate::relay::settings::Settings;

/// How and what to write.
pub(super) struct Load {
    settings: Settings,
    rows: u32,
    payload: String,
    insert: String,
}

impl Load {
    pub(super) fn new(settings: &Settings, rows: u32, payload_bytes: usize) -> Load {
        let columns = &settings.postgres.columns;
        let quoted: Vec<String> = [
            &columns.id,
            &columns.aggregate_id,
            &columns.event_type,
            &columns.payload,
        ]
        .into_iter()
        .filter_map(|value| value.column())
        .map(crate::table_name::quote_identifier)
        .collect();
        // One statement is one transaction.
        let insert = format!(
            "INSERT INTO {} ({}) SELECT id, id, 'walrelay.bench.v1', $2::text::jsonb FROM unnest($1::uuid[]) AS id",
            settings.postgres.table,
            quoted.join(", ")
        );
        let text = Alphanumeric.sample_string(&mut rand::rng(), payload_bytes.saturating_sub(9));
        Load {
            settings: settings.clone(),
            rows,
            payload: format!(r#"{{"t": "{text}"}}"#),
            insert,
        }
    }

    async fn session(&self) -> Result<(Client, Statement), anyhow::Error> {
        let client = connect(&self.settings.postgres.conninfo).await?;
        let insert = client.prepare(&self.insert).await?;
        Ok((client, insert))
    }

    /// Commits one event; its id.
    pub(super) async fn warm_up(&self) -> Result<Uuid, anyhow::Error> {
        let (client, insert) = self.session().await?;
        let id = Uuid::now_v7();
        client.execute(&insert, &[&vec![id], &self.payload]).await?;
        Ok(id)
    }

    /// Commits at this rate; how many transactions. `sent` hears of each transaction before it is sent.
    pub(super) async fn at_rate(
        &self,
        rate: u32,
        sessions: u32,
        lasts: Duration,
        sent: Sent,
    ) -> Result<u64, anyhow::Error> {
        let interval = Duration::from_secs(1) * sessions / rate;
        let mut opened = Vec::new();
        for _ in 0..sessions {
            opened.push(self.session().await?);
        }
        let begin = Instant::now();
        let mut tasks = Vec::new();
        for (session, (client, insert)) in (0..sessions).zip(opened) {
            let mut due = begin + interval * session / sessions;
            let (rows, payload, sent) = (self.rows, self.payload.clone(), sent.clone());
            tasks.push(tokio::spawn(async move {
                let mut transactions = 0_u64;
                while due < begin + lasts {
                    tokio::time::sleep_until(due.into()).await;
                    let ids: Vec<Uuid> = (0..rows).map(|_| Uuid::now_v7()).collect();
                    // A session that is behind its schedule makes its events late, and that is counted.
                    sent.tell(*ids.last().expect("at least one row"), due);
                    client.execute(&insert, &[&ids, &payload]).await?;
                    transactions += 1;
                    due += interval;
                    if begin.elapsed() > lasts {
                        break;
                    }
                }
                Ok::<_, tokio_postgres::Error>(transactions)
            }));
        }
        let mut transactions = 0;
        for task in tasks {
            transactions += task.await??;
        }
        Ok(transactions)
    }

    /// Commits so many events as fast as the sessions can.
    pub(super) async fn all(&self, events: u64, sessions: u32) -> Result<(), anyhow::Error> {
        let progress = indicatif::ProgressBar::new(events).with_message("backlog");
        let each = events.div_ceil(u64::from(sessions));
        let mut tasks = Vec::new();
        for session in 0..u64::from(sessions) {
            let (client, insert) = self.session().await?;
            let mut left = each.min(events.saturating_sub(session * each));
            let (rows, payload, progress) =
                (u64::from(self.rows), self.payload.clone(), progress.clone());
            tasks.push(tokio::spawn(async move {
                while left > 0 {
                    let chunk = left.min(rows);
                    let ids: Vec<Uuid> = (0..chunk).map(|_| Uuid::now_v7()).collect();
                    client.execute(&insert, &[&ids, &payload]).await?;
                    left -= chunk;
                    progress.inc(chunk);
                }
                Ok::<_, tokio_postgres::Error>(())
            }));
        }
        for task in tasks {
            task.await??;
        }
        progress.finish_and_clear();
        Ok(())
    }
}
