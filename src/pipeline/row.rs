//! From a tuple to an outbox row: columns found by name, whatever else the table holds and in whatever order.
//!
//! In: Relation messages and tuples. Out: [`Row`], whose values are slices of the read buffer. A Relation replaces the one before
//! it, so ALTER TABLE while running is followed at the very row where it takes effect.

use super::bytes::id_of_bytes;
use super::encoding::{Converted, Encoding};
use super::fields::{Field, Fields};
use super::kind::Kind;
use super::mapping::Mapping;
use super::pgoutput::{Column, Relation, Tuple};
use super::reader::DecodeError;
use std::borrow::Cow;
use std::collections::HashMap;

/// The table to relay: how it and its columns are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Schema of the table.
    pub schema: String,
    /// Name of the table.
    pub table: String,
    /// OID of the table as the catalog has it now; rows from before a renaming are known by it. 0 for none.
    pub oid: u32,
    /// What its columns' domains stand on: OIDs of domain and type. The WAL names a domain only by its OID.
    pub domains: Vec<(u32, u32)>,
    /// How its text comes.
    pub encoding: Encoding,
    /// What of its rows becomes what of a message.
    pub mapping: Mapping,
}

impl Source {
    fn kind_of(&self, type_oid: u32) -> Kind {
        let domain = self.domains.iter().find(|(oid, _)| *oid == type_oid);
        Kind::of_type(domain.map_or(type_oid, |(_, base)| *base))
    }
}

/// One row, its values as the server sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    values: Fields<Column<'a>>,
    kinds: Fields<Kind>,
    /// Those of [`Mapping::extras`].
    extras: Vec<(Kind, Column<'a>)>,
    /// When its transaction was committed, in µs since 2000-01-01 UTC.
    pub committed_at_us: i64,
}

impl<'a> Row<'a> {
    /// A row from its values as the table has them now, and their types' kinds.
    pub fn new(
        values: Fields<Column<'a>>,
        kinds: Fields<Kind>,
        extras: Vec<(Kind, Column<'a>)>,
        committed_at_us: i64,
    ) -> Self {
        Row {
            values,
            kinds,
            extras,
            committed_at_us,
        }
    }

    /// The value of one field; null where no column has it.
    #[inline]
    pub fn get(&self, field: Field) -> Column<'a> {
        *self.values.get(field)
    }

    /// The row with all its text in UTF-8, of which `buffer` keeps what had to be written anew. What is no text becomes
    /// [`Column::NoText`].
    #[inline]
    pub fn in_utf8(self, encoding: &Encoding, buffer: &'a mut Vec<u8>) -> Self {
        match encoding {
            Encoding::Utf8 => self,
            _ => self.converted(encoding, buffer),
        }
    }

    fn converted(mut self, encoding: &Encoding, buffer: &'a mut Vec<u8>) -> Self {
        let converted: Vec<Converted> = self
            .columns_mut()
            .map(|column| match column {
                Column::Text(text) => encoding.utf8(text, buffer),
                _ => Converted::Same,
            })
            .collect();
        let buffer: &'a [u8] = buffer;
        for (column, converted) in self.columns_mut().zip(converted) {
            match (converted, *column) {
                (Converted::At(range), _) => *column = Column::Text(&buffer[range]),
                (Converted::Not, Column::Text(bytes)) => *column = Column::NoText(bytes),
                _ => {}
            }
        }
        self
    }

    /// Every value, to be changed.
    fn columns_mut(&mut self) -> impl Iterator<Item = &mut Column<'a>> {
        let Fields {
            id,
            aggregate_id,
            event_type,
            event_version,
            occurred_at,
            payload,
        } = &mut self.values;
        let own = [
            id,
            aggregate_id,
            event_type,
            event_version,
            occurred_at,
            payload,
        ];
        own.into_iter()
            .chain(self.extras.iter_mut().map(|(_, column)| column))
    }

    /// The event's id as text: 16 bytes as a UUID; none where it has none.
    #[inline]
    pub fn id(&self) -> Option<Cow<'a, [u8]>> {
        match (self.values.id, self.kinds.id) {
            (Column::Text(id), Kind::Bytes) => Some(Cow::Owned(id_of_bytes(id))),
            (Column::Text(id), _) => Some(Cow::Borrowed(id)),
            _ => None,
        }
    }

    /// What the text of one field is.
    #[inline]
    pub fn kind(&self, field: Field) -> Kind {
        *self.kinds.get(field)
    }

    /// The columns beyond the event's own, as [`Mapping::extras`] names them.
    #[inline]
    pub fn extras(&self) -> &[(Kind, Column<'a>)] {
        &self.extras
    }
}

/// A relation or row that cannot be read as an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The bytes are not what the protocol says.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A row of a relation that no Relation message has described.
    #[error("a row of relation {0}, which no Relation message has described")]
    UnknownRelation(u32),
    /// The table no longer has a column that the event needs.
    #[error("table {table} has no column {column:?} at this point of the WAL")]
    MissingColumn {
        /// The table, with its schema.
        table: String,
        /// The column.
        column: String,
    },
    /// A row with more or fewer columns than its relation.
    #[error("a row of relation {oid} has {found} columns, its Relation message {expected}")]
    Width {
        /// OID of the relation.
        oid: u32,
        /// Columns by the Relation message.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
}

#[derive(Debug)]
enum Described {
    Outbox(Columns),
    /// Another table of the publication: its name, until its first row has come.
    Foreign {
        unseen: Option<String>,
    },
}

