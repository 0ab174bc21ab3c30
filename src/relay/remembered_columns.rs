//! What the lane record remembers of columns that the table no longer has.
//!
//! In: settings, the catalog. Out: in the catalog's tables, the columns that rows were read by before. Guarantee: nothing is asked where all
//! columns are there, and nothing is told where the broker does not answer soon.

use crate::nats::admin::Admin;
use crate::pipeline::record::LaneRecord;
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Kind, Severity, findings};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;
use std::time::Duration;

/// The finding is told without it after that.
const LIMIT: Duration = Duration::from_secs(3);

/// Asks for them, so that findings tell what became of a column.
pub(crate) async fn remember(settings: &Settings, inspection: &mut Inspection) {
    let lacks_column = findings(inspection, &settings.postgres)
        .iter()
        .any(|finding| finding.kind == Kind::Column && finding.severity == Severity::Refuse);
    if !lacks_column {
        return;
    }
    match tokio::time::timeout(LIMIT, record(settings)).await {
        Ok(Ok(record)) => {
            let tables = record.map_or_else(Vec::new, |record| record.tables);
            inspection.remember(&settings.postgres, &tables);
        }
        Ok(Err(error)) => tracing::debug!(%error, "what the columns were is not known"),
        Err(_) => tracing::debug!("what the columns were is not known: NATS does not answer"),
    }
}

async fn record(settings: &Settings) -> anyhow::Result<Option<LaneRecord>> {
    let nats = Admin::connect(&settings.nats.connection).await?;
    let lane = LaneClient::new(&nats, &settings.nats.stream, &settings.postgres.slot)?;
    Ok(lane.record().await?.record)
}
