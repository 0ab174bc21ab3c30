//! Two relays on one slot: one streams, the other waits.

use crate::support::{Fixture, Output, Writer, assert_exactly_once};

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