/// Where a relation's rows have what.
#[derive(Debug)]
struct Columns {
    /// What each column is; `None` for one that no field has for its own.
    fields: Vec<Option<Field>>,
    kinds: Fields<Kind>,
    /// Fields that share the column of another one.
    shared: Vec<(Field, Field)>,
    /// The columns of [`Mapping::extras`], by their index.
    extras: Vec<(Kind, usize)>,
    /// Fields of type char(n).
    padded: Vec<Field>,
}

/// The relations that the server has described on this connection.
#[derive(Debug)]
pub struct Relations {
    source: Source,
    described: HashMap<u32, Described>,
}

impl Relations {
    /// Knows nothing yet: each connection describes its relations anew.
    pub fn new(source: Source) -> Self {
        Relations {
            source,
            described: HashMap::new(),
        }
    }

    /// Takes a Relation message.
    ///
    /// # Errors
    /// [`RowError::MissingColumn`] when it is the outbox table without a needed column.
    pub fn describe(&mut self, relation: &Relation) -> Result<(), RowError> {
        let source = &self.source;
        let schema = source.encoding.name(&relation.schema);
        let table = source.encoding.name(&relation.name);
        let ours = (schema == source.schema && table == source.table)
            || (source.oid != 0 && relation.oid == source.oid);
        if ours {
            let columns = Columns::find(source, relation)?;
            self.described
                .insert(relation.oid, Described::Outbox(columns));
        } else if !matches!(
            self.described.get(&relation.oid),
            Some(Described::Foreign { .. })
        ) {
            let unseen = Some(format!("{schema}.{table}"));
            self.described
                .insert(relation.oid, Described::Foreign { unseen });
        }
        Ok(())
    }

    /// The name of a table that is not the outbox, when asked behind its first row in this epoch. A Relation message alone
    /// says nothing: partitions of the outbox have theirs too, and their rows come under the root's.
    pub fn first_row_of(&mut self, oid: u32) -> Option<String> {
        match self.described.get_mut(&oid) {
            Some(Described::Foreign { unseen }) => unseen.take(),
            _ => None,
        }
    }

    /// How the table's text comes.
    #[inline]
    pub fn encoding(&self) -> &Encoding {
        &self.source.encoding
    }

    /// Reads a tuple, its text as it comes; `None` for a table that is not the outbox.
    ///
    /// # Errors
    /// See [`RowError`].
    #[inline]
    pub fn read<'a>(&self, oid: u32, tuple: &Tuple<'a>) -> Result<Option<Row<'a>>, RowError> {
        let columns = match self.described.get(&oid) {
            None => return Err(RowError::UnknownRelation(oid)),
            Some(Described::Foreign { .. }) => return Ok(None),
            Some(Described::Outbox(columns)) => columns,
        };
        if columns.fields.len() != tuple.len() {
            return Err(RowError::Width {
                oid,
                expected: columns.fields.len(),
                found: tuple.len(),
            });
        }
        let mut values = Fields::default();
        tuple.for_each(|index, column| {
            if let Some(field) = columns.fields[index] {
                *values.get_mut(field) = column;
            }
        })?;
        for (field, of) in &columns.shared {
            *values.get_mut(*field) = *values.get(*of);
        }
        for field in &columns.padded {
            let value = values.get_mut(*field);
            *value = unpadded(*value);
        }
        let extras = match columns.extras.is_empty() {
            true => Vec::new(),
            false => columns.extras_of(tuple)?,
        };
        Ok(Some(Row::new(values, columns.kinds, extras, 0)))
    }
}

impl Columns {
    fn find(source: &Source, relation: &Relation) -> Result<Self, RowError> {
        let name_of = |name: &[u8]| source.encoding.name(name);
        let index_of = |name: &str| {
            relation
                .columns
                .iter()
                .position(|column| name_of(&column.name) == name)
                .ok_or_else(|| RowError::MissingColumn {
                    table: format!("{}.{}", name_of(&relation.schema), name_of(&relation.name)),
                    column: name.to_owned(),
                })
        };
        let kind_of = |index: usize| source.kind_of(relation.columns[index].type_oid);
        let mut found = Columns {
            fields: vec![None; relation.columns.len()],
            kinds: Fields::default(),
            shared: Vec::new(),
            extras: Vec::new(),
            padded: Vec::new(),
        };
        for (field, value) in source.mapping.columns.as_ref() {
            let Some(name) = value.column() else {
                continue;
            };
            let index = index_of(name)?;
            *found.kinds.get_mut(field) = kind_of(index);
            match found.fields[index] {
                Some(other) => found.shared.push((field, other)),
                None => found.fields[index] = Some(field),
            }
            if kind_of(index) == Kind::Padded {
                found.padded.push(field);
            }
        }
        for name in source.mapping.extras() {
            let index = index_of(name)?;
            found.extras.push((kind_of(index), index));
        }
        Ok(found)
    }

    fn extras_of<'a>(&self, tuple: &Tuple<'a>) -> Result<Vec<(Kind, Column<'a>)>, DecodeError> {
        let mut values: Vec<_> = self
            .extras
            .iter()
            .map(|(kind, _)| (*kind, Column::Null))
            .collect();
        tuple.for_each(|index, column| {
            for ((kind, value), (_, wanted)) in values.iter_mut().zip(&self.extras) {
                if *wanted == index {
                    *value = match kind {
                        Kind::Padded => unpadded(column),
                        _ => column,
                    };
                }
            }
        })?;
        Ok(values)
    }
}

/// Without the padding of char(n), which does not count.
fn unpadded(column: Column<'_>) -> Column<'_> {
    match column {
        Column::Text(text) => {
            let last = text.iter().rposition(|byte| *byte != b' ');
            Column::Text(&text[..last.map_or(0, |last| last + 1)])
        }
        column => column,
    }
}
