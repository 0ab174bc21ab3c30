//! The permissions of `deploy/nats-permissions.conf`: enough for each command, and each of them needed and named where it
//! is missing.

use std::path::Path;

use futures_util::StreamExt as _;

use walrelay::local::{LocalNats, NatsOptions};

use crate::support::{Fixture, Output, Servers, binaries, eventually, insert_sql};

/// A permission of the file.
#[derive(Debug, Clone)]
struct Permission {
    line: usize,
    user: String,
    list: &'static str,
    subject: String,
}

fn file() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats-permissions.conf");
    std::fs::read_to_string(path).expect("the file is in the repository")
}

/// What the file gives that cannot be left out.
fn permissions(text: &str) -> Vec<Permission> {
    let (mut user, mut list) = ("", "publish");
    let mut found = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("{ user: ") {
            user = rest.split(',').next().expect("a name");
        } else if text.starts_with("publish:") {
            list = "publish";
        } else if text.starts_with("subscribe:") {
            list = "subscribe";
        } else if let Some(subject) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            found.push(Permission {
                line,
                user: user.to_owned(),
                list,
                subject: subject.to_owned(),
            });
        }
    }
    found
}

/// The file without one of its lines, beside a user of the test's own who may do everything and needs no name.
fn configuration(without: Option<usize>) -> String {
    let text = file();
    // An empty list would allow everything.
    let lines = text.lines().enumerate();
    let kept: Vec<&str> = lines
        .map(|(line, text)| match Some(line) == without {
            true => "\"nothing\"",
            false => text,
        })
        .collect();
    let mut text = kept
        .join("\n")
        .replace("users: [", "users: [ { user: tester, password: p }");
    for permission in permissions(&file()) {
        let variable = format!("${}_PASSWORD", permission.user.to_uppercase());
        text = text.replace(&variable, "p");
    }
    format!("{text}\nno_auth_user: tester\n")
}

/// A lane with the default names, which the file has, on servers of its own.
async fn fixture() -> Fixture {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.set("WALRELAY_NAME", "walrelay");
    fixture.set("WALRELAY_NATS_STREAM", "OUTBOX");
    fixture.set("WALRELAY_NATS_SUBJECT", "outbox.{event_type}");
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    nats.reload(configuration(None)).await.unwrap();
    nats.start_again().await.unwrap();
    fixture.nats = async_nats::connect(fixture.servers().nats.url())
        .await
        .unwrap();
    fixture
}

async fn reload(fixture: &mut Fixture, without: Option<usize>) {
    let text = configuration(without);
    let nats = &mut fixture.own_servers().nats;
    nats.reload(text).await.unwrap();
    let log = nats.log_tail();
    assert!(!log.contains("Failed to reload"), "{log}");
}

fn log_in(fixture: &mut Fixture, user: &str) {
    fixture.set("WALRELAY_NATS_USER", user);
    fixture.set("WALRELAY_NATS_PASSWORD", "p");
}

fn names(text: &str, missing: &Permission) {
    let said = format!("add \"{}\" to {}.allow", missing.subject, missing.list);
    assert!(
        text.contains(&said),
        "{missing:?} is taken away, and this is said:\n{text}"
    );
    for wrong in ["timed out", "time out", "no answer", "away"] {
        assert!(!text.contains(wrong), "{missing:?} is told so:\n{text}");
    }
}

/// Runs the command with all permissions of its user, and once without each.
async fn needs_each(
    fixture: &mut Fixture,
    user: &str,
    arguments: &[&str],
    mut before: impl AsyncFnMut(&mut Fixture),
) -> Output {
    let all = permissions(&file());
    let own: Vec<Permission> = all.into_iter().filter(|own| own.user == user).collect();
    assert!(own.len() > 1, "{user}");
    for missing in &own {
        log_in(fixture, "tester");
        before(fixture).await;
        log_in(fixture, user);
        reload(fixture, Some(missing.line)).await;
        let output = fixture.walrelay(arguments).await;
        assert!(
            matches!(output.code, Some(1 | 3)),
            "{missing:?}: {output:?}"
        );
        // What doctor could not look at is part of its report.
        let report = output.stdout.lines();
        let unseen = report.filter(|line| line.contains("permission denied"));
        names(&(unseen.collect::<String>() + &output.stderr), missing);
    }
    log_in(fixture, "tester");
    before(fixture).await;
    log_in(fixture, user);
    reload(fixture, None).await;
    fixture.walrelay(arguments).await
}

async fn nothing(_: &mut Fixture) {}

async fn tear_down(fixture: &mut Fixture) {
    let all = ["teardown", "--yes", "--drop-stream"];
    fixture.walrelay(&all).await.success();
    let jetstream = async_nats::jetstream::new(
        async_nats::connect(fixture.servers().nats.url())
            .await
            .unwrap(),
    );
    let _ = jetstream.delete_stream("WALRELAY").await;
}

