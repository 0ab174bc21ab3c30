//! Table and stream of a lane, while they are brought together.
//!
//! In: what the table has, a reading of the stream. Out: a verdict on each id. Guarantee: memory does not grow with their number.

use std::time::Duration;

use postgres_types::PgLsn;

use super::compare::{Group, Verdict, Whole, verdict};
use super::deletions::Deletions;
use super::lane::{self, LaneReading};
use super::report::{Example, Report};
use super::sort::{Entries, Merge};
use super::{bar, table, tick};
use crate::nats::admin::Admin;
use crate::pipeline::position::Position;
use crate::pipeline::source::Source;
use crate::postgres::client::Client;
use crate::postgres::id_column::IdColumn;
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;

/// How many ids are looked for in the table at once.
const LOOK_AGAIN_IDS: usize = 1_000;

/// One comparison.
pub(super) struct Comparison<'a> {
    pub(super) settings: &'a Settings,
    pub(super) client: &'a Client,
    pub(super) nats: &'a Admin,
    /// Under which names the slot is read.
    pub(super) publications: String,
    pub(super) source: Source,
    /// Which of them is compared.
    pub(super) outbox: usize,
    pub(super) lane_client: LaneClient,
    pub(super) id_column: IdColumn,
    pub(super) snapshot_lsn: PgLsn,
    /// The server is a standby.
    pub(super) in_recovery: bool,
    pub(super) lane: LaneReading,
    /// How far the lane's record says that the lane was.
    pub(super) recorded: Option<Position>,
    pub(super) entries: Entries,
    /// Age of the oldest row that the slot holds and the relay has still to publish.
    pub(super) pending_for: Option<Duration>,
    /// Messages that the streams of other shares have no more, where they have published rows of this one.
    pub(super) removed_elsewhere: u64,
}

impl Comparison<'_> {
    /// Reads on to what is the stream's end now.
    pub(super) async fn read_stream(&mut self) -> anyhow::Result<()> {
        read_stream(&mut [self]).await
    }

    /// What takes a first pass over everything.
    fn whole(&mut self) -> std::io::Result<Whole> {
        let mut whole = Whole {
            removed_max: self.lane.removed_max() + self.removed_elsewhere,
            only_front_removed: self.lane.only_front_removed(),
            ..Whole::default()
        };
        let mut merge = self.entries.merge()?;
        while let Some(group) = next_group(&mut merge)? {
            whole.take(&group);
        }
        Ok(whole)
    }

    pub(super) async fn judge(
        &mut self,
        mut report: Report,
        mut each: impl FnMut(&Group, &Verdict) -> std::io::Result<()>,
    ) -> anyhow::Result<Report> {
        let whole = self.whole()?;
        let mut merge = self.entries.merge()?;
        let mut phantoms: Vec<Group> = Vec::new();
        let mut deletions = Deletions::default();
        while let Some(group) = next_group(&mut merge)? {
            let verdict = verdict(&group, &whole);
            each(&group, &verdict)?;
            report.take(&group, &verdict);
            // A message of the WAL never was a row, and nothing tells it from one that was deleted.
            if verdict.phantom && self.settings.postgres.messages.is_none() {
                phantoms.push(group);
            }
            if phantoms.len() >= LOOK_AGAIN_IDS {
                self.look_again(&mut report, &mut phantoms, &mut deletions)
                    .await?;
            }
        }
        self.look_again(&mut report, &mut phantoms, &mut deletions)
            .await?;
        report.explain(whole.removed_max);
        Ok(report)
    }

    /// A row that committed at the moment of the snapshot is there now. Where rows are deleted, in whatever order, one that is not there
    /// may have been.
    async fn look_again(
        &self,
        report: &mut Report,
        phantoms: &mut Vec<Group>,
        deletions: &mut Deletions,
    ) -> anyhow::Result<()> {
        if phantoms.is_empty() {
            return Ok(());
        }
        let ids: Vec<u128> = phantoms.iter().map(|group| group.id).collect();
        let present =
            table::present(self.client, &self.settings.postgres, &self.id_column, &ids).await?;
        let rowless = phantoms.drain(..);
        for group in rowless.filter(|group| !present.contains(&group.id)) {
            let may_have_been =
                deletions.may_have_been(self.client, self.settings, self.in_recovery);
            let findings = match may_have_been.await? {
                true => &mut report.rowless,
                false => &mut report.phantom,
            };
            findings.add(1, || Example::of_event(&group));
        }
        Ok(())
    }
}

/// Reads on to what is the stream's end now, once for tables of one lane.
pub(super) async fn read_stream(tables: &mut [&mut Comparison<'_>]) -> anyhow::Result<()> {
    let Some(first) = tables.first() else {
        return Ok(());
    };
    let (client, nats) = (first.client, first.nats);
    let bar = bar("stream", 0);
    let mut readings: Vec<_> = tables
        .iter_mut()
        .map(|table| (&mut table.lane, &mut table.entries))
        .collect();
    let progress = |messages, all| tick(&bar, messages, Some(all));
    let read = lane::read_on(&mut readings, nats, table::end_lsn(client), progress).await;
    bar.finish_and_clear();
    read
}

/// The next id, and all that was met of it.
fn next_group(merge: &mut Merge) -> std::io::Result<Option<Group>> {
    let mut group = Group::default();
    Ok(merge
        .next_group(|entry| group.take(entry))?
        .then_some(group))
}

/// Whether anything has to be waited for.
pub(super) fn has_unpublished(entries: &mut Entries) -> std::io::Result<bool> {
    has(entries, |verdict| verdict.unpublished() > 0)
}

/// Whether the streams that were read lack anything.
pub(super) fn has_missing(entries: &mut Entries) -> std::io::Result<bool> {
    has(entries, |verdict| verdict.missing > 0)
}

fn has(entries: &mut Entries, what: impl Fn(&Verdict) -> bool) -> std::io::Result<bool> {
    let mut merge = entries.merge()?;
    while let Some(group) = next_group(&mut merge)? {
        if what(&verdict(&group, &Whole::default())) {
            return Ok(true);
        }
    }
    Ok(false)
}
