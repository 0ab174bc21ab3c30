//! A lane in a stream that others write to: what seeds have found there, each in its shortest form.

use crate::halts::{lane, settings};
use crate::relay::{Outcome, Settings};
use crate::run::Simulation;
use std::time::Duration;
use walrelay::pipeline::fault::Halt;

fn shared_lane() -> Simulation {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(60),
        shared: true,
        ..settings()
    });
    lane.world.broker.shared = true;
    lane
}

/// An atomic batch is stored whole or not at all: the lane gets past none of its refused rows before all are known.
/// Seed 1534.
#[test]
fn several_refused_rows_of_one_batch_become_dead_letters() {
    let mut lane = shared_lane();
    let world = &mut lane.world;
    let rows: Vec<_> = (0..6)
        .map(|_| world.postgres.row(&mut world.random, false))
        .collect();
    for refused in [1, 2, 4] {
        let id = rows[refused].values[0].clone().expect("an id");
        let id = String::from_utf8(id).expect("text");
        world.broker.poison.push(id);
    }
    world.postgres.commit(rows, &mut world.random);
    lane.rest_and_judge();
    // The second time that the batch is incomplete its rows go one by one, and each refused one ends an epoch.
    assert_eq!(lane.relays[0].epochs_begun, 6);
}

/// A batch that is larger than nats-server is configured for is refused, and the next ones are as large as it takes.
#[test]
fn a_broker_that_takes_smaller_batches_gets_them() {
    for messages_max in [2, 3, 10, 1_000] {
        let mut lane = shared_lane();
        lane.world.broker.batch_messages_max = messages_max;
        let world = &mut lane.world;
        let rows: Vec<_> = (0..60)
            .map(|_| world.postgres.row(&mut world.random, false))
            .collect();
        world.postgres.commit(rows, &mut world.random);
        lane.rest();
        lane.commit(50);
        lane.rest();
        lane.world.verify(true);
        assert_eq!(lane.world.failure, None);
        let begun = lane.relays[0].epochs_begun;
        assert_eq!(begun, 1 + u64::from(messages_max < 60), "{messages_max}");
    }
}

/// A batch has two messages at least.
#[test]
fn a_broker_that_takes_no_batches_halts_the_lane() {
    let mut lane = shared_lane();
    lane.world.broker.batch_messages_max = 1;
    lane.commit(1);
    let until = lane.world.now + Duration::from_secs(60);
    assert!(lane.run(until, |lane| lane.relays[0].outcome().is_some()));
    let Some(Outcome::Halted(Halt::Stuck(fault))) = lane.relays[0].outcome() else {
        panic!("{:?}", lane.relays[0].outcome())
    };
    assert!(
        fault
            .to_string()
            .contains("jetstream.limits.batch.max_msgs"),
        "{fault}"
    );
}

/// From a stream from which nothing was ever removed a missing fence was lost; what survived of its batch counts.
/// Seed 2554.
#[test]
fn a_power_failure_takes_fences_and_foreign_messages_come() {
    for survive in 0..=5 {
        for foreign in [0, 1, 7] {
            let mut lane = shared_lane();
            lane.commit(3);
            lane.pause(Duration::from_secs(2));
            lane.kill();
            lane.world.broker.lose((survive, u64::MAX));
            for _ in 0..foreign {
                lane.world.broker.publish_foreign();
            }
            lane.start_relay(Duration::ZERO);
            lane.rest();
            lane.world.verify(true);
            assert_eq!(lane.world.failure, None, "{survive} {foreign}");
        }
    }
}

/// What the record tells lies behind the end of the stream, which was set back; what there was before was removed. Once all
/// of it was published again. Seed 2762. And the record's message was once taken for removed where a foreign one stands, with
/// nothing behind it. Seed 5525.
#[test]
fn a_power_failure_behind_a_purge_halts() {
    for foreign in [0, 1, 2, 7] {
        let mut lane = shared_lane();
        lane.commit(3);
        lane.pause(Duration::from_secs(2));
        lane.kill();
        let last = lane.world.broker.events.last_seq;
        lane.world.broker.events.remove(1..last);
        lane.world.broker.lose((last - 1, u64::MAX));
        for _ in 0..foreign {
            lane.world.broker.publish_foreign();
        }
        lane.start_relay(Duration::ZERO);
        lane.commit(1);
        lane.pause(Duration::from_secs(100));
        let outcome = lane.relays[0].outcome();
        let is_right = matches!(
            outcome,
            Some(Outcome::Halted(
                Halt::EndRemoved { .. } | Halt::Replaced { .. }
            ))
        );
        assert!(is_right, "{foreign}: {outcome:?}");
        assert_eq!(lane.world.failure, None);
    }
}

/// A lane that had the stream for itself has no fences from then; nothing of it comes twice, whether or not something was
/// removed, and however often the stream changes hands.
#[test]
fn a_stream_of_the_lanes_own_that_becomes_shared() {
    for removed in [0, 3] {
        for foreign in [0, 2, 300] {
            let mut lane = shared_lane();
            for is_shared in [false, true, false, true] {
                lane.settings.shared = is_shared;
                lane.world.broker.shared = is_shared;
                lane.start_relay(Duration::ZERO);
                lane.relays.drain(..lane.relays.len() - 1);
                lane.commit(4);
                lane.pause(Duration::from_secs(3));
                lane.stop();
                lane.world.broker.events.remove(1..=removed);
                if is_shared {
                    continue;
                }
                for _ in 0..foreign {
                    lane.world.broker.publish_foreign();
                }
            }
            assert_eq!(lane.world.failure, None, "{removed} {foreign}");
            lane.start_relay(Duration::ZERO);
            lane.rest();
            lane.world.verify(true);
            assert_eq!(lane.world.failure, None, "{removed} {foreign}");
        }
    }
}
