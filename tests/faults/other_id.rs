//! The configuration names another column for the events' ids than the one that messages tell.

use crate::lane::holds_events;
use crate::support::Fixture;

const SET: &str = "Set columns.id = \"id\". ";

#[tokio::test]
async fn another_id_is_refused_until_it_is_adopted_and_a_renamed_one_goes_on() {
    let mut fixture = Fixture::new().await;
    let add = "ALTER TABLE outbox_events ADD COLUMN key uuid NOT NULL DEFAULT gen_random_uuid()";
    fixture.sql.batch_execute(add).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 3).await;
    holds_events(&fixture, 3).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;

    fixture.set("WALRELAY_COLUMNS_ID", "key");
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{halted:?}");
    assert!(halted.stderr.contains(SET), "{halted:?}");
    for command in [
        &["verify"][..],
        &["backfill"],
        &["verify", "--repair"],
        &["prune", "--older-than", "0s"],
        &["dead-letters", "retry", "--all"],
    ] {
        let refused = fixture.walrelay(command).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(SET), "{refused:?}");
    }
    assert_eq!(fixture.message_count().await, 3);

    fixture.set("WALRELAY_COLUMNS_ID", "id");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(4, 4).await;
    holds_events(&fixture, 4).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let rename = "ALTER TABLE outbox_events RENAME COLUMN id TO event_id";
    fixture.sql.batch_execute(rename).await.unwrap();
    fixture.set("WALRELAY_COLUMNS_ID", "event_id");
    let mut relay = fixture.run();
    relay.streams().await;
    let insert = "INSERT INTO outbox_events (event_id, aggregate_id, event_type, payload_json)
        VALUES (gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{}')";
    fixture.sql.batch_execute(insert).await.unwrap();
    holds_events(&fixture, 5).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();

    fixture.set("WALRELAY_COLUMNS_ID", "key");
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{halted:?}");
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let mut relay = fixture.run();
    relay.streams().await;
    relay.stop().await;
    let verify = fixture.walrelay(&["verify", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&verify.stdout).unwrap();
    assert_eq!(report["missing"]["count"], 5, "{verify:?}");
}
