//! The columns that a table's rows are read by, under all names that they had.
//!
//! In: the columns as the catalog has them, and as the lane record remembers them. Out: what each was called before. Guarantee:
//! a row is read under the names that it was written under; what a column is called now goes before what it was called.

use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

use super::text;

/// A column that the mapping names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownColumn {
    /// Its name.
    pub name: String,
    /// Its number in the table, which a rename leaves alone.
    pub attnum: i16,
    /// What it was called before, the last name last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<FormerName>,
}

/// What a column was called before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FormerName {
    name: String,
    /// What commits behind this was written under another one.
    #[serde(with = "text")]
    until: PgLsn,
}

impl KnownColumn {
    /// As the catalog has it.
    pub fn new(name: String, attnum: i16) -> Self {
        KnownColumn {
            name,
            attnum,
            former: Vec::new(),
        }
    }

    /// What it was called in front of a transaction that commits at `lsn`, or in it; the last name first.
    pub(crate) fn former_names(&self, lsn: PgLsn) -> impl Iterator<Item = &str> {
        let former = self.former.iter().rev();
        let former = former.filter(move |former| lsn <= former.until);
        former.map(|former| former.name.as_str())
    }

    /// The same column, with the names that it had when it was recorded: the WAL that ends at `server_lsn` has them, and nothing
    /// is read again that ends in front of `confirmed_lsn`.
    fn behind(mut self, recorded: &Self, server_lsn: PgLsn, confirmed_lsn: PgLsn) -> Self {
        self.former.clone_from(&recorded.former);
        if recorded.name != self.name {
            self.former.push(FormerName {
                name: recorded.name.clone(),
                until: server_lsn,
            });
        }
        let name = &self.name;
        self.former
            .retain(|former| former.name != *name && former.until >= confirmed_lsn);
        self
    }
}

/// Columns of the same table go on with what is recorded. One that is recorded and is not among them stays: the configuration may
/// name it under its new name the next time.
pub(crate) fn continued(
    now: &[KnownColumn],
    recorded: &[KnownColumn],
    server_lsn: PgLsn,
    confirmed_lsn: PgLsn,
) -> Vec<KnownColumn> {
    let same = |column: &KnownColumn, columns: &[KnownColumn]| {
        let mut columns = columns.iter();
        columns.find(|it| it.attnum == column.attnum).cloned()
    };
    let known = now
        .iter()
        .cloned()
        .map(|column| match same(&column, recorded) {
            Some(recorded) => column.behind(&recorded, server_lsn, confirmed_lsn),
            None => column,
        });
    let left = recorded.iter().filter(|column| same(column, now).is_none());
    known.chain(left.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(columns: &[(&str, i16)]) -> Vec<KnownColumn> {
        let columns = columns.iter();
        columns
            .map(|(name, attnum)| KnownColumn::new((*name).to_owned(), *attnum))
            .collect()
    }

    fn former(columns: &[KnownColumn], name: &str, lsn: u64) -> Vec<String> {
        let column = columns.iter().find(|column| column.name == name).unwrap();
        column.former_names(lsn.into()).map(str::to_owned).collect()
    }

    #[test]
    fn a_column_keeps_its_names_as_long_as_the_wal_has_them() {
        let first = known(&[("id", 1), ("body", 2)]);
        // Nobody has followed the rename yet.
        let unnamed = continued(&known(&[("body", 2)]), &first, 50.into(), 0.into());
        let second = continued(
            &known(&[("eid", 1), ("body", 2)]),
            &unnamed,
            100.into(),
            40.into(),
        );
        assert_eq!(former(&second, "eid", 100), ["id"]);
        assert!(former(&second, "eid", 101).is_empty());
        assert!(former(&second, "body", 1).is_empty());
        let third = continued(&known(&[("key", 1)]), &second, 200.into(), 90.into());
        assert_eq!(former(&third, "key", 80), ["eid", "id"]);
        assert_eq!(former(&third, "key", 150), ["eid"]);
        let back = continued(&known(&[("id", 1)]), &third, 300.into(), 150.into());
        assert_eq!(former(&back, "id", 150), ["key", "eid"]);
        let confirmed = continued(&known(&[("id", 1)]), &back, 400.into(), 301.into());
        assert!(former(&confirmed, "id", 0).is_empty());
    }

    #[test]
    fn another_column_has_names_of_its_own() {
        let first = known(&[("id", 1)]);
        let other = continued(&known(&[("id", 7)]), &first, 100.into(), 0.into());
        assert!(former(&other, "id", 0).is_empty());
    }
}
