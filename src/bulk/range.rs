//! Where a range of a lane's history stands in its stream, found by bisection: positions and times rise with the sequence.
//!
//! In: a stream and its slot, from where to where. Out: sequences, or the oldest place that the stream can give. Guarantees: reads
//! only; removed messages, others' and copies are passed over; a range whose beginning the stream has removed is no range.

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use chrono::{DateTime, SecondsFormat, Utc};
use postgres_types::PgLsn;
use std::fmt;
use std::str::FromStr;

use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stored::{StoredMessages, header};
use crate::pipeline::end_search::{Lookup, StoredMessage};
use crate::pipeline::position::{
    BATCH_HEADER, EXPECTED_HEADER, KIND_HEADER, POSITION_HEADER, Position, TAIL_HEADER,
};
use crate::pipeline::record::LaneRecord;
use crate::pipeline::shared_end_search::FENCE_PREFIX;
use crate::relay::lane_client::LaneClient;

/// So many messages that tell no place are asked for one by one; then they are read in bulk.
const STEPS_MAX: usize = 32;

/// One end of a range, itself in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A transaction, by its commit.
    Lsn(PgLsn),
    /// An event.
    Position(Position),
    /// When the stream stored a message.
    Time(DateTime<Utc>),
}

/// A text that is no [`Bound`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "give an LSN such as 16/B374D848, a position such as 16/B374D848:3, or a time such as 2026-11-23T04:40:00Z"
)]
pub struct BoundError;

impl FromStr for Bound {
    type Err = BoundError;

    fn from_str(text: &str) -> Result<Self, BoundError> {
        if let Ok(lsn) = text.parse() {
            return Ok(Bound::Lsn(lsn));
        }
        if let Ok(position) = text.parse() {
            return Ok(Bound::Position(position));
        }
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| BoundError)?;
        Ok(Bound::Time(time.with_timezone(&Utc)))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Lsn(lsn) => write!(f, "{lsn}"),
            Bound::Position(position) => write!(f, "{position}"),
            Bound::Time(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
        }
    }
}

impl Bound {
    /// Whether no range can begin here and end at `to`. A place and a time are compared in the stream.
    pub fn is_behind(self, to: Bound) -> bool {
        match (self.places(), to.places()) {
            (Some((first, _)), Some((_, last))) => first > last,
            (None, None) => matches!((self, to), (Bound::Time(from), Bound::Time(to)) if from > to),
            _ => false,
        }
    }

    /// Whether it is a place in the WAL.
    pub fn is_place(self) -> bool {
        self.places().is_some()
    }

    /// The first and the last position that it means; none of a time.
    fn places(self) -> Option<(Position, Position)> {
        let at = |commit_lsn, ordinal| Position {
            commit_lsn,
            ordinal,
        };
        match self {
            Bound::Lsn(lsn) => Some((at(lsn, 1), at(lsn, u64::MAX))),
            Bound::Position(position) => Some((position, position)),
            Bound::Time(_) => None,
        }
    }

    /// Whether a range that begins here has begun.
    fn has_begun(self, at: &Sight) -> bool {
        match (self, self.places()) {
            (Bound::Time(time), _) => at.time >= time,
            (_, places) => at.place >= places.map(|(first, _)| first),
        }
    }

    /// Whether a range that ends here has ended.
    fn has_ended(self, at: &Sight) -> bool {
        match (self, self.places()) {
            (Bound::Time(time), _) => at.time > time,
            (_, places) => at.place > places.map(|(_, last)| last),
        }
    }

    /// Whether what a range that begins here needs may have stood before the stream's first message.
    fn is_before(self, first: &Sight) -> bool {
        match (self, self.places()) {
            (Bound::Time(time), _) => time < first.time,
            (_, Some((begin, _))) if first.is_own => Some(begin) < first.place,
            (_, places) => places.map(|(begin, _)| begin) <= first.place,
        }
    }

    /// Whether a range that begins here begins with all that the stream has of the lane: `first` is the first message in it, and
    /// `oldest` the first that tells a place. What a backfill or a retry published before the lane's first event tells none, so a
    /// range with nothing of the lane's own before it has that too.
    fn begins_with_the_lane(self, first: u64, oldest: Option<&Sight>, to: Option<Bound>) -> bool {
        let ends_before = |oldest: &Sight| {
            let to = to.filter(|to| to.is_place());
            to.is_some_and(|to| to.has_ended(oldest))
        };
        self.is_place()
            && oldest.is_none_or(|oldest| oldest.sequence >= first && !ends_before(oldest))
    }
}

/// What a message tells of where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Its sequence.
    pub sequence: u64,
    /// When it was stored.
    pub time: DateTime<Utc>,
    /// Its own place in the lane, or the lane's last one before it.
    pub place: Option<Position>,
    /// It is its own place.
    pub is_own: bool,
}

impl Sight {
    /// The bound by which a range begins with this message.
    pub fn bound(&self) -> Bound {
        match self.place.filter(|_| self.is_own) {
            Some(place) => Bound::Position(place),
            None => Bound::Time(self.time),
        }
    }
}

