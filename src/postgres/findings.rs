//! What of an [`Inspection`] stands in the relay's way, and the command that mends it.
//!
//! In: what the catalog says and what is configured. Out: [`Finding`]s, the gravest first. Guarantee: pure; nothing
//! that would lose rows in silence passes without a finding.

use std::fmt;

#[cfg(feature = "cli")]
use crate::pipeline::fields::Field;
use crate::pipeline::mapping::default_columns;
use crate::postgres::catalog::{Inspection, Publication, Slot, Table};
use crate::postgres::error::SLOT_LOST_MEND;
use crate::postgres::row_security;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::unfinished;
use crate::table_name::{TableName, quote_identifier};

pub(super) mod columns;
mod kind;
mod needs;
mod proposal;
mod publication;
mod put_anew;
mod refusals;
pub use kind::Kind;
#[cfg(feature = "cli")]
pub(crate) use publication::not_held;
pub(crate) use publication::under_another_name;
pub use refusals::Refusals;
#[cfg(feature = "cli")]
pub(crate) use server::may_not_replicate;
mod server;
pub(crate) mod shares;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The relay does not start.
    Refuse,
    /// It starts, and somebody should look.
    Warn,
}

/// One thing that is wrong, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How grave.
    pub severity: Severity,
    /// What about.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
    /// The command that mends it.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.mend)
    }
}

pub(crate) fn refuse(kind: Kind, what: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Refuse,
        kind,
        what: what.into(),
        mend: mend.into(),
    }
}

pub(crate) fn warn(kind: Kind, what: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Warn,
        kind,
        what: what.into(),
        mend: mend.into(),
    }
}

/// Whether the table has the columns of these fields, for commands that read them alone.
///
/// # Errors
/// It lacks one: what the relay would say of the table's columns.
#[cfg(feature = "cli")]
pub(crate) fn has_columns(
    inspection: &Inspection,
    settings: &PostgresSettings,
    fields: &[Field],
) -> Result<(), Refusals> {
    let Some(table) = &inspection.table else {
        return Ok(());
    };
    let is_there = |name: &str| table.columns.iter().any(|column| column.name == name);
    let mut names = fields
        .iter()
        .filter_map(|field| settings.columns.get(*field).column());
    if names.all(is_there) {
        return Ok(());
    }
    let mut found = Vec::new();
    let version_num = inspection.server.version_num;
    let has_slot = inspection.slot.is_some();
    columns::columns(table, settings, version_num, has_slot, &mut found);
    let refusal = found
        .into_iter()
        .find(|finding| finding.severity == Severity::Refuse);
    refusal.map_or(Ok(()), |finding| Err(Refusals(vec![finding])))
}

/// Everything that stands in the way, refusals first.
pub fn findings(inspection: &Inspection, settings: &PostgresSettings) -> Vec<Finding> {
    let mut found = Vec::new();
    server::server(&inspection.server, &mut found);
    let names: Vec<TableName> = (settings.tables().iter())
        .map(|settings| settings.table.clone())
        .collect();
    let has_table = inspection.tables().any(|it| it.table.is_some());
    if !has_table && inspection.publication.is_none() && inspection.slot.is_none() {
        found.push(nothing(inspection, settings, &names));
    } else {
        for (inspection, settings) in inspection.tables().zip(settings.tables()) {
            let mut of_table = Vec::new();
            table(inspection, &settings, &mut of_table);
            if let Some(whole) = part_of(inspection, &names) {
                found.push(partition(&settings, whole));
                continue;
            }
            let is_table = |table: &Table| table.has_rows_of_its_own();
            if inspection.table.as_ref().is_none_or(is_table) {
                publication::publication(inspection, &settings, &mut of_table);
            }
            // What is wrong with the publication is so for each table, and a missing one is missing once.
            let lacks_publication = found
                .iter()
                .any(|finding| finding.kind == Kind::PublicationMissing);
            of_table.retain(|finding| {
                let is_told = finding.kind == Kind::PublicationMissing && lacks_publication;
                !is_told && !found.contains(finding)
            });
            found.append(&mut of_table);
        }
        slot(inspection, settings, &mut found);
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// Which of the lane's tables this one is a partition of.
fn part_of<'n>(inspection: &Inspection, names: &'n [TableName]) -> Option<&'n TableName> {
    let ancestors = &inspection.table.as_ref()?.ancestors;
    names.iter().find(|name| {
        let is_it = |ancestor: &String| ancestor.parse().as_ref() == Ok(*name);
        ancestors.iter().any(is_it)
    })
}

/// A publication sends the rows of both as the whole's.
fn partition(settings: &PostgresSettings, whole: &TableName) -> Finding {
    let name = &settings.table;
    refuse(
        Kind::TableMismatch,
        format!(
            "table {name} is a partition of {whole}, which the lane has too: its rows come as rows of {whole}"
        ),
        match &settings.entry {
            Some(entry) => format!("remove the entry of {entry} from [[source.tables]]"),
            None => format!(
                "set postgres.table to {whole}, and remove its entry from [[source.tables]]"
            ),
        },
    )
}

