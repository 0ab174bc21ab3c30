//! Under which names the publication is read: the WAL is decoded by the catalog of its own time, also by the name that the
//! publication had then.
//!
//! In: the names in the lane record, the name and OID of today. Out: the names that the WAL behind the slot's place may need, in
//! order. Guarantee: only names of one publication. A name at which it is missing is told by Postgres, and never passes over rows;
//! under the name of another publication rows could be missing without a word.

use super::text;
use postgres_types::PgLsn;
use serde::{Deserialize, Serialize};

/// A name of the publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationName {
    /// As in the configuration.
    pub name: String,
    /// OID of the publication, which outlives a name.
    pub oid: u32,
    /// Here in the WAL the publication had the name.
    #[serde(with = "text")]
    pub seen_lsn: PgLsn,
}

/// The names that the WAL from `confirmed_lsn` on may need, the present one last. What is recorded counts as far as it is of the
/// same publication; `is_taken` says of a name that another publication has it now.
pub fn names(
    recorded: &[PublicationName],
    now: PublicationName,
    confirmed_lsn: PgLsn,
    is_taken: impl Fn(&str) -> bool,
) -> Vec<PublicationName> {
    let is_former = |known: &&PublicationName| {
        known.oid == now.oid && (known.name == now.name || !is_taken(&known.name))
    };
    let mut names: Vec<_> = recorded.iter().filter(is_former).cloned().collect();
    if names.len() < recorded.len() {
        names.clear();
    }
    if names.last().is_none_or(|last| last.name != now.name) {
        names.push(now);
    }
    let needless = names
        .windows(2)
        .take_while(|pair| pair[1].seen_lsn <= confirmed_lsn)
        .count();
    names.drain(..needless);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, oid: u32, seen_lsn: u64) -> PublicationName {
        PublicationName {
            name: name.into(),
            oid,
            seen_lsn: seen_lsn.into(),
        }
    }

    #[test]
    fn the_names_of_one_publication_are_read_in_their_order() {
        let free = |_: &str| false;
        let (old, new) = (named("old", 1, 10), named("new", 1, 20));
        assert_eq!(
            names(&[], old.clone(), 0.into(), free),
            std::slice::from_ref(&old)
        );
        let both = names(std::slice::from_ref(&old), new.clone(), 15.into(), free);
        assert_eq!(both, [old.clone(), new.clone()]);
        // The same name again is no new one, and back is one.
        assert_eq!(names(&both, named("new", 1, 30), 15.into(), free), both);
        let back = named("old", 1, 30);
        let all = [old, new.clone(), back.clone()];
        assert_eq!(names(&both, back.clone(), 15.into(), free), all);
        // What is confirmed needs no name any more.
        assert_eq!(
            names(&all, back.clone(), 20.into(), free),
            [new, back.clone()]
        );
        assert_eq!(names(&all, back.clone(), 30.into(), free), [back]);
    }

    #[test]
    fn another_publication_lends_no_name() {
        let old = named("old", 1, 10);
        let made_anew = named("new", 2, 20);
        let read = names(
            std::slice::from_ref(&old),
            made_anew.clone(),
            0.into(),
            |_| false,
        );
        assert_eq!(read, [made_anew]);
        let renamed = named("new", 1, 20);
        let read = names(&[old], renamed.clone(), 0.into(), |name| name == "old");
        assert_eq!(read, [renamed]);
    }
}