/// A range, where the stream holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Between these sequences, both in it; nothing where the first is above the last.
    Between {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// It ends before the stream's first message, or before the lane's first place there.
    Before {
        /// The oldest message that a range can begin with.
        oldest: Sight,
    },
    /// Its beginning is gone.
    Gone {
        /// The oldest message that a range can begin with; none where there is none.
        oldest: Option<Sight>,
    },
}

/// A lane's stream, to be searched.
#[derive(Debug)]
pub struct History<'a> {
    nats: &'a Admin,
    lane: &'a LaneClient,
    name: &'a str,
    slot: &'a str,
    /// Messages before this sequence were removed, or never were.
    first: u64,
    last: u64,
    has_removed: bool,
    /// Positions up to here are of another server.
    adopted: u64,
}

impl<'a> History<'a> {
    /// The stream as `info` and the lane's record tell of it.
    pub fn new(
        nats: &'a Admin,
        lane: &'a LaneClient,
        slot: &'a str,
        info: &'a StreamInfo,
        record: Option<&LaneRecord>,
    ) -> Self {
        let record = record.filter(|record| record.created == info.created);
        let state = &info.state;
        History {
            nats,
            lane,
            name: &info.config.name,
            slot,
            first: state.first_seq,
            last: state.last_seq,
            has_removed: state.first_seq > info.config.first_seq.max(1),
            adopted: record.map_or(0, |record| record.adopted_sequence),
        }
    }

    /// The message up to which positions are of another history, since the lane was adopted there; none where the stream has none
    /// of them.
    pub fn adopted_at(&self) -> Option<u64> {
        (self.adopted >= self.first).then_some(self.adopted)
    }

    /// Looks for the range.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn find(&self, from: Bound, to: Option<Bound>) -> anyhow::Result<Held> {
        let begin = self.begin(from);
        let oldest = self.sight(begin, from.is_place()).await?;
        if (self.has_removed || begin > self.first)
            && oldest.as_ref().is_none_or(|oldest| from.is_before(oldest))
        {
            return Ok(Held::Gone { oldest });
        }
        let first = match oldest {
            Some(_) => self.search(from, |at| from.has_begun(at)).await?,
            None => self.last + 1,
        };
        let first = match from.begins_with_the_lane(first, oldest.as_ref(), to) {
            true => begin,
            false => first,
        };
        let Some(to) = to else {
            let last = self.last;
            return Ok(Held::Between { first, last });
        };
        let last = self.search(to, |at| to.has_ended(at)).await? - 1;
        if first == last + 1 {
            let begun = self.sight(self.begin(to), to.is_place()).await?;
            if let Some(begun) = begun.filter(|begun| to.has_ended(begun)) {
                let oldest = self.at(begin).await?.unwrap_or(begun);
                return Ok(Held::Before { oldest });
            }
        }
        Ok(Held::Between { first, last })
    }

    /// The first message at or behind `from`, and the place that it tells.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn at(&self, from: u64) -> anyhow::Result<Option<Sight>> {
        self.sight(from, false).await
    }

    fn begin(&self, bound: Bound) -> u64 {
        match bound.places() {
            Some(_) => self.first.max(self.adopted + 1),
            None => self.first,
        }
    }

    /// The first message for which it holds, of those that tell what is asked for; behind the last one where there is none.
    async fn search(&self, bound: Bound, holds: impl Fn(&Sight) -> bool) -> anyhow::Result<u64> {
        let with_place = bound.places().is_some();
        let (mut low, mut high) = (self.begin(bound), self.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.sight(middle, with_place).await? {
                Some(at) if at.sequence < high && !holds(&at) => low = at.sequence + 1,
                _ => high = middle,
            }
        }
        let at = self.sight(low, with_place).await?;
        Ok(at.map_or(self.last + 1, |at| at.sequence))
    }

    /// What the first message at or behind `from` tells; the first that tells a place where that is asked for.
    async fn sight(&self, mut from: u64, with_place: bool) -> anyhow::Result<Option<Sight>> {
        for _ in 0..STEPS_MAX {
            let lookup = Lookup::Next { from, filter: ">" };
            let Some(message) = self.lane.message(lookup).await? else {
                return Ok(None);
            };
            if message.seq > self.last {
                return Ok(None);
            }
            let time = message.time.parse().context("a message without its time")?;
            let is_fence = message.subject.starts_with(FENCE_PREFIX);
            let place = self.place(message.seq, is_fence, |name| message.header_text(name));
            if place.is_some() || !with_place {
                return Ok(Some(sight(message.seq, time, place)));
            }
            from = message.seq + 1;
        }
        self.sight_in_bulk(from).await
    }

    async fn sight_in_bulk(&self, from: u64) -> anyhow::Result<Option<Sight>> {
        if from > self.last {
            return Ok(None);
        }
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            headers_only: true,
            ..OrderedConfig::default()
        };
        let mut messages = StoredMessages::from(self.nats, self.name, config).await?;
        while messages.left() > 0 {
            let (sequence, message) = messages.next().await?;
            if sequence > self.last {
                break;
            }
            let is_fence = message.subject.starts_with(FENCE_PREFIX);
            let place = self.place(sequence, is_fence, |name| header(&message, name));
            if place.is_some() {
                let Ok(info) = message.info() else {
                    bail!("a message without its time")
                };
                let nanos = info.published.unix_timestamp_nanos();
                let time = DateTime::from_timestamp_nanos(i64::try_from(nanos)?);
                return Ok(Some(sight(sequence, time, place)));
            }
        }
        Ok(None)
    }

    /// The place that a message of this lane tells, and whether it is its own.
    fn place<'m>(
        &self,
        sequence: u64,
        is_fence: bool,
        header: impl Fn(&str) -> Option<&'m str>,
    ) -> Option<(Position, bool)> {
        let tail = header(TAIL_HEADER);
        let message = StoredMessage {
            sequence,
            position: header(POSITION_HEADER),
            tail,
            expected_sequence: header(EXPECTED_HEADER),
            is_fence,
            in_batch: header(BATCH_HEADER).is_some(),
            kind: header(KIND_HEADER),
            table: None,
            id: [None; 2],
            body: &[],
        };
        // A replay beside others has no place but that of its event.
        if tail.is_none() && !message.is_first_publication() {
            return None;
        }
        let told = message.told_by(self.slot)?;
        Some((told.position, tail.is_none()))
    }
}

