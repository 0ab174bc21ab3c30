//! `walrelay reshard` from one lane of all rows to shares, and back.

use uuid::Uuid;

use super::load::{
    CARRY_NOTHING, SLOTS, are_owned, change_alone, count, edit, kill_at, letters, more,
    own_streams, reshard, set_up, shares, stops, undivided, writing,
};
use super::verdict::{all_is_erased, streams_of, verdict};
use crate::support::{Fixture, Relay, Servers, Writer, options, uuid};

/// The command, with what it is told of the lane of all rows.
fn command<'a>(to: &'a str, of_undivided: &'a [String; 2]) -> Vec<&'a str> {
    let [stream, subject] = of_undivided;
    let mut command = vec!["reshard", "--shares", to, "--undivided-stream", stream];
    command.extend(["--undivided-subject", subject]);
    command
}

fn of_undivided(fixture: &Fixture) -> [String; 2] {
    let name = &fixture.name;
    [name.to_uppercase(), format!("{name}.{{event_type}}")]
}

/// Kills the command at each step, and every time a relay as well.
async fn killed_at_each_step(
    fixture: &mut Fixture,
    command: &[&str],
    steps: &[(&str, &str, i64)],
    relays: [&mut Relay; 2],
) {
    let [old, new] = relays;
    for (step, (what, query, wanted)) in steps.iter().enumerate() {
        let running = fixture.start(command);
        kill_at(fixture, running, what, query, *wanted).await;
        let relay = if step % 2 == 0 { &mut *old } else { &mut *new };
        relay.kill();
        relay_again(fixture, relay, step % 2 == 0);
    }
}

/// The same configuration as before: of the lane of all rows, or of shares.
fn relay_again(fixture: &mut Fixture, relay: &mut Relay, is_undivided: bool) {
    own_streams(fixture, if is_undivided { 1 } else { 4 });
    *relay = fixture.run();
    own_streams(fixture, 4);
}

/// The shares' subjects begin as those of the lane of all rows.
#[tokio::test]
async fn what_is_printed_of_the_lane_of_all_rows_does_not_take_the_shares_subjects() {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    fixture.set(
        "WALRELAY_NATS_STREAM",
        format!("{}_{{share}}", name.to_uppercase()),
    );
    fixture.set(
        "WALRELAY_NATS_SUBJECT",
        format!("{name}.{{share}}.{{event_type}}"),
    );
    shares(&mut fixture, 2);
    let mut fixture = set_up(fixture).await;
    let relay = fixture.run();
    fixture.insert(1, 50).await;
    let told = fixture.walrelay(&["reshard", "--shares", "1"]).await;
    assert_eq!(told.code, Some(2), "{}", told.stderr);
    let flags = format!(
        "--undivided-stream {} --undivided-subject '{name}.all.{{event_type}}'",
        name.to_uppercase()
    );
    let told = told.stderr.trim_end();
    assert!(told.ends_with(&format!(": give {flags}")), "{told}");
    let all = [name.to_uppercase(), format!("{name}.all.{{event_type}}")];
    fixture.walrelay(&command("1", &all)).await.success();
    stops(relay).await;
    // And back: what the lane has is known. Its subjects would be the shares' too if theirs began with it.
    let told = fixture.walrelay(&["setup"]).await;
    types(&fixture, &printed(&told.stderr, "or run walrelay ")).await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    let relay = fixture.run();
    are_owned(&fixture, 2).await;
    stops(relay).await;
    fixture.walrelay(&["verify"]).await.success();
}

/// The lane of all rows has the root that the shares' subjects begin with.
#[tokio::test]
async fn shares_below_the_root_of_the_lane_of_all_rows_are_refused_with_another_one() {
    let mut fixture = undivided().await;
    let name = fixture.name.clone();
    own_streams(&mut fixture, 2);
    fixture.set(
        "WALRELAY_NATS_SUBJECT",
        format!("{name}.{{share}}.{{event_type}}"),
    );
    let all = of_undivided(&fixture);
    let divide = command("2", &all);
    let refused = fixture.walrelay(&divide).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let (_, such) = refused.stderr.split_once("such as ").expect("a subject");
    let such = such.lines().next().expect("a line").trim_end_matches(';');
    assert!(such.contains(".{share}."), "{}", refused.stderr);
    fixture.set(
        "WALRELAY_NATS_SUBJECT",
        such.split(';').next().unwrap().to_owned(),
    );
    fixture.walrelay(&divide).await.success();
}

