//! Rows of the table that are published behind the stream's end while a relay runs on it.

use std::time::Duration;

use crate::lane::{holds_events, stream_of};
use walrelay::pipeline::end_search::FOREIGN_MESSAGES_MAX;

use crate::support::{Fixture, assert_exactly_once, insert_sql, uuid};

/// Rows from before the slot was made.
const OLD: u64 = 20_000;
/// Between two live events.
const BETWEEN: Duration = Duration::from_millis(2);

/// Commits an event again and again until the backfill has ended; the last one's number.
async fn backfill_beside_inserts(fixture: &Fixture) -> u64 {
    let backfill = fixture.walrelay(&["backfill"]);
    tokio::pin!(backfill);
    let mut last = OLD + 1;
    loop {
        tokio::select! {
            backfilled = &mut backfill => {
                backfilled.success();
                return last;
            }
            () = tokio::time::sleep(BETWEEN) => {
                last += 1;
                fixture.insert(last, last).await;
            }
        }
    }
}

#[tokio::test]
async fn the_relay_goes_on_meanwhile_and_finds_its_place_behind_it() {
    let mut fixture = Fixture::with_table().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.insert(1, OLD).await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(OLD + 1, OLD + 1).await;
    fixture.holds(1).await;
    let all = backfill_beside_inserts(&fixture).await;
    holds_events(&fixture, all).await;
    let kinds: Vec<bool> = fixture
        .stored()
        .await
        .iter()
        .map(|stored| stored.kind.is_some())
        .collect();
    let first = kinds.iter().position(|backfilled| *backfilled).unwrap();
    let last = kinds.iter().rposition(|backfilled| *backfilled).unwrap();
    let live = kinds[first..last].iter().filter(|kind| !**kind).count();
    assert!(live > 0, "the relay came to nothing during the backfill");
    // A start finds the place in one look, though the lane's last own message is far away, and gone with all others.
    relay.kill();
    fixture.walrelay(&["verify"]).await.success();
    stream_of(&fixture)
        .await
        .purge()
        .sequence(all)
        .await
        .unwrap();
    relay = fixture.run();
    fixture.insert(all + 1, all + 1).await;
    fixture.holds(2).await;
    let mut ids = fixture.stored_ids().await;
    assert_eq!(ids.remove(1), uuid(all + 1));
    relay.stop().await;
}

#[tokio::test]
async fn an_expired_retry_is_no_doubt() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES ('00000000-0000-0000-0000-0000000000ff', gen_random_uuid(), 'a b', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    fixture.holds(4).await;
    let mend = "UPDATE outbox_events SET event_type = 'ab' WHERE event_type = 'a b'";
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    fixture.holds(5).await;
    relay.stop().await;
    // Everything expires, the retry at the end too.
    stream_of(&fixture).await.purge().await.unwrap();
    let relay = fixture.run();
    fixture.insert(4, 5).await;
    fixture.holds(2).await;
    assert_exactly_once(&[uuid(4), uuid(5)], &fixture.stored_ids().await);
    relay.stop().await;
}

#[tokio::test]
async fn a_lane_without_an_event_begins_behind_any_number_of_backfilled_rows() {
    let mut fixture = Fixture::with_table().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let old = FOREIGN_MESSAGES_MAX + 10;
    fixture.insert(1, old).await;
    fixture.setup().await;
    fixture.walrelay(&["backfill"]).await.success();
    let relay = fixture.run();
    fixture.insert(old + 1, old + 1).await;
    fixture.holds(old + 1).await;
    assert_eq!(fixture.stored_ids().await.last(), Some(&uuid(old + 1)));
    relay.stop().await;
}

/// A row from before the slot has no dead letter.
#[tokio::test]
async fn a_row_that_can_never_be_published_is_shown_and_mended_or_deleted() {
    let fixture = Fixture::with_table().await;
    fixture.insert(1, 3).await;
    let bad = insert_sql(8, 9).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    fixture.setup().await;
    let backfilled = fixture.walrelay(&["backfill"]).await;
    assert_eq!(backfilled.code, Some(1), "{backfilled:?}");
    assert!(backfilled.stdout.contains("3 of 5 rows"), "{backfilled:?}");
    let mut lines = backfilled.stderr.lines();
    let query = lines.find(|line| line.trim().starts_with("SELECT "));
    let query = query.unwrap_or_else(|| panic!("{backfilled:?}"));
    let shown = fixture.sql.query(query, &[]).await.unwrap();
    let mut shown: Vec<uuid::Uuid> = shown.iter().map(|row| row.get("id")).collect();
    shown.sort_unstable();
    assert_eq!(shown, [uuid(8), uuid(9)]);
    let verified = fixture.walrelay(&["verify"]).await;
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(verified.stdout.contains("missing        2"), "{verified:?}");

    // One is mended, nobody wants the other one.
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1' WHERE id = $1";
    fixture.sql.execute(mend, &[&uuid(8)]).await.unwrap();
    let delete = "DELETE FROM outbox_events WHERE id = $1";
    fixture.sql.execute(delete, &[&uuid(9)]).await.unwrap();
    let again = fixture.walrelay(&["backfill"]).await.success();
    assert!(again.stdout.contains("1 of 1 row"), "{again:?}");
    fixture.walrelay(&["verify"]).await.success();
    let mut ids = fixture.stored_ids().await;
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 8].map(uuid));
}

