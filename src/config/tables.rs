//! `source.tables`: further tables of the lane, each with a mapping of its own.
//!
//! In: the layers of the lane. Out: each table with its mapping. What an entry leaves out is as for `postgres.table`; where it
//! has a preset, as the preset has it. Guarantee: what passes here is read, published and told apart from the lane's own table.

use toml::Table;

use super::checked::{checked, invalid, required};
use super::error::ConfigError;
use super::keys::{Entry, KEYS, Key, PLACEHOLDER};
use super::layers::Layers;
use super::mapping;
use crate::nats::filters::widest;
use crate::nearest::nearest;
use crate::pipeline::mapping::Mapping;
use crate::postgres::settings::FurtherTable;
use crate::relay::settings::Settings;
use crate::table_name::TableName;

/// Each costs a look at the catalog every five seconds.
const TABLES_MAX: usize = 32;

/// Which key an entry's own one stands for.
const OWN: [(&str, Key); 4] = [
    ("name", Key::PostgresTable),
    ("table", Key::PostgresTable),
    ("preset", Key::Preset),
    ("subject", Key::NatsSubject),
];

/// Its tables, whose keys are those of the sections of that name.
const SECTIONS: [&str; 2] = ["columns", "message"];

/// Adds the further tables to the settings of a lane.
///
/// # Errors
/// An unknown key, a table twice, a mapping that does not fit, or something that is for one table only.
pub(super) fn add(layers: &Layers, lane: &mut Settings) -> Result<(), ConfigError> {
    let key = Key::SourceTables;
    let text = required(layers, key);
    let wrong = |expected: String| invalid(key, text, expected);
    let list = "a list of tables, such as [{ name = \"public.audit_events\" }]";
    let entries = parse(&text.text).ok_or_else(|| wrong(list.to_owned()))?;
    if entries.is_empty() {
        return Ok(());
    }
    if entries.len() > TABLES_MAX {
        return Err(wrong(format!("at most {TABLES_MAX} tables")));
    }
    for entry in entries {
        let further = of_entry(layers, &entry, lane.postgres.part())?;
        if let Some(twice) = twice(lane, &further) {
            return Err(wrong(format!(
                "without {twice} twice; postgres.table counts too"
            )));
        }
        lane.postgres.further.push(further);
    }
    let filters = subjects(lane);
    let own = lane.nats.subject.filter();
    // Of what a lane publishes in a shared stream, its end is found by one filter.
    if lane.nats.shared && filters != [own.as_str()] {
        return Err(wrong(format!(
            "a list of tables that publish on {own} as postgres.table does, since nats.shared is true"
        )));
    }
    lane.nats.further_subjects = filters;
    Ok(())
}

/// Whether the tables can be divided into shares, which have a stream each where `own_streams` says so.
///
/// # Errors
/// A table whose rows no column divides, or whose subject is in the streams of all shares.
pub(super) fn check_divided(whole: &Layers, own_streams: bool) -> Result<(), ConfigError> {
    let text = required(whole, Key::SourceTables);
    // What is wrong with the list is told where it is read.
    for entry in parse(&text.text).unwrap_or_default() {
        let further = of_entry(whole, &entry, None)?;
        let name = &further.name;
        let wrong = |expected: String| Err(invalid(Key::SourceTables, text, expected));
        if further.mapping.columns.aggregate_id.column().is_none() {
            return wrong(format!(
                "a list of tables each with a column for aggregate_id where relay.shares is more than 1, since it tells a row's share; {name} \
                 has none"
            ));
        }
        let named = entry.get("subject").and_then(toml::Value::as_str);
        let is_divided = match named {
            Some(subject) => subject.contains(PLACEHOLDER),
            None => !entry.contains_key("preset"),
        };
        if own_streams && !is_divided {
            return wrong(format!(
                "a list of tables each with {PLACEHOLDER} in its subject where nats.stream has it, such as \
                 subject = \"outbox.{PLACEHOLDER}.{{event_type}}\": a subject is in one stream only; {name} has none"
            ));
        }
    }
    Ok(())
}

/// What two entries have in common: the table itself, or the name that messages tell.
fn twice(lane: &Settings, further: &FurtherTable) -> Option<String> {
    let others = &lane.postgres.further;
    let is_there = lane.postgres.table == further.name
        || others.iter().any(|other| other.name == further.name);
    if is_there {
        return Some(further.name.to_string());
    }
    let entry = &further.mapping.message.table;
    let is_told = others
        .iter()
        .any(|other| other.mapping.message.table == *entry);
    entry.clone().filter(|_| is_told)
}

/// What the tables of a lane publish on.
fn subjects(lane: &Settings) -> Vec<String> {
    let further = lane.postgres.further.iter();
    let further = further.map(|further| further.mapping.subject.filter());
    widest(std::iter::once(lane.nats.subject.filter()).chain(further))
}

/// `[{ … }, …]` by itself is no document.
fn parse(text: &str) -> Option<Vec<Table>> {
    let document: Table = format!("it = {text}").parse().ok()?;
    let entries = document.get("it")?.as_array()?;
    entries
        .iter()
        .map(|entry| entry.as_table().cloned())
        .collect()
}

