//! The stream's side: what the lane has published, in the stream's order.
//!
//! In: a stream, from where to read, the snapshot's LSN. Out: an entry a message, and what is wrong with the order.
//! Guarantees: each stored message is looked at once, also over several calls; nothing is kept but entries, and the places
//! of retries until their marks come.

use anyhow::{Context as _, bail, ensure};
use async_nats::HeaderMap;
use postgres_types::PgLsn;
use std::collections::BTreeSet;

use super::key::{self, key};
use super::sort::{Entries, Entry, Kind};
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::stream;
use crate::pipeline::dead_letter::state::{Mark, State, Told};
use crate::pipeline::event_id;
use crate::pipeline::position::{
    DEAD_LETTER_HEADER, KIND_ADOPTED, KIND_BACKFILL, KIND_DEAD_LETTER, KIND_ERASED, KIND_FENCED,
    KIND_HEADER, KIND_RETRY, POSITION_HEADER, Position, RETRY_HEADER, TABLE_HEADER, parse_header,
    slot_of,
};
use crate::pipeline::record::LaneRecord;
use crate::pipeline::shared_end_search::{bulk_fence_subject, fence_subject};
use crate::pipeline::tables::Former;

mod read;

pub(super) use read::{MEMORY_LOOK_MESSAGES, read_on};

/// How many of each kind are named.
pub(super) const SAMPLES_MAX: usize = 20;

/// A message that stands where it must not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misplaced {
    pub(super) sequence: u64,
    pub(super) position: Position,
    /// The position before which it should stand.
    pub(super) behind: Position,
}

/// The reading for one table, and what it has found.
#[derive(Debug)]
pub(super) struct LaneReading {
    name: String,
    slot: String,
    /// The further table that is compared; none for the lane's own.
    table: Option<String>,
    snapshot_lsn: PgLsn,
    /// End of the server's WAL, later than the last message to be read.
    server_lsn: PgLsn,
    /// The order begins anew behind the lane's adoption.
    adopted_sequence: u64,
    /// What is of another table, which was the outbox before.
    former: Option<Former>,
    /// Up to here events without a position count: another relay published them.
    taken_over_sequence: u64,
    is_adopted: bool,
    created: String,
    next: u64,
    /// The first position of the lane's history in the stream.
    first: Option<Position>,
    /// The highest position of a first publication.
    lane_end: Option<Position>,
    first_sequence: u64,
    /// Messages that are between those that were read, or before them.
    unread: u64,
    /// Of these, before the first that was read.
    unread_front: u64,
    /// Whether retention may remove messages that have older ones before them.
    keeps_some_per_subject: bool,
    /// Whether retention removed messages while they were read.
    front_moved: bool,
    /// Dead letters of which a retry was met, and no mark behind it yet.
    retries: BTreeSet<Position>,
    pub(super) removed_inside: u64,
    pub(super) messages: u64,
    pub(super) events: u64,
    pub(super) dead_letters: u64,
    pub(super) dead_letters_without_id: u64,
    /// Discarded ones of these, no longer counted there.
    pub(super) discarded_without_id: u64,
    /// Replays, retries, backfills.
    pub(super) again: u64,
    /// Messages that only tell where the lane is, or what has become of a dead letter.
    pub(super) marks: u64,
    /// Messages of other slots, or of no relay.
    pub(super) foreign: u64,
    /// Messages of other tables of the lane; in the look at a further one, those of no table too.
    pub(super) of_other_tables: u64,
    pub(super) out_of_order: u64,
    pub(super) misplaced: Vec<Misplaced>,
}

impl LaneReading {
    /// Begins at the stream's first message.
    pub(super) fn new(
        info: &StreamInfo,
        name: &str,
        slot: &str,
        table: Option<&str>,
        record: Option<&LaneRecord>,
        snapshot_lsn: PgLsn,
    ) -> Self {
        let record = record.filter(|record| record.created == info.created);
        // A stream that was set back below one of them: what comes there now is the lane's own.
        let of_stream =
            |sequence: fn(&LaneRecord) -> u64| record.map_or(0, sequence).min(info.state.last_seq);
        LaneReading {
            name: name.to_owned(),
            slot: slot.to_owned(),
            table: table.map(str::to_owned),
            snapshot_lsn,
            server_lsn: snapshot_lsn,
            adopted_sequence: of_stream(|record| record.adopted_sequence),
            taken_over_sequence: of_stream(|record| record.taken_over_sequence),
            former: None,
            is_adopted: false,
            created: info.created.clone(),
            next: info.config.first_seq.max(1),
            first: None,
            lane_end: None,
            first_sequence: info.state.first_seq,
            unread: 0,
            unread_front: 0,
            keeps_some_per_subject: info.config.max_msgs_per_subject > 0,
            front_moved: false,
            retries: BTreeSet::new(),
            removed_inside: 0,
            messages: 0,
            events: 0,
            dead_letters: 0,
            dead_letters_without_id: 0,
            discarded_without_id: 0,
            again: 0,
            marks: 0,
            foreign: 0,
            of_other_tables: 0,
            out_of_order: 0,
            misplaced: Vec::new(),
        }
    }

