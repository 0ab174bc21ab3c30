//! Dead letters as a source: their events, and the marks that say what has become of them.
//!
//! In: where dead letters stand. Out: their rows' messages, as the table has the rows now or else as the letters have them; a
//! mark for each. Guarantees: the same envelope as the relay's; of several letters of one event the first that makes it; a letter is
//! read when its turn comes, so memory does not grow with their number.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail, ensure};
use tokio::sync::mpsc;

use super::rows::{Looked, RowText, Rows, columns};
use super::source::{AHEAD, Source};
use super::{Item, Sourced};
use crate::nats::api::StoredMessage;
use crate::pipeline::dead_letter::same_row::of_another;
use crate::pipeline::dead_letter::state::{Mark, State};
use crate::pipeline::dead_letter::{self, DeadLetter};
use crate::pipeline::end_search::Lookup;
use crate::pipeline::event_id;
use crate::pipeline::kind::Kind;
use crate::pipeline::mapping::Mapping;
use crate::pipeline::position::{
    KIND_HEADER, KIND_RETRY, POSITION_HEADER, Position, RETRY_HEADER, TABLE_HEADER,
};
use crate::pipeline::tables::Former;
use crate::pipeline::value::is_json;
use crate::relay::lane_client::LaneClient;
use crate::relay::open::formers;
use crate::relay::settings::Settings;

/// A dead letter in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In the lane; the name of what comes of it.
    pub position: Position,
    /// In the stream.
    pub sequence: u64,
}

/// A dead letter whose event is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where it is, or was.
    pub place: Place,
    /// The event's id.
    pub id: Option<String>,
    /// The further table of the lane that its row is of.
    pub table: Option<String>,
    /// The stream has it no more.
    pub is_gone: bool,
}

/// A further table of the lane, and an id.
type RowName = (Option<String>, String);

impl Wanted {
    /// What tells the row, where the letter does: a long id is cut, and others begin like it.
    fn row(&self) -> Option<RowName> {
        let id = self.id.clone();
        let whole = id.filter(|id| id.len() < dead_letter::SHOWN_BYTES_MAX)?;
        Some((self.table.clone(), whole))
    }
}

/// The letters of a row with several, that were made events.
#[derive(Debug, Default)]
struct Made {
    /// The letters' names, and whether the event is of the table's row.
    of_rows: HashMap<RowName, Vec<(String, bool)>>,
}

impl Made {
    /// Of the rows that have several of these letters.
    fn among(letters: &[Wanted]) -> Self {
        let mut counts: HashMap<_, usize> = HashMap::new();
        for row in letters.iter().filter_map(Wanted::row) {
            *counts.entry(row).or_default() += 1;
        }
        counts.retain(|_, count| *count > 1);
        Made {
            of_rows: counts.into_keys().map(|row| (row, Vec::new())).collect(),
        }
    }

    /// Takes a letter that makes an event; the name of the one before that has made it.
    fn take(&mut self, letter: &Wanted, name: &str, is_of_table: bool) -> Option<String> {
        let of_row = self.of_rows.get_mut(&letter.row()?)?;
        // Another id than a UUID may be given out again, and the letters tell two events; the table's row is one.
        let is_sure = letter.id.as_deref().is_some_and(event_id::is_uuid);
        let mut before = of_row.iter();
        let same = before.find(|(_, of_table)| is_sure || is_of_table && *of_table);
        let same = same.map(|(name, _)| name.clone());
        if same.is_none() {
            of_row.push((name.to_owned(), is_of_table));
        }
        same
    }
}

/// Other values of columns, for these publications alone.
pub type Values = BTreeMap<String, String>;

/// The events of these dead letters, each marked as its retry; the rows as the session of that look has them.
///
/// # Errors
/// The table cannot be read.
pub(crate) async fn events(
    settings: &Settings,
    looked: &Looked,
    lane: &LaneClient,
    letters: Vec<Wanted>,
    values: Values,
) -> anyhow::Result<Source> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let created = lane.stream().await?.created;
    let record = lane.record().await?.record;
    let formers = formers(&looked.inspection, settings, record.as_ref(), &created);
    let rows = Rows::all(looked, settings).await?.into_iter();
    let tables = rows.zip(settings.tables()).zip(formers);
    let tables = tables.map(|((rows, settings), former)| Outbox {
        rows,
        id_column: settings.postgres.id_column().to_owned(),
        mapping: settings.mapping(),
        former,
    });
    let tables = tables.collect();
    let reader = Reader {
        tables,
        slot: settings.postgres.slot.clone(),
        lane: lane.clone(),
        values,
    };
    let mut made = Made::among(&letters);
    tokio::spawn(async move {
        for letter in letters {
            let sourced = reader.sourced(&letter, &mut made).await;
            let ends = sourced.is_err();
            let chunk = sourced.map(|sourced| vec![sourced]);
            if sender.send(chunk).await.is_err() || ends {
                return;
            }
        }
    });
    Ok(receiver)
}

