//! The messages of the output plugin `pgoutput`, protocol version 1.
//!
//! In: the data of one XLogData. Out: one [`Message`] that borrows from it. Guarantees: no input panics, no
//! allocation for a row. Manual: "Logical Replication Message Formats".

use super::reader::{DecodeError, Reader};
use postgres_types::PgLsn;

/// One message of pgoutput. What walrelay does not use is recognised and left closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// `B`: a committed transaction follows, whole.
    Begin {
        /// Where its commit record begins.
        commit_lsn: PgLsn,
        /// When it was committed, in µs since 2000-01-01 UTC.
        committed_at_us: i64,
        /// Its transaction id.
        xid: u32,
    },
    /// `C`: the transaction is complete.
    Commit {
        /// Where its commit record begins.
        commit_lsn: PgLsn,
        /// Where its commit record ends: what may be confirmed.
        end_lsn: PgLsn,
    },
    /// `R`: what the columns of the rows that follow are.
    Relation(Relation),
    /// `I`: a new row.
    Insert {
        /// OID of the relation that a Relation message has described.
        relation_oid: u32,
        /// Its columns.
        row: Tuple<'a>,
    },
    /// `M`: a message that was written into the WAL without a table.
    Logical(LogicalMessage<'a>),
    /// `U`, `D`, `T`, `O`, `Y`: update, delete, truncate, origin, type.
    Other(u8),
}

/// What `pg_logical_emit_message` was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// It belongs to the transaction that it stands in.
    pub is_transactional: bool,
    /// Whose it is.
    pub prefix: &'a [u8],
    /// What it says; its length alone where it was longer than the relay may gather (see `oversized`).
    pub content: Column<'a>,
}

/// What a Relation message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// OID of the table.
    pub oid: u32,
    /// Its schema, in the session's encoding; `pg_catalog` is sent as an empty string.
    pub schema: Vec<u8>,
    /// Its name, in the session's encoding.
    pub name: Vec<u8>,
    /// Its columns, in the order of the rows.
    pub columns: Vec<RelationColumn>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name, in the session's encoding.
    pub name: Vec<u8>,
    /// OID of its type.
    pub type_oid: u32,
}

/// The columns of a row, read one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: usize,
    bytes: &'a [u8],
}

