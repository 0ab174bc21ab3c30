//! A slot or a publication that is gone at a start, and rows that wait where nobody reads.

use serde_json::Value;

use crate::lane::{holds_events, judge_events};
use crate::support::{Fixture, eventually, uuid};

async fn run(fixture: &Fixture, code: i32, words: &str) {
    let run = fixture.walrelay(&["run"]).await;
    assert_eq!(run.code, Some(code), "{run:?}");
    assert!(run.stderr.contains(words), "{words}: {run:?}");
}

async fn has_published(fixture: &mut Fixture, first: u64, last: u64) {
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(first, last).await;
    holds_events(fixture, last).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
}

async fn drop_slot(fixture: &Fixture) {
    let drop = format!("SELECT pg_drop_replication_slot('{}')", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
}

async fn goes_on(fixture: &mut Fixture, last: u64) {
    let relay = fixture.run();
    fixture.insert(last, last).await;
    judge_events(fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_lane_that_never_was_fails_and_one_that_has_published_halts_each_time() {
    const NO_SLOT: &str = "there is no replication slot";
    const NO_PUBLICATION: &str = "there is no publication";
    let mut fixture = Fixture::bare().await;
    run(&fixture, 1, "run walrelay setup").await;
    fixture.setup().await;
    drop_slot(&fixture).await;
    run(&fixture, 1, NO_SLOT).await;
    fixture
        .walrelay(&["teardown", "--yes", "--drop-stream"])
        .await;
    fixture.setup().await;
    has_published(&mut fixture, 1, 3).await;

    drop_slot(&fixture).await;
    fixture.insert(4, 5).await;
    for _ in 0..2 {
        run(&fixture, 4, NO_SLOT).await;
    }
    let status = fixture.walrelay(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    let lane = &status["positions"]["lane"];
    assert_eq!(lane["state"], "slot_missing", "{lane}");
    assert!(lane["halted_at"].is_string(), "{lane}");
    // As it says.
    let remedy = lane["remedy"].as_str().expect("a remedy");
    for command in ["walrelay setup", "walrelay adopt", "walrelay backfill"] {
        assert!(remedy.contains(command), "{remedy}");
    }
    fixture.setup().await;
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    fixture.walrelay(&["backfill"]).await.success();
    goes_on(&mut fixture, 6).await;

    let drop = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    fixture.insert(7, 8).await;
    for _ in 0..2 {
        run(&fixture, 4, NO_PUBLICATION).await;
    }
    fixture.begin_again().await;
    goes_on(&mut fixture, 9).await;
}

/// The finding of rows that nobody reads.
async fn waiting(fixture: &Fixture) -> Option<Value> {
    let doctor = fixture.walrelay(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let mut findings = report["findings"].as_array().expect("a list").iter();
    findings
        .find(|finding| finding["code"] == "waiting")
        .cloned()
}

#[tokio::test]
async fn rows_that_nobody_reads_are_told_by_doctor() {
    let mut fixture = Fixture::new().await;
    // What is published stays in the slot, and does not count.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 3).await;
    holds_events(&fixture, 3).await;
    relay.stop().await;
    fixture.insert(4, 5).await;
    let told = eventually("they have waited long enough", async || {
        waiting(&fixture).await
    })
    .await;
    let what = told["what"].as_str().expect("text");
    assert!(what.contains("it holds 2 rows for the stream"), "{what}");
    assert_eq!(told["severity"], "warn");
    assert!(
        told["mend"]
            .as_str()
            .unwrap()
            .contains("start walrelay run")
    );
    let relay = fixture.run();
    holds_events(&fixture, 5).await;
    assert_eq!(waiting(&fixture).await, None);
    relay.stop().await;
    assert_eq!(waiting(&fixture).await, None);
}
