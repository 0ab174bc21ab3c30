//! Another number of shares, with the relays' own opening and loop: several lanes of one outbox in one stream, the place in the WAL
//! where the publications change, and relays and command that die at any moment.
//!
//! Simulated are the lanes' start, loop, crossing and end; what the command and a look at the catalog ask Postgres is a model
//! (`command`, `relay::shares`). A third of the seeds set the stream back; what that does to the order at a change is a limit (L-9). No
//! record is lost: that is for a person (G-117). The verdict is each lane's, and each aggregate's over all lanes.

use crate::command::{Command, record, store_first_record};
use crate::lanes::{self, Part};
use crate::relay::Settings;
use crate::run::{Simulation, Summary, settings};
use crate::world::{FaultKind, World};
use postgres_types::PgLsn;
use std::time::Duration;
use walrelay::pipeline::history::History;
use walrelay::pipeline::reshard::lanes_of;

/// The last two set the stream back; only some seeds have them.
const FAULTS: [FaultKind; 18] = [
    FaultKind::Kill,
    FaultKind::Kill,
    FaultKind::Freeze,
    FaultKind::Stop,
    FaultKind::CutNats,
    FaultKind::CutPostgres,
    FaultKind::StallRequests,
    FaultKind::StallAnswers,
    FaultKind::StallWal,
    FaultKind::DoubleAnswer,
    FaultKind::BrokerRestart,
    FaultKind::BrokerAway,
    FaultKind::Overload,
    FaultKind::Poison,
    FaultKind::Foreign,
    FaultKind::PostgresCrash,
    FaultKind::BrokerCrash,
    FaultKind::SilentLoss,
];

/// What is done at a moment of a run.
#[derive(Debug, Clone, Copy)]
enum Step {
    Work,
    Fault(FaultKind),
    /// The command is run; one that is under way dies.
    Reshard(u32),
    /// It dies.
    KillCommand,
}

/// An outbox of so many shares, with nothing committed, and relays for these lanes.
fn outbox(mut world: World, settings: Settings, count: u32, relays: &[Part]) -> Simulation {
    let settings = Settings {
        shared: true,
        ..settings
    };
    world.postgres.divides = true;
    world.broker.shared = true;
    world.broker.parts = lanes::all().collect();
    store_first_record(None, &mut world);
    let mut simulation = Simulation::new(world, settings, 0);
    if count > 1 {
        simulation.command = Some(Command::new(count, Duration::ZERO));
        let until = Duration::from_secs(60);
        assert!(simulation.run(until, |simulation| simulation.command.is_none()));
    }
    for part in relays {
        simulation.start_relay_of(*part, Duration::ZERO);
    }
    simulation
}

/// The same in a world where nothing happens by itself; told as it goes where a seed is asked for.
fn quiet_outbox(seed: u64, count: u32, relays: &[Part]) -> Simulation {
    let verbose = std::env::var("SIMULATION_SEED").is_ok();
    let world = World::new(seed, verbose);
    outbox(world, crate::halts::settings(), count, relays)
}

impl Simulation {
    fn kill_command(&mut self) {
        if let Some(command) = self.command.take() {
            self.world.note(|| "the command is killed".into());
            command.kill(&mut self.world);
        }
    }

    fn reshard(&mut self, count: u32) {
        self.kill_command();
        self.world.note(|| format!("reshard --shares {count}"));
        self.command = Some(Command::new(count, self.world.now));
    }
}

/// Runs one seed; its history where it is asked for.
fn seed(seed: u64, verbose: bool) -> (World, Summary) {
    let mut world = World::new(seed, verbose);
    let mut settings = settings(&mut world);
    world.postgres.sql_ascii = false;
    world.may_lose = false;
    // Relays without a slot come again and again until the command has ended, which waits for the hold-back: that would be most of a run.
    world.sync_interval = world.sync_interval.min(Duration::from_secs(5));
    settings.hold_back = settings.hold_back.min(world.sync_interval * 3 / 2);
    settings.backoff_max = settings.backoff_max.max(Duration::from_secs(1));
    let mut kinds = &FAULTS[..FAULTS.len() - 2];
    if world.random.one_in(3) {
        kinds = &FAULTS;
        settings.hold_back = world.sync_interval * 3 / 2;
    }
    world.note(|| format!("{settings:?}"));
    let random = &mut world.random;
    let counts = [1, 2, lanes::SHARES_MAX];
    let first = random.pick(&counts);
    let last = random.pick(&counts);
    let rejects = random.one_in(2);
    // The lanes of the last number have relays, and of the others some: where none has one, the command publishes the rest.
    let mut relays: Vec<Part> = Vec::new();
    for part in lanes::all() {
        let is_needed = lanes_of(last).any(|other| other == part);
        if is_needed || !random.one_in(4) {
            relays.push(part);
        }
        if random.one_in(6) {
            relays.push(part);
        }
    }
    let span = random.millis(2_000, 40_000);
    let mut plan: Vec<(Duration, Step)> = Vec::new();
    for _ in 0..random.between(10, 80) {
        plan.push((span.mul_f64(random.fraction()), Step::Work));
    }
    for _ in 0..random.between(1, 5) {
        let at = span.mul_f64(random.fraction());
        plan.push((at, Step::Reshard(random.pick(&counts))));
        if random.one_in(2) {
            plan.push((at + random.millis(0, 4_000), Step::KillCommand));
        }
        // Right behind it, while lanes cross.
        for _ in 0..random.below(3) {
            let fault = Step::Fault(random.pick(kinds));
            plan.push((at + random.millis(0, 3_000), fault));
        }
    }
    let faults = random.below(6);
    for _ in 0..faults {
        let fault = Step::Fault(random.pick(kinds));
        plan.push((span.mul_f64(random.fraction()), fault));
    }
    plan.sort_by_key(|(at, _)| *at);
    let mut simulation = outbox(world, settings, first, &relays);
    let begun = simulation.world.now;
    let mut halted = false;
    for (at, step) in plan {
        simulation.run(begun + at, |_| false);
        if !simulation.revive() || simulation.world.failure.is_some() {
            halted = true;
            break;
        }
        match step {
            Step::Work => simulation.work(rejects),
            Step::Fault(fault) => simulation.world.inject(fault, &mut simulation.relays),
            Step::Reshard(count) => simulation.reshard(count),
            Step::KillCommand => simulation.kill_command(),
        }
    }
    if !halted {
        halted = !come_to_rest(&mut simulation, last);
    }
    verify(&mut simulation.world, !halted);
    simulation.end(faults, halted)
}

