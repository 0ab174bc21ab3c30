//! `walrelay erase` against real servers: what goes, that nothing else does, and that the lane goes on.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::aggregate::{SECRET, TYPE, erase, insert_of, is_stored};
use crate::platform::Platform;

#[tokio::test]
async fn a_running_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    platform.insert(2).await;
    insert_of(&platform, user, TYPE, 1).await;
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    platform.wait_for(6).await;

    let dry = erase(&platform, user, &["--dry-run"], 0).await;
    assert_eq!((&dry["rows"], &dry["done"]), (&json!(3), &json!(false)));
    assert_eq!(dry["streams"][0]["events"], json!([3, 5, 6]));
    assert_eq!(platform.rows().await, 6);

    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(3), &json!(true))
    );
    let streams = json!([{"stream": "OUTBOX", "events": [3, 5, 6], "dead_letters": []}]);
    assert_eq!(receipt["streams"], streams);
    assert_eq!(receipt["aggregate_id"], json!(user));
    assert_eq!(platform.rows().await, 3);
    let again = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&again["rows"], &again["streams"][0]["events"]),
        (&json!(0), &json!([]))
    );

    // The same process, and then another one.
    platform.insert(2).await;
    platform.wait_for(8).await;
    relay.stop().await;
    platform.insert(1).await;
    platform.relay_until(9).await;
    platform.verify(0).await;
    assert!(!is_stored(&platform, SECRET));
}

#[tokio::test]
async fn a_stopped_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    platform.relay_until(3).await;
    assert!(is_stored(&platform, SECRET));
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["streams"][0]["events"], json!([2, 3]));
    assert!(!is_stored(&platform, SECRET));
    platform.insert(1).await;
    platform.relay_until(4).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn a_killed_relay_goes_on_behind_its_erased_end() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    platform.relay_until(1).await;
    let relay = platform.relay();
    insert_of(&platform, user, TYPE, 2).await;
    platform.wait_for(3).await;
    // Before its record, or behind it.
    relay.kill().await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["streams"][0]["events"], json!([2, 3]));
    let told = platform.last_sequence().await;
    platform.insert(1).await;
    platform.relay_until(told + 1).await;
    platform.verify(0).await;
}

#[tokio::test]
async fn what_is_still_to_be_published_is_not_half_erased() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    insert_of(&platform, user, TYPE, 1).await;
    platform.relay_until(1).await;
    insert_of(&platform, user, TYPE, 2).await;
    let receipt = erase(&platform, user, &["--yes"], 1).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(platform.rows().await, 3);
    platform.message(1).await;

    platform.relay_until(3).await;
    // Ended in the middle: some messages are gone, and no row.
    platform.delete_message(2).await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(receipt["streams"][0]["events"], json!([1, 3]));
}

/// An id that was another aggregate's before: `TRUNCATE … RESTART IDENTITY` gives each out again.
#[tokio::test]
async fn a_message_of_another_aggregate_stays_whatever_its_id() {
    let platform = Platform::start().await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    let relay = platform.relay();
    insert_of(&platform, one, TYPE, 2).await;
    platform.wait_for(2).await;
    let again = "CREATE TEMP TABLE before AS SELECT * FROM outbox_events";
    platform.sql.batch_execute(again).await.expect("kept");
    platform
        .sql
        .batch_execute("TRUNCATE outbox_events")
        .await
        .expect("emptied");
    let again = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                 SELECT id, $1, event_type, payload_json FROM before";
    let inserted = platform.sql.execute(again, &[&other]).await;
    inserted.expect("inserted");
    platform.wait_for(4).await;
    let receipt = erase(&platform, other, &["--yes"], 0).await;
    assert_eq!(receipt["rows"], 2);
    assert_eq!(receipt["streams"][0]["events"], json!([3, 4]));
    platform.message(1).await;
    platform.message(2).await;
    relay.stop().await;
}

