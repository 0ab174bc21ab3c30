//! What the hold-back must not cost: the slot, other standbys' places, the patience of those who read the log.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use postgres_types::PgLsn;
use rustix::process::Signal;
use tempfile::TempDir;
use walrelay::pipeline::position::Position;

use crate::lane::{Restraint, holds_events, jetstream, judge_events};
use crate::statements::statements;
use crate::support::{Fixture, eventually, insert_sql, uuid};

#[tokio::test]
async fn the_slot_is_not_lost_to_it() {
    let settings = [
        ("max_slot_wal_keep_size", "128MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "64MB"),
        ("wal_sender_timeout", "3s"),
    ];
    let mut fixture = Fixture::with_settings(&settings).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
    for n in 1..=60 {
        fixture.insert(n, n).await;
        holds_events(&fixture, n).await;
        let wal = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000)); CHECKPOINT";
        fixture.sql.batch_execute(wal).await.unwrap();
        let row = fixture
            .sql
            .query_one(status, &[&fixture.name])
            .await
            .unwrap();
        let status: &str = row.get(0);
        assert_ne!(status, "lost", "after {n}");
    }
    assert!(relay.log().contains("confirming early"), "{}", relay.log());
    assert_eq!(relay.log().matches("confirming early").count(), 1);
    assert!(relay.runs());
    judge_events(&fixture, &(1..=60).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_limit_that_is_lowered_while_it_runs_is_kept() {
    let settings = [("min_wal_size", "32MB"), ("max_wal_size", "64MB")];
    let mut fixture = Fixture::with_settings(&settings).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    let confirmed = fixture.confirmed_lsn().await;
    for n in 1..=4 {
        let wal = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000))";
        fixture.sql.batch_execute(wal).await.unwrap();
        fixture.insert(n, n).await;
    }
    holds_events(&fixture, 4).await;
    assert!(!relay.log().contains("confirming early"), "{}", relay.log());
    for sql in [
        "ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'",
        "SELECT pg_reload_conf()",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    relay.logs("confirming early").await;
    eventually("the slot lets go of some WAL", async || {
        (fixture.confirmed_lsn().await > confirmed).then_some(())
    })
    .await;
    judge_events(&fixture, &(1..=4).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_slot_that_runs_out_of_room_is_told_of_before_it_is_lost() {
    const LIMIT: i64 = 64 << 20;
    let settings = [
        ("max_slot_wal_keep_size", "64MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "64MB"),
    ];
    let mut fixture = Fixture::with_settings(&settings).await;
    let mut relay = fixture.run();
    relay.streams().await;
    // An open transaction that has written keeps the slot's WAL, however well the relay is.
    let holder = fixture.connect().await;
    let write = format!("BEGIN; {}", insert_sql(1, 1));
    holder.batch_execute(&write).await.unwrap();
    let fill_below = async |free: i64| {
        let sql = "SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = $1";
        loop {
            let row = fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
            if row.get::<_, i64>(0) < free {
                return;
            }
            let wal = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000))";
            fixture.sql.batch_execute(wal).await.unwrap();
        }
    };
    fill_below(LIMIT / 2).await;
    relay.logs("less than half of max_slot_wal_keep_size").await;
    fill_below(LIMIT / 5).await;
    relay
        .logs("less than a fifth of max_slot_wal_keep_size")
        .await;
    holder.batch_execute("COMMIT").await.unwrap();
    eventually("the slot lets go", async || {
        fixture.sql.batch_execute("CHECKPOINT").await.unwrap();
        relay
            .log()
            .contains("the slot has room again")
            .then_some(())
    })
    .await;
    for said in ["less than half", "less than a fifth"] {
        assert_eq!(relay.log().matches(said).count(), 1, "{}", relay.log());
    }
    relay.stop().await;
}

/// The server's clock, and how far the slot is confirmed then.
async fn confirmed_at(fixture: &Fixture) -> (SystemTime, PgLsn) {
    let sql = "SELECT clock_timestamp(), confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    let row = fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn an_event_is_confirmed_when_it_is_old_enough_and_not_with_an_older_one() {
    const HOLD_BACK: Duration = Duration::from_secs(3);
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "3s");
    let mut relay = fixture.run();
    relay.streams().await;
    // Before the commit, so before the acknowledgement too.
    let (first_at, _) = confirmed_at(&fixture).await;
    fixture.insert(1, 1).await;
    holds_events(&fixture, 1).await;
    let second_at = eventually("the first one is half as old as it must be", async || {
        let (now, _) = confirmed_at(&fixture).await;
        (now.duration_since(first_at).unwrap() > HOLD_BACK / 2).then_some(now)
    })
    .await;
    fixture.insert(2, 2).await;
    holds_events(&fixture, 2).await;
    for (index, at) in [first_at, second_at].into_iter().enumerate() {
        let position: Position = fixture.stored().await[index].position.parse().unwrap();
        let now = eventually("the event is confirmed", async || {
            let (now, confirmed) = confirmed_at(&fixture).await;
            (confirmed > position.commit_lsn).then_some(now)
        })
        .await;
        let age = now.duration_since(at).unwrap();
        assert!(age >= HOLD_BACK, "event {} after {age:?}", index + 1);
    }
    relay.stop().await;
}

/// A standby that writes WAL to a folder and flushes it at once; ended by its drop.
struct Receiver {
    child: Child,
    _folder: TempDir,
}

