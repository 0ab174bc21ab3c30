//! `walrelay replay`: what comes, in which order, and what a second run does.

use serde_json::Value;

use crate::lane::{Lane, set_up, stream_of};
use crate::support::{Fixture, Stored, assert_exactly_once, eventually, uuid};

/// The stream that a replay makes by default.
pub(crate) fn target(fixture: &Fixture) -> String {
    format!("{}_REPLAY", fixture.stream_name())
}

pub(crate) async fn replayed(fixture: &Fixture) -> Vec<Stored> {
    fixture.stored_in(&target(fixture)).await
}

pub(crate) async fn replay(fixture: &Fixture, arguments: &[&str]) -> String {
    let all = [&["replay", "--yes"], arguments].concat();
    fixture.walrelay(&all).await.success().stdout
}

pub(crate) fn ids(stored: &[Stored]) -> Vec<uuid::Uuid> {
    stored.iter().map(Stored::id).collect()
}

pub(crate) fn uuids(numbers: impl IntoIterator<Item = u64>) -> Vec<uuid::Uuid> {
    numbers.into_iter().map(uuid).collect()
}

/// The LSN of a position.
fn lsn(stored: &Stored) -> String {
    stored
        .position
        .split_once(':')
        .expect("a position")
        .0
        .to_owned()
}

/// A lane with three transactions of ten events each, published.
pub(crate) async fn published() -> Fixture {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    for transaction in 0..3 {
        let first = transaction * 10 + 1;
        fixture.insert(first, first + 9).await;
    }
    fixture.holds(30).await;
    relay.stop().await;
    fixture
}

#[tokio::test]
async fn a_range_comes_again_in_order_and_marked() {
    let mut fixture = published().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let stored = fixture.stored().await;
    let told = replay(&fixture, &["--from", &lsn(&stored[10])]).await;
    assert!(told.contains("20 events are published again"), "{told}");
    let again = replayed(&fixture).await;
    assert_exactly_once(&uuids(11..=30), &ids(&again));
    for (first, again) in stored[10..].iter().zip(&again) {
        assert!(again.is_replay());
        assert_eq!(again.body, first.body);
        assert_eq!(again.position, first.position);
        assert_eq!(again.subject, format!("replay.{}", first.subject));
        let header = &again.headers["Walrelay-Replay"];
        let place = format!(" {} {}", fixture.stream_name(), first.sequence);
        assert!(header.ends_with(&place), "{header}");
    }
    // The lane goes on as if nothing had been.
    fixture.insert(31, 31).await;
    fixture.holds(31).await;
    assert_eq!(fixture.message_count().await, 31);
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();

    // What stands there does not come twice; what came since does.
    replay(&fixture, &["--from", &lsn(&stored[10])]).await;
    assert_exactly_once(&uuids(11..=31), &ids(&replayed(&fixture).await));
    let told = replay(&fixture, &["--from", &lsn(&stored[10])]).await;
    assert!(told.contains("0 events are published again"), "{told}");
    assert_eq!(replayed(&fixture).await.len(), 21);
}

#[tokio::test]
async fn both_ends_are_included_as_lsn_position_and_time() {
    let fixture = published().await;
    let stored = fixture.stored().await;
    let stream = stream_of(&fixture).await;
    let time_of = async |sequence: u64| {
        let message = stream.get_raw_message(sequence).await.expect("it is there");
        let nanos = message.time.unix_timestamp_nanos();
        let time = chrono::DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap());
        time.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
    };
    let of_time = [time_of(5).await, time_of(27).await];
    let first_of_time = stored.iter().map(|stored| stored.sequence);
    let mut expected_of_time = Vec::new();
    for sequence in first_of_time {
        let time = time_of(sequence).await;
        if of_time[0] <= time && time <= of_time[1] {
            expected_of_time.push(sequence);
        }
    }
    let cases = [
        (lsn(&stored[10]), lsn(&stored[19]), (11..=20).collect()),
        (
            stored[3].position.clone(),
            stored[21].position.clone(),
            (4..=22).collect(),
        ),
        (lsn(&stored[0]), stored[0].position.clone(), vec![1]),
        (of_time[0].clone(), of_time[1].clone(), expected_of_time),
        ("0/1".to_owned(), lsn(&stored[9]), (1..=10).collect()),
        (
            lsn(&stored[20]),
            "7FFFFFFF/0".to_owned(),
            (21..=30).collect(),
        ),
    ];
    for (number, (from, to, expected)) in cases.iter().enumerate() {
        let (stream, subject) = (
            format!("{}_{number}", target(&fixture)),
            format!("{}.to{number}.{{subject}}", fixture.name),
        );
        // A subject of its own below another root than the lane's.
        let subject = format!("again.{subject}");
        replay(
            &fixture,
            &[
                "--from",
                from,
                "--to",
                to,
                "--stream",
                &stream,
                "--subject",
                &subject,
            ],
        )
        .await;
        let again = fixture.stored_in(&stream).await;
        assert_exactly_once(&uuids(expected.iter().copied()), &ids(&again));
    }
    let nothing = replay(&fixture, &["--from", "7FFFFFFF/0", "--json"]).await;
    let told: Value = serde_json::from_str(nothing.trim()).expect("one JSON object");
    assert_eq!(
        (&told["total"], &told["done"]),
        (&0.into(), &true.into()),
        "{told}"
    );
}

