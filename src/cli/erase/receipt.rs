//! What was erased, as a person keeps it.
//!
//! In: what each lane's streams had. Out: lines, or one JSON object.

use serde::Serialize;

use super::messages::Erased;
use crate::cli::stdout::Account;

/// What was removed; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Receipt {
    pub(super) aggregate_id: String,
    /// RFC 3339.
    pub(super) at: String,
    pub(super) dry_run: bool,
    pub(super) table: String,
    /// Deleted from the table, or in a dry run to be deleted.
    pub(super) rows: u64,
    pub(super) streams: Vec<Erased>,
    /// Nothing is left of it.
    pub(super) done: bool,
}

impl Receipt {
    /// Takes what was found or erased, by stream: several lanes may be in one.
    pub(super) fn take(&mut self, streams: impl Iterator<Item = Erased>) {
        for erased in streams {
            let known = (self.streams.iter_mut()).find(|known| known.stream() == erased.stream());
            match known {
                Some(known) => known.add(erased),
                None => self.streams.push(erased),
            }
        }
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut account = Account::default();
        if json {
            account.line(serde_json::to_string(self)?);
            return account.close();
        }
        let what = if self.dry_run { "found" } else { "erased" };
        account.line(format_args!("{} rows of {} {what}", self.rows, self.table));
        for erased in &self.streams {
            account.line(format_args!(
                "{} {what} in stream {}",
                erased.summary(),
                erased.stream()
            ));
        }
        account.close()
    }
}
