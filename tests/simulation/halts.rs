//! What must halt: the right reason, nothing published, nothing confirmed.

use crate::broker::{Frame, STREAM};
use crate::relay::{Outcome, SLOT, Settings};
use crate::run::Simulation;
use crate::world::World;
use postgres_types::PgLsn;
use std::time::Duration;
use walrelay::nats::stream::lane_record_subject;
use walrelay::pipeline::engine::RowPresence;
use walrelay::pipeline::fault::{Blocks, Halt};
use walrelay::pipeline::history::History;
use walrelay::pipeline::record::RecordOrNote;

pub(crate) fn settings() -> Settings {
    Settings {
        hold_back: Duration::ZERO,
        ack_timeout: Duration::from_secs(5),
        status_interval: Duration::from_secs(10),
        backoff_max: Duration::from_secs(1),
        messages_max: 1_000,
        bytes_max: 1 << 20,
        held_bytes_max: 1 << 40,
        halt_on_reject: false,
        from: None,
        part: None,
        shared: false,
        further: Vec::new(),
    }
}

/// A lane with one relay, nothing published yet.
pub(crate) fn lane(settings: Settings) -> Simulation {
    let verbose = std::env::var("SIMULATION_SEED").is_ok();
    Simulation::new(World::new(1, verbose), settings, 1)
}

impl Simulation {
    /// Commits transactions of two rows each.
    pub(crate) fn commit(&mut self, transactions: u64) {
        for _ in 0..transactions {
            let world = &mut self.world;
            let rows = (0..2)
                .map(|_| world.postgres.row(&mut world.random, false))
                .collect();
            world.postgres.commit(rows, &mut world.random);
        }
    }

    /// Lets time pass until all is published and confirmed.
    pub(crate) fn rest(&mut self) {
        let until = self.world.now + Duration::from_secs(400);
        let rested = self.run(until, |simulation| {
            simulation.world.is_done() || simulation.relays.iter().any(|r| r.outcome().is_some())
        });
        assert_eq!(self.world.failure, None);
        assert!(
            rested && self.world.is_done(),
            "{:?}",
            self.relays[0].outcome()
        );
    }

    /// The same; each event that was committed is published once, in order.
    pub(crate) fn rest_and_judge(&mut self) {
        self.rest();
        self.world.verify(true);
        assert_eq!(self.world.failure, None);
    }

    /// Somebody sets the slot to the end of the WAL.
    fn advance_by_hand(&mut self) {
        let end_lsn = self.world.postgres.end_lsn;
        self.world.postgres.slot_mut(None).set(end_lsn);
    }

    pub(crate) fn pause(&mut self, time: Duration) {
        let until = self.world.now + time;
        self.run(until, |_| false);
        assert_eq!(self.world.failure, None);
    }

    /// SIGTERM, and the end.
    pub(crate) fn stop(&mut self) {
        let now = self.world.now;
        self.relays[0].stop(now);
        let until = now + Duration::from_secs(20);
        assert!(self.run(until, |simulation| simulation.relays[0].outcome().is_some()));
        self.relays.clear();
    }

    pub(crate) fn kill(&mut self) {
        let mut relay = self.relays.remove(0);
        relay.kill(&mut self.world);
    }

    /// Starts a relay and waits for its halt, which has changed nothing.
    fn halt(&mut self) -> Halt {
        let before = (
            self.world.broker.events.last_seq,
            self.world.postgres.slot(None).confirmed_lsn,
        );
        self.start_relay(Duration::ZERO);
        let until = self.world.now + Duration::from_secs(60);
        self.run(until, |simulation| simulation.relays[0].outcome().is_some());
        let after = (
            self.world.broker.events.last_seq,
            self.world.postgres.slot(None).confirmed_lsn,
        );
        assert_eq!(before, after, "published or confirmed");
        match self.relays[0].outcome() {
            Some(Outcome::Halted(halt)) => halt.clone(),
            other => panic!("{other:?} instead of a halt"),
        }
    }
}

/// A lane that has published and confirmed three transactions and was stopped; what it was after the first one.
fn stopped_lane() -> (Simulation, (u64, u64)) {
    let mut lane = lane(settings());
    lane.commit(1);
    lane.rest();
    let postgres = &lane.world.postgres;
    let first = (
        postgres.end_lsn,
        postgres.slot(None).confirmed_lsn.expect("a slot"),
    );
    lane.commit(2);
    lane.rest();
    lane.stop();
    (lane, first)
}