#[tokio::test]
async fn to_a_stream_each_and_back_under_load_and_kills() {
    let mut fixture = undivided().await;
    let mut old = fixture.run();
    let writer = Writer::start(&fixture).await;
    own_streams(&mut fixture, 4);
    let mut new = fixture.run();
    new.logs("the outbox is not divided").await;
    let given = of_undivided(&fixture);
    more(&fixture, &writer, &given[0]).await;

    let divide = command("4", &given);
    let dry: Vec<&str> = divide.iter().copied().chain(["--dry-run"]).collect();
    let dry = fixture.walrelay(&dry).await.success().stdout;
    let nothing = format!(
        "ALTER PUBLICATION {} SET TABLE public.outbox_events WHERE (false);",
        fixture.name
    );
    assert!(dry.contains(&nothing) && dry.contains("& 3) = 2"), "{dry}");
    assert_eq!(count(&fixture, SLOTS).await, 1, "nothing was made");
    let without = fixture.walrelay(&["reshard", "--shares", "4"]).await;
    assert!(
        without.stderr.contains("--undivided-stream"),
        "{}",
        without.stderr
    );

    let steps = [
        ("a publication is made", "FROM pg_publication", 2),
        ("a slot is made", SLOTS, 3),
        (
            "the publications are changed",
            "FROM pg_publication_tables WHERE rowfilter LIKE '%& 3)%'",
            4,
        ),
    ];
    killed_at_each_step(&mut fixture, &divide, &steps, [&mut old, &mut new]).await;
    fixture.walrelay(&divide).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 4);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 4);
    // It publishes nothing beside the shares, and says what to set, now and when it is started again.
    old.logs("set relay.shares = 4").await;
    are_owned(&fixture, 4).await;
    more(&fixture, &writer, &streams_of(&fixture, 1)[0]).await;
    own_streams(&mut fixture, 1);
    fixture
        .walrelay(&["setup"])
        .await
        .refused("set relay.shares = 4");
    stops(old).await;
    let mut old = fixture.run();
    old.logs("set relay.shares = 4").await;
    own_streams(&mut fixture, 4);

    let back = command("1", &given);
    let steps = [
        ("the publication is made", "FROM pg_publication", 5),
        ("the slot is made", SLOTS, 5),
        ("the publications are changed", CARRY_NOTHING, 4),
    ];
    killed_at_each_step(&mut fixture, &back, &steps, [&mut old, &mut new]).await;
    fixture.walrelay(&back).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 1);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 1);
    more(&fixture, &writer, &given[0]).await;
    let committed = writer.stop(&fixture).await;
    let mut streams = streams_of(&fixture, 4);
    streams.push(given[0].clone());
    verdict(&fixture, &committed, &streams).await;
    stops(new).await;
    // Whoever still has the old configuration is told the same by each command, and what it says is a way out.
    let told = "the outbox is not divided, and relay.shares is 4";
    let mend = "set relay.shares = 1 in every configuration, or run walrelay reshard --shares 4";
    for command in ["status", "doctor", "setup", "verify"] {
        let said = fixture.walrelay(&[command]).await;
        assert_ne!(
            said.code,
            Some(0),
            "{command}: {}{}",
            said.stdout,
            said.stderr
        );
        let said = said.stdout + &said.stderr;
        assert!(
            said.contains(told) && said.contains(mend),
            "{command}: {said}"
        );
        assert!(!said.contains("run walrelay setup"), "{command}: {said}");
    }
    own_streams(&mut fixture, 1);
    fixture.walrelay(&["verify"]).await.success();
    stops(old).await;
}

