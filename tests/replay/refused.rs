//! What `walrelay replay` refuses, and what it says instead.

use async_nats::jetstream::{self, stream};

use crate::support::{Fixture, Output, uuid};

/// A lane with ten events.
async fn published() -> Fixture {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.stop().await;
    fixture
}

async fn refused(fixture: &Fixture, arguments: &[&str], expected: &str) -> Output {
    let refused = fixture
        .walrelay(&[&["replay", "--yes"], arguments].concat())
        .await;
    assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.stderr);
    assert!(
        refused.stderr.contains(expected),
        "{arguments:?}: {}",
        refused.stderr
    );
    refused
}

/// The last `nats stream edit` of this stream that is printed, done.
pub(crate) async fn edit(fixture: &Fixture, name: &str, printed: &str) {
    let (_, flags) = printed
        .rsplit_once(&format!("nats stream edit {name} "))
        .unwrap_or_else(|| panic!("no command in {printed}"));
    let flags = flags.lines().next().expect("a line");
    let context = jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(name).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    let mut subjects = Vec::new();
    for flag in flags.split(' ') {
        let (key, value) = flag.split_once('=').expect(printed);
        let number = || value.parse().expect(printed);
        match key {
            "--subjects" => subjects.push(value.trim_matches('\'').to_owned()),
            "--max-msgs" => config.max_messages = number(),
            "--max-bytes" => config.max_bytes = number(),
            "--max-msgs-per-subject" => config.max_messages_per_subject = number(),
            "--max-msg-size" => config.max_message_size = i32::try_from(number()).unwrap(),
            _ => panic!("{flag} of {printed}"),
        }
    }
    if !subjects.is_empty() {
        config.subjects = subjects;
    }
    context.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_meant_names_the_form_that_is_expected() {
    let fixture = published().await;
    let bound = "give an LSN such as 16/B374D848";
    for bad in [
        "yesterday",
        "16",
        "16/B374D848:",
        "2026-11-23",
        "2026-13-01T00:00:00Z",
    ] {
        refused(&fixture, &["--from", bad], bound).await;
        refused(&fixture, &["--from", "0/1", "--to", bad], bound).await;
    }
    refused(&fixture, &[], "--from").await;
    let upside_down = "the range is upside down";
    refused(&fixture, &["--from", "0/2", "--to", "0/1"], upside_down).await;
    let times = [
        "--from",
        "2026-11-24T00:00:00Z",
        "--to",
        "2026-11-23T00:00:00Z",
    ];
    refused(&fixture, &times, upside_down).await;
    // In the stream, the first event is behind that time.
    let position = fixture.stored().await[9].position.clone();
    refused(
        &fixture,
        &["--from", &position, "--to", "2001-01-01T00:00:00Z"],
        upside_down,
    )
    .await;
    for filter in ["--event-type", "--aggregate-id"] {
        for bad in ["", " a", "a\n"] {
            refused(
                &fixture,
                &["--from", "0/1", filter, bad],
                "give it as the events have it",
            )
            .await;
        }
    }
    refused(
        &fixture,
        &["--from", "0/1", "--stream", "a.b"],
        "a stream's name is",
    )
    .await;
    refused(
        &fixture,
        &["--from", "0/1", "--subject", "replay.{tenant}"],
        "a message has no columns",
    )
    .await;
    refused(
        &fixture,
        &["--from", "0/1", "--subject", "{event_type}"],
        "begin it with a whole token",
    )
    .await;
    refused(
        &fixture,
        &["--from", "0/1", "--subject", "a b"],
        "white space",
    )
    .await;
    for (root, expected) in [
        ("$JS", "begin it with a whole token"),
        ("walrelay", "begin it with a whole token"),
        ("_INBOX", "answers come on _INBOX.>"),
    ] {
        let subject = format!("{root}.{{event_type}}");
        let said = refused(
            &fixture,
            &["--from", "0/1", "--subject", &subject],
            expected,
        )
        .await;
        assert!(!said.stderr.contains("nats stream edit"), "{said:?}");
    }
    assert_eq!(fixture.message_count().await, 10);
}

#[tokio::test]
async fn a_stream_of_a_relay_takes_no_replay() {
    let fixture = published().await;
    let own = fixture.stream_name().to_owned();
    let publishes = "the relay itself publishes there";
    refused(&fixture, &["--from", "0/1", "--stream", &own], publishes).await;
    refused(
        &fixture,
        &["--from", "0/1", "--stream", "WALRELAY"],
        publishes,
    )
    .await;
    let other = Fixture::new().await;
    let theirs = other.stream_name().to_owned();
    let disturbs = "a relay may publish to it";
    refused(&fixture, &["--from", "0/1", "--stream", &theirs], disturbs).await;
    // A new stream cannot have the subjects of another one.
    let subject = format!("{}.{{event_type}}", fixture.name);
    refused(
        &fixture,
        &["--from", "0/1", "--subject", &subject],
        "give another --subject",
    )
    .await;
    assert_eq!(fixture.message_count().await, 10);
}

/// nats-server refuses such an edit: subjects overlap with an existing stream (10065).
#[tokio::test]
async fn no_edit_is_printed_for_subjects_that_another_stream_has() {
    let fixture = published().await;
    let name = format!("{}_REPLAY", fixture.stream_name());
    let held = format!("{}.>", fixture.name);
    for _ in 0..2 {
        for subject in ["", "again."] {
            let subject = format!("{}.{subject}{{event_type}}", fixture.name);
            let arguments = ["--from", "0/1", "--subject", &subject];
            let taken = format!("stream {} already takes {held}", fixture.stream_name());
            let said = refused(&fixture, &arguments, &taken).await;
            assert!(said.stderr.contains("give another --subject"), "{said:?}");
            assert!(!said.stderr.contains("nats stream edit"), "{said:?}");
        }
        // The second time, the stream that takes the replay is there.
        let first = fixture.walrelay(&["replay", "--yes", "--from", "0/1"]);
        first.await.success();
    }
    // A subject that nobody has is added as it is printed.
    let subject = format!("again.{}.{{event_type}}", fixture.name);
    let arguments = ["--from", "0/1", "--subject", &subject];
    let said = refused(&fixture, &arguments, "does not take").await;
    edit(&fixture, &name, &said.stderr).await;
    let all = [&["replay", "--yes"], &arguments[..]].concat();
    fixture.walrelay(&all).await.success();
    assert_eq!(fixture.stored_in(&name).await.len(), 20);
}

#[tokio::test]
async fn a_target_that_does_not_take_the_subjects_is_refused_until_it_does() {
    let fixture = published().await;
    let context = jetstream::new(fixture.nats.clone());
    let name = format!("{}_AGAIN", fixture.stream_name());
    let own = format!("own.{}.>", fixture.name);
    let mut config = stream::Config {
        name: name.clone(),
        subjects: vec![own.clone()],
        ..stream::Config::default()
    };
    context.create_stream(config.clone()).await.unwrap();
    let arguments = ["--from", "0/1", "--stream", &name];
    let wanted = format!("replay.{}.>", fixture.name);
    let said = refused(&fixture, &arguments, &format!("does not take {wanted}")).await;
    // The subjects of the command that is named.
    let command = format!("nats stream edit {name} --subjects='{own}' --subjects='{wanted}'");
    assert!(said.stderr.contains(&command), "{}", said.stderr);
    config.subjects = vec![own, wanted];
    context.update_stream(config).await.unwrap();
    fixture
        .walrelay(&[&["replay", "--yes"], &arguments[..]].concat())
        .await
        .success();
    let again = fixture.stored_in(&name).await;
    assert_eq!(again.len(), 10);
    assert_eq!(again[9].id(), uuid(10));
}

#[tokio::test]
async fn a_payload_alone_tells_no_type_and_can_still_be_replayed() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_MESSAGE_FORMAT", "payload");
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.stop().await;
    for asked in [
        ["--event-type", "a"],
        ["--aggregate-id", "a"],
        ["--subject", "replay.{event_type}"],
    ] {
        refused(
            &fixture,
            &[&["--from", "0/1"], &asked[..]].concat(),
            "tell neither type nor aggregate",
        )
        .await;
    }
    fixture
        .walrelay(&["replay", "--yes", "--from", "0/1"])
        .await
        .success();
    let stored = fixture.stored().await;
    let again = fixture
        .stored_in(&format!("{}_REPLAY", fixture.stream_name()))
        .await;
    assert_eq!(again.len(), 10);
    for (stored, again) in stored.iter().zip(&again) {
        assert_eq!(
            (&stored.body, &stored.headers["id"]),
            (&again.body, &again.headers["id"])
        );
    }
}
