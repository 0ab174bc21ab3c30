//! Open dead letters that the stream has no more, and whose rows a backfill publishes: they are not open behind it.
//!
//! In: the lane, what is published of its tables. Out: the marks that close those letters. Guarantee: only of the row that a letter
//! names by its whole id.

use std::collections::HashMap;

use crate::bulk::publisher::Publisher;
use crate::bulk::{Outcome, letters};
use crate::cli::dead_letters::letters::Letters;
use crate::pipeline::dead_letter::state::{Mark, State};
use crate::relay::lane_client::LaneClient;

/// The letters, and which of their rows are published.
#[derive(Debug, Default)]
pub(super) struct GoneLetters {
    /// By the further table of their rows, and by their ids.
    open: HashMap<(Option<String>, String), Vec<Mark>>,
    published: Vec<Mark>,
}

impl GoneLetters {
    /// Those of a lane.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) async fn read(lane: &LaneClient) -> anyhow::Result<Self> {
        let letters = Letters::read(lane).await?;
        let mut gone = GoneLetters::default();
        for letter in letters.open().filter(|letter| letter.is_gone) {
            if let Some(id) = &letter.id {
                let of_row = gone.open.entry((letter.table.clone(), id.clone()));
                of_row.or_default().push(letter.mark(None));
            }
        }
        Ok(gone)
    }

    /// The row of that table with this id is published.
    pub(super) fn take(&mut self, table: Option<&str>, id: &str) {
        if !self.open.is_empty() {
            let of_row = self.open.remove(&(table.map(str::to_owned), id.to_owned()));
            self.published.extend(of_row.into_iter().flatten());
        }
    }

    /// Marks those whose rows are published; how many they are.
    ///
    /// # Errors
    /// The stream does not take the marks.
    pub(super) async fn close(
        self,
        slot: &str,
        publisher: &mut Publisher<'_>,
    ) -> anyhow::Result<u64> {
        let mut closed = 0;
        if !self.published.is_empty() {
            let each = |outcome: Outcome<'_>| {
                closed += u64::from(matches!(outcome, Outcome::Published { .. }));
            };
            let marks = letters::marks(slot, State::Retried, self.published);
            publisher.run(marks, each).await?;
        }
        Ok(closed)
    }
}