#[tokio::test]
async fn an_event_outside_of_the_lane_goes_behind_a_message_that_tells_the_lanes_place() {
    let platform = Platform::start().await;
    let user = Uuid::new_v4();
    platform.insert(1).await;
    insert_of(&platform, user, "no subject", 1).await;
    platform.relay_until(2).await;
    let position = "event_type=lesson.published.v1";
    let letters = platform.output(&["dead-letters", "list", "--json"]).await;
    let letter: Value = serde_json::from_slice(&letters.stdout).expect("one letter");
    let at = letter["position"].as_str().expect("a position");
    platform
        .expect(&["dead-letters", "retry", at, "--set", position], 0)
        .await;
    let receipt = erase(&platform, user, &["--yes"], 0).await;
    let own = json!({"stream": "OUTBOX", "events": [3], "dead_letters": [2]});
    assert_eq!(
        (&receipt["streams"][0], &receipt["rows"]),
        (&own, &json!(1))
    );
    let (headers, _) = platform.message(5).await;
    let kind = headers.get("Walrelay-Kind").map(|kind| kind.as_str());
    assert_eq!(kind, Some("erased"));

    platform.insert(1).await;
    platform.relay_until(6).await;
    platform.verify(0).await;
    assert!(!is_stored(&platform, SECRET));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_erased() {
    let mut platform = Platform::start().await;
    let user = Uuid::new_v4().to_string();
    insert_of(&platform, user.parse().expect("a UUID"), TYPE, 1).await;
    platform.relay_until(1).await;
    let said = platform.expect(&["erase", "--aggregate-id", "7"], 2).await;
    assert!(
        said.contains("is no uuid, which column aggregate_id is, such as"),
        "{said}"
    );
    let said = platform
        .expect(&["erase", "--aggregate-id", &user], 2)
        .await;
    assert!(said.contains("nothing was erased: answer yes"), "{said}");
    let unknown = [
        "erase",
        "--aggregate-id",
        &user,
        "--yes",
        "--also-stream",
        "NONE",
    ];
    let said = platform.expect(&unknown, 1).await;
    assert!(said.contains("there is no stream NONE"), "{said}");
    // A role that may not delete counts, and says what is missing.
    let owners = platform.environment.clone();
    let url = platform.postgres.url("postgres");
    let make =
        "CREATE ROLE counter LOGIN REPLICATION; GRANT SELECT ON public.outbox_events TO counter";
    platform.sql.batch_execute(make).await.expect("made");
    platform.set("DATABASE_URL", &url.replace("postgres@", "counter@"));
    let user_id = user.parse().expect("a UUID");
    let dry = erase(&platform, user_id, &["--dry-run"], 1).await;
    assert_eq!(dry["rows"], json!(1));
    let told = dry["may_not_delete"].as_str().expect("a text");
    let said = ["erase", "--aggregate-id", &user, "--yes"];
    let said = platform.expect(&said, 1).await;
    assert!(said.contains(told), "{said}");
    let grant = told.split("run ").nth(1).expect("a remedy");
    platform.sql.batch_execute(grant).await.expect("it is SQL");
    let dry = erase(&platform, user_id, &["--dry-run"], 0).await;
    assert_eq!(dry.get("may_not_delete"), None);
    platform.environment = owners;
    platform.set("WALRELAY_COLUMNS_AGGREGATE_ID", "");
    let said = platform
        .expect(&["erase", "--aggregate-id", &user, "--yes"], 2)
        .await;
    assert!(
        said.contains("columns.aggregate_id names no column"),
        "{said}"
    );
    assert_eq!(platform.rows().await, 1);
    platform.message(1).await;
}

#[tokio::test]
async fn a_lane_on_a_shared_stream_goes_on_behind_its_erased_end() {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_NATS_SHARED", "true");
    platform.expect(&["setup"], 0).await;
    let (first, second) = (Uuid::new_v4(), Uuid::new_v4());
    let relay = platform.relay();
    platform.insert(2).await;
    insert_of(&platform, first, TYPE, 2).await;
    platform.holds_events(4).await;
    let receipt = erase(&platform, first, &["--yes"], 0).await;
    let events = receipt["streams"][0]["events"].as_array();
    assert_eq!(events.expect("a list").len(), 2);
    platform.insert(1).await;
    platform.holds_events(3).await;
    insert_of(&platform, second, TYPE, 1).await;
    platform.holds_events(4).await;
    relay.stop().await;

    // The same with the relay stopped.
    let receipt = erase(&platform, second, &["--yes"], 0).await;
    assert_eq!(
        (&receipt["rows"], &receipt["done"]),
        (&json!(1), &json!(true))
    );
    platform.insert(1).await;
    platform.relay_until_events(4).await;
    assert_eq!(platform.rows().await, 4);
    platform.verify(0).await;
}
