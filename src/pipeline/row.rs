//! From a tuple to an outbox row: columns found by name, whatever else the table holds and in whatever order.
//!
//! In: Relation messages and tuples. Out: [`Row`], whose values are slices of the read buffer. A Relation replaces the one before
//! it, so ALTER TABLE while running is followed at the very row where it takes effect.

use super::fields::{Field, Fields};
use super::pgoutput::{Column, Relation, Tuple};
use super::reader::DecodeError;
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
    /// Names of its columns.
    pub columns: Fields<String>,
}

/// One row, its values as the server sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    values: Fields<Column<'a>>,
    /// The payload is of a type whose text need not be JSON.
    pub payload_unchecked: bool,
}

impl<'a> Row<'a> {
    /// A row from its values as the table has them now.
    pub fn new(values: Fields<Column<'a>>, payload_unchecked: bool) -> Self {
        Row {
            values,
            payload_unchecked,
        }
    }

    /// The value of one field.
    #[inline]
    pub fn get(&self, field: Field) -> Column<'a> {
        *self.values.get(field)
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

/// OIDs of the types whose text Postgres has checked to be JSON: json, jsonb.
pub(crate) const JSON_OIDS: [u32; 2] = [114, 3802];

/// OID of char(n), whose values are padded with spaces that do not count (manual, 8.3).
const BPCHAR_OID: u32 = 1042;

#[derive(Debug)]
enum Mapping {
    Outbox {
        /// What each column is; `None` for one that no event has.
        fields: Vec<Option<Field>>,
        payload_unchecked: bool,
        /// Those of type char(n).
        padded: Vec<Field>,
    },
    /// Another table of the publication: its name, until its first row has come.
    Foreign { unseen: Option<String> },
}

/// The relations that the server has described on this connection.
#[derive(Debug)]
pub struct Relations {
    source: Source,
    mappings: HashMap<u32, Mapping>,
}

/// What a Relation message turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Described {
    /// The outbox table.
    Outbox,
    /// Another table, whose rows are passed over.
    Foreign,
}

impl Relations {
    /// Knows nothing yet: each connection describes its relations anew.
    pub fn new(source: Source) -> Self {
        Relations {
            source,
            mappings: HashMap::new(),
        }
    }

    /// Takes a Relation message.
    ///
    /// # Errors
    /// [`RowError::MissingColumn`] when it is the outbox table without a needed column.
    pub fn describe(&mut self, relation: &Relation) -> Result<Described, RowError> {
        let source = &self.source;
        let ours = (relation.schema == source.schema && relation.name == source.table)
            || (source.oid != 0 && relation.oid == source.oid);
        if !ours {
            if !matches!(
                self.mappings.get(&relation.oid),
                Some(Mapping::Foreign { .. })
            ) {
                let unseen = Some(format!("{}.{}", relation.schema, relation.name));
                self.mappings
                    .insert(relation.oid, Mapping::Foreign { unseen });
            }
            return Ok(Described::Foreign);
        }
        let mut fields = vec![None; relation.columns.len()];
        let mut payload_unchecked = false;
        let mut padded = Vec::new();
        for (field, name) in source.columns.as_ref() {
            let index = relation
                .columns
                .iter()
                .position(|column| column.name == *name)
                .ok_or_else(|| RowError::MissingColumn {
                    table: format!("{}.{}", relation.schema, relation.name),
                    column: name.clone(),
                })?;
            fields[index] = Some(field);
            if relation.columns[index].type_oid == BPCHAR_OID {
                padded.push(field);
            }
            if field == Field::Payload {
                payload_unchecked = !JSON_OIDS.contains(&relation.columns[index].type_oid);
            }
        }
        self.mappings.insert(
            relation.oid,
            Mapping::Outbox {
                fields,
                payload_unchecked,
                padded,
            },
        );
        Ok(Described::Outbox)
    }

    /// The name of a table that is not the outbox, when asked behind its first row in this epoch. A Relation message alone
    /// says nothing: partitions of the outbox have theirs too, and their rows come under the root's.
    pub fn first_row_of(&mut self, oid: u32) -> Option<String> {
        match self.mappings.get_mut(&oid) {
            Some(Mapping::Foreign { unseen }) => unseen.take(),
            _ => None,
        }
    }

    /// Reads a tuple; `None` for a table that is not the outbox.
    ///
    /// # Errors
    /// See [`RowError`].
    #[inline]
    pub fn read<'a>(&self, oid: u32, tuple: &Tuple<'a>) -> Result<Option<Row<'a>>, RowError> {
        let (fields, payload_unchecked, padded) = match self.mappings.get(&oid) {
            None => return Err(RowError::UnknownRelation(oid)),
            Some(Mapping::Foreign { .. }) => return Ok(None),
            Some(Mapping::Outbox {
                fields,
                payload_unchecked,
                padded,
            }) => (fields, *payload_unchecked, padded),
        };
        if fields.len() != tuple.len() {
            return Err(RowError::Width {
                oid,
                expected: fields.len(),
                found: tuple.len(),
            });
        }
        let mut values = Fields::default();
        tuple.for_each(|index, column| {
            if let Some(field) = fields[index] {
                *values.get_mut(field) = column;
            }
        })?;
        for field in padded {
            if let Column::Text(text) = values.get_mut(*field) {
                let end = text.iter().rposition(|byte| *byte != b' ');
                *text = &text[..end.map_or(0, |last| last + 1)];
            }
        }
        Ok(Some(Row {
            values,
            payload_unchecked,
        }))
    }
}