    /// With messages of another table, which was the outbox before.
    pub(super) fn beside(mut self, former: Option<Former>) -> Self {
        self.former = former.map(|former| former.behind(self.adopted_sequence));
        self
    }

    pub(super) fn former(&self) -> Option<Former> {
        self.former
    }

    async fn info(&self, nats: &Admin) -> anyhow::Result<StreamInfo> {
        let info = stream::find(nats, &self.name)
            .await?
            .with_context(|| format!("there is no stream {}", self.name))?;
        if info.created != self.created {
            bail!("stream {} was deleted and made anew meanwhile", self.name);
        }
        Ok(info)
    }

    /// Begins to read on in the stream as it is now.
    fn begin(&mut self, info: &StreamInfo, server_lsn: PgLsn) -> anyhow::Result<()> {
        self.first_sequence = info.state.first_seq;
        self.removed_inside = info.state.num_deleted;
        let end = info.state.last_seq;
        ensure!(
            end + 1 >= self.next,
            "stream {} ends at {end}, and was read up to {}: the broker has lost messages meanwhile",
            self.name,
            self.next - 1
        );
        self.server_lsn = server_lsn;
        let removed = self.first_sequence.saturating_sub(self.next);
        self.unread += removed;
        self.unread_front += removed;
        self.next += removed;
        Ok(())
    }

    /// Sequence of the last message that was read; what is behind it was not looked at.
    pub(super) fn read_through(&self) -> u64 {
        self.next - 1
    }

    /// Most messages that retention may have removed before they were read. Where it removes only from the front, what is
    /// absent behind a message that was read was deleted or lost.
    pub(super) fn removed_max(&self) -> u64 {
        if self.only_front_removed() {
            self.unread_front
        } else {
            self.unread
        }
    }

    pub(super) fn only_front_removed(&self) -> bool {
        !self.keeps_some_per_subject && !self.front_moved
    }

    /// The highest position of a first publication that was read.
    pub(super) fn lane_end(&self) -> Option<Position> {
        self.lane_end
    }

    /// What it means for a row without a message that the slot holds it at `position`, where a relay publishes nothing more up to
    /// `reach`; none where that tells nothing.
    pub(super) fn held(&self, position: Position, reach: Option<Position>) -> Option<Kind> {
        if reach.is_none_or(|reach| position > reach) {
            return Some(Kind::Pending);
        }
        let is_before = self.first.is_none_or(|first| position < first);
        // Before its adoption the stream has nothing of this history.
        let has_removed = self.removed_max() > 0 && self.first_sequence > self.adopted_sequence + 1;
        if is_before && has_removed {
            Some(Kind::Removed)
        } else {
            self.only_front_removed().then_some(Kind::Passed)
        }
    }

