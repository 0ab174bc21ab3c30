//! Whether the publication sends the table's rows, all of them and whole, each once.
//!
//! In: what the catalog has of publication and table. Out: findings. Guarantee: pure; no remedy takes another table out of the
//! publication.

use super::put_anew::put_anew;
use super::{Finding, Kind, columns, refuse, shares, slot_misfit, warn};
use crate::postgres::catalog::{Inspection, Publication, Slot, Table};
use crate::postgres::error::SLOT_LOST_MEND;
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share;
use crate::table_name::quote_identifier;

/// Of one of the publication's tables.
pub(super) fn publication(
    inspection: &Inspection,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let name = quote_identifier(&settings.publication);
    let Some(publication) = &inspection.publication else {
        found.push(refuse(
            Kind::PublicationMissing,
            format!(
                "there is no publication {name} in database {}",
                inspection.server.dbname
            ),
            missing(inspection, settings),
        ));
        return;
    };
    if !publication.pubinsert {
        found.push(refuse(
            Kind::PublicationMismatch,
            format!("publication {name} does not publish inserts"),
            format!("run ALTER PUBLICATION {name} SET (publish = 'insert');"),
        ));
    }
    if publication.pubupdate
        && let Some(filter) = inspection.row_filter()
    {
        found.push(refuse(
            Kind::PublicationMismatch,
            format!(
                "publication {name} has the row filter {filter} and publishes updates: one after which the filter holds, and \
                 did not before, arrives as an insert, and the event comes twice"
            ),
            format!("run ALTER PUBLICATION {name} SET (publish = 'insert');"),
        ));
    }
    let Some(table) = &inspection.table else {
        return;
    };
    if table.relkind == 'p' && !publication.pubviaroot {
        found.push(refuse(
            Kind::PublicationMismatch,
            format!(
                "publication {name} sends rows of {} under the names of its partitions",
                settings.table
            ),
            format!("run ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"),
        ));
    } else if publication.entry.is_none() {
        found.push(refuse(
            Kind::PublicationMismatch,
            format!("publication {name} does not hold table {}", settings.table),
            add(inspection, settings),
        ));
    }
    published_columns(table, inspection, settings, found);
    match &settings.share {
        Some(share) => {
            shares::row_filter(table, inspection.row_filter(), share, settings, found);
        }
        None => {
            row_filter(table, inspection.row_filter(), settings, found);
            found.extend(of_a_share(publication, settings));
        }
    }
}

/// That it is a share's, which the share's own slot sends.
fn of_a_share(publication: &Publication, settings: &PostgresSettings) -> Option<Finding> {
    let filter = publication.entry.as_ref()?.rowfilter.as_deref()?;
    let (number, count) = share::told(filter)?;
    let slots = &publication.slots;
    let slot = slots.first().filter(|_| !slots.contains(&settings.slot))?;
    let name = &settings.publication;
    let whole = name.strip_suffix(&format!("_{number}"))?;
    Some(refuse(
        Kind::PublicationMismatch,
        format!(
            "publication {} is of share {number} of {count}, whose rows slot {slot} has: slot {} would publish them once more",
            quote_identifier(name),
            settings.slot
        ),
        format!(
            "set relay.shares = {count} and postgres.publication = {whole:?}, with slot and stream as the relay of the shares has them"
        ),
    ))
}

/// What puts the table into the publication; of one with shares, its share.
fn add(inspection: &Inspection, settings: &PostgresSettings) -> String {
    let name = quote_identifier(&settings.publication);
    let table = inspection.table.as_ref();
    let filter = table.map_or_else(String::new, |table| shares::clause(table, settings));
    format!(
        "run ALTER PUBLICATION {name} ADD TABLE {}{filter};",
        settings.table
    )
}

/// What to say to a command that goes by the publication, where that does not hold the table.
#[cfg(feature = "cli")]
pub(crate) fn not_held(inspection: &Inspection, settings: &PostgresSettings) -> Option<String> {
    let mend = match &inspection.publication {
        Some(publication) if publication.entry.is_some() => return None,
        Some(_) => add(inspection, settings),
        None => "run walrelay setup.".to_owned(),
    };
    Some(format!(
        "publication {} does not hold table {}, and tells which rows are this stream's: {mend} Or set postgres.publication",
        settings.publication, settings.table
    ))
}

