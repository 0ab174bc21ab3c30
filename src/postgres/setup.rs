//! Makes what the relay needs in Postgres, and takes it away again.
//!
//! In: an [`Inspection`]. Out: [`Step`]s as SQL, in the order in which they must run, and their execution. Guarantees:
//! only what is missing is made; what exists and does not fit is refused, never changed; the publication comes before
//! the slot, since WAL decoded at a place where the publication did not exist yet is skipped without an error.

use std::fmt;

use crate::postgres::catalog::{Inspection, Slot};
use crate::postgres::client::{Client, SqlError};
use crate::postgres::error::SLOT_LOST_MEND;
use crate::postgres::findings::columns::wanted;
use crate::postgres::findings::{
    Finding, Kind, Severity, findings, instead, is_default, missing_table, shares, slot_misfit,
    under_another_name,
};
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::unfinished;
use crate::table_name::quote_identifier;

mod rights;
mod slot;

pub use slot::{Blocker, SessionBlocker, blockers, create_slot};
#[cfg(feature = "cli")]
pub(crate) use slot::{Unfinished, until_made};

/// The outbox table as the first migration makes it.
pub(crate) const OUTBOX_EVENTS_SQL: &str = include_str!("../../sql/0001_outbox_events.sql");
/// The table's name in [`OUTBOX_EVENTS_SQL`].
const OUTBOX_EVENTS_NAME: &str = "public.outbox_events";

/// One thing to make or remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The outbox table.
    Table,
    /// The publication.
    Publication,
    /// The replication slot.
    Slot,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Table => "table",
            Part::Publication => "publication",
            Part::Slot => "replication slot",
        })
    }
}

/// One thing to do, as SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it makes or removes.
    pub part: Part,
    /// The statement.
    pub sql: String,
}

/// What `setup` is asked for beside what is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// A slot that follows a failover (Postgres 17).
    pub failover: bool,
    /// The table also beside one that was probably meant.
    pub create_table: bool,
}

/// What `setup` will do: nothing, some steps, or why it will not.
///
/// # Errors
/// The refusals, if what exists does not fit or the server cannot serve.
pub fn plan(
    inspection: &Inspection,
    settings: &PostgresSettings,
    wishes: Wishes,
) -> Result<Vec<Step>, Vec<Finding>> {
    let mendable = |kind| {
        matches!(
            kind,
            Kind::TableMissing | Kind::PublicationMissing | Kind::SlotMissing
        )
    };
    let mut refusals: Vec<Finding> = findings(inspection, settings)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Refuse && !mendable(finding.kind))
        .collect();
    let tables: Vec<(&Inspection, PostgresSettings)> =
        inspection.tables().zip(settings.tables()).collect();
    for (inspection, settings) in &tables {
        let mut of_table = order_refusals(inspection, settings, wishes);
        of_table.retain(|refusal| !refusals.contains(refusal));
        refusals.append(&mut of_table);
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let missing = tables.iter().filter(|(found, _)| found.table.is_none());
    let mut steps: Vec<Step> = missing
        .map(|(_, settings)| Step {
            part: Part::Table,
            sql: table_sql(settings),
        })
        .collect();
    if inspection.publication.is_none() {
        let published = tables
            .iter()
            .map(|(found, settings)| format!("{}{}", settings.table, filter(found, settings)));
        let published: Vec<String> = published.collect();
        let sql = publication_sql(inspection, settings, &published);
        steps.push(Step {
            part: Part::Publication,
            sql,
        });
    }
    if inspection.slot.is_none() {
        let failover = if wishes.failover {
            ", failover => true"
        } else {
            ""
        };
        let sql = format!(
            "SELECT lsn FROM pg_create_logical_replication_slot({}, 'pgoutput', temporary => false, twophase => false{failover});",
            quote_literal(&settings.slot)
        );
        steps.push(Step {
            part: Part::Slot,
            sql,
        });
    }
    match rights::refusal(inspection, settings, &steps, "setup") {
        Some(refusal) => Err(vec![refusal]),
        None => Ok(steps),
    }
}

/// What makes the publication of these tables, each with its row filter.
pub(crate) fn publication_sql(
    inspection: &Inspection,
    settings: &PostgresSettings,
    published: &[String],
) -> String {
    let tables = settings.tables();
    let generated = match (inspection.tables().zip(&tables)).any(|(it, of)| needs_generated(it, of))
    {
        true => ", publish_generated_columns = stored",
        false => "",
    };
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert', publish_via_partition_root = true{generated});",
        quote_identifier(&settings.publication),
        published.join(", ")
    )
}

