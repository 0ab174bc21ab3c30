//! Which column tells the ids of a table's events, for the life of a lane, and how it writes them.
//!
//! In: the column as the catalog has it, and as the lane record remembers it. Out: whether it is another one now, or writes the same ids
//! otherwise. Guarantee: a column that was renamed is the same; one that took the place of another under its name is taken for a
//! copy of it.

use serde::{Deserialize, Serialize};

/// A column of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdColumn {
    /// Its name.
    pub name: String,
    /// Its number in the table, which a rename leaves alone.
    pub attnum: i16,
    /// The type that it stands on, as `pg_type.typname` has it; none where nobody has recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_type: Option<String>,
}

/// How values of a column's type are written: by what two texts are the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Number,
    Uuid,
    /// A UUID of 16 bytes, else base64.
    Bytes,
    /// As they were given: each text is a value of its own.
    Text,
}

impl Form {
    /// By `pg_type.typname` of the type that the column's own stands on.
    pub(crate) fn of(base_type: &str) -> Self {
        match base_type {
            "int2" | "int4" | "int8" => Form::Number,
            "uuid" => Form::Uuid,
            "bytea" => Form::Bytes,
            _ => Form::Text,
        }
    }

    /// Whether ids that were written so are written the same in the other form.
    fn stays_in(self, now: Form) -> bool {
        self == now
            || matches!(
                (self, now),
                (Form::Number | Form::Uuid, Form::Text)
                    | (Form::Uuid, Form::Bytes)
                    | (Form::Bytes, Form::Uuid)
            )
    }
}

/// A type as SQL calls it, by its name in the catalog.
fn in_sql(base_type: &str) -> &str {
    match base_type {
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "bpchar" => "char",
        _ => base_type,
    }
}

impl IdColumn {
    /// Whether it is neither that one under another name, nor one that has taken its name.
    pub(crate) fn is_another_than(&self, before: &IdColumn) -> bool {
        self.attnum != before.attnum && self.name != before.name
    }

    /// The types, that one's first, where an id that was written then may be another text now.
    pub(crate) fn writes_otherwise<'t>(
        &'t self,
        before: &'t IdColumn,
    ) -> Option<(&'t str, &'t str)> {
        let (was, is) = before.base_type.as_deref().zip(self.base_type.as_deref())?;
        (!Form::of(was).stays_in(Form::of(is))).then(|| (in_sql(was), in_sql(is)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_may_write_an_id_otherwise_is_told() {
        let of_type = |base_type: Option<&str>| IdColumn {
            name: "id".to_owned(),
            attnum: 1,
            base_type: base_type.map(str::to_owned),
        };
        for (was, is, expected) in [
            ("int4", "int8", false),
            ("int8", "text", false),
            ("uuid", "varchar", false),
            ("uuid", "bytea", false),
            ("text", "uuid", true),
            ("varchar", "int8", true),
            ("bytea", "text", true),
            ("text", "bytea", true),
            ("int8", "uuid", true),
        ] {
            let (before, now) = (of_type(Some(was)), of_type(Some(is)));
            let told = now.writes_otherwise(&before);
            assert_eq!(told.is_some(), expected, "{was} {is}: {told:?}");
        }
        let before = of_type(Some("int2"));
        let told = of_type(Some("uuid"));
        assert_eq!(told.writes_otherwise(&before), Some(("smallint", "uuid")));
        let unknown = of_type(None);
        assert_eq!(of_type(Some("uuid")).writes_otherwise(&unknown), None);
    }
}
