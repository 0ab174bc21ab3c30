//! Whether the table's columns can serve, and how they could.
//!
//! In: the table, what the configuration says of its columns. Out: findings. Guarantee: pure; nobody is told to alter
//! a table of somebody else's because its columns have other names or types.

use super::needs::needs;
use super::{Finding, Kind, proposal, refuse, warn};
use crate::nearest::nearest;
use crate::pipeline::fields::Field;
use crate::pipeline::mapping::{Value, default_columns};
use crate::postgres::catalog::{Column, Fate, Table};
use crate::postgres::published_rows::DISPATCHED_AT;
use crate::postgres::settings::PostgresSettings;
use crate::table_name::{TableName, quote_identifier};

/// The names of all columns that messages are made of, each with its field if it has one.
pub(in crate::postgres) fn wanted(settings: &PostgresSettings) -> Vec<(Option<Field>, &str)> {
    let own = settings.columns.as_ref().into_iter();
    let own = own.filter_map(|(field, value)| Some((Some(field), value.column()?)));
    let extra = settings.extra_columns.iter();
    own.chain(extra.map(|name| (None, name.as_str()))).collect()
}

/// From which version on a publication can carry columns that the server computes.
const GENERATED_SENT_VERSION: u32 = 180_000;

/// Whether a publication can carry the column.
pub(super) fn can_be_sent(column: &Column, version_num: u32) -> bool {
    !column.generated || !column.is_virtual && version_num >= GENERATED_SENT_VERSION
}

pub(super) fn columns(
    table: &Table,
    settings: &PostgresSettings,
    version_num: u32,
    has_slot: bool,
    found: &mut Vec<Finding>,
) {
    let needs = needs();
    let misfits: Vec<Misfit<'_>> = wanted(settings)
        .into_iter()
        .filter_map(|(field, name)| {
            let column = table.columns.iter().find(|column| column.name == name);
            let fits = match (column, field) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(column), Some(field)) => (needs.get(field).fits)(column),
            };
            (!fits).then_some(Misfit {
                field,
                name,
                column,
            })
        })
        .collect();
    let (gone, misfits): (Vec<_>, Vec<_>) = (misfits.into_iter())
        .map(|misfit| (misfit.gone(table, settings), misfit))
        .partition(|(gone, _)| gone.is_some());
    found.extend(gone.into_iter().filter_map(|(gone, _)| gone));
    let misfits: Vec<Misfit<'_>> = misfits.into_iter().map(|(_, misfit)| misfit).collect();
    if !may_be_altered(table, settings, &misfits)
        && misfits.iter().any(|misfit| misfit.field.is_some())
    {
        found.push(map(table, settings, has_slot, &misfits));
    } else {
        found.extend(misfits.iter().map(|misfit| misfit.alter(table, settings)));
    }
    for (field, name) in wanted(settings) {
        let column = table.columns.iter().find(|column| column.name == name);
        if let Some(column) = column.filter(|column| !can_be_sent(column, version_num)) {
            found.push(never_sent(column, field, settings));
        } else if let (Some(field), Some(column)) = (field, column) {
            values(table, column, field, settings, found);
        }
    }
    for name in settings.subject.columns() {
        let column = table.columns.iter().find(|column| column.name == name);
        if let Some(column) = column.filter(|column| !column.not_null) {
            let why = format!(", since {} names it", naming(name, settings));
            found.push(nullable(column, &why, settings));
        }
    }
}

