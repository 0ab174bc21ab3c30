//! Dead letters that the stream has no more: a command publishes their rows once, whichever it is.

use crate::lane::{Lane, jetstream, letters, of_kind, set_up, stream_of};
use crate::support::eventually;
use crate::support::{Fixture, insert_sql, uuid};

/// Two rows are dead letters; the relay has taken note, the stream has them no more, and the rows are mended.
async fn gone_and_mended(fixture: &mut Fixture, lane: Lane) {
    set_up(fixture, lane).await;
    let relay = fixture.run();
    let bad = insert_sql(1, 2).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    letters(fixture, 2).await;
    kept(fixture, 2).await;
    relay.stop().await;
    stream_of(fixture).await.purge().await.unwrap();
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    assert_eq!(list.stdout.matches("    gone  ").count(), 2, "{list:?}");
}

/// Waits until the relay keeps so many in mind.
async fn kept(fixture: &Fixture, count: usize) {
    let subject = format!(
        "walrelay.lane.{}.{}.letters",
        fixture.stream_name(),
        fixture.name
    );
    eventually(format!("{count} letters are kept"), async || {
        let records = jetstream(fixture).get_stream("WALRELAY").await.ok()?;
        let message = records
            .get_last_raw_message_by_subject(&subject)
            .await
            .ok()?;
        let kept: serde_json::Value = serde_json::from_slice(&message.payload).ok()?;
        (kept["letters"].as_array()?.len() == count).then_some(())
    })
    .await;
}

/// Each row is in the stream once, and nothing calls a letter open.
async fn all_is_closed(fixture: &Fixture) {
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    assert!(list.stdout.is_empty(), "{list:?}");
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert!(!doctor.stdout.contains("open dead letter"), "{doctor:?}");
    let mut published = of_kind(fixture, "backfill").await;
    published.extend(of_kind(fixture, "retry").await);
    let mut ids: Vec<_> = published.iter().map(|stored| stored.id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [uuid(1), uuid(2)]);
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_row_that_a_backfill_has_published_is_not_retried() {
    for lane in [Lane::FastIngest, Lane::Shared] {
        let mut fixture = Fixture::with_table().await;
        gone_and_mended(&mut fixture, lane).await;
        let relay = fixture.run();
        let filled = fixture
            .walrelay(&["backfill", "--unjudged"])
            .await
            .success();
        let closed =
            "2 dead letters were open, which the stream has no more: their rows are published";
        assert!(filled.stdout.contains(closed), "{filled:?}");
        all_is_closed(&fixture).await;
        let retry = ["dead-letters", "retry", "--all"];
        let retried = fixture.walrelay(&retry).await.success();
        assert!(
            retried.stdout.contains("no open dead letters"),
            "{retried:?}"
        );
        all_is_closed(&fixture).await;
        kept(&fixture, 0).await;
        relay.stop().await;
    }
}

/// As where a backfill was killed behind its rows, or was an older one.
#[tokio::test]
async fn a_retry_sees_the_row_in_the_stream_and_only_marks() {
    let mut fixture = Fixture::new().await;
    gone_and_mended(&mut fixture, Lane::FastIngest).await;
    let filled = fixture
        .walrelay(&[
            "backfill",
            "--unjudged",
            "--where",
            "id = '00000000-0000-0000-0000-000000000001'",
        ])
        .await;
    filled.success();
    let marks = of_kind(&fixture, "retried").await;
    assert_eq!(marks.len(), 1, "{marks:?}");
    let stream = stream_of(&fixture).await;
    stream.delete_message(marks[0].sequence).await.unwrap();
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    assert_eq!(list.stdout.matches("    gone  ").count(), 2, "{list:?}");
    let retried = fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    assert!(
        retried
            .stdout
            .contains("was published already, and is marked so now"),
        "{retried:?}"
    );
    assert_eq!(of_kind(&fixture, "retry").await.len(), 1);
    all_is_closed(&fixture).await;
}

/// The row is mended by another one with its id, which the relay publishes.
#[tokio::test]
async fn a_row_that_was_inserted_again_is_not_retried() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    let bad = insert_sql(1, 2).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    letters(&fixture, 2).await;
    let delete = "DELETE FROM outbox_events WHERE id = '00000000-0000-0000-0000-000000000001'";
    fixture.sql.batch_execute(delete).await.unwrap();
    fixture.insert(1, 1).await;
    fixture.holds(3).await;
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retry = ["dead-letters", "retry", "--all"];
    let retried = fixture.walrelay(&retry).await.success();
    let told = "was published already, and is marked so now";
    assert_eq!(retried.stdout.matches(told).count(), 1, "{retried:?}");
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    assert!(list.stdout.is_empty(), "{list:?}");
    let published = of_kind(&fixture, "retry").await;
    let ids: Vec<_> = published.iter().map(|stored| stored.id()).collect();
    assert_eq!(ids, [uuid(2)]);
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
}

/// The row was deleted, inserted again and refused again; then it was mended.
#[tokio::test]
async fn a_row_that_was_refused_twice_is_published_once() {
    let table =
        "CREATE TABLE outbox_events (id ID, aggregate_id text, event_type text, event_version int,
            occurred_at timestamptz DEFAULT now(), payload_json json)";
    let bad = "INSERT INTO outbox_events VALUES
        ('00000000-0000-0000-0000-000000000001', 'a', 'has a space', 1, DEFAULT, '{}'),
        ('00000000-0000-0000-0000-000000000002', 'a', 'has a space', 1, DEFAULT, '{}')";
    let delete = "DELETE FROM outbox_events";
    let mend = "UPDATE outbox_events SET event_type = 'a.b'";
    // The stream has the letters, or only the relay's memory does.
    for (id, is_gone) in [
        ("uuid", false),
        ("uuid", true),
        ("text", false),
        ("text", true),
    ] {
        let mut fixture = Fixture::bare().await;
        let table = table.replace("ID", id);
        fixture.sql.batch_execute(&table).await.unwrap();
        set_up(&mut fixture, Lane::FastIngest).await;
        let relay = fixture.run();
        fixture.sql.batch_execute(bad).await.unwrap();
        letters(&fixture, 2).await;
        fixture.sql.batch_execute(delete).await.unwrap();
        fixture.sql.batch_execute(bad).await.unwrap();
        letters(&fixture, 4).await;
        if is_gone {
            kept(&fixture, 4).await;
        }
        relay.stop().await;
        if is_gone {
            stream_of(&fixture).await.purge().await.unwrap();
        }
        fixture.sql.batch_execute(mend).await.unwrap();
        let retry = ["dead-letters", "retry", "--all"];
        let retried = fixture.walrelay(&retry).await.success();
        let told = "has the event that was published for ";
        assert_eq!(retried.stdout.matches(told).count(), 2, "{retried:?}");
        all_is_closed(&fixture).await;
    }
}