#[tokio::test]
async fn setup_and_teardown_need_what_the_file_gives_them() {
    let mut fixture = fixture().await;
    log_in(&mut fixture, "tester");
    fixture.setup().await;
    needs_each(&mut fixture, "setup", &["setup"], tear_down)
        .await
        .success();
    let teardown = ["teardown", "--yes", "--drop-stream"];
    let set_up = async |fixture: &mut Fixture| fixture.setup().await;
    needs_each(&mut fixture, "teardown", &teardown, set_up)
        .await
        .success();
}

/// One event, and one that can only be a dead letter.
async fn insert_both(fixture: &Fixture, number: u64) {
    fixture.insert(number, number).await;
    let bad = insert_sql(number + 1, number + 1).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
}

/// Runs a relay with all permissions of its user, and once without each, which is added while it runs.
async fn relay_needs_each(fixture: &mut Fixture, user: &str) {
    log_in(fixture, "setup");
    fixture.setup().await;
    log_in(fixture, user);
    let mut number = 1;
    for missing in permissions(&file()) {
        if missing.user != user {
            continue;
        }
        reload(fixture, Some(missing.line)).await;
        insert_both(fixture, number).await;
        number += 2;
        let relay = fixture.run();
        let said = format!("to {}.allow", missing.list);
        eventually(format!("a relay without {missing:?} says so"), async || {
            relay.log().contains(&said).then_some(())
        })
        .await;
        names(&relay.log(), &missing);
        // What a first start cannot do ends it.
        let ends = |line: &str| line.starts_with("error: ");
        if !relay.log().lines().any(ends) {
            // Somebody adds it.
            reload(fixture, None).await;
            holds_of_the_lane(fixture, number - 1).await;
            relay.stop().await;
        }
    }
    reload(fixture, None).await;
    let relay = fixture.run();
    holds_of_the_lane(fixture, number - 1).await;
    relay.stop().await;
    assert_eq!(of_the_lane(fixture).await, number - 1);
}

/// Events and dead letters; fences are no messages of the lane.
async fn of_the_lane(fixture: &Fixture) -> u64 {
    let jetstream = async_nats::jetstream::new(fixture.nats.clone());
    let stream = jetstream.get_stream("OUTBOX").await.unwrap();
    let subjects = stream.info_with_subjects(">").await.unwrap();
    let of_lane = subjects
        .map(|found| found.unwrap())
        .filter(|(subject, _)| std::future::ready(!subject.starts_with("walrelay.fence.")));
    of_lane
        .fold(0, |sum, (_, count)| async move { sum + count as u64 })
        .await
}

