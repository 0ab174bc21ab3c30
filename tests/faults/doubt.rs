//! Commands that publish outside of the lane and lose the broker's answers: what they say is published is in the stream, once.

use std::time::Duration;

use crate::lane::{LANES, Lane, event_count, events, holds_events, set_up, stream_of};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay, Stored, assert_exactly_once, eventually, insert_sql, uuid};

/// More than one batch of a shared stream.
const ROWS: u64 = 1_500;
/// Behind a batch's commit these are messages of the next one.
const NEXT_BATCH_BYTES: u64 = 64 * 1024;
/// As they are read one by one, fewer are on their way when a stint ends.
const SOME_LETTERS_BYTES: u64 = 4 * 1024;
/// A batch waits less for its next message.
const LATE: Duration = Duration::from_millis(100);
/// For what happens within a second on an idle machine.
const SOON: Duration = Duration::from_secs(60);

async fn bare(format: &str) -> Fixture {
    let mut fixture = Fixture::with_table().await;
    fixture.set("WALRELAY_MESSAGE_FORMAT", format);
    // The test says when an answer is late.
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "60s");
    fixture
}

/// A command that reaches the broker through a proxy, which treats it so.
async fn through(fixture: &mut Fixture, arguments: &[&str], mode: Mode) -> (Relay, Proxy) {
    let port = fixture.nats.server_info().port;
    let proxy = Proxy::start(port).await.expect("a free port");
    proxy.set(mode);
    fixture.set(
        "WALRELAY_NATS_URL",
        format!("nats://127.0.0.1:{}", proxy.port()),
    );
    let command = fixture.start(arguments);
    fixture.set("WALRELAY_NATS_URL", format!("nats://127.0.0.1:{port}"));
    (command, proxy)
}

/// Waits until the proxy has caught the command and it has sent so many bytes since.
async fn is_caught(command: &Relay, proxy: &Proxy, bytes: u64) {
    let caught = tokio::time::timeout(SOON, proxy.catches(bytes)).await;
    caught.unwrap_or_else(|_| panic!("it has not sent that: {}", command.log()));
}

async fn ends_well(mut command: Relay) -> String {
    assert_eq!(command.ends().await, Some(0), "{}", command.log());
    command.log()
}

const COMMIT: Mode = Mode::MuteAt("Nats-Batch-Commit");

/// Runs a command that loses the answers to its first batch, which is stored, while it sends the next one; what it prints.
async fn with_lost_commit(fixture: &mut Fixture, arguments: &[&str]) -> String {
    let before = fixture.message_count().await;
    let (command, proxy) = through(fixture, arguments, COMMIT).await;
    is_caught(&command, &proxy, NEXT_BATCH_BYTES).await;
    has_stored(fixture, before).await;
    proxy.cut();
    ends_well(command).await
}

/// Waits until the stream has a batch behind the fence that was put up when it held so many messages.
async fn has_stored(fixture: &Fixture, before: u64) {
    eventually("the batch is stored behind the fence", async || {
        (fixture.message_count().await > before + 1).then_some(())
    })
    .await;
}

/// Keeps the command from reading the table again and again, until it has committed what it has read.
async fn starve(fixture: &Fixture, proxy: &Proxy) {
    let lock = fixture.connect().await;
    eventually("a batch that a late row has ended", async || {
        let sql = "BEGIN; LOCK TABLE outbox_events";
        lock.batch_execute(sql).await.unwrap();
        let caught = tokio::time::timeout(LATE, proxy.catches(1)).await;
        lock.batch_execute("ROLLBACK").await.unwrap();
        caught.ok()
    })
    .await;
}

fn id(stored: &Stored) -> String {
    let header = stored.headers.get("id").or(stored.headers.get("ce-id"));
    header.cloned().unwrap_or_else(|| stored.id().to_string())
}

/// The stream has the events 1 to `last` once, and `verify` says so.
async fn all_once(fixture: &Fixture, last: u64) {
    let mut ids: Vec<_> = events(fixture).await.iter().map(Stored::id).collect();
    ids.sort_unstable();
    assert_exactly_once(&(1..=last).map(uuid).collect::<Vec<_>>(), &ids);
    fixture.walrelay(&["verify"]).await.success();
}

