//! What becomes of dead letters: the stream alone tells which are open, retried and discarded.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::Value;

use crate::lane::{LANES, Lane, event_count, jetstream, letters, of_kind, set_up, stream_of};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Output, Servers, Stored, eventually, insert_sql, uuid};

/// Inserts rows whose type makes no subject.
async fn insert_bad(fixture: &Fixture, first: u64, last: u64) {
    let bad = insert_sql(first, last).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
}

async fn mend(fixture: &Fixture) {
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
}

async fn command(fixture: &Fixture, command: &str, arguments: &[&str]) -> Output {
    let all = [&["dead-letters", command], arguments].concat();
    fixture.walrelay(&all).await
}

/// Positions and states of what `list` shows.
async fn listed(fixture: &Fixture, arguments: &[&str]) -> Vec<(String, String)> {
    let all = [arguments, &["--json"]].concat();
    let list = command(fixture, "list", &all).await.success();
    let letters = list.stdout.lines().map(|line| {
        let letter: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| letter[name].as_str().unwrap().to_owned();
        assert_eq!(letter["state_at"].is_null(), letter["state"] == "open");
        (text("position"), text("state"))
    });
    letters.collect()
}

async fn report(fixture: &Fixture, code: i32) -> Value {
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verified.code, Some(code), "{verified:?}");
    serde_json::from_str(&verified.stdout).unwrap()
}

async fn with_table(mut fixture: Fixture, lane: Lane) -> Fixture {
    fixture.make_table().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    set_up(&mut fixture, lane).await;
    fixture
}

#[tokio::test]
async fn the_stream_tells_what_became_of_each() {
    for lane in LANES {
        let mut fixture = with_table(Fixture::bare().await, lane).await;
        let mut relay = fixture.run();
        relay.streams().await;
        fixture.insert(1, 5).await;
        insert_bad(&fixture, 6, 8).await;
        let letters = letters(&fixture, 3).await;
        let at: Vec<&str> = letters.iter().map(|m| m.position.as_str()).collect();
        assert_eq!(report(&fixture, 1).await["dead_lettered"]["count"], 3);
        let no_reason = command(&fixture, "discard", &[at[0]]).await;
        assert_eq!(no_reason.code, Some(2), "{no_reason:?}");

        let why = "sent by hand: \"ä\"";
        let discarded = command(&fixture, "discard", &[at[0], "--reason", why]).await;
        assert_eq!(discarded.success().stdout, format!("{} discarded\n", at[0]));
        mend(&fixture).await;
        let retried = command(&fixture, "retry", &[at[1]]).await.success();
        assert_eq!(retried.stdout, format!("{} published\n", at[1]));
        // The lane goes on, in this process and the next.
        fixture.insert(9, 9).await;
        eventually("an event behind the marks", async || {
            (event_count(&fixture).await >= 7).then_some(())
        })
        .await;
        relay.kill();
        let mut relay = fixture.run();
        relay
            .logs("`walrelay dead-letters list` shows them open=1")
            .await;
        fixture.insert(10, 10).await;
        eventually("an event of the next relay", async || {
            (event_count(&fixture).await >= 8).then_some(())
        })
        .await;
        relay.stop().await;

        let open = [(at[2].to_owned(), "open".to_owned())];
        assert_eq!(listed(&fixture, &[]).await, open, "{lane:?}");
        let states = ["discarded", "retried", "open"].map(str::to_owned);
        let all: Vec<_> = at.iter().map(|at| (*at).to_owned()).zip(states).collect();
        assert_eq!(listed(&fixture, &["--all"]).await, all, "{lane:?}");
        let text = command(&fixture, "list", &["--all"]).await.success().stdout;
        assert!(text.contains("\"sent by hand: \\\"ä\\\"\""), "{text}");
        for again in [
            &["retry", at[1]][..],
            &["discard", at[0], "--reason", "x"],
            &["discard", at[1], "--reason", "x"],
        ] {
            let again = command(&fixture, again[0], &again[1..]).await;
            assert_eq!(again.code, Some(1), "{again:?}");
            assert!(again.stdout.contains("was already"), "{again:?}");
        }
        let one_open = report(&fixture, 1).await;
        assert_eq!(
            (&one_open["dead_lettered"]["count"], &one_open["discarded"]),
            (&1.into(), &1.into()),
            "{one_open}"
        );

        command(&fixture, "discard", &["--all", "--reason", "a test"])
            .await
            .success();
        let all = report(&fixture, 0).await;
        assert_eq!(all["discarded"], 2);
        // Each message is one of these.
        let parts = ["events", "again", "dead_letters", "marks", "foreign"];
        let count = |part: &str| all[part].as_u64().expect("a count");
        assert!(count("dead_letters") >= 3 && count("marks") >= 2, "{all}");
        assert_eq!(
            parts.map(count).iter().sum::<u64>(),
            count("messages"),
            "{all}"
        );
        let told = fixture.walrelay(&["verify"]).await.success();
        assert!(
            told.stdout.contains("walrelay dead-letters list --all"),
            "{told:?}"
        );
        let none = command(&fixture, "list", &[]).await.success();
        assert!(
            none.stderr
                .contains("3 are retried or discarded: walrelay dead-letters list --all"),
            "{none:?}"
        );
        assert_eq!(listed(&fixture, &["--all"]).await.len(), 3);

        // Somebody wants it after all.
        command(&fixture, "retry", &[at[0]]).await.success();
        assert_eq!(report(&fixture, 0).await["discarded"], 1);
        command(&fixture, "retry", &["--all"]).await.success();
        assert_eq!(of_kind(&fixture, "retry").await.len(), 2, "{lane:?}");
    }
}

