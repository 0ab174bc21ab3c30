//! Progress against a model that remembers everything.

use proptest::prelude::*;
use std::time::Duration;
use walrelay::pipeline::progress::{Progress, WalRoom};

const START: u64 = 1_000;
/// The stream's last sequence before the first row.
const BASE: u64 = 70;

#[derive(Debug, Clone)]
enum Step {
    /// A transaction with so many rows, some of them published before.
    Transaction {
        published: u64,
        skipped: bool,
    },
    /// Rows of a transaction that has not ended.
    Rows(u64),
    Keepalive(u64),
    /// Acknowledges this share of what is in flight, in percent.
    Acknowledge(u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_u64, any::<bool>())
            .prop_map(|(published, skipped)| Step::Transaction { published, skipped }),
        (1..4_u64).prop_map(Step::Rows),
        (0..30_u64).prop_map(Step::Keepalive),
        (0..=100_u64).prop_map(Step::Acknowledge),
        (0..2_000_u64).prop_map(Step::Wait),
    ]
}

/// The end of a transaction or a keepalive, as a person would note it.
struct Mark {
    end_lsn: u64,
    rows: u64,
    events: bool,
    acknowledged_at: Option<Duration>,
}

#[derive(Default)]
struct Model {
    marks: Vec<Mark>,
    acknowledged: u64,
}

impl Model {
    fn settle(&mut self, now: Duration) {
        for mark in &mut self.marks {
            if mark.rows <= self.acknowledged && mark.acknowledged_at.is_none() {
                mark.acknowledged_at = Some(now);
            }
        }
    }

    /// What must be confirmable at the latest: idle WAL may be merged with events that come at the same moment.
    fn due(&self, now: Duration, age: Duration) -> u64 {
        self.marks
            .iter()
            .take_while(|mark| mark.acknowledged_at.is_some_and(|at| now >= at + age))
            .last()
            .map_or(START, |mark| mark.end_lsn)
    }

    /// Whether a mark there ends with the row that is stored under `sequence`.
    fn covers(&self, end_lsn: u64, sequence: Option<u64>) -> bool {
        let row = |mark: &Mark| (mark.rows > 0).then_some(BASE + mark.rows);
        let mut marks = self.marks.iter().filter(|mark| mark.end_lsn == end_lsn);
        end_lsn == START || marks.any(|mark| row(mark) == sequence)
    }

