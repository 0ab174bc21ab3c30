//! A share of the outbox: the rows whose aggregate hashes to its number.
//!
//! In: a number, how many shares there are, the aggregate's column. Out: the row filter of the share's publication. Guarantees: each
//! row is of exactly one share, also one without an aggregate; the text is as Postgres prints it, so that another one is noticed.
//!
//! Why `&` and not a remainder: a hash may be negative, and so may its remainder; such rows would be of no share. Why these functions:
//! a row filter takes immutable built-in ones alone (manual, 29.4.3).

use crate::pipeline::reshard::has_lane;

/// One of several shares, or all rows as the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// From 0 on.
    pub number: u32,
    /// How many there are: a power of two; 1 where the outbox is not divided.
    pub count: u32,
    /// The slot that the shares' slots are named after.
    pub whole_slot: String,
    /// The publication that theirs are named after.
    pub whole_publication: String,
}

impl Share {
    /// The condition of the share's rows, as `pg_get_expr` prints it, on a column of this type by its quoted name; `None` where no
    /// row filter can hash it.
    pub(crate) fn filter(&self, base_type: &str, name: &str) -> Option<String> {
        hash(base_type, name).map(|hash| self.condition(&hash, name))
    }

    fn condition(&self, hash: &str, name: &str) -> String {
        let (number, mask) = (self.number, self.count - 1);
        let condition = format!("(({hash} & {mask}) = {number})");
        match number {
            0 => format!("({condition} OR ({name} IS NULL))"),
            _ => condition,
        }
    }

    /// That of the lane of all rows, whose slot and publication these are.
    pub(crate) fn whole(slot: &str, publication: &str) -> Self {
        Share {
            number: 0,
            count: 1,
            whole_slot: slot.to_owned(),
            whole_publication: publication.to_owned(),
        }
    }

    /// Its number; none where it is all rows.
    pub fn part(&self) -> Option<u32> {
        (self.count > 1).then_some(self.number)
    }

    /// Whether a slot has the name of another number of shares' slot, or of the outbox as a whole.
    pub(crate) fn is_of_others(&self, slot: &str) -> bool {
        let part = self.part_of_slot(slot);
        part.is_some_and(|part| !has_lane(self.count, part))
    }

    /// The slot of another share, or of all rows.
    pub(crate) fn slot(&self, part: Option<u32>) -> String {
        named(&self.whole_slot, part)
    }

    /// The publication of another share, or of all rows.
    pub(crate) fn publication(&self, part: Option<u32>) -> String {
        named(&self.whole_publication, part)
    }

    /// Number of the share whose slot has this name, or that it is the slot of all rows.
    pub(crate) fn part_of_slot(&self, name: &str) -> Option<Option<u32>> {
        part_of(&self.whole_slot, name)
    }

    /// The same, of a publication.
    pub(crate) fn part_of_publication(&self, name: &str) -> Option<Option<u32>> {
        part_of(&self.whole_publication, name)
    }

    /// The same share of another number of them.
    #[must_use]
    pub fn of(&self, count: u32) -> Self {
        Share {
            count,
            ..self.clone()
        }
    }
}

fn named(whole: &str, part: Option<u32>) -> String {
    part.map_or_else(|| whole.to_owned(), |number| format!("{whole}_{number}"))
}

fn part_of(whole: &str, name: &str) -> Option<Option<u32>> {
    let behind = name.strip_prefix(whole)?;
    if behind.is_empty() {
        return Some(None);
    }
    let text = behind.strip_prefix('_')?;
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(Some(number))
}

/// The first Postgres with row filters.
pub(crate) const ROW_FILTERS_SINCE: u32 = 150_000;

/// The row filter of a publication that carries nothing.
pub(crate) const NOTHING: &str = "false";

/// Which share, and of how many, a row filter is of by its looks; none where it has a further condition.
pub(crate) fn told(filter: &str) -> Option<(u32, u32)> {
    let (_, behind) = filter.split_once(" & ")?;
    let (mask, behind) = behind.split_once(") = ")?;
    let (number, end) = behind.split_once(')')?;
    let count = mask.parse::<u32>().ok()?.checked_add(1)?;
    let number = number.parse().ok()?;
    let is_whole = match number {
        0 => {
            let null = end.strip_prefix(" OR (");
            let name = null.and_then(|null| null.strip_suffix(" IS NULL))"));
            name.is_some_and(|name| !name.contains(" IS NULL"))
        }
        _ => end.is_empty(),
    };
    (is_whole && count.is_power_of_two() && count > 1 && number < count).then_some((number, count))
}

/// The hash of a column whose name is quoted.
fn hash(base_type: &str, name: &str) -> Option<String> {
    Some(match base_type {
        "uuid" => format!("uuid_hash({name})"),
        "text" => format!("hashtext({name})"),
        "varchar" => format!("hashtext(({name})::text)"),
        "bytea" => format!("hashtext(encode({name}, 'hex'::text))"),
        "int2" => format!("hashint2({name})"),
        "int4" => format!("hashint4({name})"),
        "int8" => format!("hashint8({name})"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(number: u32) -> Share {
        Share {
            number,
            count: 4,
            whole_slot: "walrelay".to_owned(),
            whole_publication: "walrelay".to_owned(),
        }
    }

    #[test]
    fn the_first_share_takes_rows_without_an_aggregate() {
        assert_eq!(
            share(0).filter("uuid", "\"Key\"").as_deref(),
            Some("(((uuid_hash(\"Key\") & 3) = 0) OR (\"Key\" IS NULL))")
        );
        assert_eq!(
            share(3).filter("varchar", "key").as_deref(),
            Some("((hashtext((key)::text) & 3) = 3)")
        );
        assert_eq!(share(1).filter("numeric", "key"), None);
    }

    #[test]
    fn slots_of_another_number_of_shares_are_known() {
        for (slot, expected) in [
            ("walrelay", true),
            ("walrelay_4", true),
            ("walrelay_0", false),
            ("walrelay_3", false),
            ("walrelay_orders", false),
            ("walrelays", false),
            ("orders_7", false),
        ] {
            assert_eq!(share(0).is_of_others(slot), expected, "{slot}");
        }
    }

    #[test]
    fn a_filter_tells_its_share() {
        let filter = |share: &Share| share.filter("uuid", "key").expect("it has a hash");
        for number in [0, 1] {
            assert_eq!(told(&filter(&share(number).of(8))), Some((number, 8)));
        }
        for other in [
            "(event_version < 2)",
            NOTHING,
            "((uuid_hash(key) & 2) = 1)",
            "((uuid_hash(key) & 3) = 0)",
            "(((uuid_hash(key) & 3) = 1) AND (event_version < 2))",
            "((event_version < 2) AND ((uuid_hash(key) & 3) = 1))",
            "(((uuid_hash(key) & 3) = 0) OR (key IS NULL) OR (other IS NULL))",
            "((((uuid_hash(key) & 3) = 0) AND (event_version < 2)) OR (key IS NULL))",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }

    #[test]
    fn publications_have_a_number() {
        assert_eq!(share(0).part_of_publication("walrelay_7"), Some(Some(7)));
        assert_eq!(share(0).part_of_publication("walrelay"), Some(None));
        for other in [
            "walrelay_",
            "walrelay_07",
            "walrelay_x",
            "walrelays",
            "orders_1",
        ] {
            assert_eq!(share(0).part_of_publication(other), None, "{other}");
        }
    }
}
