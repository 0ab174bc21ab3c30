//! A lane whose slot is on a hot standby: the commands that compare its table with the stream.

use crate::support::Fixture;
use crate::timelines::restart_with;

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
    restart_with(&mut fixture, |data| {
        std::fs::write(data.join("standby.signal"), "").unwrap();
    })
    .await;
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
        filled.stdout.starts_with("1 of 1 rows"),
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
