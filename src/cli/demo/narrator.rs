//! The demo's voice.
//!
//! In: acts, sentences, events, the verdict. Out: lines of text, with colour only on a terminal. Guarantee: lines are
//! only ever added, so that a log of it reads as well as the terminal does; nobody listening stops nothing.

use std::io::{self, IsTerminal as _, Write as _};

use super::verdict::Verdict;
use crate::cli::tail::entry::{Entry, human_milliseconds};

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";

/// Where the story is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrator {
    /// Standard error, where standard output is for data.
    aside: bool,
    colour: bool,
}

impl Narrator {
    pub(super) fn new(aside: bool) -> Self {
        let terminal = if aside {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { aside, colour }
    }

    pub(super) fn act(self, number: u32, title: &str) {
        self.line("");
        self.line(&self.paint(BOLD, &format!("{number}  {title}")));
    }

    pub(super) fn say(self, sentence: &str) {
        self.line(&format!("   {sentence}"));
    }

    /// Above the events of [`Self::event`].
    pub(super) fn heading(self) {
        self.line(&self.paint(
            DIM,
            &columns("sequence", "position", "latency", "subject", "event id"),
        ));
    }

    pub(super) fn event(self, entry: &Entry) {
        let latency = entry
            .stored_latency_ms
            .map(human_milliseconds)
            .unwrap_or_default();
        // The end of a version 7 UUID is what differs between events of one moment.
        let id = entry.id.clone().unwrap_or_default();
        let position = entry.position.as_deref().unwrap_or("-");
        self.line(&columns(
            &entry.sequence.to_string(),
            position,
            &latency,
            &entry.subject,
            &id,
        ));
    }

    pub(super) fn verdict(self, verdict: &Verdict) {
        let application = verdict.application;
        self.line("");
        let number = |name: &str, count: usize, note: &str| {
            self.line(&format!(
                "   {name:<16}{:>12}  {note}",
                grouped(count as u64)
            ));
        };
        let defect = |name: &str, count: usize, note: &str| {
            let count = format!("{:>12}", grouped(count as u64));
            let count = self.paint(if count.trim() == "0" { GREEN } else { RED }, &count);
            self.line(&format!("   {name:<16}{count}  {note}"));
        };
        number(
            "committed",
            verdict.committed,
            &format!(
                "events, in {} transactions",
                grouped(application.transactions)
            ),
        );
        number("in the stream", verdict.in_the_stream, "");
        defect("lost", verdict.lost, "");
        defect("doubled", verdict.doubled, "");
        defect(
            "out of order",
            verdict.out_of_order,
            "against the order of the database's commits",
        );
        let taken_back = format!(
            "{} events were rolled back, in {} transactions",
            grouped(application.rolled_back_events),
            grouped(application.rollbacks)
        );
        defect("phantom", verdict.phantom, &taken_back);
        defect(
            "altered",
            verdict.altered,
            "payloads compared byte for byte with the table's",
        );
        self.line(&format!(
            "   confirmed LSN   {:>12}  the server's, when the application had stopped: {}",
            verdict.confirmed_lsn.to_string(),
            verdict.server_lsn
        ));
        self.line("");
        let (style, sentence) = match verdict.holds() {
            true => (GREEN, "Exactly once, in commit order."),
            false => (
                RED,
                "The guarantee does not hold. Please report this, with the lines above.",
            ),
        };
        self.line(&format!("   {}", self.paint(style, sentence)));
    }

    fn paint(self, style: &str, text: &str) -> String {
        match self.colour {
            true => format!("\x1b[{style}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn line(self, text: &str) {
        let text = text.trim_end();
        // A reader that went away is no reason to stop.
        let _ = match self.aside {
            true => writeln!(io::stderr(), "{text}"),
            false => writeln!(io::stdout(), "{text}"),
        };
    }
}

fn columns(sequence: &str, position: &str, latency: &str, subject: &str, id: &str) -> String {
    format!("   {sequence:>9}  {position:<14}  {latency:>8}  {subject:<30}  {id}")
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
