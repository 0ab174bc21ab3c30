//! What a trouble with one side leaves to the next epoch.

use crate::halts::{lane, settings};
use crate::relay::{Outcome, Settings};
use crate::run::Simulation;
use crate::world::FaultKind;
use std::time::Duration;
use walrelay::pipeline::fault::Halt;

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
        while self.world.postgres.slot(None).confirmed_lsn < Some(first) {
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
        lane.rest_and_judge();
    }
}

/// A server that was killed does not sync what it had acknowledged before: its hold-back begins anew.
#[test]
fn a_broker_that_was_started_anew_is_given_the_whole_time_again() {
    let mut lane = lane(held_back());
    lane.commit(3);
    let before = lane.world.postgres.slot(None).confirmed_lsn;
    for _ in 0..4 {
        lane.pause(Duration::from_secs(15));
        lane.inject(FaultKind::BrokerRestart);
    }
    assert_eq!(lane.world.postgres.slot(None).confirmed_lsn, before);
    lane.rest();
}

/// The walsender that serves the slot, by how often one was started.
#[test]
fn a_trouble_with_the_broker_costs_no_walsender() {
    for fault in [
        FaultKind::Foreign,
        FaultKind::CutNats,
        FaultKind::StallAnswers,
        FaultKind::DoubleAnswer,
        FaultKind::Overload,
        FaultKind::Full,
        FaultKind::BrokerRestart,
        FaultKind::BrokerAway,
    ] {
        for shared in [false, true] {
            let mut settings = held_back();
            settings.shared = shared;
            let mut lane = lane(settings);
            lane.world.broker.shared = shared;
            lane.commit(2);
            lane.pause(Duration::from_secs(2));
            for _ in 0..5 {
                lane.commit(30);
                lane.pause(Duration::from_millis(3));
                lane.inject(fault);
                lane.pause(Duration::from_secs(20));
            }
            lane.rest_and_judge();
            assert_eq!(lane.world.postgres.slot(None).walsenders, 1, "{fault:?}");
        }
    }
}

/// Rows that were acknowledged are not kept: where the broker has lost them, the slot has them.
#[test]
fn a_loss_is_read_again_from_the_wal() {
    let mut lane = lane(held_back());
    lane.commit(10);
    lane.pause(Duration::from_secs(1));
    lane.world.broker.lose((5, u64::MAX));
    lane.commit(1);
    lane.inject(FaultKind::CutNats);
    lane.rest_and_judge();
    assert_eq!(lane.world.broker.events.places.len(), 22);
    assert_eq!(lane.world.postgres.slot(None).walsenders, 2);
}

/// Frozen past every time-out, with rows in flight, while another relay took the slot.
#[test]
fn a_relay_that_was_overtaken_does_not_go_on_by_itself() {
    let mut lane = lane(held_back());
    lane.commit(5);
    lane.pause(Duration::from_secs(1));
    lane.commit(20);
    lane.pause(Duration::from_micros(800));
    let thaws = lane.world.now + Duration::from_secs(100);
    lane.relays[0].frozen_until = thaws;
    lane.start_relay(Duration::ZERO);
    lane.pause(Duration::from_secs(60));
    assert!(lane.relays[1].is_streaming());
    lane.commit(3);
    lane.pause(Duration::from_secs(50));
    lane.commit(3);
    lane.rest_and_judge();
    assert!(!lane.relays[0].is_streaming() && lane.relays[1].is_streaming());
}

/// The row that halts the lane waits for those before it, also where they have to be sent again.
#[test]
fn a_rejected_row_halts_behind_rows_that_are_sent_again() {
    let mut lane = lane(Settings {
        halt_on_reject: true,
        ..held_back()
    });
    lane.commit(1);
    lane.pause(Duration::from_secs(1));
    let mut rows: Vec<_> = (0..20)
        .map(|_| lane.world.postgres.row(&mut lane.world.random, false))
        .collect();
    rows.last_mut().expect("a row").values[0] = None;
    lane.world.postgres.commit(rows, &mut lane.world.random);
    lane.inject(FaultKind::StallRequests);
    lane.pause(Duration::from_millis(20));
    lane.inject(FaultKind::CutNats);
    let until = lane.world.now + Duration::from_secs(30);
    assert!(lane.run(until, |lane| lane.relays[0].outcome().is_some()));
    let outcome = lane.relays[0].outcome().expect("it has ended");
    assert!(
        matches!(outcome, Outcome::Halted(Halt::Rejected { .. })),
        "{outcome:?}"
    );
    assert_eq!(lane.world.broker.events.places.len(), 2 + 19);
    assert_eq!(lane.world.postgres.slot(None).walsenders, 1);
}

#[test]
fn a_relay_that_looks_for_its_broker_stops_at_once() {
    let mut lane = lane(held_back());
    lane.commit(3);
    lane.pause(Duration::from_secs(1));
    lane.inject(FaultKind::BrokerAway);
    lane.pause(Duration::from_secs(1));
    assert!(lane.relays[0].is_resyncing());
    let now = lane.world.now;
    lane.relays[0].stop(now);
    lane.pause(Duration::from_millis(100));
    assert_eq!(lane.relays[0].outcome(), Some(&Outcome::Stopped));
    lane.pause(Duration::from_secs(5));
    assert!(lane.world.postgres.slot(None).walsender.is_none());
}
