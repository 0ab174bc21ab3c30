//! What other shares have published of the rows that are this one's now: behind a change of the number of shares, or of a row's aggregate.
//!
//! In: the lane's settings, the records of all shares that there ever were. Out: an entry a message. Guarantee: a stream is
//! read only when it is asked for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::OrderedConfig;

use super::key;
use super::lane::{MEMORY_LOOK_MESSAGES, id_of};
use super::sort::{Entries, Entry, Kind, share_memory};
use crate::cli::elsewhere::Elsewhere;
use crate::nats::admin::Admin;
use crate::nats::stored::{StoredMessages, header};
use crate::nats::stream;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_DEAD_LETTER, KIND_HEADER, KIND_REPLAY, KIND_RETRY, POSITION_HEADER,
    TABLE_HEADER, slot_of,
};
use crate::pipeline::record::telling;
use crate::pipeline::tables::Former;
use crate::postgres::client::Client;
use crate::relay::lane_records;
use crate::relay::settings::Settings;

/// A stream that other shares have published in.
#[derive(Debug)]
pub(super) struct Sibling {
    stream: String,
    slots: BTreeSet<String>,
}

/// The streams of the other shares.
#[derive(Debug)]
pub(super) struct Siblings {
    pub(super) siblings: Vec<Sibling>,
    /// The records tell that the number of shares was changed, so that rows of this one are in theirs.
    pub(super) tell_of_change: bool,
    /// What cannot be read here.
    pub(super) elsewhere: Option<Elsewhere>,
}

/// What is looked for of one table.
pub(super) struct OfTable<'e> {
    /// As its messages tell it; none of the lane's own.
    pub(super) name: Option<String>,
    pub(super) former: Option<Former>,
    pub(super) entries: &'e mut Entries,
}

/// The streams of all shares that there ever were, but for the lane's own.
///
/// # Errors
/// Postgres or NATS refuse.
pub(super) async fn of(
    settings: &Settings,
    client: &Client,
    nats: &Admin,
) -> anyhow::Result<Siblings> {
    let records = lane_records::of_shares(nats, client, &settings.postgres).await?;
    let elsewhere = Elsewhere::by(&records, settings);
    let tell_of_change = records
        .iter()
        .any(|record| record.switched_lsn.is_some() || record.retired);
    let others = telling(records).into_iter();
    let others = others.filter(|record| record.slot != settings.postgres.slot);
    let mut streams = BTreeMap::<String, BTreeSet<String>>::new();
    for record in others {
        let slots = streams.entry(record.stream).or_default();
        slots.insert(record.slot);
    }
    let siblings = streams
        .into_iter()
        .map(|(stream, slots)| Sibling { stream, slots });
    Ok(Siblings {
        siblings: siblings.collect(),
        tell_of_change,
        elsewhere,
    })
}

impl Sibling {
    /// Takes all that the stream has now for each table, by the name that its messages tell; returns how many messages it has no more.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub(super) async fn read(
        &self,
        nats: &Admin,
        tables: &mut [OfTable<'_>],
    ) -> anyhow::Result<u64> {
        let info = stream::find(nats, &self.stream).await?.with_context(|| {
            format!(
                "stream {} is gone, in which another share has published rows that may be this one's now: give --since a moment \
                 behind the change of shares",
                self.stream
            )
        })?;
        let end = info.state.last_seq;
        let begun = info.config.first_seq.max(1) - 1;
        let removed = (end.saturating_sub(begun)).saturating_sub(info.state.messages);
        let config = OrderedConfig::default();
        let mut messages = StoredMessages::from(nats, &self.stream, config).await?;
        while messages.left() > 0 {
            let (sequence, message) = messages.next().await?;
            if sequence > end {
                break;
            }
            let told = header(&message, TABLE_HEADER);
            let mut of_table = tables
                .iter_mut()
                .filter(|table| table.name.as_deref() == told);
            if let Some(table) = of_table.next()
                && let Some((kind, id)) = self.kind(&message)
            {
                let header = |name| header(&message, name);
                let is_former = |it: Former| it.has(sequence, &key::text(id), header);
                let kind = match table.former.is_some_and(is_former) {
                    true => Kind::Former,
                    false => kind,
                };
                table.entries.push(Entry::new(id, kind, sequence))?;
            }
            if sequence.is_multiple_of(MEMORY_LOOK_MESSAGES) && tables.len() > 1 {
                share_memory(tables.iter_mut().map(|table| &mut *table.entries))?;
            }
        }
        Ok(removed)
    }

    /// What a message is to the lane, with its event's id; none where it is nothing, or where the lane's own reading has it.
    fn kind(&self, message: &Message) -> Option<(Kind, u128)> {
        let header = |name| header(message, name);
        if !slot_of(header).is_some_and(|slot| self.slots.contains(slot)) {
            return None;
        }
        let kind = match header(KIND_HEADER) {
            None if header(POSITION_HEADER).is_some() => Kind::Sibling,
            Some(KIND_BACKFILL | KIND_RETRY) => Kind::Sibling,
            // The letter is theirs to retry.
            Some(KIND_DEAD_LETTER | KIND_REPLAY) => Kind::Replay,
            _ => return None,
        };
        let headers = message.headers.as_ref();
        Some((kind, id_of(headers, &message.payload)?))
    }
}
