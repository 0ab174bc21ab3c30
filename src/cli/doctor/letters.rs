//! Open dead letters that will be forgotten, or nearly were: what the stream removes, and those of shares that are no more.
//!
//! In: the settings. Out: a finding where the lane's are in danger, and one for each such share that this lane has taken over.

use super::Report;
use crate::cli::dead_letters::letters::Letters;
use crate::counted::{counted, is_or_are};
use crate::nats::admin::Admin;
use crate::nats::stream::limits;
use crate::postgres::client::connect;
use crate::relay::lane_client::{LaneClient, LaneError};
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
    own(settings, &nats, &mut report).await?;
    let part = settings.postgres.part();
    let share = part.map_or_else(String::new, |number| format!(" --share {number}"));
    for lane in taken_over::by(settings, &client, &nats).await? {
        let letters = Letters::of(&lane, &nats).await?;
        let open = letters.map_or(0, |letters| letters.open().count());
        if open > 0 {
            report.warn(
                "dead-letters",
                format!(
                    "{} of slot {}, whose share is no more, {} open in stream {}",
                    counted(open as u64, "dead letter", "dead letters"),
                    lane.slot,
                    is_or_are(open as u64),
                    lane.stream
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

/// The lane's own, where the stream has removed open ones or will.
async fn own(settings: &Settings, nats: &Admin, report: &mut Report) -> anyhow::Result<()> {
    let stream = &settings.nats.stream;
    let lane = LaneClient::new(nats, stream, &settings.postgres.slot)?;
    let config = match lane.stream().await {
        Ok(info) => info.config,
        // The look at NATS tells.
        Err(LaneError::NoStream(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let letters = Letters::read(&lane).await?;
    let (gone, open) = letters.open().fold((0, 0), |(gone, open), letter| {
        if letter.is_gone {
            (gone + 1, open)
        } else {
            (gone, open + 1)
        }
    });
    if gone > 0 {
        report.warn(
            "dead-letters",
            format!(
                "{} no longer in stream {stream}, by its limits or by somebody: what they were about was never published, and may be \
                 in the table alone",
                counted(gone, "open dead letter is", "open dead letters are")
            ),
            Some(
                "walrelay dead-letters list shows them; walrelay dead-letters retry --all publishes their rows, discard gives them up"
                    .to_owned(),
            ),
        );
    }
    if let Some(limits) = limits::that_remove(&config).filter(|_| open > 0) {
        report.warn(
            "dead-letters",
            format!(
                "{} open in stream {stream}, which removes its oldest messages ({limits}): a letter is gone then, and \
                 its row is in the table alone",
                counted(open, "dead letter is", "dead letters are")
            ),
            Some(format!(
                "walrelay dead-letters list shows them: retry or discard them before; or lift the limits: nats stream edit {stream} {}",
                limits::lift(&config)
            )),
        );
    }
    Ok(())
}