    fn take(
        &mut self,
        sequence: u64,
        subject: &str,
        headers: Option<&HeaderMap>,
        body: &[u8],
        entries: &mut Entries,
    ) -> anyhow::Result<()> {
        self.messages += 1;
        let header = |name: &str| Some(headers?.get(name)?.as_str());
        let kind = header(KIND_HEADER);
        let own = |name: &str| {
            let (slot, position) = parse_header(header(name)?).ok()?;
            (slot == self.slot).then_some(position)
        };
        let position = own(POSITION_HEADER);
        if header(TABLE_HEADER) != self.table.as_deref() {
            // Its place is in the order of this lane nevertheless.
            if let (None | Some(KIND_DEAD_LETTER), Some(position)) = (kind, position) {
                self.check_order(sequence, position);
            }
            self.of_other_tables += 1;
            return Ok(());
        }
        let id = id_of(headers, body);
        let former = self.former;
        let is_former = |id: &str| former.is_some_and(|it| it.has(sequence, id, header));
        let letter = header(DEAD_LETTER_HEADER);
        if let Some(Told::Mark(letter, state)) = Told::of(&self.slot, kind, None, letter) {
            return self.take_mark(sequence, (letter, state), is_former, body, entries);
        }
        let is_former = id.is_some_and(|id| is_former(&key::text(id)));
        let as_it_is = |kind| match is_former {
            true => Kind::Former,
            false => kind,
        };
        if kind == Some(KIND_RETRY) {
            self.retries.extend(own(RETRY_HEADER));
        }
        let (kind, position) = match (kind, position) {
            (None, Some(position)) => (Kind::Event, position),
            (Some(KIND_DEAD_LETTER), Some(position)) => (Kind::DeadLetter, position),
            // Of another lane, whose table may have the same ids.
            (Some(_), _) if slot_of(header) != Some(self.slot.as_str()) => {
                self.foreign += 1;
                return Ok(());
            }
            (Some(KIND_ADOPTED | KIND_ERASED | KIND_FENCED), _) => {
                self.marks += 1;
                return Ok(());
            }
            // None of these has a place in the lane; its event is there nevertheless.
            (Some(kind), _) => {
                self.again += 1;
                let kind = match kind {
                    KIND_BACKFILL | KIND_RETRY => Kind::Fill,
                    _ => Kind::Replay,
                };
                if let Some(id) = id {
                    entries.push(Entry::new(id, as_it_is(kind), sequence))?;
                }
                return Ok(());
            }
            (None, None) if id.is_some() && sequence <= self.taken_over_sequence => {
                self.events += 1;
                if let Some(id) = id {
                    entries.push(Entry::new(id, as_it_is(Kind::Event), sequence))?;
                }
                return Ok(());
            }
            (None, None) => {
                // In a shared stream each epoch and each batch has a message of its own there.
                if subject == fence_subject(&self.name, &self.slot)
                    || subject == bulk_fence_subject(&self.name, &self.slot)
                {
                    self.marks += 1;
                } else {
                    self.foreign += 1;
                }
                return Ok(());
            }
        };
        self.check_order(sequence, position);
        match (kind, id) {
            (Kind::DeadLetter, id) => {
                self.dead_letters += 1;
                match id {
                    Some(id) if !is_former => {
                        entries.push(Entry::new(id, Kind::DeadLetter, sequence))?;
                    }
                    // Its id is no row's of this table.
                    _ => self.dead_letters_without_id += 1,
                }
            }
            (_, Some(id)) => {
                self.events += 1;
                // What stands above the server's WAL is of another history, as is what was adopted.
                let is_later = sequence > self.adopted_sequence
                    && position.commit_lsn >= self.snapshot_lsn
                    && position.commit_lsn < self.server_lsn;
                let kind = if is_later {
                    Kind::LaterEvent
                } else {
                    Kind::Event
                };
                entries.push(Entry::new(id, as_it_is(kind), sequence))?;
            }
            (_, None) => bail!(
                "message {sequence} of stream {} carries position {position} and no id",
                self.name
            ),
        }
        Ok(())
    }

