//! What a run has done, for a person or a program.

use serde::Serialize;

use super::rows::Deleted;
use crate::cli::stdout::Account;
use crate::counted::counted;

/// What was done; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    pub(super) table: String,
    /// Rows with an older `occurred_at`.
    pub(super) cutoff: String,
    pub(super) dry_run: bool,
    /// Deleted, or in a dry run to be deleted.
    pub(super) rows: u64,
    pub(super) open_dead_letters: u64,
    /// The shares that have these.
    #[serde(skip)]
    pub(super) letters_of: Vec<u32>,
    /// Somebody else changed or deleted them meanwhile.
    pub(super) changed: u64,
    /// Dropped with all their rows, or in a dry run to be dropped.
    pub(super) partitions: Vec<String>,
    /// For the days to come.
    pub(super) partitions_made: Vec<String>,
    /// What else there is to know.
    pub(super) notes: Vec<String>,
    /// Every slot is confirmed through it; none in a dry run.
    pub(super) confirmed_lsn: Option<String>,
    /// It has come to its end.
    pub(super) done: bool,
    /// Rows do not go, or in a dry run would not: a note says why.
    #[serde(skip)]
    pub(super) is_hindered: bool,
}

impl Report {
    pub(super) fn take(&mut self, deleted: Deleted) {
        self.rows = deleted.rows;
        self.open_dead_letters = deleted.kept;
        self.changed = deleted.changed;
        self.done &= !deleted.stopped;
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut account = Account::default();
        if json {
            account.line(serde_json::to_string(self)?);
            return account.close();
        }
        let Report {
            table,
            cutoff,
            rows,
            open_dead_letters,
            letters_of,
            changed,
            partitions,
            partitions_made,
            notes,
            ..
        } = self;
        let what = match (self.dry_run, rows) {
            (true, 1) => "is older than",
            (true, _) => "are older than",
            (false, _) => "deleted, older than",
        };
        let rows = counted(*rows, "row", "rows");
        account.line(format_args!("{rows} of {table} {what} {cutoff}"));
        if !partitions.is_empty() {
            let what = match self.dry_run {
                true => "hold only such rows and would be dropped",
                false => "held only such rows and are dropped",
            };
            account.line(format_args!(
                "beside them, {} {what}",
                partitions.join(", ")
            ));
        }
        if !partitions_made.is_empty() {
            account.line(format_args!("made {}", partitions_made.join(", ")));
        }
        for note in notes {
            account.line(note);
        }
        if *open_dead_letters > 0 {
            let list = "walrelay dead-letters list";
            let of_share = |share| format!("{list} --share {share}");
            account.line(format_args!(
                "{}, see {}",
                counted(
                    *open_dead_letters,
                    "row stays: it is an open dead letter",
                    "rows stay: they are open dead letters"
                ),
                match letters_of[..] {
                    [] => list.to_owned(),
                    _ => {
                        let each: Vec<String> = letters_of.iter().map(of_share).collect();
                        each.join(" and ")
                    }
                }
            ));
        }
        if *changed > 0 {
            account.line(format_args!(
                "{} left for the next time: somebody else has changed what was to go meanwhile",
                counted(*changed, "row is", "rows are")
            ));
        }
        if !self.done {
            account.line("stopped before its end: run it again for the rest");
        }
        account.close()
    }
}
