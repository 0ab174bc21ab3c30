//! What a trouble with one side leaves to the next epoch.

use crate::halts::{lane, settings};
use crate::relay::Settings;
use crate::run::Simulation;
use crate::world::FaultKind;
use std::time::Duration;

const HOLD_BACK: Duration = Duration::from_secs(20);

fn held_back() -> Settings {
    Settings {
        hold_back: HOLD_BACK,
        ..settings()
    }
}

impl Simulation {
    fn inject(&mut self, fault: FaultKind) {
        self.world.inject(fault, &mut self.relays);
    }

    /// Commits each second, with that trouble; how many seconds until the first of it is confirmed.
    fn troubled(&mut self, fault: FaultKind) -> u64 {
        self.commit(1);
        let first = self.world.postgres.end_lsn;
        let mut seconds = 0;
        while self.world.postgres.confirmed_lsn < Some(first) {
            self.inject(fault);
            self.pause(Duration::from_secs(1));
            self.commit(1);
            seconds += 1;
            assert!(seconds < 200, "the slot does not move");
        }
        seconds
    }
}

/// The marks of the hold-back outlive epochs: events are not held back anew with each.
#[test]
fn the_slot_moves_on_time_with_a_trouble_each_second() {
    for fault in [
        FaultKind::Foreign,
        FaultKind::CutNats,
        FaultKind::CutPostgres,
    ] {
        let mut lane = lane(held_back());
        lane.commit(1);
        lane.pause(Duration::from_secs(1));
        let seconds = lane.troubled(fault);
        assert!(
            (20..=24).contains(&seconds),
            "{fault:?}: confirmed after {seconds} s"
        );
        lane.rest();
        lane.world.verify(true);
        assert_eq!(lane.world.failure, None);
    }
}

/// A server that was killed does not sync what it had acknowledged before: its hold-back begins anew.
#[test]
fn a_broker_that_was_started_anew_is_given_the_whole_time_again() {
    let mut lane = lane(held_back());
    lane.commit(3);
    let before = lane.world.postgres.confirmed_lsn;
    for _ in 0..4 {
        lane.pause(Duration::from_secs(15));
        lane.inject(FaultKind::BrokerRestart);
    }
    assert_eq!(lane.world.postgres.confirmed_lsn, before);
    lane.rest();
}
