//! Messages made of the table's rows as they are now, by the relay's own code.
//!
//! In: an event's id, or a row as a dead letter has it. Out: subject, headers and body. Guarantee: what the relay publishes of a row in the WAL, byte for byte,
//! as long as the row has not changed.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use tokio_postgres::types::{FromSql, Type, accepts};
use tokio_postgres::{Row as SqlRow, RowStream};

use crate::pipeline::encoding::{Converted, Encoding};
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::kind::Kind;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::message::{Composed, compose};
use crate::pipeline::pgoutput::Column;
use crate::pipeline::row::Row;
use crate::postgres::catalog::{Inspection, Table, inspect};
use crate::postgres::client::{Client, SqlError, connect};
use crate::postgres::encoding;
use crate::postgres::findings::has_columns;
use crate::postgres::id_column::IdColumn;
use crate::postgres::occurred_at::{OccurredAt, Untold};
use crate::postgres::replication::quote_literal;
use crate::postgres::row_security;
use crate::relay::settings::Settings;
use crate::table_name::quote_identifier;

/// When a row's transaction was committed, where the server keeps that (`track_commit_timestamp`), else now; read as [`Us`]. The
/// setting is looked up once a query, not once a row.
const COMMITTED_AT: &str = "coalesce(CASE WHEN (SELECT pg_catalog.current_setting('track_commit_timestamp')) = 'on' \
     THEN pg_catalog.pg_xact_commit_timestamp(xmin) END, pg_catalog.clock_timestamp())";

/// The table, and what of its rows becomes what of a message.
pub(crate) struct Rows {
    sql: Arc<Client>,
    table: String,
    oid: u32,
    encoding: Encoding,
    mapping: Mapping,
    id_column: IdColumn,
    /// An index says that no two rows have one id.
    has_unique_id: bool,
    occurred_at: Result<OccurredAt, Untold>,
    kinds: Fields<Kind>,
    /// Of the columns of [`Mapping::extras`].
    extra_kinds: Vec<Kind>,
    /// Which rows the publication carries.
    row_filter: Option<String>,
}

/// When rows occurred, and behind which one of them.
#[derive(Debug, Clone)]
pub struct Occurred {
    /// Not before.
    pub from: DateTime<Utc>,
    /// Not later.
    pub to: Option<DateTime<Utc>>,
    /// Behind the row of this moment, in µs since 1970, and with this id.
    pub behind: Option<(i64, String)>,
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
        Ok(Rows {
            sql: sql.clone(),
            encoding,
            table: settings.postgres.table.to_string(),
            oid: table.oid,
            id_column: IdColumn::of(table, &settings.postgres),
            has_unique_id,
            occurred_at: OccurredAt::of(table, &settings.postgres),
            kinds: own.map(|value| value.column().map_or(Kind::Text, kind_of)),
            extra_kinds: mapping.extras().iter().map(|name| kind_of(name)).collect(),
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
            self.columns(),
            self.table,
            self.id_column.is_one_of(std::iter::once(id))
        );
        let rows = self.sql.query(&query, &[]).await?;
        let row = match rows.as_slice() {
            [row] => row,
            [] => return Ok(None),
            rows => bail!("{} has {} rows with id {id}", self.table, rows.len()),
        };
        let names = columns(&self.mapping);
        let mut found = RowText {
            columns: BTreeMap::new(),
            committed_at_us: row.try_get::<_, Us>(names.len())?.0,
            kinds: None,
        };
        for (index, name) in names.into_iter().enumerate() {
            let bytes: Option<Stored<'_>> = row.try_get(index)?;
            let text = bytes.map(|bytes| self.text(name, bytes.0)).transpose()?;
            found.columns.insert(name.to_owned(), text);
        }
        Ok(Some(found))
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
    fn text(&self, name: &str, bytes: &[u8]) -> anyhow::Result<String> {
        let mut converted = Vec::new();
        let text = match self.encoding.utf8(bytes, &mut converted) {
            Converted::Same => bytes,
            Converted::At(range) => &converted[range],
            Converted::Not => {
                bail!("column {name} holds what is no text in the encoding of the database")
            }
        };
        Ok(String::from_utf8(text.to_vec())?)
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
        Parts::of(&row, &self.mapping)
    }

    /// Asks for the rows with ids of these names, the oldest transaction first, and within it by id. Behind the columns of
    /// [`Self::parts_of`] come each row's id and how many rows have it.
    ///
    /// # Errors
    /// As of tokio-postgres: who asks ahead of what is read says itself how long it waits.
    pub(super) async fn ask(&self, names: &[String]) -> Result<RowStream, tokio_postgres::Error> {
        let id = self.id_column.text();
        let count = match self.has_unique_id {
            true => "1::int8".to_owned(),
            // Costs as much as all the rest.
            false => format!("count(*) OVER (PARTITION BY {id})"),
        };
        let query = format!(
            "SELECT {}, ({id})::text AS event_id, {count} FROM {} WHERE {} \
             ORDER BY age(xmin) DESC, {id}",
            self.columns(),
            self.table,
            self.id_column
                .is_one_named(names.iter().map(String::as_str)),
        );
        let nothing: [&str; 0] = [];
        self.sql.query_raw(&query, nothing).await
    }

    /// Asks for the rows that occurred then, in that order and within a moment by id. Behind the columns of
    /// [`Self::parts_of`] come each row's id and its moment, in µs since 1970.
    ///
    /// # Errors
    /// No column tells when a row occurred; or as of tokio-postgres.
    pub(super) async fn ask_occurred(&self, occurred: &Occurred) -> anyhow::Result<RowStream> {
        let (occurred_at, id) = (self.occurred_at()?, self.id_in_order());
        let query = format!(
            "SELECT {}, {id} AS event_id, {} AS moment FROM {} WHERE {} ORDER BY {}, {id}",
            self.columns(),
            occurred_at.us(),
            self.table,
            self.occurred(occurred)?,
            occurred_at.column()
        );
        let nothing: [&str; 0] = [];
        Ok(self.sql.answer(self.sql.query_raw(&query, nothing)).await?)
    }

    /// How many rows [`Self::ask_occurred`] asks for.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn count_occurred(&self, occurred: &Occurred) -> anyhow::Result<u64> {
        let condition = self.occurred(occurred)?;
        let query = format!("SELECT count(*) FROM {} WHERE {condition}", self.table);
        let count: i64 = self.sql.query_one(&query, &[]).await?.try_get(0)?;
        Ok(count.unsigned_abs())
    }

