//! What is wrong with the lanes' publications together.
//!
//! In: what each of them carries. Out: findings. Guarantee: pure; the states in which `walrelay reshard` leaves them, also where it was
//! killed, are told from what somebody has edited.

use super::{Carried, Division};
use crate::pipeline::reshard::{Undivided, has_lane, lanes_of, reshard};
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Finding, Kind, Severity, findings, refuse, shares, warn};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::Share;
use crate::table_name::quote_identifier;

impl Division {
    /// A publication of all rows beside those of shares.
    pub fn all_rows_beside(&self, share: &Share) -> Option<Finding> {
        let carries = matches!(
            self.carried.get(&None),
            Some(Carried::Share(_) | Carried::Other)
        );
        let count = self.count().filter(|count| *count > 1 && carries)?;
        let name = &share.whole_publication;
        Some(refuse(
            Kind::RowFilter,
            format!(
                "publication {name} has all rows beside those of the {count} shares: they would be published twice"
            ),
            format!(
                "where nobody else reads it, run DROP PUBLICATION {};",
                quote_identifier(name)
            ),
        ))
    }

    /// That `walrelay reshard` has left lanes behind that carry nothing: shares that are none yet, or no more, with slots that keep WAL.
    pub fn unfinished(&self, share: &Share, undivided: Option<&Undivided>) -> Option<Finding> {
        let count = self.whole()?;
        let left: Vec<Option<u32>> = (self.parts())
            .filter(|part| !has_lane(count, *part))
            .collect();
        let names: Vec<String> = (left.iter())
            .map(|part| quote_identifier(&share.publication(*part)))
            .collect();
        let undivided = undivided.filter(|_| count == 1 || left.contains(&None));
        (!left.is_empty()).then(|| {
            warn(
                Kind::Reshard,
                format!(
                    "a walrelay reshard was ended before its end: {} {} no rows, and slots of the same names keep WAL; other lanes may \
                     wait until theirs is published",
                    names.join(" and "),
                    if left.len() == 1 { "carries" } else { "carry" }
                ),
                format!(
                    "{}, which publishes what is left there and removes them; the one that was ended, run again, goes on",
                    reshard(count, undivided)
                ),
            )
        })
    }