/// Whether the table is walrelay's own, but for a column that is missing or of another type, and nobody has written to it: what
/// writes to any other table does not fill a column that it does not know. Nor does Postgres alter the type of a partition's key, or
/// a partition by itself.
fn may_be_altered(table: &Table, settings: &PostgresSettings, misfits: &[Misfit<'_>]) -> bool {
    let own = default_columns();
    let is_own = |column: &Column| {
        let named = |(_, value): (Field, &Value)| value.column() == Some(&*column.name);
        own.as_ref().into_iter().any(named) || column.name == DISPATCHED_AT
    };
    let has = |value: &Value| {
        table
            .columns
            .iter()
            .any(|column| Some(&*column.name) == value.column())
    };
    let missing = own
        .as_ref()
        .into_iter()
        .filter(|(_, value)| !has(value))
        .count();
    let is_key = |misfit: &Misfit<'_>| is_partition_key(table, misfit.name);
    if misfits.iter().any(is_key) || !table.ancestors.is_empty() {
        return false;
    }
    !table.has_rows && settings.columns == own && missing <= 1 && table.columns.iter().all(is_own)
}

fn is_partition_key(table: &Table, name: &str) -> bool {
    table.partition_keys.iter().any(|key| key == name)
}

/// Gives a column another type, and its default with it: Postgres casts by itself only where an assignment would.
fn retype(
    column: &Column,
    table: &TableName,
    wanted: &str,
    cast: impl Fn(&str) -> String,
) -> String {
    let name = quote_identifier(&column.name);
    let alter = format!("ALTER COLUMN {name}");
    let using = format!("{alter} TYPE {wanted} USING {}", cast(&name));
    match &column.default {
        None => format!("ALTER TABLE {table} {using};"),
        Some(default) => {
            let default = cast(&format!("({default})"));
            format!(
                "ALTER TABLE {table} {alter} DROP DEFAULT, {using}, {alter} SET DEFAULT {default};"
            )
        }
    }
}

/// A `timestamp` that is taken as UTC, as one with a time zone.
fn with_time_zone(table: &Table, column: &Column, name: &TableName) -> String {
    if is_partition_key(table, &column.name) || !table.ancestors.is_empty() {
        return "let what writes to it write UTC: Postgres does not alter the type of a partition's key".to_owned();
    }
    let statement = match column.default.as_deref() {
        // What tells the moment tells it in either type.
        None | Some("now()" | "CURRENT_TIMESTAMP" | "LOCALTIMESTAMP" | "clock_timestamp()") => {
            let column = quote_identifier(&column.name);
            format!(
                "ALTER TABLE {name} ALTER COLUMN {column} TYPE timestamptz USING {column} AT TIME ZONE 'UTC';"
            )
        }
        Some(_) => retype(column, name, "timestamptz", |it| {
            format!("{it}::timestamp AT TIME ZONE 'UTC'")
        }),
    };
    format!("run {statement}")
}

/// Whether headers or fields are made of the column; those of the subject stand before theirs.
fn is_of_message(name: &str, settings: &PostgresSettings) -> bool {
    let extras = settings.extra_columns.iter();
    let mut of_message = extras.skip(settings.subject.columns().count());
    of_message.any(|column| column == name)
}

/// The keys that name a column which is none of the event's own.
fn naming(name: &str, settings: &PostgresSettings) -> String {
    let in_subject = settings.subject.columns().any(|column| column == name);
    let in_message = is_of_message(name, settings);
    let is_entry = settings.entry.is_some();
    let subject = match is_entry {
        true => "subject",
        false => "nats.subject",
    };
    let keys: Vec<&str> = [
        (in_subject, subject),
        (in_message, "message.headers or message.fields"),
    ]
    .into_iter()
    .filter_map(|(names, key)| names.then_some(key))
    .collect();
    let keys = keys.join(" and ");
    match &settings.entry {
        Some(entry) => format!("{keys} of the entry of {entry} in [[source.tables]]"),
        None => keys,
    }
}

/// A column that the server computes and no publication carries.
fn never_sent(column: &Column, field: Option<Field>, settings: &PostgresSettings) -> Finding {
    let (name, sql_name) = (&settings.table, quote_identifier(&column.name));
    let which = match column.is_virtual {
        true => "virtual",
        false => "generated, before Postgres 18",
    };
    let section = match (field, &settings.entry) {
        (Some(_), None) => "[columns]".to_owned(),
        (Some(_), Some(entry)) => format!("columns of the entry of {entry} in [[source.tables]]"),
        (None, _) => naming(&column.name, settings),
    };
    refuse(
        Kind::Column,
        format!("column {sql_name} of {name} is {which}, and no publication carries such a column"),
        format!("name a column in {section} that is not generated"),
    )
}

/// What a column that can serve may still hold.
fn values(
    table: &Table,
    column: &Column,
    field: Field,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let (name, sql_name) = (&settings.table, quote_identifier(&column.name));
    if column.base_type == "timestamp" && field == Field::OccurredAt {
        found.push(warn(
            Kind::Column,
            format!(
                "column {sql_name} of {name} is timestamp without time zone and is taken as UTC"
            ),
            with_time_zone(table, column, name),
        ));
    }
    if !column.not_null && !settings.may_be_null.contains(&field) {
        found.push(nullable(column, "", settings));
    }
}

fn nullable(column: &Column, why: &str, settings: &PostgresSettings) -> Finding {
    let (name, sql_name) = (&settings.table, quote_identifier(&column.name));
    warn(
        Kind::Column,
        format!(
            "column {sql_name} of {name} may be null, and a row with a null there is rejected{why}"
        ),
        format!("run ALTER TABLE {name} ALTER COLUMN {sql_name} SET NOT NULL;"),
    )
}

/// A column that is missing, or cannot serve.
struct Misfit<'a> {
    /// None for one that only subject, header or further field names.
    field: Option<Field>,
    name: &'a str,
    column: Option<&'a Column>,
}