/// One account, in which everybody is who gives no name, with these permissions.
fn account(permissions: &str) -> String {
    format!(
        "accounts {{ A {{ jetstream: enabled, users: [{{ user: a, password: a {permissions} }}] }} }}
         no_auth_user: a"
    )
}

#[tokio::test]
async fn a_retry_that_ended_before_its_mark_is_only_marked_by_the_next() {
    for lane in LANES {
        let mut fixture = Fixture::bare_on(Servers::own().await).await;
        let nats = &mut fixture.own_servers().nats;
        nats.stop().await.unwrap();
        nats.reload(account("")).await.unwrap();
        nats.start_again().await.unwrap();
        fixture.nats = async_nats::connect(fixture.servers().nats.url())
            .await
            .unwrap();
        let mut fixture = with_table(fixture, lane).await;
        let relay = fixture.run();
        insert_bad(&fixture, 1, 3).await;
        let letters = letters(&fixture, 3).await;
        relay.stop().await;
        mend(&fixture).await;
        // The event is stored, the mark is refused: as where the command is killed between the two.
        let denied = account(", permissions: { publish: { deny: \"walrelay.dead.>\" } }");
        fixture.own_servers().nats.reload(denied).await.unwrap();
        for letter in &letters[..2] {
            let ended = command(&fixture, "retry", &[&letter.position]).await;
            assert_eq!(ended.code, Some(1), "{ended:?}");
            assert!(ended.stderr.contains("run this again"), "{ended:?}");
        }
        assert_eq!(of_kind(&fixture, "retry").await.len(), 2, "{lane:?}");
        assert_eq!(listed(&fixture, &[]).await.len(), 3, "{lane:?}");

        let allowed = account("");
        fixture.own_servers().nats.reload(allowed).await.unwrap();
        let again = command(&fixture, "retry", &[&letters[0].position])
            .await
            .success();
        assert!(again.stdout.contains("was published already"), "{again:?}");
        // Nor is it discarded.
        let discard = [&letters[1].position, "--reason", "a test"];
        let discard = command(&fixture, "discard", &discard).await;
        assert_eq!(discard.code, Some(1), "{discard:?}");
        command(&fixture, "retry", &["--all"]).await.success();
        let states: Vec<_> = listed(&fixture, &["--all"]).await;
        assert!(
            states.iter().all(|(_, state)| state == "retried"),
            "{states:?}"
        );
        assert_eq!(of_kind(&fixture, "retry").await.len(), 3, "{lane:?}");
        assert_eq!(of_kind(&fixture, "retried").await.len(), 3, "{lane:?}");
        report(&fixture, 0).await;
    }
}

