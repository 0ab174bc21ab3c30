//! An aggregate's id, as a table's column has it and as messages show it.
//!
//! In: the id as a person gives it, in the form of messages or in Postgres' own. Out: SQL for its rows, the text of its messages.
//! Guarantees: rows and messages are told by the same id, byte by byte, whatever a collation calls equal; what is no value of the
//! column's type is none.

use std::collections::BTreeSet;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use uuid::Uuid;

use crate::cli::exit::UsageError;
use crate::pipeline::bytes::{base64, id_of_bytes};
use crate::pipeline::dead_letter::shown_id;
use crate::pipeline::id_column::Form;
use crate::postgres::catalog::{Column, Table};
use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;

/// The id in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AggregateId {
    /// As messages of the table may show it.
    pub(super) shown: BTreeSet<String>,
    /// Messages show it in no other way than [`Self::shown`], or as the same value.
    pub(super) is_exact: bool,
    /// SQL for "is a row of the aggregate", with [`Self::value`] as its one parameter.
    pub(super) is_it: String,
    /// Of that parameter, a text.
    pub(super) value: String,
    /// By what texts are the same value.
    form: Form,
    /// Why no row can have it, where messages without a row still may.
    pub(super) no_rows: Option<String>,
}

/// The value as Postgres writes it, of a text in any spelling; none where it is no such value.
fn value(form: Form, text: &str) -> Option<String> {
    match form {
        Form::Uuid => Uuid::try_parse(text).ok().map(|uuid| uuid.to_string()),
        Form::Number => Some(text.parse::<i64>().ok()?.to_string()),
        Form::Bytes => hex_of(text),
        Form::Text => Some(text.to_owned()),
    }
}

/// How messages show an aggregate's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// In the forms that messages have.
    pub(super) texts: BTreeSet<String>,
    /// Any text of this value.
    value: Option<(Form, String)>,
}

impl Shown {
    /// Whether a text that a message shows is the id.
    pub(super) fn is(&self, told: &str) -> bool {
        let is_value =
            |(form, wanted): &(Form, String)| value(*form, told).as_ref() == Some(wanted);
        self.texts.contains(told) || self.value.as_ref().is_some_and(is_value)
    }

    /// The same of a dead letter, which cuts a long one.
    pub(super) fn is_in_letter(&self, told: &str) -> bool {
        self.is(told) || self.texts.iter().any(|id| shown_id(id) == told)
    }
}

impl AggregateId {
    /// How its messages show it.
    pub(super) fn shown(&self) -> Shown {
        Shown {
            texts: self.shown.clone(),
            value: Some((self.form, self.value.clone())),
        }
    }

    /// Of messages alone, which have any text: no row can have it.
    fn without_rows(id: &str, why: String) -> Self {
        AggregateId {
            shown: shown_anywhere(id).texts,
            is_exact: true,
            // The value is none.
            is_it: "$1::text IS NULL".to_owned(),
            value: id.to_owned(),
            form: Form::Text,
            no_rows: Some(why),
        }
    }

    /// In the column that the configuration names; of messages alone where the column can have no such value.
    ///
    /// # Errors
    /// It names none, or one that the table does not have.
    pub(super) fn of(
        table: &Table,
        settings: &PostgresSettings,
        id: &str,
    ) -> Result<Self, UsageError> {
        let Some(name) = settings.columns.aggregate_id.column() else {
            let why = match &settings.entry {
                None => "columns.aggregate_id names no column".to_owned(),
                Some(entry) => format!("the entry of {entry} names no column for aggregate_id"),
            };
            return Err(UsageError(format!(
                "{why}, so nothing tells which rows are the aggregate's"
            )));
        };
        let found = table.columns.iter().find(|found| found.name == name);
        let Some(found) = found else {
            let table = &settings.table;
            return Err(UsageError(format!("table {table} has no column {name}")));
        };
        if let Some(id) = of_column(found, id) {
            return Ok(id);
        }
        let why = {
            let type_name = &found.type_name;
            let such = match found.base_type.as_str() {
                "uuid" => ", such as 0192f7a0-0000-7000-8000-000000000001",
                "bytea" => ", such as \\x02, or as messages show it: base64, or a UUID of 16 bytes",
                _ => "",
            };
            format!("--aggregate-id: {id:?} is no {type_name}, which column {name} is{such}")
        };
        Ok(AggregateId::without_rows(id, why))
    }
}

