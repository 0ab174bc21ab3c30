//! What seeds have found, each in its shortest form.

use crate::halts::{lane, settings};
use crate::relay::{Outcome, Settings};
use crate::run::Simulation;
use std::time::Duration;
use walrelay::pipeline::fault::Halt;

/// A start replicates from the stream's last transaction; a keepalive in front of it was confirmed at once, and with it
/// the younger events between the slot and that transaction. Seed 696 of the first faults.
#[test]
fn a_start_does_not_confirm_young_events_by_a_keepalive() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(30),
        ..settings()
    });
    lane.commit(20);
    let end = lane.world.now + Duration::from_secs(3);
    lane.run(end, |_| false);
    let confirmed = lane.world.postgres.slot(None).confirmed_lsn;
    for _ in 0..10 {
        lane.kill();
        lane.start_relay(Duration::ZERO);
        lane.pause(Duration::from_millis(800));
        assert_eq!(lane.world.postgres.slot(None).confirmed_lsn, confirmed);
    }
    lane.rest();
}

/// A stream recreated between the taking of the slot and the second look at the stream. Seed 1061.
#[test]
fn a_stream_recreated_while_the_slot_is_taken_loses_nothing() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(30),
        ..settings()
    });
    lane.commit(5);
    lane.pause(Duration::from_secs(5));
    lane.kill();
    lane.start_relay(Duration::ZERO);
    let until = lane.world.now + Duration::from_secs(5);
    assert!(lane.run(until, |lane| lane.relays[0].has_just_taken_slot()));
    lane.world.broker.recreate();
    lane.commit(1);
    lane.rest_and_judge();
    assert_eq!(lane.world.broker.events.places.len(), 12);
}

/// The broker refuses a row for good and everything for a while: the row is remembered. Seed 107.
#[test]
fn a_refused_row_is_not_forgotten_over_other_faults() {
    let mut lane = lane(settings());
    lane.commit(2);
    lane.rest();
    let row = lane.world.postgres.row(&mut lane.world.random, false);
    let id = row.values[0].clone().expect("not null");
    lane.world
        .broker
        .poison
        .push(String::from_utf8(id).expect("text"));
    lane.world
        .postgres
        .commit(vec![row], &mut lane.world.random);
    lane.commit(1);
    let mut refused = 0;
    for _ in 0..20 {
        lane.pause(Duration::from_millis(30));
        refused += 1;
        lane.world.broker.refusal = (refused % 2 == 1).then_some((429, 10_167));
    }
    lane.world.broker.refusal = None;
    lane.rest_and_judge();
}

/// The broker names no message of the batch when it refuses one for its size: the reply subject does.
#[test]
fn the_row_that_the_broker_refuses_becomes_the_dead_letter_and_no_other() {
    let mut lane = lane(settings());
    lane.commit(1);
    lane.rest();
    let rows: Vec<_> = (0..5)
        .map(|_| lane.world.postgres.row(&mut lane.world.random, false))
        .collect();
    let id = rows[3].values[0].clone().expect("not null");
    lane.world
        .broker
        .poison
        .push(String::from_utf8(id).expect("text"));
    lane.world.postgres.commit(rows, &mut lane.world.random);
    lane.rest_and_judge();
}

/// The broker loses its unsynced end, others write as many messages, the rest is purged. Seed 1741.
#[test]
fn a_removal_does_not_hide_a_loss() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(30),
        ..settings()
    });
    lane.commit(5);
    lane.pause(Duration::from_secs(5));
    lane.kill();
    lane.world.broker.lose((7, u64::MAX));
    for _ in 0..3 {
        lane.world.broker.publish_foreign();
    }
    lane.world.broker.events.remove(1..=7);
    lane.start_relay(Duration::ZERO);
    lane.pause(Duration::from_secs(60));
    // How far the lane came is told by nothing: a person has to look.
    lane.world.verify(false);
    assert_eq!(lane.world.failure, None);
    assert!(lane.relays[0].outcome().is_some());
}

