//! Which table is the outbox: told by the WAL, remembered in the lane record, never by what the catalog says today.
//!
//! In: names and OIDs of relations, as they were at an LSN. Out: whether a relation's rows are the outbox's there. Guarantee: a
//! row that was the outbox's once is so each time it is decoded, whatever was renamed, dropped or made since.
//!
//! The outbox is the table of the configured name. It stays the outbox under any other name, as long as no other table has
//! taken the name: the first rows of that one begin a new [`Period`]. So a table that is renamed and renamed back loses no
//! row; and of a copy that takes the name, what was copied before is not published again.

use super::event_id;
use super::id_column::IdColumn;
use super::known_columns::{self, KnownColumn};
use super::position::{
    BACKFILL_HEADER, DEAD_LETTER_HEADER, POSITION_HEADER, RETRY_HEADER, parse_header,
};
use super::{text, text_option};
use crate::table_name::TableName;
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

/// From where on a table is the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// The further outbox of the lane that it is of, by its configured name; empty for the lane's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub outbox: String,
    /// Schema of the table.
    pub schema: String,
    /// The name that was configured.
    pub table: String,
    /// OID of the table; 0 for none.
    pub oid: u32,
    /// Behind the transaction that commits here. In that one, and in front of the first period, the name alone tells.
    #[serde(with = "text")]
    pub from: PgLsn,
    /// The configuration named the outbox no more. Named again, it begins anew; its messages stay its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// What commits in front of this is of another table, which was the outbox before; none where no other one is known.
    #[serde(default, with = "text_option", skip_serializing_if = "Option::is_none")]
    pub alone_from: Option<PgLsn>,
    /// The column of its ids, as the catalog had it; none where nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<IdColumn>,
    /// The columns that its rows are read by, as the catalog had them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<KnownColumn>,
}

impl Period {
    fn has_name(&self, schema: &str, table: &str) -> bool {
        self.schema == schema && self.table == table
    }

    /// [`Period::alone_from`] of the period behind this one, of the table with that OID from `from` on.
    fn alone_before(&self, oid: u32, from: PgLsn) -> Option<PgLsn> {
        match self.oid != oid && self.oid != 0 && oid != 0 {
            true => Some(from),
            false => self.alone_from,
        }
    }

    /// Its columns, with the names that they had where the table was recorded.
    fn columns_behind(&self, recorded: &[Period], confirmed_lsn: PgLsn) -> Vec<KnownColumn> {
        let mut before = recorded.iter().rev();
        let before = before.find(|it| it.outbox == self.outbox && it.oid == self.oid);
        let before = before.map_or(&[][..], |before| &before.columns);
        known_columns::continued(&self.columns, before, self.from, confirmed_lsn)
    }

    /// What the column of this name was called in front of a transaction that commits at `lsn`, or in it; the last name first.
    pub(crate) fn former_names(&self, name: &str, lsn: PgLsn) -> impl Iterator<Item = &str> {
        let mut columns = self.columns.iter();
        let column = columns.find(|column| column.name == name);
        column
            .into_iter()
            .flat_map(move |column| column.former_names(lsn))
    }

    /// The same, of an outbox that the configuration names no more.
    #[must_use]
    pub(crate) fn ended(mut self) -> Self {
        self.ended = true;
        self
    }
}

/// A table that the lane knows by the name of another outbox: its messages tell that one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}. {}", self.reason(), self.remedy())]
pub struct Renamed {
    /// The outbox that it was, by its configured name; empty for the lane's own.
    known: String,
    /// The one that it is now; empty as there.
    now: String,
    /// The table, as SQL has it.
    table: String,
}