impl Misfit<'_> {
    fn what(&self, settings: &PostgresSettings) -> String {
        let (table, name) = (&settings.table, quote_identifier(self.name));
        match (self.column, self.field) {
            (Some(column), Some(field)) => format!(
                "column {name} of {table} is {}, which cannot be {field} ({})",
                column.type_name,
                needs().get(field).types
            ),
            _ => format!("table {table} has no column {name}"),
        }
    }

    /// For one that rows were read by, and that was renamed, or dropped for another one: what became of it, and what may take its place.
    fn gone(&self, table: &Table, settings: &PostgresSettings) -> Option<Finding> {
        let (name, sql_name) = (&settings.table, quote_identifier(self.name));
        let fate = (self.column.is_none()).then(|| table.fate(self.name))??;
        let fits = |column: &Column| {
            self.field
                .is_none_or(|field| (needs().get(field).fits)(column))
        };
        let (what, mend) = match fate {
            Fate::Renamed(column) if fits(column) => {
                let now = quote_identifier(&column.name);
                // Which rows were written since, nobody can tell.
                (
                    format!("it is called {now}"),
                    format!(
                        "{}; do not rename it back, or rows that were written as {now} become dead letters",
                        self.instead(&column.name, settings)
                    ),
                )
            }
            Fate::Renamed(_) => return None,
            Fate::Dropped => {
                let wanted = wanted(settings);
                let is_free = |column: &&Column| {
                    fits(column) && !wanted.iter().any(|(_, name)| *name == column.name)
                };
                let later: Vec<&Column> = table.later_columns().filter(is_free).collect();
                let mend = match &later[..] {
                    [] => return None,
                    [one] => format!("{}, which came later", self.instead(&one.name, settings)),
                    several => {
                        let each = several.iter().map(|it| self.instead(&it.name, settings));
                        format!(
                            "one of those that came later: {}",
                            each.collect::<Vec<_>>().join("; or ")
                        )
                    }
                };
                let publish = match self.field {
                    // A dead letter without an id finds no row, and another id has to be adopted first.
                    Some(Field::Id) => "",
                    _ => ": fill it in those rows, then run walrelay dead-letters retry --all",
                };
                let mend = format!(
                    "{mend}; rows from before it came that are not published yet become dead letters{publish}"
                );
                ("it was dropped".to_owned(), mend)
            }
        };
        let what = format!("table {name} has no column {sql_name} any more: {what}");
        Some(refuse(Kind::Column, what, mend))
    }

    /// Has the configuration name another column in its place.
    fn instead(&self, other: &str, settings: &PostgresSettings) -> String {
        match (self.field, &settings.entry) {
            (Some(field), None) => format!("set {field} = {other:?} in [columns]"),
            (Some(field), Some(entry)) => {
                format!(
                    "set columns.{field} = {other:?} in the entry of {entry} in [[source.tables]]"
                )
            }
            (None, _) => format!(
                "name {other:?} in its place in {}",
                naming(self.name, settings)
            ),
        }
    }

    /// For a table of walrelay's own that has no rows yet.
    fn alter(&self, table: &Table, settings: &PostgresSettings) -> Finding {
        let (name, sql_name) = (&settings.table, quote_identifier(self.name));
        let needs = needs();
        let mend = match (self.field, self.column) {
            (None, _) => {
                let names = table.columns.iter().map(|column| column.name.as_str());
                let near = nearest(self.name, names)
                    .map(|near| format!("; did you mean {}?", quote_identifier(near)));
                let near = near.unwrap_or_default();
                let inherited = match &settings.entry {
                    Some(_) => ", as for postgres.table where it has none of its own",
                    None => "",
                };
                let naming = naming(self.name, settings);
                format!("name a column of the table in {naming}{inherited}{near}")
            }
            (Some(field), None) => {
                let need = needs.get(field);
                let constraint = match field {
                    Field::Id
                        if table.primary_key.is_empty() && table.partition_keys.is_empty() =>
                    {
                        "PRIMARY KEY"
                    }
                    _ => need.constraint,
                };
                format!(
                    "run ALTER TABLE {name} ADD COLUMN {sql_name} {} {constraint};",
                    need.wanted
                )
            }
            (Some(field), Some(column)) => {
                let wanted = needs.get(field).wanted;
                let cast = |it: &str| format!("{it}::text::{wanted}");
                format!("run {}", retype(column, name, wanted, cast))
            }
        };
        refuse(Kind::Column, self.what(settings), mend)
    }
}