/// What is left of the lane of all rows is published by the command where no relay has its configuration any more.
#[tokio::test]
async fn the_command_publishes_what_is_left_and_nothing_is_missing() {
    let mut fixture = undivided().await;
    fixture.insert(1, 100).await;
    own_streams(&mut fixture, 2);
    let relay = fixture.run();
    let given = of_undivided(&fixture);
    let divide = command("2", &given);
    let writer = writing(&fixture).await;
    let soon: Vec<&str> = divide.iter().copied().chain(["--wait", "1s"]).collect();
    assert_eq!(fixture.walrelay(&soon).await.code, Some(1));
    writer.batch_execute("COMMIT").await.unwrap();
    // As if the command had been killed at the change.
    change_alone(&fixture, &divide).await;
    // A slot that is not empty is no leftover, whatever somebody types.
    let another = ["OTHER".to_owned(), "other.{event_type}".to_owned()];
    let told = format!("lives in stream {}", given[0]);
    fixture
        .walrelay(&command("2", &another))
        .await
        .refused(&told);
    assert_eq!(count(&fixture, SLOTS).await, 3, "it is there");
    fixture.walrelay(&divide).await.success();
    fixture.insert(101, 200).await;
    let committed: Vec<Uuid> = (1..=200).map(uuid).collect();
    let mut streams = streams_of(&fixture, 2);
    streams.push(given[0].clone());
    verdict(&fixture, &committed, &streams).await;
    fixture.walrelay(&["verify"]).await.success();
    let backfill = fixture.walrelay(&["backfill"]).await.success();
    assert_eq!(
        backfill.stdout.matches("0 rows are not in").count(),
        2,
        "{}",
        backfill.stdout
    );
    verdict(&fixture, &committed, &streams).await;
    // Also from the stream of the lane that is no more.
    all_is_erased(&fixture, &streams).await;
    stops(relay).await;
}

#[tokio::test]
async fn in_one_stream_and_back_under_load() {
    let mut fixture = undivided().await;
    let mut alone = fixture.run();
    alone.streams().await;
    shares(&mut fixture, 2);
    fixture
        .walrelay(&["reshard", "--shares", "2"])
        .await
        .refused("nats.shared = true");
    // The key alone does not make the relay that runs another one.
    fixture.set("WALRELAY_NATS_SHARED", "true");
    fixture
        .walrelay(&["reshard", "--shares", "2"])
        .await
        .refused("start its relay again");
    assert_eq!(count(&fixture, SLOTS).await, 1, "nothing was made");
    let writer = Writer::start(&fixture).await;
    let stream = fixture.stream_name().to_owned();
    more(&fixture, &writer, &stream).await;

    shares(&mut fixture, 1);
    let refused = fixture.walrelay(&["setup"]).await;
    edit(&fixture, &refused.stderr).await;
    fixture.walrelay(&["setup"]).await.success();
    alone.stop().await;
    let mut old = fixture.run();
    old.streams().await;
    more(&fixture, &writer, &stream).await;
    shares(&mut fixture, 4);
    let refused = fixture.walrelay(&["reshard", "--shares", "4"]).await;
    edit(&fixture, &refused.stderr).await;
    let new = fixture.run();
    for (to, lanes) in [("2", 2), ("4", 4), ("1", 1), ("4", 4)] {
        reshard(&fixture, to).await;
        assert_eq!(count(&fixture, SLOTS).await, lanes);
        are_owned(&fixture, lanes).await;
        more(&fixture, &writer, &stream).await;
    }
    let committed = writer.stop(&fixture).await;
    verdict(&fixture, &committed, &streams_of(&fixture, 1)).await;
    fixture.walrelay(&["verify"]).await.success();
    for relay in [old, new] {
        stops(relay).await;
    }
}

/// All of it was for a publication of all rows, whatever of it was left.
#[tokio::test]
async fn a_lane_of_all_rows_beside_shares_is_refused() {
    let mut fixture = undivided().await;
    own_streams(&mut fixture, 2);
    fixture
        .walrelay(&["setup"])
        .await
        .refused("walrelay reshard --shares 2");
    assert_eq!(count(&fixture, SLOTS).await, 1, "nothing was made");
    // Somebody has other ideas.
    let name = fixture.name.clone();
    let drop = format!("SELECT pg_drop_replication_slot('{name}')");
    fixture.sql.batch_execute(&drop).await.unwrap();
    fixture.walrelay(&["setup"]).await.success();
    let make = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    fixture.sql.batch_execute(&make).await.unwrap();
    own_streams(&mut fixture, 1);
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let mend = format!("DROP PUBLICATION {name};");
    assert!(refused.stderr.contains(&mend), "{}", refused.stderr);
    let found = fixture.walrelay(&["doctor"]).await;
    assert!(found.stdout.contains(&mend), "{}", found.stdout);
    own_streams(&mut fixture, 2);
    fixture
        .walrelay(&["reshard", "--shares", "4"])
        .await
        .refused(&mend);
    fixture.sql.batch_execute(&mend).await.unwrap();
    fixture.sql.batch_execute(&drop).await.unwrap();
    reshard(&fixture, "4").await;
}

