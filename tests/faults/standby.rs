//! A lane whose slot is on a hot standby: the commands that compare its table with the stream, and a promotion under a
//! relay that streams.

use crate::lane::{judge_events, logs_from};
use crate::support::{Fixture, Relay, uuid};
use crate::timelines::{is_promoted, restart_with};

async fn becomes_a_standby(fixture: &mut Fixture) {
    restart_with(fixture, |data| {
        std::fs::write(data.join("standby.signal"), "").unwrap();
    })
    .await;
}

#[tokio::test]
async fn table_and_stream_are_compared_on_a_standby() {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    fixture.insert(11, 15).await;
    let stream = crate::lane::stream_of(&fixture).await;
    assert!(stream.delete_message(3).await.unwrap());
    becomes_a_standby(&mut fixture).await;
    let recovery = fixture
        .sql
        .query_one("SELECT pg_is_in_recovery()", &[])
        .await;
    assert!(recovery.unwrap().get::<_, bool>(0));

    let verified = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(
        verified.code,
        Some(1),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["missing"]["count"], 1, "{report}");
    assert_eq!(report["pending"], 5, "{report}");
    let filled = fixture.walrelay(&["backfill"]).await.success();
    assert!(
        filled.stdout.starts_with("published 1 of 1 row that"),
        "{}",
        filled.stdout
    );
    let relay = fixture.run();
    fixture.holds(15).await;
    relay.stop().await;
    let clean = fixture.walrelay(&["verify"]).await.success();
    assert!(clean.stdout.contains("on a standby"), "{}", clean.stdout);

    // Beside a slot that is elsewhere the stream may be ahead of this table.
    let dropped = fixture
        .sql
        .execute("SELECT pg_drop_replication_slot($1)", &[&fixture.name])
        .await;
    dropped.unwrap();
    let refused = fixture.walrelay(&["verify"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("is a standby and has no slot"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn what_deletes_rows_is_refused_on_a_standby() {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    becomes_a_standby(&mut fixture).await;
    let aggregate = uuid(1).to_string();
    for arguments in [
        &["prune", "--older-than", "0s"][..],
        &["erase", "--yes", "--aggregate-id", &aggregate],
    ] {
        let refused = fixture.walrelay(arguments).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let why = "is a standby, which takes no DELETE: name the primary";
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    for after_publish in ["mark", "delete"] {
        fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", after_publish);
        let refused = fixture.walrelay(&["run"]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let why = format!("outbox.after_publish = \"{after_publish}\": this server is a standby");
        assert!(refused.stderr.contains(&why), "{refused:?}");
    }
    assert_eq!(fixture.message_count().await, 3);
}

/// A lane on a standby that is promoted while its relay streams, and goes on with five events.
async fn promoted_under() -> (Fixture, Relay) {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    becomes_a_standby(&mut fixture).await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture
        .sql
        .batch_execute("SELECT pg_promote()")
        .await
        .unwrap();
    is_promoted(&fixture).await;
    fixture.insert(11, 15).await;
    (fixture, relay)
}

#[tokio::test]
async fn a_standby_is_promoted_under_the_relay() {
    let (mut fixture, mut relay) = promoted_under().await;
    const PROMOTED: &str = "from timeline 1 to 2";
    let log = logs_from(&mut relay, 0, PROMOTED).await;
    let logged = log.find(PROMOTED).expect("it was found just now");
    logs_from(&mut relay, logged, "streaming, behind").await;

    // It sees what happens to the publication.
    let alter = |what: &str| {
        format!(
            "ALTER PUBLICATION {} {what} TABLE outbox_events",
            fixture.name
        )
    };
    for sql in [alter("DROP"), alter("ADD")] {
        fixture.sql.batch_execute(&sql).await.unwrap();
    }
    logs_from(&mut relay, logged, "publication or table was changed").await;
    fixture.insert(16, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;

    // What it confirms there is explained to the next start, also without an event.
    let other = "CREATE TABLE other AS SELECT repeat('x', 500) FROM generate_series(1, 2000)";
    fixture.sql.batch_execute(other).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let mut relay = fixture.run();
    relay.streams().await;
    relay.stop().await;
}

/// Before it has seen the promotion.
#[tokio::test]
async fn a_relay_is_killed_right_behind_a_promotion() {
    let (mut fixture, mut relay) = promoted_under().await;
    fixture.holds(15).await;
    fixture.receives(fixture.server_lsn().await).await;
    relay.kill();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(16, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}
