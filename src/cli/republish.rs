//! A row of the table, published behind the stream's end outside the lane: what `dead-letters retry` and `backfill` do.
//!
//! In: an event's id. Out: the message, built by the relay's own code from the row as the table has it now. Guarantee: it
//! carries no position of its own, so it moves no relay's place; a relay that runs on a stream of its own pays a resync.

use std::cell::RefCell;

use anyhow::{Context as _, bail};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, context::PublishErrorKind};
use bytes::BytesMut;

use crate::nats::stream;
use crate::pipeline::envelope::Envelope;
use crate::pipeline::fields::{Field, Fields};
use crate::pipeline::pgoutput::Column;
use crate::pipeline::position::{EXPECTED_HEADER, TAIL_HEADER};
use crate::pipeline::row::{JSON_OIDS, Row};
use crate::postgres::catalog::inspect;
use crate::postgres::client::{Client, connect};
use crate::postgres::row_security;
use crate::postgres::table_name::quote_identifier;
use crate::relay::lane_client::{LaneClient, LaneEnd};
use crate::relay::settings::Settings;

/// What it takes to publish rows again.
pub(super) struct Republish<'a> {
    nats: &'a async_nats::Client,
    sql: Client,
    settings: &'a Settings,
    payload_unchecked: bool,
    /// As of the last look or publication.
    end: RefCell<Option<LaneEnd>>,
}

/// So often may a relay publish between the look at the stream's end and the message that is to stand behind it.
const PLACES_MAX: u32 = 10;

impl<'a> Republish<'a> {
    /// Connects to the table.
    pub(super) async fn open(
        nats: &'a async_nats::Client,
        settings: &'a Settings,
    ) -> anyhow::Result<Self> {
        let sql = connect(&settings.postgres.conninfo).await?;
        let inspection = inspect(&sql, &settings.postgres).await?;
        row_security::check(&inspection, &settings.postgres.table)?;
        let table = inspection
            .table
            .with_context(|| format!("there is no table {}", settings.postgres.table))?;
        let payload = &settings.postgres.columns.payload;
        let payload_unchecked = table
            .columns
            .iter()
            .find(|column| column.name == *payload)
            .is_none_or(|column| !JSON_OIDS.contains(&column.type_oid));
        Ok(Republish {
            nats,
            sql,
            settings,
            payload_unchecked,
            end: RefCell::new(None),
        })
    }

