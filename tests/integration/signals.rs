//! Signals: none of them ends a command without a line.

use rustix::process::Signal;

use crate::support::{Fixture, Relay, assert_exactly_once, eventually, uuid};

#[tokio::test]
async fn quit_stops_as_term_does_and_user_signals_are_ignored_with_a_line() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    for (signal, line) in [
        (Signal::USR1, "SIGUSR1 is ignored"),
        (Signal::USR2, "SIGUSR2 is ignored"),
    ] {
        relay.signal(signal);
        relay.logs(line).await;
    }
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.signal(Signal::QUIT);
    assert_eq!(relay.ends().await, Some(0));
    assert!(relay.log().contains("SIGQUIT: stopping"), "{}", relay.log());
}

/// Ends the connection that reads the slot, so that the relay begins anew.
async fn cut_off(fixture: &Fixture) {
    let sql =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
    fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
}

#[tokio::test]
async fn hangup_takes_up_the_log_level_and_names_what_takes_a_restart() {
    let mut fixture = Fixture::new().await;
    // The slot has the row again for the next epoch.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.configure("[log]\nlevel = 'info'\n");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 1).await;
    fixture.holds(1).await;

    fixture.configure("[log]\nlevel = 'debug'\n[relay]\nbackoff_max = '400ms'\nhold_bakc = 1\n");
    relay.signal(Signal::HUP);
    relay.logs("cannot be used, and nothing is changed").await;
    assert!(relay.log().contains("walrelay.toml:5"), "{}", relay.log());

    fixture.configure("[log]\nlevel = 'debug'\n[relay]\nbackoff_max = '400ms'\n");
    relay.signal(Signal::HUP);
    relay
        .logs("taken up by a restart only: relay.backoff_max")
        .await;
    assert!(
        relay.log().contains("log.level is debug"),
        "{}",
        relay.log()
    );
    // Only debug says so.
    cut_off(&fixture).await;
    fixture.insert(2, 2).await;
    relay.logs("the WAL continues the stream").await;

    fixture.configure("[log]\nlevel = 'warn'\n");
    relay.signal(Signal::HUP);
    relay.logs("log.level is warn").await;
    // A file that is gone is no configuration of defaults.
    let file = fixture.configuration();
    std::fs::rename(&file, file.with_extension("away")).unwrap();
    relay.signal(Signal::HUP);
    relay.logs("is gone, and nothing is changed").await;
    assert!(
        !relay.log().contains("restart only: log.level"),
        "{}",
        relay.log()
    );
    std::fs::rename(file.with_extension("away"), &file).unwrap();
    // And back: the next level lets the line through where the one before does not.
    fixture.configure("");
    relay.signal(Signal::HUP);
    relay.logs("log.level is info (default)").await;
    relay.stop().await;
}

/// Waits until a command waits for a lock on the table, or none does.
async fn waits_for_the_table(fixture: &Fixture, waits: bool) {
    let sql = "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation \
               WHERE relname = 'outbox_events' AND NOT granted";
    eventually(
        format!("somebody waits for the table: {waits}"),
        async || {
            let waiting: i64 = fixture.sql.query_one(sql, &[]).await.unwrap().get(0);
            (waits == (waiting > 0)).then_some(())
        },
    )
    .await;
}

async fn ends_with(mut command: Relay, signal: Signal, code: i32, lines: [&str; 2]) {
    command.signal(signal);
    assert_eq!(command.ends().await, Some(code), "{}", command.log());
    for line in lines {
        assert!(command.log().contains(line), "{}", command.log());
    }
}

/// SIGHUP and what is said of it. Under nohup the commands inherit that it is ignored and go on, as they should: SIGTERM then.
fn hangup() -> (Signal, &'static str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .is_some_and(|mask| {
            mask.trim()
                .ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f'])
        });
    match ignored {
        true => (Signal::TERM, "SIGTERM: stopping"),
        false => (Signal::HUP, "SIGHUP: stopping"),
    }
}

#[tokio::test]
async fn tail_verify_and_backfill_end_in_good_order() {
    let fixture = Fixture::new().await;
    fixture.insert(1, 3).await;
    let hangup = hangup();
    for (signal, line) in [hangup, (Signal::QUIT, "SIGQUIT: stopping")] {
        let mut tail = fixture.start(&["tail"]);
        tail.logs("SEQUENCE").await;
        ends_with(tail, signal, 0, [line, line]).await;
    }

    let locker = fixture.begins("LOCK TABLE outbox_events").await;
    let verify = fixture.start(&["verify"]);
    waits_for_the_table(&fixture, true).await;
    let said = ["SIGQUIT: stopping", "it was stopped before its end"];
    ends_with(verify, Signal::QUIT, 3, said).await;
    // Nor does its session stay, nor that of one that was killed.
    waits_for_the_table(&fixture, false).await;
    let mut verify = fixture.start(&["verify"]);
    waits_for_the_table(&fixture, true).await;
    verify.kill();
    waits_for_the_table(&fixture, false).await;
    let backfill = fixture.start(&["backfill"]);
    waits_for_the_table(&fixture, true).await;
    let said = [hangup.1, "nothing is published"];
    ends_with(backfill, hangup.0, 1, said).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    // The lease was given back: nobody is waited for.
    let again = fixture.walrelay(&["backfill"]).await.success();
    assert!(
        !again.stderr.contains("has begun and not ended"),
        "{}",
        again.stderr
    );
}

#[tokio::test]
async fn a_backfill_that_is_stopped_waits_for_what_is_in_flight_and_the_next_does_the_rest() {
    const ROWS: u64 = 30_000;
    let mut fixture = Fixture::own().await;
    let slot = "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())";
    fixture.insert(1, ROWS).await;
    fixture.sql.query_one(slot, &[&fixture.name]).await.unwrap();
    let mut backfill = fixture.start(&["backfill"]);
    eventually("some are published", async || {
        (fixture.message_count().await > 0).then_some(())
    })
    .await;
    fixture.own_servers().nats.pause();
    backfill.signal(Signal::TERM);
    backfill.logs("SIGTERM: stopping").await;
    fixture.own_servers().nats.resume();
    let said = "stopped: run it again";
    assert_eq!(backfill.ends().await, Some(1), "{}", backfill.log());
    assert!(backfill.log().contains(said), "{}", backfill.log());
    let first = fixture.message_count().await;
    assert!(0 < first && first < ROWS, "{first}");
    assert!(
        backfill.log().contains(&format!("{first} of {ROWS} rows")),
        "{}",
        backfill.log()
    );
    let again = fixture.walrelay(&["backfill"]).await.success();
    assert!(
        !again.stderr.contains("has begun and not ended"),
        "{}",
        again.stderr
    );
    assert_exactly_once(
        &(1..=ROWS).map(uuid).collect::<Vec<_>>(),
        &fixture.stored_ids().await,
    );
}