/// Whether messages are made of a column that the server computes. Where none can be sent, the findings have refused it.
fn needs_generated(inspection: &Inspection, settings: &PostgresSettings) -> bool {
    let columns = inspection.table.iter().flat_map(|table| &table.columns);
    let mut generated = columns.filter(|column| column.generated);
    generated.any(|column| {
        wanted(settings)
            .iter()
            .any(|(_, name)| *name == column.name)
    })
}

/// The row filter of a share's publication. A table that is not there yet has the columns of the first migration.
fn filter(inspection: &Inspection, settings: &PostgresSettings) -> String {
    let wanted = match (&inspection.table, &settings.share) {
        (Some(table), _) => shares::wanted(table, settings),
        (None, Some(share)) => share.filter("uuid", "aggregate_id"),
        (None, None) => None,
    };
    wanted.map_or_else(String::new, |filter| format!(" WHERE {filter}"))
}

/// States in which making what is missing would lose rows or could not be told apart from a mistake.
fn order_refusals(
    inspection: &Inspection,
    settings: &PostgresSettings,
    wishes: Wishes,
) -> Vec<Finding> {
    let mut refusals = Vec::new();
    let mut refuse = |kind, what: String, mend: String| {
        refusals.push(Finding {
            severity: Severity::Refuse,
            kind,
            what,
            mend,
        });
    };
    // A slot of somebody else's says nothing about this publication, and is refused already.
    let is_ours = |slot: &Slot| slot_misfit(slot, &inspection.server.dbname).is_none();
    if inspection.slot.as_ref().is_some_and(is_ours) && inspection.publication.is_none() {
        let anew = SLOT_LOST_MEND;
        refuse(
            Kind::SlotMismatch,
            format!(
                "replication slot \"{}\" is older than the publication would be, and rows from before the publication are never sent",
                settings.slot
            ),
            match under_another_name(inspection, settings) {
                Some(renamed) => format!("{renamed}. Else {anew}"),
                None => anew.to_owned(),
            },
        );
    }
    let holds_what_comes = inspection
        .publication
        .as_ref()
        .is_none_or(|publication| publication.puballtables);
    if inspection.table.is_none() && !holds_what_comes {
        refuse(
            Kind::PublicationMismatch,
            format!(
                "publication \"{}\" exists and table {} does not",
                settings.publication, settings.table
            ),
            made_anew(
                inspection,
                settings,
                inspection.slot.as_ref().is_some_and(is_ours),
            ),
        );
    }
    let (table, key) = (&settings.table, settings.table_key());
    let has_schema = inspection.rights.create_in_schema.is_some();
    let may_create = inspection.rights.create_in_database;
    let in_capitals = (inspection.meant.as_ref()).filter(|it| table.differs_in_capitals(it));
    match in_capitals {
        Some(other) => refuse(
            Kind::TableMissing,
            format!(
                "there is no table {table}, and {other} exists: what stands without quotes is taken in small letters"
            ),
            format!("set {key} to '{other}', with these double quotes"),
        ),
        // Who may not make a schema is told all that is to be made.
        None if inspection.table.is_none() && !has_schema && may_create => refuse(
            Kind::TableMissing,
            format!(
                "there is no schema {} in database {}",
                quote_identifier(&table.schema),
                inspection.server.dbname
            ),
            format!(
                "set {key} to a table of a schema that is there, or run CREATE SCHEMA {};",
                quote_identifier(&table.schema)
            ),
        ),
        None => {}
    }
    if inspection.table.is_none() && in_capitals.is_none() && !is_default(settings) {
        refuse(
            Kind::TableMissing,
            format!(
                "table {} does not exist, and setup makes it only with the default column names",
                settings.table
            ),
            missing_table(inspection, settings),
        );
    } else if !wishes.create_table
        && in_capitals.is_none()
        && let Some(meant) = &inspection.meant
        && let Some(instead) = instead(inspection, settings)
    {
        refuse(
            Kind::TableMissing,
            format!("there is no table {}, but one {meant}", settings.table),
            instead,
        );
    }
    if wishes.failover && inspection.server.version_num < 170_000 {
        refuse(
            Kind::SlotMismatch,
            "slots that follow a failover came with Postgres 17".to_owned(),
            "leave --failover out".to_owned(),
        );
    }
    refusals
}