/// The marks by which dead letters of `slot` get this state.
pub fn marks(slot: &str, state: State, marks: Vec<Mark>) -> Source {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let slot = slot.to_owned();
    tokio::spawn(async move {
        for mark in marks {
            let item = Item {
                subject: dead_letter::subject(&slot).into_bytes(),
                headers: mark.headers(&slot, state).into_bytes(),
                body: mark.to_json().into(),
                name: mark.position,
            };
            if sender.send(Ok(vec![Sourced::Item(item)])).await.is_err() {
                return;
            }
        }
    });
    receiver
}

struct Reader {
    /// The lane's own first.
    tables: Vec<Outbox>,
    slot: String,
    lane: LaneClient,
    values: Values,
}

/// One table of the lane.
struct Outbox {
    rows: Rows,
    id_column: String,
    mapping: Mapping,
    /// Which letters are of another table, which was the outbox before.
    former: Option<Former>,
}

impl Reader {
    /// What comes of a letter.
    ///
    /// # Errors
    /// The stream cannot be read: nothing comes of the others either.
    async fn sourced(&self, letter: &Wanted, made: &mut Made) -> anyhow::Result<Sourced> {
        let Place { position, sequence } = letter.place;
        let name = position.to_string();
        let item = match letter.is_gone {
            true => self.item_of_gone(letter).await.map(|item| (item, true)),
            false => match self.lane.message(Lookup::Message(sequence)).await? {
                Some(message) => self.item(position, &message).await,
                None => Err(anyhow::anyhow!("the stream no longer has it")),
            },
        };
        Ok(match item {
            Ok((item, is_of_table)) => match made.take(letter, &name, is_of_table) {
                Some(of) => Sourced::Same { name, of },
                None => Sourced::Item(item),
            },
            Err(why) => Sourced::Rejected {
                name,
                why: format!("{why:#}"),
            },
        })
    }

    /// The letter's event, and whether it is of the table's row.
    async fn item(
        &self,
        position: Position,
        message: &StoredMessage,
    ) -> anyhow::Result<(Item, bool)> {
        let letter: DeadLetter =
            serde_json::from_slice(&message.data).context("it cannot be read")?;
        let outbox = self.outbox(position, message.header_text(TABLE_HEADER))?;
        let id = letter.id.as_deref().unwrap_or_default();
        let is_former = outbox.is_former(message.seq, id, |name| message.header_text(name));
        let in_table = match letter.kinds {
            // It never had a row.
            Some(_) => None,
            // The ids of the present table may have begun anew.
            None if is_former => None,
            None => outbox.in_table(&letter).await?,
        };
        let differs = in_table
            .as_ref()
            .and_then(|row| of_another(&letter, &row.columns, &outbox.mapping));
        if let Some(column) = differs {
            let other = "the table has another row with its id, which was given out again, and the dead letter";
            let row = outbox.in_letter(&letter, &self.values, other);
            // Whoever has mended more of the row than the letter complains of is told why that does not count.
            return row
                .and_then(|row| self.item_of_row(position, outbox, row))
                .map(|item| (item, false))
                .map_err(|why| {
                    anyhow::anyhow!(
                        "{why:#}; the table's row with its id has another {column}, so it is not taken for this event: if it is, set what \
                         does not fit by walrelay dead-letters retry {position} --set COLUMN=VALUE"
                    )
                });
        }
        let is_of_table = in_table.is_some();
        let row = match in_table {
            Some(row) => row,
            None => {
                let gone = match letter.kinds {
                    None if is_former => {
                        "its row is of a table that was the outbox before, and the dead letter"
                    }
                    Some(_) => "it was written without a table, and the dead letter",
                    None => "the table no longer has its row, and the dead letter",
                };
                outbox.in_letter(&letter, &self.values, gone)?
            }
        };
        Ok((self.item_of_row(position, outbox, row)?, is_of_table))
    }

