//! What carries the table's rows into the WAL that a slot sends, and what a person must hear where that has changed.
//!
//! In: what the catalog said at two moments. Out: the words, or nothing. Guarantee: pure.

use super::text;
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What carries the table's rows into the replication stream, as the catalog had it at one moment. Postgres passes
/// over a row whose table was not in the publication when it committed, and says nothing (manual, 29.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrier {
    /// Names table, publication and the tie between them; another one after any of them was changed or made again.
    pub identity: String,
    /// Names what ALTER TABLE has rewritten, the table or partitions of it, and the rewrite: another one after each.
    #[serde(default)]
    pub(crate) rewrites: Vec<String>,
    /// End of the WAL at that moment.
    #[serde(with = "text")]
    pub(crate) seen_lsn: PgLsn,
    /// The entries of the publication were written by one transaction with those of all other lanes of the outbox, as `walrelay reshard`
    /// writes them: what was there before it, that has looked at.
    #[serde(skip)]
    pub(crate) is_resharded: bool,
    /// The same of further tables, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) further: BTreeMap<String, Carrier>,
}

impl Carrier {
    /// Whether `now` is the same where the publication has got another name: a name is part of its row, of which the identity has the
    /// transaction that wrote it.
    pub(crate) fn is_same_but_for_a_name(&self, now: &Carrier) -> bool {
        let both = self.further.iter();
        let mut both = both.filter_map(|(name, before)| Some((before, now.further.get(name)?)));
        unwritten(&self.identity) == unwritten(&now.identity)
            && now
                .rewrites
                .iter()
                .all(|found| self.rewrites.contains(found))
            && both.all(|(before, now)| before.is_same_but_for_a_name(now))
    }

    /// Whether `now` is the same but for the rows of which the lane has become by another number of shares: what it has no more, another
    /// lane has.
    pub(crate) fn is_same_but_for_a_reshard(&self, now: &Carrier) -> bool {
        let both = self.further.iter();
        let mut both = both.filter_map(|(name, before)| Some((before, now.further.get(name)?)));
        let is_same = self.identity == now.identity
            || now.is_resharded
                && without_entries(&self.identity) == without_entries(&now.identity);
        is_same
            && (now.rewrites.iter()).all(|found| self.rewrites.contains(found))
            && both.all(|(before, now)| before.is_same_but_for_a_reshard(now))
    }

    /// What a person must hear when `now` is found where `self` was before.
    pub fn change(&self, now: &Carrier) -> Option<String> {
        // A partition that is gone takes its rewrites along; only a new one says something.
        let is_rewritten = now
            .rewrites
            .iter()
            .any(|rewrite| !self.rewrites.contains(rewrite));
        let (what, which) = if self.identity != now.identity {
            (
                "publication or table was changed or made again",
                "that committed while the publication did not carry the table",
            )
        } else if is_rewritten {
            (
                "ALTER TABLE has rewritten the table, or a partition of it,",
                "that committed between a SET UNLOGGED and its SET LOGGED; any other form of it loses none",
            )
        } else {
            // A table that is new here, or no longer asked for, says nothing.
            let both = self.further.iter();
            let mut both =
                both.filter_map(|(name, before)| Some((name, before, now.further.get(name)?)));
            return both.find_map(|(name, before, now)| {
                let change = before.change(now)?;
                Some(format!("table {name}: {change}"))
            });
        };
        Some(format!(
            "{what} between {} and {}: Postgres never sends the rows {which}. `walrelay verify` names them, \
             `walrelay backfill` publishes them",
            self.seen_lsn, now.seen_lsn
        ))
    }
}

/// An identity without the publication's entries: `publication OID/XMIN, table OID`.
fn without_entries(identity: &str) -> Option<&str> {
    Some(identity.split_once(", entries ")?.0)
}

/// An identity without the transaction that wrote the publication's row: `publication OID/XMIN, …`.
fn unwritten(identity: &str) -> Option<(&str, &str)> {
    let (publication, rest) = identity.split_once(", ")?;
    let (oid, _) = publication.split_once('/')?;
    Some((oid, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(publication: &str, entries: &str, is_resharded: bool) -> Carrier {
        Carrier {
            identity: format!("publication {publication}, table 7, entries {entries}"),
            rewrites: Vec::new(),
            seen_lsn: 0.into(),
            is_resharded,
            further: BTreeMap::new(),
        }
    }

    #[test]
    fn a_change_of_shares_writes_new_entries_and_nothing_else() {
        let before = carrier("1/2", "3", false);
        let is_same = |now: &Carrier| before.is_same_but_for_a_reshard(now);
        assert!(is_same(&before));
        assert!(is_same(&carrier("1/2", "4", true)));
        assert!(!is_same(&carrier("1/2", "4", false)), "by hand");
        assert!(!is_same(&carrier("5/6", "4", true)), "another publication");
        let rewritten = Carrier {
            rewrites: vec!["7/8".to_owned()],
            ..carrier("1/2", "4", true)
        };
        assert!(!is_same(&rewritten));
        let mut further = carrier("1/2", "4", true);
        let mut before = before.clone();
        let table = "public.audit".to_owned();
        before
            .further
            .insert(table.clone(), carrier("1/2", "5", false));
        further.further.insert(table, carrier("1/2", "6", false));
        assert!(!before.is_same_but_for_a_reshard(&further));
    }
}
