//! One seed: a workload, faults, healing, rest; then the verdict.

use crate::command::{Command, Progress};
use crate::lanes::Part;
use crate::outboxes::{Kind, OWN, Plan};
use crate::relay::{Outcome, Relay, Settings};
use crate::world::{ALL_FAULTS, FaultKind, World};
use std::time::Duration;

/// What a run did, for the summary.
#[derive(Debug, Default, Clone)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    pub(crate) faults: u64,
    pub(crate) epochs: u64,
    pub(crate) halted: bool,
    pub(crate) virtual_time: Duration,
}

/// Epochs of a relay that nothing disturbs any more. The walsender of one that was killed holds the slot for up to a quarter of a minute, and
/// each look at it, five a second, counts.
const EPOCHS_MAX: u64 = 60 + 75;
/// More steps than this between two things that happen mean that something spins.
const STEPS_MAX: u64 = 3_000_000;

/// A world with its relays.
pub(crate) struct Simulation {
    pub(crate) world: World,
    pub(crate) relays: Vec<Relay>,
    pub(crate) settings: Settings,
    /// A run of `walrelay reshard` that is under way.
    pub(crate) command: Option<Command>,
    next_id: u64,
    epochs: u64,
}

/// What a seed configures.
pub(crate) fn settings(world: &mut World) -> Settings {
    let random = &mut world.random;
    world.sync_interval = random.pick(&[1_000, 5_000, 20_000].map(Duration::from_millis));
    let hold_back = match random.below(4) {
        0 => Duration::ZERO,
        1 => world.sync_interval / 3,
        2 => world.sync_interval + Duration::from_millis(10),
        _ => world.sync_interval * 3 / 2,
    };
    world.may_lose = hold_back < world.sync_interval;
    world.broker.allow_batched = !random.one_in(3);
    world.broker.granted_max = random.pick(&[1, 5, 100, 500]);
    world.broker.shared = random.one_in(3);
    world.postgres.sql_ascii = random.one_in(3);
    if random.one_in(4) {
        world.broker.batch_messages_max = random.between(2, 50);
    }
    Settings {
        hold_back,
        ack_timeout: random.millis(500, 6_000),
        status_interval: random.millis(500, 10_000),
        backoff_max: random.millis(100, 3_000),
        messages_max: random.pick(&[1, 2, 7, 50, 300, 1_000, 5_000]),
        bytes_max: random.pick(&[100, 5_000, 1 << 20]),
        held_bytes_max: 1 << 40,
        halt_on_reject: false,
        from: None,
        part: None,
        shared: world.broker.shared,
        further: Vec::new(),
    }
}

impl Simulation {
    pub(crate) fn new(world: World, settings: Settings, relays: u64) -> Self {
        let mut simulation = Simulation {
            world,
            relays: Vec::new(),
            settings,
            command: None,
            next_id: 0,
            epochs: 0,
        };
        for _ in 0..relays {
            simulation.start_relay(Duration::ZERO);
        }
        simulation
    }

    pub(crate) fn start_relay(&mut self, after: Duration) {
        self.start_relay_of(self.settings.part, after);
    }

    /// Of this lane.
    pub(crate) fn start_relay_of(&mut self, part: Part, after: Duration) {
        self.next_id += 1;
        let settings = Settings {
            part,
            ..self.settings.clone()
        };
        let at = self.world.now + after;
        self.relays.push(Relay::new(self.next_id, settings, at));
    }

    /// Runs until `until`, or until `done`; false where that did not come.
    pub(crate) fn run(&mut self, until: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let mut steps = 0_u64;
        loop {
            if self.world.failure.is_some() || done(self) {
                return true;
            }
            steps += 1;
            if steps > STEPS_MAX {
                self.world
                    .fail("the simulation does not come forward".into());
            }
            let mut at = self.world.next_time();
            for relay in self.all_relays() {
                at = relay.next_time(&self.world).map_or(at, |time| at.min(time));
            }
            at = self.command.as_ref().map_or(at, |run| at.min(run.at));
            if at > until {
                // A step may have taken longer than it was planned for.
                self.world.now = until.max(self.world.now);
                return done(self);
            }
            self.world.now = at.max(self.world.now);
            self.world.advance();
            self.step_command();
            let own = self.command.iter_mut().flat_map(|run| &mut run.relays);
            for relay in self.relays.iter_mut().chain(own) {
                if relay
                    .next_time(&self.world)
                    .is_some_and(|time| time <= self.world.now)
                {
                    relay.advance(&mut self.world);
                }
            }
        }
    }

    fn all_relays(&self) -> impl Iterator<Item = &Relay> {
        let own = self.command.iter().flat_map(|run| &run.relays);
        self.relays.iter().chain(own)
    }

