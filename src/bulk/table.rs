//! Rows of the table as a source.
//!
//! In: rows, in order. Out: their messages in that order, built by the relay's own code from the rows as the table has them
//! now. Guarantee: a chunk of rows at a time, and the rows as they come: memory does not grow with their number.
//!
//! Old rows stand together as a rule, and in the order in which they committed, or nearly so. Then the table's blocks are read as
//! they are, which takes a quarter of what looking for each row takes; else rows are looked for by their ids.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::RangeInclusive;

use futures_util::future::{Either, select};
use tokio_postgres::CopyOutStream;

use super::rows::Rows;
use super::source::{Sink, Source, on_thread};
use super::{Item, Sourced};
use crate::pipeline::position::{BACKFILL_HEADER, KIND_BACKFILL, KIND_HEADER};
use crate::postgres::copy_text::{CopyRow, CopyRows};
use crate::postgres::id_column::HASHED;
use crate::postgres::id_name::name_of;
use crate::postgres::inserted::Tid;
use crate::relay::settings::Settings;

/// Rows that are asked for at once.
const CHUNK_ROWS: usize = 5_000;
/// So many rows are read for each that is wanted, and still less is done than to look for each.
const READ_FOR_ONE: u64 = 3;
/// One in so many may stand elsewhere, at either end: an update has moved it, or it took the place of one that was deleted.
const STRAY_ONE_IN: usize = 40;
/// Bytes of rows that are kept until those before them have come.
const HELD_BYTES_MAX: usize = 4 << 20;

/// A row to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its id, or what stands for one that is neither a UUID nor a number.
    pub name: String,
    /// Where it was seen.
    pub tid: Tid,
}

/// Reads these rows, each to be marked as a backfill.
pub fn source(
    settings: &Settings,
    wanted: impl Iterator<Item = io::Result<Wanted>> + Send + 'static,
) -> Source {
    let settings = settings.clone();
    on_thread(async move |sink: &mut Sink| {
        let rows = Rows::open(&settings).await?;
        let (slot, oid) = (&settings.postgres.slot, rows.oid());
        let mark = format!("{KIND_HEADER}: {KIND_BACKFILL}\r\n{BACKFILL_HEADER}: {slot} {oid}\r\n");
        let reader = Reader { rows, mark };
        reader.read(wanted, sink).await
    })
}

struct Reader {
    rows: Rows,
    mark: String,
}

/// Rows that are asked for at once.
struct Chunk {
    wanted: Vec<Wanted>,
    /// The blocks that are read for them; none where each is looked for.
    blocks: Option<RangeInclusive<u32>>,
}

impl Chunk {
    /// The next one; none at the end.
    fn next(
        wanted: &mut impl Iterator<Item = io::Result<Wanted>>,
        has_places: bool,
    ) -> io::Result<Option<Self>> {
        let wanted: Vec<Wanted> = wanted.take(CHUNK_ROWS).collect::<io::Result<_>>()?;
        let blocks = match has_places {
            true => dense(&wanted),
            false => None,
        };
        Ok((!wanted.is_empty()).then_some(Chunk { wanted, blocks }))
    }

    async fn ask(&self, rows: &Rows) -> Result<CopyOutStream, tokio_postgres::Error> {
        let Some(blocks) = &self.blocks else {
            return rows.ask(names(&self.wanted)).await;
        };
        let wanted = self.wanted.iter();
        let elsewhere = wanted.filter(|wanted| !blocks.contains(&wanted.tid.block));
        rows.ask_blocks(blocks, elsewhere.map(|wanted| &*wanted.name))
            .await
    }
}

impl Reader {
    /// The next chunk is asked for before the rows of the one in hand are taken, where these are all looked for. Of blocks some may be
    /// left to be looked for, which is done first: on a second session they would wait for a lock behind whoever waits for the first,
    /// and nobody reads that one meanwhile.
    async fn read(
        &self,
        mut wanted: impl Iterator<Item = io::Result<Wanted>>,
        sink: &mut Sink,
    ) -> anyhow::Result<()> {
        let has_places = self.rows.has_places();
        let Some(mut chunk) = Chunk::next(&mut wanted, has_places)? else {
            return Ok(());
        };
        let mut rows = self.rows.sql().answer(chunk.ask(&self.rows)).await?;
        loop {
            let Some(next) = Chunk::next(&mut wanted, has_places)? else {
                return self.take(chunk, rows, sink).await;
            };
            if chunk.blocks.is_some() {
                self.take(chunk, rows, sink).await?;
                rows = self.rows.sql().answer(next.ask(&self.rows)).await?;
                chunk = next;
                continue;
            }
            // Its answer may have to wait until the rows before are taken: that is no silence of the server.
            let asked = Box::pin(next.ask(&self.rows));
            let taking = Box::pin(self.take(chunk, rows, sink));
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
            (chunk, rows) = (next, answer);
        }
    }

    async fn take(&self, chunk: Chunk, rows: CopyOutStream, sink: &mut Sink) -> anyhow::Result<()> {
        let Chunk { mut wanted, blocks } = chunk;
        if blocks.is_none() {
            return self.take_found(wanted, rows, sink).await;
        }
        let taken = self.take_of_blocks(&wanted, rows, sink).await?;
        wanted.drain(..taken);
        if wanted.is_empty() {
            return Ok(());
        }
        let rows = self.rows.ask(names(&wanted));
        let rows = self.rows.sql().answer(rows).await?;
        self.take_found(wanted, rows, sink).await
    }

