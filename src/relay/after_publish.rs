//! Marks or deletes rows that are published, beside the relay: on connections of its own, not in the relay's way.
//!
//! In: the stream, from where the last run was, and how far the slot is confirmed. Out: statements on the table, in batches.
//! Guarantees: the stream tells which rows are published, so what was published while nobody settled it is settled later; the
//! lane never waits for it, and what it cannot do yet waits in the stream, not in memory. What is due when is
//! [`crate::pipeline::after_publish`]'s.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use futures_util::{FutureExt as _, StreamExt as _};
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

use crate::nats::admin::Admin;
use crate::nats::stored::consume;
use crate::pipeline::after_publish::{AfterPublish, Row, Unseen, Waiting};
use crate::postgres::catalog::inspect;
use crate::postgres::client::{Client, connect};
use crate::postgres::published_rows::{PublishedRows, Refused, Settled, transactions};
use crate::relay::board::Board;
use crate::relay::lane_client::LaneClient;
use crate::relay::open;
use crate::relay::settings::Settings;

mod others;
mod source;

use others::OtherLane;
use source::Source;

/// Rows in one statement.
const BATCH_ROWS: usize = 1_000;
/// How often it is looked whether more is confirmed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often the place in the stream is kept, while it changes.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked for other lanes of the tables, while rows are deleted.
const OTHERS_INTERVAL: Duration = Duration::from_secs(1);
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
    let opened = async {
        let inspection = inspect(&sql, &settings.postgres).await?;
        PublishedRows::open(&sql, &inspection, &settings.postgres, after).await
    };
    if after == AfterPublish::Delete
        && let Ok(nats) = Admin::connect(&settings.nats.connection).await
        && let Ok(Some(other)) = OtherLane::find(&nats, &sql, settings).await
    {
        return Err(other.into());
    }
    match opened.await {
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

/// Settles the rows of a lane whose slot is confirmed through all that it had, once: it is no more.
///
/// # Errors
/// Postgres or NATS refuse.
#[cfg(feature = "cli")]
pub(crate) async fn settle_rest(settings: &Settings) -> anyhow::Result<()> {
    if settings.outbox.after_publish == AfterPublish::Keep {
        return Ok(());
    }
    let mut settling = Settling::open(settings).await?;
    loop {
        settling.settle_due(u64::MAX.into()).await?;
        if settling.unread == 0 {
            return Ok(());
        }
        let message = next(&settling.nats, &mut settling.messages).await?;
        settling.take(message)?;
        settling.take_more()?;
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
struct Settling<'s> {
    settings: &'s Settings,
    /// When it was looked for other lanes; none before the first look.
    others_at: Option<Instant>,
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

impl<'s> Settling<'s> {
    async fn open(settings: &'s Settings) -> anyhow::Result<Self> {
        let after = settings.outbox.after_publish;
        let sql = connect(&settings.postgres.conninfo).await?;
        let nats = Admin::connect(&settings.nats.connection).await?;
        let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
        let lane = LaneClient::new(&nats, stream, slot)?;
        let info = lane.stream().await?;
        let record = lane.record().await?.record;
        // One look: rows are settled in the tables by whose OIDs messages are told apart.
        let inspection = inspect(&sql, &settings.postgres).await?;
        let rows = PublishedRows::open(&sql, &inspection, &settings.postgres, after).await?;
        let recorded = record.as_ref().map_or(&[][..], |record| &record.tables);
        let outboxes = open::source(&inspection, settings)
            .continued(recorded, 0.into())
            .outboxes;
        let mut source = Source::of(settings);
        for (outbox, found) in outboxes.iter().zip(inspection.tables()) {
            let oid = found.table.as_ref().map_or(0, |table| table.oid);
            ensure!(
                outbox.tables.is_met(oid),
                "table {} is another one since, and the relay has not come to its first row yet",
                outbox.tables.current().table
            );
        }
        source.former = open::formers(&inspection, settings, record.as_ref(), &info.created);
        let adopted = record.filter(|record| record.created == info.created);
        let adopted_sequence = adopted.map_or(0, |record| record.adopted_sequence);
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
        let (messages, unread) = consume(&nats, stream, config).await?;
        Ok(Settling {
            settings,
            others_at: None,
            source,
            sql,
            rows,
            nats: nats.clone(),
            lane,
            messages,
            waiting: Waiting::new(after, adopted_sequence),
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
            let confirmed_lsn = board.status().marks.confirmed_lsn.into();
            let settled = self.settle_due(confirmed_lsn).await?;
            board.settled(settled, self.left());
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
            .published(sequence, message.headers.as_ref(), &message.payload);
        self.waiting.take(sequence, published);
        Ok(())
    }

    /// Messages of the stream that are not done with.
    fn left(&self) -> u64 {
        self.unread + (self.waiting.len() + self.unseen.len()) as u64
    }

    /// Settles all that is due where the slot is confirmed through `confirmed_lsn`; how many rows there were.
    async fn settle_due(&mut self, confirmed_lsn: PgLsn) -> anyhow::Result<u64> {
        let now = self.begun.elapsed();
        let mut rows = self.look_again(now).await?;
        while let Some(due) = self.waiting.due(confirmed_lsn, BATCH_ROWS) {
            if !due.rows.is_empty() {
                let settled = self.settle(&due.rows).await?;
                rows += settled.rows;
                if !settled.unseen.is_empty() {
                    let (_, xmax) = transactions(&self.sql).await?;
                    self.unseen.keep(self.looked_at, xmax, settled.unseen, now);
                }
            }
            self.looked_at = due.through;
        }
        self.place.sequence = self.unseen.done_through(self.looked_at);
        Ok(rows)
    }

    /// Settles rows of the tables that were there at the beginning.
    async fn settle(&mut self, rows: &[Row]) -> anyhow::Result<Settled> {
        self.look_for_others().await?;
        let settled = self.rows.settle(&self.sql, rows).await?;
        if !settled.unseen.is_empty()
            && let Some(name) = self.rows.replaced(&self.sql).await?
        {
            bail!("table {name} is another one now: its messages are told apart anew");
        }
        Ok(settled)
    }

    /// Rows are not deleted beside another lane of their table.
    async fn look_for_others(&mut self) -> anyhow::Result<()> {
        let is_fresh = (self.others_at).is_some_and(|at| at.elapsed() < OTHERS_INTERVAL);
        if self.settings.outbox.after_publish != AfterPublish::Delete || is_fresh {
            return Ok(());
        }
        if let Some(other) = OtherLane::find(&self.nats, &self.sql, self.settings).await? {
            return Err(other.into());
        }
        self.others_at = Some(Instant::now());
        Ok(())
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
            let settled = self.settle(these).await?;
            rows += settled.rows;
            still.extend(settled.unseen);
        }
        if self.settings.outbox.after_publish == AfterPublish::Delete
            && let Some(why) = self.rows.kept(&self.sql, &still).await?
        {
            bail!(why);
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
