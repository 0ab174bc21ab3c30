//! Whether a share's publication carries the share's rows, all of them and no other.
//!
//! In: the table, the publication's row filter, the share. Out: findings. Guarantee: pure; a filter that is no share's is refused,
//! since rows might fall between the shares. One of another number of shares is not: the lanes are those that the publications make.

use super::put_anew::put_anew;
use super::{Finding, Kind, refuse, warn};
use crate::postgres::catalog::{Column, Server, Table};
use crate::postgres::settings::PostgresSettings;
use crate::postgres::share::{self, ROW_FILTERS_SINCE, Share};
use crate::table_name::quote_identifier;

/// Whether rows can be divided.
pub(super) fn table(
    server: &Server,
    table: &Table,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let Some(share) = &settings.share else {
        return;
    };
    if server.version_num < ROW_FILTERS_SINCE {
        found.push(refuse(
            Kind::RowFilter,
            "shares need publications with row filters, which came with Postgres 15",
            "set relay.shares = 1, or upgrade",
        ));
    }
    let key = key(table, settings);
    if let Some(key) = key.filter(|key| filter(share, key).is_none()) {
        found.push(refuse(
            Kind::Column,
            format!(
                "column {} is {}, which no row filter can hash",
                quote_identifier(&key.name),
                key.type_name
            ),
            "let columns.aggregate_id name a column of type uuid, text, varchar, bytea or an integer (no domain), or set relay.shares = 1",
        ));
    }
}

/// The aggregate's column.
fn key<'t>(table: &'t Table, settings: &PostgresSettings) -> Option<&'t Column> {
    let name = settings.columns.aggregate_id.column()?;
    table.columns.iter().find(|column| column.name == name)
}

/// A domain is a type of the user's, which no row filter takes.
fn filter(share: &Share, key: &Column) -> Option<String> {
    let is_domain = key.type_oid != key.base_oid;
    match is_domain {
        true => None,
        false => share.filter(&key.base_type, &quote_identifier(&key.name)),
    }
}

/// The condition of the share's rows, where there is a share and the table can be divided.
pub(crate) fn wanted(table: &Table, settings: &PostgresSettings) -> Option<String> {
    filter(settings.share.as_ref()?, key(table, settings)?)
}

/// The same as a clause of `ALTER PUBLICATION … ADD TABLE`; empty where the table is not divided.
pub(super) fn clause(table: &Table, settings: &PostgresSettings) -> String {
    wanted(table, settings).map_or_else(String::new, |filter| format!(" WHERE {filter}"))
}

/// The condition of the first of four shares, where the table can be divided.
pub(super) fn example(table: &Table, settings: &PostgresSettings) -> Option<String> {
    let first = Share {
        number: 0,
        count: 4,
        whole_slot: String::new(),
        whole_publication: String::new(),
    };
    filter(&first, key(table, settings)?)
}

/// Whether the publication's filter is the share's.
pub(super) fn row_filter(
    table: &Table,
    is: Option<&str>,
    share: &Share,
    settings: &PostgresSettings,
    found: &mut Vec<Finding>,
) {
    let Some(wanted) = wanted(table, settings) else {
        return;
    };
    if is == Some(wanted.as_str()) || is == Some(share::NOTHING) {
        return;
    }
    let other = is.and_then(share::told).map(|(_, other)| other);
    let other = other.filter(|other| {
        let filter = key(table, settings).and_then(|key| filter(&share.of(*other), key));
        filter.as_deref() == is
    });
    let Some(other) = other else {
        found.push(edited(is, &wanted, share, settings));
        return;
    };
    let Share { number, count, .. } = share;
    found.push(warn(
        Kind::RowFilter,
        format!(
            "publication {} is share {number} of {other}, and relay.shares is {count}",
            quote_identifier(&settings.publication)
        ),
        settings.of_number(other).mend(),
    ));
}

/// That somebody has emptied the publication of this share, which the publications of the others tell.
pub(crate) fn emptied(
    table: &Table,
    share: &Share,
    settings: &PostgresSettings,
) -> Option<Finding> {
    let wanted = filter(share, key(table, settings)?)?;
    Some(edited(Some(share::NOTHING), &wanted, share, settings))
}

fn edited(is: Option<&str>, wanted: &str, share: &Share, settings: &PostgresSettings) -> Finding {
    let Share { number, count, .. } = share;
    let has = is.map_or_else(
        || "no row filter".to_owned(),
        |is| format!("the row filter {is}"),
    );
    let (leaves, name) = (is.unwrap_or("true"), &settings.table);
    refuse(
        Kind::RowFilter,
        format!(
            "publication {} has {has}, and share {number} of {count} is {wanted}: rows may be of no share, or of two. \
             SELECT count(*) FROM {name} WHERE (({leaves}) IS TRUE) <> (({wanted}) IS TRUE); counts them",
            quote_identifier(&settings.publication)
        ),
        format!(
            "run {} then walrelay verify, and walrelay backfill for what is missing",
            put_anew(settings, Some(wanted))
        ),
    )
}
