//! A Postgres that has nothing but WAL, a slot for each lane and its walsender.
//!
//! Start = max(requested, confirmed); a transaction is sent if and only if its commit record begins at or behind it;
//! only `flush` moves the slot; the confirmed LSN on disk is older than the one in memory, and a crash goes back to it.

mod slot;

use crate::lanes::{self, Part, Publications};
use crate::outboxes::{self, KINDS, Kind, NAMES, OIDS, OWN, Spans};
use crate::random::Random;
use crate::wire::{self, Table, Value};
use slot::Slot;
use std::collections::BTreeMap;
use std::time::Duration;
use walrelay::pipeline::history::History;
use walrelay::pipeline::reshard::{self, Switch};

pub(crate) const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(30);
const OTHER_OID: u32 = 16_500;
/// Text in some encoding, and none in UTF-8.
pub(crate) const NO_TEXT: &[u8] = b"\"Z\xfcri\"";

/// A row of the outbox, or of another table of the publication.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) outbox: bool,
    /// Of which layout its table is.
    pub(crate) kind: Kind,
    /// As it was when the row was inserted: OID and name.
    table: (u32, &'static str),
    /// In the order of the envelope.
    pub(crate) values: [Value; 6],
    /// It can be no event.
    pub(crate) rejected: bool,
}

impl Row {
    /// Some events are written without a table. The content is what `sql/outbox_message.sql` writes.
    fn as_message(&self) -> Option<String> {
        let text = |at: usize| std::str::from_utf8(self.values[at].as_deref()?).ok();
        let (id, payload) = (text(0)?, text(5)?);
        let is_one = self.outbox && self.kind == OWN && !self.rejected && payload.len() % 4 == 0;
        is_one.then_some(())?;
        Some(format!(
            r#"{{"id" : "{id}", "aggregate_id" : "{}", "event_type" : "{}", "event_version" : {}, "occurred_at" : "{}", "payload_json" : {payload}}}"#,
            text(1)?,
            text(2)?,
            text(3)?,
            text(4)?,
        ))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) commit_lsn: u64,
    pub(crate) end_lsn: u64,
    pub(crate) rows: Vec<Row>,
    /// It changes the number of shares, and has no rows.
    switch: Option<Switch>,
}

/// What the WAL holds, in its order.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Transaction(Transaction),
    /// WAL of others, up to this LSN.
    Other(u64),
}

impl Record {
    fn end_lsn(&self) -> u64 {
        match self {
            Record::Transaction(transaction) => transaction.end_lsn,
            Record::Other(end_lsn) => *end_lsn,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) up: bool,
    /// Changes at each restart.
    pub(crate) incarnation: u64,
    pub(crate) system_identifier: u64,
    pub(crate) database: String,
    pub(crate) history: History,
    pub(crate) wal: Vec<Record>,
    pub(crate) end_lsn: u64,
    /// Of each lane that there may be.
    slots: BTreeMap<Part, Slot>,
    pub(crate) publications: Publications,
    /// The outbox may get shares: no event is written as a message, which every lane would read.
    pub(crate) divides: bool,
    /// SQL_ASCII: any bytes are text.
    pub(crate) sql_ascii: bool,
    /// OIDs of the tables that have the outboxes' names.
    pub(crate) oids: [u32; KINDS],
    /// The further tables that get rows.
    pub(crate) further: Vec<Kind>,
    /// When which table was the lane's.
    pub(crate) spans: Spans,
    columns: Vec<usize>,
    /// Rows of each table: their ids are the same.
    events: [u64; KINDS],
    salt: u64,
}

impl Postgres {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut columns = vec![0, 1, 2, 3, 4, 5];
        for at in (1..columns.len()).rev() {
            columns.swap(at, random.below(at as u64 + 1) as usize);
        }
        let start = 0x1_0000_0000 + random.below(1 << 20) * 8;
        let mut slots: BTreeMap<Part, Slot> =
            lanes::all().map(|part| (part, Slot::default())).collect();
        slots.entry(None).or_default().make(start);
        Postgres {
            up: true,
            incarnation: 0,
            system_identifier: 7_000_000_000_000_000_001,
            database: "app".into(),
            history: History::first(),
            wal: Vec::new(),
            end_lsn: start,
            slots,
            publications: Publications::default(),
            divides: false,
            sql_ascii: false,
            oids: OIDS,
            further: Vec::new(),
            spans: Spans::default(),
            columns,
            events: [0; KINDS],
            salt: 0,
        }
    }

    /// The slot of a lane.
    pub(crate) fn slot(&self, part: Part) -> &Slot {
        &self.slots[&part]
    }

