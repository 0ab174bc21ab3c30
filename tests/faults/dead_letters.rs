//! Rows that cannot be published: each becomes a dead letter at its place, or halts the relay, and nothing else suffers.

use rustix::process::Signal;
use serde_json::Value;

use crate::lane::{LANES, Lane, set_up, stream_of};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay, Servers, Stored, eventually};

/// A table that lets everything in.
const TABLE: &str = "
CREATE TABLE outbox_events (
    id text, aggregate_id text, event_type text, event_version int, occurred_at timestamptz, payload_json jsonb
)";

/// A row with one odd value, and the reason of its dead letter; none for one that is published.
struct Case {
    column: &'static str,
    value: &'static str,
    reason: Option<&'static str>,
}

const fn dead(column: &'static str, value: &'static str, reason: &'static str) -> Case {
    Case {
        column,
        value,
        reason: Some(reason),
    }
}

const fn published(column: &'static str, value: &'static str) -> Case {
    Case {
        column,
        value,
        reason: None,
    }
}

const CASES: [Case; 31] = [
    dead(
        "payload_json",
        "to_jsonb(repeat('x', 1100000))",
        "too-large",
    ),
    // Headers count too: with them it is a little more than a mebibyte.
    dead(
        "payload_json",
        "to_jsonb(repeat('x', 1048376))",
        "too-large",
    ),
    // More than a frame that the relay gathers.
    dead(
        "payload_json",
        "to_jsonb(repeat('x', 20000000))",
        "too-large",
    ),
    published("payload_json", "to_jsonb(repeat('x', 1040000))"),
    dead("payload_json", "NULL", "null"),
    published("payload_json", "'null'"),
    dead("event_type", "''", "subject"),
    dead("event_type", "'a b'", "subject"),
    dead("event_type", "E'a\\r\\nb'", "subject"),
    dead("event_type", "'a.*.b'", "subject"),
    dead("event_type", "'a.>'", "subject"),
    dead("event_type", "'a..b'", "subject"),
    dead("event_type", "'.a'", "subject"),
    dead("event_type", "'a.'", "subject"),
    dead("event_type", "repeat('x', 4000)", "subject"),
    dead("event_type", "repeat('x', 70000)", "subject"),
    dead("event_type", "NULL", "null"),
    published("event_type", "'été.日本'"),
    published("event_type", "'$SYS'"),
    published(
        "id",
        "E'Walrelay-Kind: x\\r\\nNats-Rollup: all\\r\\n\\r\\n'",
    ),
    published("id", "'\"\\'"),
    // A second one of the same.
    published("id", "'\"\\'"),
    dead("id", "NULL", "null"),
    dead("aggregate_id", "NULL", "null"),
    dead("event_version", "256", "event-version"),
    dead("event_version", "-1", "event-version"),
    published("event_version", "255"),
    dead("occurred_at", "'infinity'", "occurred-at"),
    dead("occurred_at", "'-infinity'", "occurred-at"),
    dead("occurred_at", "'0044-03-15 12:00+00 BC'", "occurred-at"),
    dead("occurred_at", "'100000-01-01 00:00+00'", "occurred-at"),
];

impl Case {
    /// The row's values, in the order of the table.
    fn sql(&self) -> String {
        let values = [
            ("id", "'odd'"),
            ("aggregate_id", "'a'"),
            ("event_type", "'t'"),
            ("event_version", "1"),
            ("occurred_at", "now()"),
            ("payload_json", "'{}'"),
        ]
        .map(|(column, value)| {
            if column == self.column {
                self.value
            } else {
                value
            }
        });
        format!("({})", values.join(", "))
    }
}

/// A row in order.
fn good(number: usize) -> String {
    format!("('good {number}', 'a', 't', 1, now(), '{{}}')")
}

async fn bare_with_table() -> Fixture {
    with_table(Fixture::bare().await, Lane::FastIngest).await
}

async fn with_table(mut fixture: Fixture, lane: Lane) -> Fixture {
    fixture.sql.batch_execute(TABLE).await.unwrap();
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    set_up(&mut fixture, lane).await;
    fixture
}

/// Waits until the stream holds so many events and dead letters; all of them, without the fences of a shared stream.
async fn letters(fixture: &Fixture, count: usize) -> Vec<Stored> {
    eventually(format!("{count} events and dead letters"), async || {
        let mut stored = fixture.stored().await;
        stored.retain(|message| !message.subject.starts_with("walrelay.fence."));
        (stored.len() >= count).then_some(stored)
    })
    .await
}

