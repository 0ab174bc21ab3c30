//! The WAL's side of an epoch: from payloads to rows that have to leave.
//!
//! In: CopyData payloads. Out: rows behind the stream's end, in order, each with its position; marks for progress.
//! Guarantee: before the first row behind the stream's end leaves, the WAL was seen to continue the stream.

use super::{Engine, Note, Stop, Transaction};
use crate::pipeline::carrier::Carrier;
use crate::pipeline::commit_time::CommitTime;
use crate::pipeline::copy_both::{self, ReplicationMessage};
use crate::pipeline::dead_letter::Rejected;
use crate::pipeline::envelope::{Reject, shown};
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::logical_message::MessageRow;
use crate::pipeline::opening::SlotPlace;
use crate::pipeline::pgoutput::{self, Column, LogicalMessage, Message, Relation, Tuple};
use crate::pipeline::position::{self, Position};
use crate::pipeline::progress::Commit;
use crate::pipeline::reader::DecodeError;
use crate::pipeline::row::Row;
use bytes::BytesMut;
use postgres_types::PgLsn;
use std::time::Duration;

impl Transaction {
    /// The place of its next row, and its number.
    #[inline]
    fn next(&mut self) -> (Position, u32) {
        self.ordinal += 1;
        self.events = true;
        let position = Position {
            commit_lsn: self.commit_lsn,
            ordinal: self.ordinal,
        };
        (position, self.xid)
    }
}

impl Engine {
    /// Takes the payload of one CopyData frame and appends what it leads to.
    ///
    /// # Errors
    /// See [`Stop`].
    #[inline]
    pub fn handle_payload(
        &mut self,
        payload: &[u8],
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Stop> {
        match copy_both::decode(payload)? {
            ReplicationMessage::XLogData { data, .. } => match pgoutput::decode(data)? {
                Message::Insert { relation_oid, row } => self.insert(relation_oid, &row, out, now),
                Message::Begin {
                    commit_lsn,
                    committed_at_us,
                    xid,
                } => self.begin(commit_lsn, committed_at_us, xid),
                Message::Commit {
                    commit_lsn,
                    end_lsn,
                } => self.commit(commit_lsn, end_lsn, now),
                Message::Relation(relation) => self.describe(relation),
                Message::Logical(message) => self.logical(&message, out, now),
                Message::Other(b'O') => {
                    self.originated();
                    Ok(())
                }
                Message::Other(_) => Ok(()),
            },
            ReplicationMessage::Keepalive {
                wal_end,
                reply_requested,
            } => self.keepalive(wal_end, reply_requested, now),
        }
    }

    fn begin(&mut self, commit_lsn: PgLsn, committed_at_us: i64, xid: u32) -> Result<(), Stop> {
        if self.transaction.is_some() {
            return Err(misplaced("Begin", "inside a transaction"));
        }
        if let Some(overlap) = &self.overlap
            && commit_lsn > overlap.position.commit_lsn
        {
            return Err(self.overlap_miss("goes on with the transaction that commits behind it"));
        }
        self.relations.begin(commit_lsn);
        self.position_prefix.truncate(self.slot_prefix_bytes);
        position::push_lsn(&mut self.position_prefix, commit_lsn);
        self.position_prefix.push(b':');
        self.transaction = Some(Transaction {
            commit_lsn,
            committed_at_us,
            xid,
            ordinal: 0,
            events: false,
            has_origin: false,
            first_rows: self.first_rows(),
        });
        Ok(())
    }

    /// The transaction has a replication origin, which sets its commit time.
    fn originated(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.has_origin = true;
        }
    }

    /// Rows that have left for the first time.
    fn first_rows(&self) -> u64 {
        self.counters.published - self.counters.replayed
    }

    /// The oldest transaction whose events are not all acknowledged, where it is known when it was committed.
    pub(crate) fn oldest_commit(&self, now: Duration) -> Option<Commit> {
        let open = self.transaction.as_ref();
        let open = open.filter(|open| self.first_rows() > open.first_rows);
        self.progress.oldest_commit().or_else(|| {
            let (at_us, has_origin) = (open?.committed_at_us, open?.has_origin);
            let times = self.progress.known_commit_times();
            let at = times.believed(at_us, has_origin, now);
            Commit::of(open?.commit_lsn, at)
        })
    }

    /// The last transaction whose events are all acknowledged, as known.
    pub(crate) fn last_commit(&self) -> Option<Commit> {
        self.progress.last_commit()
    }

    fn describe(&mut self, relation: Relation) -> Result<(), Stop> {
        let Some(now) = self.relations.describe(relation) else {
            return Ok(());
        };
        Err(Fault::Successor {
            table: format!("{}.{}", now.schema, now.table),
            from: now.from,
        }
        .into())
    }

