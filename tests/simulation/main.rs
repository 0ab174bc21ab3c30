//! The whole pipeline in a world of its own: seeded, offline, in virtual time.
//!
//! `SIMULATION_SEED=n cargo test --test simulation seeds` replays one seed with its history;
//! `SIMULATION_SEEDS=n` runs so many. What is simulated and what is not: the servers, the connections and the time
//! are; every decision is the code's own. The checker knows what was committed and what the stream has.

mod broker;
mod command;
mod halts;
mod lanes;
mod limits;
mod net;
mod outboxes;
mod postgres;
mod random;
mod regressions;
mod relay;
mod replicas;
mod resync;
mod run;
mod shared;
mod shares;
mod tables;
mod transport;
mod wire;
mod world;

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Runs one seed; its history where it is asked for.
type Run = fn(seed: u64, verbose: bool) -> (world::World, run::Summary);

/// Runs a seed; what went wrong, if anything.
fn failure(run: Run, seed: u64, verbose: bool) -> Result<run::Summary, String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, verbose))) {
        Ok((world, summary)) => match world.failure {
            None => Ok(summary),
            Some(failure) => Err(failure),
        },
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".into())),
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds() {
    play("seeds", run::seed, 1_000);
}

/// As many as are wanted, or `count`.
fn play(test: &str, run: Run, count: u64) {
    if let Some(seed) = variable("SIMULATION_SEED") {
        let summary = failure(run, seed, true).expect("the seed passes");
        eprintln!("{summary:?}");
        return;
    }
    let first = variable("SIMULATION_FIRST").unwrap_or(1);
    let count = variable("SIMULATION_SEEDS").unwrap_or(count);
    // Each is a world of its own, so the processors share them.
    let next = AtomicU64::new(first);
    let work = || {
        let mut runs = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return runs;
            }
            runs.push((seed, failure(run, seed, false)));
        }
    };
    let mut runs = thread::scope(|scope| {
        let threads: Vec<_> = (0..thread::available_parallelism().map_or(1, NonZero::get))
            .map(|_| scope.spawn(work))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .flat_map(|runs| runs.expect("a seed's panic is caught"))
            .collect::<Vec<_>>()
    });
    runs.sort_unstable_by_key(|(seed, _)| *seed);
    let mut failed = Vec::new();
    let mut total = run::Summary::default();
    let mut halted = 0;
    for (seed, outcome) in runs {
        match outcome {
            Ok(summary) => {
                total.events += summary.events;
                total.faults += summary.faults;
                total.epochs += summary.epochs;
                total.virtual_time += summary.virtual_time;
                halted += u64::from(summary.halted);
            }
            Err(text) => failed.push((seed, text)),
        }
    }
    eprintln!("{count} seeds, {halted} halted for a person, together {total:?}");
    for (seed, text) in failed.iter().take(60) {
        eprintln!("seed {seed}: {text}");
    }
    assert!(
        failed.is_empty(),
        "{} of {count} seeds fail; replay one: SIMULATION_SEED={} cargo test --test simulation {test} -- --nocapture",
        failed.len(),
        failed[0].0,
    );
}