/// Nothing is made where the new lanes cannot all be.
#[tokio::test]
async fn what_is_in_the_way_of_the_new_lanes_is_told_before_any_is_made() {
    let settings = [("max_replication_slots", "3")];
    let fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
    let mut fixture = set_up(fixture).await;
    own_streams(&mut fixture, 4);
    let given = of_undivided(&fixture);
    fixture
        .walrelay(&command("4", &given))
        .await
        .refused("max_replication_slots = 5");
    // The stream of the lane of all rows has that subject.
    let name = fixture.name.clone();
    fixture.set(
        "WALRELAY_NATS_SUBJECT",
        format!("{name}.{{share}}.{{event_type}}"),
    );
    fixture
        .walrelay(&command("2", &given))
        .await
        .refused(&given[0]);
    let dry = [&command("2", &given)[..], &["--dry-run"]].concat();
    let refused = fixture.walrelay(&dry).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains(&given[0]), "{}", refused.stderr);
    let another = ["OTHER".to_owned(), "other.{event_type}".to_owned()];
    own_streams(&mut fixture, 2);
    fixture
        .walrelay(&command("2", &another))
        .await
        .refused("no lane of slot");
    let three = fixture.walrelay(&["reshard", "--shares", "3"]).await;
    assert_eq!(three.code, Some(2), "{}", three.stderr);
    assert!(three.stderr.contains("power of two"), "{}", three.stderr);
    assert!(!three.stderr.contains("undivided"), "{}", three.stderr);
    assert_eq!(
        count(&fixture, "FROM pg_publication").await,
        1,
        "nothing was made"
    );
    let filter =
        format!("ALTER PUBLICATION {name} SET TABLE outbox_events WHERE (event_version > 1)");
    fixture.sql.batch_execute(&filter).await.unwrap();
    let refused = fixture.walrelay(&command("2", &given)).await;
    assert!(
        refused.stderr.contains("row filter of its own"),
        "{}",
        refused.stderr
    );
    assert_eq!(count(&fixture, SLOTS).await, 1, "nothing was made");
}

/// They are those of the lane that has the rows now.
#[tokio::test]
async fn dead_letters_of_a_lane_that_is_no_more_are_shown_and_closed() {
    let mut fixture = undivided().await;
    let relay = fixture.run();
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        VALUES (gen_random_uuid(), NULL, 'has a space', '{}'), (gen_random_uuid(), NULL, 'has another', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    own_streams(&mut fixture, 2);
    let given = of_undivided(&fixture);
    let told = fixture.walrelay(&command("2", &given)).await.success();
    assert!(
        told.stderr.contains("dead-letters list --share 0 shows"),
        "{}",
        told.stderr
    );
    let positions = letters(&fixture, &["--share", "0"]).await;
    assert_eq!(positions.len(), 2);
    assert!(letters(&fixture, &["--share", "1"]).await.is_empty());
    // Where to, only the configuration of that lane knows.
    let retry = [
        "dead-letters",
        "retry",
        &positions[0],
        "--set",
        "event_type=mended",
    ];
    let of_share = fixture
        .walrelay(&[&retry[..], &["--share", "0"]].concat())
        .await;
    assert_eq!(of_share.code, Some(1), "{}", of_share.stderr);
    let [stream, subject] = given.each_ref().map(String::as_str);
    let mend = format!("WALRELAY_RELAY_SHARES=1 --stream {stream} and its --subject");
    assert!(of_share.stderr.contains(&mend), "{}", of_share.stderr);
    let of_lane = ["--stream", stream, "--subject", subject];
    shares(&mut fixture, 1);
    fixture
        .walrelay(&[&retry[..], &of_lane].concat())
        .await
        .success();
    shares(&mut fixture, 2);
    assert_eq!(letters(&fixture, &["--share", "0"]).await, positions[1..]);
    shares(&mut fixture, 1);
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    fixture
        .walrelay(&[&discard[..], &of_lane].concat())
        .await
        .success();
    shares(&mut fixture, 2);
    assert!(letters(&fixture, &["--share", "0"]).await.is_empty());
    relay.stop().await;

    // And of shares, whose rows are of one lane again.
    fixture.sql.batch_execute(bad).await.unwrap();
    let relay = fixture.run();
    fixture.walrelay(&command("1", &given)).await.success();
    own_streams(&mut fixture, 1);
    let positions = letters(&fixture, &[]).await;
    assert_eq!(positions.len(), 2);
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("walrelay dead-letters list shows"),
        "{}",
        doctor.stdout
    );
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    fixture
        .walrelay(&discard)
        .await
        .refused("as they were, and --share ");
    own_streams(&mut fixture, 2);
    for share in ["0", "1"] {
        let of_share = [&discard[..], &["--share", share]].concat();
        fixture.walrelay(&of_share).await.success();
    }
    own_streams(&mut fixture, 1);
    assert!(letters(&fixture, &[]).await.is_empty());
    relay.stop().await;
}

