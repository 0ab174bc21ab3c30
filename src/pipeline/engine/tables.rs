//! The lane's tables at the end of the stream: those that are configured, and those that were.
//!
//! In: the lane record, what the WAL has told. Out: what the next record remembers, what a person is told of a table.

use super::Engine;
use crate::pipeline::tables::Period;

impl Engine {
    /// Which tables were the outboxes, where in the WAL. One that the configuration names no more stays as recorded until
    /// the end of the stream is found without it: else naming it again would not mend the halt. From then on it has ended, and
    /// is remembered, since its messages stay in the stream.
    pub(super) fn tables(&self) -> Vec<Period> {
        let mut periods = self.relations.periods();
        let Some(record) = &self.settings.record else {
            return periods;
        };
        let named = periods.len();
        for recorded in &record.tables {
            let is_it = |it: &Period| it.outbox == recorded.outbox;
            if periods[..named].iter().any(is_it) {
                continue;
            }
            if self.overlap.is_some() {
                periods.push(recorded.clone());
                continue;
            }
            // Its last table is remembered.
            match periods[named..].iter().position(is_it) {
                Some(known) => periods[named + known] = recorded.clone().ended(),
                None => periods.push(recorded.clone().ended()),
            }
        }
        periods
    }

    /// Tables that counted when the lane end was published, and that the configuration names no more.
    pub(super) fn unnamed_tables(&self) -> Vec<String> {
        let recorded = self.settings.record.iter();
        let recorded = recorded.flat_map(|record| &record.tables);
        let named = &self.settings.epoch.source.outboxes;
        let mut unnamed: Vec<String> = recorded
            .filter(|period| !period.ended)
            .map(|period| &period.outbox)
            .filter(|outbox| named.iter().all(|it| it.table() != *outbox))
            .cloned()
            .collect();
        // What the last message tells counts where the record is lost.
        let told = self.overlap.as_ref().and_then(|it| it.table.clone());
        unnamed.extend(told.filter(|told| named.iter().all(|it| it.table() != told)));
        unnamed.sort_unstable();
        unnamed.dedup();
        unnamed
    }
}
