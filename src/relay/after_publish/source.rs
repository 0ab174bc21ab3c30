//! Which rows a message of the stream tells of.
//!
//! In: headers and body. Out: what it is to the lane's tables. Guarantee: what other lanes have published, or what is of a table that is not
//! the outbox now, is no row.

use std::collections::BTreeSet;

use async_nats::HeaderMap;

use crate::pipeline::after_publish::{Published, Row};
use crate::pipeline::event_id;
use crate::pipeline::position::{
    KIND_BACKFILL, KIND_HEADER, KIND_REPLAY, KIND_RETRY, POSITION_HEADER, TABLE_HEADER,
    parse_header, slot_of,
};
use crate::pipeline::tables::Former;
use crate::relay::settings::Settings;

/// Whose messages are meant.
pub(super) struct Source {
    slot: String,
    /// Names of the further tables, as messages tell them.
    further: Vec<String>,
    /// Of each table: which messages are of another one, which was the outbox before.
    pub(super) former: Vec<Option<Former>>,
    is_former_told: bool,
    /// Others that messages of the lane tell.
    unnamed: BTreeSet<String>,
}

impl Source {
    pub(super) fn of(settings: &Settings) -> Self {
        let further = settings.postgres.further.iter();
        let told = further.filter_map(|table| table.mapping.message.table.clone());
        Source {
            slot: settings.postgres.slot.clone(),
            further: told.collect(),
            former: Vec::new(),
            is_former_told: false,
            unnamed: BTreeSet::new(),
        }
    }

    /// What a message of the stream is to the lane's tables. Of one that the configuration does not name, rows are left alone.
    pub(super) fn published(
        &mut self,
        sequence: u64,
        headers: Option<&HeaderMap>,
        body: &[u8],
    ) -> Published {
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
        let published = published.filter(|published| {
            let (Published::First(_, row) | Published::Again(row)) = published else {
                return true;
            };
            let former = self.former.get(row.table).copied().flatten();
            let is_former = former.is_some_and(|it| it.has(sequence, &row.id, header));
            if is_former && !std::mem::replace(&mut self.is_former_told, true) {
                tracing::warn!(
                    "the stream has events of another table, which was the outbox before: rows with the same ids stay; walrelay verify \
                     counts them as unjudged, and walrelay backfill --unjudged publishes them"
                );
            }
            !is_former
        });
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
            former: Vec::new(),
            is_former_told: false,
            unnamed: BTreeSet::new(),
        };
        source.published(1, Some(&map), br#"{"id":7}"#)
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