    pub(crate) fn slot_mut(&mut self, part: Part) -> &mut Slot {
        self.slots.get_mut(&part).expect("there are all")
    }

    /// The lanes that are read, and over which connection.
    pub(crate) fn readers(&self) -> impl Iterator<Item = (Part, usize)> {
        let link = |slot: &Slot| slot.walsender.as_ref().map(|sender| sender.link);
        let slots = self.slots.iter();
        slots.filter_map(move |(part, slot)| Some((*part, link(slot)?)))
    }

    /// The lane that is read over that connection.
    pub(crate) fn read_over(&self, link: usize) -> Option<Part> {
        let found = self.readers().find(|(_, of)| *of == link);
        found.map(|(part, _)| part)
    }

    /// A row that can be published, or one that cannot.
    pub(crate) fn row(&mut self, random: &mut Random, rejects: bool) -> Row {
        let kind = match self.further.is_empty() {
            true => OWN,
            false => *[OWN]
                .iter()
                .chain(&self.further)
                .nth(random.below(self.further.len() as u64 + 1) as usize)
                .expect("in range"),
        };
        self.row_of(kind, random, rejects)
    }

    /// The same, of one table.
    pub(crate) fn row_of(&mut self, kind: Kind, random: &mut Random, rejects: bool) -> Row {
        self.events[kind] += 1;
        let n = self.events[kind];
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let payload = "x".repeat(random.between(0, 120) as usize);
        let mut values = [
            text(&format!(
                "{:08x}-{:04x}-4000-8000-{n:012x}",
                n * 77,
                self.salt
            )),
            text(&format!("00000000-0000-4000-8000-{:012x}", n % 9)),
            text(["lesson.published.v1", "user.erase_requested.v1", "a"][(n % 3) as usize]),
            text("1"),
            text("2026-11-23 04:40:52.84613+00"),
            text(&format!("{{\"n\": {n}, \"x\": \"{payload}\"}}")),
        ];
        let rejected = rejects && random.one_in(8);
        if rejected && self.sql_ascii && random.one_in(2) {
            // What a server of another encoding could not convert.
            values[random.pick(&[2, 5])] = Some(NO_TEXT.to_vec());
        } else if rejected {
            match random.below(6) {
                // Of a payload alone the aggregate may be missing, and the table has no columns for the others.
                1 | 3 | 4 if outboxes::has_bare_payload(kind) => values[2] = None,
                0 => values[0] = None,
                1 => values[1] = None,
                2 => values[2] = text("two words"),
                3 => values[3] = text("300"),
                4 => values[4] = text("infinity"),
                _ => {
                    let len = random.pick(&[4_000, 5_000, 20_000]);
                    values[5] = Some(format!("\"{}\"", "y".repeat(len)).into_bytes());
                }
            }
        }
        Row {
            outbox: true,
            kind,
            table: (self.oids[kind], NAMES[kind][0]),
            values,
            rejected,
        }
    }

    /// Commits; returns the commit LSN.
    pub(crate) fn commit(&mut self, rows: Vec<Row>, random: &mut Random) -> u64 {
        self.write(rows, None, random)
    }

    /// Changes all publications; returns the commit LSN.
    pub(crate) fn reshard(&mut self, to: u32, random: &mut Random) -> u64 {
        let from = self.publications.count();
        let commit_lsn = self.write(Vec::new(), Some(Switch { from, to }), random);
        self.publications.change(commit_lsn, to);
        commit_lsn
    }

    fn write(&mut self, rows: Vec<Row>, switch: Option<Switch>, random: &mut Random) -> u64 {
        let commit_lsn = self.end_lsn + 8 * random.between(1, 40 + 20 * rows.len() as u64);
        let end_lsn = commit_lsn + 8 * random.between(1, 8);
        self.end_lsn = end_lsn;
        self.wal.push(Record::Transaction(Transaction {
            commit_lsn,
            end_lsn,
            rows,
            switch,
        }));
        commit_lsn
    }

    pub(crate) fn commit_other_table(&mut self, random: &mut Random) {
        let mut row = self.row(random, false);
        row.outbox = false;
        // One that was the outbox is another table now.
        let oid = self.oids[row.kind];
        row.table = match oid > OIDS[row.kind] && random.one_in(2) {
            true => (oid - 1, NAMES[row.kind][2]),
            false => (OTHER_OID + row.kind as u32, "other"),
        };
        if self.sql_ascii {
            row.values[5] = Some(NO_TEXT.to_vec());
        }
        self.commit(vec![row], random);
    }