/// One column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Column<'a> {
    /// SQL NULL.
    #[default]
    Null,
    /// An unchanged TOASTed value that was not sent. Never in an insert.
    Unchanged,
    /// The value in the type's text format.
    Text(&'a [u8]),
    /// As that, in bytes that are no text (see `encoding`).
    NoText(&'a [u8]),
    /// The table had no such column when the row was inserted; not part of Postgres' protocol.
    Absent,
    /// The value in the type's binary format, which walrelay does not ask for.
    Binary(&'a [u8]),
    /// The value was longer than the relay may gather, and was skipped while it was read (see `oversized`).
    Skipped {
        /// Its length in bytes.
        len: u32,
    },
}

/// Tag of a column that `oversized` has left out; not part of Postgres' protocol.
pub(super) const SKIPPED_COLUMN: u8 = b'!';

/// Reads the data of one XLogData.
///
/// # Errors
/// A truncated or unknown message, with field and offset.
#[inline]
pub fn decode(data: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader::new("pgoutput", data);
    let tag = reader.u8("tag")?;
    match tag {
        b'I' => insert(reader.named("Insert")),
        b'B' => begin(reader.named("Begin")),
        b'C' => commit(reader.named("Commit")),
        b'R' => relation(reader.named("Relation")),
        b'M' => logical(reader.named("Message")),
        b'U' | b'D' | b'T' | b'O' | b'Y' => Ok(Message::Other(tag)),
        _ => Err(reader.unknown("tag", 0, tag.into())),
    }
}

fn begin(mut reader: Reader<'_>) -> Result<Message<'_>, DecodeError> {
    let message = Message::Begin {
        commit_lsn: reader.lsn("final_lsn")?,
        committed_at_us: reader.i64("commit_time")?,
        xid: reader.u32("xid")?,
    };
    reader.finish()?;
    Ok(message)
}

fn commit(mut reader: Reader<'_>) -> Result<Message<'_>, DecodeError> {
    reader.u8("flags")?;
    let message = Message::Commit {
        commit_lsn: reader.lsn("commit_lsn")?,
        end_lsn: reader.lsn("end_lsn")?,
    };
    reader.i64("commit_time")?;
    reader.finish()?;
    Ok(message)
}

fn relation(mut reader: Reader<'_>) -> Result<Message<'_>, DecodeError> {
    let oid = reader.u32("oid")?;
    let schema = reader.string("schema")?.to_vec();
    let name = reader.string("name")?.to_vec();
    reader.u8("replica_identity")?;
    let count = column_count(&mut reader)?;
    let mut columns = Vec::with_capacity(count.min(1_600));
    for _ in 0..count {
        reader.u8("column flags")?;
        let name = reader.string("column name")?.to_vec();
        let type_oid = reader.u32("column type")?;
        reader.i32("column typmod")?;
        columns.push(RelationColumn { name, type_oid });
    }
    reader.finish()?;
    Ok(Message::Relation(Relation {
        oid,
        schema,
        name,
        columns,
    }))
}

fn logical(mut reader: Reader<'_>) -> Result<Message<'_>, DecodeError> {
    let is_transactional = reader.u8("flags")? & 1 == 1;
    reader.lsn("lsn")?;
    let prefix = reader.string("prefix")?;
    let offset = reader.offset();
    let len = reader.i32("content length")?;
    let len = reader.length("content length", offset, len.into())?;
    let content = reader.rest();
    let content = match content.len() < len {
        // A frame comes whole: only `oversized` shortens it.
        true => Column::Skipped { len: len as u32 },
        false => Column::Text(content),
    };
    Ok(Message::Logical(LogicalMessage {
        is_transactional,
        prefix,
        content,
    }))
}

#[inline]
fn insert(mut reader: Reader<'_>) -> Result<Message<'_>, DecodeError> {
    let relation_oid = reader.u32("relation oid")?;
    let offset = reader.offset();
    match reader.u8("tuple kind")? {
        b'N' => {}
        kind => return Err(reader.unknown("tuple kind", offset, kind.into())),
    }
    let count = column_count(&mut reader)?;
    Ok(Message::Insert {
        relation_oid,
        row: Tuple {
            count,
            bytes: reader.rest(),
        },
    })
}

#[inline]
fn column_count(reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
    let offset = reader.offset();
    let count = reader.i16("column count")?;
    reader.length("column count", offset, count.into())
}

impl<'a> Tuple<'a> {
    /// How many columns the row has.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the row has no column.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Hands each column to `each`, with its index.
    ///
    /// # Errors
    /// A truncated or unknown column, bytes behind the last one; offsets count from the first column.
    #[inline]
    pub fn for_each(&self, mut each: impl FnMut(usize, Column<'a>)) -> Result<(), DecodeError> {
        let mut reader = Reader::new("Insert", self.bytes);
        for index in 0..self.count {
            each(index, column(&mut reader)?);
        }
        reader.finish()
    }
}

#[inline]
fn column<'a>(reader: &mut Reader<'a>) -> Result<Column<'a>, DecodeError> {
    let offset = reader.offset();
    let kind = reader.u8("column kind")?;
    match kind {
        b't' | b'b' => {
            let offset = reader.offset();
            let len = reader.i32("column length")?;
            let len = reader.length("column length", offset, len.into())?;
            let value = reader.take("column value", len)?;
            Ok(if kind == b't' {
                Column::Text(value)
            } else {
                Column::Binary(value)
            })
        }
        b'n' => Ok(Column::Null),
        b'u' => Ok(Column::Unchanged),
        SKIPPED_COLUMN => Ok(Column::Skipped {
            len: reader.u32("column length")?,
        }),
        _ => Err(reader.unknown("column kind", offset, kind.into())),
    }
}
