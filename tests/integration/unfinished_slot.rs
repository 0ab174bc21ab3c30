//! A slot that is in the catalog and not made yet: the server's process of a setup that was killed waits for the transactions that were
//! under way, and does not look for its client meanwhile.

use rustix::process::Signal;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::{Fixture, Servers, assert_exactly_once, eventually, uuid};

/// Servers of its own: the creation of a slot waits for the transactions of all databases.
async fn bare() -> Fixture {
    Fixture::bare_on(Servers::own().await).await
}

/// Somebody who writes, and so keeps each slot from being made.
async fn writing(fixture: &Fixture) -> Client {
    fixture.begins("CREATE TABLE held (id int)").await
}

/// The server's process that makes the slot for a client that does not have the server look for it, beside all else that setup makes.
async fn maker(fixture: &mut Fixture) -> i32 {
    let mut setup = fixture.start(&["setup"]);
    setup.logs("the slot waits").await;
    setup.kill();
    is_over(fixture).await;
    let client = fixture.connect().await;
    let create = format!(
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        fixture.name
    );
    tokio::spawn(async move { client.batch_execute(&create).await });
    eventually("the slot is being made", async || {
        let row = fixture.sql.query_opt(UNFINISHED, &[&fixture.name]).await;
        row.expect("read")?.get::<_, Option<i32>>(0)
    })
    .await
}

async fn pid(session: &Client) -> i32 {
    let row = session.query_one("SELECT pg_backend_pid()", &[]).await;
    row.unwrap().get(0)
}

const UNFINISHED: &str = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn IS NULL";

/// Waits until no process makes the slot any more.
async fn is_over(fixture: &Fixture) {
    eventually("nobody makes the slot", async || {
        let row = fixture.sql.query_opt(UNFINISHED, &[&fixture.name]).await;
        row.expect("read").is_none().then_some(())
    })
    .await;
}

/// Whether the second one comes before the server has noticed or behind it: it says that it waits, and makes what is missing.
#[tokio::test]
async fn a_slot_that_a_killed_setup_has_left_half_made_is_made_again() {
    let mut fixture = bare().await;
    let writer = writing(&fixture).await;
    let mut setup = fixture.start(&["setup"]);
    setup.logs("the slot waits").await;
    setup.kill();
    let mut setup = fixture.start(&["setup"]);
    setup.logs("the slot waits").await;
    writer.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(setup.ends().await, Some(0), "{}", setup.log());
    let told = setup.log();
    assert!(told.contains("made, streams from"), "{told}");
    fixture.insert(1, 3).await;
    fixture.relay_until(3).await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_is_making_is_waited_for() {
    let mut fixture = bare().await;
    let writer = writing(&fixture).await;
    let maker = maker(&mut fixture).await;
    let made = format!("is still being made, by process {maker} of Postgres");

    // Nobody calls it there.
    let late = fixture.walrelay(&["setup", "--wait", "1s"]).await;
    assert_eq!(late.code, Some(1), "{late:?}");
    let blocker = pid(&writer).await;
    let error = late.stderr.lines().last().expect("an error");
    for told in [
        made.as_str(),
        &format!("which waits for the transaction of pid {blocker}"),
        &format!("run SELECT pg_terminate_backend({maker});"),
    ] {
        assert!(error.contains(told), "{told}: {}", late.stderr);
    }
    let doctor = fixture.walrelay(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let mut codes = findings.iter().map(|finding| &finding["code"]);
    assert!(codes.any(|code| code == "slot-unfinished"), "{report}");
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    assert!(status.stdout.contains(&made), "{status:?}");
    for command in [
        &["teardown", "--yes"][..],
        &["adopt", "--yes"],
        &["reshard", "--shares", "2"],
    ] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(&made), "{refused:?}");
    }
    let mut relay = fixture.run();
    relay
        .logs(&format!(
            "waiting: replication slot \"{}\" {made}",
            fixture.name
        ))
        .await;
    relay.stop().await;

    // What commits meanwhile is in front of it.
    fixture.insert(1, 3).await;
    let mut setup = fixture.start(&["setup"]);
    setup.logs(&made).await;
    writer.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(setup.ends().await, Some(0), "{}", setup.log());
    let told = setup.log();
    assert!(
        told.contains("3 rows are already in public.outbox_events"),
        "{told}"
    );
    assert!(
        told.lines()
            .any(|line| line.starts_with("lane record") && line.ends_with("made")),
        "{told}"
    );
    fixture.insert(4, 6).await;
    fixture.relay_until(3).await;
    let ids = (4..=6).map(uuid).collect::<Vec<_>>();
    assert_exactly_once(&ids, &fixture.stored_ids().await);
}

#[tokio::test]
async fn a_half_made_slot_goes_with_its_process_as_is_printed() {
    let mut fixture = bare().await;
    let writer = writing(&fixture).await;
    maker(&mut fixture).await;
    let late = fixture.walrelay(&["setup", "--wait", "0s"]).await;
    let begin = late.stderr.rfind("SELECT pg_terminate").expect("SQL");
    let end = late.stderr[begin..].find(';').expect("its end");
    let sql = &late.stderr[begin..=begin + end];
    fixture.sql.batch_execute(sql).await.expect(sql);
    is_over(&fixture).await;
    writer.batch_execute("ROLLBACK").await.unwrap();
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(made.stdout.contains("made, streams from"), "{made:?}");
    fixture.insert(1, 3).await;
    fixture.relay_until(3).await;
}

/// Another setup finds the slot that it has made, and a relay reads it: what it finds behind that is the lane of its own slot.
#[tokio::test]
async fn a_setup_that_stood_still_does_not_hold_the_lane_that_went_on() {
    for relay_runs in [false, true] {
        let mut fixture = bare().await;
        let writer = writing(&fixture).await;
        let mut setup = fixture.start(&["setup"]);
        setup.logs("the slot waits").await;
        setup.signal(Signal::STOP);
        writer.batch_execute("ROLLBACK").await.unwrap();
        is_over(&fixture).await;
        fixture.walrelay(&["setup"]).await.success();
        let mut relay = fixture.run();
        relay.streams().await;
        fixture.insert(1, 3).await;
        fixture.confirms(fixture.server_lsn().await).await;
        let running = match relay_runs {
            true => Some(relay),
            false => {
                relay.stop().await;
                None
            }
        };
        setup.signal(Signal::CONT);
        assert_eq!(setup.ends().await, Some(0), "{}", setup.log());
        let told = setup.log();
        let says = |word| told.contains(word);
        assert!(says("written meanwhile") && !says("adopt"), "{told}");
        let relay = running.unwrap_or_else(|| fixture.run());
        fixture.insert(4, 6).await;
        fixture.holds(6).await;
        relay.stop().await;
        let ids = (1..=6).map(uuid).collect::<Vec<_>>();
        assert_exactly_once(&ids, &fixture.stored_ids().await);
    }
}
