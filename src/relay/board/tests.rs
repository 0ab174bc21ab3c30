use super::*;
use crate::pipeline::engine::Counters;

fn clock(us: i64) -> ServerClock {
    let at = Instant::now();
    ServerClock { us, at }
}

fn marks(published: u64, acknowledged: u64) -> EpochMarks {
    EpochMarks {
        counters: Counters {
            published,
            ..Counters::default()
        },
        acknowledged,
        ..EpochMarks::default()
    }
}

#[test]
fn lag_counts_against_the_servers_end() {
    let board = Board::new("a", "a", "A");
    board.looked(500.into(), Some(300.into()), SlotWal::default(), clock(0));
    assert_eq!(board.status().lag_bytes(), Some(200));
    let mut now = marks(1, 1);
    (now.marks.received_lsn, now.marks.acknowledged_lsn) = (450, 400);
    board.report(&now);
    assert_eq!(board.status().lag_bytes(), Some(100));
    // Published since the look.
    (now.marks.received_lsn, now.marks.acknowledged_lsn) = (600, 550);
    board.report(&now);
    assert_eq!(board.status().lag_bytes(), Some(50));
    assert_eq!(board.status().server_lsn, 600);
    // While the broker is away, the server goes on.
    board.fault(&Fault::Broker("gone".into()));
    board.looked(900.into(), Some(300.into()), SlotWal::default(), clock(0));
    assert_eq!(board.status().lag_bytes(), Some(350));
}

#[test]
fn what_is_not_known_is_not_nothing() {
    let board = Board::new("a", "a", "A");
    let told = || {
        let status = board.status();
        (
            status.lag_bytes(),
            status.received_lag_bytes(),
            status.lag_seconds,
        )
    };
    let none = (None, None, None);
    assert_eq!(told(), none);
    let look = |end: u64| {
        let confirmed = Some(500.into());
        board.looked(end.into(), confirmed, SlotWal::default(), clock(0));
    };
    look(500);
    assert_eq!(told(), (Some(0), Some(0), Some(0)));
    // From now on the server may go on unseen.
    board.fault(&Fault::Postgres("gone".into()));
    assert_eq!(told(), none);
    look(500);
    assert_eq!(told(), (Some(0), Some(0), Some(0)));
    board.fault(&Fault::Broker("gone".into()));
    assert_eq!(told(), (Some(0), Some(0), Some(0)));
    look(700);
    board.fault(&Fault::Postgres("gone".into()));
    assert_eq!(board.status().lag_bytes(), Some(200));
}

#[test]
fn a_backlog_is_as_old_as_its_oldest_commit_until_it_is_acknowledged() {
    let board = Board::new("a", "a", "A");
    let server = clock(850_000_000_000_000);
    let ago = |seconds: i64| server.us - seconds * 1_000_000;
    let commit = |lsn: u64, at_us| {
        Some(Commit {
            lsn: lsn.into(),
            at_us,
        })
    };
    board.looked(1_000.into(), Some(100.into()), SlotWal::default(), server);
    assert!(board.status().lag_seconds.is_some_and(|lag| lag < 60));
    let mut now = marks(0, 0);
    (
        now.marks.received_lsn,
        now.marks.acknowledged_lsn,
        now.marks.confirmed_lsn,
    ) = (500, 100, 100);
    now.commits = [commit(110, ago(3_600)), None];
    board.report(&now);
    let status = board.status();
    assert!(
        (3_600..3_660).contains(&status.lag_seconds.expect("known")),
        "{status:?}"
    );
    assert!(
        (3_600..3_660).contains(&status.confirmed_lag_seconds.expect("known")),
        "{status:?}"
    );
    assert!(
        status.received_lag_seconds.is_some_and(|lag| lag < 60),
        "{status:?}"
    );
    assert_eq!(status.received_lag_bytes(), Some(500));
    // It goes on counting over an outage, and in the next epoch, which begins at the confirmed place.
    board.fault(&Fault::Broker("gone".into()));
    assert!(board.status().lag_seconds >= Some(3_600));
    now.marks.acknowledged_lsn = 500;
    now.commits = [None, commit(500, ago(1_800))];
    board.report(&now);
    assert!(board.status().lag_seconds.is_some_and(|lag| lag < 60));
    assert!(board.status().confirmed_lag_seconds >= Some(3_600));
    now.marks.acknowledged_lsn = 100;
    board.report(&now);
    assert!(board.status().lag_seconds.is_some_and(|lag| lag < 60));
}

#[test]
fn a_dead_letter_is_open_before_they_are_counted_again() {
    let board = Board::new("a", "a", "A");
    board.dead_letter("too-large");
    assert_eq!(board.status().dead_letters_open, None);
    board.open_dead_letters(1, Vec::new());
    board.dead_letter("too-large");
    assert_eq!(board.status().dead_letters_open, Some(2));
    board.open_dead_letters(1, Vec::new());
    assert_eq!(board.status().dead_letters_open, Some(1));
}

#[test]
fn totals_go_on_over_epochs() {
    let board = Board::new("a", "a", "A");
    board.begun(&EpochStart::default());
    board.report(&marks(5, 3));
    board.report(&marks(7, 7));
    board.fault(&Fault::Broker("gone".into()));
    board.begun(&EpochStart::default());
    board.report(&marks(2, 1));
    let totals = board.status().totals;
    assert_eq!((totals.published, totals.acknowledged), (9, 8));
    assert_eq!(totals.epochs, 2);
    // That it began is not yet a change of state.
    assert_eq!(board.status().state, State::Waiting);
    board.streaming();
    assert_eq!(board.status().state, State::Streaming);
}

#[test]
fn to_stand_by_is_no_fault() {
    let board = Board::new("a", "a", "A");
    board.fault(&Fault::SlotActive {
        slot: "a".to_owned(),
        pid: 7,
    });
    let status = board.status();
    assert_eq!(status.state, State::Standby);
    assert!(
        status
            .reason
            .is_some_and(|reason| reason.contains("process 7"))
    );
    assert!(status.last_faults.is_empty());
    // It is counted all the same.
    assert_eq!(status.totals.faults["transient"], 1);
}

#[test]
fn repeated_faults_are_one_line() {
    let board = Board::new("a", "a", "A");
    for _ in 0..3 {
        board.fault(&Fault::Broker("gone".into()));
    }
    for number in 0..10 {
        board.fault(&Fault::AckTimeout(number));
    }
    board.fault(&Fault::Broker("gone".into()));
    let status = board.status();
    assert_eq!(status.state, State::Waiting);
    assert_eq!(status.last_faults.len(), FAULTS_MAX);
    assert_eq!(status.last_faults[0].times, 1);
    assert_eq!(status.totals.faults["transient"], 14);
}