/// Dead letters of so many rows, which could be published now. No relay runs any more.
async fn with_letters(fixture: &mut Fixture, rows: u64) {
    let relay = fixture.run();
    let bad = insert_sql(1, rows).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    eventually("the dead letters", async || {
        (of_kind(fixture, "dead-letter").await == rows as usize).then_some(())
    })
    .await;
    relay.stop().await;
    let mend = "UPDATE outbox_events SET event_type = 'lesson.published.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
}

async fn of_kind(fixture: &Fixture, kind: &str) -> usize {
    let stored = fixture.stored().await;
    let of_kind = stored.iter().filter(|m| m.kind.as_deref() == Some(kind));
    of_kind.count()
}

#[tokio::test]
async fn rows_of_a_batch_that_was_open_are_published() {
    for arguments in [&["backfill"][..], &["verify", "--repair"]] {
        let mut fixture = bare("envelope").await;
        fixture.insert(1, ROWS).await;
        set_up(&mut fixture, Lane::Shared).await;
        let told = with_lost_commit(&mut fixture, arguments).await;
        assert!(told.contains(&format!("{ROWS} of {ROWS}")), "{told}");
        all_once(&fixture, ROWS).await;
    }
}

#[tokio::test]
async fn letters_of_a_batch_that_was_open_are_retried() {
    let mut fixture = bare("envelope").await;
    set_up(&mut fixture, Lane::Shared).await;
    with_letters(&mut fixture, ROWS).await;
    let before = fixture.message_count().await;
    let retry = ["dead-letters", "retry", "--all"];
    let (mut command, proxy) = through(&mut fixture, &retry, COMMIT).await;
    starve(&fixture, &proxy).await;
    is_caught(&command, &proxy, SOME_LETTERS_BYTES).await;
    has_stored(&fixture, before).await;
    proxy.cut();
    // Where a letter was being read at that moment, it says so.
    if command.ends().await != Some(0) {
        assert!(command.log().contains("source failed"), "{}", command.log());
        fixture.walrelay(&retry).await.success();
    }
    all_once(&fixture, ROWS).await;
    assert_eq!(of_kind(&fixture, "retried").await, ROWS as usize);
}

#[tokio::test]
async fn letters_of_a_batch_that_was_open_are_discarded() {
    let mut fixture = bare("envelope").await;
    set_up(&mut fixture, Lane::Shared).await;
    with_letters(&mut fixture, ROWS).await;
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    with_lost_commit(&mut fixture, &discard).await;
    assert_eq!(of_kind(&fixture, "discarded").await, ROWS as usize);
    let list = ["dead-letters", "list", "--json"];
    let open = fixture.walrelay(&list).await.success();
    assert_eq!(open.stdout, "");
}

/// A row whose event has the same subject and body as any other of these.
async fn insert_alike(fixture: &Fixture, number: u64, event_type: &str) {
    let id = uuid(number);
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         VALUES ('{id}', '{id}', '{event_type}', '{{}}')"
    );
    fixture.sql.batch_execute(&insert).await.unwrap();
}

/// The broker does not get the command's message of this kind, but one of the relay's with the same body, and the connection ends.
async fn relay_takes_its_place(fixture: &mut Fixture, arguments: &[&str], kind: &'static str) {
    let before = event_count(fixture).await;
    let (command, proxy) = through(fixture, arguments, Mode::SwallowAt(kind)).await;
    is_caught(&command, &proxy, 1).await;
    insert_alike(fixture, 2, "made").await;
    holds_events(fixture, before + 1).await;
    proxy.cut();
    ends_well(command).await;
    let stored = events(fixture).await;
    let told: Vec<_> = stored.iter().map(|m| (id(m), m.kind.as_deref())).collect();
    let own = kind.rsplit_once(' ').map(|(_, kind)| kind);
    let expected = [(uuid(2).to_string(), None), (uuid(1).to_string(), own)];
    assert_eq!(told, expected);
    assert_eq!(stored[0].body, stored[1].body);
}

#[tokio::test]
async fn an_event_of_the_relay_is_not_taken_for_a_row_in_doubt() {
    for lane in [Lane::FastIngest, Lane::Chain] {
        for format in ["payload", "payload_string", "cloudevents"] {
            let mut fixture = bare(format).await;
            insert_alike(&fixture, 1, "made").await;
            set_up(&mut fixture, lane).await;
            let mut relay = fixture.run();
            relay.streams().await;
            let kind = "Walrelay-Kind: backfill";
            relay_takes_its_place(&mut fixture, &["backfill"], kind).await;
            fixture.walrelay(&["verify"]).await.success();
            relay.stop().await;
        }
    }
}