/// The id as a value of the column; none where it is none.
fn of_column(column: &Column, id: &str) -> Option<AggregateId> {
    let name = quote_identifier(&column.name);
    let form = Form::of(&column.base_type);
    let whole = |range: std::ops::RangeInclusive<i64>| {
        let number: i64 = id.parse().ok().filter(|number| range.contains(number))?;
        Some(number.to_string())
    };
    let is_text = format!("({name}::text) COLLATE \"C\" = $1::text");
    // A cast to a domain, or to a type with a length, may refuse a value or cut it.
    let (shown, value, cast): (Vec<String>, String, String) = match column.base_type.as_str() {
        "uuid" => {
            let uuid = value(form, id)?;
            (vec![uuid.clone()], uuid, format!("{name} = $1::text::uuid"))
        }
        "int2" | "int4" | "int8" => {
            let number = match column.base_type.as_str() {
                "int2" => whole(i64::from(i16::MIN)..=i64::from(i16::MAX))?,
                "int4" => whole(i64::from(i32::MIN)..=i64::from(i32::MAX))?,
                _ => whole(i64::MIN..=i64::MAX)?,
            };
            (
                vec![number.clone()],
                number,
                format!("{name} = $1::text::int8"),
            )
        }
        "bytea" => {
            let hex = value(form, id)?;
            let cast = format!("{name} = decode(substr($1::text, 3), 'hex')");
            // In a header, 16 bytes are no UUID.
            let base64 = String::from_utf8_lossy(&base64(hex.as_bytes())).into_owned();
            (vec![shown_bytes(&hex), base64], hex, cast)
        }
        "text" | "varchar" => (
            vec![id.to_owned()],
            id.to_owned(),
            // The first half is for an index.
            format!("{name} = $1::text AND {is_text}"),
        ),
        // Messages show its padding only of a domain over it.
        "bpchar" => {
            let id = id.trim_end_matches(' ').to_owned();
            (vec![id.clone()], id, is_text)
        }
        _ => (vec![id.to_owned()], id.to_owned(), is_text),
    };
    let is_exact = match column.base_type.as_str() {
        "bpchar" => column.type_oid == column.base_oid,
        // JSON has them in a form of its own.
        "timestamptz" | "timestamp" | "json" | "jsonb" => false,
        _ => true,
    };
    Some(AggregateId {
        shown: shown.into_iter().collect(),
        is_exact,
        is_it: cast,
        value,
        form,
        no_rows: None,
    })
}

/// A bytea as Postgres writes it, `\x0102`, of that or of what messages show.
fn hex_of(id: &str) -> Option<String> {
    let written = |bytes: &[u8]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\x{digits}")
    };
    if let Some(digits) = id.strip_prefix("\\x") {
        let is_hex =
            digits.len().is_multiple_of(2) && digits.bytes().all(|it| it.is_ascii_hexdigit());
        return is_hex.then(|| id.to_ascii_lowercase());
    }
    // Without its hyphens it is base64 as well.
    if id.contains('-') {
        return Some(written(Uuid::try_parse(id).ok()?.as_bytes()));
    }
    Some(written(&BASE64_STANDARD.decode(id).ok()?))
}

fn shown_bytes(hex: &str) -> String {
    String::from_utf8_lossy(&id_of_bytes(hex.as_bytes())).into_owned()
}