/// For a table of somebody else's: the configuration follows the table.
fn map(
    table: &Table,
    settings: &PostgresSettings,
    has_slot: bool,
    misfits: &[Misfit<'_>],
) -> Finding {
    let (missing, others): (Vec<_>, Vec<_>) =
        (misfits.iter()).partition(|misfit| misfit.column.is_none());
    let mut whats: Vec<String> = others.iter().map(|misfit| misfit.what(settings)).collect();
    match &missing[..] {
        [] => {}
        [one] => whats.insert(0, one.what(settings)),
        several => {
            let names: Vec<String> = (several.iter())
                .map(|misfit| quote_identifier(misfit.name))
                .collect();
            whats.insert(
                0,
                format!(
                    "table {} has no columns {}",
                    settings.table,
                    names.join(", ")
                ),
            );
        }
    }
    let mut mend =
        proposal::of(table, settings).unwrap_or_else(|| by_hand(table, settings, misfits));
    // What the columns were called when the slot began, nobody has written down.
    if has_slot && table.known.is_empty() && !missing.is_empty() {
        mend.push_str(
            "\n# Where a column was renamed: rows that are in the slot under its former name become dead letters with these lines.\
             \n# If no row was written since: rename it back, let the relay publish them, then rename it again and use the lines.",
        );
    }
    // The proposal's subject names what is there.
    for misfit in misfits.iter().filter(|misfit| misfit.field.is_none()) {
        if is_of_message(misfit.name, settings) {
            mend.push_str(&format!(
                "\n# and in message.headers and message.fields, another column in place of {}",
                quote_identifier(misfit.name)
            ));
        }
    }
    refuse(Kind::Column, whats.join("; "), mend)
}

/// Where nothing can be proposed: why not, what there is, and what is wanted.
fn by_hand(table: &Table, settings: &PostgresSettings, misfits: &[Misfit<'_>]) -> String {
    let needs = needs();
    let fields = || misfits.iter().filter_map(|misfit| misfit.field);
    let needed = |field: &Field| matches!(field, Field::Id | Field::Payload);
    let untold: Vec<String> = (fields().filter(needed))
        .filter_map(|field| {
            let fits = table
                .columns
                .iter()
                .filter(|it| (needs.get(field).fits)(it));
            let names: Vec<_> = fits.map(|column| quote_identifier(&column.name)).collect();
            match &names[..] {
                [] => Some(format!("no column can be {field}")),
                [_] => None,
                names => Some(format!("{field} may be any of {}", names.join(", "))),
            }
        })
        .collect();
    let why = match untold.is_empty() {
        true => String::new(),
        false => format!("nothing can be proposed, since {}; ", untold.join(", and ")),
    };
    let types: Vec<String> = fields()
        .map(|field| format!("{field} ({})", needs.get(field).types))
        .collect();
    let spared: Vec<String> = (fields().filter(|field| !needed(field)))
        .map(|field| field.to_string())
        .collect();
    let spared = match spared.is_empty() {
        true => String::new(),
        false => format!(" (\"\" where the table has none: {})", spared.join(", ")),
    };
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| format!("{} {}", quote_identifier(&column.name), column.type_name))
        .collect();
    let (types, key) = (types.join(", "), settings.table_key());
    let section = match settings.entry.is_some() {
        true => "columns of its entry",
        false => "[columns]",
    };
    format!(
        "{why}name the columns that hold {types} in {section}{spared}, or set {key} to a table of walrelay's own; this table has {}",
        columns.join(", ")
    )
}
