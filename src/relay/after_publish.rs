//! Marks or deletes rows that are published, beside the relay: on connections of its own, not in the relay's way.
//!
//! In: the stream, from where the last run was, and how far the slot is confirmed. Out: statements on the table, in batches.
//! Guarantees: the stream tells which rows are published, so what was published while nobody settled it is settled later; the
//! lane never waits for it, and what it cannot do yet waits in the stream, not in memory. What is due when is
//! [`crate::pipeline::after_publish`]'s.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::{Deserialize, Serialize};

use crate::nats::admin::Admin;
use crate::pipeline::after_publish::{AfterPublish, Published, Row, Unseen, Waiting};
use crate::pipeline::event_id;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_HEADER, KIND_REPLAY, KIND_RETRY, POSITION_HEADER, TABLE_HEADER,
    parse_header, slot_of,
};
use crate::postgres::client::{Client, connect};
use crate::postgres::published_rows::{PublishedRows, Refused, transactions};
use crate::relay::board::Board;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Rows in one statement.
const BATCH_ROWS: usize = 1_000;
/// How often it is looked whether more is confirmed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often the place in the stream is kept, while it changes.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

/// Up to where rows are settled, as it is kept beside the lane record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// When the stream was created.
    pub(crate) created: String,
    /// Messages up to this one are done with.
    pub(crate) sequence: u64,
}

impl Place {
    /// As it is stored, where it is of the stream that was created at that time.
    pub(crate) fn stored(data: &[u8], created: &str) -> Option<Place> {
        let place: Place = serde_json::from_slice(data).ok()?;
        (place.created == created).then_some(place)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a text and a number always have a JSON form")
    }
}