/// What to do where there is no publication of that name.
fn missing(inspection: &Inspection, settings: &PostgresSettings) -> String {
    let is_ours = |slot: &Slot| slot_misfit(slot, &inspection.server.dbname).is_none();
    let anew = match inspection.slot.as_ref().is_some_and(is_ours) {
        // What committed before a publication is never sent by a slot that is older.
        true => SLOT_LOST_MEND,
        false => "run walrelay setup",
    };
    match under_another_name(inspection, settings) {
        Some(renamed) => format!("{renamed}. Else {anew}"),
        None => anew.to_owned(),
    }
}

/// What to do where the publication may only have got another name: rows that committed under the old one are sent too.
pub(crate) fn under_another_name(
    inspection: &Inspection,
    settings: &PostgresSettings,
) -> Option<String> {
    // Of shares each has its own, by the lane's name.
    if settings.share.is_some() {
        return None;
    }
    let others = &inspection.other_publications;
    let first = others.first()?;
    let quoted: Vec<String> = others.iter().map(|name| quote_identifier(name)).collect();
    let share = settings.any_share();
    let is_share = |name: &String| matches!(share.part_of_publication(name), Some(Some(_)));
    if others.iter().all(is_share) {
        return Some(format!(
            "table {} is divided into shares, by {}: set relay.shares to their number",
            settings.table,
            quoted.join(", ")
        ));
    }
    Some(format!(
        "{} of table {}: where it is this lane's under another name, give --publication {first} or set postgres.publication = \
         \"{first}\", which loses nothing",
        match &quoted[..] {
            [one] => format!("publication {one} carries the rows"),
            _ => format!("publications {} carry the rows", quoted.join(", ")),
        },
        settings.table
    ))
}

fn published_columns(
    table: &Table,
    inspection: &Inspection,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let publication = inspection.publication.as_ref();
    let Some(entry) = publication.and_then(|publication| publication.entry.as_ref()) else {
        return;
    };
    let publication_name = quote_identifier(&settings.publication);
    for (_, name) in columns::wanted(settings) {
        let Some(column) = table.columns.iter().find(|column| column.name == name) else {
            continue;
        };
        let published = match &entry.attnames {
            Some(names) => names.iter().any(|published| published == name),
            None => !column.generated,
        };
        let version_num = inspection.server.version_num;
        // Of one that cannot be sent the table's findings tell.
        if !published && columns::can_be_sent(column, version_num) {
            found.push(refuse(
                Kind::PublicationMismatch,
                format!(
                    "publication {publication_name} does not send column {}",
                    quote_identifier(name)
                ),
                match column.generated {
                    true => format!(
                        "run ALTER PUBLICATION {publication_name} SET (publish_generated_columns = stored); {}",
                        put_anew(settings, inspection.row_filter())
                    ),
                    false => format!(
                        "run {} (without a list of columns)",
                        put_anew(settings, inspection.row_filter())
                    ),
                },
            ));
        }
    }
}

/// A filter is three-valued: a row for which it is NULL is left out, by every share of a sharded outbox.
fn row_filter(
    table: &Table,
    filter: Option<&str>,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let Some(filter) = filter else {
        return;
    };
    let publication_name = quote_identifier(&settings.publication);
    for column in table.columns.iter().filter(|column| !column.not_null) {
        let name = quote_identifier(&column.name);
        if mentions(filter, &name) && !filter.contains(&format!("{name} IS NULL")) {
            found.push(warn(
                Kind::RowFilter,
                format!("the row filter {filter} of publication {publication_name} leaves out rows whose {name} is null"),
                format!("add OR {name} IS NULL to the filter of one share, or run ALTER TABLE {} ALTER COLUMN {name} SET NOT NULL;", settings.table),
            ));
        }
    }
    if mentions(filter, "mod") || filter.contains(" % ") {
        found.push(warn(
            Kind::RowFilter,
            format!("the row filter {filter} of publication {publication_name} takes a remainder, which is negative for half of all hashes"),
            match shares::example(table, settings) {
                Some(first) => format!(
                    "take the lowest bits instead, such as for the first of four relays: {}",
                    put_anew(settings, Some(&first))
                ),
                None => "take the lowest bits instead, as in hashtext(key) & 3".to_owned(),
            },
        ));
    }
}

/// Whether an expression contains a name as a whole word.
fn mentions(expression: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '"';
    expression.match_indices(name).any(|(at, _)| {
        !expression[..at].ends_with(word) && !expression[at + name.len()..].starts_with(word)
    })
}
