//! What each field of an event needs of its column.
//!
//! In: nothing. Out: [`needs`]. docs/tables.md has the same as a table.

use crate::pipeline::fields::Fields;
use crate::postgres::catalog::Column;

/// What a column may be.
pub(super) struct Need {
    /// Whether a column's type can serve.
    pub(super) fits: fn(&Column) -> bool,
    /// The type in the table that `setup` makes.
    pub(super) wanted: &'static str,
    /// What else the column is there.
    pub(super) constraint: &'static str,
    /// In words.
    pub(super) types: &'static str,
}

/// What each field needs of its column.
pub(super) fn needs() -> Fields<Need> {
    let id = || Need {
        fits: |column| {
            column.category == 'S'
                || matches!(
                    column.base_type.as_str(),
                    "uuid" | "int2" | "int4" | "int8" | "bytea"
                )
        },
        wanted: "uuid",
        constraint: "NOT NULL",
        types: "uuid, text, an integer or bytea",
    };
    Fields {
        id: id(),
        aggregate_id: id(),
        event_type: Need {
            fits: |column| matches!(column.category, 'S' | 'E'),
            wanted: "text",
            constraint: "NOT NULL",
            types: "text or an enum",
        },
        event_version: Need {
            fits: |column| matches!(column.base_type.as_str(), "int2" | "int4" | "int8"),
            wanted: "smallint",
            constraint: "NOT NULL DEFAULT 1",
            types: "an integer, with values from 0 to 255",
        },
        occurred_at: Need {
            fits: |column| {
                matches!(
                    column.base_type.as_str(),
                    "timestamptz" | "timestamp" | "date" | "int8"
                )
            },
            wanted: "timestamptz",
            constraint: "NOT NULL DEFAULT now()",
            types: "timestamptz, timestamp, date or bigint (milliseconds)",
        },
        payload: Need {
            fits: |column| {
                column.category == 'S'
                    || matches!(column.base_type.as_str(), "jsonb" | "json" | "bytea")
            },
            wanted: "jsonb",
            constraint: "NOT NULL",
            types: "jsonb, json, text or bytea",
        },
    }
}