    /// A dead letter has got this state.
    fn take_mark(
        &mut self,
        sequence: u64,
        (letter, state): (Position, State),
        is_former: impl Fn(&str) -> bool,
        body: &[u8],
        entries: &mut Entries,
    ) -> anyhow::Result<()> {
        self.marks += 1;
        let mark: Mark = serde_json::from_slice(body)
            .with_context(|| format!("the mark at sequence {sequence} of stream {}", self.name))?;
        let kind = match (state, mark.was) {
            (State::Discarded, _) => Kind::Discarded,
            (_, State::Discarded) => Kind::Reclaimed,
            _ => Kind::Retried,
        };
        // A retry is stored before its mark.
        let is_unproven = state == State::Retried && !self.retries.remove(&letter);
        match mark.id.as_deref().filter(|id| !is_former(id)).map(key) {
            Some(id) => {
                entries.push(Entry::new(id, kind, sequence))?;
                if is_unproven {
                    entries.push(Entry::new(id, Kind::Unproven, sequence))?;
                }
            }
            None if is_unproven && self.unread == 0 => {}
            None => {
                if kind != Kind::Reclaimed {
                    let open = &mut self.dead_letters_without_id;
                    *open = open.saturating_sub(1);
                }
                let discarded = &mut self.discarded_without_id;
                match kind {
                    Kind::Discarded => *discarded += 1,
                    Kind::Reclaimed => *discarded = discarded.saturating_sub(1),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check_order(&mut self, sequence: u64, position: Position) {
        if sequence > self.adopted_sequence && !self.is_adopted {
            // Another database's LSNs need not be higher.
            self.is_adopted = true;
            self.first = None;
            self.lane_end = None;
        }
        self.first.get_or_insert(position);
        match self.lane_end {
            Some(lane_end) if position <= lane_end => {
                self.out_of_order += 1;
                if self.misplaced.len() < SAMPLES_MAX {
                    self.misplaced.push(Misplaced {
                        sequence,
                        position,
                        behind: lane_end,
                    });
                }
            }
            _ => self.lane_end = Some(position),
        }
    }
}

/// The key of a message's event id.
pub(super) fn id_of(headers: Option<&HeaderMap>, body: &[u8]) -> Option<u128> {
    let header = |name: &str| Some(headers?.get(name)?.as_str());
    id(event_id::ID_HEADERS.map(header), body)
}

/// The key of the event's id: in an envelope it stands first, whatever the payload's size.
fn id(headers: [Option<&str>; 2], body: &[u8]) -> Option<u128> {
    const BEGIN: &[u8] = b"{\"id\":\"";
    if let Some(id) = event_id::of_headers(headers) {
        return Some(key(&id));
    }
    let begun = body
        .strip_prefix(BEGIN)
        .and_then(|rest| rest.get(..37))
        .and_then(|rest| rest.strip_suffix(b"\""))
        // A shorter id may have another text's quote there.
        .filter(|id| !id.contains(&b'"') && !id.contains(&b'\\'))
        .and_then(|id| std::str::from_utf8(id).ok());
    match begun {
        Some(id) => Some(key(id)),
        None => Some(key(&event_id::of_body(body)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_headers_envelopes_and_other_json() {
        let uuid = "0190b6a0-0000-7000-8000-000000000001";
        let expected = Some(key(uuid));
        let of_body = |body: &str| id([None; 2], body.as_bytes());
        assert_eq!(of_body(&format!("{{\"id\":\"{uuid}\",\"x\":1}}")), expected);
        assert_eq!(
            of_body(&format!("{{\"x\":1, \"id\": \"{uuid}\"}}")),
            expected
        );
        assert_eq!(of_body("{\"id\":7}"), Some(key("7")));
        assert_eq!(of_body("{\"id\":null}"), None);
        assert_eq!(of_body("{\"id\":\"short\"}"), Some(key("short")));
        // The 37th byte behind the quote is one again.
        let short = "{\"id\":\"78\",\"aggregate_id\":\"w\",\"event_type\":\"made\"}";
        assert_eq!(short.as_bytes()[7 + 36], b'"');
        assert_eq!(of_body(short), Some(key("78")));
        assert_eq!(id([None; 2], b"\xff"), None);
        assert_eq!(id([Some("8"), None], b"{\"id\":7}"), Some(key("8")));
    }

    #[test]
    fn a_mark_closes_a_dead_letter_without_an_id_too() {
        let info = StreamInfo::parse(br#"{"created":"c","config":{},"state":{}}"#).unwrap();
        let mut lane = LaneReading::new(&info, "S", "a", None, None, 0.into());
        let mut entries = Entries::default();
        for (sequence, kind, was, expected) in [
            (1, "dead-letter", "open", (1, 0)),
            // Of which no retry was met.
            (2, "retried", "open", (1, 0)),
            (3, "discarded", "open", (0, 1)),
            (4, "retry", "discarded", (0, 1)),
            (5, "retried", "discarded", (0, 0)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(KIND_HEADER, kind);
            headers.insert(POSITION_HEADER, "a 0/10:1");
            headers.insert(DEAD_LETTER_HEADER, "a 0/10:1");
            headers.insert(RETRY_HEADER, "a 0/10:1");
            let body = format!("{{\"id\":null,\"was\":\"{was}\"}}");
            lane.take(
                sequence,
                "walrelay.dead.a",
                Some(&headers),
                body.as_bytes(),
                &mut entries,
            )
            .unwrap();
            let found = (lane.dead_letters_without_id, lane.discarded_without_id);
            assert_eq!(found, expected, "{kind}");
        }
    }
}
