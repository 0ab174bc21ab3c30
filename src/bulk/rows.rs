//! Messages made of the table's rows as they are now, by the relay's own code.
//!
//! In: an event's id, or a row as a dead letter has it. Out: subject, headers and body. Guarantee: what the relay publishes of a row in the WAL, byte for byte,
//! as long as the row has not changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};

use crate::pipeline::encoding::{Converted, Encoding};
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::kind::Kind;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::message::{Composed, compose};
use crate::pipeline::pgoutput::Column;
use crate::pipeline::row::Row;
use crate::postgres::catalog::{Inspection, Table, inspect};
use crate::postgres::client::{Client, SqlError, connect};
use crate::postgres::copy_text::{CopyRow, CopyRows};
use crate::postgres::encoding;
use crate::postgres::findings::has_columns;
use crate::postgres::id_column::IdColumn;
use crate::postgres::occurred_at::{OccurredAt, Untold};
use crate::postgres::row_security;
use crate::relay::settings::Settings;

mod asked;

pub use asked::Occurred;
use asked::committed_at_us;

/// The table, and what of its rows becomes what of a message.
pub(crate) struct Rows {
    sql: Arc<Client>,
    table: String,
    oid: u32,
    encoding: Encoding,
    mapping: Mapping,
    /// How many columns a message is made of.
    columns: usize,
    id_column: IdColumn,
    /// An index says that no two rows have one id.
    has_unique_id: bool,
    occurred_at: Result<OccurredAt, Untold>,
    kinds: Fields<Kind>,
    /// Of the columns of [`Mapping::extras`].
    extra_kinds: Vec<Kind>,
    /// Which rows the publication carries.
    row_filter: Option<String>,
    /// SQL for when a row's transaction was committed, in µs since 2000-01-01 UTC.
    committed_at_us: String,
}

/// A row's columns as text, those of [`columns`] at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowText {
    /// By name.
    pub(crate) columns: BTreeMap<String, Option<String>>,
    /// In µs since 2000-01-01 UTC.
    pub(crate) committed_at_us: i64,
    /// What the values are, where it is not the table that tells.
    pub(crate) kinds: Option<BTreeMap<String, Kind>>,
}

/// What a message is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) subject: String,
    /// Whole lines, each with its CR LF.
    pub(crate) headers: String,
    pub(crate) body: Bytes,
}

/// A look at the database, and the session that has it.
pub(crate) struct Looked {
    sql: Arc<Client>,
    pub(crate) inspection: Inspection,
}

impl Looked {
    /// Connects and looks.
    ///
    /// # Errors
    /// Postgres cannot be reached, or refuses.
    pub(crate) async fn at(settings: &Settings) -> anyhow::Result<Self> {
        let sql = connect(&settings.postgres.conninfo).await?;
        let inspection = inspect(&sql, &settings.postgres).await?;
        for (found, settings) in inspection.tables().zip(settings.postgres.tables()) {
            has_columns(found, &settings, &[Field::Id])?;
        }
        Ok(Looked {
            sql: Arc::new(sql),
            inspection,
        })
    }

    /// The session.
    pub(crate) fn sql(&self) -> &Client {
        &self.sql
    }
}

