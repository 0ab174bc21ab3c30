//! Whether the table's columns can serve, and the SQL that makes them.
//!
//! In: the table, the names of its columns. Out: findings. Guarantee: pure.

use super::{Finding, Kind, refuse, warn};
use crate::pipeline::fields::{Field, Fields};
use crate::postgres::catalog::{Column, Table};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::table_name::quote_identifier;

/// OID of char(n). Its padding is taken off; of a domain the WAL does not tell what it is over.
const BPCHAR_OID: u32 = 1042;

/// What a column may be.
pub(super) struct Need<'a> {
    pub(super) name: &'a str,
    fits: fn(&Column) -> bool,
    wanted: &'static str,
}

pub(super) fn needs(settings: &PostgresSettings) -> Fields<Need<'_>> {
    let names = &settings.columns;
    let uuid_or_text = |column: &Column| column.base_type == "uuid" || column.category == 'S';
    Fields {
        id: Need {
            name: &names.id,
            fits: uuid_or_text,
            wanted: "uuid",
        },
        aggregate_id: Need {
            name: &names.aggregate_id,
            fits: uuid_or_text,
            wanted: "uuid",
        },
        event_type: Need {
            name: &names.event_type,
            fits: |column| matches!(column.category, 'S' | 'E'),
            wanted: "text",
        },
        event_version: Need {
            name: &names.event_version,
            fits: |column| matches!(column.base_type.as_str(), "int2" | "int4" | "int8"),
            wanted: "smallint",
        },
        occurred_at: Need {
            name: &names.occurred_at,
            fits: |column| matches!(column.base_type.as_str(), "timestamptz" | "timestamp"),
            wanted: "timestamptz",
        },
        payload: Need {
            name: &names.payload,
            fits: |column| matches!(column.base_type.as_str(), "jsonb" | "json" | "text"),
            wanted: "jsonb",
        },
    }
}

pub(super) fn columns(table: &Table, settings: &PostgresSettings, found: &mut Vec<Finding>) {
    let name = &settings.table;
    for (field, need) in needs(settings) {
        let sql_name = quote_identifier(need.name);
        let Some(column) = table.columns.iter().find(|column| column.name == need.name) else {
            found.push(refuse(
                Kind::Column,
                format!("table {name} has no column {sql_name}"),
                format!(
                    "run ALTER TABLE {name} ADD COLUMN {sql_name} {};",
                    need.wanted
                ),
            ));
            continue;
        };
        if !(need.fits)(column) {
            found.push(refuse(
                Kind::Column,
                format!(
                    "column {sql_name} of {name} is {}, which cannot serve as one",
                    column.type_name
                ),
                format!("run {}", retype(settings, field, &need, column)),
            ));
        } else if column.base_type == "timestamp" {
            found.push(warn(
                Kind::Column,
                format!("column {sql_name} of {name} is timestamp without time zone and is taken as UTC"),
                format!("run ALTER TABLE {name} ALTER COLUMN {sql_name} TYPE timestamptz USING {sql_name} AT TIME ZONE 'UTC';"),
            ));
        }
        if column.base_type == "bpchar" && column.type_oid != BPCHAR_OID {
            found.push(warn(
                Kind::Column,
                format!(
                    "column {sql_name} of {name} is a domain over char(n): its padding is taken for a part of the value"
                ),
                format!("run ALTER TABLE {name} ALTER COLUMN {sql_name} TYPE text USING {sql_name}::text;"),
            ));
        }
        if !column.not_null {
            found.push(warn(
                Kind::Column,
                format!("column {sql_name} of {name} may be null, and a row with a null there is rejected"),
                format!("run ALTER TABLE {name} ALTER COLUMN {sql_name} SET NOT NULL;"),
            ));
        }
    }
}

/// SQL that makes the column one that can serve. A type without a cast to the one that is wanted needs more than TYPE,
/// and an identity or serial column cannot become a uuid at all: the id gets a column of its own.
fn retype(settings: &PostgresSettings, field: Field, need: &Need<'_>, column: &Column) -> String {
    let (table, name, wanted) = (&settings.table, quote_identifier(need.name), need.wanted);
    let value = match (wanted, column.base_type.as_str()) {
        ("uuid", "bytea") => format!("encode({name}, 'hex')::uuid"),
        // From the value that is there: the same row must not become another event.
        ("uuid", base) if field == Field::Id => {
            let old = quote_identifier(&format!("{}_before", need.name));
            let value = match base {
                "int2" | "int4" | "int8" => format!("lpad(to_hex({old}::int8), 32, '0')::uuid"),
                _ => format!("md5({old}::text)::uuid"),
            };
            return format!(
                "ALTER TABLE {table} RENAME COLUMN {name} TO {old}; \
                 ALTER TABLE {table} ADD COLUMN {name} uuid; \
                 UPDATE {table} SET {name} = {value}; \
                 ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL, ALTER COLUMN {name} SET DEFAULT gen_random_uuid();"
            );
        }
        ("uuid", "int2" | "int4" | "int8") => {
            format!("lpad(to_hex({name}::int8), 32, '0')::uuid")
        }
        _ => format!("{name}::text::{wanted}"),
    };
    format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted} USING {value};")
}