/// An idle lane whose last two events the broker has lost without a word, behind a connection that stays.
fn silently_shortened() -> Simulation {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(60),
        ..settings()
    });
    lane.commit(5);
    lane.pause(Duration::from_secs(12));
    lane.world.broker.lose((8, u64::MAX));
    lane.world.broker.publish_foreign();
    lane.world.broker.publish_foreign();
    lane
}

#[test]
fn a_silent_loss_is_seen_while_the_lane_is_idle() {
    let mut lane = silently_shortened();
    lane.pause(Duration::from_secs(6));
    lane.rest_and_judge();
    assert_eq!(lane.relays[0].epochs_begun, 2);
}

#[test]
fn a_silent_loss_that_events_have_hidden_is_never_confirmed() {
    let mut lane = silently_shortened();
    // It fits behind the foreign messages.
    lane.commit(1);
    let until = lane.world.now + Duration::from_secs(120);
    assert!(lane.run(until, |lane| lane.relays[0].outcome().is_some()));
    let halt = match lane.relays[0].outcome() {
        Some(Outcome::Halted(halt)) => halt,
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(halt, Halt::Replaced { sequence: 10, .. }),
        "{halt:?}"
    );
    // Nor after any number of starts, nor where a foreign message ends the epoch first.
    lane.relays.clear();
    lane.world.broker.publish_foreign();
    lane.start_relay(Duration::ZERO);
    lane.commit(1);
    lane.pause(Duration::from_secs(200));
    assert!(matches!(
        lane.relays[0].outcome(),
        Some(Outcome::Halted(Halt::Replaced { .. }))
    ));
    let confirmed = lane
        .world
        .postgres
        .slot(None)
        .confirmed_lsn
        .expect("a slot");
    let lost = lane.world.postgres.events(None).nth(8).expect("committed");
    assert!(
        confirmed < lost.1,
        "Postgres still has what the broker lost"
    );
}

/// The halt is kept: another relay halts as well, though the record that named the lost message was lost with it.
/// Seed 9987.
#[test]
fn a_second_relay_does_not_pass_what_the_first_has_halted_for() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(60),
        ..settings()
    });
    lane.start_relay(Duration::from_millis(10));
    lane.commit(5);
    lane.pause(Duration::from_secs(12));
    lane.commit(1);
    lane.pause(Duration::from_millis(800));
    // The record before names a message that is still there.
    let records = lane.world.broker.records.last_seq;
    lane.world.broker.lose((11, records - 1));
    lane.world.broker.publish_foreign();
    // They fit behind the foreign message.
    lane.commit(3);
    let until = lane.world.now + Duration::from_secs(200);
    let all_halted = lane.run(until, |lane| {
        let mut outcomes = lane.relays.iter().map(|relay| relay.outcome());
        outcomes.all(|outcome| matches!(outcome, Some(Outcome::Halted(Halt::Replaced { .. }))))
    });
    assert!(all_halted);
    assert_eq!(lane.world.failure, None);
}

/// Somebody recreates the stream, and somebody publishes: what stands in the place of the message that the record names says
/// nothing about a lane that has nothing there. Seed 4205.
#[test]
fn a_recreated_stream_with_a_foreign_message_is_filled_again() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(60),
        ..settings()
    });
    lane.commit(1);
    lane.pause(Duration::from_secs(3));
    for _ in 0..2 {
        lane.commit(1);
        lane.pause(Duration::from_millis(100));
    }
    lane.world.broker.recreate();
    for _ in 0..5 {
        lane.world.broker.publish_foreign();
    }
    lane.pause(Duration::from_secs(2));
    lane.rest_and_judge();
}

/// `run --from`: again what the stream has, once, whatever ends the epochs behind it.
#[test]
fn a_replay_is_done_once() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(2),
        ..settings()
    });
    let from = lane.world.postgres.end_lsn;
    lane.commit(3);
    lane.pause(Duration::from_secs(1));
    lane.stop();
    let published = lane.world.broker.events.last_seq;
    lane.settings.from = Some(from);
    lane.start_relay(Duration::ZERO);
    lane.commit(1);
    lane.pause(Duration::from_secs(10));
    assert_eq!(lane.world.broker.events.last_seq, published * 2 + 2);
    for _ in 0..3 {
        lane.world.broker.publish_foreign();
        lane.commit(1);
        lane.pause(Duration::from_secs(5));
    }
    assert_eq!(lane.world.broker.events.last_seq, published * 2 + 2 + 9);
    lane.rest_and_judge();
}