/// What makes a table of a publication that is there: of the lane's own, which has a slot, the table was dropped. In one transaction, since
/// what is written before the publication has the table is never sent.
fn made_anew(inspection: &Inspection, settings: &PostgresSettings, has_slot: bool) -> String {
    let key = settings.table_key();
    let create = match is_default(settings) {
        true => {
            let sql = table_sql(settings);
            sql.split_whitespace().collect::<Vec<_>>().join(" ")
        }
        false => "CREATE TABLE, with the columns that the configuration names;".to_owned(),
    };
    let anew = format!(
        "BEGIN; {create} ALTER PUBLICATION {} ADD TABLE {}{}; COMMIT;",
        quote_identifier(&settings.publication),
        settings.table,
        filter(inspection, settings)
    );
    match has_slot || settings.entry.is_some() {
        true => format!(
            "where it was dropped, run {anew} in which nothing is lost: the relay goes on. Where it has another name now, set {key} to that"
        ),
        false => format!(
            "set postgres.publication to a name that is free, or {key} to the table that it is for; or, where it is this lane's, run {anew}"
        ),
    }
}

/// The first migration under the configured name, without its comments.
fn table_sql(settings: &PostgresSettings) -> String {
    let statement: Vec<&str> = OUTBOX_EVENTS_SQL
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect();
    statement
        .join("\n")
        .replace(OUTBOX_EVENTS_NAME, &settings.table.to_string())
}

/// Runs a step, other than the creation of a slot.
///
/// # Errors
/// The server's refusal.
pub async fn apply(client: &Client, step: &Step) -> Result<(), SqlError> {
    match step.part {
        Part::Slot => as_login(client, client.batch_execute(&step.sql)).await,
        Part::Table | Part::Publication => client.batch_execute(&step.sql).await,
    }
}

/// Runs what is about a slot as the role that logged in: another one, which `ALTER ROLE … SET role` may have put in its
/// place, is for the objects that are made.
async fn as_login<T>(
    client: &Client,
    about_slot: impl Future<Output = Result<T, SqlError>>,
) -> Result<T, SqlError> {
    client.batch_execute("SET ROLE NONE").await?;
    let done = about_slot.await;
    let reset = client.batch_execute("RESET ROLE").await;
    done.and_then(|done| reset.map(|()| done))
}

/// The step that drops a slot.
pub fn drop_slot(slot: &str) -> Step {
    Step {
        part: Part::Slot,
        sql: format!("SELECT pg_drop_replication_slot({});", quote_literal(slot)),
    }
}

/// What `teardown` will do: the slot first, so that nothing decodes without its publication.
///
/// # Errors
/// The slot is in use, or is not one that `setup` makes, or the role may not drop something.
pub fn teardown_plan(
    inspection: &Inspection,
    settings: &PostgresSettings,
    with_table: bool,
) -> Result<Vec<Step>, Vec<Finding>> {
    let mut steps = Vec::new();
    if let Some(slot) = &inspection.slot {
        let refusals = slot_refusals(slot, inspection, settings);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        steps.push(drop_slot(&settings.slot));
    }
    if inspection.publication.is_some() {
        let sql = format!(
            "DROP PUBLICATION {};",
            quote_identifier(&settings.publication)
        );
        steps.push(Step {
            part: Part::Publication,
            sql,
        });
    }
    if with_table {
        let tables = inspection.tables().zip(settings.tables());
        let there = tables.filter(|(found, _)| found.table.is_some());
        steps.extend(there.map(|(_, settings)| Step {
            part: Part::Table,
            sql: format!("DROP TABLE {};", settings.table),
        }));
    }
    match rights::refusal(inspection, settings, &steps, "teardown") {
        Some(refusal) => Err(vec![refusal]),
        None => Ok(steps),
    }
}

fn slot_refusals(
    slot: &Slot,
    inspection: &Inspection,
    settings: &PostgresSettings,
) -> Vec<Finding> {
    let mut refusals = Vec::new();
    if let Some(misfit) = slot_misfit(slot, &inspection.server.dbname) {
        refusals.push(Finding {
            severity: Severity::Refuse,
            kind: Kind::SlotMismatch,
            what: format!("replication slot \"{}\" {misfit}", settings.slot),
            mend: "it stays; set name, or postgres.slot, to that of the relay which is to go"
                .to_owned(),
        });
    }
    if let Some(pid) = slot.made_by() {
        refusals.push(Finding {
            severity: Severity::Refuse,
            kind: Kind::SlotUnfinished,
            what: unfinished::what(&settings.slot, pid),
            mend: unfinished::mend(pid),
        });
    } else if let Some(pid) = slot.active_pid {
        refusals.push(Finding {
            severity: Severity::Refuse,
            kind: Kind::SlotActive,
            what: format!(
                "replication slot \"{}\" is read by the server process {pid}",
                settings.slot
            ),
            mend: "stop the relay first".to_owned(),
        });
    }
    refusals
}