impl Renamed {
    /// Whether the configuration gives a table of the lane to another outbox: messages are told apart by the outbox's name, so
    /// those from before would be nobody's.
    pub(crate) fn find<'t>(
        mut outboxes: impl Iterator<Item = &'t Tables>,
        recorded: &[Period],
    ) -> Option<Self> {
        let last = |outbox: &str| recorded.iter().rfind(|period| period.outbox == outbox);
        outboxes.find_map(|tables| {
            let now = tables.current();
            let is_it = |period: &Period| period.oid == now.oid;
            if now.oid == 0 || last(&now.outbox).is_some_and(is_it) {
                return None;
            }
            let mut others = recorded.iter().rev().filter(|period| is_it(period));
            // An outbox that has gone over to another table since is not it.
            let known = others.find(|period| last(&period.outbox) == Some(*period))?;
            Some(Renamed {
                known: known.outbox.clone(),
                now: now.outbox.clone(),
                table: TableName {
                    schema: now.schema.clone(),
                    table: now.table.clone(),
                }
                .to_string(),
            })
        })
    }

    /// What is known.
    pub fn reason(&self) -> String {
        let known = match self.known.is_empty() {
            true => "as its own table, whose messages have no Walrelay-Table".to_owned(),
            false => format!(
                "as {}, which its messages tell in Walrelay-Table",
                self.known
            ),
        };
        format!(
            "the lane knows table {} {known}: under another name, nothing would find them again",
            self.table
        )
    }

    /// The way on, as a person can type it.
    pub fn remedy(&self) -> String {
        let Renamed { known, now, table } = self;
        let entry = format!("name = {known:?}");
        let both = format!("{entry} and table = {table:?}");
        let lines = match known == table {
            true => &entry,
            false => &both,
        };
        match (known.is_empty(), now.is_empty()) {
            (true, _) => format!(
                "Set postgres.table to {table}, and give the entry of {now} in [[source.tables]] another table or remove it"
            ),
            (_, true) => format!(
                "Set postgres.table to the table that it was, and set {lines} in an entry of [[source.tables]]"
            ),
            _ => format!("In the entry of {now} in [[source.tables]], set {lines}"),
        }
    }
}

/// The outbox's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// In the order of the WAL; never empty.
    periods: Vec<Period>,
}

/// Which messages of an outbox are of another table that was it before: the ids of the present one may begin again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Former {
    /// What commits in front of this is of the other one.
    from: PgLsn,
    /// OID of the present one.
    oid: u32,
    /// Messages up to this sequence have positions in another history of the WAL, from before that.
    adopted_sequence: u64,
}

impl Former {
    /// The same, in a lane that was adopted behind that sequence.
    #[must_use]
    pub(crate) fn behind(self, adopted_sequence: u64) -> Self {
        Former {
            adopted_sequence,
            ..self
        }
    }

    /// Whether a message of the outbox, with these headers, is of another table, or nothing tells. A UUID tells it by
    /// itself.
    pub(crate) fn has<'h>(
        &self,
        sequence: u64,
        id: &str,
        header: impl Fn(&'static str) -> Option<&'h str>,
    ) -> bool {
        if event_id::is_uuid(id) {
            return false;
        }
        if sequence <= self.adopted_sequence {
            return true;
        }
        let mut places = [POSITION_HEADER, RETRY_HEADER, DEAD_LETTER_HEADER].into_iter();
        if let Some(place) = places.find_map(&header) {
            let place = parse_header(place);
            return place.is_ok_and(|(_, position)| position.commit_lsn < self.from);
        }
        let oid = header(BACKFILL_HEADER).and_then(|told| told.split(' ').nth(1));
        oid.and_then(|oid| oid.parse().ok()) != Some(self.oid)
    }
}

/// What a relation is at an LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The outbox.
    Outbox,
    /// Another table that has the outbox's name now.
    Successor,
    /// Another table.
    Other,
}

impl Tables {
    /// The table as configured and as the catalog has it, with the WAL's end: `oid` 0 for none.
    pub fn new(schema: String, table: String, oid: u32, server_lsn: PgLsn) -> Self {
        let period = Period {
            outbox: String::new(),
            schema,
            table,
            oid,
            from: server_lsn,
            ended: false,
            alone_from: None,
            id: None,
            columns: Vec::new(),
        };
        Tables {
            periods: vec![period],
        }
    }

    /// The same, with the columns that its rows are read by.
    #[must_use]
    pub(crate) fn of_columns(mut self, columns: &[KnownColumn]) -> Self {
        for period in &mut self.periods {
            columns.clone_into(&mut period.columns);
        }
        self
    }

    /// The same, with the column of its ids.
    #[must_use]
    pub fn of_id(mut self, id: Option<IdColumn>) -> Self {
        for period in &mut self.periods {
            period.id.clone_from(&id);
        }
        self
    }

