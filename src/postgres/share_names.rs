//! Whether the names of shares' slots and publications are free, or somebody else's.
//!
//! In: a client, shares that are to be made, how the outbox is divided. Out: findings. Guarantees: reads only; what `walrelay reshard`
//! leaves behind when it is killed is not somebody else's.

use crate::postgres::beginning;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::division::Division;
use crate::postgres::findings::{Finding, Kind, refuse};
use crate::postgres::replication::quote_literal;
use crate::postgres::settings::PostgresSettings;
use crate::table_name::quote_identifier;

/// What of somebody else's has the name of a share of `lanes` that is to be made.
///
/// # Errors
/// A failed query.
pub async fn taken(
    client: &Client,
    lanes: &[&PostgresSettings],
    division: &Division,
) -> Result<Vec<Finding>, SqlError> {
    let mut found = Vec::new();
    for lane in lanes.iter().filter(|lane| !division.has(lane.part())) {
        found.extend(match publication(client, lane).await? {
            None => slot(client, lane).await?,
            taken => taken,
        });
    }
    Ok(found)
}

/// As [`taken`], where publications of all shares may hold another table: the one that this outbox had before, with the slots of its
/// own shares. A publication of no table is one of ours whose table was dropped.
///
/// # Errors
/// A failed query.
pub async fn taken_by_some(
    client: &Client,
    lanes: &[&PostgresSettings],
    division: &Division,
) -> Result<Vec<Finding>, SqlError> {
    let query = "SELECT count(*) FROM pg_catalog.pg_publication WHERE pubname = ANY ($1::text[])";
    let names: Vec<&str> = lanes.iter().map(|lane| lane.publication.as_str()).collect();
    let there: i64 = client.query_one(query, &[&names]).await?.try_get(0)?;
    let is_whole = usize::try_from(there).is_ok_and(|there| there == lanes.len());
    match is_whole && !lanes.iter().any(|lane| division.has(lane.part())) {
        true => Ok(Vec::new()),
        false => taken(client, lanes, division).await,
    }
}

async fn publication(
    client: &Client,
    lane: &PostgresSettings,
) -> Result<Option<Finding>, SqlError> {
    let query = "SELECT (SELECT string_agg(pg_catalog.format('%I.%I', schemaname, tablename), ', ' ORDER BY 1) \
                 FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname), \
                 EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $2::text) \
                 FROM pg_catalog.pg_publication p WHERE p.pubname = $1::text";
    let (name, slot) = (&lane.publication, &lane.slot);
    let Some(row) = client.query_opt(query, &[name, slot]).await? else {
        return Ok(None);
    };
    let (tables, has_slot): (Option<String>, bool) = (row.try_get(0)?, row.try_get(1)?);
    let holds = tables.map_or_else(|| "holds no table".to_owned(), |it| format!("is of {it}"));
    let what = format!(
        "publication {} {holds}, and a share of this outbox needs that name",
        quote_identifier(name)
    );
    Ok(Some(match has_slot {
        true => refuse(
            Kind::PublicationMismatch,
            format!("{what}; replication slot \"{slot}\" is there too: it is another outbox's"),
            another_outbox(lane),
        ),
        false => refuse(
            Kind::PublicationMismatch,
            what,
            format!(
                "where nobody reads it, run DROP PUBLICATION {name}; else run ALTER PUBLICATION {name} RENAME TO {other}; and name it \
                 {other} where it is read",
                name = quote_identifier(name),
                other = quote_identifier(&format!("{name}_other")),
            ),
        ),
    }))
}

async fn slot(client: &Client, lane: &PostgresSettings) -> Result<Option<Finding>, SqlError> {
    let query = "SELECT s.database::text, s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database(), \
                 (SELECT p.pubname::text FROM pg_catalog.pg_publication p \
                  WHERE strpos(pg_catalog.obj_description(p.oid, 'pg_publication'), $2::text) > 0 ORDER BY 1 LIMIT 1) \
                 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::text";
    let name = &lane.slot;
    let words = beginning::words(name);
    let Some(row) = client.query_opt(query, &[name, &words]).await? else {
        return Ok(None);
    };
    let database: Option<String> = row.try_get(0)?;
    let (fits, publication): (bool, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
    let whose = match (database, publication) {
        (Some(database), _) if !fits => format!("another reader's, in database {database}"),
        (None, _) => "a physical one".to_owned(),
        (_, Some(publication)) => {
            format!(
                "another outbox's, of publication {}",
                quote_identifier(&publication)
            )
        }
        (_, None) => return Ok(None),
    };
    let mend = match fits {
        true => another_outbox(lane),
        false => format!(
            "where nobody needs it, run SELECT pg_drop_replication_slot({}); {}",
            quote_literal(name),
            or_other_names(lane)
        ),
    };
    Ok(Some(refuse(
        Kind::SlotMismatch,
        format!(
            "replication slot \"{name}\" is {whose}, and a share of this outbox needs that name"
        ),
        mend,
    )))
}

fn another_outbox(lane: &PostgresSettings) -> String {
    format!(
        "where that outbox is no more, run walrelay teardown --drop-stream with its configuration. Else give it another name: while nobody \
         writes to its table, let its relay publish everything and stop it; run walrelay teardown there, take walrelay.dead.{} out of \
         the subjects of its stream, set name, and run walrelay setup. {}",
        lane.slot,
        or_other_names(lane)
    )
}

/// What else a person can do: fewer shares, or another name of this outbox, which only one that is not set up can have.
fn or_other_names(lane: &PostgresSettings) -> String {
    let part = lane.part().unwrap_or(0);
    match (part + 1).next_power_of_two() / 2 {
        fewer @ 2.. => format!("Or have no more than {fewer} shares"),
        _ => "Or give this outbox another name, where it is not set up yet".to_owned(),
    }
}
