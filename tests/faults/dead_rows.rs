//! The row in a dead letter: whole, or not lost; published from there when the table no longer has it.

use async_nats::jetstream::stream;
use serde_json::Value;
use walrelay::local::Mode;

use crate::lane::{LANES, Lane, jetstream, set_up, stream_of};
use crate::support::{Fixture, Servers, Stored, eventually};

/// A table that lets everything in, with a column that no event has.
const TABLE: &str = "
CREATE TABLE outbox_events (
    tenant text, id text, aggregate_id text, event_type text, event_version int, occurred_at timestamptz, payload_json jsonb
)";

async fn on(servers: Option<Servers>, lane: Lane) -> Fixture {
    let mut fixture = match servers {
        Some(servers) => Fixture::bare_on(servers).await,
        None => Fixture::bare().await,
    };
    fixture.sql.batch_execute(TABLE).await.unwrap();
    set_up(&mut fixture, lane).await;
    fixture
}

/// Inserts a row; deletes it in the same transaction where it is not `kept`.
async fn insert(fixture: &Fixture, id: &str, event_type: &str, payload: &str, kept: bool) {
    let delete = match kept {
        true => String::new(),
        false => format!("DELETE FROM outbox_events WHERE id = '{id}';"),
    };
    let sql = format!(
        "BEGIN; INSERT INTO outbox_events VALUES
             ('acme', '{id}', 'a', '{event_type}', 1, '2026-11-28 07:00+00', {payload}); {delete} COMMIT"
    );
    fixture.sql.batch_execute(&sql).await.unwrap();
}

/// The lane's messages, without the fences of a shared stream, once there are so many.
async fn messages(fixture: &Fixture, count: usize) -> Vec<Stored> {
    eventually(format!("{count} messages of the lane"), async || {
        let mut stored = fixture.stored().await;
        stored.retain(|message| !message.subject.starts_with("walrelay.fence."));
        (stored.len() >= count).then_some(stored)
    })
    .await
}

async fn halted(fixture: &mut Fixture) -> String {
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("halted: "));
    line.unwrap_or_else(|| panic!("{log}")).to_owned()
}

/// What stands between the two texts.
fn between<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    let (_, text) = text.split_once(before).unwrap_or_else(|| panic!("{text}"));
    text.split_once(behind)
        .unwrap_or_else(|| panic!("{text}"))
        .0
}

#[tokio::test]
async fn a_deleted_row_is_whole_in_it_and_published_from_it() {
    let mut fixture = on(None, Lane::FastIngest).await;
    let relay = fixture.run();
    insert(&fixture, "e1", "has a space", "'{\"a\": \"é\\\\\"}'", false).await;
    let letter = messages(&fixture, 1).await.remove(0);
    let body: Value = serde_json::from_str(&letter.body).unwrap();
    assert_eq!(body["truncated"], serde_json::json!({}));
    let row = serde_json::json!({
        "tenant": "acme", "id": "e1", "aggregate_id": "a", "event_type": "has a space", "event_version": "1",
        "occurred_at": "2026-11-28 07:00:00+00", "payload_json": "{\"a\": \"é\\\\\"}"
    });
    assert_eq!(body["row"], row);

    let retry = ["dead-letters", "retry", &letter.position];
    let as_it_is = fixture.walrelay(&retry).await;
    assert_eq!(as_it_is.code, Some(1), "{}", as_it_is.stderr);
    let wrong = fixture
        .walrelay(&[
            "dead-letters",
            "retry",
            &letter.position,
            "--set",
            "tenant=x",
        ])
        .await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    let mended = [
        "dead-letters",
        "retry",
        &letter.position,
        "--set",
        "event_type=t.v1",
    ];
    fixture.walrelay(&mended).await.success();
    let event = messages(&fixture, 2).await.remove(1);
    assert_eq!(event.kind.as_deref(), Some("retry"));
    assert_eq!(
        event.body,
        "{\"id\":\"e1\",\"aggregate_id\":\"a\",\"event_type\":\"t.v1\",\"event_version\":1,\
         \"occurred_at\":\"2026-11-28T07:00:00.000000Z\",\"payload_json\":{\"a\": \"é\\\\\"}}"
    );
    relay.stop().await;
}

