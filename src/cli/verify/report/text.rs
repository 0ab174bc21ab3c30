//! The report for people.
//!
//! In: a report. Out: its lines: what was compared, each kind of finding with its examples, notes, the verdict.

use std::time::Duration;

use super::{Example, Report};
use crate::cli::command_line;
use crate::cli::exit::Exit;
use crate::counted::counted;

impl std::fmt::Display for Example {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut between = "";
        if let Some(id) = &self.id {
            write!(f, "{id}")?;
            between = "  ";
        }
        if let Some(sequence) = self.sequence {
            write!(f, "{between}sequence {sequence}")?;
        }
        if let Some(last) = self.last_sequence {
            write!(f, " and {last}")?;
        }
        if let (Some(position), Some(behind)) = (&self.position, &self.behind) {
            write!(f, "  {position} behind {behind}")?;
        }
        if let Some(slot) = &self.slot {
            write!(f, "  of slot {slot}, whose share is no more")?;
        }
        Ok(())
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let name = self.table.as_ref();
        let mut text = format!(
            "table          {}{} below {}\nstream         {}: {}, {} by a command, ",
            name.map_or_else(String::new, |name| format!("{name}: ")),
            counted(self.rows, "row", "rows"),
            self.snapshot_lsn,
            counted(self.messages, "message", "messages"),
            counted(self.events, "event", "events"),
            self.again
        );
        for (count, one, many) in [
            (self.dead_letters, "dead letter", "dead letters"),
            (self.marks, "mark of the lane", "marks of the lane"),
            (
                self.of_other_tables,
                "not of this table",
                "not of this table",
            ),
        ] {
            if count > 0 {
                text.push_str(&format!("{}, ", counted(count, one, many)));
            }
        }
        text.push_str(&format!("{} not of this slot\n", self.foreign));
        for (kind, findings) in self.kinds() {
            text.push_str(&format!("{kind:<14} {}\n", findings.count));
            for example in &findings.examples {
                text.push_str(&format!("  {example}\n"));
            }
            let more = findings.count - (findings.examples.len() as u64).min(findings.count);
            if more > 0 && !findings.examples.is_empty() {
                text.push_str(&format!("  and {more} more\n"));
            }
        }
        let rows_are = ("row is", "rows are");
        let rows_cannot = ("row", "rows");
        let messages = ("message was", "messages were");
        let backfill = command_line::backfill(self.since, None, true);
        let removed = format!(
            "cannot be judged: the stream may have had the messages and removed them; --since leaves older rows out, {backfill} \
             publishes them"
        );
        let former = format!(
            "cannot be judged: the stream has the ids of another table, which was the outbox before this one; {backfill} publishes \
             such rows"
        );
        for (count, (one, many), note) in [
            (
                match self.stands_still() || self.is_set_back {
                    true => 0,
                    false => self.pending,
                },
                rows_are,
                "in the slot and not published yet: walrelay run publishes what is there",
            ),
            (
                self.removed,
                ("row was", "rows were"),
                "published, and the stream has removed the messages since",
            ),
            (
                self.discarded,
                ("dead letter was", "dead letters were"),
                "discarded: walrelay dead-letters list --all says why",
            ),
            (
                self.unretried,
                ("dead letter is", "dead letters are"),
                "marked as retried without an event in the stream: walrelay dead-letters list --all shows the positions, walrelay \
                 dead-letters retry publishes the event of each",
            ),
            (
                (self.unjudged.count).saturating_sub(self.ambiguous + self.former),
                rows_cannot,
                removed.as_str(),
            ),
            (
                self.unnamed,
                ("missing row", "missing rows"),
                "cannot be told from the unjudged ones: fewer messages were removed than rows have none",
            ),
            (
                self.ambiguous,
                rows_cannot,
                "cannot be judged: a row that --since leaves out has the same id",
            ),
            (
                self.rowless.count,
                ("event has", "events have"),
                "no row, and rows are deleted from the table: nothing tells whether there ever was one",
            ),
            (self.former, rows_cannot, former.as_str()),
            (
                self.rows_without_id,
                ("row has", "rows have"),
                "no id and could not be compared",
            ),
            (
                self.removed_inside,
                messages,
                match self.missing.count {
                    0 => "removed from inside the stream",
                    _ => "removed from inside the stream; what was removed counts as missing",
                },
            ),
        ] {
            if count > 0 {
                text.push_str(&format!("note: {} {note}\n", counted(count, one, many)));
            }
        }
        if self.stands_still() {
            text.push_str(&format!(
                "pending        {}, the oldest for {}: the lane stands still; walrelay status says why, walrelay run publishes them\n",
                self.pending,
                humantime::format_duration(Duration::from_secs(self.pending_seconds.unwrap_or(0)))
            ));
        }
        if self.is_set_back {
            text.push_str(&format!(
                "pending        {}: {}\n",
                self.pending,
                self.set_back()
            ));
        }
        if let Some(unfit) = &self.unfit {
            text.push_str(&format!("unfit          {unfit}\n"));
        }
        if let Some(detached) = &self.detached {
            text.push_str(&format!("note: {detached}\n"));
        }
        if self.on_standby {
            text.push_str("note: the table was read on a standby: rows that it has not replayed yet are not seen\n");
        }
        if !self.has_slot {
            text.push_str(
                "note: there is no replication slot: nothing that is missing will come by itself\n",
            );
        }
        if let Some(left) = self.left.as_ref().filter(|_| self.may_come()) {
            text.push_str(&format!("note: {left}\n"));
        } else if self.may_come() {
            text.push_str(
                "note: the relay is still behind the table: what is missing may still come; check again later, or with a longer --wait\n",
            );
        }
        text.push_str(match self.exit() {
            Exit::Done => "clean",
            Exit::Failed => "not clean: the lines above say what was found",
            _ => "unchecked: the lines above say why",
        });
        text
    }

    pub(super) fn set_back(&self) -> String {
        format!(
            "the broker has lost messages of {} that the relay had published: the relay publishes them again from its slot once it \
             reaches the stream; walrelay status says what it waits for. Wait for it",
            counted(self.pending, "row", "rows")
        )
    }
}