/// Not three findings: before the first set-up this is no fault, and one command mends it.
fn nothing(inspection: &Inspection, settings: &PostgresSettings, names: &[TableName]) -> Finding {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    refuse(
        Kind::SlotMissing,
        format!(
            "there is no table {}, no publication {} and no replication slot \"{}\" in database {}",
            names.join(", no table "),
            quote_identifier(&settings.publication),
            settings.slot,
            inspection.server.dbname
        ),
        match inspection
            .tables()
            .zip(settings.tables())
            .find_map(|(it, of)| instead(it, &of))
        {
            Some(instead) => instead,
            None => "run walrelay setup; if they were there, find out first why they have gone"
                .to_owned(),
        },
    )
}

fn slot(inspection: &Inspection, settings: &PostgresSettings, found: &mut Vec<Finding>) {
    let name = &settings.slot;
    let Some(slot) = &inspection.slot else {
        found.push(refuse(
            Kind::SlotMissing,
            format!("there is no replication slot \"{name}\" on this server"),
            "run walrelay setup; if there was one, find out first why it has gone: then walrelay adopt, and walrelay backfill for the events since",
        ));
        return;
    };
    if let Some(misfit) = slot_misfit(slot, &inspection.server.dbname) {
        found.push(refuse(
            Kind::SlotMismatch,
            format!("replication slot \"{name}\" {misfit}"),
            "set name, or postgres.slot, to one that is free and run walrelay setup",
        ));
        return;
    }
    if slot.two_phase {
        found.push(refuse(
            Kind::SlotMismatch,
            format!("replication slot \"{name}\" was made with two_phase and sends transactions before they commit"),
            SLOT_LOST_MEND,
        ));
    }
    if slot.is_lost() {
        let reason = slot
            .invalidation_reason
            .as_deref()
            .unwrap_or("max_slot_wal_keep_size was passed");
        found.push(refuse(
            Kind::SlotLost,
            format!(
                "replication slot \"{name}\" is lost ({reason}): the WAL that it needs is gone"
            ),
            SLOT_LOST_MEND,
        ));
    } else if slot.wal_status.as_deref() == Some("unreserved") {
        found.push(warn(
            Kind::SlotLost,
            format!("replication slot \"{name}\" is behind by more than max_slot_wal_keep_size and lost at the next checkpoint"),
            "raise max_slot_wal_keep_size and run SELECT pg_reload_conf(); until the relay has caught up",
        ));
    }
    if let Some(pid) = slot.made_by() {
        found.push(warn(
            Kind::SlotUnfinished,
            unfinished::what(name, pid),
            unfinished::mend(pid),
        ));
    } else if let Some(pid) = slot.active_pid {
        found.push(warn(
            Kind::SlotActive,
            format!("replication slot \"{name}\" is read by the server process {pid}"),
            format!("stop the other relay, or run SELECT pg_terminate_backend({pid});"),
        ));
    }
}

/// Why a slot is not one for this relay.
pub(crate) fn slot_misfit(slot: &Slot, dbname: &str) -> Option<String> {
    if slot.slot_type != "logical" {
        return Some(format!("is a {} slot, not a logical one", slot.slot_type));
    }
    match slot.plugin.as_deref() {
        Some("pgoutput") => {}
        other => {
            return Some(format!(
                "has the output plugin {}, not pgoutput",
                other.unwrap_or("(none)")
            ));
        }
    }
    match slot.database.as_deref() {
        Some(database) if database == dbname => {}
        other => {
            return Some(format!(
                "belongs to the database {}, not {dbname}",
                other.unwrap_or("(none)")
            ));
        }
    }
    slot.temporary
        .then(|| "is temporary and ends with the session that made it".to_owned())
}

fn table(inspection: &Inspection, settings: &PostgresSettings, found: &mut Vec<Finding>) {
    let name = &settings.table;
    let Some(table) = &inspection.table else {
        found.push(refuse(
            Kind::TableMissing,
            format!(
                "there is no table {name} in database {}",
                inspection.server.dbname
            ),
            missing_table(inspection, settings),
        ));
        return;
    };
    if !table.has_rows_of_its_own() {
        found.push(no_table(table, settings));
        return;
    }
    if table.relpersistence != 'p' {
        found.push(refuse(
            Kind::TableMismatch,
            format!("table {name} is unlogged: its rows never reach the WAL"),
            format!("run ALTER TABLE {name} SET LOGGED;"),
        ));
    }
    for leaf in &table.unlogged_leaves {
        found.push(refuse(
            Kind::TableMismatch,
            format!("partition {leaf} of {name} is unlogged: its rows never reach the WAL"),
            format!("run ALTER TABLE {leaf} SET LOGGED;"),
        ));
    }
    for leaf in &table.foreign_leaves {
        found.push(refuse(
            Kind::TableMismatch,
            format!("partition {leaf} of {name} is a foreign table: its rows never reach this server's WAL"),
            format!("run ALTER TABLE {name} DETACH PARTITION {leaf}; and write to {name} what this relay is to publish"),
        ));
    }
    heirs(table, settings, found);
    partition_keys(table, settings, found);
    if let Err(hidden) = row_security::check(inspection, name) {
        let what = format!("{}, which backfill and verify need", hidden.what());
        found.push(warn(Kind::Privilege, what, hidden.mend()));
    }
    let version_num = inspection.server.version_num;
    let has_slot = inspection.slot.is_some();
    columns::columns(table, settings, version_num, has_slot, found);
    shares::table(&inspection.server, table, settings, found);
}