    /// The last mark that may be confirmed: every one up to it acknowledged, and its events so old.
    fn confirmable(&self, now: Duration, age: Duration) -> u64 {
        self.marks
            .iter()
            .take_while(|mark| {
                mark.acknowledged_at
                    .is_some_and(|at| !mark.events || now >= at + age)
            })
            .last()
            .map_or(START, |mark| mark.end_lsn)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn confirms_as_the_model_does(
        steps in prop::collection::vec(step(), 1..120),
        hold_back in prop_oneof![Just(0), 1..5_000_u64],
    ) {
        let hold_back = Duration::from_millis(hold_back);
        // Marks may be merged, which delays the older by so much.
        let slack = hold_back / 128 + Duration::from_nanos(1);
        let mut progress = Progress::new(START.into(), hold_back, u64::MAX);
        let mut model = Model::default();
        let (mut now, mut lsn, mut rows) = (Duration::ZERO, START, 0);
        let mut confirmed = START;
        for step in steps {
            match step {
                Step::Transaction { published, skipped } => {
                    for _ in 0..published {
                        progress.published();
                    }
                    rows += published;
                    lsn += 16;
                    let events = published > 0 || skipped;
                    match events {
                        true => progress.committed(lsn.into(), None, now),
                        false => progress.idle(lsn.into(), now),
                    }
                    model.marks.push(Mark { end_lsn: lsn, rows, events, acknowledged_at: None });
                }
                Step::Rows(count) => {
                    for _ in 0..count {
                        progress.published();
                    }
                    rows += count;
                }
                Step::Keepalive(bytes) => {
                    lsn += bytes;
                    progress.idle(lsn.into(), now);
                    model.marks.push(Mark { end_lsn: lsn, rows, events: false, acknowledged_at: None });
                }
                Step::Acknowledge(percent) => {
                    model.acknowledged += (rows - model.acknowledged) * percent / 100;
                    progress.acknowledged(model.acknowledged, Some(BASE + model.acknowledged), now);
                }
                Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            model.settle(now);
            let confirmable = progress.confirmable(now);
            let found = u64::from(confirmable.end_lsn);
            prop_assert!(model.covers(found, confirmable.sequence), "{found} covers {:?}", confirmable.sequence);
            prop_assert!(found >= confirmed, "back from {confirmed} to {found}");
            prop_assert!(found <= model.confirmable(now, hold_back), "too early: {found}");
            prop_assert!(found >= model.due(now, hold_back + slack), "too late: {found}");
            if let Some(due) = progress.next_due() {
                prop_assert!(due > now, "what is due has not been taken");
            }
            confirmed = found;
        }
        progress.acknowledged(rows, Some(BASE + rows), now);
        now += hold_back * 2;
        prop_assert_eq!(u64::from(progress.confirmable(now).end_lsn), lsn);
    }

    /// The idle rule: a keepalive is confirmable at once if and only if nothing before it is open or young.
    #[test]
    fn a_keepalive_waits_only_for_what_is_before_it(published in 0..3_u64, acknowledged in 0..3_u64, age in 0..200_u64) {
        let hold_back = Duration::from_millis(100);
        let mut progress = Progress::new(START.into(), hold_back, u64::MAX);
        for _ in 0..published {
            progress.published();
        }
        if published > 0 {
            progress.committed((START + 8).into(), None, Duration::ZERO);
        }
        progress.acknowledged(acknowledged.min(published), None, Duration::ZERO);
        let now = Duration::from_millis(age);
        progress.idle((START + 100).into(), now);
        let free = published == 0 || (acknowledged >= published && now >= hold_back);
        let expected = if free { START + 100 } else { START };
        prop_assert_eq!(u64::from(progress.confirmable(now).end_lsn), expected);
    }

    /// At the cap of held WAL it confirms early, but never what is not acknowledged.
    #[test]
    fn the_cap_cuts_the_hold_back_short(transactions in 1..50_u64, acknowledged in 0..50_u64, cap in 0..500_u64) {
        let mut progress = Progress::new(START.into(), Duration::from_secs(1_000), cap);
        for n in 1..=transactions {
            progress.published();
            progress.committed((START + n * 16).into(), None, Duration::from_secs(n * 20));
        }
        let acknowledged = acknowledged.min(transactions);
        progress.acknowledged(acknowledged, None, Duration::from_secs(2_000));
        let found = u64::from(progress.confirmable(Duration::from_secs(2_000)).end_lsn);
        prop_assert!(found <= START + acknowledged * 16);
        let held = START + transactions * 16 - found;
        prop_assert!(held <= cap || found == START + acknowledged * 16, "{held} bytes held");
    }
}

#[test]
fn what_may_be_held_follows_what_the_slot_has_room_for() {
    let room = |limit, free| WalRoom {
        limit_bytes: limit,
        free_bytes: free,
    };
    let max = |limit, free, held| room(limit, free).held_bytes_max(held);
    assert_eq!(max(None, None, 0), 1 << 30);
    assert_eq!(max(Some(4_000), None, 0), 1_000);
    assert_eq!(max(Some(4_000), Some(400), 0), 100);
    assert_eq!(max(Some(4_000), Some(0), 4_000), 1_000);

    let now = Duration::ZERO;
    let hour = Duration::from_secs(3_600);
    let outage = max(Some(8_000), Some(8), 0);
    let mut progress = Progress::new(START.into(), hour, outage);
    let commit = |progress: &mut Progress, end_lsn: u64| {
        progress.committed(end_lsn.into(), None, now);
        progress.confirmable(now).end_lsn
    };
    // After an outage there is room for nothing.
    assert_eq!(commit(&mut progress, 1_100), 1_100.into());
    // Later there is.
    progress.may_keep(room(Some(8_000), Some(8_000)));
    assert_eq!(commit(&mut progress, 3_000), 1_100.into());
    // And no longer.
    progress.may_keep(room(Some(800), Some(0)));
    assert_eq!(progress.confirmable(now).end_lsn, 3_000.into());
}
