//! A slot of which nobody has written down where it begins.
//!
//! In: the catalog, what is known of the beginning. Out: the statement, and what to say of it. Guarantee: no place is written down behind
//! which the slot may have passed events.

use crate::pipeline::begin::Begin;
use crate::postgres::beginning::comment_sql;
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Finding, Kind, slot_misfit, warn};
use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;
use postgres_types::PgLsn;

/// No slot begins there: what it has passed is not known, and it has passed something.
const PASSED: u64 = 0;

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