/// How messages may show the id, whatever the type of the column was.
pub(super) fn shown_anywhere(id: &str) -> Shown {
    let uuid = Uuid::try_parse(id).ok().map(|uuid| uuid.to_string());
    let bytes = id.starts_with("\\x").then(|| hex_of(id)).flatten();
    let bytes = bytes.map(|hex| shown_bytes(&hex));
    let texts = [Some(id.to_owned()), uuid, bytes];
    Shown {
        texts: texts.into_iter().flatten().collect(),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(base_type: &str) -> Column {
        Column {
            name: "who".to_owned(),
            attnum: 1,
            type_name: base_type.to_owned(),
            type_oid: 0,
            base_oid: 0,
            base_type: match base_type.starts_with("character(") {
                true => "bpchar".to_owned(),
                false => base_type.to_owned(),
            },
            category: 'X',
            not_null: true,
            generated: false,
            is_virtual: false,
            is_loose: false,
            default: None,
        }
    }

    #[test]
    fn an_id_is_taken_as_messages_show_it_and_as_postgres_has_it() {
        let uuid = "0192f7a0-0000-7000-8000-000000000001";
        let hex = format!("\\x{}", uuid.replace('-', ""));
        for (base_type, given, shown, value) in [
            ("uuid", "0192F7A0-0000-7000-8000-000000000001", uuid, uuid),
            ("int2", "+7", "7", "7"),
            ("bytea", "Ag==", "Ag==", "\\x02"),
            ("bytea", "\\x02", "Ag==", "\\x02"),
            ("bytea", "\\xAB", "qw==", "\\xab"),
            ("bytea", uuid, uuid, &hex),
            ("bytea", &hex, uuid, &hex),
            ("varchar", "Ä", "Ä", "Ä"),
            ("character(3)", "a ", "a", "a"),
        ] {
            let found = of_column(&column(base_type), given).expect(given);
            assert!(found.shown.contains(shown), "{given}");
            assert_eq!(found.value, value, "{given}");
        }
    }

    #[test]
    fn messages_may_write_the_same_value_otherwise() {
        let uuid = "0192f7a0-0000-7000-8000-00000000000a";
        for (base_type, given, told, expected) in [
            ("uuid", uuid, "0192F7A0-0000-7000-8000-00000000000A", true),
            (
                "uuid",
                "0192F7A0-0000-7000-8000-00000000000A",
                "0192f7a000007000800000000000000a",
                true,
            ),
            ("uuid", uuid, "0192f7a0-0000-7000-8000-00000000000b", false),
            ("int8", "42", "0042", true),
            ("int8", "0042", "42", true),
            ("int8", "42", "420", false),
            ("bytea", "\\x0102", "AQI=", true),
            ("bytea", "AQI=", "\\x0102", true),
            ("bytea", "\\xAB", "\\xAB", true),
            ("bytea", "\\x0102", "\\x0103", false),
            // Two texts are two aggregates.
            ("text", "42", "0042", false),
            (
                "varchar",
                uuid,
                "0192F7A0-0000-7000-8000-00000000000A",
                false,
            ),
        ] {
            let shown = of_column(&column(base_type), given).expect(given).shown();
            assert_eq!(shown.is(told), expected, "{base_type} {given} {told}");
            assert_eq!(
                shown.is_in_letter(told),
                expected,
                "{base_type} {given} {told}"
            );
        }
    }

    #[test]
    fn what_is_no_value_of_the_type_is_none() {
        for (base_type, given) in [
            ("uuid", "abc"),
            ("int2", "99999"),
            ("int4", "9999999999"),
            ("int8", "99999999999999999999"),
            ("int8", "abc"),
            ("bytea", "\\x0"),
            ("bytea", "\\xzz"),
            ("bytea", "no base64"),
            ("bytea", "a-b"),
        ] {
            assert_eq!(of_column(&column(base_type), given), None, "{given}");
        }
    }
}