impl Rows {
    /// Connects to the table.
    ///
    /// # Errors
    /// It cannot be reached or read as a whole.
    pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let Looked { sql, inspection } = Looked::at(settings).await?;
        Self::of(&sql, &inspection, settings).await
    }

    /// Each of the lane's tables, by that look.
    ///
    /// # Errors
    /// One cannot be read as a whole.
    pub(crate) async fn all(looked: &Looked, settings: &Settings) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for (inspection, settings) in looked.inspection.tables().zip(settings.tables()) {
            all.push(Self::of(&looked.sql, inspection, &settings).await?);
        }
        Ok(all)
    }

    async fn of(
        sql: &Arc<Client>,
        inspection: &Inspection,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        row_security::check(inspection, &settings.postgres.table)?;
        let row_filter = inspection.row_filter().map(str::to_owned);
        let table = (inspection.table.as_ref())
            .with_context(|| format!("there is no table {}", settings.postgres.table))?;
        let kind_of = |name: &str| {
            let column = table.columns.iter().find(|column| column.name == name);
            column.map_or(Kind::Text, |column| Kind::of_type(column.base_oid))
        };
        let mapping = settings.mapping();
        let own = mapping.columns.as_ref();
        let has_unique_id = has_unique(sql, table, settings.postgres.id_column()).await?;
        let encoding = encoding::of_database(sql, &settings.postgres.publication).await?;
        let committed_at_us = committed_at_us(sql).await?;
        Ok(Rows {
            sql: sql.clone(),
            encoding,
            committed_at_us,
            table: settings.postgres.table.to_string(),
            oid: table.oid,
            id_column: IdColumn::of(table, &settings.postgres),
            has_unique_id,
            occurred_at: OccurredAt::of(table, &settings.postgres),
            kinds: own.map(|value| value.column().map_or(Kind::Text, kind_of)),
            extra_kinds: mapping.extras().iter().map(|name| kind_of(name)).collect(),
            columns: columns(&mapping).len(),
            mapping,
            row_filter,
        })
    }

    /// The table's row with this id; none where it is gone.
    ///
    /// # Errors
    /// It is there more than once, or the table cannot be read.
    pub(crate) async fn find(&self, id: &str) -> anyhow::Result<Option<RowText>> {
        let query = format!(
            "SELECT {} FROM {} WHERE {}",
            self.select_list(),
            self.table,
            self.id_column.is_one_of(std::iter::once(id))
        );
        let rows = self.sql.answer(self.copy(&query)).await?;
        let mut rows = CopyRows::new(&self.sql, rows);
        let (mut found, mut count) = (None, 0);
        while let Some(row) = rows.next().await? {
            found = Some(self.texts(row)?);
            count += 1;
        }
        match count {
            0 | 1 => Ok(found),
            _ => bail!("{} has {count} rows with id {id}", self.table),
        }
    }

    fn texts(&self, row: &CopyRow) -> anyhow::Result<RowText> {
        let mut columns = BTreeMap::new();
        for (index, name) in self::columns(&self.mapping).into_iter().enumerate() {
            let text = row.get(index).map(|bytes| self.text(name, bytes));
            columns.insert(name.to_owned(), text.transpose()?.map(Cow::into_owned));
        }
        Ok(RowText {
            columns,
            committed_at_us: row.parse(self.columns)?,
            kinds: None,
        })
    }

    /// An id as messages have it, of the value that its column holds.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn id_text(&self, value: &str) -> anyhow::Result<String> {
        let query = self.id_column.text_of(&self.table, value);
        Ok(self.sql.query_one(&query, &[]).await?.try_get(0)?)
    }

    /// A value in UTF-8.
    fn text<'b>(&self, name: &str, bytes: &'b [u8]) -> anyhow::Result<Cow<'b, str>> {
        let mut converted = Vec::new();
        Ok(match self.encoding.utf8(bytes, &mut converted) {
            Converted::Same => std::str::from_utf8(bytes)?.into(),
            Converted::At(range) => std::str::from_utf8(&converted[range])?.to_owned().into(),
            Converted::Not => {
                bail!("column {name} holds what is no text in the encoding of the database")
            }
        })
    }

    /// The parts of a row's message.
    ///
    /// # Errors
    /// The row can be no event.
    pub(crate) fn parts(&self, row: &RowText) -> anyhow::Result<Parts> {
        let column = |name: &str| match row.columns.get(name) {
            Some(Some(text)) => Column::Text(text.as_bytes()),
            _ => Column::Null,
        };
        let own = self.mapping.columns.as_ref();
        let values = own.map(|value| value.column().map_or(Column::Null, column));
        let extras = self.mapping.extras().iter().map(|name| column(name));
        let (kinds, extra_kinds) = match &row.kinds {
            None => (self.kinds, self.extra_kinds.clone()),
            Some(kinds) => {
                let kind_of = |name: &str| kinds.get(name).copied().unwrap_or_default();
                let names = self.mapping.extras().iter();
                let own = own.map(|value| value.column().map_or(Kind::Text, kind_of));
                (own, names.map(|name| kind_of(name)).collect())
            }
        };
        let extras = extra_kinds.into_iter().zip(extras).collect();
        let row = Row::new(values, kinds, extras, row.committed_at_us);
        Parts::of(&row, &self.mapping, "")
    }

    /// The id of a row, which stands behind the columns of [`Self::parts_of`]; empty where it is null.
    ///
    /// # Errors
    /// It is no text.
    pub(super) fn id<'r>(&self, row: &'r CopyRow) -> anyhow::Result<Cow<'r, str>> {
        match row.get(self.columns + 1) {
            None => Ok("".into()),
            Some(id) => self.text("id", id),
        }
    }

    /// Whether a row can be told by where it stands: no other table has rows of this one, and no other row its id.
    pub(super) fn has_places(&self) -> bool {
        self.has_unique_id
    }

    /// # Errors
    /// Nothing tells when a row occurred.
    pub(super) fn occurred_at(&self) -> Result<&OccurredAt, Untold> {
        self.occurred_at.as_ref().map_err(Clone::clone)
    }

    pub(super) fn sql(&self) -> &Client {
        &self.sql
    }

    pub(super) fn oid(&self) -> u32 {
        self.oid
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// The parts of a row's message, from a row that was selected for it; its headers stand behind `lines`.
    ///
    /// # Errors
    /// The row can be no event.
    pub(super) fn parts_of(&self, row: &CopyRow, lines: &str) -> anyhow::Result<Parts> {
        let column = |index| row.get(index).map_or(Column::Null, Column::Text);
        let mut texts = (0..self.columns).map(column);
        let mut next = || texts.next().expect("a column for each name");
        let mut values = Fields::default();
        for (field, value) in self.mapping.columns.as_ref() {
            if value.column().is_some() {
                *values.get_mut(field) = next();
            }
        }
        let mut extras = Vec::new();
        for kind in &self.extra_kinds {
            extras.push((*kind, next()));
        }
        let committed_at_us = row.parse(self.columns)?;
        let row = Row::new(values, self.kinds, extras, committed_at_us);
        let mut converted = Vec::new();
        let row = row.in_utf8(&self.encoding, &mut converted);
        Parts::of(&row, &self.mapping, lines)
    }
}