/// Something of that name whose rows, if it has any, never come from the WAL as its own.
fn no_table(table: &Table, settings: &PostgresSettings) -> Finding {
    let (name, key) = (&settings.table, settings.table_key());
    let (what, mend) = match table.relkind {
        'v' => (
            "a view: its rows are those of other tables",
            format!("set {key} to the table that {name} reads"),
        ),
        'm' => (
            "a materialized view: nobody inserts events there",
            format!("set {key} to the table that {name} reads"),
        ),
        'f' => (
            "a foreign table: its rows never reach this server's WAL",
            format!(
                "run the relay at the server that has the rows, or set {key} to a table of this one"
            ),
        ),
        'S' => ("a sequence", format!("set {key} to the outbox table")),
        'i' | 'I' => ("an index", format!("set {key} to the outbox table")),
        _ => ("no table", format!("set {key} to the outbox table")),
    };
    refuse(Kind::TableMismatch, format!("{name} is {what}"), mend)
}

/// `setup` makes a table only with walrelay's own columns, and puts none into a publication that there is.
pub(super) fn missing_table(inspection: &Inspection, settings: &PostgresSettings) -> String {
    let key = settings.table_key();
    let (table, publication) = (&settings.table, quote_identifier(&settings.publication));
    let holds_what_comes = |it: &Publication| it.puballtables;
    match &inspection.publication {
        Some(it) if settings.entry.is_some() && !holds_what_comes(it) => format!(
            "make the table, then run ALTER PUBLICATION {publication} ADD TABLE {table};, or where it has another name now, set {key} to \
             that"
        ),
        _ => match instead(inspection, settings) {
            Some(instead) => instead,
            None if is_default(settings) => match &inspection.publication {
                Some(it) if !holds_what_comes(it) => format!(
                    "where it was dropped, walrelay setup --dry-run says with which SQL it is made anew and nothing is lost; where it has \
                     another name now, set {key} to that"
                ),
                _ => format!("run walrelay setup, or set {key}"),
            },
            None => {
                format!(
                    "make the table with the columns that the configuration names, or set {key}"
                )
            }
        },
    }
}

/// What to do where another table was probably meant.
pub(super) fn instead(inspection: &Inspection, settings: &PostgresSettings) -> Option<String> {
    let (meant, key) = (inspection.meant.as_ref()?, settings.table_key());
    let new = match is_default(settings) {
        true => "run walrelay setup --create-table",
        false => "make it with the columns that the configuration names",
    };
    Some(format!(
        "set {key} to {meant} where that table is meant; where a new one is, {new}"
    ))
}

/// Whether the table has the columns that `walrelay setup` makes one with.
pub(super) fn is_default(settings: &PostgresSettings) -> bool {
    settings.columns == default_columns()
}

/// Rows of a table that inherits are seen in every query of the outbox, and come, if at all, under that table's own name.
fn heirs(table: &Table, settings: &PostgresSettings, found: &mut Vec<Finding>) {
    let name = &settings.table;
    let columns = table.columns.iter().filter(|column| !column.generated);
    let columns: Vec<String> = columns
        .map(|column| quote_identifier(&column.name))
        .collect();
    let columns = columns.join(", ");
    for heir in &table.heirs {
        found.push(warn(
            Kind::TableMismatch,
            format!("table {heir} inherits from {name}: rows that are inserted there are outbox rows that nobody publishes"),
            format!(
                "insert into {name} itself, and for the rows that are there run WITH moved AS (DELETE FROM ONLY {heir} \
                 RETURNING {columns}) INSERT INTO {name} ({columns}) SELECT {columns} FROM moved;"
            ),
        ));
    }
}

/// An UPDATE that moves a row to another partition is in the WAL as DELETE and INSERT. The columns of an event stay as
/// they were inserted; others are there to be changed.
fn partition_keys(table: &Table, settings: &PostgresSettings, found: &mut Vec<Finding>) {
    let is_of_event = |key: &String| {
        columns::wanted(settings)
            .iter()
            .any(|(_, name)| name == key)
    };
    for key in table.partition_keys.iter().filter(|key| !is_of_event(key)) {
        found.push(warn(
            Kind::TableMismatch,
            format!(
                "{} is partitioned by {}: an UPDATE that moves a row to another partition publishes its event again",
                settings.table,
                quote_identifier(key)
            ),
            "never update that column, or partition by occurred_at, as sql/outbox_events_partitioned.sql does",
        ));
    }
}
