//! Two relays on one slot: one streams, the other waits.

use rustix::process::Signal;

use crate::support::{Fixture, Output, Writer, assert_exactly_once, eventually};

#[tokio::test]
async fn a_second_relay_waits_and_takes_over() {
    let mut fixture = Fixture::new().await;
    let mut first = fixture.run();
    first.streams().await;
    let writer = Writer::start(&fixture).await;
    for _ in 0..3 {
        let mut second = fixture.run();
        second.logs("is in use").await;
        fixture.holds(fixture.message_count().await + 300).await;
        assert!(!second.log().contains("streaming, behind"));
        first.kill();
        second.streams().await;
        first = second;
    }
    let committed = writer.stop(&fixture).await;
    fixture.holds(committed.len() as u64).await;
    first.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

#[tokio::test]
async fn a_frozen_relay_that_wakes_up_changes_nothing() {
    let mut fixture = Fixture::new().await;
    let mut first = fixture.run();
    first.streams().await;
    let writer = Writer::start(&fixture).await;
    let cut =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
    for _ in 0..3 {
        let mut second = fixture.run();
        second.logs("is in use").await;
        fixture.holds(fixture.message_count().await + 300).await;
        // In the middle of whatever it does.
        first.signal(Signal::STOP);
        fixture.sql.query(cut, &[&fixture.name]).await.unwrap();
        second.streams().await;
        fixture.holds(fixture.message_count().await + 300).await;
        let before = first.log().len();
        first.signal(Signal::CONT);
        eventually("the woken relay finds its slot taken", async || {
            first.log()[before..].contains("is in use").then_some(())
        })
        .await;
        fixture.holds(fixture.message_count().await + 300).await;
        first.kill();
        first = second;
    }
    let committed = writer.stop(&fixture).await;
    fixture.holds(committed.len() as u64).await;
    first.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

#[tokio::test]
async fn a_second_relay_that_could_not_take_over_says_so_at_once() {
    let mut fixture = Fixture::new().await;
    let mut first = fixture.run();
    first.streams().await;
    for (name, wrong, mend) in [
        (
            "WALRELAY_POSTGRES_PUBLICATION",
            "nope",
            "no publication nope",
        ),
        ("WALRELAY_NATS_STREAM", "NOPE", "no stream NOPE"),
    ] {
        let mut command = fixture.command(&["run"]);
        command.env(name, wrong);
        let refused = Output::of(&mut command).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(mend), "{}", refused.stderr);
    }
    first.stop().await;
}