#[tokio::test]
async fn an_event_of_the_relay_is_not_taken_for_a_retry_in_doubt() {
    for lane in [Lane::FastIngest, Lane::Chain] {
        let mut fixture = bare("payload").await;
        set_up(&mut fixture, lane).await;
        let mut relay = fixture.run();
        relay.streams().await;
        insert_alike(&fixture, 1, "has a space").await;
        fixture.holds(1).await;
        let mend = "UPDATE outbox_events SET event_type = 'made'";
        fixture.sql.batch_execute(mend).await.unwrap();
        let retry = ["dead-letters", "retry", "--all"];
        relay_takes_its_place(&mut fixture, &retry, "Walrelay-Kind: retry").await;
        assert_eq!(of_kind(&fixture, "retried").await, 1);
        fixture.walrelay(&["verify"]).await.success();
        relay.stop().await;
    }
}

/// Runs a command that loses the answers to its messages from the first of these on, which are stored.
async fn with_lost_answers(
    fixture: &mut Fixture,
    arguments: &[&str],
    first: &'static str,
    stored: impl AsyncFn(&Fixture) -> bool,
) {
    let (command, proxy) = through(fixture, arguments, Mode::MuteAt(first)).await;
    is_caught(&command, &proxy, 1).await;
    eventually("some of it is stored", async || {
        stored(fixture).await.then_some(())
    })
    .await;
    proxy.cut();
    ends_well(command).await;
}

#[tokio::test]
async fn what_is_stored_without_an_answer_is_not_published_again() {
    for lane in LANES {
        for format in ["envelope", "payload"] {
            let mut fixture = bare(format).await;
            fixture.insert(1, ROWS).await;
            set_up(&mut fixture, lane).await;
            let first = "Walrelay-Kind: backfill";
            with_lost_answers(&mut fixture, &["backfill"], first, async |fixture| {
                event_count(fixture).await > 0
            })
            .await;
            let mut ids: Vec<_> = events(&fixture).await.iter().map(id).collect();
            ids.sort_unstable();
            let expected: Vec<_> = (1..=ROWS).map(|n| uuid(n).to_string()).collect();
            assert_eq!(ids, expected, "{lane:?} {format}");
        }
    }
}

#[tokio::test]
async fn what_is_replayed_or_moved_without_an_answer_is_there_once() {
    let mut fixture = bare("payload").await;
    set_up(&mut fixture, Lane::FastIngest).await;
    let mut relay = fixture.run();
    fixture.insert(1, ROWS).await;
    holds_events(&fixture, ROWS).await;
    let expected: Vec<_> = (1..=ROWS).map(|n| uuid(n).to_string()).collect();
    let ids = async |fixture: &Fixture, stream: &str| {
        let stored = fixture.stored_in(stream).await;
        let of_rows = stored.iter().filter(|m| m.headers.contains_key("id"));
        of_rows.map(id).collect::<Vec<_>>()
    };

    let again = format!("REPLAY_{}", fixture.stream_name());
    let replay = ["replay", "--yes", "--from", "0/1", "--stream", &again];
    let has_some = async |fixture: &Fixture, stream: &str| {
        let streams = async_nats::jetstream::new(fixture.nats.clone());
        let Ok(stream) = streams.get_stream(stream).await else {
            return false;
        };
        stream.cached_info().state.messages > 0
    };
    with_lost_answers(&mut fixture, &replay, "Walrelay-Replay", async |fixture| {
        has_some(fixture, &again).await
    })
    .await;
    assert_eq!(ids(&fixture, &again).await, expected);

    // On the same NATS the copies are stored under other subjects than they are published on.
    let moved = format!("{}_NEW", fixture.stream_name());
    let arguments = ["move", "--yes", "--to-stream", &moved];
    with_lost_answers(
        &mut fixture,
        &arguments,
        "Walrelay-Moved",
        async |fixture| has_some(fixture, &moved).await,
    )
    .await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert_eq!(ids(&fixture, &moved).await, expected);
    fixture.set("WALRELAY_NATS_STREAM", moved.as_str());
    let first = stream_of(&fixture).await.get_raw_message(1).await.unwrap();
    assert!(first.subject.starts_with(&format!("{}.", fixture.name)));
    fixture.walrelay(&["verify"]).await.success();
}
