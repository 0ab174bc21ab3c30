//! How the outbox is divided: what the publications of its lanes carry.
//!
//! In: a client, the lanes' common name. Out: how many shares there are, one where all rows are of one lane. Guarantee: reads only. The
//! publications alone tell: what a configuration says is what somebody wants.

use std::collections::BTreeMap;

use crate::pipeline::reshard::{OtherNumber, has_lane, lanes_of};
use crate::postgres::catalog::{Inspection, server_version, slot_and_wal};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::findings::{Finding, Kind, findings, refuse};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::{self, ROW_FILTERS_SINCE};

mod doubts;

/// What a lane's publication carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried {
    /// No row: the share is not one yet, or no longer.
    Nothing,
    /// The rows of the share, one of so many; all rows are one of one.
    Share(u32),
    /// Whatever somebody has set by hand.
    Other,
}

/// The lanes' publications by the numbers of their shares, none for that of all rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Division {
    carried: BTreeMap<Option<u32>, Carried>,
    /// Tables of which a publication carries no row, as [`PostgresSettings::tables`] has them.
    empty: BTreeMap<Option<u32>, Vec<usize>>,
}

impl Division {
    /// Of the tables that the settings name, which are divided alike: a publication that carries another part of one of them, or lacks
    /// one, is somebody's own.
    ///
    /// # Errors
    /// A failed query, as on a server without row filters.
    pub async fn look(client: &Client, settings: &PostgresSettings) -> Result<Self, SqlError> {
        let share = settings.any_share();
        let query = "SELECT p.pubname::text, pg_get_expr(r.prqual, r.prrelid), n.nspname::text, c.relname::text FROM pg_catalog.pg_publication_rel r \
                     JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))";
        let tables = settings.tables();
        let schemas: Vec<&str> = tables.iter().map(|it| it.table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|it| it.table.table.as_str()).collect();
        let mut filters = BTreeMap::<_, Vec<Option<String>>>::new();
        let mut empty = BTreeMap::<_, Vec<usize>>::new();
        for row in client.query(query, &[&schemas, &names]).await? {
            let name: String = row.try_get(0)?;
            let Some(part) = share.part_of_publication(&name) else {
                continue;
            };
            let filter: Option<String> = row.try_get(1)?;
            if filter.as_deref() == Some(share::NOTHING) {
                let (schema, name): (String, String) = (row.try_get(2)?, row.try_get(3)?);
                let is_it = |(its, named): (&&str, &&str)| (*its, *named) == (&*schema, &*name);
                let table = schemas.iter().zip(&names).position(is_it);
                empty.entry(part).or_default().extend(table);
            }
            filters.entry(part).or_default().push(filter);
        }
        let of_all = |(part, filters): (Option<u32>, Vec<Option<String>>)| {
            (part, carried_of_all(part, &filters, tables.len()))
        };
        Ok(Division {
            carried: filters.into_iter().map(of_all).collect(),
            empty,
        })
    }

    /// How many shares there are, where those that carry rows agree. A publication of all rows beside them is another reader's, or a
    /// mistake, which [`Self::whole`] sees.
    pub fn count(&self) -> Option<u32> {
        let mut counts = self.carrying().filter(|count| *count > 1);
        let Some(first) = counts.next() else {
            return self.carrying().next();
        };
        counts.all(|count| count == first).then_some(first)
    }

    fn carrying(&self) -> impl Iterator<Item = u32> {
        self.carried.values().filter_map(|carried| match carried {
            Carried::Share(count) => Some(*count),
            Carried::Nothing | Carried::Other => None,
        })
    }

    /// How many shares there are, where each of them is there and nothing else carries rows.
    pub fn whole(&self) -> Option<u32> {
        let count = self.count()?;
        let is_there = |part| self.carried.get(&part) == Some(&Carried::Share(count));
        let is_right = |(part, carried): (&Option<u32>, &Carried)| {
            has_lane(count, *part) || *carried == Carried::Nothing
        };
        (lanes_of(count).all(is_there) && self.carried.iter().all(is_right)).then_some(count)
    }

    /// The highest number of a share.
    pub fn last(&self) -> Option<u32> {
        self.carried.keys().next_back().copied().flatten()
    }

    /// Whether a publication is there.
    pub fn has(&self, part: Option<u32>) -> bool {
        self.carried.contains_key(&part)
    }