/// Where the stream may have had a row's message and removed it, the row stays unjudged also when it is mended.
#[tokio::test]
async fn an_unjudged_row_that_can_never_be_published_is_mended_by_what_is_printed() {
    let mut fixture = Fixture::with_table().await;
    fixture.insert(1, 2).await;
    let bad = insert_sql(3, 3).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(4, 9).await;
    fixture.holds(6).await;
    stream_of(&fixture).await.purge().await.unwrap();
    let delete = "DELETE FROM outbox_events WHERE id > $1";
    fixture.sql.execute(delete, &[&uuid(3)]).await.unwrap();

    let filled = fixture.walrelay(&["backfill", "--unjudged"]).await;
    assert_eq!(filled.code, Some(1), "{filled:?}");
    let (_, told) = filled.stderr.split_once("and run ").expect("a remedy");
    let (remedy, told) = told.split_once("; ").expect("what it is called");
    assert!(
        remedy.starts_with("walrelay backfill --unjudged --config "),
        "{remedy}"
    );
    assert!(
        told.starts_with("walrelay verify counts it as unjudged until then"),
        "{told}"
    );
    let verified = fixture.walrelay(&["verify"]).await;
    assert_eq!(verified.code, Some(3), "{verified:?}");
    assert!(verified.stdout.contains("unjudged       1"), "{verified:?}");

    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    fixture.types(remedy).await.success();
    fixture.walrelay(&["verify"]).await.success();
    assert_exactly_once(&[1, 2, 3].map(uuid), &fixture.stored_ids().await);
    relay.stop().await;
}

/// What is printed is about the rows that the command was about: others would be published too, whose events somebody else has.
#[tokio::test]
async fn the_printed_command_leaves_out_what_was_left_out() {
    let mut fixture = Fixture::with_table().await;
    let bad = insert_sql(1, 4).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    let older = "UPDATE outbox_events SET occurred_at = '2026-01-01T00:00:00Z' WHERE id = $1";
    fixture.sql.execute(older, &[&uuid(1)]).await.unwrap();
    let of_another = "UPDATE outbox_events SET event_version = 2 WHERE id = $1";
    fixture.sql.execute(of_another, &[&uuid(2)]).await.unwrap();
    fixture.configure("");
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(5, 9).await;
    fixture.holds(5).await;
    stream_of(&fixture).await.purge().await.unwrap();
    let delete = "DELETE FROM outbox_events WHERE id > $1";
    fixture.sql.execute(delete, &[&uuid(4)]).await.unwrap();
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";

    let since = ["--since", "2026-06-01T02:00:00+02:00"];
    let only = ["--where", "event_version = 1 AND event_type <> 'it''s'"];
    let filled = [&["backfill", "--unjudged"][..], &since, &only].concat();
    let filled = fixture.walrelay(&filled).await;
    assert_eq!(filled.code, Some(1), "{filled:?}");
    let (_, told) = filled.stderr.split_once("and run ").expect("a remedy");
    let (remedy, _) = told.split_once("; ").expect("an end");
    fixture.sql.batch_execute(mend).await.unwrap();
    let typed = fixture.types(remedy).await.success();
    assert!(
        typed.stdout.contains("published 2 of 2 rows"),
        "{remedy}: {typed:?}"
    );

    // And so is what verify prints.
    let verified = [&["verify"][..], &since].concat();
    let verified = fixture.walrelay(&verified).await;
    assert_eq!(verified.code, Some(3), "{verified:?}");
    let (_, told) = verified
        .stdout
        .split_once("leaves older rows out, ")
        .expect("a remedy");
    let (remedy, _) = told.split_once(" publishes them").expect("an end");
    let typed = fixture.types(remedy).await.success();
    assert!(
        typed.stdout.contains("published 1 of 1 row"),
        "{remedy}: {typed:?}"
    );
    let mut ids = fixture.stored_ids().await;
    ids.sort_unstable();
    assert_eq!(ids, [2, 3, 4].map(uuid));
    relay.stop().await;
}