    /// The same, of a further outbox of the lane; of the lane's own where the name is empty.
    #[must_use]
    pub fn of_further(mut self, outbox: &str) -> Self {
        for period in &mut self.periods {
            outbox.clone_into(&mut period.outbox);
        }
        self
    }

    /// The present table is the outbox no sooner than behind `lsn`.
    pub(crate) fn begin_at(&mut self, lsn: PgLsn) {
        if let Some(now) = self.periods.last_mut() {
            now.from = now.from.max(lsn);
        }
    }

    /// Goes on with what is recorded, of which nothing is needed any more that ends at or below `confirmed_lsn`. Another
    /// name in the configuration is a new period from the WAL's end on, of the same table or of another one.
    /// A further outbox that is not recorded beside others has no row in front of the WAL's end.
    pub(crate) fn continued(self, recorded: &[Period], confirmed_lsn: PgLsn) -> Self {
        let now = self.current();
        let columns = now.columns_behind(recorded, confirmed_lsn);
        let is_own = |period: &&Period| period.outbox == now.outbox && !period.ended;
        let mut periods: Vec<Period> = recorded.iter().filter(is_own).cloned().collect();
        if periods.is_empty() && !recorded.is_empty() {
            periods.push(Period {
                table: String::new(),
                oid: 0,
                from: 0.into(),
                id: None,
                columns: Vec::new(),
                ..now.clone()
            });
        }
        if let Some(last) = periods.last_mut()
            && last.oid == now.oid
        {
            last.id = now.id.clone().or(last.id.take());
            last.columns.clone_from(&columns);
        }
        let is_known = |last: &Period| last.has_name(&now.schema, &now.table);
        if !periods.last().is_some_and(is_known) {
            let mut before = recorded.iter().rev();
            let before = before.find(|it| it.outbox == now.outbox && it.oid != 0);
            let alone_from = before.and_then(|before| before.alone_before(now.oid, now.from));
            periods.push(Period {
                alone_from,
                columns,
                ..now.clone()
            });
        }
        let needless = periods
            .windows(2)
            .take_while(|pair| pair[1].from < confirmed_lsn)
            .count();
        periods.drain(..needless);
        Tables { periods }
    }

    /// What is to be recorded.
    pub(crate) fn periods(&self) -> &[Period] {
        &self.periods
    }

    /// The last period.
    pub fn current(&self) -> &Period {
        self.periods.last().expect("there is one at least")
    }

    /// What a relation is in a transaction that commits at `lsn`.
    pub fn verdict(&self, schema: &str, table: &str, oid: u32, lsn: PgLsn) -> Verdict {
        let by_name = |period: &Period| match period.has_name(schema, table) {
            true => Verdict::Outbox,
            false => Verdict::Other,
        };
        if let Some(begins) = self.periods.iter().rfind(|period| period.from == lsn) {
            return by_name(begins);
        }
        match self.periods.iter().rfind(|period| period.from < lsn) {
            None => by_name(&self.periods[0]),
            Some(period) if period.oid == 0 => by_name(period),
            Some(period) if period.oid == oid => Verdict::Outbox,
            Some(period) if period.has_name(schema, table) => Verdict::Successor,
            Some(_) => Verdict::Other,
        }
    }

    /// What of the lane is of another table than the one that the catalog has by the configured name, at the end of the WAL.
    pub(crate) fn former(&self, oid: u32, server_lsn: PgLsn) -> Option<Former> {
        let from = match self.is_met(oid) {
            true => self.current().alone_from?,
            false => server_lsn,
        };
        Some(Former {
            from,
            oid,
            adopted_sequence: 0,
        })
    }

    /// Whether the table that the catalog has by the configured name is the one that the WAL had last, as far as it was read.
    pub(crate) fn is_met(&self, oid: u32) -> bool {
        let now = self.current();
        now.oid == 0 || now.oid == oid
    }

    /// Whether a verdict may change between a transaction that commits at `before` and one at `lsn` behind it.
    #[inline]
    pub(crate) fn changes_between(&self, before: PgLsn, lsn: PgLsn) -> bool {
        let changes = |period: &Period| before <= period.from && period.from <= lsn;
        self.periods.iter().any(changes)
    }