fn sight(sequence: u64, time: DateTime<Utc>, place: Option<(Position, bool)>) -> Sight {
    Sight {
        sequence,
        time,
        place: place.map(|(place, _)| place),
        is_own: place.is_some_and(|(_, is_own)| is_own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(text: &str) -> Bound {
        text.parse().expect(text)
    }

    fn at(place: &str, is_own: bool) -> Sight {
        Sight {
            sequence: 1,
            time: "2026-11-23T04:40:00Z".parse().expect("a time"),
            place: Some(place.parse().expect("a position")),
            is_own,
        }
    }

    #[test]
    fn bounds_are_lsns_positions_and_times() {
        assert_eq!(bound("1/A"), Bound::Lsn(0x1_0000_000A.into()));
        assert!(matches!(bound("1/A:3"), Bound::Position(_)));
        let time = bound("2026-11-23T05:40:00+01:00");
        assert_eq!(time.to_string(), "2026-11-23T04:40:00Z");
        for bad in [
            "",
            "1",
            "1/",
            "yesterday",
            "2026-11-23",
            "2026-11-23T04:40:00",
            "1/A:",
            "w 1/A:3",
        ] {
            assert_eq!(bad.parse::<Bound>(), Err(BoundError), "{bad:?}");
        }
    }

    #[test]
    fn a_range_of_places_begins_with_the_lane_where_nothing_of_its_own_is_before_it() {
        let oldest = Sight {
            sequence: 11,
            ..at("1/A:1", true)
        };
        for (from, first, to, expected) in [
            ("0/1", 11, None, true),
            ("1/A", 11, None, true),
            ("1/A:2", 12, None, false),
            ("1/B", 16, None, false),
            ("0/1", 11, Some("1/A"), true),
            ("0/1", 11, Some("0/2"), false),
            ("0/1", 11, Some("2026-11-23T04:39:00Z"), true),
            ("2026-11-23T04:40:00Z", 11, None, false),
        ] {
            let to = to.map(bound);
            let begins = bound(from).begins_with_the_lane(first, Some(&oldest), to);
            assert_eq!(begins, expected, "{from} {to:?}");
        }
        // No message tells a place.
        assert!(bound("0/1").begins_with_the_lane(11, None, None));
    }

    #[test]
    fn a_range_is_upside_down_only_where_both_ends_tell_it() {
        for (from, to, expected) in [
            ("1/B", "1/A", true),
            ("1/A", "1/A", false),
            ("1/A:5", "1/A", false),
            ("1/A:5", "1/A:4", true),
            ("1/B", "1/A:9", true),
            ("2026-11-24T00:00:00Z", "2026-11-23T00:00:00Z", true),
            ("2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", false),
            ("1/B", "2026-11-23T00:00:00Z", false),
        ] {
            assert_eq!(bound(from).is_behind(bound(to)), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_transaction_is_in_the_range_as_a_whole() {
        assert!(bound("1/A").has_begun(&at("1/A:1", true)));
        assert!(!bound("1/A").has_begun(&at("1/9:7", true)));
        assert!(!bound("1/A").has_ended(&at("1/A:7", true)));
        assert!(bound("1/A").has_ended(&at("1/B:1", true)));
        assert!(bound("1/A:3").has_ended(&at("1/A:4", true)));
    }

    #[test]
    fn a_stream_without_its_beginning_gives_what_begins_with_its_first_message() {
        assert!(!bound("1/A").is_before(&at("1/A:1", true)));
        // The transaction's first row was removed.
        assert!(bound("1/A").is_before(&at("1/A:2", true)));
        assert!(!bound("1/A:2").is_before(&at("1/A:2", true)));
        // The event itself stood before the message that tells of it.
        assert!(bound("1/A:2").is_before(&at("1/A:2", false)));
        assert!(!bound("1/A:3").is_before(&at("1/A:2", false)));
    }
}
