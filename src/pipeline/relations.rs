//! From a tuple to an outbox row: columns found by name, whatever else the table holds and in whatever order.
//!
//! In: Relation messages and tuples. Out: [`Row`], whose values are slices of the read buffer. A Relation replaces the one before
//! it, so ALTER TABLE while running is followed at the very row where it takes effect.

use super::encoding::Encoding;
use super::fields::{Field, Fields};
use super::kind::Kind;
use super::mapping::Mapping;
use super::pgoutput::{Column, Relation, RelationColumn, Tuple};
use super::reader::DecodeError;
use super::row::Row;
use super::source::{Outbox, PassedOver, Source};
use super::tables::{Period, Verdict};
use postgres_types::PgLsn;
use std::collections::BTreeMap;

/// A relation or row that cannot be read as an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The bytes are not what the protocol says.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A row of a relation that no Relation message has described.
    #[error("a row of relation {0}, which no Relation message has described")]
    UnknownRelation(u32),
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

/// A table whose rows are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Its name, with its schema.
    pub table: String,
    pub(crate) why: PassedOver,
}

/// The relations that the server has described on this connection.
#[derive(Debug)]
pub struct Relations {
    source: Source,
    described: BTreeMap<u32, (Relation, Described)>,
    /// Where the transaction commits that is read.
    commit_lsn: PgLsn,
    /// A relation of the outbox lacks a column.
    lacks_columns: bool,
}

impl Relations {
    /// Knows nothing yet: each connection describes its relations anew.
    pub fn new(source: Source) -> Self {
        Relations {
            source,
            described: BTreeMap::new(),
            commit_lsn: 0.into(),
            lacks_columns: false,
        }
    }

    /// A transaction begins that commits at `commit_lsn`.
    #[inline]
    pub fn begin(&mut self, commit_lsn: PgLsn) {
        let before = std::mem::replace(&mut self.commit_lsn, commit_lsn);
        let mut outboxes = self.source.outboxes.iter();
        if outboxes.any(|outbox| outbox.tables.changes_between(before, commit_lsn)) {
            // The server describes a relation again only where it has changed itself.
            for (_, (relation, before)) in std::mem::take(&mut self.described) {
                let verdict = match self.source.verdict(&relation, commit_lsn) {
                    // The name is from before another table took it. One that really takes it is described anew.
                    (outbox, Verdict::Successor) => (outbox, Verdict::Other),
                    verdict => verdict,
                };
                self.keep(relation, verdict, Some(before));
            }
        }
    }

    /// Which tables were the outboxes, where in the WAL, as far as it has told.
    pub(crate) fn periods(&self) -> Vec<Period> {
        let outboxes = self.source.outboxes.iter();
        let periods = outboxes.flat_map(|outbox| outbox.tables.periods());
        periods.cloned().collect()
    }

    /// Takes a Relation message; says since when where another table has taken an outbox's name, and is that outbox from then
    /// on.
    pub fn describe(&mut self, relation: Relation) -> Option<&Period> {
        let oid = relation.oid;
        let (outbox, verdict) = self.source.verdict(&relation, self.commit_lsn);
        let succeeds = verdict == Verdict::Successor;
        if succeeds {
            let tables = &mut self.source.outboxes[outbox].tables;
            tables.succeed(oid, self.commit_lsn);
        }
        let before = self.described.remove(&oid).map(|(_, before)| before);
        self.keep(relation, (outbox, verdict), before);
        succeeds.then(|| self.source.outboxes[outbox].tables.current())
    }

    fn keep(
        &mut self,
        relation: Relation,
        (outbox, verdict): (usize, Verdict),
        before: Option<Described>,
    ) {
        let source = &self.source;
        let oid = relation.oid;
        let described = match (verdict, before) {
            (Verdict::Outbox | Verdict::Successor, _) => {
                let columns = Columns::find(source, outbox, &relation, self.commit_lsn);
                self.lacks_columns |= columns.missing.is_some();
                Described::Outbox(columns)
            }
            (Verdict::Other, Some(told @ Described::Foreign { unseen: None })) => told,
            (Verdict::Other, _) => Described::Foreign {
                unseen: Some(Foreign {
                    table: format!(
                        "{}.{}",
                        source.encoding.name(&relation.schema),
                        source.encoding.name(&relation.name)
                    ),
                    why: source.passed_over(oid, self.commit_lsn),
                }),
            },
        };
        self.described.insert(oid, (relation, described));
    }

    /// A table that is not the outbox, when asked behind its first row in this epoch. A Relation message alone says nothing:
    /// partitions of the outbox have theirs too, and their rows come under the root's.
    pub(crate) fn first_row_of(&mut self, oid: u32) -> Option<Foreign> {
        match self.described.get_mut(&oid) {
            Some((_, Described::Foreign { unseen })) => unseen.take(),
            _ => None,
        }
    }

    /// A column that the outbox lacks in the rows of this relation.
    #[inline]
    pub(crate) fn missing_column(&self, oid: u32) -> Option<&str> {
        if !self.lacks_columns {
            return None;
        }
        match self.described.get(&oid) {
            Some((_, Described::Outbox(columns))) => columns.missing.as_deref(),
            _ => None,
        }
    }

    /// How the table's text comes.
    #[inline]
    pub fn encoding(&self) -> &Encoding {
        &self.source.encoding
    }

    /// Whose messages of the WAL are rows.
    pub fn messages(&self) -> Option<&str> {
        self.source.messages.as_deref()
    }

    /// What of a message of the WAL becomes what of a message.
    pub fn mapping(&self) -> &Mapping {
        &self.source.outboxes[0].mapping
    }

