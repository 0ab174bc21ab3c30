//! Messages made of the table's rows as they are now, by the relay's own code.
//!
//! In: an event's id. Out: subject, headers and body. Guarantee: what the relay publishes of a row in the WAL, byte for byte,
//! as long as the row has not changed.

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};

use crate::pipeline::encoding::Encoding;
use crate::pipeline::fields::Fields;
use crate::pipeline::kind::Kind;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::message::{Composed, compose};
use crate::pipeline::pgoutput::Column;
use crate::pipeline::row::Row;
use crate::postgres::catalog::inspect;
use crate::postgres::client::{Client, connect};
use crate::postgres::encoding;
use crate::postgres::id_column::IdColumn;
use crate::postgres::row_security;
use crate::postgres::table_name::quote_identifier;
use crate::relay::settings::Settings;

/// When a row's transaction was committed, where the server keeps that (`track_commit_timestamp`), else now; in µs since
/// 2000-01-01 UTC.
const COMMITTED_AT_US: &str = "(extract(epoch FROM coalesce(CASE WHEN pg_catalog.current_setting('track_commit_timestamp') = 'on' \
     THEN pg_catalog.pg_xact_commit_timestamp(xmin) END, pg_catalog.clock_timestamp()) - '2000-01-01 00:00:00+00') * 1000000)::int8";

/// The table, and what of its rows becomes what of a message.
pub(crate) struct Rows {
    sql: Client,
    table: String,
    encoding: Encoding,
    mapping: Mapping,
    id_column: IdColumn,
    kinds: Fields<Kind>,
    /// Of the columns of [`Mapping::extras`].
    extra_kinds: Vec<Kind>,
}

/// What a message is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) subject: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Rows {
    /// Connects to the table.
    ///
    /// # Errors
    /// It cannot be reached or read as a whole.
    pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let sql = connect(&settings.postgres.conninfo).await?;
        let inspection = inspect(&sql, &settings.postgres).await?;
        row_security::check(&inspection, &settings.postgres.table)?;
        let table = inspection
            .table
            .with_context(|| format!("there is no table {}", settings.postgres.table))?;
        let kind_of = |name: &str| {
            let column = table.columns.iter().find(|column| column.name == name);
            column.map_or(Kind::Text, |column| Kind::of_type(column.base_oid))
        };
        let mapping = settings.mapping();
        let own = mapping.columns.as_ref();
        let encoding = encoding::of_database(&sql, &settings.postgres.publication).await?;
        Ok(Rows {
            sql,
            encoding,
            table: settings.postgres.table.to_string(),
            id_column: IdColumn::of(&table, &settings.postgres),
            kinds: own.map(|value| value.column().map_or(Kind::Text, kind_of)),
            extra_kinds: mapping.extras().iter().map(|name| kind_of(name)).collect(),
            mapping,
        })
    }

    /// The parts of a row's message.
    ///
    /// # Errors
    /// The row is gone, is there more than once, or can be no event.
    pub(crate) async fn parts(&self, id: &str) -> anyhow::Result<Parts> {
        let own = self.mapping.columns.as_ref();
        let names: Vec<&str> = own
            .into_iter()
            .filter_map(|(_, value)| value.column())
            .chain(self.mapping.extras().iter().map(String::as_str))
            .collect();
        // SQL_ASCII: as it is stored.
        let bytes_of = match self.encoding {
            Encoding::Utf8 => "UTF8",
            Encoding::Unchecked | Encoding::SingleByte(_) => "SQL_ASCII",
        };
        let list: Vec<String> = names
            .iter()
            .map(|name| format!("convert_to({}::text, '{bytes_of}')", quote_identifier(name)))
            .collect();
        let query = format!(
            "SELECT {}, {COMMITTED_AT_US} FROM {} WHERE {}",
            list.join(", "),
            self.table,
            self.id_column.is_one_of(std::iter::once(id))
        );
        let rows = self.sql.query(&query, &[]).await?;
        let row = match rows.as_slice() {
            [row] => row,
            [] => bail!("event {id} is no longer in {}", self.table),
            rows => bail!("{} has {} rows with id {id}", self.table, rows.len()),
        };
        let mut texts = (0..names.len()).map(|index| {
            let text: Option<&[u8]> = row.try_get(index)?;
            Ok(text.map_or(Column::Null, Column::Text))
        });
        let mut next = || texts.next().expect("a column for each name") as anyhow::Result<_>;
        let mut values = Fields::default();
        for (field, value) in own {
            if value.column().is_some() {
                *values.get_mut(field) = next()?;
            }
        }
        let mut extras = Vec::new();
        for kind in &self.extra_kinds {
            extras.push((*kind, next()?));
        }
        let row = Row::new(values, self.kinds, extras, row.try_get(names.len())?);
        let mut converted = Vec::new();
        Parts::of(&row.in_utf8(&self.encoding, &mut converted), &self.mapping)
    }
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
        let headers = String::from_utf8(headers)?;
        let lines = headers.lines().filter_map(|line| line.split_once(": "));
        Ok(Parts {
            subject: String::from_utf8(subject)?,
            headers: lines
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body,
        })
    }
}