#[test]
fn a_restored_snapshot_whose_lsns_were_used_again() {
    let (mut lane, first) = stopped_lane();
    let old_end = lane.world.postgres.end_lsn;
    lane.world.postgres.restore(first.0, first.1);
    lane.world.postgres.start();
    while lane.world.postgres.end_lsn <= old_end {
        lane.commit(1);
    }
    assert!(matches!(lane.halt(), Halt::OverlapMiss { .. }));
}

#[test]
fn a_restored_snapshot_with_other_events_at_the_very_same_positions() {
    let (mut lane, first) = stopped_lane();
    let wal = lane.world.postgres.wal.clone();
    lane.world.postgres.restore(first.0, first.1);
    lane.world.postgres.start();
    // The same LSNs, other events.
    lane.world.postgres.wal = wal;
    lane.world.postgres.salt(first.0);
    assert!(matches!(lane.halt(), Halt::OverlapMiss { .. }));
}

/// What `run --from` publishes again lies in front of the overlap: the slot still has it when the overlap shows another
/// database, however short the hold-back.
#[test]
fn what_lies_in_front_of_the_overlap_is_not_confirmed_before_that_is_proven() {
    let mut lane = lane(settings());
    lane.commit(1);
    lane.rest();
    let postgres = &lane.world.postgres;
    let (end_lsn, confirmed_lsn) = (
        postgres.end_lsn,
        postgres.slot(None).confirmed_lsn.expect("a slot"),
    );
    lane.commit(100);
    lane.rest();
    lane.stop();
    let wal = lane.world.postgres.wal.clone();
    lane.world.postgres.restore(end_lsn, confirmed_lsn);
    lane.world.postgres.start();
    lane.world.postgres.wal = wal;
    lane.world.postgres.salt(end_lsn);
    lane.settings.from = Some(confirmed_lsn);
    lane.settings.messages_max = 1;
    lane.start_relay(Duration::ZERO);
    lane.pause(Duration::from_secs(20));
    assert!(matches!(
        lane.relays[0].outcome(),
        Some(Outcome::Halted(Halt::OverlapMiss { .. }))
    ));
    assert_eq!(
        lane.world.postgres.slot(None).confirmed_lsn,
        Some(confirmed_lsn)
    );
}

#[test]
fn a_slot_that_was_made_on_another_timeline() {
    let (mut lane, _) = stopped_lane();
    // WAL without events has taken record and slot far past the last event.
    let stopped_at = lane.world.postgres.end_lsn;
    lane.start_relay(Duration::ZERO);
    let world = &mut lane.world;
    world.postgres.write_other(&mut world.random);
    lane.rest();
    lane.stop();
    // A standby that lacks only that WAL is promoted, the application commits there, and then the slot is made.
    let switch = stopped_at + 8;
    lane.world.postgres.restore(switch, switch);
    lane.world.postgres.history =
        History::parse(2, &format!("1\t{}\tpromoted", PgLsn::from(switch))).expect("a history");
    lane.world.postgres.start();
    lane.commit(3);
    lane.world.postgres.slot_mut(None).confirmed_lsn = Some(lane.world.postgres.end_lsn);
    let halt = lane.halt();
    assert!(
        matches!(halt, Halt::ConfirmedUnexplained { switched_at: Some(at), .. } if at == PgLsn::from(switch)),
        "{halt:?}"
    );
    // A slot that the standby had kept, from before the switch, is the lane's own.
    lane.relays.clear();
    lane.world.postgres.slot_mut(None).confirmed_lsn = Some(switch);
    lane.start_relay(Duration::ZERO);
    lane.rest();
}

/// As with the configuration of another NATS, before `walrelay move`: neither record nor message tells what the slot has passed.
#[test]
fn a_slot_that_was_read_for_another_stream() {
    let mut lane = lane(settings());
    lane.commit(2);
    let read = lane.world.postgres.end_lsn;
    lane.world.postgres.slot_mut(None).set(read);
    lane.commit(1);
    let halt = lane.halt();
    assert!(
        matches!(halt, Halt::NoBeginning { confirmed_lsn, .. } if confirmed_lsn == PgLsn::from(read)),
        "{halt:?}"
    );
}