    /// Publishes the row with this id, marked by `marks`; returns its sequence. `message_id` keeps two commands of the
    /// same moment apart.
    pub(super) async fn publish(
        &self,
        id: &str,
        message_id: String,
        marks: &[(&'static str, String)],
    ) -> anyhow::Result<u64> {
        let values = self.row(id).await?;
        let columns = values.as_ref().map(|value| match value {
            Some(text) => Column::Text(text.as_bytes()),
            None => Column::Null,
        });
        let row = Row::new(columns, self.payload_unchecked);
        let envelope = Envelope::of(&row)?;
        let value = |field: Field| match row.get(field) {
            Column::Text(text) => text,
            _ => b"".as_slice(),
        };
        let mut subject = Vec::new();
        self.settings.nats.subject.render(
            value(Field::EventType),
            value(Field::AggregateId),
            value(Field::EventVersion),
            &mut subject,
        )?;
        let mut body = BytesMut::new();
        envelope.write(&mut body);
        let body = body.freeze();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", self.settings.nats.stream.as_str());
        headers.insert("Nats-Msg-Id", message_id);
        for (name, value) in marks {
            headers.insert(*name, value.as_str());
        }
        let subject = String::from_utf8(subject)?;
        self.check_size(&subject, &self.with_place(headers.clone()).await?, &body)
            .await?;
        for attempt in 0.. {
            // Behind a lane that never rests the message says nothing of its place.
            let headers = match attempt < PLACES_MAX {
                true => self.with_place(headers.clone()).await?,
                false => headers.clone(),
            };
            let published = jetstream::new(self.nats.clone())
                .publish_with_headers(subject.clone(), headers, body.clone())
                .await?
                .await;
            match published {
                Ok(ack) if ack.duplicate => bail!("another command has just published it"),
                Ok(ack) => {
                    self.published(ack.sequence);
                    return Ok(ack.sequence);
                }
                Err(error)
                    if error.kind() == PublishErrorKind::WrongLastSequence
                        && attempt < PLACES_MAX =>
                {
                    self.end.borrow_mut().take();
                }
                Err(error) => return Err(error.into()),
            }
        }
        unreachable!("a message without an expected sequence is never overtaken")
    }

    /// In a stream of the lane's own the message says where the lane stands, so that a relay need not look behind it, and
    /// is stored only where that is true. A shared stream has its fence for that.
    async fn with_place(&self, mut headers: HeaderMap) -> anyhow::Result<HeaderMap> {
        let (nats, slot) = (&self.settings.nats, &self.settings.postgres.slot);
        if nats.shared {
            return Ok(headers);
        }
        let known = self.end.borrow().clone();
        let end = match known {
            Some(end) => end,
            None => {
                LaneClient::new(self.nats, &nats.stream, slot)?
                    .end()
                    .await?
            }
        };
        headers.insert(EXPECTED_HEADER, end.last_sequence.to_string());
        headers.insert(TAIL_HEADER, end.tail.as_str());
        self.end.replace(Some(end));
        Ok(headers)
    }

    fn published(&self, sequence: u64) {
        if let Some(end) = self.end.borrow_mut().as_mut() {
            end.last_sequence = sequence;
        }
    }

    /// A message over the server's limit would end the connection instead of being refused.
    async fn check_size(
        &self,
        subject: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> anyhow::Result<()> {
        let name = &self.settings.nats.stream;
        let info = stream::find(self.nats, name)
            .await?
            .with_context(|| format!("there is no stream {name}"))?;
        let server = self.nats.server_info().max_payload;
        let limit = usize::try_from(info.config.max_msg_size)
            .ok()
            .filter(|bytes| *bytes > 0)
            .map_or(server, |bytes| bytes.min(server));
        let headers_len: usize = headers
            .iter()
            .map(|(name, values)| {
                let values = values.iter().map(|value| value.as_str().len());
                values
                    .map(|len| len + name.to_string().len() + 4)
                    .sum::<usize>()
            })
            .sum();
        let bytes = "NATS/1.0\r\n\r\n".len() + headers_len + body.len();
        if bytes > limit {
            bail!(
                "{bytes} bytes with its headers for {subject}, and at most {limit} can be published"
            );
        }
        Ok(())
    }

    /// The row's columns as text, as the table has them now.
    async fn row(&self, id: &str) -> anyhow::Result<Fields<Option<String>>> {
        let postgres = &self.settings.postgres;
        let columns = &postgres.columns;
        let list: Vec<String> = columns
            .as_ref()
            .into_iter()
            .map(|(_, name)| format!("{}::text", quote_identifier(name)))
            .collect();
        let list = list.join(", ");
        let query = format!(
            "SELECT {list} FROM {} WHERE {} = '{}'",
            postgres.table,
            quote_identifier(&columns.id),
            // A literal takes the column's type, whichever that is, and its index.
            id.replace('\'', "''")
        );
        let rows = self.sql.query(&query, &[]).await?;
        let row = match rows.as_slice() {
            [row] => row,
            [] => bail!("event {id} is no longer in {}", postgres.table),
            rows => bail!("{} has {} rows with id {id}", postgres.table, rows.len()),
        };
        let mut values = Fields::default();
        for (index, (field, _)) in columns.as_ref().into_iter().enumerate() {
            *values.get_mut(field) = row.try_get(index)?;
        }
        Ok(values)
    }
}
