//! Table and streams compared, before anything goes.
//!
//! In: the lanes. Out: nothing, or what is missing. Guarantee: without `--without-comparison`, every row has its message in a stream, or is
//! known as a dead letter.

use anyhow::{Context as _, bail, ensure};

use super::Prune;
use super::kept::Kept;
use crate::cli::backfill::counted_rows;
use crate::cli::verify::Missing;
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
        for (lane, client) in self.lanes.iter().zip(&self.clients) {
            let found = verify::missing(lane, &[self.table], verify::Choice::default())
                .await
                .context("table and stream cannot be compared")?;
            let mut found = found.into_iter();
            let mut found = found.next().context("one table was compared")?;
            let missing = without_letters(&mut found, client).await?;
            ensure!(
                missing == 0,
                "{} {} not in stream {}, so nothing was deleted: {} publishes what is missing, and says of what can be no event how to \
                 mend it, or give --without-comparison where nobody wants it published",
                counted_rows(missing, lane, self.table),
                is_or_are(missing),
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

/// How many of the missing rows are no open dead letters of the lane: these stay, also where the stream has the letters no more.
async fn without_letters(found: &mut Missing, lane: &LaneClient) -> anyhow::Result<u64> {
    if found.rows.is_empty() {
        return Ok(0);
    }
    let letters = Kept::of(lane).await?.names();
    let mut missing = 0;
    for row in found.rows.rows()? {
        missing += u64::from(!letters.contains(&row?.name));
    }
    Ok(missing)
}
