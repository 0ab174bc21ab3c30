//! Where a slot begins, written down in Postgres beside its publication.
//!
//! In: the publication's comment. Out: the LSN from which the slot streams since it was made, and what to run where that is not written
//! down. Guarantee: a slot that stands there has passed nothing; what else the comment says stays. Postgres itself keeps no such place
//! (14 to 18): where `confirmed_flush_lsn` began, nothing tells once it has moved.

use crate::pipeline::begin::Begin;
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Finding, Kind, slot_misfit, warn};
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;
use postgres_types::PgLsn;

/// In front of every such note.
const OURS: &str = "walrelay: slot ";
/// Between what else the comment says and the note.
const BEHIND: &str = ", ";
/// No slot begins there: what it has passed is not known, and it has passed something.
const PASSED: u64 = 0;

/// What the note of the slot begins with: all but its end, the LSN.
pub(crate) fn words(slot: &str) -> String {
    format!("{OURS}{slot} begins at ")
}

/// Where the slot began by the publication's comment; none where it tells of no such slot.
pub(crate) fn read(comment: &str, slot: &str) -> Option<PgLsn> {
    let (_, behind) = comment.split_once(&words(slot))?;
    behind[..lsn_bytes(behind)].parse().ok()
}

/// How much of the text is an LSN.
fn lsn_bytes(text: &str) -> usize {
    let is_other = |c: char| !c.is_ascii_hexdigit() && c != '/';
    text.find(is_other).unwrap_or(text.len())
}

/// The comment in front of the LSN and behind it, once it tells of the slot.
fn around(comment: Option<&str>, slot: &str) -> (String, String) {
    let (comment, words) = (comment.unwrap_or_default(), words(slot));
    match comment.split_once(&words) {
        Some((before, behind)) => (
            format!("{before}{words}"),
            behind[lsn_bytes(behind)..].to_owned(),
        ),
        None if comment.is_empty() => (words, String::new()),
        None => (format!("{comment}{BEHIND}{words}"), String::new()),
    }
}

/// The statement that writes it down.
pub(crate) fn comment_sql(
    publication: &str,
    comment: Option<&str>,
    slot: &str,
    lsn: PgLsn,
) -> String {
    let (before, behind) = around(comment, slot);
    format!(
        "COMMENT ON PUBLICATION {} IS {};",
        quote_identifier(publication),
        quote_literal(&format!("{before}{lsn}{behind}"))
    )
}

/// The same for a person to run behind the slot's creation.
#[cfg(feature = "cli")]
pub(crate) fn comment_by_hand_sql(publication: &str, comment: Option<&str>, slot: &str) -> String {
    let (before, behind) = around(comment, slot);
    let begin = format!(
        "COMMENT ON PUBLICATION {} IS ",
        quote_identifier(publication)
    );
    let behind = match behind.is_empty() {
        true => behind,
        false => format!(" || {}", quote_literal(&behind)),
    };
    format!(
        "DO $do$ BEGIN EXECUTE (SELECT {} || quote_literal({} || confirmed_flush_lsn{behind}) \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {}); END $do$;",
        quote_literal(&begin),
        quote_literal(&before),
        quote_literal(slot)
    )
}

/// A slot of which the publication's comment does not tell where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Unwritten {
    publication: String,
    comment: Option<String>,
    /// Who may write it, where that is not the session's role.
    owner: Option<String>,
    slot: String,
    /// Where the slot stands.
    pub(crate) confirmed_lsn: PgLsn,
}

impl Unwritten {
    /// None where it is written down, or there is no such slot or publication yet.
    pub(crate) fn of(inspection: &Inspection, settings: &PostgresSettings) -> Option<Unwritten> {
        match inspection.begins_lsn() {
            Some(_) => None,
            None => Unwritten::anew(inspection, settings),
        }
    }

    /// Whatever is written down, of a slot that was just made.
    pub(crate) fn anew(inspection: &Inspection, settings: &PostgresSettings) -> Option<Unwritten> {
        let (found, slot) = (inspection.publication.as_ref()?, inspection.slot.as_ref()?);
        if slot_misfit(slot, &inspection.server.dbname).is_some() {
            return None;
        }
        Some(Unwritten {
            publication: settings.publication.clone(),
            comment: found.comment.clone(),
            owner: (!found.owned).then(|| found.owner.clone()),
            slot: settings.slot.clone(),
            confirmed_lsn: slot.confirmed_flush_lsn?,
        })
    }

    /// Who has to write it down, where that is not the session's role.
    #[cfg(feature = "cli")]
    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The statement that writes it down; none where a person has to say what is so.
    #[cfg(feature = "cli")]
    pub(crate) fn statement(&self, begin: Begin) -> Option<String> {
        match begin {
            Begin::At(lsn) => Some(self.sql(lsn)),
            Begin::Passed => Some(self.sql(PASSED.into())),
            Begin::Unknown => None,
        }
    }

    fn sql(&self, lsn: PgLsn) -> String {
        comment_sql(&self.publication, self.comment.as_deref(), &self.slot, lsn)
    }

    /// What to say of it.
    pub(crate) fn finding(&self, begin: Begin) -> Finding {
        let run = match &self.owner {
            Some(owner) => format!(
                "let {}, which owns publication {}, or a superuser run",
                quote_identifier(owner),
                quote_identifier(&self.publication)
            ),
            None => "run".to_owned(),
        };
        let passed = self.sql(PASSED.into());
        let mend = match begin {
            Begin::At(lsn) => format!("{run} {}", self.sql(lsn)),
            Begin::Passed => format!("{run} {passed}"),
            Begin::Unknown => format!(
                "where no relay has published from this slot before, {run} {} Else {run} {passed} and start walrelay run, which halts then \
                 and says how to go on",
                self.sql(self.confirmed_lsn)
            ),
        };
        warn(
            Kind::UnwrittenBeginning,
            format!(
                "where replication slot \"{}\" begins is not written down: beside an emptied NATS, or with another one's configuration, \
                 walrelay run would take its place for the beginning, and go on without the events that it has passed",
                self.slot
            ),
            mend,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_of_its_own_slot_alone() {
        let sql = comment_sql("my \"own\"", None, "relay", 0x16_0000_00AB.into());
        let comment = "walrelay: slot relay begins at 16/AB";
        assert_eq!(
            sql,
            format!("COMMENT ON PUBLICATION \"my \"\"own\"\"\" IS '{comment}';")
        );
        assert_eq!(read(comment, "relay"), Some(0x16_0000_00AB.into()));
        assert_eq!(read(comment, "rela"), None);
        assert_eq!(read("walrelay: slot relay begins at noon", "relay"), None);
    }

    #[test]
    fn what_else_a_comment_says_stays() {
        let write = |comment: &str, slot: &str, lsn: u64| {
            let (before, behind) = around(Some(comment), slot);
            format!("{before}{}{behind}", PgLsn::from(lsn))
        };
        let both = write(&write("of billing's", "relay", 0xAB), "other", 0xCD);
        assert_eq!(
            both,
            "of billing's, walrelay: slot relay begins at 0/AB, walrelay: slot other begins at 0/CD"
        );
        let again = write(&both, "relay", 0xEF);
        assert_eq!(read(&again, "relay"), Some(0xEF.into()));
        assert_eq!(read(&again, "other"), Some(0xCD.into()));
        assert!(again.starts_with("of billing's, "), "{again}");
    }
}
