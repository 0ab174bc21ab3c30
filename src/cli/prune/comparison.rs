//! Table and streams compared, before anything goes.
//!
//! In: the lanes. Out: nothing, or what is missing. Guarantee: without `--without-comparison`, every row has its message in a stream, or is
//! known as a dead letter.

use anyhow::{Context as _, bail, ensure};

use super::Prune;
use crate::cli::backfill::counted_rows;
use crate::cli::{command_line, verify};
use crate::counted::is_or_are;
use crate::pipeline::dead_letter::remembered::KEPT_MAX;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

impl Prune<'_> {
    /// Makes sure that the streams miss no row.
    pub(super) async fn compare(&self) -> anyhow::Result<()> {
        if self.args.without_comparison {
            return Ok(());
        }
        for lane in self.lanes {
            let found = verify::missing(lane, &[self.table], verify::Choice::default())
                .await
                .context("table and stream cannot be compared")?;
            let found = found.first().context("one table was compared")?;
            ensure!(
                found.rows.is_empty(),
                "{} {} not in stream {}, so nothing was deleted: {} publishes what is missing, or give --without-comparison where nobody \
                 wants it published",
                counted_rows(found.rows.len() as u64, lane, self.table),
                is_or_are(found.rows.len() as u64),
                lane.nats.stream,
                command_line::backfill(None, None, false)
            );
            ensure!(
                found.former == 0,
                "unjudged: stream {} has the ids of {} of another table, which was the outbox before this one, so nothing tells \
                 whether these were published, and nothing was deleted: {} publishes them, or give --without-comparison where nobody \
                 wants that",
                lane.nats.stream,
                counted_rows(found.former, lane, self.table),
                command_line::backfill(None, None, true)
            );
            if found.unjudged > 0 {
                self.letters_are_known(lane, found.unjudged).await?;
            }
        }
        Ok(())
    }

    /// Makes sure that it is known of rows without a message which of them are open dead letters.
    async fn letters_are_known(&self, lane: &Settings, unjudged: u64) -> anyhow::Result<()> {
        let (stream, slot) = (&lane.nats.stream, &lane.postgres.slot);
        let client = LaneClient::new(&self.nats, stream, slot)?;
        let why_not = match client.letters().await? {
            Some((letters, _)) if !letters.more => return Ok(()),
            Some(_) => {
                format!("there were more open ones than the relay keeps in mind, {KEPT_MAX}")
            }
            None => "no relay has noted yet which are open: walrelay run does".to_owned(),
        };
        bail!(
            "unjudged: {} {} not in stream {stream}, which may have removed their messages, and nothing tells which of them \
             were dead letters, whose only trace they would be: {why_not}. walrelay verify --since TIME leaves old ones out; \
             --without-comparison deletes them too",
            counted_rows(unjudged, lane, self.table),
            is_or_are(unjudged)
        )
    }
}