/// Two standbys are promoted in turn, the second of them never followed the first: both are on timeline 2.
#[test]
fn a_slot_of_a_second_standby_that_took_the_same_timeline() {
    let (mut lane, _) = stopped_lane();
    let history = |switch: u64| {
        let file = format!("1\t{}\tpromoted", PgLsn::from(switch));
        History::parse(2, &file).expect("a history")
    };
    let stopped_at = lane.world.postgres.end_lsn;
    lane.world.postgres.history = history(stopped_at);
    lane.start_relay(Duration::ZERO);
    let world = &mut lane.world;
    world.postgres.write_other(&mut world.random);
    lane.rest();
    lane.stop();
    let switch = stopped_at + 8;
    lane.world.postgres.restore(switch, switch);
    lane.world.postgres.history = history(switch);
    lane.world.postgres.start();
    lane.commit(3);
    lane.world.postgres.slot_mut(None).confirmed_lsn = Some(lane.world.postgres.end_lsn);
    let halt = lane.halt();
    assert!(
        matches!(halt, Halt::ConfirmedUnexplained { switched_at: Some(at), .. } if at == PgLsn::from(stopped_at)),
        "{halt:?}"
    );
}

#[test]
fn a_database_that_lacks_what_was_published() {
    let (mut lane, first) = stopped_lane();
    lane.world.postgres.restore(first.0, first.1);
    lane.world.postgres.start();
    assert!(matches!(lane.halt(), Halt::ServerBehind { .. }));
}

#[test]
fn a_slot_advanced_by_hand() {
    let (mut lane, _) = stopped_lane();
    lane.commit(2);
    lane.advance_by_hand();
    assert!(matches!(lane.halt(), Halt::ConfirmedUnexplained { .. }));
}

#[test]
fn a_slot_advanced_by_hand_under_a_relay_that_was_killed() {
    let (mut lane, _) = stopped_lane();
    lane.start_relay(Duration::ZERO);
    lane.commit(1);
    lane.rest();
    lane.kill();
    lane.pause(Duration::from_secs(5));
    lane.commit(1);
    lane.advance_by_hand();
    assert!(matches!(lane.halt(), Halt::ConfirmedUnexplained { .. }));
}

#[test]
fn a_slot_dropped_and_recreated() {
    let (mut lane, _) = stopped_lane();
    lane.world.postgres.slot_mut(None).confirmed_lsn = None;
    lane.commit(1);
    lane.start_relay(Duration::ZERO);
    lane.pause(Duration::from_secs(1));
    assert!(matches!(lane.relays[0].outcome(), Some(Outcome::Failed(_))));
    lane.relays.clear();
    lane.advance_by_hand();
    assert!(matches!(lane.halt(), Halt::ConfirmedUnexplained { .. }));
}

#[test]
fn another_cluster_behind_the_name() {
    let (mut lane, _) = stopped_lane();
    lane.world.postgres.system_identifier += 1;
    lane.commit(1);
    assert!(matches!(lane.halt(), Halt::OtherLane { .. }));
}

#[test]
fn another_database_behind_the_name() {
    let (mut lane, _) = stopped_lane();
    lane.world.postgres.database = "other".into();
    lane.commit(1);
    assert!(matches!(lane.halt(), Halt::OtherLane { .. }));
}

#[test]
fn the_last_message_removed_before_the_record_told_of_it() {
    let (mut lane, _) = stopped_lane();
    lane.start_relay(Duration::ZERO);
    lane.pause(Duration::from_secs(5));
    lane.commit(1);
    let end = lane.world.broker.events.last_seq + 2;
    let until = lane.world.now + Duration::from_secs(5);
    assert!(lane.run(until, |lane| lane.world.broker.events.last_seq == end));
    lane.kill();
    lane.pause(Duration::from_secs(5));
    lane.world.broker.events.remove(std::iter::once(end));
    assert!(matches!(lane.halt(), Halt::EndRemoved { sequence, .. } if sequence == end));
}

#[test]
fn the_message_of_another_slot_at_the_end() {
    let (mut lane, _) = stopped_lane();
    let last = lane.world.broker.events.last_seq;
    let headers = format!(
        "NATS/1.0\r\nWalrelay-Position: other 0/10:1\r\nNats-Expected-Last-Sequence: {last}\r\n\r\n"
    );
    lane.world.broker.handle(
        Frame {
            subject: "outbox.a".into(),
            reply: "x".into(),
            headers: headers.into_bytes(),
            data: b"{}".to_vec(),
        },
        Duration::ZERO,
    );
    lane.commit(1);
    assert!(matches!(lane.halt(), Halt::ForeignEnd { .. }));
}