async fn insert(fixture: &Fixture, rows: &[String]) {
    let sql = format!("INSERT INTO outbox_events VALUES {}", rows.join(", "));
    fixture.sql.batch_execute(&sql).await.unwrap();
}

/// What the stream must hold: a good event, then each case and another good event.
async fn check(fixture: &Fixture) {
    let stored = letters(fixture, 2 * CASES.len()).await;
    assert_eq!(stored.len(), 2 * CASES.len());
    let stream = stream_of(fixture).await;
    for (index, case) in CASES.iter().enumerate() {
        let what = format!("{} = {:.60}", case.column, case.value);
        let (before, odd) = (&stored[2 * index], &stored[2 * index + 1]);
        assert_eq!(before.field("id"), format!("good {index}"), "{what}");
        let raw = stream.get_raw_message(odd.sequence).await.unwrap();
        let header = |name: &str| raw.headers.get(name).map(|value| value.as_str().to_owned());
        let reason = header("Walrelay-Reason");
        assert_eq!(reason.as_deref(), case.reason, "{what}");
        assert_eq!(
            odd.kind.as_deref(),
            case.reason.map(|_| "dead-letter"),
            "{what}"
        );
        let ordered: Vec<(u64, u64)> = [before, odd].map(|m| position(&m.position)).to_vec();
        assert!(ordered[0] < ordered[1], "{what}: {ordered:?}");
        let dead = format!("walrelay.dead.{}", fixture.name);
        assert_eq!(odd.subject == dead, case.reason.is_some(), "{what}");
        let body: Value = serde_json::from_str(&odd.body).expect("JSON");
        if case.column == "payload_json" && case.value == "'null'" {
            assert_eq!(body["payload_json"], Value::Null);
        }
        if case.reason.is_some() {
            assert_eq!(body["position"], odd.position.as_str(), "{what}");
            let is_whole = body["truncated"].as_object().expect("columns").is_empty();
            let fits = case.reason != Some("too-large");
            assert_eq!(is_whole, fits, "{what}: {:.2000}", odd.body);
        }
        assert_eq!(header("Nats-Rollup"), None, "{what}");
    }
}

fn position(text: &str) -> (u64, u64) {
    let position: walrelay::pipeline::position::Position = text.parse().expect("a position");
    (position.commit_lsn.into(), position.ordinal)
}

#[tokio::test]
async fn each_takes_its_place_in_one_transaction() {
    for lane in LANES {
        let mut fixture = with_table(Fixture::bare().await, lane).await;
        let mut relay = fixture.run();
        relay.streams().await;
        let rows = CASES
            .iter()
            .enumerate()
            .flat_map(|(index, case)| [good(index), case.sql()]);
        insert(&fixture, &rows.collect::<Vec<_>>()).await;
        check(&fixture).await;
        let rejected = CASES.iter().filter(|case| case.reason.is_some()).count();
        // Told when they are acknowledged, a moment after they can be seen.
        relay.logs("became a dead letter").await;
        relay.signal(Signal::TERM);
        assert_eq!(relay.ends().await, Some(0));
        let log = relay.log();
        // One is told in full, and the others as numbers: several where it takes longer than an interval.
        let told = log.matches("a row cannot be published").count();
        assert!(told < rejected, "{lane:?}: {log}");
        assert_eq!(told + more_letters(&log), rejected, "{lane:?}: {log}");
    }
}

/// How many further dead letters the log tells of as numbers.
fn more_letters(log: &str) -> usize {
    let lines = log
        .lines()
        .filter(|line| line.contains("further rows became dead letters"));
    let numbers = lines.map(|line| {
        let (_, more) = line.split_once("more=").expect("a number");
        let more = more.split_whitespace().next().expect("a number");
        more.parse::<usize>().expect("a number")
    });
    numbers.sum()
}