    fn step_command(&mut self) {
        let Some(run) = self.command.as_mut().filter(|run| run.at <= self.world.now) else {
            return;
        };
        if run.step(&self.settings, &mut self.world) == Progress::Done {
            self.world.note(|| "the command is done".into());
            self.command = None;
        }
    }

    /// Starts anew what was killed or stopped; false when one has halted.
    pub(crate) fn revive(&mut self) -> bool {
        let mut dead = Vec::new();
        for relay in &self.relays {
            match relay.outcome() {
                Some(Outcome::Stopped) => dead.push(relay.part()),
                // A supervisor starts it again until somebody has mended the stream.
                Some(Outcome::Failed(_)) if self.world.edit_seen => dead.push(relay.part()),
                Some(outcome) => {
                    if !self.world.explains(outcome) {
                        self.world
                            .fail(format!("relay {} ended: {outcome:?}", relay.id));
                    }
                    return false;
                }
                None => {}
            }
        }
        self.epochs += self
            .relays
            .iter()
            .filter(|r| r.outcome().is_some())
            .map(|r| r.epochs_begun)
            .sum::<u64>();
        self.relays.retain(|relay| relay.outcome().is_none());
        for part in dead {
            let after = self.world.random.millis(0, 1_500);
            self.start_relay_of(part, after);
        }
        true
    }

    /// Names a further table, or one no more: with the relays stopped or killed, as the documentation says.
    fn change_tables(&mut self, present: &[Kind]) {
        let kind = self.world.random.pick(present);
        if !self.settings.further.contains(&kind) {
            // Known limit: a lane that has lost its only record begins anew, and so does the table.
            if self.world.broker.records.synced_seq == 0 {
                return;
            }
            self.end_relays();
            self.settings.further.push(kind);
            self.world.postgres.spans.add(kind);
            self.world.note(|| format!("table {kind} is named"));
            return;
        }
        // Without a hold-back the end of the stream may go back to one of its events, which are gone then.
        if self.world.may_lose || !self.world.postgres.up {
            return;
        }
        self.world.postgres.further.retain(|other| *other != kind);
        if self.is_confirmed_by_another_table() {
            self.end_relays();
            self.settings.further.retain(|other| *other != kind);
            let end = self.world.postgres.end_lsn;
            self.world.postgres.spans.remove(kind, end);
            self.world.note(|| format!("table {kind} is named no more"));
        }
        self.world.postgres.further.push(kind);
    }

    /// An event of the lane's own table, once the slot is confirmed through it; false where that does not come.
    fn is_confirmed_by_another_table(&mut self) -> bool {
        let world = &mut self.world;
        let row = world.postgres.row_of(OWN, &mut world.random, false);
        world.postgres.commit(vec![row], &mut world.random);
        let limit = self.world.now + self.settings.hold_back * 2 + Duration::from_secs(60);
        let mut alive = true;
        self.run(limit, |simulation| {
            alive = simulation.revive();
            !alive || simulation.world.is_done()
        });
        alive && self.world.is_done()
    }

    fn end_relays(&mut self) {
        let now = self.world.now;
        if self.world.random.one_in(2) {
            for relay in &mut self.relays {
                relay.stop(now);
            }
            let ended = |simulation: &mut Self| {
                let mut relays = simulation.relays.iter();
                relays.all(|relay| relay.outcome().is_some())
            };
            self.run(now + Duration::from_secs(20), ended);
        }
        for relay in &mut self.relays {
            if relay.outcome().is_none() {
                relay.kill(&mut self.world);
            }
        }
    }

    /// What there was of it.
    pub(crate) fn end(self, faults: u64, halted: bool) -> (World, Summary) {
        let summary = Summary {
            events: self.world.broker.events.places.len() as u64,
            faults,
            epochs: self.epochs(),
            halted,
            virtual_time: self.world.now,
        };
        (self.world, summary)
    }

    fn epochs(&self) -> u64 {
        self.epochs
            + self
                .relays
                .iter()
                .map(|relay| relay.epochs_begun)
                .sum::<u64>()
    }

    pub(crate) fn work(&mut self, rejects: bool) {
        let world = &mut self.world;
        if !world.postgres.up {
            return;
        }
        if self.settings.shared && world.broker.up && world.random.one_in(3) {
            world.publish_foreign();
        }
        match world.random.below(10) {
            0 => world.postgres.write_other(&mut world.random),
            1 => world.postgres.commit_other_table(&mut world.random),
            kind => {
                let rows = match kind {
                    2 => world.random.between(2, 20),
                    3 if world.random.one_in(4) => world.random.between(100, 700),
                    4 | 5 => world.random.between(2, 4),
                    _ => 1,
                };
                let rows = (0..rows)
                    .map(|_| world.postgres.row(&mut world.random, rejects))
                    .collect();
                let lsn = world.postgres.commit(rows, &mut world.random);
                world.note(|| format!("committed at {lsn:X}"));
            }
        }
    }
}

