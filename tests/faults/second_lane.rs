//! Two lanes of one table, one of which is to delete the rows that it has published.

use crate::lane::{jetstream, stream_of};
use crate::support::{Fixture, eventually};

async fn rows(fixture: &Fixture) -> i64 {
    let query = "SELECT count(*) FROM outbox_events";
    fixture.sql.query_one(query, &[]).await.unwrap().get(0)
}

async fn has_rows(fixture: &Fixture, count: i64) {
    eventually(format!("the table has {count} rows"), async || {
        (rows(fixture).await == count).then_some(())
    })
    .await;
}

/// From now on commands are of that lane.
fn of_lane(fixture: &mut Fixture, name: &str) {
    fixture.set("WALRELAY_POSTGRES_SLOT", name);
    fixture.set("WALRELAY_POSTGRES_PUBLICATION", name);
    fixture.set("WALRELAY_NATS_STREAM", name.to_uppercase());
    fixture.set("WALRELAY_NATS_SUBJECT", format!("{name}.{{event_type}}"));
}

/// Messages that the lane's stream takes.
async fn takes(fixture: &Fixture, bytes: i32) {
    let mut config = stream_of(fixture).await.cached_info().config.clone();
    config.max_message_size = bytes;
    jetstream(fixture).update_stream(config).await.unwrap();
}

#[tokio::test]
async fn no_row_is_deleted_that_may_be_a_dead_letter_of_another_lane() {
    let mut fixture = Fixture::bare().await;
    let names = ["one", "two"].map(|lane| format!("{}_{lane}", fixture.name));
    let [one, two] = names.each_ref().map(String::as_str);
    of_lane(&mut fixture, one);
    fixture.setup().await;
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let mut first = fixture.run();
    first.streams().await;
    fixture.insert(1, 3).await;
    has_rows(&fixture, 0).await;

    of_lane(&mut fixture, two);
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "keep");
    fixture.setup().await;
    takes(&fixture, 2_000).await;
    let mut second = fixture.run();
    second.streams().await;
    let mut next = 4;
    eventually("the first lane deletes no more", async || {
        fixture.insert(next, next).await;
        next += 1;
        let told = format!("slot \"{two}\" reads table public.outbox_events too");
        first.log().contains(&told).then_some(())
    })
    .await;
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), gen_random_uuid(), 'large', jsonb_build_object('notes', repeat('x', 8000))";
    fixture.sql.batch_execute(insert).await.unwrap();
    second.logs("dead letter").await;
    second.stop().await;
    first.stop().await;

    of_lane(&mut fixture, one);
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for words in [
        format!("slot \"{two}\" reads table public.outbox_events too"),
        "Set outbox.after_publish = \"keep\"".to_owned(),
    ] {
        assert!(refused.stderr.contains(&words), "{words}: {refused:?}");
    }
    // As it says.
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "keep");
    let first = fixture.run();
    of_lane(&mut fixture, two);
    let second = fixture.run();
    fixture.prune(&["--older-than", "0s"]).await.success();
    has_rows(&fixture, 1).await;
    first.stop().await;
    second.stop().await;
    takes(&fixture, -1).await;
    let retry = ["dead-letters", "retry", "--all"];
    fixture.walrelay(&retry).await.success();
    fixture.walrelay(&["verify"]).await.success();
}
