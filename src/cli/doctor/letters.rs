//! Open dead letters of shares that are no more.
//!
//! In: the settings. Out: a finding for each such share that this lane has taken over.

use super::Report;
use crate::cli::dead_letters::letters::Letters;
use crate::nats::admin::Admin;
use crate::postgres::client::connect;
use crate::relay::settings::Settings;
use crate::relay::taken_over;

/// Looks at their streams.
///
/// # Errors
/// A record or a stream cannot be read.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let (client, nats) = tokio::join!(
        connect(&settings.postgres.conninfo),
        Admin::connect(&settings.nats.connection)
    );
    // The looks at each of the two tell why not.
    let (Ok(client), Ok(nats)) = (client, nats) else {
        return Ok(report);
    };
    let part = settings.postgres.part();
    let share = part.map_or_else(String::new, |number| format!(" --share {number}"));
    for lane in taken_over::by(settings, &client, &nats).await? {
        let letters = Letters::of(&lane, &nats).await?;
        let open = letters.map_or(0, |letters| letters.open().count());
        if open > 0 {
            report.warn(
                "dead-letters",
                format!(
                    "{open} dead letters of slot {}, whose share is no more, are open in stream {}",
                    lane.slot, lane.stream
                ),
                Some(format!(
                    "walrelay dead-letters list{share} shows them; retry or discard them {}",
                    if share.is_empty() {
                        "as any other"
                    } else {
                        "with the same --share"
                    }
                )),
            );
        }
    }
    Ok(report)
}