/// What is done at a moment of a run.
#[derive(Debug, Clone, Copy)]
enum Step {
    Work,
    Fault(FaultKind),
    /// A further table is named, or is named no more.
    Tables,
}

/// Runs one seed; its history where it is asked for.
pub(crate) fn seed(seed: u64, verbose: bool) -> (World, Summary) {
    let mut world = World::new(seed, verbose);
    let tables = Plan::of_seed(seed);
    let mut settings = settings(&mut world);
    settings.further.clone_from(&tables.named);
    world.postgres.further.clone_from(&tables.present);
    world.note(|| format!("{settings:?}"));
    let relays = if world.random.one_in(3) { 2 } else { 1 };
    let rejects = world.random.one_in(2);
    let faults = world.random.below(9);
    let span = world.random.millis(500, 40_000);
    let mut plan: Vec<(Duration, Step)> = Vec::new();
    for _ in 0..world.random.between(5, 60) {
        plan.push((span.mul_f64(world.random.fraction()), Step::Work));
    }
    for _ in 0..faults {
        let fault = world.random.pick(&ALL_FAULTS);
        // Some come right behind another, while the relay starts again.
        let behind = plan
            .iter()
            .rev()
            .find(|(_, step)| matches!(step, Step::Fault(_)))
            .map(|(at, _)| *at);
        let at = match behind {
            Some(at) if world.random.one_in(2) => at + world.random.millis(0, 80),
            _ => span.mul_f64(world.random.fraction()),
        };
        plan.push((at, Step::Fault(fault)));
    }
    let changes = tables.changes.iter();
    plan.extend(changes.map(|part| (span.mul_f64(*part), Step::Tables)));
    plan.sort_by_key(|(at, _)| *at);
    let mut simulation = Simulation::new(world, settings, relays);
    let mut halted = false;
    for (at, step) in plan {
        simulation.run(at, |_| false);
        if !simulation.revive() || simulation.world.failure.is_some() {
            halted = true;
            break;
        }
        match step {
            Step::Work => simulation.work(rejects),
            Step::Fault(fault) => simulation.world.inject(fault, &mut simulation.relays),
            Step::Tables => simulation.change_tables(&tables.present),
        }
    }
    if !halted {
        halted = !come_to_rest(&mut simulation);
    }
    simulation.world.verify(!halted);
    if !halted && simulation.world.failure.is_none() {
        stop_and_start(&mut simulation);
    }
    simulation.end(faults, halted)
}

/// Heals everything and waits until all is published and confirmed; false when a relay has halted.
fn come_to_rest(simulation: &mut Simulation) -> bool {
    if !simulation.revive() {
        return false;
    }
    simulation.world.heal(&mut simulation.relays);
    simulation.work(false);
    let before = simulation.epochs();
    let limit = simulation.world.now + simulation.settings.hold_back * 2 + Duration::from_secs(120);
    let mut alive = true;
    let rested = simulation.run(limit, |simulation| {
        alive = simulation.revive();
        !alive || simulation.world.is_done()
    });
    if alive && !rested {
        let end = simulation.world.postgres.end_lsn;
        let confirmed = simulation
            .world
            .postgres
            .slot(None)
            .confirmed_lsn
            .unwrap_or(0);
        simulation
            .world
            .fail(format!("stuck: confirmed {confirmed:X} of {end:X}"));
    }
    let epochs = simulation.epochs() - before;
    if epochs > EPOCHS_MAX && simulation.relays.len() == 1 {
        simulation
            .world
            .fail(format!("{epochs} epochs after everything was healed"));
    }
    alive
}

/// A clean stop and start publishes nothing again.
fn stop_and_start(simulation: &mut Simulation) {
    let now = simulation.world.now;
    for relay in &mut simulation.relays {
        relay.stop(now);
    }
    let limit = simulation.world.now + Duration::from_secs(20);
    let stopped = simulation.run(limit, |simulation| {
        simulation
            .relays
            .iter()
            .all(|relay| relay.outcome().is_some())
    });
    if !stopped {
        simulation.world.fail("a stop does not end".into());
    }
    // A start puts a fence into a shared stream; events would tell themselves.
    let stored = |world: &World| match world.broker.shared {
        true => world.broker.events.published().len() as u64,
        false => world.broker.events.last_seq,
    };
    let before = stored(&simulation.world);
    if !simulation.revive() {
        return;
    }
    simulation.relays.truncate(1);
    let until = simulation.world.now + Duration::from_secs(8);
    simulation.run(until, |_| false);
    if !simulation.relays.iter().any(Relay::is_streaming) {
        simulation
            .world
            .fail("no relay streams after a clean stop and start".into());
    }
    if stored(&simulation.world) != before {
        simulation
            .world
            .fail("a clean stop and start has published something".into());
    }
}