/// Marks the dead letter as retried, as one did that took another message for its retry.
async fn mark_as_retried(fixture: &Fixture, letter: &Stored) {
    let mut headers = async_nats::HeaderMap::new();
    let told = format!("{} {}", fixture.name, letter.position);
    headers.insert("Walrelay-Kind", "retried");
    headers.insert("Walrelay-Dead-Letter", told.as_str());
    let body = serde_json::json!({"id": letter.field("id"), "position": letter.position});
    let subject = format!("walrelay.dead.{}", fixture.name);
    let streams = jetstream(fixture);
    let publish = streams.publish_with_headers(subject, headers, body.to_string().into());
    publish.await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_mark_without_its_event_is_not_believed() {
    for lane in LANES {
        let fixture = &mut with_table(Fixture::bare().await, lane).await;
        let relay = fixture.run();
        insert_bad(fixture, 1, 4).await;
        let letters = letters(fixture, 4).await;
        relay.stop().await;
        mend(fixture).await;
        for letter in &letters[..2] {
            command(fixture, "retry", &[&letter.position])
                .await
                .success();
        }
        for letter in &letters[2..] {
            mark_as_retried(fixture, letter).await;
        }
        let found = report(fixture, 1).await;
        assert_eq!(found["missing"]["count"], 2, "{lane:?}: {found}");
        assert_eq!(found["unretried"], 2, "{lane:?}: {found}");
        assert_eq!(found["dead_lettered"]["count"], 0, "{lane:?}: {found}");

        // What the table has no row of, the letter alone has.
        let sql = "DELETE FROM outbox_events WHERE id = $1";
        fixture.sql.execute(sql, &[&uuid(3)]).await.unwrap();
        let found = report(fixture, 1).await;
        assert_eq!(found["missing"]["count"], 1, "{lane:?}: {found}");
        assert_eq!(found["dead_lettered"]["count"], 1, "{lane:?}: {found}");

        // Both ways to publish them after all.
        let told = fixture.walrelay(&["verify"]).await;
        assert!(
            told.stdout.contains("walrelay dead-letters retry"),
            "{told:?}"
        );
        let row = r#"event_type=lesson.published.v1"#;
        let retry = [&letters[2].position, "--set", row];
        let retried = command(fixture, "retry", &retry).await.success();
        assert!(retried.stdout.contains("published"), "{retried:?}");
        fixture.walrelay(&["verify", "--repair"]).await.success();
        assert_eq!(report(fixture, 0).await["unretried"], 0, "{lane:?}");
        assert_eq!(event_count(fixture).await, 4, "{lane:?}");
        for letter in &letters[..3] {
            let again = command(fixture, "retry", &[&letter.position]).await;
            assert_eq!(again.code, Some(1), "{again:?}");
            assert!(again.stdout.contains("was already retried"), "{again:?}");
        }

        // A stream that has removed letters and events, and not the last mark, does not make doubts.
        let last = fixture.stored().await.last().unwrap().sequence;
        mark_as_retried(fixture, &letters[3]).await;
        let stream = stream_of(fixture).await;
        stream.purge().sequence(last + 1).await.unwrap();
        let sql = "DELETE FROM outbox_events WHERE id <> $1";
        fixture.sql.execute(sql, &[&uuid(4)]).await.unwrap();
        assert_eq!(report(fixture, 0).await["unretried"], 0, "{lane:?}");
    }
}

/// How many of the listed ones are in this state.
async fn count(fixture: &Fixture, state: &str) -> usize {
    let listed = listed(fixture, &["--all"]).await;
    listed.iter().filter(|(_, found)| found == state).count()
}

#[tokio::test]
async fn a_retry_and_a_discard_that_are_stopped_mark_what_they_have_done_and_give_the_lease_back() {
    const ROWS: usize = 600;
    let mut fixture = with_table(Fixture::own().await, Lane::FastIngest).await;
    let mut relay = fixture.run();
    insert_bad(&fixture, 1, ROWS as u64).await;
    fixture.holds(ROWS as u64).await;
    mend(&fixture).await;

    // Beside a relay, and one that waits for the table.
    let locker = fixture.begins("LOCK TABLE outbox_events").await;
    let mut waiting = fixture.start(&["dead-letters", "retry", "--all"]);
    let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    eventually("it waits for the table", async || {
        let waiting: i64 = fixture.sql.query_one(sql, &[]).await.unwrap().get(0);
        (waiting > 0).then_some(())
    })
    .await;
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.ends().await, Some(1), "{}", waiting.log());
    assert!(waiting.log().contains("run it again"), "{}", waiting.log());
    locker.batch_execute("ROLLBACK").await.unwrap();
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));

    // Slow enough for the broker to stand still before the command has come to its end.
    let link = Proxy::start(fixture.servers().nats.port()).await.unwrap();
    link.set(Mode::Throttle(60_000));
    let (direct, slow) = (
        fixture.servers().nats.url(),
        format!("nats://127.0.0.1:{}", link.port()),
    );
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "5min");
    for (arguments, state) in [
        (&["retry", "--all"][..], "retried"),
        (&["discard", "--all", "--reason", "a test"], "discarded"),
    ] {
        let before = fixture.message_count().await;
        let arguments = [&["dead-letters"], arguments].concat();
        fixture.set("WALRELAY_NATS_URL", slow.clone());
        let mut stopped = fixture.start(&arguments);
        fixture.set("WALRELAY_NATS_URL", direct.clone());
        eventually("something of it is stored", async || {
            (fixture.message_count().await > before).then_some(())
        })
        .await;
        fixture.own_servers().nats.pause();
        stopped.signal(Signal::TERM);
        stopped.logs("SIGTERM: stopping").await;
        fixture.own_servers().nats.resume();
        assert_eq!(stopped.ends().await, Some(1), "{}", stopped.log());
        assert!(!stopped.log().contains("has begun and not ended"));
        let done = count(&fixture, state).await;
        assert!(done > 0, "none {state}");
        assert_eq!(of_kind(&fixture, state).await.len(), done);
    }
    assert_eq!(
        of_kind(&fixture, "retry").await.len(),
        count(&fixture, "retried").await
    );
    let rest = command(&fixture, "retry", &["--all"]).await.success();
    assert!(!rest.stderr.contains("has begun and not ended"), "{rest:?}");
    assert_eq!(count(&fixture, "open").await, 0);
    let retries = of_kind(&fixture, "retry").await;
    let ids: BTreeSet<_> = retries.iter().map(Stored::id).collect();
    assert_eq!(ids.len(), retries.len(), "each once");
    assert_eq!(retries.len() + count(&fixture, "discarded").await, ROWS);
}