#[tokio::test]
async fn a_star_at_the_end_of_a_type_takes_all_that_begin_so() {
    let mut fixture = published().await;
    let relay = fixture.run();
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                  VALUES ('00000000-0000-0000-0000-0000000000a1', gen_random_uuid(), 'user.left.v1', '{}'),
                         ('00000000-0000-0000-0000-0000000000a2', gen_random_uuid(), 'user.left.v2', '{}'),
                         ('00000000-0000-0000-0000-0000000000a3', gen_random_uuid(), 'users.left', '{}')";
    fixture.sql.batch_execute(insert).await.unwrap();
    fixture.holds(33).await;
    relay.stop().await;
    let of_lesson = || uuids(1..=30);
    for (number, (types, expected)) in [
        (&["user.*"][..], uuids([0xa1, 0xa2])),
        (&["user*"], uuids([0xa1, 0xa2, 0xa3])),
        (&["users.left", "user.left.v1"], uuids([0xa1, 0xa3])),
        (&["lesson.*"], of_lesson()),
        (&["*"], [of_lesson(), uuids([0xa1, 0xa2, 0xa3])].concat()),
    ]
    .into_iter()
    .enumerate()
    {
        let subject = format!("again{number}.{{subject}}");
        let stream = format!("{}_{number}", target(&fixture));
        let flags = types.iter().flat_map(|of_type| ["--event-type", of_type]);
        let flags: Vec<&str> = flags.collect();
        let to = ["--from", "0/1", "--stream", &stream, "--subject", &subject];
        // The second run is the same replay, and has nothing left.
        for count in [expected.len(), 0] {
            let told = replay(&fixture, &[&to, &flags[..]].concat()).await;
            assert!(told.contains(&format!("{count} events are")), "{told}");
        }
        assert_eq!(ids(&fixture.stored_in(&stream).await), expected);
        // `tail` shows the same ones.
        let count = expected.len().to_string();
        let tail = ["tail", "--since", "all", "--json", "--count", &count];
        let shown = fixture.walrelay(&[&tail, &flags[..]].concat()).await;
        let shown: Vec<_> = (shown.success().stdout.lines())
            .map(|line| serde_json::from_str::<Value>(line).expect("an object")["id"].clone())
            .collect();
        let expected = expected.iter().map(|id| Value::from(id.to_string()));
        let expected: Vec<_> = expected.collect();
        assert_eq!(shown, expected);
    }
}

#[tokio::test]
async fn only_what_is_asked_for_comes_on_the_subjects_that_are_asked_for() {
    let mut fixture = published().await;
    let relay = fixture.run();
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, event_version, payload_json)
                  VALUES ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-0000000000AA', 'user.left.v1', 3, '{}'),
                         ('00000000-0000-0000-0000-0000000000a2', '00000000-0000-0000-0000-0000000000ab', 'user.left.v1', 3, '{}')";
    fixture.sql.batch_execute(insert).await.unwrap();
    fixture.holds(32).await;
    relay.stop().await;
    let subject = format!("again.{}.{{event_type}}.{{event_version}}", fixture.name);
    let arguments = [
        "--from",
        "0/1",
        "--event-type",
        "user.left.v1",
        "--subject",
        &subject,
    ];
    // Nothing is made or published before somebody has agreed.
    let dry = fixture
        .walrelay(&[&["replay", "--dry-run"][..], &arguments].concat())
        .await
        .success();
    assert!(
        dry.stdout.contains("2 events would be published"),
        "{}",
        dry.stdout
    );
    let asked = fixture
        .walrelay(&[&["replay"][..], &arguments].concat())
        .await;
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
    let context = async_nats::jetstream::new(fixture.nats.clone());
    assert!(context.get_stream(target(&fixture)).await.is_err());

    replay(&fixture, &arguments).await;
    let again = replayed(&fixture).await;
    assert_eq!(ids(&again), uuids([0xa1, 0xa2]));
    assert_eq!(
        again[0].subject,
        format!("again.{}.user.left.v1.3", fixture.name)
    );
    // Another request into the same stream, in the other way to write a UUID.
    let id = "00000000-0000-0000-0000-0000000000AB";
    replay(
        &fixture,
        &["--from", "0/1", "--aggregate-id", id, "--subject", &subject],
    )
    .await;
    assert_eq!(ids(&replayed(&fixture).await), uuids([0xa1, 0xa2, 0xa2]));
    // The first one again: behind the other's messages it still finds its own.
    replay(&fixture, &arguments).await;
    assert_eq!(replayed(&fixture).await.len(), 3);
}

