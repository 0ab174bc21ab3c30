//! Names of the configuration that do not fit to what the lane has published.
//!
//! In: tables as they are configured, and as the lane record remembers them. Out: which name it is, and what mends it. Guarantee:
//! nothing is published or compared by names under which messages from before would not be found again.

use super::source::Source;
use super::tables::{Period, Renamed, Tables};
use crate::table_name::TableName;

/// Names of the configuration by which the lane's messages would not be found again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misnamed {
    /// Of a table.
    #[error(transparent)]
    Table(#[from] Renamed),
    /// Of the column of its ids.
    #[error(transparent)]
    Id(#[from] OtherId),
}

impl Source {
    /// Whether the lane's messages are told apart by the names that the configuration gives to tables and their columns.
    ///
    /// # Errors
    /// [`Misnamed`]; of a column only where the lane has published.
    pub(crate) fn check_names(
        &self,
        recorded: &[Period],
        has_published: bool,
    ) -> Result<(), Misnamed> {
        let tables = || self.outboxes.iter().map(|outbox| &outbox.tables);
        if let Some(renamed) = Renamed::find(tables(), recorded) {
            return Err(renamed.into());
        }
        let other_id = OtherId::find(tables(), recorded).filter(|_| has_published);
        other_id.map_or(Ok(()), |other| Err(other.into()))
    }
}

/// The configuration names another column than the one that tells the ids of a table's messages, or that one has another type since.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}. {}", self.reason(), self.remedy())]
pub struct OtherId {
    /// The further table's entry; empty for the lane's own.
    outbox: String,
    /// The table, as SQL has it.
    table: String,
    /// The column that messages tell.
    known: String,
    /// The one that is configured.
    now: String,
    /// Where it is the same one: the type that it had, and the one that it has.
    types: Option<Box<(String, String)>>,
}

impl OtherId {
    /// Whether a table that is recorded has another column for its ids now, or writes them otherwise.
    pub(crate) fn find<'t>(
        mut outboxes: impl Iterator<Item = &'t Tables>,
        recorded: &[Period],
    ) -> Option<Self> {
        outboxes.find_map(|tables| {
            let now = tables.current();
            let mut before = recorded.iter().rev();
            let before = before.find(|it| it.outbox == now.outbox && it.oid == now.oid)?;
            let (known, id) = before.id.as_ref().zip(now.id.as_ref())?;
            let table = TableName {
                schema: now.schema.clone(),
                table: now.table.clone(),
            };
            let is_another = id.is_another_than(known);
            let types = id.writes_otherwise(known).filter(|_| !is_another);
            (is_another || types.is_some()).then(|| OtherId {
                outbox: now.outbox.clone(),
                table: table.to_string(),
                known: known.name.clone(),
                now: id.name.clone(),
                types: types.map(|(was, is)| Box::new((was.to_owned(), is.to_owned()))),
            })
        })
    }

    /// What is known.
    pub fn reason(&self) -> String {
        if let Some((was, is)) = self.types.as_deref() {
            return format!(
                "messages of table {} tell the ids of its column {:?} as {was} wrote them, and it is {is} now: an id that was not written \
                 as {is} writes it (00042, a UUID in upper case) would not be found, and its row count as one that is not published",
                self.table, self.now
            );
        }
        format!(
            "messages of table {} tell its column {:?} as their ids, and the configuration names {:?}: by that, each row that is \
             published would count as one that is not",
            self.table, self.known, self.now
        )
    }

    /// The way on, as a person can type it.
    pub fn remedy(&self) -> String {
        if self.types.is_some() {
            return "If all of them were written so, or their messages may come twice, `walrelay adopt` goes on: `walrelay verify` then finds \
                    those missing that were not, and `walrelay backfill` publishes them again"
                .to_owned();
        }
        let known = &self.known;
        let set = match self.outbox.is_empty() {
            true => format!("Set columns.id = {known:?}"),
            false => format!(
                "In the entry of {} in [[source.tables]], set id = {known:?} in columns",
                self.outbox
            ),
        };
        format!(
            "{set}. To go on with the other one all the same, `walrelay adopt`: `walrelay verify` then finds rows missing whose \
             messages tell {known:?}, and `walrelay backfill` publishes them again"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::id_column::IdColumn;

    fn tables(oid: u32, name: &str, attnum: i16) -> Tables {
        let id = IdColumn {
            name: name.to_owned(),
            attnum,
            base_type: None,
        };
        Tables::new("public".into(), "outbox".into(), oid, 100.into()).of_id(Some(id))
    }

    #[test]
    fn another_column_is_told_and_a_renamed_one_is_not() {
        let recorded = tables(7, "id", 1);
        let find = |now: Tables| OtherId::find([now].iter(), recorded.periods());
        for (oid, name, attnum) in [
            (7, "id", 1),
            (7, "event_id", 1),
            (7, "id", 9),
            (8, "key", 2),
        ] {
            assert_eq!(
                find(tables(oid, name, attnum)),
                None,
                "{oid} {name} {attnum}"
            );
        }
        let found = find(tables(7, "key", 2)).expect("another column");
        assert!(found.remedy().starts_with("Set columns.id = \"id\". "));
        // A record from before columns were recorded tells nothing.
        let before = Tables::new("public".into(), "outbox".into(), 7, 100.into());
        assert_eq!(
            OtherId::find([tables(7, "key", 2)].iter(), before.periods()),
            None
        );
        let further = tables(7, "key", 2).of_further("public.audit");
        let recorded = recorded.of_further("public.audit");
        let found = OtherId::find([further].iter(), recorded.periods()).expect("another column");
        assert!(found.remedy().contains("In the entry of public.audit"));
    }

    #[test]
    fn the_column_is_remembered_under_its_present_name() {
        let recorded = tables(7, "id", 1);
        let renamed = tables(7, "event_id", 1).continued(recorded.periods(), 50.into());
        assert_eq!(
            renamed.current().id.as_ref().map(|id| &*id.name),
            Some("event_id")
        );
        // Nobody has looked at the table that takes the name.
        let mut succeeded = renamed;
        succeeded.succeed(8, 200.into());
        assert_eq!(succeeded.current().id, None);
    }
}