    fn commit(&mut self, commit_lsn: PgLsn, end_lsn: PgLsn, now: Duration) -> Result<(), Stop> {
        let Some(transaction) = self.transaction.take() else {
            return Err(misplaced("Commit", "outside a transaction"));
        };
        if transaction.commit_lsn != commit_lsn || end_lsn < commit_lsn {
            return Err(misplaced("Commit", "with other LSNs than its Begin"));
        }
        if let Some(overlap) = &self.overlap
            && commit_lsn >= overlap.position.commit_lsn
        {
            return Err(self.overlap_miss("has a transaction there that ends before it"));
        }
        self.counters.transactions += 1;
        let is_first = self.first_rows() > transaction.first_rows;
        let at = is_first.then(|| {
            let (at_us, has_origin) = (transaction.committed_at_us, transaction.has_origin);
            let times = self.progress.commit_times();
            times.committed(at_us, has_origin, now)
        });
        self.passed(end_lsn, transaction.events.then_some(at), now);
        Ok(())
    }

    fn keepalive(
        &mut self,
        wal_end: PgLsn,
        reply_requested: bool,
        now: Duration,
    ) -> Result<(), Stop> {
        self.status_wanted |= reply_requested;
        if self.transaction.is_some() {
            self.progress.received(wal_end);
            return Ok(());
        }
        if let Some(overlap) = &self.overlap
            && wal_end > overlap.position.commit_lsn
        {
            return Err(self.overlap_miss("has no event there"));
        }
        self.passed(wal_end, None, now);
        Ok(())
    }

    /// All WAL below `lsn` has come: the one place that lets it be confirmed, once its events are acknowledged and old
    /// enough. In front of the stream's end after a start nothing may be: published events that the broker may not have
    /// synced yet lie there without being read again, and whether this WAL continues the stream is not proven. It is
    /// confirmed together with the row at the end, which is held back.
    fn passed(&mut self, lsn: PgLsn, events: Option<Option<CommitTime>>, now: Duration) {
        self.passed_lsn = self.passed_lsn.max(lsn);
        match (&self.overlap, events) {
            (Some(_), _) => self.progress.received(lsn),
            (None, Some(at)) => self.progress.committed(lsn, at, now),
            (None, None) => self.progress.idle(lsn, now),
        }
    }

    /// Where the WAL is read on, and under which name of the publication, once it is missing under the present one; none where
    /// there is no further name, or in the middle of a transaction.
    pub fn next_publication(&mut self) -> Option<(&str, PgLsn)> {
        let is_between =
            (self.transaction.as_ref()).is_none_or(|transaction| transaction.ordinal == 0);
        let next = self.settings.epoch.publications.get(self.reads_as + 1);
        let next = next.filter(|_| is_between)?;
        self.reads_as += 1;
        self.transaction = None;
        Some((&next.name, self.passed_lsn))
    }

    /// Whether the slot is where this epoch took it, so that the WAL can be read on; see [`Self::next_publication`].
    ///
    /// # Errors
    /// A [`Fault`] where a whole start has to look.
    pub fn check_slot(&self, place: &SlotPlace, carrier: Option<&Carrier>) -> Result<(), Fault> {
        let settings = &self.settings;
        if place.lane != settings.lane || place.history != settings.history {
            return Err(Fault::Postgres("another server answers".into()));
        }
        if place.confirmed_flush_lsn > self.passed_lsn {
            return Err(Fault::Postgres("somebody else has read the slot".into()));
        }
        match settings.epoch.carrier.as_ref().zip(carrier) {
            Some((before, now)) if before.change(now).is_none() => Ok(()),
            _ => Err(Fault::Carrier),
        }
    }

    fn overlap_miss(&self, found: &str) -> Stop {
        let overlap = self.overlap.as_ref().expect("callers have seen it");
        Stop::Halt(Halt::OverlapMiss {
            position: overlap.position,
            expected: overlap
                .event_id
                .clone()
                .unwrap_or_else(|| "without an id".into()),
            found: found.into(),
            unnamed: self.unnamed_tables(),
        })
    }

    #[inline]
    fn insert(
        &mut self,
        relation_oid: u32,
        tuple: &Tuple<'_>,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Stop> {
        let Some(transaction) = &mut self.transaction else {
            return Err(misplaced("Insert", "outside a transaction"));
        };
        let Some(row) = self.relations.read(relation_oid, tuple)? else {
            self.counters.other_rows += 1;
            if let Some(table) = self.relations.first_row_of(relation_oid) {
                self.notes.push_back(Note::OtherTable(table));
            }
            return Ok(());
        };
        let mut converted = Vec::new();
        let mut row = row.in_utf8(self.relations.encoding(), &mut converted);
        // Another table's rows do not count: whether the publication has that table may change between two decodings of
        // one transaction.
        row.committed_at_us = transaction.committed_at_us;
        let (position, xid) = transaction.next();
        let missing = self.relations.missing_column(relation_oid);
        // What the table lacked before it was looked at, and had then, no wait brings to this row.
        let missing = missing.filter(|_| position.commit_lsn > self.settings.epoch.catalog_lsn);
        let missing = missing.map(str::to_owned);
        if let Some(reject) = self.take_row(&row, position, missing, out, now)? {
            let columns = self.relations.columns(relation_oid, tuple)?;
            let rejected = Rejected {
                row: &row,
                columns: &columns,
                kinds: None,
                position,
                reject: &reject,
            };
            self.reject(&rejected, xid, out, now);
        }
        Ok(())
    }