#[tokio::test]
async fn removed_messages_are_passed_over_and_a_removed_beginning_is_named() {
    let fixture = published().await;
    let stored = fixture.stored().await;
    let stream = stream_of(&fixture).await;
    for sequence in [11, 12, 14, 15, 16, 17, 20, 21, 30] {
        stream.delete_message(sequence).await.unwrap();
    }
    replay(
        &fixture,
        &["--from", &lsn(&stored[10]), "--to", &lsn(&stored[29])],
    )
    .await;
    let left = uuids([13, 18, 19].into_iter().chain(22..=29));
    assert_exactly_once(&left, &ids(&replayed(&fixture).await));

    stream.purge().sequence(16).await.unwrap();
    let gone = fixture
        .walrelay(&["replay", "--yes", "--from", &lsn(&stored[10])])
        .await;
    assert_eq!(gone.code, Some(1), "{}", gone.stderr);
    let (_, oldest) = gone
        .stderr
        .split_once("the oldest that it can give is --from ")
        .expect(&gone.stderr);
    let (oldest, _) = oldest.split_once(',').expect(&gone.stderr);
    assert_eq!(oldest, stored[17].position);
    let name = format!("{}_2", target(&fixture));
    let subject = format!("again.{}.{{id}}", fixture.name);
    replay(
        &fixture,
        &["--from", oldest, "--stream", &name, "--subject", &subject],
    )
    .await;
    let left = uuids([18, 19].into_iter().chain(22..=29));
    assert_exactly_once(&left, &ids(&fixture.stored_in(&name).await));
}