    /// What is wrong with the publications together.
    pub fn finding(&self, share: &Share) -> Option<Finding> {
        (self.carrying().next().is_some() && self.count().is_none()).then(|| {
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

    /// Tables of which the share of the settings carries no row, although it is one of those that there are: `walrelay reshard` takes the
    /// rows of all tables from a lane, and only where others carry all of them. Where none does, it is as many shares as the settings say.
    fn emptied(&self, share: &Share) -> &[usize] {
        let count = self.count().unwrap_or(share.count);
        let tables = self.empty.get(&share.part());
        match tables.filter(|_| has_lane(count, share.part())) {
            Some(tables) => tables,
            None => &[],
        }
    }

    /// What mends that.
    pub fn emptied_findings(
        &self,
        inspection: &Inspection,
        settings: &PostgresSettings,
    ) -> Vec<Finding> {
        let Some(share) = &settings.share else {
            return Vec::new();
        };
        let tables: Vec<_> = inspection.tables().zip(settings.tables()).collect();
        let mut found = Vec::new();
        for index in self.emptied(share) {
            let (inspected, of_table) = &tables[*index];
            if let Some(table) = &inspected.table {
                let share = share.of(self.count().unwrap_or(share.count));
                found.extend(shares::emptied(table, &share, of_table));
            }
        }
        found
    }

    /// Why rows may be of no share of this number of them, or of two; none where each share has its own and nothing else carries any, as
    /// far as the settings' lane can tell. Other lanes say more of theirs.
    pub fn doubts(&self, inspection: &Inspection, settings: &PostgresSettings) -> Vec<Finding> {
        let Some(share) = &settings.share else {
            return Vec::new();
        };
        let mut found = self.emptied_findings(inspection, settings);
        found.extend(self.finding(share));
        let own = findings(inspection, settings).into_iter();
        found
            .extend(own.filter(|it| it.kind == Kind::RowFilter && it.severity == Severity::Refuse));
        let count = self.count().unwrap_or(share.count);
        // One that is missing is made by the set-up that is at work, or said by its own lane.
        let is_other = |part: &Option<u32>| {
            let carried = self.carried.get(part);
            carried.is_some_and(|carried| *carried != Carried::Share(count))
        };
        let other = lanes_of(count).find(is_other);
        if let Some(other) = other.filter(|_| found.is_empty()) {
            found.push(refuse(
                Kind::RowFilter,
                format!(
                    "publication {} does not have the rows of its share of {count}: rows may be of no share, or of two",
                    quote_identifier(&share.publication(other))
                ),
                "walrelay doctor says what it has, and the command that mends it",
            ));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{division, with_all};
    use super::*;
    use crate::postgres::share;

    /// The shares that somebody has emptied, by a configuration of so many.
    fn emptied(division: &Division, count: u32) -> Vec<u32> {
        let whole = Share::whole("s", "p");
        let share = |number| Share {
            number,
            ..whole.of(count)
        };
        let is_emptied = |number: &u32| !division.emptied(&share(*number)).is_empty();
        (0..count).filter(is_emptied).collect()
    }

    #[test]
    fn only_a_reshard_takes_all_rows_from_a_share() {
        let two = [Some((0, 2)), Some((1, 2))];
        let four = [0, 1, 2, 3].map(|number| Some((number, 4)));
        let of_two = division(&[two[0], two[1], None, None]);
        let all = |filters: &[Option<(u32, u32)>]| with_all(division(filters), None);
        // Made, not yet or no longer shares: of two, of four, of one lane of all rows.
        for (state, count) in [
            (&of_two, 2),
            (&of_two, 4),
            (&division(&four), 4),
            (&all(&[None, None]), 2),
            (&all(&[None, None, None, None]), 4),
            (&with_all(division(&two), Some(share::NOTHING)), 2),
        ] {
            assert_eq!(emptied(state, count), [] as [u32; 0], "{state:?}");
        }
        let [first, second, third, _] = four;
        let by_hand = division(&[first, second, third, None]);
        assert_eq!(emptied(&by_hand, 4), [3]);
        // A configuration of another number relays it all the same.
        assert_eq!(emptied(&by_hand, 8), [3]);
        assert_eq!(emptied(&by_hand, 2), [] as [u32; 0]);
        assert_eq!(emptied(&division(&[None, Some((1, 2))]), 2), [0]);
        assert_eq!(emptied(&division(&[None, None]), 2), [0, 1]);
        // Of one table of two.
        let mut of_one = division(&two);
        of_one.carried.insert(Some(1), Carried::Other);
        of_one.empty.insert(Some(1), vec![1]);
        assert_eq!(emptied(&of_one, 2), [1]);
    }

    #[test]
    fn what_carries_nothing_was_left_behind() {
        let share = Share::whole("s", "p");
        let undivided = Undivided {
            stream: "S".to_owned(),
            subject: "s.{event_type}".to_owned(),
            is_own: false,
            is_told: true,
        };
        let unfinished = |division: &Division| {
            division
                .unfinished(&share, Some(&undivided))
                .map(|it| it.mend)
        };
        let two = [Some((0, 2)), Some((1, 2))];
        assert_eq!(unfinished(&division(&two)), None);
        let [first, second] = two;
        let left = unfinished(&division(&[first, second, None, None])).expect("a finding");
        assert!(
            left.starts_with("run walrelay reshard --shares 2,"),
            "{left}"
        );
        assert!(!left.contains("--undivided-stream"), "{left}");
        let divided = with_all(division(&two), Some(share::NOTHING));
        assert!(
            unfinished(&divided)
                .expect("a finding")
                .contains("--undivided-stream S --undivided-subject 's.{event_type}',")
        );
        // Of which number it is, nobody knows.
        assert_eq!(unfinished(&division(&[first, None])), None);
    }
}
