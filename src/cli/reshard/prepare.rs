//! What a new share needs.
//!
//! In: its lane. Out: publication, slot, stream and record. Guarantees: the publication carries nothing yet; the record tells where the
//! slot begins, also where an earlier run of the command was killed between the two.

use anyhow::{Context as _, bail};

use super::Resharding;
use crate::cli::exit::Exit;
use crate::cli::setup;
use crate::relay::Shutdown;

impl Resharding<'_> {
    /// Makes it.
    ///
    /// # Errors
    /// Something is in the way, or Postgres or NATS refuse.
    pub(super) async fn prepare(
        &self,
        part: Option<u32>,
        shutdown: Shutdown,
    ) -> Result<Exit, anyhow::Error> {
        let lane = self.lane(part);
        let has_made_publication = !self.division.has(part);
        if has_made_publication {
            let create = self.create(lane);
            let created = self.sql.batch_execute(&create).await;
            created.with_context(|| format!("cannot run {create}"))?;
        }
        let mut stopped = shutdown.clone();
        tokio::select! {
            // One with rows becomes the lane's.
            removed = self.remove_leftover(lane) => drop(removed?),
            () = stopped.wait() => bail!("stopped before its end: run it again"),
        }
        let mut stopped = shutdown;
        // A slot waits for the transactions that are under way.
        let cancel = async {
            let _ended = tokio::time::timeout(self.args.wait, stopped.wait()).await;
        };
        let args = setup::Args::behind_publication(has_made_publication);
        let made = setup::execute_until(args, lane, cancel).await?;
        Ok(made.exit)
    }
}