/// Dead letters and what was published again to all do not come; the event of a retried one does, where it stands.
#[tokio::test]
async fn each_event_comes_once_whatever_else_is_there() {
    let mut fixture = published().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let relay = fixture.run();
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES ('00000000-0000-0000-0000-0000000000ff', gen_random_uuid(), 'a b', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    fixture.insert(31, 32).await;
    fixture.holds(33).await;
    let mend = "UPDATE outbox_events SET event_type = 'ab' WHERE event_type = 'a b'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retry = ["dead-letters", "retry", "--all"];
    fixture.walrelay(&retry).await.success();
    let from = lsn(&fixture.stored().await[31]);
    relay.stop().await;
    let relay = fixture.run_with(&["--from", &from]);
    fixture.holds(37).await;
    relay.stop().await;
    replay(&fixture, &["--from", "0/1"]).await;
    let expected = uuids((1..=32).chain([0xff]));
    assert_eq!(ids(&replayed(&fixture).await), expected);
}

/// Somebody else publishes to the same stream.
#[tokio::test]
async fn a_replay_finds_its_place_among_others_messages() {
    const ROWS: u64 = 20_000;
    let mut fixture = Fixture::new().await;
    fixture.insert(1, ROWS).await;
    let relay = fixture.run();
    fixture.holds(ROWS).await;
    relay.stop().await;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let (replayed_to, others) = (
        format!("replay.{}.>", fixture.name),
        format!("others.{}", fixture.name),
    );
    let subjects = [replayed_to, others.clone()];
    let config = crate::lane::by_hand(&target(&fixture), &subjects, 1);
    context.create_stream(config).await.unwrap();
    let publishing = tokio::spawn(async move {
        loop {
            let sent = context.publish(others.clone(), "{}".into()).await.unwrap();
            sent.await.unwrap();
            // Not so often that a command on a busy machine never comes between two.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    replay(&fixture, &["--from", "0/1"]).await;
    publishing.abort();
    let all = replayed(&fixture).await;
    let again: Vec<Stored> = all.into_iter().filter(Stored::is_replay).collect();
    assert_exactly_once(&uuids(1..=ROWS), &ids(&again));
}

/// How many messages that stream has; 0 where it is not there.
pub(crate) async fn count(fixture: &Fixture) -> u64 {
    let context = async_nats::jetstream::new(fixture.nats.clone());
    match context.get_stream(target(fixture)).await {
        Ok(mut stream) => stream.info().await.map_or(0, |info| info.state.messages),
        Err(_) => 0,
    }
}

#[tokio::test]
async fn a_killed_replay_goes_on_behind_what_stands_there() {
    const ROWS: u64 = 20_000;
    let mut fixture = Fixture::new().await;
    fixture.insert(1, ROWS).await;
    let relay = fixture.run();
    fixture.holds(ROWS).await;
    let all = ["replay", "--yes", "--from", "0/1"];
    for number in 1..=3 {
        let before = count(&fixture).await;
        let mut killed = fixture.start(&all);
        eventually("the replay publishes", async || {
            (count(&fixture).await > before).then_some(())
        })
        .await;
        killed.kill();
        assert!(
            count(&fixture).await < ROWS,
            "it has ended before kill {number}"
        );
    }
    // Two at once: one waits for the other's lease, or is told of it.
    let mut others = [fixture.start(&all), fixture.start(&all)];
    for other in &mut others {
        let code = other.ends().await;
        assert!(
            code == Some(0) || other.log().contains("is at work on slot"),
            "{}",
            other.log()
        );
    }
    replay(&fixture, &["--from", "0/1"]).await;
    assert_exactly_once(&uuids(1..=ROWS), &ids(&replayed(&fixture).await));
    relay.stop().await;
}

/// Backfilled events of a shared stream tell no place of the lane, so it is looked for behind them.
#[tokio::test]
async fn a_place_is_found_among_messages_that_tell_none() {
    let mut fixture = Fixture::with_table().await;
    fixture.insert(1, 500).await;
    set_up(&mut fixture, Lane::Shared).await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(501, 510).await;
    let written = |count: usize| {
        let fixture = &fixture;
        async move {
            eventually(format!("{count} events"), async || {
                (crate::lane::event_count(fixture).await >= count as u64).then_some(())
            })
            .await;
        }
    };
    written(10).await;
    fixture.walrelay(&["backfill"]).await.success();
    fixture.insert(511, 520).await;
    written(520).await;
    relay.stop().await;
    let events = crate::lane::events(&fixture).await;
    let (first, last) = (&events[0], &events[519]);
    replay(&fixture, &["--from", &lsn(last)]).await;
    assert_exactly_once(&uuids(511..=520), &ids(&replayed(&fixture).await));
    let name = format!("{}_2", target(&fixture));
    let subject = format!("again.{}.{{event_type}}", fixture.name);
    replay(
        &fixture,
        &[
            "--from",
            &lsn(first),
            "--stream",
            &name,
            "--subject",
            &subject,
        ],
    )
    .await;
    assert_eq!(ids(&fixture.stored_in(&name).await), ids(&events));
}

#[tokio::test]
async fn a_place_from_before_an_adoption_is_told_as_such_and_a_time_goes_across() {
    let mut fixture = published().await;
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let first = lsn(&fixture.stored().await[0]);
    let place = ["replay", "--yes", "--from", &first];
    let refused = fixture.walrelay(&place).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let nothing = "Behind it the lane has published nothing; a time";
    assert!(refused.stderr.contains(nothing), "{}", refused.stderr);
    let relay = fixture.run();
    fixture.insert(31, 33).await;
    eventually("the events behind the adoption are there", async || {
        let stored = fixture.stored().await;
        (stored.iter().filter(|it| it.kind.is_none()).count() == 33).then_some(())
    })
    .await;
    relay.stop().await;
    let refused = fixture.walrelay(&place).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = &refused.stderr;
    assert!(said.contains("the lane begins behind message"), "{said}");
    assert!(!said.contains("no longer holds"), "{said}");
    let (_, time) = said.split_once("and with --from ").expect("a time");
    let time = time.split(' ').next().unwrap();
    replay(&fixture, &["--from", time]).await;
    assert_eq!(ids(&replayed(&fixture).await), uuids(1..=33));
}
