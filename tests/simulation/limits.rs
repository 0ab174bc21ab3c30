//! How large a message may be, raised while relays run: nobody tells them.

use crate::halts::{lane, settings};
use crate::relay::Settings;
use crate::run::Simulation;
use crate::world::World;
use std::time::Duration;
use walrelay::pipeline::engine::Engine;
use walrelay::pipeline::fault::Fault;
use walrelay::pipeline::limit::SizeLimit;

/// As `relay::drive`: another connection tells after a while, or comes to nothing.
pub(crate) fn look_at_limit(
    engine: &mut Engine,
    limit_at: &mut Option<Duration>,
    world: &mut World,
) -> Result<(), Fault> {
    if limit_at.take_if(|at| *at <= world.now).is_some() {
        let limit = SizeLimit::smaller(world.message_bytes_max, None);
        let limit = Some(limit).filter(|_| world.limit_can_be_seen);
        engine.handle_limit(limit, world.now)?;
    }
    Ok(())
}

/// Commits a row between two others; `len` is its payload's.
fn commit_large(lane: &mut Simulation, len: usize, rejected: bool) {
    let world = &mut lane.world;
    let mut row = world.postgres.row(&mut world.random, false);
    row.values[5] = Some(format!("\"{}\"", "y".repeat(len)).into_bytes());
    row.rejected = rejected;
    let good = [(); 2].map(|()| world.postgres.row(&mut world.random, false));
    let [before, behind] = good;
    world
        .postgres
        .commit(vec![before, row, behind], &mut world.random);
}

fn at_rest(mut lane: Simulation) -> Simulation {
    lane.commit(3);
    lane.rest();
    // What the start has seen stands no more.
    lane.pause(Duration::from_secs(10));
    lane
}

fn is_sound(lane: &mut Simulation, messages: u64) {
    assert_eq!(lane.world.broker.events.published().len() as u64, messages);
    lane.world.verify(false);
    assert_eq!(lane.world.failure, None);
}

#[test]
fn a_row_that_fits_by_a_limit_that_was_raised_is_an_event() {
    for halt_on_reject in [false, true] {
        for shared in [false, true] {
            let mut lane = lane(Settings {
                halt_on_reject,
                shared,
                ..settings()
            });
            lane.world.broker.shared = shared;
            let mut lane = at_rest(lane);
            lane.world.message_bytes_max = 30_000;
            // Of two sizes: a column that was gathered, and one that was not.
            for len in [2_900, 20_000] {
                commit_large(&mut lane, len, false);
                lane.rest();
            }
            assert_eq!(lane.world.limit_looks, 1);
            is_sound(&mut lane, 12);
        }
    }
}

#[test]
fn a_flood_of_rows_that_are_too_large_asks_once_in_a_while() {
    let mut lane = at_rest(lane(settings()));
    for _ in 0..100 {
        commit_large(&mut lane, 5_000, true);
    }
    let begun = lane.relays[0].epochs_begun;
    lane.rest();
    assert_eq!(lane.world.limit_looks, 1);
    lane.pause(Duration::from_secs(10));
    commit_large(&mut lane, 5_000, true);
    lane.rest();
    assert_eq!(lane.world.limit_looks, 2);
    assert_eq!(lane.relays[0].epochs_begun, begun);
    is_sound(&mut lane, 6 + 303);
}

#[test]
fn a_limit_that_was_raised_but_not_by_enough_ends_no_epoch() {
    let mut lane = at_rest(lane(settings()));
    let begun = lane.relays[0].epochs_begun;
    lane.world.message_bytes_max = 4_000;
    commit_large(&mut lane, 5_000, true);
    lane.rest();
    assert_eq!(lane.relays[0].epochs_begun, begun);
    is_sound(&mut lane, 9);
}

#[test]
fn where_nobody_can_look_the_row_is_as_large_as_it_was() {
    let mut lane = at_rest(lane(settings()));
    lane.world.limit_can_be_seen = false;
    lane.world.message_bytes_max = 30_000;
    commit_large(&mut lane, 5_000, true);
    lane.rest();
    assert_eq!(lane.world.limit_looks, 1);
    is_sound(&mut lane, 9);
}