    /// Of the row as the table has it: the letter, which had it too, is gone.
    async fn item_of_gone(&self, letter: &Wanted) -> anyhow::Result<Item> {
        let Place { position, sequence } = letter.place;
        let outbox = self.outbox(position, letter.table.as_deref())?;
        let id = letter.id.as_ref();
        let id =
            id.context("the stream no longer has the dead letter, and it did not tell its row")?;
        let told = format!("{} {position}", self.slot);
        let header = |name: &'static str| (name == POSITION_HEADER).then_some(told.as_str());
        ensure!(
            !outbox.is_former(sequence, id, header),
            "the stream no longer has the dead letter, and its row is of a table that was the outbox before"
        );
        let row = outbox.rows.find(id).await?;
        let row = row.with_context(|| {
            format!("neither the stream has the dead letter any more nor the table its row {id}")
        })?;
        self.item_of_row(position, outbox, row)
    }

    /// The table of the lane with this name in its header.
    fn outbox(&self, position: Position, table: Option<&str>) -> anyhow::Result<&Outbox> {
        let mut tables = self.tables.iter();
        tables
            .find(|outbox| outbox.mapping.message.table.as_deref() == table)
            .with_context(|| {
                let table = table.unwrap_or_default();
                format!(
                    "its row is of table {table}, which [[source.tables]] does not name: put an entry with name = {table:?} there, or \
                     walrelay dead-letters discard {position} --reason 'its table is named no more'"
                )
            })
    }

    fn item_of_row(
        &self,
        position: Position,
        outbox: &Outbox,
        mut row: RowText,
    ) -> anyhow::Result<Item> {
        for (name, value) in &self.values {
            row.columns.insert(name.clone(), Some(value.clone()));
            if let Some(kinds) = &mut row.kinds {
                let is = kinds.entry(name.clone()).or_default();
                let needs_json =
                    matches!(*is, Kind::Json | Kind::Integer | Kind::Number | Kind::Truth);
                if needs_json && !is_json(value.as_bytes()) {
                    *is = Kind::Text;
                }
            }
        }
        let parts = outbox.rows.parts(&row)?;
        let mark = format!(
            "{KIND_HEADER}: {KIND_RETRY}\r\n{RETRY_HEADER}: {} {position}\r\n",
            self.slot
        );
        Ok(Item {
            name: position.to_string(),
            subject: parts.subject.into_bytes(),
            headers: (mark + &parts.headers).into_bytes(),
            body: parts.body,
        })
    }
}

impl Outbox {
    fn is_former<'h>(
        &self,
        sequence: u64,
        id: &str,
        header: impl Fn(&'static str) -> Option<&'h str>,
    ) -> bool {
        self.former
            .is_some_and(|former| former.has(sequence, id, header))
    }

    /// The row as the table has it now; none where it is gone, or has no id to find it by.
    async fn in_table(&self, letter: &DeadLetter) -> anyhow::Result<Option<RowText>> {
        let row = letter.row.as_ref();
        // Beside it, long ones are cut, and bytes are told as a UUID.
        let whole = row.and_then(|row| row.get(&self.id_column));
        let whole = whole.cloned().flatten().filter(|id| id.len() > 200);
        match whole.or_else(|| letter.id.clone()) {
            Some(id) => self.rows.find(&id).await,
            None => Ok(None),
        }
    }

    /// The row as the relay read it, where the dead letter has all of it that a message needs and that is not set anew; `gone` says
    /// why it is not the table's.
    fn in_letter(
        &self,
        letter: &DeadLetter,
        values: &Values,
        gone: &str,
    ) -> anyhow::Result<RowText> {
        let row = letter.row.as_ref();
        let row = row.with_context(|| format!("{gone} does not hold it"))?;
        for name in columns(&self.mapping) {
            if values.contains_key(name) {
                continue;
            }
            let value = row.get(name);
            let value = value.with_context(|| format!("{gone} has no column {name:?}"))?;
            if let Some(bytes) = letter.truncated.get(name) {
                let kept = value.as_ref().map_or(0, String::len);
                bail!("{gone} has {kept} of the {bytes} bytes of {name:?}");
            }
        }
        Ok(RowText {
            columns: row.clone(),
            committed_at_us: letter.committed_at_us,
            kinds: letter.kinds.clone(),
        })
    }
}
