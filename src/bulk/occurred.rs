//! Rows of the table, by when they occurred, as a source of a replay.
//!
//! In: times. Out: the messages of the rows that the table has now, in the order of `occurred_at` and within a moment by id, under
//! other subjects. Guarantee: one statement and so one snapshot; rows pass through, so memory does not grow with their number.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::Sourced;
use super::readdress::{Asked, Destination, Filter, Original};
use super::replayed::{self, header_value};
use super::rows::{Occurred, Rows};
use super::source::{Gap, Sink, Source, on_thread};
use crate::postgres::copy_text::CopyRow;
use crate::relay::settings::Settings;

/// Looks whether rows tell when they occurred.
///
/// # Errors
/// [`crate::postgres::occurred_at::Untold`], or the table cannot be read.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    Rows::open(settings).await?.occurred_at()?;
    Ok(())
}

/// How many rows there are.
///
/// # Errors
/// The table cannot be read.
pub async fn count(settings: &Settings, occurred: &Occurred) -> anyhow::Result<u64> {
    Rows::open(settings).await?.count_occurred(occurred).await
}

/// Reads the rows that occurred then.
pub fn source(settings: &Settings, occurred: Occurred, filter: Filter, to: Destination) -> Source {
    let settings = settings.clone();
    on_thread(async move |sink: &mut Sink| {
        let rows = Rows::open(&settings).await?;
        let name = replayed::table(&settings.postgres.slot);
        let reader = Reader {
            rows,
            name,
            filter,
            to,
        };
        reader.read(&occurred, sink).await
    })
}

/// Where a row stands, as its message tells it.
pub fn place(us: i64, id: &str) -> String {
    format!("{us}:{}", utf8_percent_encode(id, NON_ALPHANUMERIC))
}

/// Reads what [`place`] has written.
pub fn read_place(place: &str) -> Option<(i64, String)> {
    let (us, id) = place.split_once(':')?;
    let id = percent_decode_str(id).decode_utf8().ok()?;
    Some((us.parse().ok()?, id.into_owned()))
}

struct Reader {
    rows: Rows,
    /// What it is called in a replay's header.
    name: String,
    filter: Filter,
    to: Destination,
}

impl Reader {
    async fn read(&self, occurred: &Occurred, sink: &mut Sink) -> anyhow::Result<()> {
        let mut rows = self.rows.ask_occurred(occurred).await?;
        while let Some(row) = rows.next().await? {
            let name = self.rows.id(row)?.into_owned();
            sink.put(self.sourced(name, row)?).await?;
        }
        Ok(())
    }

    /// Its message, where it is asked for. A row that makes none is a dead letter, today as when it was inserted.
    fn sourced(&self, name: String, row: &CopyRow) -> anyhow::Result<Sourced> {
        let us = row.parse(row.len() - 1)?;
        let parts = match self.rows.parts_of(row, "") {
            Ok(parts) => parts,
            Err(why) => {
                let why = format!("{why:#}");
                return Ok(Sourced::Rejected { name, why });
            }
        };
        let header = |name: &str| {
            let mut lines = parts.headers.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim())
        };
        let original = Original {
            name: name.clone(),
            subject: &parts.subject,
            header: &header,
            body: parts.body.clone(),
        };
        let mark = header_value(&self.to.replay, &self.name, place(us, &name));
        let lines = |lines: &mut String| lines.push_str(&parts.headers);
        let item = self.to.item(&self.filter, original, &mark, lines);
        match item {
            Ok(Asked::For(item)) => Ok(Sourced::Item(item)),
            Ok(Asked::Not) => Ok(Sourced::Passed),
            // The row itself may be one.
            Ok(Asked::Untold(why)) | Err(why) => Err(Gap::new(&name, &why).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_word_and_read_again() {
        for id in ["0190b6a0-0000-7000-8000-000000000001", "a b:c\r\n%é", ""] {
            let written = place(-7, id);
            assert!(
                written.bytes().all(|byte| byte.is_ascii_graphic()),
                "{written}"
            );
            assert_eq!(read_place(&written), Some((-7, id.to_owned())));
        }
        for bad in ["", "7", "x:a", "7:%FF"] {
            assert_eq!(read_place(bad), None, "{bad:?}");
        }
    }
}