    /// A message that was written without a table: a row as any other, if it is one of ours.
    fn logical(
        &mut self,
        message: &LogicalMessage<'_>,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<(), Stop> {
        let prefix = self.relations.messages().map(str::as_bytes);
        if prefix != Some(message.prefix) {
            if let (true, Column::Text(content)) = (message.is_transactional, message.content) {
                self.told(message.prefix, content);
            }
            return Ok(());
        }
        if !message.is_transactional {
            if !std::mem::replace(&mut self.not_transactional_told, true) {
                self.notes.push_back(Note::NotTransactional);
            }
            return Ok(());
        }
        let Some(transaction) = &mut self.transaction else {
            return Err(misplaced("Message", "outside a transaction"));
        };
        let committed_at_us = transaction.committed_at_us;
        let (position, xid) = transaction.next();
        let mut converted = Vec::new();
        let content = self
            .relations
            .encoding()
            .column(message.content, &mut converted);
        let mapping = self.relations.mapping();
        let (read, refused) = match MessageRow::read_of(content, &self.relations) {
            Ok(read) => (read, None),
            Err(Reject::TooLarge { bytes, .. }) => {
                let limit = self.settings.epoch.limits.message_limit;
                (
                    MessageRow::default(),
                    Some(Reject::TooLarge { bytes, limit }),
                )
            }
            Err(reject) => (MessageRow::default(), Some(reject)),
        };
        let row = read.row(mapping, committed_at_us);
        let taken = self.take_row(&row, position, None, out, now)?;
        if let Some(reject) = taken {
            let (columns, reject) = match refused {
                Some(refused) => (vec![("content".to_owned(), content)], refused),
                None => (read.columns(), reject),
            };
            let rejected = Rejected {
                row: &row,
                columns: &columns,
                kinds: Some(read.kinds()),
                position,
                reject: &reject,
            };
            self.reject(&rejected, xid, out, now);
        }
        Ok(())
    }

    /// Takes the next row of the lane; hands back why it can be no event.
    // Else each row pays for what it hands back.
    #[inline(always)]
    fn take_row(
        &mut self,
        row: &Row<'_>,
        position: Position,
        missing: Option<String>,
        out: &mut BytesMut,
        now: Duration,
    ) -> Result<Option<Reject>, Stop> {
        if self
            .published_through
            .is_some_and(|through| position <= through)
        {
            self.check_overlap(row, position)?;
            if self
                .replay_from
                .is_some_and(|from| position.commit_lsn >= from)
            {
                // A replay brings again what was published; its dead letters are in the stream already.
                let _published = self.emit(row, position, false, out, now);
                self.replay_reached = Some((position, self.progress.published_rows()));
                return Ok(None);
            }
            self.counters.skipped += 1;
            return Ok(None);
        }
        if self.overlap.is_some() {
            return Err(self.overlap_miss("goes on behind it"));
        }
        if let Some(column) = missing {
            return Err(Fault::Column { position, column }.into());
        }
        Ok(self.emit(row, position, true, out, now).err())
    }

    fn check_overlap(&mut self, row: &Row<'_>, position: Position) -> Result<(), Stop> {
        let Some(overlap) = self
            .overlap
            .as_ref()
            .filter(|overlap| overlap.position == position)
        else {
            return Ok(());
        };
        let table = self.settings.epoch.source.outboxes[row.outbox()].table();
        if overlap
            .table
            .as_ref()
            .is_some_and(|expected| expected != table)
        {
            let found = match table {
                "" => "a row of the lane's own table".to_owned(),
                table => format!("a row of table {table}"),
            };
            return Err(self.overlap_miss(&format!("has {found}")));
        }
        let id = row.id();
        let id = id.as_deref();
        // A dead letter tells a long id only as far as it is shown.
        let is_same = overlap.event_id.as_ref().is_none_or(|expected| {
            id.is_some_and(|id| expected.as_bytes() == id || *expected == shown(id))
        });
        if !is_same {
            let found = id.map_or_else(
                || "a row without id".into(),
                |id| format!("event {}", shown(id)),
            );
            return Err(self.overlap_miss(&format!("has {found}")));
        }
        self.overlap = None;
        self.progress.adopt(std::mem::take(&mut self.settings.held));
        self.notes.push_back(Note::Continued(position));
        Ok(())
    }
}

fn misplaced(message: &'static str, place: &'static str) -> Stop {
    Stop::Fault(Fault::Protocol(DecodeError::Misplaced { message, place }))
}
