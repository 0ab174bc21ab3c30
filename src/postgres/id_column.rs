//! The column of the event's id, in SQL.
//!
//! In: the table and the configuration. Out: expressions. Guarantees: every value is quoted; two ids are the same where their bytes
//! are, as in messages, whatever the column's collation calls equal.

use uuid::Uuid;

use super::catalog::Table;
use super::replication::quote_literal;
use super::settings::PostgresSettings;
#[cfg(feature = "cli")]
use crate::pipeline::id_column::Form;
use crate::table_name::quote_identifier;

/// OID of char(n).
const BPCHAR_OID: u32 = 1042;

/// What the name of an id begins with that is no plain one; the first [`HASH_DIGITS`] hexadecimal digits of its SHA-256 follow.
pub(crate) const HASHED: &str = "sha256:";
/// 96 bits: among 100 million texts, two share them once in ten trillion tables.
pub(crate) const HASH_DIGITS: usize = 24;

/// OID of bytea.
const BYTEA_OID: u32 = 17;

/// The column that holds the id.
#[derive(Debug, Clone)]
pub(crate) struct IdColumn {
    name: String,
    is_bytes: bool,
    is_padded: bool,
    /// See [`Column::is_loose`](super::catalog::Column).
    is_loose: bool,
}

impl IdColumn {
    /// As the configuration names it and the table has it.
    pub(crate) fn of(table: &Table, settings: &PostgresSettings) -> Self {
        let name = settings.id_column();
        let column = table.columns.iter().find(|column| column.name == name);
        IdColumn {
            name: quote_identifier(name),
            is_bytes: column.is_some_and(|column| column.base_oid == BYTEA_OID),
            is_padded: column.is_some_and(|column| column.base_oid == BPCHAR_OID),
            is_loose: column.is_some_and(|column| column.is_loose),
        }
    }

    /// Whether the table's ids are numbers, which a sequence may give out again.
    #[cfg(feature = "cli")]
    pub(crate) fn is_number(table: &Table, settings: &PostgresSettings) -> bool {
        let name = settings.id_column();
        let column = table.columns.iter().find(|column| column.name == name);
        column.is_some_and(|column| Form::of(&column.base_type) == Form::Number)
    }

    /// SQL for the id's text, as messages have it.
    pub(crate) fn text(&self) -> String {
        let name = &self.name;
        if self.is_bytes {
            return format!(
                "CASE WHEN length({name}) = 16 THEN encode({name}, 'hex')::uuid::text \
                 ELSE translate(encode({name}, 'base64'), E'\\n', '') END"
            );
        }
        match (self.is_loose, self.is_padded) {
            (true, _) => format!("({name}::text COLLATE \"C\")"),
            // Takes the padding off.
            (_, true) => format!("{name}::text"),
            _ => name.clone(),
        }
    }

    /// A query for the text, as messages have it, of a value of this column of `table`.
    #[cfg(feature = "cli")]
    pub(crate) fn text_of(&self, table: &str, value: &str) -> String {
        let (name, value) = (&self.name, quote_literal(value));
        format!(
            "SELECT ({})::text FROM (SELECT {name} FROM {table} WHERE false UNION ALL SELECT {value}) AS given",
            self.text()
        )
    }

    /// SQL for "is one of these ids": in the column's own type, for its index, but for bytes that are no UUID.
    pub(crate) fn is_one_of<'i>(&self, ids: impl Iterator<Item = &'i str>) -> String {
        self.is_one(ids, |_| false)
    }

    /// As [`Self::is_one_of`], of ids that are given by their [names](super::id_name::name_of).
    #[cfg(feature = "cli")]
    pub(crate) fn is_one_named<'i>(&self, names: impl Iterator<Item = &'i str>) -> String {
        self.is_one(names, |name| name.starts_with(HASHED))
    }

    fn is_one<'i>(
        &self,
        ids: impl Iterator<Item = &'i str>,
        is_hash: impl Fn(&str) -> bool,
    ) -> String {
        let (mut own, mut texts, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            match Uuid::try_parse(id) {
                _ if is_hash(id) => hashes.push(element(id)),
                Ok(id) if self.is_bytes => own.push(element(&format!("\\x{}", id.simple()))),
                Err(_) if self.is_bytes => texts.push(element(id)),
                _ => own.push(element(id)),
            }
        }
        let text = self.text();
        let hash = format!(
            "'{HASHED}' || left(encode(sha256(convert_to(({text})::text, 'UTF8')), 'hex'), {HASH_DIGITS})"
        );
        let any: Vec<String> = [(&self.name, own), (&text, texts), (&hash, hashes)]
            .into_iter()
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(of, ids)| {
                // One literal is parsed in a third of the time that as many as there are ids take.
                let ids = quote_literal(&format!("{{{}}}", ids.join(",")));
                match self.is_loose && *of == self.name {
                    // The first half is for the index.
                    true => format!("(({of}) = ANY ({ids}) AND ({text}) = ANY ({ids}))"),
                    false => format!("({of}) = ANY ({ids})"),
                }
            })
            .collect();
        match any.is_empty() {
            true => "false".to_owned(),
            false => format!("({})", any.join(" OR ")),
        }
    }
}

/// A value as an element of an array (manual, 8.15.2).
fn element(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
