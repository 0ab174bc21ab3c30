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