    /// Takes rows as they stand in the table, and puts them in order; how many of the wanted ones. Behind these is one that did not
    /// come, or came too late.
    async fn take_of_blocks(
        &self,
        wanted: &[Wanted],
        rows: CopyOutStream,
        sink: &mut Sink,
    ) -> anyhow::Result<usize> {
        let mut numbers: Option<HashMap<&str, usize>> = None;
        let (mut held, mut held_bytes) = (BTreeMap::new(), 0);
        let mut next = 0;
        let mut rows = CopyRows::new(self.rows.sql(), rows);
        while let Some(row) = rows.next().await? {
            let id = self.rows.id(row)?;
            // Nearly all come in order, and need no name.
            let is_next = wanted.get(next).is_some_and(|wanted| wanted.name == *id);
            if !is_next || id.starts_with(HASHED) {
                let numbers = numbers.get_or_insert_with(|| names(wanted).zip(0..).collect());
                let number = numbers.get(&*name_of(&id)).copied();
                // One that has moved may come twice.
                let Some(number) = number.filter(|it| *it >= next && !held.contains_key(it)) else {
                    continue;
                };
                held_bytes += row.bytes();
                if held_bytes > HELD_BYTES_MAX {
                    break;
                }
                held.insert(number, (self.sourced(&id, row), row.bytes()));
            } else {
                sink.put(self.sourced(&id, row)).await?;
                next += 1;
            }
            while let Some((sourced, bytes)) = held.remove(&next) {
                held_bytes -= bytes;
                sink.put(sourced).await?;
                next += 1;
            }
        }
        Ok(next)
    }

    /// Takes rows that were looked for by their ids, in the order in which they come.
    async fn take_found(
        &self,
        wanted: Vec<Wanted>,
        rows: CopyOutStream,
        sink: &mut Sink,
    ) -> anyhow::Result<()> {
        let mut absent: HashSet<String> = wanted.into_iter().map(|wanted| wanted.name).collect();
        let mut rows = CopyRows::new(self.rows.sql(), rows);
        while let Some(row) = rows.next().await? {
            let id = self.rows.id(row)?;
            if !absent.remove(&*name_of(&id)) {
                continue;
            }
            let sourced = match row.parse(row.len() - 1)? {
                1 => self.sourced(&id, row),
                count => Sourced::Rejected {
                    name: id.into_owned(),
                    why: format!("{} has {count} rows with this id", self.rows.table()),
                },
            };
            sink.put(sourced).await?;
        }
        for name in absent {
            sink.put(Sourced::Gone { name }).await?;
        }
        Ok(())
    }

    fn sourced(&self, id: &str, row: &CopyRow) -> Sourced {
        let name = id.to_owned();
        match self.rows.parts_of(row, &self.mark) {
            Ok(parts) => Sourced::Item(Item {
                name,
                subject: parts.subject.into_bytes(),
                headers: parts.headers.into_bytes(),
                body: parts.body,
            }),
            Err(why) => Sourced::Rejected {
                name,
                why: why.to_string(),
            },
        }
    }
}

fn names(wanted: &[Wanted]) -> impl Iterator<Item = &str> {
    wanted.iter().map(|wanted| &*wanted.name)
}

/// The blocks that have the rows, or all but a few, where to read these as they are costs less than to look for each row.
fn dense(wanted: &[Wanted]) -> Option<RangeInclusive<u32>> {
    let mut blocks: Vec<u32> = wanted.iter().map(|wanted| wanted.tid.block).collect();
    blocks.sort_unstable();
    let offsets: u64 = wanted
        .iter()
        .map(|wanted| u64::from(wanted.tid.offset))
        .sum();
    // Line pointers are counted from 1, so a block has twice as many rows as the mean of theirs.
    let rows_a_block = (2 * offsets).checked_div(wanted.len() as u64)?.max(1);
    let most_read = READ_FOR_ONE * wanted.len() as u64;
    [0, wanted.len() / STRAY_ONE_IN]
        .into_iter()
        .find_map(|strays| {
            let (first, last) = (*blocks.get(strays)?, *blocks.iter().rev().nth(strays)?);
            let read = (u64::from(last.checked_sub(first)?) + 1) * rows_a_block;
            (read <= most_read).then_some(first..=last)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(tids: impl Iterator<Item = (u32, u16)>) -> Vec<Wanted> {
        tids.map(|(block, offset)| Wanted {
            name: String::new(),
            tid: Tid { block, offset },
        })
        .collect()
    }

    /// Blocks of 20 rows each.
    fn every(nth: u32, rows: u32) -> Vec<Wanted> {
        let place = |row: u32| (row / 20, (row % 20 + 1) as u16);
        wanted((0..rows).map(|row| place(row * nth)))
    }

    #[test]
    fn rows_that_stand_together_are_read_by_their_blocks() {
        assert_eq!(dense(&every(1, 5_000)), Some(0..=249));
        assert_eq!(dense(&every(2, 5_000)), Some(0..=499));
        assert_eq!(dense(&every(19, 5_000)), None);
        // A few that an update has moved.
        let mut moved = every(1, 5_000);
        for row in moved.iter_mut().step_by(100) {
            row.tid.block = 1_000_000;
        }
        let blocks = dense(&moved).expect("the others stand together");
        assert!(*blocks.end() < 250, "{blocks:?}");
        assert_eq!(dense(&every(1, 1)), Some(0..=0));
        assert_eq!(dense(&wanted([(7, 15)].into_iter())), None);
        assert_eq!(dense(&[]), None);
    }
}
