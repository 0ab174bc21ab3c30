//! The configuration file.
//!
//! In: a path that was asked for, or the places where the file may lie. Out: its values as a
//! layer, each with its line. Guarantee: a key that does not exist is an error, so that a typing
//! mistake never falls back to a default in silence.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::keys::{Entry, KEYS, Key};
use super::layers::Layers;
use super::origin::ValueOrigin;
use super::tables;
use crate::nearest::nearest;

/// Where the file is looked for when none is asked for; the first that is there is taken.
pub const PLACES: &[&str] = &["walrelay.toml", "/etc/walrelay/walrelay.toml"];

/// Reads the file that was asked for, which must be there, or the first of `places` that is.
/// Returns its path and text.
///
/// # Errors
/// A file that is there, or was asked for, and cannot be read.
pub fn find(
    asked: Option<&Path>,
    places: &[PathBuf],
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let unreadable = |path: &Path, source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if let Some(path) = asked {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
        return Ok(Some((path.to_owned(), text)));
    }
    for path in places {
        match fs::read_to_string(path) {
            Ok(text) => return Ok(Some((path.clone(), text))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(unreadable(path, error)),
        }
    }
    Ok(None)
}

/// Adds the file's values to the layers. Errors: text that is not TOML, unknown keys, and values of a type that their key
/// does not take.
pub(super) fn add(layers: &mut Layers, path: &Path, text: &str, errors: &mut Vec<ConfigError>) {
    let file = File { path, text };
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            errors.push(ConfigError::Syntax {
                path: path.to_owned(),
                line: file.line(error.span().map_or(0, |span| span.start)),
                message: syntax_problem(text, &error),
            });
            return;
        }
    };
    for (name, value) in document.get_ref() {
        let line = file.line(name.span().start);
        let name = name.get_ref().as_ref();
        let is_section = KEYS.iter().any(|entry| entry.section == Some(name));
        match value.get_ref() {
            DeValue::Table(table) if is_section => {
                for (key, value) in table {
                    let line = file.line(key.span().start);
                    let is_entries = name == "source" && key.get_ref() == "tables";
                    let unknown = match is_entries {
                        true => file.unknown_of_entries(value.get_ref()),
                        false => Vec::new(),
                    };
                    if unknown.is_empty() {
                        let added =
                            file.add(layers, Some(name), key.get_ref(), value.get_ref(), line);
                        errors.extend(added.err());
                    }
                    errors.extend(unknown);
                }
            }
            _ if is_section => {
                errors.push(file.wrong_type(name, line, "a table of its own, such as [postgres]"));
            }
            value => errors.extend(file.add(layers, None, name, value, line).err()),
        }
    }
}

/// The parser's words. Of a key that is there twice, its name too: no part of it is a value.
fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let twice = error.span().filter(|_| message == "duplicate key");
    let Some(name) = twice.and_then(|span| text.get(span)) else {
        return message;
    };
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | '\'');
    match name.chars().all(is_name) {
        true => format!(
            "duplicate key `{name}`: a section and a key stand in the file once; put what is under the second [{name}] under the first, \
             or remove one of two values"
        ),
        false => message,
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .as_bytes()
            .iter()
            .take(offset)
            .filter(|byte| **byte == b'\n')
            .count()
    }

    fn wrong_type(&self, key: &str, line: usize, expected: &'static str) -> ConfigError {
        ConfigError::Type {
            path: self.path.to_owned(),
            line,
            key: key.to_owned(),
            expected,
        }
    }

    /// The keys of the entries of `source.tables` that there are not, each with its own line.
    fn unknown_of_entries(&self, entries: &DeValue<'_>) -> Vec<ConfigError> {
        let entries = match entries {
            DeValue::Array(entries) => &entries[..],
            _ => &[],
        };
        let mut unknown = Vec::new();
        let mut check = |section: Option<&str>, table: &DeTable<'_>| {
            for name in table.keys() {
                if section.is_none() && tables::is_section(name.get_ref()) {
                    continue;
                }
                if let Err(nearest) = tables::key_of_entry(section, name.get_ref()) {
                    let section = section.map_or_else(String::new, |section| format!("{section}."));
                    unknown.push(ConfigError::UnknownKey {
                        path: self.path.to_owned(),
                        line: self.line(name.span().start),
                        key: format!("source.tables.{section}{}", name.get_ref()),
                        nearest,
                    });
                }
            }
        };
        for entry in entries {
            let DeValue::Table(entry) = entry.get_ref() else {
                continue;
            };
            check(None, entry);
            for (name, value) in entry {
                match value.get_ref() {
                    DeValue::Table(table) if tables::is_section(name.get_ref()) => {
                        check(Some(name.get_ref()), table);
                    }
                    _ => {}
                }
            }
        }
        unknown
    }

    fn add(
        &self,
        layers: &mut Layers,
        section: Option<&str>,
        name: &str,
        value: &DeValue<'_>,
        line: usize,
    ) -> Result<(), ConfigError> {
        let entry = KEYS
            .iter()
            .find(|entry| entry.section == section && entry.name == name);
        let entry = entry.ok_or_else(|| ConfigError::UnknownKey {
            path: self.path.to_owned(),
            line,
            key: section
                .map(|section| format!("{section}.{name}"))
                .unwrap_or_else(|| name.to_owned()),
            nearest: nearest_key(section, name),
        })?;
        let text = text(entry.key, value)
            .map_err(|expected| self.wrong_type(&entry.path(), line, expected))?;
        if text.is_empty() && entry.is_unset_by_empty() {
            return Ok(());
        }
        layers.set(
            entry.key,
            text,
            ValueOrigin::File {
                path: self.path.to_owned(),
                line,
            },
        );
        Ok(())
    }
}