/// A transaction without events in front of the stream's end confirmed at once, and with it the younger events between
/// the slot and it that `--from` passes over. Issue: a broker that then went back had lost them for good.
#[test]
fn a_replay_does_not_confirm_young_events_by_a_transaction_without_events() {
    let mut lane = lane(Settings {
        hold_back: Duration::from_secs(30),
        ..settings()
    });
    lane.commit(5);
    lane.pause(Duration::from_secs(1));
    lane.settings.from = Some(lane.world.postgres.end_lsn);
    lane.world
        .postgres
        .commit_other_table(&mut lane.world.random);
    lane.commit(1);
    lane.pause(Duration::from_secs(1));
    let confirmed = lane.world.postgres.slot(None).confirmed_lsn;
    for _ in 0..10 {
        lane.kill();
        lane.start_relay(Duration::ZERO);
        lane.pause(Duration::from_millis(800));
        assert_eq!(lane.world.postgres.slot(None).confirmed_lsn, confirmed);
    }
    lane.settings.from = None;
    lane.rest();
    lane.world.verify(true);
}

/// `run --from` says what is to come again, not where a lane begins: what was never published is not skipped, be the lane
/// fresh or its stream made again.
#[test]
fn a_replay_skips_nothing_where_the_stream_has_nothing() {
    for published in [false, true] {
        let mut lane = lane(Settings {
            hold_back: Duration::from_secs(60),
            ..settings()
        });
        lane.commit(3);
        if published {
            lane.pause(Duration::from_secs(1));
        }
        lane.kill();
        if published {
            lane.world.broker.recreate();
        }
        lane.commit(2);
        lane.settings.from = Some(lane.world.postgres.end_lsn);
        lane.start_relay(Duration::ZERO);
        lane.pause(Duration::from_secs(1));
        // Nothing of it comes a second time later on.
        lane.world.broker.publish_foreign();
        lane.commit(1);
        lane.rest();
        lane.world.verify(true);
        assert_eq!(lane.world.failure, None, "published: {published}");
    }
}

/// With `on_reject = "halt"` the stream need not take the dead letters' subject; a batch must be committed all the same.
#[test]
fn a_batch_is_committed_on_a_subject_that_the_stream_takes() {
    let mut lane = lane(Settings {
        halt_on_reject: true,
        // The window fills behind the batch's second acknowledgement, and no further row comes.
        messages_max: 401,
        ..settings()
    });
    lane.world.broker.takes_dead_letters = false;
    let world = &mut lane.world;
    let rows = (0..401)
        .map(|_| world.postgres.row(&mut world.random, false))
        .collect();
    world.postgres.commit(rows, &mut world.random);
    lane.rest_and_judge();
    assert_eq!(lane.relays[0].epochs_begun, 1);
}

/// Somebody else's message behind the lane's last, all of it purged, and then an event: it was refused, and no other was on
/// its way, so the relay knows that the removed message was not the lane's.
#[test]
fn a_foreign_message_and_a_purge_behind_a_lane_at_rest_halt_nobody() {
    for allow_batched in [false, true] {
        let mut lane = lane(settings());
        lane.world.broker.allow_batched = allow_batched;
        lane.commit(3);
        lane.rest();
        lane.pause(Duration::from_secs(3));
        lane.world.broker.publish_foreign();
        let all: Vec<u64> = lane.world.broker.events.messages.keys().copied().collect();
        lane.world.broker.events.remove(all.into_iter());
        lane.commit(3);
        lane.rest();
        assert_eq!(lane.relays[0].outcome(), None, "batched: {allow_batched}");
        lane.world.verify(true);
        assert_eq!(lane.world.failure, None);
    }
}