/// Whether an index says that no two rows have the same value in this column.
async fn has_unique(sql: &Client, table: &Table, column: &str) -> Result<bool, SqlError> {
    // Of partitions and heirs, each has indexes of its own.
    if table.relkind != 'r' || !table.heirs.is_empty() {
        return Ok(false);
    }
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index JOIN pg_catalog.pg_attribute \
                 ON attrelid = indrelid AND attnum = indkey[0] WHERE indrelid = $1 AND attname = $2::text \
                 AND indisunique AND indisvalid AND indnkeyatts = 1 AND indpred IS NULL)";
    let row = sql.query_one(query, &[&table.oid, &column]).await?;
    Ok(row.try_get(0)?)
}

/// The columns that a message is made of.
pub(crate) fn columns(mapping: &Mapping) -> Vec<&str> {
    mapping
        .columns
        .as_ref()
        .into_iter()
        .filter_map(|(_, value)| value.column())
        .chain(mapping.extras().iter().map(String::as_str))
        .collect()
}

impl Parts {
    fn of(row: &Row<'_>, mapping: &Mapping, lines: &str) -> anyhow::Result<Self> {
        let (mut subject, mut headers) = (Vec::with_capacity(64), Vec::with_capacity(128));
        headers.extend_from_slice(lines.as_bytes());
        let mut written = Vec::new();
        let body = match compose(row, mapping, &mut subject, &mut headers, &mut written)? {
            Composed::Envelope(envelope) => {
                let mut body = BytesMut::with_capacity(envelope.len());
                envelope.write(&mut body);
                body.freeze()
            }
            Composed::Payload(payload) => Bytes::copy_from_slice(payload),
            Composed::Written => written.into(),
        };
        Ok(Parts {
            subject: String::from_utf8(subject)?,
            headers: String::from_utf8(headers)?,
            body,
        })
    }
}