    /// Whether no row of the table is of this lane.
    pub fn carries_nothing(&self, part: Option<u32>) -> bool {
        (self.carried.get(&part)).is_none_or(|carried| *carried == Carried::Nothing)
    }

    /// The lanes that there are publications of.
    pub fn parts(&self) -> impl Iterator<Item = Option<u32>> {
        self.carried.keys().copied()
    }

    /// That the lane of the settings is none of the shares that there are.
    pub fn lacks(&self, settings: &PostgresSettings) -> Option<OtherNumber> {
        let found = self
            .count()
            .filter(|count| !has_lane(*count, settings.part()))?;
        Some(settings.of_number(found))
    }
}

/// How the outbox is divided; without row filters it is not.
///
/// # Errors
/// A failed query.
pub async fn division(client: &Client, settings: &PostgresSettings) -> Result<Division, SqlError> {
    match server_version(client).await? {
        ROW_FILTERS_SINCE.. => Division::look(client, settings).await,
        _ => Ok(Division::default()),
    }
}

/// Makes sure that the outbox has the number of shares that the settings say: else a lane would be taken for one with the rows of others.
///
/// # Errors
/// An [`OtherNumber`], or a failed query.
#[cfg(feature = "cli")]
pub(crate) async fn check_number(
    client: &Client,
    settings: &PostgresSettings,
) -> anyhow::Result<Division> {
    let division = division(client, settings).await?;
    match other_number(client, settings, &division).await? {
        Some(other) => Err(other.into()),
        None => Ok(division),
    }
}

/// That the outbox has another number of shares than the settings say.
///
/// # Errors
/// A failed query.
pub async fn other_number(
    client: &Client,
    settings: &PostgresSettings,
    division: &Division,
) -> Result<Option<OtherNumber>, SqlError> {
    let share = &settings.any_share();
    let wanted = share.count;
    let Some(found) = division.count().filter(|found| *found != wanted) else {
        return Ok(None);
    };
    // A publication that nobody reads divides nothing.
    if found == 1 && slot_and_wal(client, &share.slot(None)).await?.is_none() {
        return Ok(None);
    }
    Ok(Some(settings.of_number(found)))
}

/// What [`findings`] finds, and that somebody has emptied the lane's share. Where the lane is none of the shares that there are, that is
/// why it has no slot, and no set-up makes one.
///
/// # Errors
/// A failed query.
pub async fn findings_among(
    client: &Client,
    inspection: &Inspection,
    settings: &PostgresSettings,
    division: &Division,
) -> Result<Vec<Finding>, SqlError> {
    let mut found = division.emptied_findings(inspection, settings);
    found.extend(findings(inspection, settings));
    let Some(slot) = (found.iter()).position(|it| it.kind == Kind::SlotMissing) else {
        return Ok(found);
    };
    let other = other_number(client, settings, division).await?;
    if let Some(other) = other.filter(|it| !has_lane(it.found, settings.part())) {
        let what = format!("{}: {}", found[slot].what, other.what());
        found[slot] = refuse(Kind::SlotMissing, what, other.mend());
        found.retain(|it| it.kind != Kind::PublicationMissing);
    }
    Ok(found)
}

/// Whether the lane's publication carries rows and there is no slot for them, in one answer: between two, a share may come or go.
///
/// # Errors
/// A failed query, as on a server without row filters.
pub async fn has_rows_without_slot(
    client: &Client,
    settings: &PostgresSettings,
) -> Result<bool, SqlError> {
    let query = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text) \
                 AND EXISTS (SELECT FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
                 WHERE p.pubname = $2::text AND coalesce(pg_get_expr(r.prqual, r.prrelid), '') <> $3::text)";
    let (slot, publication) = (&settings.slot, &settings.publication);
    let row = client
        .query_one(query, &[slot, publication, &share::NOTHING])
        .await?;
    Ok(row.try_get(0)?)
}

/// Of a publication with these filters, one for each of so many tables that it holds.
fn carried_of_all(part: Option<u32>, filters: &[Option<String>], tables: usize) -> Carried {
    let mut carried = filters.iter().map(|it| carried(part, it.as_deref()));
    match carried.next() {
        Some(first) if filters.len() == tables && carried.all(|other| other == first) => first,
        _ => Carried::Other,
    }
}