/// Makes sure that it can be done. A server that does not answer is no reason against it.
///
/// # Errors
/// What a person has to change.
pub(super) async fn check(settings: &Settings) -> anyhow::Result<()> {
    let after = settings.outbox.after_publish;
    if after == AfterPublish::Keep {
        return Ok(());
    }
    let Ok(sql) = connect(&settings.postgres.conninfo).await else {
        return Ok(());
    };
    match PublishedRows::open(&sql, &settings.postgres, after).await {
        Ok(rows) => {
            for warning in rows.warnings() {
                tracing::warn!("{warning}");
            }
            Ok(())
        }
        Err(Refused::Sql(_)) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// Settles rows for as long as it is polled.
pub(super) async fn settle(settings: Settings, board: Board) {
    let mut watch = board.watch();
    while board.status().totals.epochs == 0 {
        watch.changed().await;
    }
    let mut is_told = false;
    loop {
        let ended = async {
            let mut settling = Settling::open(&settings).await?;
            settling.follow(&board, &mut is_told).await
        };
        let error = match ended.await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        match std::mem::replace(&mut is_told, true) {
            false => tracing::warn!(
                "published rows are not {} for now: {error:#}",
                verb(&settings)
            ),
            true => tracing::debug!("published rows are not {}: {error:#}", verb(&settings)),
        }
        // What waits grows meanwhile.
        match lag(&settings).await {
            Ok(lag) => board.settled(0, lag),
            Err(error) => tracing::debug!("what waits is not counted: {error:#}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Messages of the stream behind the place that is kept.
async fn lag(settings: &Settings) -> anyhow::Result<u64> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    let info = lane.stream().await?;
    let stored = lane.settled().await?;
    let place = stored.and_then(|message| Place::stored(&message.data, &info.created));
    let removed = info.state.first_seq.saturating_sub(1);
    let done = place.map_or(0, |place| place.sequence).max(removed);
    Ok(info.state.last_seq.saturating_sub(done))
}

fn verb(settings: &Settings) -> &'static str {
    match settings.outbox.after_publish {
        AfterPublish::Delete => "deleted",
        _ => "marked",
    }
}

/// Both connections, and where it is.
struct Settling {
    source: Source,
    sql: Client,
    rows: PublishedRows,
    nats: Admin,
    lane: LaneClient,
    messages: Ordered,
    waiting: Waiting,
    unseen: Unseen,
    /// From where [`Unseen`] counts time.
    begun: Instant,
    /// The stream's messages were looked at up to this one.
    looked_at: u64,
    /// Messages of the stream that were not read yet, when that was seen last.
    unread: u64,
    unread_at: Instant,
    /// Sequence of the last one that was.
    read_sequence: u64,
    place: Place,
    /// Where that is stored.
    place_sequence: u64,
    kept: Place,
    kept_at: Instant,
}

impl Settling {
    async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let after = settings.outbox.after_publish;
        let sql = connect(&settings.postgres.conninfo).await?;
        let rows = PublishedRows::open(&sql, &settings.postgres, after).await?;
        let nats = Admin::connect(&settings.nats.connection).await?;
        let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
        let lane = LaneClient::new(&nats, stream, slot)?;
        let info = lane.stream().await?;
        let record = lane.record().await?.record;
        let adopted = record.filter(|record| record.created == info.created);
        let stored = lane.settled().await?;
        let place_sequence = stored.as_ref().map_or(0, |message| message.seq);
        let place = stored
            .and_then(|message| Place::stored(&message.data, &info.created))
            .unwrap_or_else(|| Place {
                created: info.created.clone(),
                sequence: 0,
            });
        let first = info.state.first_seq;
        if place.sequence > 0 && first > place.sequence + 1 {
            tracing::warn!(
                "the stream no longer has its messages {} to {}, so their rows are not {}: walrelay prune deletes them",
                place.sequence + 1,
                first - 1,
                verb(settings)
            );
        }
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: (place.sequence + 1).max(first),
            },
            ..OrderedConfig::default()
        };
        let consume = async {
            let found = nats.jetstream().get_stream(stream).await?;
            let consumer = found.create_consumer(config).await?;
            let left = consumer.cached_info().num_pending;
            Ok((consumer.messages().await?, left))
        };
        let consumed = nats.allowed(consume).await;
        let (messages, unread) =
            consumed.with_context(|| format!("cannot read stream {stream}"))?;
        Ok(Settling {
            source: Source::of(settings),
            sql,
            rows,
            nats: nats.clone(),
            lane,
            messages,
            waiting: Waiting::new(after, adopted.map_or(0, |record| record.adopted_sequence)),
            unseen: Unseen::default(),
            begun: Instant::now(),
            looked_at: place.sequence,
            unread,
            unread_at: Instant::now(),
            read_sequence: place.sequence,
            kept: place.clone(),
            place,
            place_sequence,
            kept_at: Instant::now(),
        })
    }

    async fn follow(
        &mut self,
        board: &Board,
        is_told: &mut bool,
    ) -> anyhow::Result<std::convert::Infallible> {
        loop {
            let settled = self.settle_due(board).await?;
            if settled > 0 && std::mem::take(is_told) {
                tracing::info!("published rows are settled again");
            }
            self.keep_place().await?;
            self.count_unread().await?;
            let waits_for_time =
                !self.waiting.is_empty() || !self.unseen.is_empty() || self.kept != self.place;
            tokio::select! {
                taken = next(&self.nats, &mut self.messages), if self.has_room() => {
                    self.take(taken?)?;
                    self.take_more()?;
                }
                () = tokio::time::sleep(LOOK_INTERVAL), if waits_for_time => {}
            }
        }
    }

    fn has_room(&self) -> bool {
        self.waiting.has_room() && self.unseen.len() < Waiting::MESSAGES_MAX
    }

    /// What is there already, so that a batch has many rows where there are many.
    fn take_more(&mut self) -> anyhow::Result<()> {
        while self.has_room()
            && let Some(Some(message)) = self.messages.next().now_or_never()
        {
            self.take(message?)?;
        }
        Ok(())
    }

    fn take(&mut self, message: async_nats::jetstream::Message) -> anyhow::Result<()> {
        let info = message.info();
        let info =
            info.map_err(|error| anyhow::anyhow!("a message without its sequence: {error}"))?;
        let sequence = info.stream_sequence;
        (self.unread, self.unread_at) = (info.pending, Instant::now());
        self.read_sequence = sequence;
        let published = self
            .source
            .published(message.headers.as_ref(), &message.payload);
        self.waiting.take(sequence, published);
        Ok(())
    }

    /// Settles all that is due; how many rows there were.
    async fn settle_due(&mut self, board: &Board) -> anyhow::Result<u64> {
        let confirmed_lsn = board.status().marks.confirmed_lsn.into();
        let now = self.begun.elapsed();
        let mut rows = self.look_again(now).await?;
        while let Some(due) = self.waiting.due(confirmed_lsn, BATCH_ROWS) {
            if !due.rows.is_empty() {
                let settled = self.rows.settle(&self.sql, &due.rows).await?;
                rows += settled.rows;
                if !settled.unseen.is_empty() {
                    let (_, xmax) = transactions(&self.sql).await?;
                    self.unseen.keep(self.looked_at, xmax, settled.unseen, now);
                }
            }
            self.looked_at = due.through;
        }
        self.place.sequence = self.unseen.done_through(self.looked_at);
        let left = self.waiting.len() + self.unseen.len();
        board.settled(rows, self.unread + left as u64);
        Ok(rows)
    }

    /// Settles rows that were not seen before; how many.
    async fn look_again(&mut self, now: Duration) -> anyhow::Result<u64> {
        let due = self.unseen.due(now);
        if due.is_empty() {
            return Ok(0);
        }
        let (xmin, _) = transactions(&self.sql).await?;
        let mut rows = 0;
        let mut still = HashSet::new();
        for these in due.chunks(BATCH_ROWS) {
            let settled = self.rows.settle(&self.sql, these).await?;
            rows += settled.rows;
            still.extend(settled.unseen);
        }
        self.unseen.looked(&still, xmin, now);
        Ok(rows)
    }

    /// A message tells how many stand behind it; while none is read, the stream does.
    async fn count_unread(&mut self) -> anyhow::Result<()> {
        if self.has_room() || self.unread_at.elapsed() < KEEP_INTERVAL {
            return Ok(());
        }
        let end = self.lane.stream().await?.state.last_seq;
        (self.unread, self.unread_at) = (end.saturating_sub(self.read_sequence), Instant::now());
        Ok(())
    }

    async fn keep_place(&mut self) -> anyhow::Result<()> {
        if self.kept == self.place || self.kept_at.elapsed() < KEEP_INTERVAL {
            return Ok(());
        }
        let place = self.place.to_json();
        self.place_sequence = self.lane.store_settled(place, self.place_sequence).await?;
        self.kept = self.place.clone();
        self.kept_at = Instant::now();
        Ok(())
    }
}

async fn next(
    nats: &Admin,
    messages: &mut Ordered,
) -> anyhow::Result<async_nats::jetstream::Message> {
    let next = async { Ok(messages.next().await.context("the consumer ended")??) };
    nats.allowed(next).await
}

/// Whose messages are meant.
struct Source {
    slot: String,
    /// Names of the further tables, as messages tell them.
    further: Vec<String>,
    /// Others that messages of the lane tell.
    unnamed: BTreeSet<String>,
}

impl Source {
    fn of(settings: &Settings) -> Self {
        let further = settings.postgres.further.iter();
        let told = further.filter_map(|table| table.mapping.message.table.clone());
        Source {
            slot: settings.postgres.slot.clone(),
            further: told.collect(),
            unnamed: BTreeSet::new(),
        }
    }

    /// What a message of the stream is to the lane's tables. Of one that the configuration does not name, rows are left alone.
    fn published(&mut self, headers: Option<&HeaderMap>, body: &[u8]) -> Published {
        let header = |name: &str| Some(headers?.get(name)?.as_str());
        let is_own = slot_of(header) == Some(self.slot.as_str());
        let row = || {
            let table = self.table(header(TABLE_HEADER))?;
            let id = event_id::of_headers(event_id::ID_HEADERS.map(header))
                .or_else(|| event_id::of_body(body))?;
            Some(Row { table, id })
        };
        let position = header(POSITION_HEADER).and_then(|value| parse_header(value).ok());
        let published = match (header(KIND_HEADER), position) {
            (None, Some((of_slot, position))) if of_slot == self.slot => {
                row().map(|row| Published::First(position, row))
            }
            (Some(KIND_BACKFILL | KIND_RETRY | KIND_REPLAY), _) if is_own => {
                row().map(Published::Again)
            }
            _ => None,
        };
        let is_event = header(KIND_HEADER).is_none() && is_own;
        if let Some(told) = header(TABLE_HEADER).filter(|_| published.is_none() && is_event) {
            self.passes_over(told);
        }
        published.unwrap_or(Published::Other)
    }

    /// Which table a message tells; none where the configuration does not name it.
    fn table(&self, told: Option<&str>) -> Option<usize> {
        match told {
            None => Some(0),
            Some(told) => Some(1 + self.further.iter().position(|name| name == told)?),
        }
    }

    fn passes_over(&mut self, told: &str) {
        if self.table(Some(told)).is_none() && self.unnamed.insert(told.to_owned()) {
            tracing::warn!(
                "the stream has events of table {told}, which the configuration names no more, so their rows stay: walrelay prune deletes \
                 them once the table is named again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::position::TAIL_HEADER;

    fn of(headers: &[(&str, &str)]) -> Published {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let mut source = Source {
            slot: "s".to_owned(),
            further: vec!["public.orders".to_owned(), "public.audit".to_owned()],
            unnamed: BTreeSet::new(),
        };
        source.published(Some(&map), br#"{"id":7}"#)
    }

    #[test]
    fn only_this_lanes_events_are_rows_of_the_table() {
        let position = "0/10:1".parse().expect("a position");
        let seven = Row {
            table: 0,
            id: "7".to_owned(),
        };
        let own = (POSITION_HEADER, "s 0/10:1");
        assert_eq!(of(&[own]), Published::First(position, seven.clone()));
        let letter = (KIND_HEADER, "dead-letter");
        assert_eq!(of(&[own, letter]), Published::Other);
        // Another lane's table may have the same id.
        assert_eq!(of(&[(POSITION_HEADER, "t 0/10:1")]), Published::Other);
        assert_eq!(of(&[]), Published::Other);
        let backfill = (KIND_HEADER, KIND_BACKFILL);
        assert_eq!(of(&[backfill]), Published::Other);
        assert_eq!(of(&[backfill, (TAIL_HEADER, "t 4")]), Published::Other);
        assert_eq!(
            of(&[backfill, (TAIL_HEADER, "s 4")]),
            Published::Again(seven.clone())
        );
        // Each further table has ids of its own; of one that is not named nothing is known.
        let audit = (TABLE_HEADER, "public.audit");
        let second = Row { table: 2, ..seven };
        assert_eq!(
            of(&[own, audit]),
            Published::First(position, second.clone())
        );
        assert_eq!(
            of(&[backfill, (TAIL_HEADER, "s 4"), audit]),
            Published::Again(second)
        );
        assert_eq!(of(&[own, (TABLE_HEADER, "public.gone")]), Published::Other);
    }
}
