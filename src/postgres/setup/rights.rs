//! Whether the role may do what `setup` and `teardown` plan, before the first step.
//!
//! In: an [`Inspection`], the steps. Out: a refusal with the SQL for somebody who may. Guarantee: pure. Without it a
//! teardown would drop the slot and then find that the publication is another role's.

use super::{Part, Step};
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Finding, Kind, Severity};
use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;

/// Steps that the role may not run; `None` where it may run all.
pub(super) fn refusal(
    inspection: &Inspection,
    settings: &PostgresSettings,
    steps: &[Step],
    command: &str,
) -> Option<Finding> {
    let makes = command != "teardown";
    // Those that are there, or are made.
    let owns = |found: &Inspection| match &found.table {
        Some(table) => table.owned,
        None => found.rights.create_in_schema == Some(true),
    };
    let may = |step: &Step| match (step.part, &inspection.publication) {
        (Part::Slot, _) => true,
        (Part::Table, _) => inspection
            .tables()
            .filter(|found| found.table.is_none() == makes)
            .all(owns),
        (Part::Publication, Some(publication)) => publication.owned,
        (Part::Publication, None) => {
            inspection.rights.create_in_database && inspection.tables().all(owns)
        }
    };
    let forbidden: Vec<&Step> = steps.iter().filter(|step| !may(step)).collect();
    if forbidden.is_empty() {
        return None;
    }
    let parts: Vec<String> = forbidden.iter().map(|step| step.part.to_string()).collect();
    let mut sql: Vec<String> = Vec::new();
    for (found, settings) in inspection.tables().zip(settings.tables()) {
        if found.table.is_none() && found.rights.create_in_schema.is_none() {
            let schema = quote_identifier(&settings.table.schema);
            sql.push(format!("CREATE SCHEMA {schema};"));
        }
    }
    sql.dedup();
    sql.extend(forbidden.iter().map(|step| step.sql.trim().to_owned()));
    Some(Finding {
        severity: Severity::Refuse,
        kind: Kind::Privilege,
        what: format!(
            "role {} may not {} the {}, so nothing was changed",
            quote_identifier(&inspection.server.role),
            match command {
                "teardown" => "drop",
                _ => "make",
            },
            parts.join(" and the ")
        ),
        mend: format!(
            "let a superuser, or an owner{}, run\n{}\nand then run walrelay {command} again",
            match command {
                "teardown" => "",
                _ => " who may create in the database",
            },
            sql.join("\n")
        ),
    })
}