/// What takes columns under names of their own.
const NAMES_AND_COLUMNS: &str =
    "a table of names and columns, such as { traceparent = \"trace_parent\" }";

/// The value as the other layers write it, or what the key takes.
fn text(key: Key, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (key, value) {
        (_, DeValue::String(text)) => Ok(text.to_string()),
        // It would be taken for a column's name.
        (_, DeValue::Integer(_)) if key.entry().section == Some("columns") => {
            Err("a column's name in quotes, or { value = … } for the same in each event")
        }
        (_, DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (Key::PostgresPasswordCommand, DeValue::Array(words)) => {
            let words: Option<Vec<&str>> =
                words.iter().map(|word| word.get_ref().as_str()).collect();
            let words = words.ok_or("text or a list of texts")?;
            Ok(serde_json::to_string(&words).expect("texts are JSON"))
        }
        (
            Key::NatsShared | Key::NatsImported | Key::NatsTlsFirst | Key::MessageTombstones,
            DeValue::Boolean(is_so),
        ) => Ok(is_so.to_string()),
        (Key::NatsShared | Key::NatsImported | Key::NatsTlsFirst | Key::MessageTombstones, _) => {
            Err("true or false")
        }
        (Key::NatsUrl, DeValue::Array(urls)) => {
            let urls: Option<Vec<&str>> = urls.iter().map(|url| url.get_ref().as_str()).collect();
            urls.map(|urls| urls.join(","))
                .ok_or("text or a list of texts")
        }
        (Key::NatsUrl, _) => Err("text or a list of texts"),
        (Key::MessageHeaders | Key::MessageFields, DeValue::Table(table)) => {
            inline(table).ok_or(NAMES_AND_COLUMNS)
        }
        (Key::MessageHeaders | Key::MessageFields, _) => Err(NAMES_AND_COLUMNS),
        (Key::SourceTables, value @ DeValue::Array(_)) => {
            written(value).ok_or("a list of tables, [[source.tables]]")
        }
        (_, DeValue::Table(table)) if key.entry().section == Some("columns") => {
            inline(table).ok_or("a column's name, or { value = … }")
        }
        _ => Err("text in quotes or a whole number"),
    }
}

/// A value as TOML has it within a line; none for numbers and times that no key takes.
fn written(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => toml::Value::from(&**text).to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Boolean(is_so) => is_so.to_string(),
        DeValue::Array(values) => {
            let values: Option<Vec<_>> = values.iter().map(|it| written(it.get_ref())).collect();
            format!("[{}]", values?.join(", "))
        }
        DeValue::Table(table) => written_table(table)?,
        _ => return None,
    })
}

fn written_table(table: &DeTable<'_>) -> Option<String> {
    let mut pairs = Vec::new();
    for (name, value) in table {
        let name = toml::Value::from(&**name.get_ref());
        pairs.push(format!("{name} = {}", written(value.get_ref())?));
    }
    Some(format!("{{{}}}", pairs.join(", ")))
}

/// A table of texts and whole numbers as an inline one, which is how the other layers write it.
fn inline(table: &DeTable<'_>) -> Option<String> {
    let is_plain = |value: &DeValue<'_>| matches!(value, DeValue::String(_) | DeValue::Integer(_));
    let values = table.values().map(|value| value.get_ref());
    values
        .into_iter()
        .all(is_plain)
        .then(|| written_table(table))?
}

/// The key that an unknown one was probably meant to be: of the same section, else the same name
/// elsewhere, else a section, else a similar name elsewhere.
fn nearest_key(section: Option<&str>, name: &str) -> Option<String> {
    let here: Vec<&Entry> = KEYS
        .iter()
        .filter(|entry| entry.section == section)
        .collect();
    let elsewhere: Vec<&Entry> = KEYS
        .iter()
        .filter(|entry| entry.section != section)
        .collect();
    let similar = |entries: &[&Entry]| {
        let near = nearest(name, entries.iter().map(|entry| entry.name))?;
        entries
            .iter()
            .find(|entry| entry.name == near)
            .map(|entry| entry.path())
    };
    let same = || {
        elsewhere
            .iter()
            .find(|entry| entry.name == name)
            .map(|entry| entry.path())
    };
    let table = || {
        let sections = KEYS
            .iter()
            .filter_map(|entry| entry.section)
            .filter(|_| section.is_none());
        nearest(name, sections).map(|section| format!("[{section}]"))
    };
    // A section but for its capitals is nothing else.
    let in_capitals = table().filter(|table| table[1..table.len() - 1].eq_ignore_ascii_case(name));
    in_capitals
        .or_else(|| similar(&here))
        .or_else(same)
        .or_else(table)
        .or_else(|| similar(&elsewhere))
}
