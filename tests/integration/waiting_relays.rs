//! Relays that wait and have no listener: `walrelay status` knows them by their sessions.

use serde_json::Value;

use crate::support::{Fixture, Servers, eventually};

/// Looks until status says so; as JSON.
async fn says(fixture: &Fixture, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || {
        let told = fixture.walrelay(&["status", "--json"]).await;
        let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
        let lane = told["positions"]["lane"].clone();
        is_so(&lane).then_some(lane)
    })
    .await
}

fn waiting(lane: &Value) -> usize {
    lane["waiting"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn status_tells_of_a_relay_that_waits_without_a_listener() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.setup().await;
    let mut first = fixture.run();
    first.streams().await;
    let mut second = fixture.run();
    second.logs("is in use by process").await;
    let beside = |lane: &Value| lane["state"] == "running" && waiting(lane) == 1;
    says(&fixture, "one runs and one stands by", beside).await;
    let text = fixture.walrelay(&["status"]).await.stdout;
    let is_told = text
        .lines()
        .any(|line| line.starts_with("stands by     process "));
    assert!(is_told, "{text}");
    second.kill();
    let alone = |lane: &Value| lane["state"] == "running" && waiting(lane) == 0;
    says(&fixture, "one runs", alone).await;

    // The broker goes, and a relay that begins waits for it.
    first.stop().await;
    fixture.own_servers().nats.stop().await.unwrap();
    let mut third = fixture.run();
    third.logs("waiting: ").await;
    let waits = |lane: &Value| lane["state"] == "waiting" && waiting(lane) == 1;
    let lane = says(&fixture, "it waits", waits).await;
    assert_eq!(lane["waiting"][0]["host"], "127.0.0.1", "{lane}");
    assert!(lane["waiting"][0]["pid"].as_i64().is_some(), "{lane}");
    third.kill();
    let gone = |lane: &Value| lane["state"] == "unknown" && waiting(lane) == 0;
    says(&fixture, "it is gone", gone).await;
    fixture.own_servers().nats.start_again().await.unwrap();
    says(&fixture, "none is there", |lane| lane["state"] == "stopped").await;
}

/// Between two attempts they are there too.
#[tokio::test]
async fn all_looks_see_relays_that_wait_for_the_broker() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.setup().await;
    fixture.own_servers().nats.stop().await.unwrap();
    let mut relays = [fixture.run(), fixture.run()];
    for relay in &mut relays {
        relay.logs("waiting: ").await;
    }
    let wait = |lane: &Value| waiting(lane) >= 2;
    says(&fixture, "both wait", wait).await;
    for _ in 0..10 {
        let told = fixture.walrelay(&["status", "--json"]).await;
        let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
        let lane = &told["positions"]["lane"];
        assert_eq!(lane["state"], "waiting", "{told}");
        // While a session takes the place of another, both may be seen.
        assert!(waiting(lane) >= 2, "{told}");
    }
    fixture.own_servers().nats.start_again().await.unwrap();
    let beside = |lane: &Value| lane["state"] == "running" && waiting(lane) == 1;
    says(&fixture, "one runs and one stands by", beside).await;
}

/// What the lock keeps from being seen is not told as missing.
#[tokio::test]
async fn status_tells_of_a_lock_on_the_table_and_ends() {
    let fixture = Fixture::new().await;
    let locker = fixture.begins("LOCK TABLE outbox_events").await;
    let pid: i32 = locker
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let what = format!("is locked (ACCESS EXCLUSIVE) by process {pid} of Postgres");
    let end = format!("SELECT pg_terminate_backend({pid});");
    let text = fixture.walrelay(&["status"]).await;
    assert_eq!(text.code, Some(3), "{text:?}");
    assert!(text.stdout.contains(&what), "{text:?}");
    assert!(text.stdout.contains(&end), "{text:?}");
    let json = fixture.walrelay(&["status", "--json"]).await;
    assert_eq!(json.code, Some(3), "{json:?}");
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let told = &json["positions"]["locked"];
    assert!(told["what"].as_str().unwrap().contains(&what), "{json}");
    assert!(told["remedy"].as_str().unwrap().ends_with(&end), "{json}");
    assert_eq!(json["positions"]["missing"], Value::Null, "{json}");
    let position = fixture.walrelay(&["position"]).await;
    assert_eq!(position.code, Some(0), "{position:?}");
    assert!(position.stdout.contains(&what), "{position:?}");
    fixture.sql.batch_execute(&end).await.unwrap();
    let after = fixture.walrelay(&["status"]).await;
    assert_eq!(after.code, Some(1), "{after:?}");
    assert!(!after.stdout.contains("locked"), "{after:?}");
}

/// An ALTER TABLE that waits for a reader lets nobody else pass.
#[tokio::test]
async fn status_tells_of_who_is_to_have_the_lock_next() {
    let fixture = Fixture::new().await;
    let reading = "BEGIN; SELECT FROM outbox_events";
    fixture.sql.batch_execute(reading).await.unwrap();
    let altering = fixture.connect().await;
    let row = altering.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.unwrap().get(0);
    let alter = "ALTER TABLE outbox_events ADD note text";
    let altered = altering.batch_execute(alter);
    let told = async {
        let what = format!("is about to be locked (ACCESS EXCLUSIVE) by process {pid} of Postgres");
        eventually("it waits", async || {
            let status = fixture.walrelay(&["status"]).await;
            status.stdout.contains(&what).then_some(())
        })
        .await;
        fixture.sql.batch_execute("COMMIT").await.unwrap();
    };
    let (altered, ()) = tokio::join!(altered, told);
    altered.unwrap();
}
