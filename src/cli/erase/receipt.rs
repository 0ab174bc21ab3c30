//! What was erased, as a person keeps it.
//!
//! In: what each lane's streams had. Out: lines, or one JSON object.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::messages::Erased;
use super::tables::LeftOut;
use crate::cli::command_line::{self, quoted};
use crate::cli::stderr;
use crate::cli::stdout::Account;
use crate::counted::counted;
use crate::pipeline::record::Left;

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
    /// Tables whose rows were not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out: Vec<LeftOut>,
    /// How many of the messages are of each table that the configuration does not name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) of_unnamed: BTreeMap<String, u64>,
    /// How many messages of each such table do not tell their aggregate, and stay; of [`Self::table`], those of which there is no
    /// row that would tell it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) untold: BTreeMap<String, u64>,
    /// How many of these have the id in a header that the configuration does not name, by header.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) untold_with_header: BTreeMap<String, u64>,
    /// Moves to another NATS that were killed: it may have copies.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) unfinished_moves: BTreeSet<String>,
    /// Streams that the lane has left at other NATS': they may have copies, which this NATS cannot tell.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) left_elsewhere: BTreeSet<Left>,
    /// Why a run that is no dry one would be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) may_not_delete: Option<String>,
    /// Nothing is left of it where it was looked for.
    pub(super) done: bool,
}

impl Receipt {
    /// Takes what was found or erased, by stream: several lanes may be in one.
    pub(super) fn take(&mut self, streams: impl Iterator<Item = Erased>) {
        for erased in streams {
            for (counts, more) in [
                (&mut self.of_unnamed, &erased.of_unnamed),
                (&mut self.untold, &erased.untold),
                (&mut self.untold_with_header, &erased.in_header),
            ] {
                for (table, count) in more {
                    *counts.entry(table.clone()).or_default() += count;
                }
            }
            let known = (self.streams.iter_mut()).find(|known| known.stream() == erased.stream());
            match known {
                Some(known) => known.add(erased),
                None => self.streams.push(erased),
            }
        }
    }

    /// Of tables that the configuration does not name: what may be left of the aggregate, and the way to it.
    pub(super) fn say_what_stays(&mut self) {
        if let Some(why) = &self.may_not_delete {
            stderr::line(why);
        }
        for line in &self.unfinished_moves {
            stderr::line(format_args!(
                "{line} was killed, and may have copied messages of the aggregate: run it again, which removes them there; or, where \
                 it is given up, delete the stream at that NATS"
            ));
        }
        for Left { stream, nats, .. } in &self.left_elsewhere {
            stderr::line(format_args!(
                "the outbox was moved here from NATS at {nats}: where stream {stream} is still there, it has the aggregate's messages, and \
                 so have its replays and mirrors there. Delete it and them: {}",
                command_line::nats(Some(nats), &format!("stream rm {stream}"))
            ));
        }
        let name = |table: &String| {
            format!("give {table} an entry in [[source.tables]] again, with name = {table:?}")
        };
        for table in self.of_unnamed.keys() {
            stderr::line(format_args!(
                "messages of {table} are among them, which the configuration does not name; rows that it may have stay: {}",
                name(table)
            ));
        }
        for (table, count) in &self.untold {
            self.done = false;
            if *table == self.table {
                let stay = counted(*count, "message stays", "messages stay");
                stderr::line(format_args!(
                    "{stay} of which the table has no row, and which do not tell their aggregate: any of them may be of this one. Those that \
                     their payload tells, remove with nats stream rmm; a header of aggregate_id in message.headers tells it of all that are \
                     still to come"
                ));
                continue;
            }
            stderr::line(format_args!(
                "{} of {table}, which do not tell their aggregate, and the configuration does not name the table whose rows would: \
                 {}, and run this again",
                counted(*count, "message stays", "messages stay"),
                name(table)
            ));
        }
        for (header, count) in &self.untold_with_header {
            let anew = command_line::typed_anew("--dry-run", &["--also-header", header]);
            let header = quoted(header);
            stderr::line(format_args!(
                "{} exactly this id in header {header}, which the configuration does not name: where that header told the aggregate, \
                 {anew} removes them",
                counted(*count, "of these messages has", "of these messages have")
            ));
        }
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut account = Account::default();
        if json {
            account.line(serde_json::to_string(self)?);
            return account.close();
        }
        let what = if self.dry_run { "found" } else { "erased" };
        let rows = counted(self.rows, "row", "rows");
        account.line(format_args!("{rows} of {} {what}", self.table));
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
