//! What a replay reads: messages of the lane's stream, or rows of the table.
//!
//! In: arguments, settings, the stream. Out: an [`Origin`], and from it a source behind what was published before. Guarantee: reads
//! only.

use anyhow::Context as _;
use chrono::{DateTime, Utc};

use super::Args;
use crate::bulk::fence::lives_there;
use crate::bulk::range::{Bound, Held, History, Sight};
use crate::bulk::readdress::{Destination, Filter};
use crate::bulk::rows::Occurred;
use crate::bulk::stream::{self, Events};
use crate::bulk::{Source, occurred};
use crate::cli::exit::UsageError;
use crate::cli::stderr;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stored::count_from;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// Where the events come from.
pub(super) enum Origin {
    /// The lane's stream.
    Stream {
        info: Box<StreamInfo>,
        events: Events,
        /// Sequences, both in the range; nothing where the first is above the last.
        range: (u64, u64),
        /// The first message of the range.
        begins: Option<Sight>,
    },
    /// The table.
    Table {
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
    },
}

impl Origin {
    pub(super) async fn of_stream(
        args: &Args,
        settings: &Settings,
        nats: &Admin,
        info: StreamInfo,
    ) -> anyhow::Result<Origin> {
        let (stream, slot) = (&settings.nats.stream, &settings.postgres.slot);
        let lane = LaneClient::new(nats, stream, slot)?;
        let record = lane.record().await?.record;
        if let Err(why) = lives_there(record.as_ref(), stream) {
            stderr::line(format_args!("warning: {why}"));
        }
        let history = History::new(nats, &lane, slot, &info, record.as_ref());
        let by_table = match settings.postgres.further.is_empty() {
            true => "; --source table publishes rows that the table still has, by their times",
            // No order is among their rows.
            false => "",
        };
        let range = range(args, stream, by_table, &history).await?;
        let begins = match range.0 > range.1 {
            true => None,
            false => history.at(range.0).await?,
        };
        let of_lane = record.filter(|record| record.created == info.created);
        let events = Events {
            stream: stream.clone(),
            slot: settings.nats.shared.then(|| slot.clone()),
            filters: settings.nats.event_subjects(),
            taken_over_sequence: of_lane.map_or(0, |record| record.taken_over_sequence),
        };
        Ok(Origin::Stream {
            info: Box::new(info),
            events,
            range,
            begins,
        })
    }

    pub(super) async fn of_table(args: &Args, settings: &Settings) -> anyhow::Result<Origin> {
        if !settings.postgres.further.is_empty() {
            return Err(UsageError(
                "--source table: the lane has several tables (source.tables), and no order among their rows but the stream's: \
                 leave --source out to replay from the stream"
                    .to_owned(),
            )
            .into());
        }
        let origin = match (args.from, args.to) {
            (Bound::Time(from), None) => Ok(Origin::Table { from, to: None }),
            (Bound::Time(from), Some(Bound::Time(to))) => Ok(Origin::Table { from, to: Some(to) }),
            _ => Err(UsageError(
                "--source table: the table knows when an event occurred and no LSN: give times such as 2026-11-23T04:40:00Z"
                    .to_owned(),
            )),
        };
        occurred::check(settings).await.context("--source table")?;
        Ok(origin?)
    }

    /// What a person is told of it.
    pub(super) fn explained(&self, settings: &Settings) -> String {
        match self {
            Origin::Stream {
                events,
                range: (first, last),
                begins: Some(begins),
                ..
            } => format!(
                "stream {}, messages {first} to {last}, the first one stored at {}",
                events.stream,
                Bound::Time(begins.time)
            ),
            Origin::Stream { events, .. } => {
                format!("stream {}, which has nothing in this range", events.stream)
            }
            Origin::Table { .. } => format!(
                "table {}, rows that are there now, in the order of occurred_at and not of their commits",
                settings.postgres.table
            ),
        }
    }

    /// What tells it from another one.
    pub(super) fn name(&self, settings: &Settings) -> [String; 2] {
        match self {
            Origin::Stream { info, .. } => [info.config.name.clone(), info.created.clone()],
            Origin::Table { .. } => ["table:".to_owned(), settings.postgres.table.to_string()],
        }
    }

