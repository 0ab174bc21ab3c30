//! Rows that can never be published: dead letters in their place, or a halt, as configured.

use crate::support::Fixture;

/// The server takes messages up to 1 MiB.
const TOO_LARGE: &str = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'too.large', to_jsonb(repeat('x', 3000000)))";
const NO_SUBJECT: &str = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'no..subject or so', '{}')";

#[tokio::test]
async fn they_become_dead_letters_at_their_place() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let sql = |n| crate::support::insert_sql(n, n);
    let script = format!(
        "BEGIN; {}; {TOO_LARGE}; {}; {NO_SUBJECT}; {}; COMMIT",
        sql(1),
        sql(2),
        sql(3)
    );
    fixture.sql.batch_execute(&script).await.unwrap();
    fixture.holds(5).await;
    fixture.confirms(fixture.server_lsn().await).await;
    let peak = relay.status_kib("VmHWM");
    relay.stop().await;

    let stored = fixture.stored().await;
    let dead = format!("walrelay.dead.{}", fixture.name);
    for (index, message) in stored.iter().enumerate() {
        let is_dead = [1, 3].contains(&index);
        assert_eq!(message.kind.as_deref() == Some("dead-letter"), is_dead);
        assert_eq!(message.subject == dead, is_dead, "{}", message.subject);
        let ordinal = format!(":{}", index + 1);
        assert!(message.position.ends_with(&ordinal), "{}", message.position);
        assert!(message.body.len() < 10_000);
    }
    if let Some(peak) = peak {
        assert!(peak < 64 * 1024, "{peak} kB at the peak");
    }

    // The next start finds the lane's end, whatever stands there.
    fixture.sql.batch_execute(NO_SUBJECT).await.unwrap();
    let mut relay = fixture.run();
    fixture.holds(6).await;
    relay.kill();
    let relay = fixture.run();
    fixture.insert(4, 4).await;
    fixture.holds(7).await;
    relay.stop().await;
    assert_eq!(fixture.message_count().await, 7);
}

#[tokio::test]
async fn they_halt_the_lane_where_that_is_wanted() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_ON_REJECT", "halt");
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    fixture.sql.batch_execute(NO_SUBJECT).await.unwrap();
    fixture.insert(6, 7).await;
    assert_eq!(relay.ends().await, Some(4));
    assert_eq!(fixture.message_count().await, 5);
    let again = fixture.walrelay(&["run"]).await;
    assert_eq!(again.code, Some(4), "{}", again.stderr);
    assert_eq!(fixture.message_count().await, 5);

    fixture.set("WALRELAY_RELAY_ON_REJECT", "dead_letter");
    let relay = fixture.run();
    fixture.holds(8).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[5].kind.as_deref(), Some("dead-letter"));
}
