//! Postgres, or the network before it, says nothing any more and closes nothing: it is told, and the relay is back as
//! soon as the other side is.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::lane::{holds_events, judge_events};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, eventually, uuid};

const SILENT: &str = "waiting: Postgres";

/// A lane whose relay reaches Postgres through a proxy.
async fn behind_a_proxy() -> (Fixture, Proxy) {
    let mut fixture = Fixture::new().await;
    let postgres = &fixture.servers().postgres;
    let proxy = Proxy::start(postgres.port()).await.expect("a free port");
    let url = postgres.url(&fixture.name);
    let url = url.replace(&postgres.port().to_string(), &proxy.port().to_string());
    fixture.set("WALRELAY_POSTGRES_URL", url);
    (fixture, proxy)
}

#[tokio::test]
async fn a_connection_that_is_forgotten_during_the_start() {
    let (mut fixture, proxy) = behind_a_proxy().await;
    let mut last = 0;
    for bytes in [0, 600, 1_200, 2_000, 4_000] {
        proxy.set(Mode::Forget(bytes));
        let mut relay = fixture.run();
        let begin = Instant::now();
        relay.logs(SILENT).await;
        let said = begin.elapsed();
        fixture.insert(last + 1, last + 5).await;
        last += 5;
        let begin = Instant::now();
        proxy.set(Mode::Pass);
        holds_events(&fixture, last).await;
        eprintln!(
            "{bytes} bytes: said after {said:?}, back after {:?}",
            begin.elapsed()
        );
        relay.stop().await;
    }
    judge_events(&fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_connection_that_is_forgotten_while_it_streams() {
    let (mut fixture, proxy) = behind_a_proxy().await;
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    proxy.set(Mode::Forget(0));
    fixture.insert(6, 10).await;
    let begin = Instant::now();
    relay.logs("waiting: Postgres has stopped answering").await;
    let said = begin.elapsed();
    // The server keeps the slot for the connection that it still believes in.
    let begin = Instant::now();
    proxy.set(Mode::Pass);
    holds_events(&fixture, 10).await;
    eprintln!("said after {said:?}, back after {:?}", begin.elapsed());
    judge_events(&fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_walsender_that_is_frozen() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    holds_events(&fixture, 5).await;
    let reads = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let row = fixture
        .sql
        .query_one(reads, &[&fixture.name])
        .await
        .unwrap();
    let walsender = Pid::from_raw(row.get(0)).expect("a process");
    kill_process(walsender, Signal::STOP).expect("it is there");
    fixture.insert(6, 10).await;
    relay.logs("waiting: Postgres has stopped answering").await;
    kill_process(walsender, Signal::CONT).expect("it is there");
    holds_events(&fixture, 10).await;
    judge_events(&fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

/// A row filter that takes its time leaves out every row of a transaction: the walsender answers nothing meanwhile.
#[tokio::test]
async fn a_long_transaction_of_which_nothing_is_sent_is_no_silence() {
    let mut fixture = Fixture::new().await;
    let name = fixture.name.clone();
    let filter = format!(
        "ALTER PUBLICATION {name} SET TABLE outbox_events WHERE (event_version < 2 OR factorial(event_version) = 0)"
    );
    fixture.sql.batch_execute(&filter).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    let logged = relay.log().len();
    let slow = "INSERT INTO outbox_events (id, aggregate_id, event_type, event_version, payload_json)
                SELECT gen_random_uuid(), gen_random_uuid(), 'a', 3000, '{}' FROM generate_series(1, 3000)";
    fixture.sql.batch_execute(slow).await.unwrap();
    let begin = Instant::now();
    fixture.insert(1, 1).await;
    eventually("the event behind it", async || {
        (fixture.message_count().await >= 1).then_some(())
    })
    .await;
    eprintln!("decoded in {:?}", begin.elapsed());
    assert_eq!(&relay.log()[logged..], "");
    relay.stop().await;
}

/// A start behind somebody's lock waits, and says so.
#[tokio::test]
async fn a_lock_on_the_table_is_no_silence() {
    let mut fixture = Fixture::new().await;
    let name = fixture.name.clone();
    let filter =
        format!("ALTER PUBLICATION {name} SET TABLE outbox_events WHERE (event_version < 2)");
    fixture.sql.batch_execute(&filter).await.unwrap();
    let locking = fixture.connect().await;
    let lock = "BEGIN; LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE";
    locking.batch_execute(lock).await.unwrap();
    let mut relay = fixture.run();
    relay.logs("is locked (ACCESS EXCLUSIVE) by process").await;
    locking.batch_execute("COMMIT").await.unwrap();
    relay.streams().await;
    let log = relay.log();
    assert!(!log.contains("has stopped answering"), "{log}");
    relay.stop().await;
}

/// A look that is given up is cancelled: its session would wait for the lock, and the next one's too.
#[tokio::test]
async fn looks_behind_a_lock_leave_no_sessions() {
    let mut fixture = Fixture::new().await;
    let name = fixture.name.clone();
    let filter =
        format!("ALTER PUBLICATION {name} SET TABLE outbox_events WHERE (event_version < 2)");
    fixture.sql.batch_execute(&filter).await.unwrap();
    let mut relay = fixture.run_with(&["--log-level", "debug"]);
    relay.streams().await;
    let locking = fixture.connect().await;
    let lock = "BEGIN; LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE";
    locking.batch_execute(lock).await.unwrap();
    eventually("three looks in vain", async || {
        let missed = relay.log().matches("a look took longer").count();
        (missed >= 3).then_some(())
    })
    .await;
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // The next look may be under way.
    eventually("one look waits at most", async || {
        let row = fixture.sql.query_one(waiting, &[]).await.unwrap();
        (row.get::<_, i64>(0) <= 1).then_some(())
    })
    .await;
    locking.batch_execute("COMMIT").await.unwrap();
    fixture.insert(1, 1).await;
    fixture.holds(1).await;
    relay.stop().await;
}
