//! Commands that have ended without finishing.
//!
//! In: the settings. Out: a finding for each.

use super::Report;
use crate::bulk::lease::holders;
use crate::nats::admin::Admin;
use crate::relay::settings::Settings;

/// Looks at the leases of the slot.
///
/// # Errors
/// A lease cannot be read.
pub(super) async fn look(settings: &Settings) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let Ok(nats) = Admin::connect(&settings.nats.connection).await else {
        // The look at NATS tells why.
        return Ok(report);
    };
    for work in holders(&nats, &settings.postgres.slot).await? {
        if work.ended {
            report.warn("unfinished", work.what(), work.remedy());
        }
    }
    Ok(report)
}
