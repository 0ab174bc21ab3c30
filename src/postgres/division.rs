//! How the outbox is divided: what the publications of its shares carry.
//!
//! In: a client, the shares' common name. Out: how many shares there are. Guarantee: reads only. The publications alone tell: what a
//! configuration says is what somebody wants.

use std::collections::BTreeMap;

use crate::postgres::client::{Client, SqlError};
use crate::postgres::findings::{Finding, Kind, refuse};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::{self, Share};

/// What a share's publication carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried {
    /// No row: the share is not one yet, or no longer.
    Nothing,
    /// The rows of the share, one of so many.
    Share(u32),
    /// Whatever somebody has set by hand.
    Other,
}

/// The shares' publications, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Division(BTreeMap<u32, Carried>);

impl Division {
    /// Of the table that the settings name; none where these have all rows.
    ///
    /// # Errors
    /// A failed query, as on a server without row filters.
    pub async fn look(
        client: &Client,
        settings: &PostgresSettings,
    ) -> Result<Option<Self>, SqlError> {
        let Some(share) = &settings.share else {
            return Ok(None);
        };
        let query = "SELECT p.pubname::text, pg_get_expr(r.prqual, r.prrelid) FROM pg_catalog.pg_publication_rel r \
                     JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
        let table = &settings.table;
        let mut division = Division::default();
        for row in client.query(query, &[&table.schema, &table.table]).await? {
            let (name, filter): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(number) = share.number_of_publication(&name) {
                division
                    .0
                    .insert(number, carried(number, filter.as_deref()));
            }
        }
        Ok(Some(division))
    }

    /// How many shares there are, where those that carry rows agree.
    pub fn count(&self) -> Option<u32> {
        let mut counts = self.0.values().filter_map(|carried| match carried {
            Carried::Share(count) => Some(*count),
            Carried::Nothing | Carried::Other => None,
        });
        let first = counts.next()?;
        counts.all(|count| count == first).then_some(first)
    }

    /// How many shares there are, where each of them is there and nothing else carries rows.
    pub fn whole(&self) -> Option<u32> {
        let count = self.count()?;
        let is_right = |number: u32| match self.0.get(&number) {
            Some(Carried::Share(of)) => number < count && *of == count,
            Some(Carried::Nothing) | None => number >= count,
            Some(Carried::Other) => false,
        };
        let end = self.0.keys().next_back().map_or(0, |last| last + 1);
        (0..count.max(end)).all(is_right).then_some(count)
    }

    /// The highest number.
    pub fn last(&self) -> Option<u32> {
        self.0.keys().next_back().copied()
    }

    /// Whether a publication is there.
    pub fn has(&self, number: u32) -> bool {
        self.0.contains_key(&number)
    }

    /// How many shares there are, where the one of the settings is none of them.
    pub fn lacks(&self, settings: &PostgresSettings) -> Option<u32> {
        let share = settings.share.as_ref()?;
        self.count().filter(|count| share.number >= *count)
    }

    /// What is wrong with the publications together.
    pub fn finding(&self, share: &Share) -> Option<Finding> {
        let carries = self
            .0
            .values()
            .any(|carried| matches!(carried, Carried::Share(_)));
        (carries && self.count().is_none()).then(|| {
            let name = &share.whole_publication;
            refuse(
                Kind::RowFilter,
                format!("the publications {name}_0 and on are of different numbers of shares: a row may be of no share, or of two"),
                format!(
                    "see SELECT pubname, rowfilter FROM pg_publication_tables WHERE starts_with(pubname, '{name}_'); and set those back \
                     that were changed by hand"
                ),
            )
        })
    }
}

fn carried(number: u32, filter: Option<&str>) -> Carried {
    match filter.map(|filter| (filter, share::told(filter))) {
        Some((share::NOTHING, _)) => Carried::Nothing,
        Some((_, Some((of, count)))) if of == number => Carried::Share(count),
        _ => Carried::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn division(filters: &[Option<(u32, u32)>]) -> Division {
        let filter = |of: &Option<(u32, u32)>| match of {
            Some((number, count)) => format!("((uuid_hash(a) & {}) = {number})", count - 1),
            None => share::NOTHING.to_owned(),
        };
        let parts = filters.iter().map(filter);
        let parts = (0..)
            .zip(parts)
            .map(|(number, filter)| (number, carried(number, Some(&filter))));
        Division(parts.collect())
    }

    #[test]
    fn the_publications_tell_how_many_shares_there_are() {
        let two = division(&[Some((0, 2)), Some((1, 2)), None, None]);
        assert_eq!((two.count(), two.whole()), (Some(2), Some(2)));
        assert_eq!((two.last(), two.has(3), two.has(4)), (Some(3), true, false));
        let mixed = division(&[Some((0, 2)), Some((1, 4))]);
        assert_eq!((mixed.count(), mixed.whole()), (None, None));
        let part = division(&[Some((0, 4)), Some((1, 4))]);
        assert_eq!((part.count(), part.whole()), (Some(4), None));
        let edited = division(&[Some((0, 2)), Some((0, 2))]);
        assert_eq!((edited.count(), edited.whole()), (Some(2), None));
        assert_eq!(division(&[]).count(), None);
    }
}
