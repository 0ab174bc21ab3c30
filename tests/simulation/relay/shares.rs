//! What a relay of one of several lanes does beside the loop: it looks whether there is its share, waits for other lanes in front
//! of a change, and sees that its publication was changed. As `relay::postgres_side`, `relay::crossing` and `relay::watch` do it.

use super::*;
use crate::lanes::SHARES_MAX;
use walrelay::pipeline::engine::CrossingQuestion;
use walrelay::pipeline::reshard::{OtherNumber, has_lane};

/// Between two looks at the records of other lanes; where the broker cannot be asked, longer.
const RECORDS_INTERVAL: Duration = Duration::from_millis(50);
const RECORDS_PAUSE: Duration = Duration::from_secs(1);
/// After so long it is looked whether a lane that is not across is one at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the catalog.
const CATALOG_INTERVAL: Duration = Duration::from_secs(5);

/// The wait for other lanes.
pub(super) struct Wait {
    question: CrossingQuestion,
    /// Those that were not across when they were looked at.
    left: Vec<Part>,
    begun: Duration,
    at: Duration,
}

/// The catalog while an epoch streams.
pub(super) struct Watch {
    /// Of the publication, at the start.
    version: Option<u64>,
    at: Duration,
}

impl Relay {
    /// Whether the lane's share is none that carries rows; an error where there is nothing to read either.
    pub(super) fn look_at_shares(&self, world: &World) -> Result<Option<Fault>, Fault> {
        let (part, postgres) = (self.settings.part, &world.postgres);
        if !postgres.up {
            // The opening will see that.
            return Ok(None);
        }
        let found = postgres.publications.count();
        let wanted = part.map_or(1, |_| SHARES_MAX);
        let no_share = Fault::NoShare(OtherNumber {
            found,
            wanted,
            undivided: None,
        });
        let no_share = (!has_lane(found, part)).then_some(no_share);
        let is_readable =
            postgres.slot(part).confirmed_lsn.is_some() && postgres.publications.has(part);
        match no_share {
            Some(fault) if !is_readable => Err(fault),
            no_share => Ok(no_share),
        }
    }

    /// A whole start has looked at the catalog.
    pub(super) fn watches(&mut self, world: &mut World) {
        self.watch = world.postgres.divides.then(|| Watch {
            version: world.postgres.publications.version(self.settings.part),
            at: world.now + world.random.millis(0, 5_000),
        });
    }

    /// When something of that is due.
    pub(super) fn shares_at(&self) -> Option<Duration> {
        let wait = self.wait.as_ref().map(|wait| wait.at);
        let watch = self.watch.as_ref().map(|watch| watch.at);
        wait.into_iter().chain(watch).min()
    }

    /// Looks at what is due.
    ///
    /// # Errors
    /// The publication was changed, or Postgres is not there while the engine waits and reads nothing.
    pub(super) fn look_around(
        &mut self,
        streaming: &mut Streaming,
        world: &mut World,
    ) -> Result<(), Fault> {
        let engine = &mut streaming.turn.engine;
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.at <= world.now) {
            watch.at = world.now + CATALOG_INTERVAL;
            let postgres = &world.postgres;
            let is_there = postgres.up
                && postgres.incarnation == streaming.incarnation
                && world.net.links[streaming.turn.wal.link].server_open;
            if !is_there && engine.awaits_answer() {
                return Err(Fault::Postgres("it cannot be looked at".into()));
            }
            if is_there && postgres.publications.version(self.settings.part) != watch.version {
                return Err(Fault::Carrier);
            }
        }
        if let Some(question) = engine.poll_crossing() {
            self.wait = Some(Wait {
                left: question.givers.clone(),
                question,
                begun: world.now,
                at: world.now + world.random.micros(100, 20_000),
            });
        }
        if let Some(wait) = self.wait.as_mut().filter(|wait| wait.at <= world.now) {
            wait.look(world);
            if wait.left.is_empty() {
                world.note(|| format!("relay {} is across {}", self.id, wait.question.lsn));
                engine.crossed();
                self.wait = None;
            }
        }
        Ok(())
    }
}

impl Wait {
    fn look(&mut self, world: &mut World) {
        if !world.broker.up {
            self.at = world.now + RECORDS_PAUSE;
            return;
        }
        self.at = world.now + RECORDS_INTERVAL;
        let records = world.broker.records.messages.values();
        let records: Vec<LaneRecord> = records
            .filter_map(|frame| frame.record().map(|record| *record))
            .collect();
        let postgres = &world.postgres;
        self.left.retain(|giver| {
            let giving = Lane {
                system_identifier: postgres.system_identifier,
                database: postgres.database.clone(),
                slot: slot_of(*giver).into(),
            };
            !self.question.is_across(&giving, &records)
        });
        if world.postgres.up && world.now >= self.begun + PATIENCE {
            let has_slot = |giver| postgres.slot(giver).confirmed_lsn.is_some();
            self.left
                .retain(|giver| postgres.publications.has(*giver) || has_slot(*giver));
        }
    }
}
