//! A Postgres that has nothing but WAL, one slot and one walsender.
//!
//! Start = max(requested, confirmed); a transaction is sent if and only if its commit record begins at or behind it;
//! only `flush` moves the slot; the confirmed LSN on disk is older than the one in memory, and a crash goes back to it.

use crate::outboxes::{self, KINDS, Kind, NAMES, OIDS, OWN, Spans};
use crate::random::Random;
use crate::wire::{self, Table, Value};
use std::collections::BTreeMap;
use std::time::Duration;
use walrelay::pipeline::history::History;

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

/// The process that sends WAL to the slot's reader.
#[derive(Debug)]
pub(crate) struct Walsender {
    pub(crate) link: usize,
    start_lsn: u64,
    next: usize,
    sent_lsn: u64,
    write_lsn: u64,
    told_lsn: u64,
    /// Under which name a table was described.
    described: BTreeMap<u32, &'static str>,
    heard_at: Duration,
    asked: bool,
    /// The client has asked for a keepalive.
    owes_keepalive: bool,
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
    /// None: dropped.
    pub(crate) confirmed_lsn: Option<u64>,
    /// Where the slot was made; none where nobody has written it down.
    pub(crate) begins_lsn: Option<u64>,
    saved_lsn: u64,
    pub(crate) walsender: Option<Walsender>,
    /// How many there were.
    pub(crate) walsenders: u64,
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
        Postgres {
            up: true,
            incarnation: 0,
            system_identifier: 7_000_000_000_000_000_001,
            database: "app".into(),
            history: History::first(),
            wal: Vec::new(),
            end_lsn: start,
            confirmed_lsn: Some(start),
            begins_lsn: Some(start),
            saved_lsn: start,
            walsender: None,
            walsenders: 0,
            sql_ascii: false,
            oids: OIDS,
            further: Vec::new(),
            spans: Spans::default(),
            columns,
            events: [0; KINDS],
            salt: 0,
        }
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
        let commit_lsn = self.end_lsn + 8 * random.between(1, 40 + 20 * rows.len() as u64);
        let end_lsn = commit_lsn + 8 * random.between(1, 8);
        self.end_lsn = end_lsn;
        self.wal.push(Record::Transaction(Transaction {
            commit_lsn,
            end_lsn,
            rows,
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
        let of_kind = self.events().filter(|(_, _, _, row)| row.kind == kind);
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
        self.saved_lsn = self.confirmed_lsn.unwrap_or(self.saved_lsn);
    }

    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.walsender = None;
        self.confirmed_lsn = self.confirmed_lsn.map(|_| self.saved_lsn);
    }

    pub(crate) fn start(&mut self) {
        self.up = true;
        self.incarnation += 1;
    }

    /// Sets the slot as nothing but a person would.
    pub(crate) fn set_slot(&mut self, confirmed_lsn: u64) {
        self.confirmed_lsn = Some(confirmed_lsn);
        self.saved_lsn = confirmed_lsn;
    }

    /// Back to how it was when the WAL ended at `end_lsn` and the slot was confirmed up to `confirmed_lsn`.
    pub(crate) fn restore(&mut self, end_lsn: u64, confirmed_lsn: u64) {
        self.crash();
        self.wal.retain(|record| record.end_lsn() <= end_lsn);
        self.end_lsn = end_lsn;
        self.set_slot(confirmed_lsn);
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

    /// START_REPLICATION.
    pub(crate) fn start_replication(&mut self, link: usize, requested: u64, now: Duration) {
        let confirmed = self.confirmed_lsn.expect("the caller has seen the slot");
        assert!(self.walsender.is_none(), "the slot is in use");
        let start_lsn = requested.max(confirmed);
        let next = self
            .wal
            .iter()
            .position(|record| record.end_lsn() > confirmed)
            .unwrap_or(self.wal.len());
        self.walsenders += 1;
        self.walsender = Some(Walsender {
            link,
            start_lsn,
            next,
            sent_lsn: confirmed,
            write_lsn: 0,
            told_lsn: 0,
            described: BTreeMap::new(),
            heard_at: now,
            asked: false,
            owes_keepalive: false,
        });
    }

    /// Bytes of the next few records.
    pub(crate) fn send(&mut self, has_room: bool, now: Duration, random: &mut Random) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(sender) = &mut self.walsender else {
            return out;
        };
        while has_room && out.len() < 4_000 && sender.next < self.wal.len() {
            let record = &self.wal[sender.next];
            sender.next += 1;
            if let Record::Transaction(transaction) = record
                && transaction.commit_lsn >= sender.start_lsn
            {
                send_transaction(&mut out, transaction, &self.columns, &mut sender.described);
            }
            sender.sent_lsn = record.end_lsn();
            if random.one_in(6) {
                let keepalive = wire::keepalive(sender.sent_lsn, random.one_in(4));
                wire::copy_data(&mut out, &keepalive);
            }
        }
        if std::mem::take(&mut sender.owes_keepalive) {
            wire::copy_data(&mut out, &wire::keepalive(sender.sent_lsn, false));
        }
        let caught_up = sender.next == self.wal.len();
        if caught_up && sender.told_lsn < sender.sent_lsn && sender.write_lsn < sender.sent_lsn {
            sender.told_lsn = sender.sent_lsn;
            wire::copy_data(&mut out, &wire::keepalive(sender.sent_lsn, false));
        }
        if now >= sender.heard_at + WAL_SENDER_TIMEOUT / 2 && !sender.asked {
            sender.asked = true;
            wire::copy_data(&mut out, &wire::keepalive(sender.sent_lsn, true));
        }
        out
    }

    /// Whether there is WAL that the walsender has not sent.
    pub(crate) fn has_more(&self) -> bool {
        self.walsender.as_ref().is_some_and(|sender| {
            sender.next < self.wal.len()
                || sender.owes_keepalive
                || (sender.told_lsn < sender.sent_lsn && sender.write_lsn < sender.sent_lsn)
        })
    }

    /// When the walsender asks, or gives up.
    pub(crate) fn next_time(&self) -> Option<Duration> {
        let sender = self.walsender.as_ref()?;
        let wait = if sender.asked {
            WAL_SENDER_TIMEOUT
        } else {
            WAL_SENDER_TIMEOUT / 2
        };
        Some(sender.heard_at + wait)
    }

    pub(crate) fn timed_out(&self, now: Duration) -> bool {
        self.walsender
            .as_ref()
            .is_some_and(|sender| now >= sender.heard_at + WAL_SENDER_TIMEOUT)
    }

    /// A status update; returns the LSN that it confirms, if any.
    pub(crate) fn status(&mut self, payload: &[u8], now: Duration) -> Option<u64> {
        assert_eq!((payload[0], payload.len()), (b'r', 34), "a status update");
        let lsn =
            |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
        let sender = self.walsender.as_mut()?;
        sender.heard_at = now;
        sender.asked = false;
        sender.owes_keepalive |= payload[33] == 1;
        sender.write_lsn = lsn(1);
        let flush_lsn = lsn(9);
        if flush_lsn == 0 {
            return None;
        }
        self.confirmed_lsn = Some(flush_lsn);
        Some(flush_lsn)
    }

    /// All rows of the outboxes: commit LSN, end LSN, ordinal, row.
    pub(crate) fn events(&self) -> impl Iterator<Item = (u64, u64, u64, &Row)> {
        self.wal.iter().flat_map(move |record| {
            let transaction = match record {
                Record::Transaction(transaction) => Some(transaction),
                Record::Other(_) => None,
            };
            transaction.into_iter().flat_map(move |transaction| {
                transaction
                    .rows
                    .iter()
                    .filter(|row| row.outbox && self.spans.count(row.kind, transaction.commit_lsn))
                    .zip(1..)
                    .map(move |(row, ordinal)| {
                        (transaction.commit_lsn, transaction.end_lsn, ordinal, row)
                    })
            })
        })
    }
}

fn send_transaction(
    out: &mut Vec<u8>,
    transaction: &Transaction,
    columns: &[usize],
    described: &mut BTreeMap<u32, &'static str>,
) {
    let mut message = |data: &[u8]| wire::copy_data(out, &wire::xlog_data(0, data));
    message(&wire::begin(transaction.commit_lsn, 7));
    for row in &transaction.rows {
        if let Some(content) = row.as_message() {
            message(&wire::logical_message("others", b"{}"));
            message(&wire::logical_message("outbox", content.as_bytes()));
            continue;
        }
        let (oid, name) = row.table;
        if described.insert(oid, name) != Some(name) {
            message(&wire::relation(&table(oid, name, row.kind, columns)));
        }
        let of_kind = columns_of(row.kind, columns);
        let mut values: Vec<Value> = of_kind.map(|at| row.values[at].clone()).collect();
        values.push(None);
        message(&wire::insert(oid, &values));
    }
    message(&wire::commit(transaction.commit_lsn, transaction.end_lsn));
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