fn carried(part: Option<u32>, filter: Option<&str>) -> Carried {
    match filter.map(|filter| (filter, share::told(filter))) {
        Some((share::NOTHING, _)) => Carried::Nothing,
        Some((_, Some((of, count)))) if Some(of) == part => Carried::Share(count),
        None if part.is_none() => Carried::Share(1),
        _ => Carried::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::share::Share;

    pub(super) fn division(filters: &[Option<(u32, u32)>]) -> Division {
        let filter = |of: &Option<(u32, u32)>| match of {
            Some((number, count)) => {
                let whole = Share::whole("s", "p").of(*count);
                let share = Share {
                    number: *number,
                    ..whole
                };
                share.filter("uuid", "a").expect("a hash")
            }
            None => share::NOTHING.to_owned(),
        };
        let parts = filters.iter().map(filter);
        let parts = (0..)
            .zip(parts)
            .map(|(number, filter)| (Some(number), carried(Some(number), Some(&filter))));
        let carried: BTreeMap<_, _> = parts.collect();
        let empty = carried.iter().filter(|(_, it)| **it == Carried::Nothing);
        Division {
            empty: empty.map(|(part, _)| (*part, vec![0])).collect(),
            carried,
        }
    }

    pub(super) fn with_all(mut division: Division, filter: Option<&str>) -> Division {
        division.carried.insert(None, carried(None, filter));
        division
    }

    #[test]
    fn the_publications_tell_how_many_shares_there_are() {
        let two = division(&[Some((0, 2)), Some((1, 2)), None, None]);
        assert_eq!((two.count(), two.whole()), (Some(2), Some(2)));
        assert_eq!(
            (two.last(), two.has(Some(3)), two.has(Some(4))),
            (Some(3), true, false)
        );
        let mixed = division(&[Some((0, 2)), Some((1, 4))]);
        assert_eq!((mixed.count(), mixed.whole()), (None, None));
        let part = division(&[Some((0, 4)), Some((1, 4))]);
        assert_eq!((part.count(), part.whole()), (Some(4), None));
        let edited = division(&[Some((0, 2)), Some((0, 2))]);
        assert_eq!((edited.count(), edited.whole()), (Some(2), None));
        assert_eq!(division(&[]).count(), None);
    }

    #[test]
    fn a_publication_carries_the_same_share_of_all_tables() {
        let filters = |filters: &[&str]| filters.iter().map(|it| Some((*it).to_owned())).collect();
        let of = |texts: &[&str]| carried_of_all(Some(1), &filters(texts) as &Vec<_>, 2);
        let (uuid, text) = ("((uuid_hash(a) & 3) = 1)", "((hashtext(b) & 3) = 1)");
        assert_eq!(of(&[uuid, text]), Carried::Share(4));
        assert_eq!(of(&["false", "false"]), Carried::Nothing);
        for other in [
            "((hashtext(b) & 1) = 1)",
            "((hashtext(b) & 3) = 2)",
            "false",
        ] {
            assert_eq!(of(&[uuid, other]), Carried::Other, "{other}");
        }
        assert_eq!(of(&[uuid]), Carried::Other, "one of two tables");
    }

    #[test]
    fn all_rows_are_one_share_of_one() {
        let told = |division: &Division| (division.count(), division.whole());
        let all = with_all(division(&[]), None);
        assert_eq!(told(&all), (Some(1), Some(1)));
        assert_eq!(
            told(&with_all(division(&[None, None]), None)),
            (Some(1), Some(1))
        );
        let two = || division(&[Some((0, 2)), Some((1, 2))]);
        assert_eq!(
            told(&with_all(two(), Some(share::NOTHING))),
            (Some(2), Some(2))
        );
        // What it is for, its reader knows.
        assert_eq!(told(&with_all(two(), None)), (Some(2), None));
        assert_eq!(told(&with_all(two(), Some("(id > 3)"))), (Some(2), None));
        assert_eq!(
            told(&with_all(division(&[]), Some("(id > 3)"))),
            (None, None)
        );
        // A share of one is none.
        let one = carried(Some(0), Some("(((uuid_hash(a) & 0) = 0) OR (a IS NULL))"));
        assert_eq!(one, Carried::Other);
    }
}
