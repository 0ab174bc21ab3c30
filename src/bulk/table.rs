//! Rows of the table as a source.
//!
//! In: ids, in order. Out: their messages in that order, built by the relay's own code from the rows as the table has them
//! now. Guarantee: a chunk of ids at a time, and the rows as they come: memory does not grow with their number.

use std::collections::HashSet;
use std::io;

use futures_util::future::{Either, select};
use futures_util::{TryStreamExt as _, pin_mut};
use tokio_postgres::{Row as SqlRow, RowStream};

use super::rows::Rows;
use super::source::{Sink, Source, on_thread};
use super::{Item, Sourced};
use crate::pipeline::position::{BACKFILL_HEADER, KIND_BACKFILL, KIND_HEADER};
use crate::postgres::id_name::name_of;
use crate::relay::settings::Settings;

/// Rows that are asked for at once.
const CHUNK_IDS: usize = 5_000;

/// Reads the rows with these ids, each to be marked as a backfill.
pub fn source(
    settings: &Settings,
    ids: impl Iterator<Item = io::Result<String>> + Send + 'static,
) -> Source {
    let settings = settings.clone();
    on_thread(async move |sink: &mut Sink| {
        let rows = Rows::open(&settings).await?;
        let (slot, oid) = (&settings.postgres.slot, rows.oid());
        let mark = format!("{KIND_HEADER}: {KIND_BACKFILL}\r\n{BACKFILL_HEADER}: {slot} {oid}\r\n");
        let reader = Reader { rows, mark };
        reader.read(ids, sink).await
    })
}

struct Reader {
    rows: Rows,
    mark: String,
}

impl Reader {
    /// The next chunk is asked for before the rows of the one in hand are taken.
    async fn read(
        &self,
        ids: impl Iterator<Item = io::Result<String>>,
        sink: &mut Sink,
    ) -> anyhow::Result<()> {
        let mut ids = ids;
        let mut wanted = chunk(&mut ids)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut rows = self.rows.sql().answer(self.rows.ask(&wanted)).await?;
        loop {
            let next = chunk(&mut ids)?;
            if next.is_empty() {
                return self.take(wanted, rows, sink).await;
            }
            // Its answer may have to wait until the rows before are taken: that is no silence of the server.
            let asked = Box::pin(self.rows.ask(&next));
            let taking = Box::pin(self.take(wanted, rows, sink));
            let answer = match select(taking, asked).await {
                Either::Left((taken, asked)) => {
                    taken?;
                    self.rows.sql().answer(asked).await?
                }
                Either::Right((answer, taking)) => {
                    taking.await?;
                    answer?
                }
            };
            (wanted, rows) = (next, answer);
        }
    }

    async fn take(
        &self,
        wanted: Vec<String>,
        rows: RowStream,
        sink: &mut Sink,
    ) -> anyhow::Result<()> {
        let table = self.rows.table();
        let mut absent: HashSet<String> = wanted.into_iter().collect();
        pin_mut!(rows);
        while let Some(row) = self.rows.sql().answer(rows.try_next()).await? {
            let name: &str = row.try_get(row.len() - 2)?;
            if !absent.remove(&*name_of(name)) {
                continue;
            }
            let sourced = match row.try_get::<_, i64>(row.len() - 1)? {
                1 => self.sourced(name, &row),
                count => Sourced::Rejected {
                    name: name.to_owned(),
                    why: format!("{table} has {count} rows with this id"),
                },
            };
            sink.put(sourced).await?;
        }
        for id in absent {
            let gone = Sourced::Rejected {
                name: id,
                why: format!("it is no longer in {table}"),
            };
            sink.put(gone).await?;
        }
        Ok(())
    }

    fn sourced(&self, name: &str, row: &SqlRow) -> Sourced {
        let name = name.to_owned();
        match self.rows.parts_of(row) {
            Ok(parts) => Sourced::Item(Item {
                name,
                subject: parts.subject.into_bytes(),
                headers: format!("{}{}", self.mark, parts.headers).into_bytes(),
                body: parts.body,
            }),
            Err(why) => Sourced::Rejected {
                name,
                why: why.to_string(),
            },
        }
    }
}

fn chunk(ids: &mut impl Iterator<Item = io::Result<String>>) -> io::Result<Vec<String>> {
    ids.take(CHUNK_IDS).collect()
}
