//! `--set COLUMN=VALUE` of `walrelay dead-letters retry`: other values for one publication.
//!
//! In: what was typed, and the dead letter that is meant. Out: the values as the letter's table would hold them. Guarantees: what the
//! column's type does not take is refused before anything is published; an event keeps its id.

use anyhow::{Context as _, bail};

use super::letters::Standing;
use crate::bulk::letters::Values;
use crate::bulk::rows::{Looked, columns};
use crate::cli::exit::UsageError;
use crate::pipeline::mapping::Mapping;
use crate::postgres::cast::{Cast, cast};
use crate::relay::settings::Settings;

/// Whether messages of any table are made of these columns.
///
/// # Errors
/// Of one of them none is.
pub(super) fn check(settings: &Settings, set: &[(String, String)]) -> Result<(), UsageError> {
    let mappings: Vec<Mapping> = settings.tables().iter().map(Settings::mapping).collect();
    for (name, _) in set {
        if !mappings.iter().any(|of| columns(of).contains(&&**name)) {
            return Err(no_message(name));
        }
    }
    Ok(())
}

fn no_message(name: &str) -> UsageError {
    UsageError(format!("--set: no message is made of a column {name:?}"))
}

/// The values, as the table of this letter would hold them.
///
/// # Errors
/// One that its column does not take, or another id of an event that has one.
pub(super) async fn typed(
    settings: &Settings,
    looked: &Looked,
    letter: &Standing,
    set: Vec<(String, String)>,
) -> anyhow::Result<Values> {
    let Some((number, settings)) = letter.outbox(settings) else {
        // Who makes its event says what to do.
        return Ok(set.into_iter().collect());
    };
    let inspection = looked.inspection.tables().nth(number);
    let name = &settings.postgres.table;
    let table = inspection.and_then(|inspection| inspection.table.as_ref());
    let table = table.with_context(|| format!("there is no table {name}"))?;
    let mapping = settings.mapping();
    let mut values = Values::new();
    for (column, text) in set {
        if !columns(&mapping).contains(&&*column) {
            return Err(no_message(&column).into());
        }
        if column == settings.postgres.id_column() {
            check_id(letter, &column, &text)?;
        }
        let value = match cast(looked.sql(), table, &column, &text).await? {
            Cast::Value(value) => value,
            Cast::Refused { type_name, words } => {
                let why = format!(
                    "--set: column {column:?} of {name} is {type_name}, and Postgres says: {words}"
                );
                return Err(UsageError(why).into());
            }
            Cast::NoColumn => bail!(
                "table {name} no longer has column {column:?}, by whose type the value would be read: add it again, or name in \
                 walrelay.toml the column that has taken its place"
            ),
        };
        values.insert(column, value);
    }
    Ok(values)
}

/// The id among the values that were set.
pub(super) fn id<'v>(
    settings: &Settings,
    letter: &Standing,
    values: &'v Values,
) -> Option<&'v str> {
    let (_, table) = letter.outbox(settings)?;
    values.get(table.postgres.id_column()).map(String::as_str)
}

/// Consumers know an event by its id, and so does verify: only one that never had an id may get one.
fn check_id(letter: &Standing, column: &str, text: &str) -> Result<(), UsageError> {
    let why = match letter.id.as_deref() {
        Some(id) if !id.is_empty() => format!(
            "--set: column {column:?} is the event's id, by which it is known, and stays {id}: leave it out. Only an event without an id \
             may be given one"
        ),
        _ if text.is_empty() => format!("--set: the id in column {column:?} would be empty"),
        _ => return Ok(()),
    };
    Err(UsageError(why))
}