    /// Another table has taken the name, in a transaction that commits at `lsn`.
    pub(crate) fn succeed(&mut self, oid: u32, lsn: PgLsn) {
        let last = self.current().clone();
        self.periods.push(Period {
            alone_from: last.alone_before(oid, lsn),
            oid,
            from: lsn,
            id: None,
            columns: Vec::new(),
            ..last
        });
    }

    /// Whether this table is the outbox further on alone, behind a transaction that commits at `lsn`.
    pub(crate) fn begins_behind(&self, oid: u32, lsn: PgLsn) -> bool {
        let mut periods = self.periods.iter().filter(|period| period.oid == oid);
        periods.all(|period| period.from >= lsn)
    }

    /// Whether this table is the outbox at any LSN, under whatever name.
    pub fn knows(&self, oid: u32) -> bool {
        self.periods.iter().any(|period| period.oid == oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Table 1 is the outbox from 0/64 on.
    fn tables() -> Tables {
        Tables::new("public".into(), "outbox".into(), 1, 100.into())
    }

    fn verdict(tables: &Tables, table: &str, oid: u32, lsn: u64) -> Verdict {
        tables.verdict("public", table, oid, lsn.into())
    }

    #[test]
    fn a_name_tells_until_a_table_is_known() {
        let tables = tables();
        assert_eq!(verdict(&tables, "outbox", 7, 99), Verdict::Outbox);
        assert_eq!(verdict(&tables, "outbox_new", 1, 99), Verdict::Other);
        assert_eq!(verdict(&tables, "outbox", 7, 100), Verdict::Outbox);
        assert_eq!(verdict(&tables, "outbox", 7, 101), Verdict::Successor);
    }

    #[test]
    fn a_table_stays_the_outbox_until_another_takes_its_name() {
        let mut tables = tables();
        assert_eq!(verdict(&tables, "away", 1, 150), Verdict::Outbox);
        assert_eq!(verdict(&tables, "copy", 2, 150), Verdict::Other);
        assert_eq!(verdict(&tables, "outbox", 2, 200), Verdict::Successor);
        tables.succeed(2, 200.into());
        // In the very transaction of the change both have been it, each under the name.
        assert_eq!(verdict(&tables, "outbox", 1, 200), Verdict::Outbox);
        assert_eq!(verdict(&tables, "copy", 2, 200), Verdict::Other);
        assert_eq!(verdict(&tables, "outbox", 2, 200), Verdict::Outbox);
        assert_eq!(verdict(&tables, "outbox", 2, 201), Verdict::Outbox);
        assert_eq!(verdict(&tables, "away", 1, 201), Verdict::Other);
        // What was before stays as it was.
        assert_eq!(verdict(&tables, "away", 1, 150), Verdict::Outbox);
        assert_eq!(verdict(&tables, "copy", 2, 150), Verdict::Other);
        // And back.
        assert_eq!(verdict(&tables, "outbox", 1, 300), Verdict::Successor);
        assert!(tables.changes_between(150.into(), 200.into()));
        assert!(tables.changes_between(200.into(), 201.into()));
        assert!(!tables.changes_between(201.into(), 900.into()));
    }

    #[test]
    fn a_new_name_in_the_configuration_begins_at_the_end_of_the_wal() {
        let recorded = tables();
        let renamed = |oid| Tables::new("public".into(), "events".into(), oid, 500.into());
        let same = renamed(1).continued(recorded.periods(), 100.into());
        for (table, lsn) in [("outbox", 300), ("events", 300), ("events", 501)] {
            assert_eq!(verdict(&same, table, 1, lsn), Verdict::Outbox, "{table}");
        }
        let other = renamed(2).continued(recorded.periods(), 100.into());
        assert_eq!(verdict(&other, "outbox", 1, 300), Verdict::Outbox);
        assert_eq!(verdict(&other, "events", 2, 300), Verdict::Other);
        assert_eq!(verdict(&other, "outbox", 1, 501), Verdict::Other);
        assert_eq!(verdict(&other, "events", 2, 501), Verdict::Outbox);
        // What the slot no longer has needs no memory; what the catalog says now changes nothing.
        assert_eq!(
            other
                .clone()
                .continued(other.periods(), 501.into())
                .periods()
                .len(),
            1
        );
        let swapped = Tables::new("public".into(), "outbox".into(), 9, 900.into());
        assert_eq!(swapped.continued(recorded.periods(), 100.into()), recorded);
    }

    #[test]
    fn a_further_table_begins_at_the_end_of_the_wal_of_a_lane_that_has_begun() {
        let further = || {
            let tables = Tables::new("public".into(), "audit".into(), 2, 500.into());
            tables.of_further("public.audit")
        };
        // A lane that begins with it has its rows from its beginning.
        let first = further().continued(&[], 100.into());
        assert_eq!(verdict(&first, "audit", 2, 300), Verdict::Outbox);
        let own = tables();
        let added = further().continued(own.periods(), 100.into());
        assert_eq!(verdict(&added, "audit", 2, 300), Verdict::Other);
        assert_eq!(verdict(&added, "audit", 2, 501), Verdict::Outbox);
        // Each goes on with what is recorded of itself.
        let recorded = [own.periods(), added.periods()].concat();
        assert_eq!(further().continued(&recorded, 100.into()), added);
        assert_eq!(tables().continued(&recorded, 100.into()), own);
        // Once the slot has passed its beginning, that needs no memory.
        let passed = further().continued(&recorded, 501.into());
        assert_eq!(passed.periods().len(), 1);
        // Taken away and named again, it begins anew.
        let ended = added.current().clone().ended();
        let recorded = [own.periods(), &[ended][..]].concat();
        let again = Tables::new("public".into(), "audit".into(), 2, 900.into());
        let again = again.of_further("public.audit");
        let again = again.continued(&recorded, 600.into());
        assert_eq!(verdict(&again, "audit", 2, 700), Verdict::Other);
        assert_eq!(verdict(&again, "audit", 2, 901), Verdict::Outbox);
    }

    #[test]
    fn a_table_under_the_name_of_another_outbox_is_told_by_its_oid() {
        let outbox = |outbox: &str, table: &str, oid| {
            Tables::new("public".into(), table.into(), oid, 500.into()).of_further(outbox)
        };
        let recorded = [
            tables().periods(),
            outbox("public.audit", "audit", 2).periods(),
        ]
        .concat();
        let find = |outboxes: &[Tables], recorded: &[Period]| {
            Renamed::find(outboxes.iter(), recorded).map(|renamed| renamed.remedy())
        };
        let own = tables();
        let journal = outbox("public.journal", "journal", 2);
        let lines = "set name = \"public.audit\" and table = \"public.journal\"";
        let found = find(&[own.clone(), journal.clone()], &recorded).unwrap();
        assert!(found.ends_with(lines), "{found}");
        // As the remedy has it, and another table beside it.
        let mended = outbox("public.audit", "journal", 2);
        let added = outbox("public.journal", "journal2", 3);
        assert_eq!(find(&[own.clone(), mended, added], &recorded), None);
        // A table that is not there, and one that was made anew under the name.
        for oid in [0, 9] {
            let audit = outbox("public.audit", "audit", oid);
            assert_eq!(find(&[own.clone(), audit], &recorded), None);
        }
        // Taken away on purpose, it is nobody's; named again under another name it is.
        let ended = [recorded[0].clone(), recorded[1].clone().ended()];
        assert_eq!(find(std::slice::from_ref(&own), &ended), None);
        assert!(find(&[own.clone(), journal], &ended).is_some());
        assert_eq!(find(&[outbox("public.audit", "audit", 2)], &ended), None);
        // The lane's own table as a further one, and the other way.
        let found = find(&[outbox("public.old", "old", 1)], &recorded).unwrap();
        assert!(found.starts_with("Set postgres.table to public.old"));
        let found = find(&[outbox("", "audit", 2)], &recorded).unwrap();
        assert!(found.ends_with("set name = \"public.audit\" in an entry of [[source.tables]]"));
        // The lane's own has gone over to another table of its name.
        let mut swapped = tables();
        swapped.succeed(7, 200.into());
        assert_eq!(
            find(&[outbox("public.old", "old", 1)], swapped.periods()),
            None
        );
    }
}