    /// What the column of this name, which a message of the WAL may name, was called before: the last name first.
    pub(crate) fn former_names(&self, name: &str) -> impl Iterator<Item = &str> {
        let table = self.source.outboxes[0].tables.current();
        table.former_names(name, self.commit_lsn)
    }

    /// Reads a tuple, its text as it comes; `None` for a table that is not the outbox.
    ///
    /// # Errors
    /// See [`RowError`].
    #[inline]
    pub fn read<'a>(&self, oid: u32, tuple: &Tuple<'a>) -> Result<Option<Row<'a>>, RowError> {
        let columns = match self.described.get(&oid) {
            None => return Err(RowError::UnknownRelation(oid)),
            Some((_, Described::Foreign { .. })) => return Ok(None),
            Some((_, Described::Outbox(columns))) => columns,
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
        for field in &columns.absent {
            *values.get_mut(*field) = Column::Absent;
        }
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
        let row = Row::new(values, columns.kinds, extras, 0);
        Ok(Some(row.of_outbox(columns.outbox)))
    }

    /// All columns of the outbox table's row with their names; none of another table.
    ///
    /// # Errors
    /// See [`RowError`].
    pub fn columns<'a>(
        &self,
        oid: u32,
        tuple: &Tuple<'a>,
    ) -> Result<Vec<(String, Column<'a>)>, RowError> {
        match self.described.get(&oid) {
            Some((_, Described::Outbox(columns))) => Ok(columns.all_of(tuple)?),
            _ => Ok(Vec::new()),
        }
    }
}

#[derive(Debug)]
enum Described {
    Outbox(Columns),
    /// Another table of the publication: until its first row has come, what to say of it.
    Foreign {
        unseen: Option<Foreign>,
    },
}

/// Where a relation's rows have what.
#[derive(Debug)]
struct Columns {
    /// Whose rows they are, of [`Source::outboxes`].
    outbox: u16,
    /// What each column is; `None` for one that no field has for its own.
    fields: Vec<Option<Field>>,
    kinds: Fields<Kind>,
    /// Fields that share the column of another one.
    shared: Vec<(Field, Field)>,
    /// The columns of [`Mapping::extras`], by their index.
    extras: Vec<(Kind, Option<usize>)>,
    /// Fields of type char(n).
    padded: Vec<Field>,
    /// Fields whose column the table does not have here.
    absent: Vec<Field>,
    /// The first column that it does not have.
    missing: Option<String>,
    /// Of all columns, with what they are.
    names: Vec<(String, Kind)>,
}

impl Columns {
    fn all_of<'a>(&self, tuple: &Tuple<'a>) -> Result<Vec<(String, Column<'a>)>, DecodeError> {
        let mut columns = Vec::with_capacity(self.names.len());
        tuple.for_each(|index, column| {
            let (name, kind) = &self.names[index];
            let column = match kind {
                Kind::Padded => unpadded(column),
                _ => column,
            };
            columns.push((name.clone(), column));
        })?;
        Ok(columns)
    }

    fn find(source: &Source, outbox: usize, relation: &Relation, lsn: PgLsn) -> Self {
        let Outbox { tables, mapping } = &source.outboxes[outbox];
        let table = Some(tables.current()).filter(|table| table.oid == relation.oid);
        let mut missing = None;
        let mut index_of = |name: &str| {
            let position = |name: &str| {
                let has_name = |column: &RelationColumn| source.encoding.name(&column.name) == name;
                relation.columns.iter().position(has_name)
            };
            // In rows from before it was renamed.
            let mut former = table
                .into_iter()
                .flat_map(|table| table.former_names(name, lsn));
            let index = position(name).or_else(|| former.find_map(position));
            if index.is_none() {
                missing.get_or_insert_with(|| name.to_owned());
            }
            index
        };
        let kind_of = |index: usize| source.kind_of(relation.columns[index].type_oid);
        let mut found = Columns {
            outbox: u16::try_from(outbox).expect("a lane has few tables"),
            fields: vec![None; relation.columns.len()],
            kinds: Fields::default(),
            shared: Vec::new(),
            extras: Vec::new(),
            padded: Vec::new(),
            absent: Vec::new(),
            missing: None,
            names: relation
                .columns
                .iter()
                .map(|column| {
                    (
                        source.encoding.name(&column.name),
                        source.kind_of(column.type_oid),
                    )
                })
                .collect(),
        };
        for (field, value) in mapping.columns.as_ref() {
            let Some(name) = value.column() else {
                continue;
            };
            let Some(index) = index_of(name) else {
                found.absent.push(field);
                continue;
            };
            *found.kinds.get_mut(field) = kind_of(index);
            match found.fields[index] {
                Some(other) => found.shared.push((field, other)),
                None => found.fields[index] = Some(field),
            }
            if kind_of(index) == Kind::Padded {
                found.padded.push(field);
            }
        }
        for name in mapping.extras() {
            let index = index_of(name);
            found
                .extras
                .push((index.map_or(Kind::Text, kind_of), index));
        }
        found.missing = missing;
        found
    }

    fn extras_of<'a>(&self, tuple: &Tuple<'a>) -> Result<Vec<(Kind, Column<'a>)>, DecodeError> {
        let mut values: Vec<_> = self
            .extras
            .iter()
            .map(|(kind, index)| match index {
                Some(_) => (*kind, Column::Null),
                None => (*kind, Column::Absent),
            })
            .collect();
        tuple.for_each(|index, column| {
            for ((kind, value), (_, wanted)) in values.iter_mut().zip(&self.extras) {
                if *wanted == Some(index) {
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