/// Why it halted is kept in the record's place, and no start takes it for a record.
#[test]
fn a_halt_without_a_record_is_told_and_decides_nothing() {
    let mut lane = lane(settings());
    lane.kill();
    let subject = lane_record_subject(STREAM, SLOT);
    let kept = |lane: &Simulation| {
        let stored = lane.world.broker.records.last_of(&subject);
        let (sequence, frame) = stored.expect("a note or a record");
        (
            sequence,
            RecordOrNote::from_json(&frame.data).expect("either"),
        )
    };
    let foreign = Frame {
        subject: "outbox.a".into(),
        reply: "x".into(),
        headers:
            b"NATS/1.0\r\nWalrelay-Position: other 0/10:1\r\nNats-Expected-Last-Sequence: 0\r\n\r\n"
                .to_vec(),
        data: b"{}".to_vec(),
    };
    lane.world.broker.handle(foreign, Duration::ZERO);
    lane.commit(1);
    let mut before = 0;
    for _ in 0..2 {
        let halt = lane.halt();
        assert!(matches!(halt, Halt::ForeignEnd { .. }));
        let (sequence, kept) = kept(&lane);
        assert!(sequence > before, "it is the last halt's");
        let RecordOrNote::Note(note) = kept else {
            panic!("{kept:?} of a lane that never had an epoch");
        };
        assert_eq!((note.reason, note.remedy), (halt.reason(), halt.remedy()));
        before = sequence;
        lane.relays.clear();
    }
    // Another stream in its place: that the lane never had an epoch is known by there being no record.
    lane.world.broker.recreate();
    lane.start_relay(Duration::ZERO);
    lane.rest();
    assert!(matches!(kept(&lane).1, RecordOrNote::Record(record) if record.halted.is_none()));
}

#[test]
fn a_row_that_cannot_be_published_where_that_must_halt() {
    let mut lane = lane(Settings {
        halt_on_reject: true,
        ..settings()
    });
    lane.commit(3);
    lane.rest();
    let mut row = lane.world.postgres.row(&mut lane.world.random, false);
    row.values[1] = None;
    row.rejected = true;
    let good = lane.world.postgres.row(&mut lane.world.random, false);
    lane.world
        .postgres
        .commit(vec![good.clone(), row, good], &mut lane.world.random);
    lane.commit(3);
    // What stands before it is published, and the next start halts at the same place.
    lane.pause(Duration::from_secs(5));
    assert_eq!(lane.world.broker.events.last_seq, 7);
    assert!(matches!(
        lane.relays[0].outcome(),
        Some(Outcome::Halted(Halt::Rejected { row, .. })) if row.position.ordinal == 2
    ));
    lane.relays.clear();
    assert!(matches!(lane.halt(), Halt::Rejected { row, .. } if row.position.ordinal == 2));
    lane.world.verify(false);
    assert_eq!(lane.world.failure, None);
}

#[test]
fn a_row_that_neither_dead_letter_nor_table_would_keep() {
    let mut lane = lane(settings());
    lane.commit(3);
    lane.rest();
    let mut row = lane.world.postgres.row(&mut lane.world.random, false);
    row.values[5] = Some(format!("\"{}\"", "y".repeat(20_000)).into_bytes());
    row.rejected = true;
    let good = lane.world.postgres.row(&mut lane.world.random, false);
    lane.world
        .postgres
        .commit(vec![good.clone(), row, good], &mut lane.world.random);
    lane.world.row_presence = RowPresence::Gone;
    // What stands before it is published, and the next start halts at the same place.
    lane.pause(Duration::from_secs(5));
    assert_eq!(lane.world.broker.events.last_seq, 7);
    lane.relays.clear();
    let halt = lane.halt();
    assert!(
        matches!(&halt, Halt::Rejected { row, blocks: Blocks::Loss { .. } } if row.position.ordinal == 2),
        "{halt}"
    );
    lane.relays.clear();
    lane.world.row_presence = RowPresence::Kept;
    lane.start_relay(Duration::ZERO);
    lane.rest();
    assert_eq!(lane.world.broker.events.last_seq, 9);
    lane.world.verify(false);
    assert_eq!(lane.world.failure, None);
}
