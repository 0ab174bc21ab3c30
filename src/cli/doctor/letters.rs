//! Open dead letters of shares that are no more: no relay counts them.
//!
//! In: the settings. Out: a finding for each such share that this lane has taken over.

use super::Report;
use crate::cli::taken_over;
use crate::nats::admin::Admin;
use crate::postgres::client::connect;
use crate::relay::settings::Settings;

/// Looks at their streams.
///
/// # Errors
/// A record or a stream cannot be read.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let Some(share) = &settings.postgres.share else {
        return Ok(report);
    };
    let (client, nats) = tokio::join!(
        connect(&settings.postgres.conninfo),
        Admin::connect(&settings.nats.connection)
    );
    // The looks at each of the two tell why not.
    let (Ok(client), Ok(nats)) = (client, nats) else {
        return Ok(report);
    };
    for lane in taken_over::by(settings, &client, &nats).await? {
        let letters = lane.letters(&nats).await?;
        let open = letters.map_or(0, |letters| letters.open().count());
        if open > 0 {
            report.warn(
                "dead-letters",
                format!(
                    "{open} dead letters of slot {}, whose share is no more, are open in stream {}",
                    lane.slot, lane.stream
                ),
                Some(format!(
                    "walrelay dead-letters list --share {} shows them; retry or discard them with the same --share",
                    share.number
                )),
            );
        }
    }
    Ok(report)
}
