//! Replication slots, and the processes that send WAL to their readers.

use super::*;

/// A replication slot.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// None: dropped, or never made.
    pub(crate) confirmed_lsn: Option<u64>,
    /// Where it was made.
    begins_lsn: Option<u64>,
    saved_lsn: u64,
    pub(crate) walsender: Option<Walsender>,
    /// How many there were.
    pub(crate) walsenders: u64,
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

impl Slot {
    /// Makes it there.
    pub(crate) fn make(&mut self, at_lsn: u64) {
        self.set(at_lsn);
        self.begins_lsn = Some(at_lsn);
    }

    /// Where it was made, which is written down.
    pub(crate) fn begins_lsn(&self) -> Option<u64> {
        self.begins_lsn
    }

    /// Sets the slot as nothing but a person would.
    pub(crate) fn set(&mut self, confirmed_lsn: u64) {
        self.confirmed_lsn = Some(confirmed_lsn);
        self.saved_lsn = confirmed_lsn;
    }

    /// The slot's state reaches the disk.
    pub(super) fn checkpoint(&mut self) {
        self.saved_lsn = self.confirmed_lsn.unwrap_or(self.saved_lsn);
    }

    pub(super) fn crash(&mut self) {
        self.walsender = None;
        self.confirmed_lsn = self.confirmed_lsn.map(|_| self.saved_lsn);
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
}

impl Postgres {
    /// START_REPLICATION.
    pub(crate) fn start_replication(
        &mut self,
        part: Part,
        link: usize,
        requested: u64,
        now: Duration,
    ) {
        let slot = self.slots.get_mut(&part).expect("there are all");
        let confirmed = slot.confirmed_lsn.expect("the caller has seen the slot");
        assert!(slot.walsender.is_none(), "the slot is in use");
        let start_lsn = requested.max(confirmed);
        let next = self
            .wal
            .iter()
            .position(|record| record.end_lsn() > confirmed)
            .unwrap_or(self.wal.len());
        slot.walsenders += 1;
        slot.walsender = Some(Walsender {
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
    pub(crate) fn send(
        &mut self,
        part: Part,
        has_room: bool,
        now: Duration,
        random: &mut Random,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let slot = self.slots.get_mut(&part).expect("there are all");
        let Some(sender) = &mut slot.walsender else {
            return out;
        };
        while has_room && out.len() < 4_000 && sender.next < self.wal.len() {
            let record = &self.wal[sender.next];
            sender.next += 1;
            if let Record::Transaction(transaction) = record
                && transaction.commit_lsn >= sender.start_lsn
            {
                let carried = |row: &&Row| {
                    let publications = &self.publications;
                    publications.carries(part, row, transaction.commit_lsn)
                };
                let rows: Vec<&Row> = transaction.rows.iter().filter(carried).collect();
                let divides = self.divides;
                send_transaction(
                    &mut out,
                    transaction,
                    &rows,
                    divides,
                    &self.columns,
                    &mut sender.described,
                );
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
    pub(crate) fn has_more(&self, part: Part) -> bool {
        self.slot(part).walsender.as_ref().is_some_and(|sender| {
            sender.next < self.wal.len()
                || sender.owes_keepalive
                || (sender.told_lsn < sender.sent_lsn && sender.write_lsn < sender.sent_lsn)
        })
    }
}

fn send_transaction(
    out: &mut Vec<u8>,
    transaction: &Transaction,
    rows: &[&Row],
    divides: bool,
    columns: &[usize],
    described: &mut BTreeMap<u32, &'static str>,
) {
    // pgoutput passes over a transaction of which it has nothing to send.
    if rows.is_empty() && transaction.switch.is_none() {
        return;
    }
    let mut message = |data: &[u8]| wire::copy_data(out, &wire::xlog_data(0, data));
    message(&wire::begin(transaction.commit_lsn, 7));
    if let Some(switch) = transaction.switch {
        let content = switch.content(lanes::slot_of(None));
        message(&wire::logical_message(reshard::PREFIX, content.as_bytes()));
    }
    for row in rows {
        if let Some(content) = row.as_message().filter(|_| !divides) {
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