/// Heals everything and lets the last change come to its end, until all is published and confirmed; false when a relay has halted.
fn come_to_rest(simulation: &mut Simulation, count: u32) -> bool {
    if !simulation.revive() {
        return false;
    }
    simulation.world.heal(&mut simulation.relays);
    simulation.reshard(count);
    simulation.work(false);
    let limit = simulation.world.now + simulation.settings.hold_back * 4 + Duration::from_secs(400);
    let mut alive = true;
    let rested = simulation.run(limit, |simulation| {
        alive = simulation.revive();
        !alive || (simulation.command.is_none() && simulation.world.is_done())
    });
    if alive && !rested {
        let is_running = simulation.command.is_some();
        let text = format!("it does not come to rest; the command runs: {is_running}");
        simulation.world.fail(text);
    }
    alive
}

/// The verdict of each lane, and of each aggregate over all of them.
fn verify(world: &mut World, is_complete: bool) {
    world.verify(is_complete);
    world.verify_aggregates(is_complete);
}

/// It comes to rest in so many shares, with all in its place.
fn rests_well(mut simulation: Simulation, count: u32, what: &str) {
    assert!(come_to_rest(&mut simulation, count), "{what}");
    verify(&mut simulation.world, true);
    assert_eq!(simulation.world.failure, None, "{what}");
}

/// The command is killed behind each of its steps, and every other time all relays as well; the next run ends it, or takes it back.
#[test]
fn a_command_that_is_killed_at_any_step_is_ended_or_taken_back() {
    for (from, to) in [(1, 2), (4, 2)] {
        for steps in 0.. {
            let mut relays: Vec<Part> = lanes_of(from).chain(lanes_of(to)).collect();
            relays.sort_unstable();
            relays.dedup();
            let mut simulation = quiet_outbox(steps + 1, from, &relays);
            simulation.commit(5);
            simulation.reshard(to);
            let until = simulation.world.now + Duration::from_secs(60);
            let is_there = simulation.run(until, |simulation| {
                let run = simulation.command.as_ref();
                run.is_none_or(|run| run.steps == steps)
            });
            assert!(is_there, "{from} to {to}, {steps} steps");
            let is_done = simulation.command.is_none();
            simulation.kill_command();
            if steps % 2 == 0 {
                for relay in &mut simulation.relays {
                    relay.kill(&mut simulation.world);
                }
                assert!(simulation.revive());
            }
            simulation.commit(5);
            let last = if steps % 3 == 0 { from } else { to };
            rests_well(simulation, last, &format!("{from} to {to}, {steps} steps"));
            if is_done {
                break;
            }
        }
    }
}

/// A standby is promoted that lacks the place where the shares begin. What a record says of that place lets nobody across the next one,
/// which comes in front of where it was.
#[test]
fn a_place_that_is_no_more_lets_nobody_across_the_next_one() {
    let mut outbox = quiet_outbox(1, 1, &[None]);
    let becomes = |outbox: &mut Simulation, done: &dyn Fn(&World) -> bool| {
        let until = outbox.world.now + Duration::from_secs(60);
        assert!(outbox.run(until, |outbox| done(&outbox.world)));
    };
    outbox.commit(5);
    outbox.rest();
    outbox.reshard(2);
    becomes(&mut outbox, &|world| record(Some(1), world).is_some());
    outbox.kill_command();
    let kept = outbox.world.postgres.end_lsn;
    for _ in 0..5 {
        let world = &mut outbox.world;
        world.postgres.write_other(&mut world.random);
    }
    outbox.reshard(2);
    // An event that is lost with the place would be for a person.
    outbox.command.as_mut().expect("it runs").is_quiet = true;
    becomes(&mut outbox, &|world| {
        record(None, world).is_some_and(|(_, record)| record.switched_lsn.is_some())
    });
    outbox.kill_command();
    outbox.kill();
    let (_, lost) = record(None, &outbox.world).expect("it is across");

    let postgres = &mut outbox.world.postgres;
    postgres.restore(kept, kept);
    let file = format!("1\t{}\tpromoted", PgLsn::from(kept));
    postgres.history = History::parse(2, &file).expect("a history");
    postgres.start();
    outbox.commit(5);
    outbox.reshard(2);
    becomes(&mut outbox, &|world| {
        world.postgres.publications.count() == 2
    });
    outbox.kill_command();
    assert!(Some(outbox.world.postgres.end_lsn.into()) < lost.switched_lsn);
    outbox.commit(5);
    let before = outbox.world.broker.events.places.len();
    outbox.start_relay_of(Some(0), Duration::ZERO);
    outbox.start_relay_of(Some(1), Duration::ZERO);
    outbox.pause(Duration::from_secs(30));
    assert_eq!(outbox.world.broker.events.places.len(), before);
    outbox.start_relay_of(None, Duration::ZERO);
    rests_well(outbox, 2, "across the next place");
}

#[test]
fn changes_of_shares() {
    crate::play("changes_of_shares", seed, 8);
}