    fn occurred(&self, occurred: &Occurred) -> anyhow::Result<String> {
        let column = self.occurred_at()?;
        let to = occurred.to.unwrap_or_else(last_moment);
        let mut condition = format!(
            "({}) AND {}",
            self.row_filter.as_deref().unwrap_or("true"),
            column.is_between(occurred.from, to)
        );
        if let Some((us, behind)) = &occurred.behind {
            let at = DateTime::from_timestamp_micros(*us).context("no such moment")?;
            condition += &format!(
                " AND ({}, {}) > ({}, {})",
                column.column(),
                self.id_in_order(),
                column.value(at),
                quote_literal(behind)
            );
        }
        Ok(condition)
    }

    /// # Errors
    /// Nothing tells when a row occurred.
    pub(super) fn occurred_at(&self) -> Result<&OccurredAt, Untold> {
        self.occurred_at.as_ref().map_err(Clone::clone)
    }

    /// The id's text, in an order that no locale changes.
    fn id_in_order(&self) -> String {
        let id = self.id_column.text();
        format!("coalesce(({id})::text, '') COLLATE \"C\"")
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

    fn columns(&self) -> String {
        let own = self.mapping.columns.as_ref().into_iter();
        let own = own.filter(|(_, value)| value.column().is_some());
        let kinds = own.map(|(field, _)| *self.kinds.get(field));
        let kinds = kinds.chain(self.extra_kinds.iter().copied());
        // Under names of their own: a column's own name would sort by its text.
        let texts = columns(&self.mapping)
            .into_iter()
            .zip(kinds)
            .enumerate()
            .map(|(number, (name, kind))| {
                let text = as_in_wal(&quote_identifier(name), kind);
                let stored = match self.encoding {
                    Encoding::Utf8 => text,
                    Encoding::Unchecked | Encoding::SingleByte(_) => {
                        format!("convert_to({text}, 'SQL_ASCII')")
                    }
                };
                format!("{stored} AS value_{number}, ")
            });
        texts.collect::<String>() + COMMITTED_AT
    }

    /// The parts of a row's message, from a row that was selected for it.
    ///
    /// # Errors
    /// The row can be no event.
    pub(super) fn parts_of(&self, row: &SqlRow) -> anyhow::Result<Parts> {
        let count = columns(&self.mapping).len();
        let mut texts = (0..count).map(|index| {
            let text: Option<Stored<'_>> = row.try_get(index)?;
            Ok(text.map_or(Column::Null, |text| Column::Text(text.0)))
        });
        let mut next = || texts.next().expect("a column for each name") as anyhow::Result<_>;
        let mut values = Fields::default();
        for (field, value) in self.mapping.columns.as_ref() {
            if value.column().is_some() {
                *values.get_mut(field) = next()?;
            }
        }
        let mut extras = Vec::new();
        for kind in &self.extra_kinds {
            extras.push((*kind, next()?));
        }
        let row = Row::new(values, self.kinds, extras, row.try_get::<_, Us>(count)?.0);
        let mut converted = Vec::new();
        Parts::of(&row.in_utf8(&self.encoding, &mut converted), &self.mapping)
    }
}

/// A column's text as the WAL has it, which is what its type's output function writes. A cast to text is another one for
/// boolean and inet; but of char(n) the relay takes the blanks away, as the cast does.
fn as_in_wal(column: &str, kind: Kind) -> String {
    match kind {
        Kind::Padded => format!("{column}::text"),
        _ => format!("CASE num_nulls({column}) WHEN 0 THEN format('%s', {column}) END"),
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

/// A text's bytes, whether it comes as text or as bytea.
struct Stored<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Stored<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Stored(raw))
    }

    accepts!(TEXT, BYTEA);
}

/// A timestamptz, as the protocol has it: in µs since 2000-01-01 UTC.
struct Us(i64);

impl<'a> FromSql<'a> for Us {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Us(i64::from_be_bytes(raw.try_into()?)))
    }

    accepts!(TIMESTAMPTZ);
}

/// The last one that a message can tell, and an argument name.
fn last_moment() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(253_402_300_799_999_999).expect("the end of the year 9999")
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
    fn of(row: &Row<'_>, mapping: &Mapping) -> anyhow::Result<Self> {
        let (mut subject, mut headers, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let body = match compose(row, mapping, &mut subject, &mut headers, &mut written)? {
            Composed::Envelope(envelope) => {
                let mut body = BytesMut::new();
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
