//! The outbox is replaced under the relay, and rows that are no text.

use crate::halts::{lane, settings};
use crate::postgres::NO_TEXT;
use crate::relay::Settings;
use std::time::Duration;

/// What is the outbox at an LSN is the same each time it is read, whatever the catalog says by then.
#[test]
fn a_table_that_is_replaced_by_a_copy_loses_and_doubles_nothing() {
    for is_running in [true, false] {
        // All of it is read again by each start.
        let mut lane = lane(Settings {
            hold_back: Duration::from_secs(60),
            ..settings()
        });
        lane.commit(5);
        lane.pause(Duration::from_secs(2));
        if !is_running {
            lane.kill();
        }
        for _ in 0..2 {
            let world = &mut lane.world;
            world.postgres.replace_table(&mut world.random);
            // Also rows of the table that was the outbox.
            for _ in 0..4 {
                world.postgres.commit_other_table(&mut world.random);
            }
            lane.commit(1);
            if is_running {
                lane.pause(Duration::from_secs(2));
                lane.kill();
            }
            lane.start_relay(Duration::ZERO);
            lane.pause(Duration::from_secs(2));
            if !is_running {
                lane.kill();
            }
        }
        if !is_running {
            lane.start_relay(Duration::ZERO);
        }
        lane.rest_and_judge();
        assert_eq!(lane.world.broker.events.places.len(), 10 + 2 * 3);
    }
}

/// A server of another encoding would stop in front of it, at each attempt.
#[test]
fn a_row_that_is_no_text_becomes_a_dead_letter_and_stops_nothing() {
    let mut lane = lane(settings());
    let world = &mut lane.world;
    world.postgres.sql_ascii = true;
    for column in [2, 5] {
        let mut row = world.postgres.row(&mut world.random, false);
        row.values[column] = Some(NO_TEXT.to_vec());
        row.rejected = true;
        world.postgres.commit(vec![row], &mut world.random);
        world.postgres.commit_other_table(&mut world.random);
    }
    lane.commit(1);
    lane.rest_and_judge();
    assert_eq!(lane.world.broker.events.places.len(), 4);
}