    /// What is left behind the place that was reached.
    pub(super) async fn open(
        &self,
        settings: &Settings,
        reached: Option<&str>,
        (filter, to): (Filter, Destination),
    ) -> anyhow::Result<Option<Source>> {
        match self {
            Origin::Stream { events, range, .. } => Ok(left(*range, reached)?.map(|range| {
                let connection = &settings.nats.connection;
                stream::source(connection, events.clone(), range, filter, to)
            })),
            Origin::Table { .. } => {
                let occurred = self.occurred(reached)?;
                Ok(Some(occurred::source(settings, occurred, filter, to)))
            }
        }
    }

    /// How many messages or rows are left, whether they are wanted or not.
    pub(super) async fn count(
        &self,
        nats: &Admin,
        settings: &Settings,
        reached: Option<&str>,
    ) -> anyhow::Result<u64> {
        let Origin::Stream { info, range, .. } = self else {
            return occurred::count(settings, &self.occurred(reached)?).await;
        };
        let Some((first, last)) = left(*range, reached)? else {
            return Ok(0);
        };
        let span = last - first + 1;
        if info.state.num_deleted == 0 {
            return Ok(span);
        }
        let behind = count_from(nats, &info.config.name, last + 1).await?;
        let count = count_from(nats, &info.config.name, first).await?;
        Ok(count.saturating_sub(behind).min(span))
    }

    fn occurred(&self, reached: Option<&str>) -> anyhow::Result<Occurred> {
        let Origin::Table { from, to } = self else {
            unreachable!("rows are read of the table")
        };
        let read =
            |place| occurred::read_place(place).context("the replay's own header cannot be read");
        Ok(Occurred {
            from: *from,
            to: *to,
            behind: reached.map(read).transpose()?,
        })
    }
}

/// What is left of a range behind the sequence that was reached.
fn left((first, last): (u64, u64), reached: Option<&str>) -> anyhow::Result<Option<(u64, u64)>> {
    let reached: Option<u64> = reached
        .map(str::parse)
        .transpose()
        .context("the replay's own header cannot be read")?;
    let first = first.max(reached.map_or(0, |reached| reached + 1));
    Ok((first <= last).then_some((first, last)))
}

/// The sequences; `by_table` is the other way to what is gone, or empty.
async fn range(
    args: &Args,
    stream: &str,
    by_table: &str,
    history: &History<'_>,
) -> anyhow::Result<(u64, u64)> {
    match history.find(args.from, args.to).await? {
        Held::Between { first, last } if first > last + 1 => Err(UsageError(format!(
            "the range is upside down: in stream {stream}, --from {} is behind --to {}",
            args.from,
            args.to.map_or_else(String::new, |to| to.to_string())
        ))
        .into()),
        Held::Between { first, last } => Ok((first, last)),
        Held::Before { oldest } => anyhow::bail!(
            "stream {stream} has nothing of this lane up to {}: the oldest that it can give is --from {}, stored at {}",
            args.to.map_or_else(String::new, |to| to.to_string()),
            oldest.bound(),
            Bound::Time(oldest.time)
        ),
        Held::Gone { oldest } if history.adopted_at().is_some() && args.from.is_place() => {
            let all = history.at(0).await?;
            let all = all.map_or_else(String::new, |first| {
                let time = Bound::Time(first.time);
                format!(", and with --from {time} all that the stream has")
            });
            let oldest = oldest.map_or_else(
                || "Behind it the lane has published nothing".to_owned(),
                |it| format!("The oldest place behind it is --from {}", it.bound()),
            );
            anyhow::bail!(
                "no range can begin at {}: the lane begins behind message {} of stream {stream}, where it was adopted, set up or came as \
                 a share; the LSNs of the messages up to there are not its own. {oldest}; a time goes across{all}",
                args.from,
                history.adopted_at().unwrap_or_default(),
            )
        }
        Held::Gone {
            oldest: Some(oldest),
        } => anyhow::bail!(
            "stream {stream} no longer holds the events from {} on: the oldest that it can give is --from {}, stored at \
             {}{by_table}",
            args.from,
            oldest.bound(),
            Bound::Time(oldest.time)
        ),
        Held::Gone { oldest: None } => anyhow::bail!(
            "stream {stream} no longer holds the events from {} on, nor any other of this lane{by_table}",
            args.from
        ),
    }
}
