//! Entries sorted by event id, however many there are.
//!
//! In: entries in any order. Out: all that share an id together, ids ascending. Guarantee: at most
//! [`RUN_ENTRIES`] entries and a buffer a run are in memory; the rest is in files that have no name any more, so that
//! they go with the process.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};

/// Entries of one run: 32 MiB in memory.
const RUN_ENTRIES: usize = 1 << 20;
/// Read buffer of each run while merging, in bytes; 10 million events are about 20 runs.
const MERGE_BUFFER_BYTES: usize = 64 * 1024;
const ENTRY_BYTES: usize = 32;
/// The number shares its 64 bits with the kind.
pub(super) const NUMBER_BITS: u32 = 56;

/// Where an id was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A row of the table; number and place are a packed [`Inserted`](crate::postgres::inserted::Inserted).
    Row,
    /// A row that `--since` leaves out; the number is 0.
    OlderRow,
    /// An event's first publication; the number is its stream sequence, as for all that follow.
    Event,
    /// The same, of a transaction that the check's snapshot of the table may not hold.
    LaterEvent,
    /// An event that another share has published, of a row that may be this one's now.
    Sibling,
    /// A dead letter.
    DeadLetter,
    /// A mark: a dead letter was retried.
    Retried,
    /// A mark: a dead letter was discarded.
    Discarded,
    /// A mark: a dead letter that was discarded was retried after all.
    Reclaimed,
    /// One of these two marks once more: no retry of its dead letter was met before it.
    Unproven,
    /// An event in the place of one that was not there: a backfill, a retry.
    Fill,
    /// An event that was published again on request.
    Replay,
    /// A row that the slot holds behind the lane's end, so that it is still to come; the number is 0, as for those below.
    Pending,
    /// A row that the slot holds between the lane's first message in the stream and its end.
    Passed,
    /// A row that the slot holds before the lane's first message in the stream, where messages were removed.
    Removed,
    /// A message with the id of a row of another table, which was the outbox before; the number is its sequence.
    Former,
}

impl Kind {
    const ALL: [Kind; 16] = [
        Kind::Row,
        Kind::OlderRow,
        Kind::Event,
        Kind::LaterEvent,
        Kind::Sibling,
        Kind::DeadLetter,
        Kind::Retried,
        Kind::Discarded,
        Kind::Reclaimed,
        Kind::Unproven,
        Kind::Fill,
        Kind::Replay,
        Kind::Pending,
        Kind::Passed,
        Kind::Removed,
        Kind::Former,
    ];
}

/// One meeting with an id. The order is by id, then kind, then number, then place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) id: u128,
    tagged: u64,
    /// Where it was met, of what a number is not enough for; else 0.
    pub(super) place: u64,
}

impl Entry {
    pub(super) fn new(id: u128, kind: Kind, number: u64) -> Self {
        assert!(number >> NUMBER_BITS == 0, "2^56 messages are far away");
        Entry {
            id,
            tagged: (kind as u64) << NUMBER_BITS | number,
            place: 0,
        }
    }

    /// The same at this place.
    pub(super) fn at(self, place: u64) -> Self {
        Entry { place, ..self }
    }

    pub(super) fn kind(self) -> Kind {
        Kind::ALL[(self.tagged >> NUMBER_BITS) as usize]
    }

    pub(super) fn number(self) -> u64 {
        self.tagged & ((1 << NUMBER_BITS) - 1)
    }

    fn read(file: &mut BufReader<File>) -> io::Result<Option<Entry>> {
        let mut bytes = [0; ENTRY_BYTES];
        match file.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let (id, rest) = bytes.split_at(16);
        let (tagged, place) = rest.split_at(8);
        Ok(Some(Entry {
            id: u128::from_be_bytes(id.try_into().expect("16 bytes")),
            tagged: u64::from_be_bytes(tagged.try_into().expect("8 bytes")),
            place: u64::from_be_bytes(place.try_into().expect("8 bytes")),
        }))
    }
}

/// Keeps what several have in memory together as little as what one has alone.
///
/// # Errors
/// A temporary file cannot be written.
pub(super) fn share_memory<'e>(all: impl Iterator<Item = &'e mut Entries>) -> io::Result<()> {
    let mut all: Vec<&mut Entries> = all.collect();
    let in_memory: usize = all.iter().map(|entries| entries.in_memory()).sum();
    let largest = all.iter_mut().max_by_key(|entries| entries.in_memory());
    match largest {
        Some(largest) if in_memory >= RUN_ENTRIES => largest.put_away(),
        _ => Ok(()),
    }
}

/// All entries of the check of a table. More can be added after a merge, and it can be merged again.
#[derive(Debug, Default)]
pub(super) struct Entries {
    open: Vec<Entry>,
    runs: Vec<File>,
}

