//! Dead letters on the page: the open ones without their values, and one with its row where somebody asks for it.
//!
//! In: what the board has of them, or a letter. Out: HTML.

use super::markup::{escaped, with_code};
use super::{bytes, document, grouped, table, time};
use crate::ops::runbook;
use crate::pipeline::dead_letter::DeadLetter;
use crate::relay::stored_letter::StoredLetter;
use chrono::{DateTime, Utc};

/// Who may see values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Rows {
    /// Whoever asks for one: only this machine can.
    OnDemand,
    /// Nobody here: the command shows them.
    ByCommand,
}

/// The newest of those that are open; `lane` is the index of theirs, and `slot` its slot.
pub(super) fn open(
    (lane, slot): (usize, &str),
    letters: &[StoredLetter],
    count: Option<u64>,
    rows: Rows,
) -> String {
    let Some(count) = count else {
        return "<p class=\"dim\">Not counted yet.</p>".to_owned();
    };
    if letters.is_empty() {
        return "<p class=\"dim\">None.</p>".to_owned();
    }
    let list: String = letters
        .iter()
        .map(|stored| {
            let letter = &stored.letter;
            let position = escaped(&letter.position);
            let head = match rows {
                // Its lane is no more.
                _ if stored.slot != slot => format!("{position} of slot {}", escaped(&stored.slot)),
                Rows::OnDemand => format!(
                    "<a href=\"/dead-letters/{lane}/{}\" title=\"show the row\">{position}</a>",
                    stored.sequence
                ),
                Rows::ByCommand => position,
            };
            format!(
                "<tr id=\"letter-{lane}-{sequence}\"><th scope=\"row\"><code>{head}</code></th><td><b>{reason}</b>: {to_do}<br><span class=\"dim columns-of\">{masked}</span></td></tr>",
                sequence = stored.sequence,
                reason = escaped(&letter.reason),
                to_do = to_do(letter),
                masked = masked(letter),
            )
        })
        .collect();
    let more = count.saturating_sub(letters.len() as u64);
    let more = match more {
        0 => String::new(),
        more => format!("{} more. ", grouped(more)),
    };
    let all = "<code>walrelay dead-letters list</code> shows all, <code>show POSITION</code> one with its row.";
    format!("<table class=\"letters events\">{list}</table><p class=\"dim\">{more}{all}</p>")
}

fn to_do(letter: &DeadLetter) -> String {
    runbook::of_dead_letter(&letter.reason).map_or_else(String::new, with_code)
}

/// `id ••• 36 B, payload_json ••• 2 B`
fn masked(letter: &DeadLetter) -> String {
    let Some(row) = &letter.row else {
        return "without its row".to_owned();
    };
    let last = row.len().saturating_sub(1);
    let columns = row
        .iter()
        .map(|(column, value)| match value {
            None => format!("{} null", escaped(column)),
            Some(_) => {
                let length = letter.truncated.get(column).copied().unwrap_or_default();
                format!("{} ••• {}", escaped(column), bytes(length))
            }
        })
        .enumerate()
        .map(|(index, column)| {
            let comma = if index < last { "," } else { "" };
            format!("<span class=\"whole\">{column}{comma}</span> ")
        });
    columns.collect()
}

/// A page of its own.
pub(in crate::ops) fn shown(stored: &StoredLetter) -> String {
    let letter = &stored.letter;
    let about = table(&[
        ("reason", format!("<b>{}</b>", escaped(&letter.reason))),
        ("why", escaped(&letter.detail)),
        ("what to do", to_do(letter)),
        (
            "in the stream",
            format!("sequence {}", grouped(stored.sequence)),
        ),
        ("stored", stored_at(&stored.stored_at)),
    ]);
    let row = match &letter.row {
        Some(row) => row
            .iter()
            .map(|(column, value)| (column.as_str(), value_of(letter, column, value.as_deref())))
            .collect(),
        None => Vec::new(),
    };
    let row = match row.is_empty() {
        true => "<p class=\"dim\">The letter had no room for it.</p>".to_owned(),
        false => table(&row),
    };
    let position = escaped(&letter.position);
    document(
        &format!("Dead letter {position}"),
        "",
        &format!(
            "<header><h1>Dead letter {position}</h1><a class=\"right\" href=\"/\">back to the lane</a></header>{about}\
             <h2>Row</h2>{row}<h2>Commands</h2>{}",
            table(&[
                (
                    "publish it",
                    format!("<code>walrelay dead-letters retry {position}</code>")
                ),
                (
                    "give it up",
                    format!(
                        "<code>walrelay dead-letters discard {position} --reason &quot;…&quot;</code>"
                    )
                ),
            ])
        ),
    )
}

/// As all times of the page.
fn stored_at(text: &str) -> String {
    match text.parse::<DateTime<Utc>>() {
        Ok(at) => time(at),
        Err(_) => escaped(text),
    }
}

fn value_of(letter: &DeadLetter, column: &str, value: Option<&str>) -> String {
    let cut = letter.truncated.get(column);
    let cut = cut.map_or_else(String::new, |length| {
        let length = bytes(*length);
        format!(" <span class=\"dim\">(cut off, it has {length})</span>")
    });
    match value {
        Some("") if !cut.is_empty() => {
            let length = bytes(letter.truncated.get(column).copied().unwrap_or_default());
            format!("<span class=\"dim\">not in the letter, it has {length}</span>")
        }
        None => "<span class=\"dim\">null</span>".to_owned(),
        Some(value) => format!("<code class=\"value\">{}</code>{cut}", escaped(value)),
    }
}