/// The table of an entry, in the lane of this share.
fn of_entry(
    whole: &Layers,
    entry: &Table,
    share: Option<u32>,
) -> Result<FurtherTable, ConfigError> {
    let text = required(whole, Key::SourceTables);
    let wrong = |expected: String| invalid(Key::SourceTables, text, expected);
    let name = entry.get("name").and_then(toml::Value::as_str);
    let name = name.ok_or_else(|| wrong("a list of tables, each with a name".to_owned()))?;
    let of_table = |error: ConfigError| ConfigError::Table {
        table: name.to_owned(),
        source: Box::new(error),
    };
    let given = given(entry).map_err(of_table)?;
    let mut layers = whole.clone();
    if entry.contains_key("preset") {
        let of_mapping = |entry: &&Entry| {
            let section = entry.section;
            section.is_some_and(|section| SECTIONS.contains(&section))
        };
        let keys = KEYS.iter().filter(of_mapping).map(|entry| entry.key);
        for key in keys
            .filter(|key| *key != Key::MessageSource)
            .chain([Key::NatsSubject])
        {
            layers.forget(key);
        }
    }
    let has_source = given.iter().any(|(_, key, _)| *key == Key::MessageSource);
    // Under `table` it is called otherwise in the database.
    let is_named = |name: &str| name != "name" || !entry.contains_key("table");
    for (_, key, value) in given.into_iter().filter(|(own, ..)| is_named(own)) {
        let value = match (key, share) {
            (Key::NatsSubject, Some(share)) => value.replace(PLACEHOLDER, &share.to_string()),
            _ => value,
        };
        layers.forget(key);
        layers.set(key, value, text.source.clone());
    }
    mapping::apply_preset(&mut layers).map_err(of_table)?;
    let mut told = whole.clone();
    told.forget(Key::PostgresTable);
    told.set(Key::PostgresTable, name.to_owned(), text.source.clone());
    let told = table_name(&told).map_err(of_table)?;
    let settings = resolve(&layers, &told).map_err(of_table)?;
    if has_source {
        let format = [settings.mapping.message.format].into_iter();
        mapping::check_source(&layers, format).map_err(of_table)?;
    }
    Ok(settings)
}

/// What an entry gives, each with its name there and the key that it stands for.
fn given(entry: &Table) -> Result<Vec<(&str, Key, String)>, ConfigError> {
    let mut given = Vec::new();
    for (name, value) in entry {
        match value {
            toml::Value::Table(table) if is_section(name) => {
                for (own, value) in table {
                    let key = key_of_entry(Some(name), own);
                    let key = key.map_err(|nearest| unknown(&format!("{name}.{own}"), nearest))?;
                    given.push((own.as_str(), key, written(value)));
                }
            }
            value => {
                let key = key_of_entry(None, name).map_err(|nearest| unknown(name, nearest))?;
                given.push((name.as_str(), key, written(value)));
            }
        }
    }
    Ok(given)
}

/// Whether an entry has a table of this name.
pub(super) fn is_section(name: &str) -> bool {
    SECTIONS.contains(&name)
}

/// The key that a name of an entry stands for, or of one of its tables. Where there is none: the name that was probably meant, with
/// its table.
///
/// # Errors
/// There is none.
pub(super) fn key_of_entry(section: Option<&str>, name: &str) -> Result<Key, Option<String>> {
    let own = OWN.iter().map(|(own, key)| (None, *own, *key));
    let of_sections = KEYS.iter().filter_map(|entry| {
        let section = entry.section.filter(|section| is_section(section))?;
        Some((Some(section), entry.name, entry.key))
    });
    let all: Vec<(Option<&str>, &str, Key)> = own.chain(of_sections).collect();
    let is_it = |(of, own, _): &&(Option<&str>, &str, Key)| *of == section && *own == name;
    if let Some((.., key)) = all.iter().find(is_it) {
        return Ok(*key);
    }
    let path = |of: Option<&str>, own: &str| match of {
        Some(of) => format!("{of}.{own}"),
        None => own.to_owned(),
    };
    let here = all.iter().filter(|(of, ..)| *of == section);
    let sections = SECTIONS.iter().filter(|_| section.is_none());
    let here = here.map(|(_, own, _)| *own).chain(sections.copied());
    let elsewhere = || {
        let mut elsewhere = all.iter().filter(|(of, ..)| *of != section);
        let same = elsewhere.find(|(_, own, _)| *own == name)?;
        Some(path(same.0, same.1))
    };
    Err(nearest(name, here).map_or_else(elsewhere, |own| Some(path(section, own))))
}

/// `key` as the entry has it.
fn unknown(key: &str, nearest: Option<String>) -> ConfigError {
    ConfigError::UnknownEntryKey {
        key: key.to_owned(),
        nearest,
    }
}

/// As the other layers write it.
fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn table_name(layers: &Layers) -> Result<TableName, ConfigError> {
    let expected = "a table as in SQL, such as public.outbox_events, without control characters";
    checked(layers, Key::PostgresTable, expected, |text| {
        // It is told in a header.
        text.parse()
            .ok()
            .filter(|_| !text.contains(char::is_control))
    })
}

/// The table, whose messages tell it by the name `told`.
fn resolve(layers: &Layers, told: &TableName) -> Result<FurtherTable, ConfigError> {
    let name = table_name(layers)?;
    let columns = mapping::columns(layers)?;
    let subject = mapping::subject(layers)?;
    let mut message = mapping::message(layers, &columns, &subject)?;
    message.table = Some(told.to_string());
    Ok(FurtherTable {
        name,
        mapping: Mapping::new(columns, subject, message),
    })
}