impl Receiver {
    fn start(fixture: &Fixture) -> Receiver {
        let folder = TempDir::new().unwrap();
        let postgres = &fixture.servers().postgres;
        let child = Command::new(postgres.bin("pg_receivewal"))
            .args(["--synchronous", "--no-password", "-D"])
            .arg(folder.path())
            .args(["-d", &postgres.url("postgres")])
            .stderr(Stdio::null())
            .spawn()
            .expect("pg_receivewal runs");
        Receiver {
            child,
            _folder: folder,
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sets `synchronous_standby_names`.
async fn standbys(fixture: &Fixture, names: &str) {
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    fixture.sql.batch_execute(&set).await.unwrap();
    fixture
        .sql
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    are_standbys(fixture, names).await;
}

/// Waits until the server has taken it.
async fn are_standbys(fixture: &Fixture, names: &str) {
    let is_set = "SELECT current_setting('synchronous_standby_names')";
    eventually(format!("the standbys are {names:?}"), async || {
        let row = fixture.sql.query_one(is_set, &[]).await.unwrap();
        (row.get::<_, &str>(0) == names).then_some(())
    })
    .await;
}

/// `verify` goes by it: what is held back is in the stream all the same.
#[tokio::test]
async fn the_server_shows_what_is_acknowledged_and_not_confirmed() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    let written = fixture.server_lsn().await;
    let shown = "SELECT replay_lsn FROM pg_stat_replication";
    eventually(format!("{written} is acknowledged"), async || {
        let row = fixture.sql.query_opt(shown, &[]).await.unwrap()?;
        (row.get::<_, Option<PgLsn>>(0)? >= written).then_some(())
    })
    .await;
    assert_eq!(fixture.message_count().await, 10);
    assert!(fixture.confirmed_lsn().await < written);
    fixture
        .walrelay(&["verify", "--wait", "30s"])
        .await
        .success();
    relay.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_the_relay_as_for_a_synchronous_standby() {
    let mut fixture = Fixture::own().await;
    let receiver = Receiver::start(&fixture);
    let mut relay = fixture.run();
    relay.streams().await;
    let states = "SELECT application_name, sync_state FROM pg_stat_replication ORDER BY 1";
    // Until it has looked at the setting.
    standbys(&fixture, "*").await;
    eventually("pg_receivewal is the synchronous standby", async || {
        let rows = fixture.sql.query(states, &[]).await.unwrap();
        rows.iter()
            .any(|row| row.get::<_, &str>(0) == "pg_receivewal" && row.get::<_, &str>(1) == "sync")
            .then_some(())
    })
    .await;
    for n in 1..=20 {
        fixture.insert(n, n).await;
        let rows = fixture.sql.query(states, &[]).await.unwrap();
        for row in rows
            .iter()
            .filter(|row| row.get::<_, &str>(0) != "pg_receivewal")
        {
            assert_eq!(row.get::<_, &str>(1), "async", "{n}");
        }
    }
    // Its word may release those who wait for the standby: it confirms nothing, and keeps nobody waiting.
    relay.logs("ALTER SYSTEM").await;
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
    eventually("nobody reads the slot", async || {
        let row = fixture.sql.query_one(active, &[&fixture.name]).await;
        (!row.unwrap().get::<_, bool>(0)).then_some(())
    })
    .await;
    fixture.insert(21, 21).await;
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = relay.log();
    let line = said.lines().find(|line| line.contains("ALTER SYSTEM"));
    let remedy = statements(line.expect("a remedy"));
    for statement in &remedy {
        assert!(refused.stderr.contains(statement), "{refused:?}");
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    are_standbys(&fixture, "pg_receivewal").await;
    // It goes on by itself.
    holds_events(&fixture, 21).await;
    // A frozen relay delays nobody.
    relay.signal(Signal::STOP);
    let begin = Instant::now();
    fixture.insert(22, 22).await;
    // Else for as long as it is frozen, or until Postgres gives it up after a minute.
    assert!(begin.elapsed() < Duration::from_secs(30));
    relay.signal(Signal::CONT);
    drop(receiver);
    let other = fixture.connect().await;
    let waits = async { other.batch_execute(&insert_sql(23, 23)).await.unwrap() };
    let waited = tokio::time::timeout(Duration::from_secs(2), waits).await;
    assert!(waited.is_err(), "released by the relay alone");
    standbys(&fixture, "").await;
    judge_events(&fixture, &(1..=23).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_message_by_hand_costs_a_line() {
    const BY_HAND: u64 = 8;
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let logged = relay.log().lines().count();
    for n in 1..=BY_HAND {
        let subject = format!("{}.by.hand", fixture.name);
        let sent = jetstream(&fixture)
            .publish(subject, "hello".into())
            .await
            .unwrap();
        sent.await.unwrap();
        fixture.insert(n, n).await;
        fixture.holds(2 * n).await;
    }
    // The end of an epoch, the foreign message, the beginning of the next.
    let lines = relay.log().lines().count() - logged;
    assert!(lines as u64 <= 3 * BY_HAND, "{}", relay.log());
    assert!(
        relay.log().contains("messages that no relay wrote"),
        "{}",
        relay.log()
    );
    Restraint::of(&relay)
        .keeps(&relay, Duration::from_secs(1))
        .await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ours: Vec<_> = stored.iter().filter(|m| !m.position.is_empty()).collect();
    let ids: Vec<_> = ours.iter().map(|message| message.id()).collect();
    assert_eq!(ids, (1..=BY_HAND).map(uuid).collect::<Vec<_>>());
}
