//! The end of a start: an engine that begins, or goes on, behind the plan; and its record.
//!
//! In: what the start does not decide. Out: the engine, once its record is stored: a relay that was frozen meanwhile cannot
//! write its own any more.

use super::decide::check_names;
use super::look::View;
use super::{Decided, NotOpened, Opened, Opening, Step};
use crate::pipeline::continuity::Plan;
use crate::pipeline::engine::{Engine, EngineSettings, EpochSettings, Resumed};
use crate::pipeline::history::History;
use crate::pipeline::lane_end::Memory;
use crate::pipeline::publish::{Mode, WindowLimits};
use crate::pipeline::record::LaneRecord;
use crate::pipeline::request::StreamView;
use crate::pipeline::source::Source;
use std::time::Duration;

impl Opening<'_> {
    /// Whether the configuration gives a table of the lane another name, or other ids, than its messages tell.
    ///
    /// # Errors
    /// [`NotOpened::Halt`]: nothing is published.
    ///
    /// # Panics
    /// Where [`Self::wanted`] has not asked for the settings.
    pub fn check_names(&self, source: &Source) -> Result<(), NotOpened> {
        let Step::Settings(decided) = &self.step else {
            panic!(
                "the settings come behind the plan, and it is at {:?}",
                self.step
            );
        };
        let checked = check_names(&self.known, &decided.view, &decided.plan, source);
        checked.map_err(|misnamed| NotOpened::Halt(misnamed.into()))
    }

    /// Begins the epoch: its record is stored next, before its first message, so that a relay that was frozen meanwhile
    /// cannot write its own.
    ///
    /// # Panics
    /// Where [`Self::wanted`] has not asked for the settings.
    pub fn begin(&mut self, mut epoch: EpochSettings, now: Duration) -> Box<Engine> {
        let Decided {
            place,
            view,
            plan,
            mode,
        } = self.decided();
        let mut warnings = Vec::new();
        warnings.extend(view.removed_end(self.known.stream));
        let before = view.stored.record.as_ref();
        let carried = before.and_then(|record| record.carrier.as_ref());
        let name_before = before.and_then(|record| record.publications.last());
        let is_renamed = (name_before.zip(epoch.publications.last()))
            .is_some_and(|(before, now)| before.oid == now.oid && before.name != now.name);
        warnings.extend(
            carried
                .zip(epoch.carrier.as_ref())
                .filter(|(before, now)| !is_renamed || !before.is_same_but_for_a_name(now))
                .filter(|(before, now)| !before.is_same_but_for_a_reshard(now))
                .and_then(|(before, now)| before.change(now)),
        );
        let View { stream, stored, .. } = view;
        let server_id = self.server.id.clone();
        let held = self.known.memory.as_ref().map(|memory| {
            memory.standing_marks(
                &stream.created,
                stored.record.as_ref(),
                plan.lane_end.as_ref(),
                &place.history,
                server_id.as_deref(),
            )
        });
        let record = usable_record(stored.record, &place.history);
        epoch.limits = limits_of(mode, &stream, epoch.limits);
        let tables = Memory::tables(self.known.memory.as_ref(), &stream.created, record.as_ref());
        if !tables.is_empty() {
            // The catalog was looked at before: until the slot was ours, another relay may have published by another configuration.
            epoch.source = epoch.source.named_at(place.server_lsn);
        }
        epoch.source = epoch.source.continued(tables, place.confirmed_flush_lsn);
        let settings = EngineSettings {
            lane: place.lane,
            history: place.history,
            created: stream.created,
            num_replicas: stream.num_replicas,
            number: record.as_ref().map_or(1, |record| record.epoch + 1),
            record,
            mode,
            stream: self.known.stream.to_owned(),
            confirmed_flush_lsn: place.confirmed_flush_lsn,
            server_id,
            held: held.unwrap_or_default(),
            epoch,
        };
        let engine = Box::new(Engine::new(settings, &plan, now));
        self.record(&engine, plan, mode, warnings, stored.sequence);
        engine
    }

    /// Has the engine go on, in a resync; see [`Self::begin`].
    ///
    /// # Errors
    /// [`NotOpened::Fault`] where it cannot.
    ///
    /// # Panics
    /// Where [`Self::wanted`] has not asked for the settings.
    pub fn resume(
        &mut self,
        engine: &mut Engine,
        limits: WindowLimits,
        now: Duration,
    ) -> Result<(), NotOpened> {
        let Decided {
            view, plan, mode, ..
        } = self.decided();
        let warnings = Vec::from_iter(view.removed_end(self.known.stream));
        let View { stream, stored, .. } = view;
        let resumed = Resumed {
            record: usable_record(stored.record, engine.history()),
            mode,
            num_replicas: stream.num_replicas,
            limits: limits_of(mode, &stream, limits),
            server_id: self.server.id.clone(),
        };
        let resumed = engine.resume(resumed, &plan, now);
        resumed.map_err(NotOpened::Fault)?;
        self.record(engine, plan, mode, warnings, stored.sequence);
        Ok(())
    }

    fn decided(&mut self) -> Decided {
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Settings(decided) => *decided,
            step => panic!("the settings come behind the plan, and it is at {step:?}"),
        }
    }

    /// The engine's record is stored next, behind that one.
    fn record(
        &mut self,
        engine: &Engine,
        plan: Plan,
        mode: Mode,
        warnings: Vec<String>,
        behind: u64,
    ) {
        let opened = Box::new(Opened {
            plan,
            mode: mode.preparation().name,
            warnings,
        });
        self.step = Step::Recording(opened, Box::new(engine.first_record()), behind);
    }

    /// The engine may stream, once [`Self::wanted`] wants nothing more.
    ///
    /// # Panics
    /// Before.
    pub fn finish(self, engine: &mut Engine) -> Opened {
        match self.step {
            Step::Open(opened, sequence) => {
                engine.record_stored_at(sequence);
                *opened
            }
            step => panic!("the start is at {step:?}"),
        }
    }
}

/// The record without what lies behind the place where the server left its timeline: that is another one's, and is not carried
/// over into a record of this one.
pub(super) fn usable_record(
    mut record: Option<LaneRecord>,
    history: &History,
) -> Option<LaneRecord> {
    if let Some(record) = &mut record {
        let shared_lsn = history.shared_with(&record.history());
        record.confirmed_lsn = record.confirmed_lsn.min(shared_lsn);
    }
    record
}

/// What may be in flight to that stream, published to in that way.
fn limits_of(mode: Mode, stream: &StreamView, limits: WindowLimits) -> WindowLimits {
    let preparation = mode.preparation();
    WindowLimits {
        messages_max: preparation.messages_max(stream.num_replicas, limits.messages_max),
        ..limits
    }
}
