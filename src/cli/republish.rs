//! A row of the table, published behind the stream's end outside the lane: what `dead-letters retry` does.
//!
//! In: an event's id, a lease and its fence. Out: the message, built by the relay's own code from the row as the table has it
//! now. Guarantees: it carries no position of its own, so it moves no relay's place; a relay that runs on a stream of its own
//! pays a resync; a command that has lost its lease publishes nothing more.

use std::error::Error;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, ErrorCode, context::PublishError};
use bytes::Bytes;

use crate::bulk::fence::{Fence, Place};
use crate::bulk::lease::Lease;
use crate::bulk::rows::{RowText, Rows};
use crate::nats::admin::Admin;
use crate::nats::denial::Denial;
use crate::nats::stream;
use crate::pipeline::limit::SizeLimit;
use crate::pipeline::position::{EXPECTED_HEADER, TAIL_HEADER};
use crate::relay::settings::Settings;

/// What it takes to publish rows again.
pub(super) struct Republish<'a> {
    nats: &'a Admin,
    rows: Rows,
    settings: &'a Settings,
    /// Largest message that server and stream take.
    limit: SizeLimit,
    lease: &'a Lease,
    fence: Fence,
    /// What the next message is to expect, as long as none was refused.
    place: Option<Place>,
}

/// A relay that never rests is tried to be met in a pause for so long.
const PLACE_LIMIT: Duration = Duration::from_secs(30);

/// What has become of a row.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is published, with this sequence.
    Published(u64),
    /// It cannot be.
    Rejected(anyhow::Error),
}

impl<'a> Republish<'a> {
    /// Connects to the table. `fence` was raised before the command has read what it goes by.
    pub(super) async fn open(
        nats: &'a Admin,
        settings: &'a Settings,
        lease: &'a Lease,
        fence: Fence,
    ) -> anyhow::Result<Self> {
        let rows = Rows::open(settings).await?;
        let name = &settings.nats.stream;
        let info = stream::find(nats, name)
            .await?
            .with_context(|| format!("there is no stream {name}"))?;
        let server = nats.client().server_info().max_payload;
        Ok(Republish {
            nats,
            rows,
            settings,
            limit: SizeLimit::smaller(server, info.config.message_bytes_max()),
            lease,
            fence,
            place: None,
        })
    }

    /// The table.
    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Publishes a row, marked by `marks`.
    ///
    /// # Errors
    /// Nothing more can be published by this command.
    pub(super) async fn publish(
        &mut self,
        row: &RowText,
        marks: &[(&'static str, String)],
    ) -> anyhow::Result<Outcome> {
        match self.message(row, marks) {
            Ok(message) => self.send(&message).await,
            Err(error) => Ok(Outcome::Rejected(error)),
        }
    }

    async fn send(&mut self, message: &Message) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        loop {
            let headers = self.with_place(message.headers.clone()).await?;
            let bytes = bytes(&headers, &message.body);
            if bytes > self.limit.bytes {
                // A message over the server's limit would end the connection instead of being refused.
                return Ok(Outcome::Rejected(anyhow!(
                    "{bytes} bytes with its headers for {} are more than {}",
                    message.subject,
                    self.limit
                )));
            }
            let sent = self
                .nats
                .jetstream()
                .publish_with_headers(message.subject.clone(), headers, message.body.clone())
                .await?;
            let published = self.nats.allowed(async { Ok(sent.await) }).await;
            let published = published.map_err(|error| self.of_events(error))?;
            match published {
                Ok(ack) => {
                    self.published(ack.sequence);
                    return Ok(Outcome::Published(ack.sequence));
                }
                Err(error) if is_overtaken(&error) => {
                    self.place = None;
                    ensure!(
                        begin.elapsed() < PLACE_LIMIT,
                        "the relay has published before each attempt for {PLACE_LIMIT:?}: run this again when fewer events come"
                    );
                }
                Err(error) => return Ok(Outcome::Rejected(error.into())),
            }
        }
    }

    /// The row's message, as the relay would write it.
    fn message(&self, row: &RowText, marks: &[(&'static str, String)]) -> anyhow::Result<Message> {
        let parts = self.rows.parts(row)?;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", self.settings.nats.stream.as_str());
        for (name, value) in marks {
            headers.insert(*name, value.as_str());
        }
        let lines = parts.headers.lines();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.insert(name, value);
        }
        Ok(Message {
            subject: parts.subject,
            headers,
            body: parts.body,
        })
    }

    /// A denial names one permission for all events.
    fn of_events(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<Denial>() {
            Ok(denial) => denial.among(&self.settings.nats.subject.filter()).into(),
            Err(error) => error,
        }
    }

    /// Adds what the message is to expect of the stream. In one of the lane's own it also says where the lane stands, so
    /// that a relay need not look behind it.
    async fn with_place(&mut self, mut headers: HeaderMap) -> anyhow::Result<HeaderMap> {
        let place = match self.place.take() {
            Some(place) => place,
            None => self.fence.place(self.lease).await?,
        };
        match &place {
            Place::Behind(end) => {
                headers.insert(EXPECTED_HEADER, end.last_sequence.to_string());
                headers.insert(TAIL_HEADER, end.lane_end.as_str());
            }
            Place::Fenced { subject, sequence } => {
                headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
                headers.insert(
                    "Nats-Expected-Last-Subject-Sequence-Subject",
                    subject.as_str(),
                );
            }
        }
        self.place = Some(place);
        Ok(headers)
    }

    fn published(&mut self, sequence: u64) {
        self.fence.begun();
        if let Some(Place::Behind(end)) = &mut self.place {
            end.last_sequence = sequence;
        }
    }
}

struct Message {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Size of a message.
fn bytes(headers: &HeaderMap, body: &Bytes) -> usize {
    let headers_len: usize = headers
        .iter()
        .map(|(name, values)| {
            let values = values.iter().map(|value| value.as_str().len());
            values
                .map(|len| len + name.to_string().len() + 4)
                .sum::<usize>()
        })
        .sum();
    "NATS/1.0\r\n\r\n".len() + headers_len + body.len()
}

/// Whether something else was stored since the place was read, by one server's word or a cluster's.
fn is_overtaken(error: &PublishError) -> bool {
    std::iter::successors(Some(error as &dyn Error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<jetstream::Error>())
        .any(|error| {
            [
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE,
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT,
            ]
            .contains(&error.error_code())
        })
}
