//! The names that a publication has had, and the one that it has.
//!
//! In: what the lane record says, what the catalog has. Out: the names that the WAL behind the slot's place may need.

use crate::pipeline::publications::{PublicationName, names};
use crate::postgres::catalog::Inspection;
use crate::postgres::client::{Client, SqlError};
use crate::postgres::replication::quote_identifier;
use crate::postgres::settings::PostgresSettings;

/// The same as one query of the slot takes them, quoted: all of them where the server passes over a name that is missing
/// (Postgres 18), else the present one alone.
///
/// # Errors
/// A failed query.
pub async fn publication_list(
    client: &Client,
    settings: &PostgresSettings,
    inspection: &Inspection,
    recorded: &[PublicationName],
) -> Result<String, SqlError> {
    let names = publication_names(client, settings, inspection, recorded).await?;
    let is_lenient = inspection.server.version_num >= 180_000;
    let mut quoted: Vec<String> = (names.iter())
        .filter(|_| is_lenient)
        .map(|known| quote_identifier(&known.name))
        .collect();
    if quoted.is_empty() {
        quoted.push(quote_identifier(&settings.publication));
    }
    Ok(quoted.join(","))
}

/// Under which names the publication is to be read, one behind the other; see [`names`].
///
/// # Errors
/// A failed query.
pub(crate) async fn publication_names(
    client: &Client,
    settings: &PostgresSettings,
    inspection: &Inspection,
    recorded: &[PublicationName],
) -> Result<Vec<PublicationName>, SqlError> {
    let Some(publication) = &inspection.publication else {
        return Ok(Vec::new());
    };
    let now = PublicationName {
        name: settings.publication.clone(),
        oid: publication.oid,
        seen_lsn: inspection.server.current_lsn,
    };
    let known: Vec<&str> = recorded.iter().map(|known| known.name.as_str()).collect();
    let query =
        "SELECT pubname::text FROM pg_catalog.pg_publication WHERE pubname::text = ANY ($1)";
    let taken: Vec<String> = match known.is_empty() {
        true => Vec::new(),
        false => (client.query(query, &[&known]).await?.iter())
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?,
    };
    let confirmed_lsn = inspection.confirmed_lsn().unwrap_or(0.into());
    Ok(names(recorded, now, confirmed_lsn, |name| {
        taken.iter().any(|taken| taken == name)
    }))
}