impl Entries {
    /// Adds an entry.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn push(&mut self, entry: Entry) -> io::Result<()> {
        self.open.push(entry);
        if self.open.len() >= RUN_ENTRIES {
            self.spill()?;
        }
        Ok(())
    }

    /// How many are in memory.
    pub(super) fn in_memory(&self) -> usize {
        self.open.len()
    }

    /// Takes all of them out of memory.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn put_away(&mut self) -> io::Result<()> {
        self.spill()?;
        self.open = Vec::new();
        Ok(())
    }

    /// Adds all of `other`.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub(super) fn append(&mut self, other: Entries) -> io::Result<()> {
        self.runs.extend(other.runs);
        other
            .open
            .into_iter()
            .try_for_each(|entry| self.push(entry))
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.open.sort_unstable();
        let mut file = BufWriter::with_capacity(1 << 20, unnamed_file()?);
        for entry in self.open.drain(..) {
            file.write_all(&entry.id.to_be_bytes())?;
            file.write_all(&entry.tagged.to_be_bytes())?;
            file.write_all(&entry.place.to_be_bytes())?;
        }
        self.runs
            .push(file.into_inner().map_err(io::IntoInnerError::into_error)?);
        Ok(())
    }

    /// All entries in order.
    ///
    /// # Errors
    /// A temporary file cannot be written or read.
    pub(super) fn merge(&mut self) -> io::Result<Merge> {
        // The merge has buffers of its own.
        self.put_away()?;
        let mut merge = Merge {
            runs: Vec::with_capacity(self.runs.len()),
            heads: BinaryHeap::with_capacity(self.runs.len()),
        };
        for (index, run) in self.runs.iter().enumerate() {
            // The duplicate shares its place in the file with the original: one merge at a time.
            let mut file = run.try_clone()?;
            file.seek(SeekFrom::Start(0))?;
            let mut file = BufReader::with_capacity(MERGE_BUFFER_BYTES, file);
            if let Some(entry) = Entry::read(&mut file)? {
                merge.heads.push(Reverse((entry, index)));
            }
            merge.runs.push(file);
        }
        Ok(merge)
    }
}

/// The entries on their way, in order.
#[derive(Debug)]
pub(super) struct Merge {
    runs: Vec<BufReader<File>>,
    heads: BinaryHeap<Reverse<(Entry, usize)>>,
}

impl Merge {
    /// The next entry; none at the end.
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub(super) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let Some(Reverse((entry, index))) = self.heads.pop() else {
            return Ok(None);
        };
        if let Some(next) = Entry::read(&mut self.runs[index])? {
            self.heads.push(Reverse((next, index)));
        }
        Ok(Some(entry))
    }

    /// Hands each entry of the next id to `take`, however many they are; `false` at the end.
    ///
    /// # Errors
    /// A temporary file cannot be read.
    pub(super) fn next_group(&mut self, mut take: impl FnMut(Entry)) -> io::Result<bool> {
        let Some(first) = self.next_entry()? else {
            return Ok(false);
        };
        take(first);
        while let Some(Reverse((entry, _))) = self.heads.peek()
            && entry.id == first.id
            && let Some(entry) = self.next_entry()?
        {
            take(entry);
        }
        Ok(true)
    }
}

/// A file in the temporary folder whose name is gone before it is used.
fn unnamed_file() -> io::Result<File> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "walrelay-verify-{}-{}-{:016x}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed),
        rand::random::<u64>()
    );
    let path = std::env::temp_dir().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_have_no_more_in_memory_than_one() {
        let mut all = [Entries::default(), Entries::default()];
        for number in 0..RUN_ENTRIES as u64 {
            for entries in &mut all {
                entries
                    .push(Entry::new(u128::from(number), Kind::Event, number))
                    .unwrap();
            }
            if number.is_multiple_of(1_000) {
                share_memory(all.iter_mut()).unwrap();
                let in_memory: usize = all.iter().map(Entries::in_memory).sum();
                assert!(in_memory < RUN_ENTRIES);
            }
        }
        assert!(all.iter().all(|entries| !entries.runs.is_empty()));
    }

    #[test]
    fn groups_come_in_order_across_runs_and_again() {
        let mut entries = Entries::default();
        for (id, kind, number) in [
            (7, Kind::Event, 3),
            (1, Kind::Row, 9),
            (7, Kind::Row, 1 << 40),
        ] {
            entries.push(Entry::new(id, kind, number)).unwrap();
            entries.spill().unwrap();
        }
        entries.push(Entry::new(1, Kind::Pending, 0)).unwrap();
        for _ in 0..2 {
            let mut merge = entries.merge().unwrap();
            let mut seen = Vec::new();
            loop {
                let mut group = Vec::new();
                let take = |entry: Entry| group.push((entry.id, entry.kind(), entry.number()));
                if !merge.next_group(take).unwrap() {
                    break;
                }
                seen.push(group);
            }
            assert_eq!(
                seen,
                [
                    vec![(1, Kind::Row, 9), (1, Kind::Pending, 0)],
                    vec![(7, Kind::Row, 1 << 40), (7, Kind::Event, 3)],
                ]
            );
        }
    }
}