/// `TRUNCATE … RESTART IDENTITY` gives each id out again.
#[tokio::test]
async fn another_row_with_its_id_is_not_published_for_it() {
    let mut fixture = on(None, Lane::FastIngest).await;
    let relay = fixture.run();
    insert(&fixture, "1", "has a space", "'{\"of\": \"one\"}'", true).await;
    let large = "to_jsonb(repeat('x', 1500000))";
    insert(&fixture, "2", "t", large, true).await;
    let letters = messages(&fixture, 2).await;
    let again = "TRUNCATE outbox_events;
        INSERT INTO outbox_events SELECT 'acme', n::text, 'another', 't', 1, '2026-11-28 09:00+00', '{}'
        FROM generate_series(1, 2) n";
    fixture.sql.batch_execute(again).await.unwrap();
    messages(&fixture, 4).await;
    let set = ["--set", "event_type=t.v1"];
    let [whole, cut] = [&letters[0], &letters[1]].map(|letter| letter.position.as_str());
    let retry = [&["dead-letters", "retry", whole][..], &set].concat();
    fixture.walrelay(&retry).await.success();
    let event = messages(&fixture, 5).await.remove(4);
    assert_eq!(event.kind.as_deref(), Some("retry"));
    assert!(
        event.body.contains(r#""aggregate_id":"a""#),
        "{}",
        event.body
    );
    assert!(event.body.contains(r#"{"of": "one"}"#), "{}", event.body);
    let refused = fixture.walrelay(&["dead-letters", "retry", cut]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let said =
        "the table has another row with its id, which was given out again, and the dead letter has";
    assert!(refused.stderr.contains(said), "{}", refused.stderr);
    // The letter's own row has still what does not fit; why the table's does not count is told, and what does.
    insert(&fixture, "4", "has a space", "'{\"of\": \"four\"}'", true).await;
    let letter = messages(&fixture, 7).await.remove(6);
    let mend = "UPDATE outbox_events SET event_type = 't.v1', occurred_at = now() WHERE id = '4'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retry = ["dead-letters", "retry", &letter.position];
    let refused = fixture.walrelay(&retry).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let said = format!(
        "has another occurred_at, so it is not taken for this event: if it is, set what does not fit by walrelay dead-letters \
         retry {} --set COLUMN=VALUE",
        letter.position
    );
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    let retry = [&retry[..], &set].concat();
    fixture.walrelay(&retry).await.success();
    let all = ["dead-letters", "retry", "--all", "--set", "event_type=t.v1"];
    assert_eq!(fixture.walrelay(&all).await.code, Some(2));
    messages(&fixture, 9).await;
    // One that was mended is still its own.
    insert(&fixture, "3", "has a space", "'{}'", true).await;
    let letter = messages(&fixture, 10).await.remove(9);
    let mend = "UPDATE outbox_events SET event_type = 'mended' WHERE id = '3'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retry = ["dead-letters", "retry", &letter.position];
    fixture.walrelay(&retry).await.success();
    let event = messages(&fixture, 11).await.remove(10);
    assert!(
        event.body.contains(r#""event_type":"mended""#),
        "{}",
        event.body
    );
    relay.stop().await;
}

/// The relay reads nothing while the table is asked for a row, and Postgres shuts down only once it is read to the end.
#[tokio::test]
async fn postgres_shuts_down_while_the_table_is_asked() {
    let mut fixture = on(Some(Servers::own().await), Lane::FastIngest).await;
    let mut relay = fixture.run();
    relay.streams().await;
    // Who waits for the lock has it as soon as the row is committed, and keeps the relay from seeing it.
    let large = "BEGIN; INSERT INTO outbox_events VALUES
        ('acme', 'large', 'a', 't', 1, '2026-11-28 07:00+00', to_jsonb(repeat('x', 1500000)))";
    fixture.sql.batch_execute(large).await.unwrap();
    let locking = fixture.connect().await;
    let lock = "BEGIN; LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE";
    let locked = tokio::spawn(async move { (locking.batch_execute(lock).await, locking) });
    // Within a transaction this view shows one moment only.
    let looking = fixture.connect().await;
    let waits = async |query: &str| {
        let sql = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1";
        let found = looking.query_opt(sql, &[&query]).await.unwrap();
        found.map(|_| ())
    };
    eventually("it waits for the lock", async || {
        waits("%LOCK TABLE%").await
    })
    .await;
    fixture.sql.batch_execute("COMMIT").await.unwrap();
    let _locking = locked.await.unwrap();
    eventually("the table is asked", async || {
        waits("SELECT EXISTS (SELECT FROM%").await
    })
    .await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.expect("it stops");
    postgres.start_again().await.expect("it starts");
    fixture.reconnect().await;
    insert(&fixture, "behind", "t", "'{}'", true).await;
    let stored = messages(&fixture, 2).await;
    assert_eq!(stored[0].field("reason"), "too-large");
    assert_eq!(stored[0].field("id"), "large");
    relay.stop().await;
}

#[tokio::test]
async fn a_row_that_would_be_lost_halts_and_is_passed() {
    for lane in LANES {
        let mut fixture = on(None, lane).await;
        insert(&fixture, "before", "t", "'{}'", true).await;
        insert(
            &fixture,
            "gone",
            "t",
            "to_jsonb(repeat('x', 1500000))",
            false,
        )
        .await;
        insert(&fixture, "behind", "t", "'{}'", true).await;
        for _ in 0..2 {
            let line = halted(&mut fixture).await;
            for words in ["event gone", "max_payload of 1048576", "no longer has it"] {
                assert!(line.contains(words), "{lane:?}: no {words:?} in {line}");
            }
            assert_eq!(messages(&fixture, 1).await.len(), 1, "{lane:?}");
        }
        let line = halted(&mut fixture).await;
        let position = between(&line, "`walrelay dead-letters skip ", "`");
        fixture
            .walrelay(&["dead-letters", "skip", position])
            .await
            .success();
        let relay = fixture.run();
        let stored = messages(&fixture, 3).await;
        let body: Value = serde_json::from_str(&stored[1].body).unwrap();
        assert_eq!(
            body["truncated"],
            serde_json::json!({"payload_json": 1_500_002})
        );
        assert_eq!(body["row"]["id"], "gone");
        let retry = fixture.walrelay(&["dead-letters", "retry", position]).await;
        assert_eq!(retry.code, Some(1));
        assert!(
            retry.stderr.contains("of the 1500002 bytes"),
            "{}",
            retry.stderr
        );
        relay.stop().await;
    }
}

#[tokio::test]
async fn it_is_published_once_the_limit_that_the_halt_names_is_raised() {
    let mut servers = Servers::own().await;
    servers
        .nats
        .reload("max_payload: 10000".to_owned())
        .await
        .unwrap();
    let mut fixture = on(Some(servers), Lane::FastIngest).await;
    insert(&fixture, "gone", "t", "to_jsonb(repeat('x', 20000))", false).await;
    let line = halted(&mut fixture).await;
    assert!(line.contains("the server's max_payload of 10000"), "{line}");
    let servers = fixture.own_servers();
    servers
        .nats
        .reload("max_payload: 100000".to_owned())
        .await
        .unwrap();
    let relay = fixture.run();
    let event = messages(&fixture, 1).await.remove(0);
    assert_eq!(
        (event.kind.as_deref(), event.field("id")),
        (None, "gone".into())
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_row_that_the_table_keeps_passes_however_little_the_stream_takes() {
    for lane in LANES {
        let mut fixture = on(None, lane).await;
        limit(&fixture, 60).await;
        insert(&fixture, "kept", "t", "to_jsonb(repeat('x', 1000))", true).await;
        let least = if lane == Lane::Shared {
            // There the lane's own messages have to fit, too.
            let refused = fixture.walrelay(&["run"]).await;
            assert_eq!(refused.code, Some(1), "{}", refused.stderr);
            let (_, command) = refused
                .stderr
                .split_once("--max-msg-size=")
                .expect("a command");
            command.trim().to_owned()
        } else {
            let line = halted(&mut fixture).await;
            assert!(line.contains("the stream's max_msg_size of 60"), "{line}");
            between(&line, "Raise that limit to ", " or more").to_owned()
        };
        limit(&fixture, least.parse().expect("a number")).await;
        passes(fixture).await;
    }
}

#[tokio::test]
async fn a_row_that_the_table_keeps_passes_with_as_much_as_fits() {
    let mut fixture = on(None, Lane::FastIngest).await;
    limit(&fixture, 300).await;
    insert(&fixture, "kept", "t", "to_jsonb(repeat('x', 1000))", true).await;
    passes(fixture).await;
    fixture = on(None, Lane::FastIngest).await;
    limit(&fixture, 1_000).await;
    insert(&fixture, "kept", "t", "to_jsonb(repeat('x', 1000))", true).await;
    let letter = passes(fixture).await;
    assert_eq!(
        letter["truncated"],
        serde_json::json!({"payload_json": 1_002})
    );
    assert_eq!(letter["row"]["tenant"], "acme");
    let kept = letter["row"]["payload_json"].as_str().unwrap();
    assert!(kept.starts_with("\"xxxx") && kept.len() < 1_000, "{kept}");
}

/// The row becomes a dead letter, whose body is returned, and an event once the stream takes it.
async fn passes(mut fixture: Fixture) -> Value {
    let relay = fixture.run();
    let letter = messages(&fixture, 1).await.remove(0);
    assert_eq!(letter.kind.as_deref(), Some("dead-letter"));
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    assert!(list.stdout.contains(&letter.position), "{}", list.stdout);
    limit(&fixture, -1).await;
    let retry = ["dead-letters", "retry", &letter.position];
    // A letter without an id cannot say which row it was.
    let body: Value = serde_json::from_str(&letter.body).unwrap();
    let code = if body.get("id").is_some() { 0 } else { 1 };
    let retried = fixture.walrelay(&retry).await;
    assert_eq!(retried.code, Some(code), "{}", retried.stderr);
    relay.stop().await;
    body
}

async fn limit(fixture: &Fixture, bytes: i32) {
    let config = stream_of(fixture).await.get_info().await.unwrap().config;
    let config = stream::Config {
        max_message_size: bytes,
        ..config
    };
    jetstream(fixture).update_stream(config).await.unwrap();
}

/// Inserts rows of 20 kB until one of them is an event.
async fn an_event_comes(fixture: &Fixture, name: &str) {
    let mut tried = 0;
    eventually("a row that is an event", async || {
        tried += 1;
        let payload = "to_jsonb(repeat('x', 20000))";
        insert(fixture, &format!("{name}-{tried}"), "t", payload, true).await;
        let stored = fixture.stored().await;
        let is_event = |message: &Stored| {
            message.subject.starts_with(&fixture.name) && message.body.contains(name)
        };
        stored.iter().any(is_event).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_limit_that_is_raised_while_the_relay_runs_lets_rows_through() {
    for lane in LANES {
        let mut servers = Servers::own().await;
        let small = "max_payload: 10000".to_owned();
        servers.nats.reload(small).await.unwrap();
        let mut fixture = on(Some(servers), lane).await;
        let mut config = stream_of(&fixture).await.cached_info().config.clone();
        config.max_message_size = 5_000;
        jetstream(&fixture).update_stream(&config).await.unwrap();
        let mut relay = fixture.run();
        let payload = "to_jsonb(repeat('x', 20000))";
        insert(&fixture, "small", "t", payload, true).await;
        relay.logs("the stream's max_msg_size of 5000").await;

        config.max_message_size = -1;
        jetstream(&fixture).update_stream(&config).await.unwrap();
        let large = "max_payload: 100000".to_owned();
        fixture.own_servers().nats.reload(large).await.unwrap();
        an_event_comes(&fixture, "large").await;
        assert!(relay.runs());
        relay.stop().await;
    }
}