async fn holds_of_the_lane(fixture: &Fixture, count: u64) {
    eventually(format!("{count} messages of the lane"), async || {
        (of_the_lane(fixture).await >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn run_needs_what_the_file_gives_it() {
    relay_needs_each(&mut fixture().await, "run").await;
}

#[tokio::test]
async fn run_with_after_publish_needs_what_the_file_gives_it() {
    let mut fixture = fixture().await;
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    relay_needs_each(&mut fixture, "run_after_publish").await;
}

#[tokio::test]
async fn run_on_a_shared_stream_needs_what_the_file_gives_it() {
    let mut fixture = fixture().await;
    fixture.set("WALRELAY_NATS_SHARED", "true");
    relay_needs_each(&mut fixture, "run_shared").await;
}

/// A lane with something for each command: a row from before the slot, an event, and a dead letter whose row is mended.
async fn fill(fixture: &mut Fixture) {
    fixture.make_table().await;
    // Adoption marks what slot and stream have in common.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    // From before the slot, so that there is something to backfill.
    fixture.insert(7, 7).await;
    log_in(fixture, "tester");
    fixture.setup().await;
    let relay = fixture.run();
    insert_both(fixture, 1).await;
    holds_of_the_lane(fixture, 2).await;
    relay.stop().await;
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
}

#[tokio::test]
async fn commands_need_what_the_file_gives_them() {
    let mut fixture = fixture().await;
    fill(&mut fixture).await;
    let list = fixture.walrelay(&["dead-letters", "list", "--json"]).await;
    let letter: serde_json::Value = serde_json::from_str(list.success().stdout.trim()).unwrap();
    let position = letter["position"].as_str().unwrap();
    // Another replay's messages are in the stream, so that it is read.
    let replayed = ["replay", "--yes", "--from", "0/1"];
    fixture.walrelay(&replayed).await.success();

    for (user, arguments, code) in [
        ("position", &["position"][..], 0),
        // Of no relay that runs, which is what 1 says.
        ("position", &["status"], 1),
        // The tests' server has its sync_interval and more as by default, of which doctor warns.
        ("doctor", &["doctor"], 1),
        ("dead_letters_read", &["dead-letters", "list"], 0),
        ("dead_letters_read", &["dead-letters", "show", position], 0),
        ("verify", &["verify"], 1),
        ("tail", &["tail", "--since", "all", "--count", "1"], 0),
        ("backfill", &["backfill"], 0),
        ("replay", &["replay", "--yes", "--from", "0/2"], 0),
        (
            "dead_letters_discard",
            &["dead-letters", "discard", position, "--reason", "a test"],
            0,
        ),
        // What was discarded can be retried. Without the right to mark that, the event is there, and the next one marks it.
        ("dead_letters", &["dead-letters", "retry", position], 0),
        ("adopt", &["adopt", "--yes"], 0),
    ] {
        let output = needs_each(&mut fixture, user, arguments, nothing).await;
        assert_eq!(output.code, Some(code), "{user}: {output:?}");
    }
    log_in(&mut fixture, "verify");
    let verified = fixture.walrelay(&["verify"]).await;
    assert!(verified.stdout.contains("clean"), "{verified:?}");
}

#[tokio::test]
async fn prune_and_erase_need_what_the_file_gives_them() {
    let mut fixture = fixture().await;
    fill(&mut fixture).await;
    log_in(&mut fixture, "verify");
    let prune = ["prune", "--older-than", "0s", "--dry-run"];
    let said = fixture.walrelay(&prune).await.stderr;
    // The row from before the slot: table and stream were compared.
    assert!(said.contains("1 row is not in stream OUTBOX"), "{said}");
    let query = "SELECT aggregate_id::text FROM outbox_events ORDER BY id LIMIT 1";
    let row = fixture.sql.query_one(query, &[]).await.unwrap();
    let aggregate: String = row.get(0);
    let erase = ["erase", "--aggregate-id", &aggregate, "--yes"];
    let erased = needs_each(&mut fixture, "erase", &erase, nothing).await;
    assert!(
        erased
            .success()
            .stdout
            .contains("1 event erased in stream OUTBOX")
    );
}

/// Each run goes on where the one before has failed, so the file has the permissions in the order in which they are needed.
#[tokio::test]
async fn move_needs_what_the_file_gives_it() {
    let mut fixture = fixture().await;
    fill(&mut fixture).await;
    let arguments = ["move", "--yes", "--to-stream", "EVENTS"];
    let moved = needs_each(&mut fixture, "move", &arguments, nothing).await;
    let said = moved.success().stdout;
    assert!(said.contains("the lane lives in stream EVENTS"), "{said}");
}

/// Another NATS with the same file; an administrator has made the stream of the lanes' records.
async fn other_nats(fixture: &Fixture) -> LocalNats {
    let options = NatsOptions {
        config_extra: configuration(None),
        ..NatsOptions::default()
    };
    let other = LocalNats::start(&binaries(), options).await.unwrap();
    let here = async_nats::jetstream::new(fixture.nats.clone());
    let records = here.get_stream("WALRELAY").await.unwrap();
    let records = records.cached_info().config.clone();
    let there = async_nats::connect(other.url()).await.unwrap();
    let there = async_nats::jetstream::new(there);
    there.create_stream(records).await.unwrap();
    other
}

fn with_login(other: &LocalNats, user: &str) -> String {
    other.url().replace("nats://", &format!("nats://{user}:p@"))
}

#[tokio::test]
async fn move_to_another_nats_needs_what_the_file_gives_it_at_the_old_one() {
    let mut fixture = fixture().await;
    fill(&mut fixture).await;
    let other = other_nats(&fixture).await;
    let url = with_login(&other, "tester");
    let arguments = ["move", "--yes", "--to-nats", &url];
    let moved = needs_each(&mut fixture, "move_from", &arguments, nothing).await;
    let said = moved.success().stdout;
    assert!(
        said.contains("the lane lives in stream OUTBOX at "),
        "{said}"
    );
}

#[tokio::test]
async fn move_to_another_nats_needs_what_the_file_gives_it_at_the_new_one() {
    let mut fixture = fixture().await;
    fill(&mut fixture).await;
    let mut other = other_nats(&fixture).await;
    let url = with_login(&other, "move_to");
    let arguments = ["move", "--yes", "--to-nats", &url];
    log_in(&mut fixture, "tester");
    for missing in permissions(&file()) {
        if missing.user != "move_to" {
            continue;
        }
        let text = configuration(Some(missing.line));
        other.reload(text).await.unwrap();
        let output = fixture.walrelay(&arguments).await;
        assert_eq!(output.code, Some(1), "{missing:?}: {output:?}");
        names(&output.stderr, &missing);
    }
    other.reload(configuration(None)).await.unwrap();
    log_in(&mut fixture, "move_from");
    let said = fixture.walrelay(&arguments).await.success().stdout;
    assert!(
        said.contains("the lane lives in stream OUTBOX at "),
        "{said}"
    );
}

#[tokio::test]
async fn bulk_publishing_to_a_shared_stream_needs_what_the_file_gives_it() {
    let mut fixture = fixture().await;
    fixture.set("WALRELAY_NATS_SHARED", "true");
    fill(&mut fixture).await;
    for (user, arguments) in [
        ("backfill_shared", &["backfill"][..]),
        ("dead_letters_shared", &["dead-letters", "retry", "--all"]),
    ] {
        needs_each(&mut fixture, user, arguments, nothing)
            .await
            .success();
    }
}