async fn goes_on_behind_each(lane: Lane) {
    let mut fixture = with_table(Fixture::bare().await, lane).await;
    for (index, case) in CASES.iter().enumerate() {
        let mut relay = fixture.run();
        insert(&fixture, &[good(index), case.sql()]).await;
        letters(&fixture, 2 * index + 2).await;
        relay.kill();
    }
    let relay = fixture.run();
    check(&fixture).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_goes_on_behind_each() {
    goes_on_behind_each(Lane::FastIngest).await;
}

#[tokio::test]
async fn a_relay_goes_on_behind_each_without_fast_ingest() {
    goes_on_behind_each(Lane::Chain).await;
}

#[tokio::test]
async fn a_relay_goes_on_behind_each_in_a_shared_stream() {
    goes_on_behind_each(Lane::Shared).await;
}

#[tokio::test]
async fn a_subject_longer_than_the_server_takes_in_a_line_is_found_among_others() {
    for lane in LANES {
        let mut servers = Servers::own().await;
        let limit = "max_control_line: 512".to_owned();
        servers.nats.reload(limit).await.unwrap();
        let mut fixture = with_table(Fixture::bare_on(servers).await, lane).await;
        let long = |index| good(index).replace("'t'", "repeat('t', 600)");
        let rows: Vec<String> = (0..8)
            .map(|index| if index == 3 { long(3) } else { good(index) })
            .collect();
        insert(&fixture, &rows).await;
        let mut relay = fixture.run();
        let stored = letters(&fixture, 8).await;
        relay.logs("became a dead letter").await;
        let kinds: Vec<bool> = stored.iter().map(|stored| stored.kind.is_some()).collect();
        let wanted: Vec<bool> = (0..8).map(|index| index == 3).collect();
        assert_eq!(kinds, wanted, "{lane:?}");
        relay.stop().await;
    }
}

async fn halts(fixture: &mut Fixture, words: &[&str]) -> Relay {
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let log = relay.log();
    let halted = log.lines().find(|line| line.contains("halted: "));
    let halted = halted.unwrap_or_else(|| panic!("{log}"));
    for word in words {
        assert!(halted.contains(word), "no {word:?} in {halted}");
    }
    relay
}

#[tokio::test]
async fn one_halts_where_that_is_wanted() {
    for lane in LANES {
        halts_and_is_passed(lane).await;
    }
}

async fn halts_and_is_passed(lane: Lane) {
    let mut fixture = with_table(Fixture::bare().await, lane).await;
    fixture.set("WALRELAY_RELAY_ON_REJECT", "halt");
    let bad = CASES.iter().filter(|case| case.reason.is_some()).take(3);
    let bad: Vec<String> = bad.map(Case::sql).collect();
    insert(&fixture, &[good(0), bad[0].clone(), good(1)]).await;
    insert(&fixture, &[good(2), bad[1].clone()]).await;
    let mut relay = halts(
        &mut fixture,
        &["event odd", "bytes with its headers", "skip"],
    )
    .await;
    drop(relay);
    letters(&fixture, 1).await;
    // The same again, and what is before it does not come again.
    relay = halts(&mut fixture, &["event odd", "skip"]).await;
    assert_eq!(letters(&fixture, 1).await.len(), 1, "{lane:?}");
    for passed in 1..=2 {
        let log = relay.log();
        let (_, behind) = log.split_once("the row at ").expect("it says which row");
        let (position, _) = behind.split_once(' ').expect("and goes on");
        let skip = ["dead-letters", "skip", position];
        fixture.walrelay(&skip).await.success();
        if passed == 1 {
            relay = halts(&mut fixture, &["event odd", "skip"]).await;
            // The dead letter, and the good ones behind it.
            assert_eq!(letters(&fixture, 4).await.len(), 4, "{lane:?}");
        }
    }
    drop(relay);
    let relay = fixture.run();
    insert(&fixture, &[good(3)]).await;
    let stored = letters(&fixture, 6).await;
    relay.stop().await;
    let kinds: Vec<bool> = stored.iter().map(|m| m.kind.is_some()).collect();
    assert_eq!(kinds, [false, true, false, false, true, false], "{lane:?}");
}

#[tokio::test]
async fn one_whose_answer_is_lost_is_told_of_by_the_next_epoch() {
    const SAID: &str = "became a dead letter";
    let mut fixture = bare_with_table().await;
    let link = Proxy::start(fixture.servers().nats.port()).await.unwrap();
    let url = format!("nats://127.0.0.1:{}", link.port());
    fixture.set("WALRELAY_NATS_URL", url);
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "1s");
    let mut relay = fixture.run();
    relay.streams().await;
    link.set(Mode::HalfOpenDown);
    let bad = CASES.iter().find(|case| case.reason.is_some()).unwrap();
    insert(&fixture, &[bad.sql()]).await;
    // As a rule the letter is stored by now; on a busy machine the epoch may have ended over another answer before it left.
    relay.logs("waiting: ").await;
    assert!(!relay.log().contains(SAID), "{}", relay.log());
    link.set(Mode::Pass);
    relay.logs(SAID).await;
    fixture.holds(1).await;
    insert(&fixture, &[good(1)]).await;
    fixture.holds(2).await;
    assert_eq!(relay.log().matches(SAID).count(), 1, "{}", relay.log());
    relay.stop().await;
}
