//! The outbox table's name.
//!
//! In: a name as one writes it in SQL (`public.outbox_events`, `"My Schema"."t"`). Out: schema and
//! table as the catalog has them. Guarantee: `Display` gives text that is safe in an SQL statement
//! and reads back to the same name.

use std::fmt;
use std::str::FromStr;

/// The schema of a table that is given without one.
pub(crate) const DEFAULT_SCHEMA: &str = "public";

/// Longest identifier that Postgres keeps, in bytes (`NAMEDATALEN` - 1).
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 63;

/// A table with its schema, both as the catalog has them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Schema, unquoted.
    pub schema: String,
    /// Table, unquoted.
    pub table: String,
}

impl TableName {
    /// Whether the other is another only by capitals: SQL takes a name without quotes in small letters.
    #[cfg(feature = "relay")]
    pub(crate) fn differs_in_capitals(&self, other: &TableName) -> bool {
        self != other
            && self.schema.to_lowercase() == other.schema.to_lowercase()
            && self.table.to_lowercase() == other.table.to_lowercase()
    }
}

/// Why a text is not the name of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableNameError {
    /// A name, or one of its parts, is empty.
    #[error("a part of the table's name is empty")]
    Empty,
    /// `"` without its pair.
    #[error("a quoted name does not end")]
    Quote,
    /// A character that needs quotes.
    #[error("`{0}` is allowed only inside double quotes")]
    Character(char),
    /// More than schema and table.
    #[error("give the schema and the table: schema.table")]
    Parts,
    /// Beyond what Postgres keeps.
    #[error("a name has at most {IDENTIFIER_BYTES_MAX} bytes")]
    Length,
}

impl FromStr for TableName {
    type Err = TableNameError;

    /// Reads `table`, `schema.table` and quoted parts; as in SQL, what is not quoted is folded to
    /// lower case.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let mut rest = text.trim();
        let mut parts = Vec::new();
        loop {
            let (part, after) = read_identifier(rest)?;
            if part.is_empty() {
                return Err(TableNameError::Empty);
            }
            if part.len() > IDENTIFIER_BYTES_MAX {
                return Err(TableNameError::Length);
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(after) => rest = after,
                None if after.is_empty() => break,
                None => {
                    return Err(TableNameError::Character(
                        after.chars().next().unwrap_or('"'),
                    ));
                }
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(table), None, None) => Ok(TableName {
                schema: DEFAULT_SCHEMA.to_owned(),
                table,
            }),
            (Some(schema), Some(table), None) => Ok(TableName { schema, table }),
            _ => Err(TableNameError::Parts),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}",
            quote_identifier(&self.schema),
            quote_identifier(&self.table)
        )
    }
}

/// An identifier as SQL wants it: in double quotes unless it is plain and not a reserved word.
pub(crate) fn quote_identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && RESERVED.binary_search(&name).is_err() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

fn read_identifier(text: &str) -> Result<(String, &str), TableNameError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(['.', '"']).unwrap_or(text.len());
        let name = &text[..end];
        let legal = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        return match name.chars().find(|c| !legal(*c)) {
            Some(c) => Err(TableNameError::Character(c)),
            None => match name
                .chars()
                .next()
                .filter(|c| c.is_ascii_digit() || *c == '$')
            {
                Some(c) => Err(TableNameError::Character(c)),
                None => Ok((name.to_ascii_lowercase(), &text[end..])),
            },
        };
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"').ok_or(TableNameError::Quote)?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => break,
        }
    }
    match name.contains('\0') {
        true => Err(TableNameError::Character('\0')),
        false => Ok((name, rest)),
    }
}

/// Words that Postgres 18 does not take as a table's name without quotes (manual, appendix C:
/// reserved, and reserved except as function or type), sorted.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, table: &str) -> TableName {
        TableName {
            schema: schema.to_owned(),
            table: table.to_owned(),
        }
    }

    #[test]
    fn reserved_words_are_sorted() {
        assert!(RESERVED.is_sorted());
    }

    #[test]
    fn reads_names_as_sql_does() {
        for (text, expected) in [
            ("outbox_events", name("public", "outbox_events")),
            ("public.outbox_events", name("public", "outbox_events")),
            ("Public.Outbox", name("public", "outbox")),
            (r#""My Schema"."t""#, name("My Schema", "t")),
            (r#"a."b.c""#, name("a", "b.c")),
            (r#""say ""hi""".t"#, name("say \"hi\"", "t")),
            (" a.b ", name("a", "b")),
            ("été.t", name("été", "t")),
        ] {
            assert_eq!(text.parse::<TableName>(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        let long = "x".repeat(64);
        for (text, expected) in [
            ("", TableNameError::Empty),
            ("a.", TableNameError::Empty),
            (".a", TableNameError::Empty),
            (r#""""#, TableNameError::Empty),
            (r#""a"#, TableNameError::Quote),
            ("a b", TableNameError::Character(' ')),
            ("a;drop", TableNameError::Character(';')),
            ("1a", TableNameError::Character('1')),
            (r#""a"b"#, TableNameError::Character('b')),
            (r#"a"b""#, TableNameError::Character('"')),
            ("a.b.c", TableNameError::Parts),
            (long.as_str(), TableNameError::Length),
        ] {
            assert_eq!(text.parse::<TableName>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn display_quotes_where_needed_and_reads_back() {
        for (table, expected) in [
            (name("public", "outbox_events"), "public.outbox_events"),
            (name("My Schema", "t"), r#""My Schema".t"#),
            (name("public", "order"), r#"public."order""#),
            (name("a", "b\"c.d"), r#"a."b""c.d""#),
            (name("a", "1"), r#"a."1""#),
        ] {
            assert_eq!(table.to_string(), expected);
            assert_eq!(expected.parse(), Ok(table));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_name_is_written_so_that_it_reads_back(schema in "[^\0]{1,15}", table in "[^\0]{1,15}", text in "\\PC{0,20}") {
            let table = name(&schema, &table);
            proptest::prop_assert_eq!(table.to_string().parse(), Ok(table));
            let _ = text.parse::<TableName>();
        }
    }
}