    /// A new table, what the outbox has copied into it, and the names swapped; then an event. FOR ALL TABLES sends all of it.
    pub(crate) fn replace_table(&mut self, random: &mut Random) {
        let kind = match self.further.is_empty() {
            true => OWN,
            false => self.row(random, false).kind,
        };
        let of_kind = self.events(None).filter(|(_, _, _, row)| row.kind == kind);
        let mut copied: Vec<Row> = of_kind.map(|(_, _, _, row)| row.clone()).collect();
        copied.drain(..copied.len().saturating_sub(30));
        self.oids[kind] += 1;
        for row in &mut copied {
            row.outbox = false;
            row.table = (self.oids[kind], NAMES[kind][1]);
        }
        // The relay knows of the other table by its first row.
        let event = std::iter::repeat_with(|| self.row_of(kind, random, false))
            .find(|row| row.as_message().is_none())
            .expect("most events are rows");
        // All in one transaction, or one after the other.
        if random.one_in(2) {
            copied.push(event);
            self.commit(copied, random);
        } else {
            self.commit(copied, random);
            self.commit(vec![event], random);
        }
    }

    /// WAL of another database.
    pub(crate) fn write_other(&mut self, random: &mut Random) {
        self.end_lsn += 8 * random.between(1, 5_000);
        self.wal.push(Record::Other(self.end_lsn));
    }

    /// The slot's state reaches the disk.
    pub(crate) fn checkpoint(&mut self) {
        self.slots.values_mut().for_each(Slot::checkpoint);
    }

    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.slots.values_mut().for_each(Slot::crash);
    }

    pub(crate) fn start(&mut self) {
        self.up = true;
        self.incarnation += 1;
    }

    /// Back to how it was when the WAL ended at `end_lsn` and the slot was confirmed up to `confirmed_lsn`.
    pub(crate) fn restore(&mut self, end_lsn: u64, confirmed_lsn: u64) {
        self.crash();
        self.wal.retain(|record| record.end_lsn() <= end_lsn);
        self.end_lsn = end_lsn;
        self.publications.restore(end_lsn);
        self.slot_mut(None).set(confirmed_lsn);
        self.salt += 1;
    }

    /// Other events in place of those behind `lsn`.
    pub(crate) fn salt(&mut self, lsn: u64) {
        for record in &mut self.wal {
            if let Record::Transaction(transaction) = record
                && transaction.commit_lsn > lsn
            {
                for (row, n) in transaction.rows.iter_mut().zip(0..) {
                    row.values[0] = Some(format!("ffffffff-0000-4000-8000-{n:012x}").into_bytes());
                }
                self.end_lsn = self.end_lsn.max(transaction.end_lsn);
            }
        }
    }

    /// All rows of the outbox, in the order of the WAL.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        let rows = self.wal.iter().flat_map(|record| match record {
            Record::Transaction(transaction) => transaction.rows.as_slice(),
            Record::Other(_) => &[],
        });
        rows.filter(|row| row.outbox)
    }

    /// All rows of a lane: commit LSN, end LSN, ordinal, row.
    pub(crate) fn events(&self, part: Part) -> impl Iterator<Item = (u64, u64, u64, &Row)> {
        self.wal.iter().flat_map(move |record| {
            let transaction = match record {
                Record::Transaction(transaction) => Some(transaction),
                Record::Other(_) => None,
            };
            transaction.into_iter().flat_map(move |transaction| {
                transaction
                    .rows
                    .iter()
                    .filter(move |row| {
                        let commit_lsn = transaction.commit_lsn;
                        row.outbox
                            && self.spans.count(row.kind, commit_lsn)
                            && self.publications.carries(part, row, commit_lsn)
                    })
                    .zip(1..)
                    .map(move |(row, ordinal)| {
                        (transaction.commit_lsn, transaction.end_lsn, ordinal, row)
                    })
            })
        })
    }
}

/// The columns that a table of that layout has.
fn columns_of(kind: Kind, columns: &[usize]) -> impl Iterator<Item = usize> {
    let known = outboxes::columns(kind);
    columns
        .iter()
        .copied()
        .filter(move |at| !known[*at].0.is_empty())
}

/// The columns in the table's own order, and one more.
fn table(oid: u32, name: &str, kind: Kind, columns: &[usize]) -> Table {
    let known = outboxes::columns(kind);
    let mut columns: Vec<_> = columns_of(kind, columns)
        .map(|at| (known[at].0.to_owned(), known[at].1))
        .collect();
    columns.push(("dispatched_at".into(), 1184));
    Table {
        oid,
        schema: "public".into(),
        name: name.into(),
        columns,
    }
}