/// Makes the streams that docs/consumers.md has, of this lane, and returns their names.
async fn make_copies(fixture: &Fixture) -> Vec<String> {
    let text = include_str!("../../docs/consumers.md");
    let mut names = Vec::new();
    for block in text.split("```json\n").skip(1) {
        let config = block.split("```").next().unwrap();
        let config = config
            .replace("\"OUTBOX", &format!("\"{}", fixture.stream_name()))
            .replace("\"outbox.>", &format!("\"{}.>", fixture.name));
        let parsed: Value = serde_json::from_str(&config).unwrap();
        let name = parsed["name"].as_str().unwrap().to_owned();
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        let made = fixture.nats.request(subject, config.into()).await.unwrap();
        let made: Value = serde_json::from_slice(&made.payload).unwrap();
        assert!(made["error"].is_null(), "{made}");
        names.push(name);
    }
    names
}

#[tokio::test]
async fn copies_have_dead_letters_and_events_apart_through_a_killed_server() {
    let mut fixture = with_table(Fixture::own().await, Lane::FastIngest).await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 100).await;
    insert_bad(&fixture, 101, 110).await;
    let copies = make_copies(&fixture).await;
    assert_eq!(copies.len(), 2);
    // Killed wherever the copies are by then, with more to come.
    for first in [200, 400] {
        let rows = (first..first + 100).step_by(10).map(|n| {
            let (good, bad) = (insert_sql(n, n + 7), insert_sql(n + 8, n + 9));
            format!(
                "{good}; {}",
                bad.replace("lesson.published.v1", "has a space")
            )
        });
        let rows = rows.collect::<Vec<_>>().join(";");
        fixture.sql.batch_execute(&rows).await.unwrap();
        eventually("some of it is in the stream", async || {
            (fixture.message_count().await > 110).then_some(())
        })
        .await;
        fixture.own_servers().nats.kill();
        fixture.own_servers().nats.start_again().await.unwrap();
    }
    fixture.holds(310).await;
    let letter = &letters(&fixture, 50).await[49];
    let why = ["--reason", "a test"];
    let discard = [&[letter.position.as_str()][..], &why].concat();
    command(&fixture, "discard", &discard).await.success();

    let told = |stored: &[Stored], is_dead: bool| -> Vec<_> {
        let of_kind = stored
            .iter()
            .filter(|m| m.subject.starts_with("walrelay.dead.") == is_dead);
        let told = of_kind.map(|m| (m.subject.clone(), m.headers.clone(), m.body.clone()));
        told.collect()
    };
    let lane = fixture.stored().await;
    for (name, is_dead, count) in [(&copies[0], true, 51), (&copies[1], false, 260)] {
        let copy = eventually(format!("all of {name}"), async || {
            let copy = fixture.stored_in(name).await;
            (copy.len() >= count).then_some(copy)
        })
        .await;
        assert_eq!(copy.len(), count);
        assert!(told(&copy, !is_dead).is_empty());
        assert_eq!(told(&copy, is_dead), told(&lane, is_dead));
    }

    // What is erased goes from both.
    for of in ["= 'has a space'", "<> 'has a space'"] {
        let sql =
            format!("SELECT aggregate_id::text FROM outbox_events WHERE event_type {of} LIMIT 1");
        let aggregate: String = fixture.sql.query_one(&sql, &[]).await.unwrap().get(0);
        let erase = ["erase", "--aggregate-id", &aggregate, "--yes"];
        fixture.walrelay(&erase).await.success();
        for name in &copies {
            let copy = fixture.stored_in(name).await;
            assert!(copy.iter().all(|m| !m.body.contains(&aggregate)));
        }
    }
    assert_eq!(told(&fixture.stored_in(&copies[1]).await, false).len(), 259);
    relay.stop().await;
}
