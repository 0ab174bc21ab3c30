//! Whole partitions of a run: detached before anything is waited for, dropped once they are confirmed.
//!
//! In: the table's partitions. Out: those that are gone, and notes of those that are not. Guarantee: it waits for transactions that use one
//! no longer than for the slots, says which these are, and may be stopped meanwhile.

use anyhow::{Context as _, bail};

use super::Prune;
use super::kept::Kept;
use super::partitions::{Finished, Partition, Partitions, is_too_long};
use super::report::Report;
use super::waited::{Waited, told};
use crate::cli::stderr;
use crate::postgres::detached;
use crate::postgres::setup::Blocker;
use crate::postgres::wal_end::wal_end;

impl Prune<'_> {
    /// Detaches the partitions that are old enough.
    pub(super) async fn detach(
        &self,
        partitions: &Partitions<'_>,
        waited: Waited<'_>,
        report: &mut Report,
    ) -> anyhow::Result<Vec<Partition>> {
        let client = waited.runs;
        let kept = Kept::read(&self.nats, client, &self.clients).await?;
        let old = partitions.old(&kept, &self.id_column).await?;
        if !old.is_empty() {
            let lsn = wal_end(client).await?;
            for lane in &self.clients {
                self.readers(lane).are_read(client, lsn).await?;
            }
        }
        let mut detached = Vec::new();
        let mut pending = partitions.pending().await?;
        for partition in old {
            let name = &partition.name;
            if let Some(pending) = &pending {
                report.notes.push(format!(
                    "{name} is not detached while {pending} is still being detached: its rows are deleted one by one"
                ));
                continue;
            }
            let waits_for = |blockers: &[Blocker]| tell(name, "detached", blockers);
            let (done, blockers) = partitions
                .detach(&partition, self.args.wait, waited, waits_for)
                .await;
            if waited.shutdown.is_sent() {
                bail!(self.stopped(waited).await);
            }
            match done {
                Ok(()) => detached.push(partition),
                Err(error) if is_too_long(&error) => {
                    pending = partitions.pending().await?;
                    let note = match pending {
                        // Nobody sees its rows, and those of others are deleted none the less.
                        Some(_) => {
                            report.done = false;
                            format!(
                                "{name} is still being detached from {}: {}run this again then",
                                self.batches.table,
                                told(&blockers)
                            )
                        }
                        None => format!(
                            "{name} is not detached, since others use the table for too long: its rows are deleted one by one"
                        ),
                    };
                    report.notes.push(note);
                }
                Err(error) => return Err(error).with_context(|| format!("cannot detach {name}")),
            }
        }
        Ok(detached)
    }

    /// Drops those that were detached, now that every slot is confirmed through their rows.
    pub(super) async fn finish(
        &self,
        partitions: &Partitions<'_>,
        detached: &[Partition],
        kept: &Kept,
        waited: Waited<'_>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        for partition in detached {
            let name = &partition.name;
            let waits_for = |blockers: &[Blocker]| tell(name, "dropped", blockers);
            let finished = partitions
                .finish(
                    partition,
                    (kept, &self.id_column),
                    self.args.wait,
                    waited,
                    waits_for,
                )
                .await;
            if waited.shutdown.is_sent() {
                bail!(self.stopped(waited).await);
            }
            match finished? {
                Finished::Dropped => report.partitions.push(name.clone()),
                Finished::Attached => {}
                Finished::InUse(blockers) => {
                    report.done = false;
                    report.notes.push(format!(
                        "{name} is detached from {} and not dropped: {}run this again then",
                        self.batches.table,
                        told(&blockers)
                    ));
                }
            }
        }
        Ok(())
    }

    /// What an end in the midst of it leaves behind.
    async fn stopped(&self, waited: Waited<'_>) -> String {
        let left = detached::of(waited.observer, &self.batches.table).await;
        let left: Vec<String> = left
            .unwrap_or_default()
            .into_iter()
            .map(|left| left.name)
            .collect();
        format!("stopped: {}", left_detached(&left))
    }
}

/// Says what is waited for.
fn tell(name: &str, end: &str, blockers: &[Blocker]) {
    for blocker in blockers {
        stderr::line(format_args!(
            "waiting until {name} can be {end}: {blocker}, has it open: {}",
            blocker.mend()
        ));
    }
}

/// What an end leaves behind, of these partitions.
pub(super) fn left_detached(names: &[String]) -> String {
    match names {
        [] => "nothing was deleted; run this again".to_owned(),
        some => format!(
            "nobody sees the rows of {}, detached from the table, and the next prune attaches that again: run this again",
            some.join(", ")
        ),
    }
}