/// What is printed behind these words, as a shell would take it apart, up to the end of the command.
fn printed(text: &str, words: &str) -> Vec<String> {
    let (_, command) = text.split_once(words).expect(text);
    let (command, _) = command.split_once(',').expect(text);
    let words = command.split(' ');
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

async fn types(fixture: &Fixture, command: &[String]) {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    fixture.walrelay(&command).await.success();
}

#[tokio::test]
async fn the_printed_reshard_is_typed_as_it_is() {
    let mut fixture = undivided().await;
    let relay = fixture.run();
    fixture.insert(1, 20).await;
    fixture.holds(20).await;
    stops(relay).await;
    // The configuration of the shares, beside an outbox that is not divided.
    own_streams(&mut fixture, 2);
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let divide = printed(&refused.stderr, "or run walrelay ");
    assert_eq!(divide, command("2", &of_undivided(&fixture)));
    let mut waiting = fixture.run();
    waiting
        .logs("run walrelay reshard --shares 2, which says")
        .await;
    let without = fixture.walrelay(&["reshard", "--shares", "2"]).await;
    assert_eq!(without.code, Some(2), "{}", without.stderr);
    let told = without
        .stderr
        .split_once(": give ")
        .expect("what it needs")
        .1;
    let told = told
        .split(' ')
        .map(|word| word.trim_matches([',', ':', '\'', '\n']));
    let told: Vec<&str> = told.take(4).collect();
    assert_eq!(told, divide[3..], "{}", without.stderr);
    types(&fixture, &divide).await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    waiting.streams().await;
    stops(waiting).await;

    // The configuration of all rows, beside shares.
    own_streams(&mut fixture, 1);
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let words = "with the configuration of the shares, run walrelay ";
    let unite = printed(&refused.stderr, words);
    assert_eq!(unite, command("1", &of_undivided(&fixture)));
    own_streams(&mut fixture, 2);
    types(&fixture, &unite).await;
    assert_eq!(count(&fixture, SLOTS).await, 1);
    own_streams(&mut fixture, 1);
    let relay = fixture.run();
    fixture.insert(21, 30).await;
    let verify = ["verify", "--wait", "30s"];
    fixture.walrelay(&verify).await.success();
    stops(relay).await;

    // What ends one that was ended before its end: the same command again.
    own_streams(&mut fixture, 2);
    types(&fixture, &divide).await;
    let arguments: Vec<&str> = unite.iter().map(String::as_str).collect();
    change_alone(&fixture, &arguments).await;
    let setup = fixture.walrelay(&["setup"]).await;
    let words = "until theirs is published: run walrelay ";
    assert_eq!(printed(&setup.stderr, words), unite);
}

/// Beside a relay, in a stream of the lane's own.
#[tokio::test]
async fn one_lane_stays_one_and_nothing_is_to_be_done_for_it() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 3).await;
    for command in [
        &["reshard", "--shares", "1", "--dry-run"][..],
        &["reshard", "--shares", "1"],
    ] {
        fixture.walrelay(command).await.success();
    }
    fixture.insert(4, 5).await;
    fixture.holds(5).await;
    assert!(relay.runs());
    assert_eq!(count(&fixture, SLOTS).await, 1);
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}
