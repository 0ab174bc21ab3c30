//! `run --from` and `position`.

use postgres_types::PgLsn;
use serde_json::Value;

use walrelay::local::Mode;

use crate::support::{Fixture, Stored, assert_exactly_once, eventually, uuid};

async fn position(fixture: &Fixture) -> Value {
    let output = fixture.walrelay(&["position", "--json"]).await.success();
    serde_json::from_str(&output.stdout).expect("one JSON object")
}

fn lsn(positions: &Value, key: &str) -> PgLsn {
    let text = positions[key].as_str();
    let text = text.unwrap_or_else(|| panic!("{key} of {positions}"));
    text.parse().expect("an LSN")
}

/// A lane that holds everything back: 3 transactions of 10 events, published, and the positions after each.
async fn published(fixture: &mut Fixture) -> Vec<Value> {
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    let mut positions = Vec::new();
    for transaction in 0..3 {
        fixture
            .insert(transaction * 10 + 1, transaction * 10 + 10)
            .await;
        fixture.holds(transaction * 10 + 10).await;
        positions.push(position(fixture).await);
    }
    relay.stop().await;
    positions
}

/// Where the stream's first event was committed.
async fn first_lsn(fixture: &Fixture) -> String {
    let stored = fixture.stored().await;
    let (lsn, _) = stored[0].position.split_once(':').expect("a position");
    lsn.to_owned()
}

fn split(stored: &[Stored]) -> (Vec<uuid::Uuid>, Vec<uuid::Uuid>) {
    let (again, first): (Vec<&Stored>, Vec<&Stored>) =
        stored.iter().partition(|message| message.is_replay());
    let ids = |messages: Vec<&Stored>| messages.iter().map(|message| message.id()).collect();
    (ids(first), ids(again))
}

#[tokio::test]
async fn position_tells_stream_slot_and_server() {
    let mut fixture = Fixture::new().await;
    let empty = position(&fixture).await;
    assert_eq!(empty["acknowledged_lsn"], Value::Null);
    assert_eq!(empty["slot"], fixture.name.as_str());
    assert_eq!(empty["stream"], fixture.stream_name());
    let positions = published(&mut fixture).await;
    for (index, now) in positions.iter().enumerate() {
        assert_eq!(now["stream_sequence"], (index + 1) * 10);
        assert!(now["position"].as_str().unwrap().ends_with(":10"), "{now}");
        assert!(lsn(now, "confirmed_lsn") < lsn(now, "acknowledged_lsn"));
        assert!(lsn(now, "acknowledged_lsn") < lsn(now, "server_lsn"));
    }
    let text = fixture.walrelay(&["position"]).await.success().stdout;
    for key in ["acknowledged", "confirmed", "server"] {
        assert!(text.contains(key), "{text}");
    }

    let relay = fixture.run_with(&["--hold-back", "0s"]);
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let confirmed = position(&fixture).await;
    assert!(lsn(&confirmed, "confirmed_lsn") > lsn(&confirmed, "acknowledged_lsn"));
}

#[tokio::test]
async fn a_replay_comes_in_order_and_marked() {
    let mut fixture = Fixture::new().await;
    let positions = published(&mut fixture).await;
    let from = positions[1]["acknowledged_lsn"].as_str().unwrap();
    let mut relay = fixture.run_with(&["--from", from]);
    relay.streams().await;
    fixture.holds(50).await;
    fixture.insert(31, 35).await;
    fixture.holds(55).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let (first, again) = split(&stored);
    assert_exactly_once(&(1..=35).map(uuid).collect::<Vec<_>>(), &first);
    assert_exactly_once(&(11..=30).map(uuid).collect::<Vec<_>>(), &again);

    // The start after it finds the lane's end behind the replays.
    let relay = fixture.run();
    fixture.insert(36, 36).await;
    fixture.holds(56).await;
    relay.stop().await;
    let (first, again) = split(&fixture.stored().await);
    assert_exactly_once(&(1..=36).map(uuid).collect::<Vec<_>>(), &first);
    assert_eq!(again.len(), 20);
}

#[tokio::test]
async fn a_place_that_the_slot_or_the_server_does_not_have_is_refused() {
    let mut fixture = Fixture::new().await;
    let positions = published(&mut fixture).await;
    let oldest = lsn(&positions[0], "confirmed_lsn");
    let below = PgLsn::from(u64::from(oldest) - 0x100).to_string();
    let refused = fixture.walrelay(&["run", "--from", &below]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let named = fixture.confirmed_lsn().await.to_string();
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
    // What it names has the events that the slot has not.
    let line = refused.stderr.split('`').nth(1);
    let line = line.unwrap_or_else(|| panic!("{}", refused.stderr));
    let again = fixture.types(&format!("{line} --yes")).await.success();
    assert!(again.stdout.contains("are published again"), "{line}");
    let stream = format!("{}_REPLAY", fixture.stream_name());
    assert!(fixture.message_count_of(&stream).await > 0, "{line}");

    let above = PgLsn::from(u64::from(fixture.server_lsn().await) + 0x100_0000).to_string();
    let refused = fixture.walrelay(&["run", "--from", &above]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains(&above), "{}", refused.stderr);
    assert_eq!(fixture.message_count().await, 30);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_replay_leaves_first_publications_alone() {
    const ROWS: u64 = 20_000;
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = fixture.run();
    relay.streams().await;
    for transaction in 0..20 {
        fixture
            .insert(transaction * 1_000 + 1, transaction * 1_000 + 1_000)
            .await;
    }
    fixture.holds(ROWS).await;
    relay.kill();
    let from = first_lsn(&fixture).await;

    fixture.insert(ROWS + 1, ROWS + 10).await;
    let mut count = ROWS;
    for _ in 0..3 {
        let mut relay = fixture.run_with(&["--from", &from]);
        count = fixture.message_count().await.max(count);
        fixture.holds(count + 2_000).await;
        relay.kill();
    }
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(ROWS + 11, ROWS + 20).await;
    let last = uuid(ROWS + 20);
    eventually("the last event is there", async || {
        let stored = fixture.stored().await;
        (stored.last()?.id() == last).then_some(())
    })
    .await;
    relay.stop().await;
    let (first, again) = split(&fixture.stored().await);
    assert_exactly_once(&(1..=ROWS + 20).map(uuid).collect::<Vec<_>>(), &first);
    assert!(again.len() >= 3 * 1_000);
    // Each attempt begins at the beginning, in order.
    for pair in again.windows(2) {
        assert!(pair[1].as_u128() == pair[0].as_u128() + 1 || pair[1] == uuid(1));
    }
}

#[tokio::test]
async fn a_replay_outlives_restarts_of_the_servers() {
    const ROWS: u64 = 30_000;
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    for transaction in 0..30 {
        fixture
            .insert(transaction * 1_000 + 1, transaction * 1_000 + 1_000)
            .await;
    }
    let relay = fixture.run();
    fixture.holds(ROWS).await;
    relay.stop().await;
    let from = first_lsn(&fixture).await;

    let mut relay = fixture.run_with(&["--from", &from]);
    fixture.holds(ROWS + 1_000).await;
    let nats = &mut fixture.own_servers().nats;
    nats.kill();
    nats.start_again().await.unwrap();
    fixture.holds(fixture.message_count().await + 1_000).await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    fixture.insert(ROWS + 1, ROWS + 1).await;
    let last = uuid(ROWS + 1);
    eventually("the last event is there", async || {
        let stored = fixture.stored().await;
        (stored.last()?.id() == last).then_some(())
    })
    .await;
    // It is done, and comes no second time.
    let count = fixture.message_count().await;
    let nats = &mut fixture.own_servers().nats;
    nats.kill();
    nats.start_again().await.unwrap();
    fixture.insert(ROWS + 2, ROWS + 2).await;
    fixture.holds(count + 1).await;
    assert!(relay.runs());
    relay.stop().await;
    assert_eq!(fixture.message_count().await, count + 1);
    let (first, mut again) = split(&fixture.stored().await);
    assert_exactly_once(&(1..=ROWS + 2).map(uuid).collect::<Vec<_>>(), &first);
    // Where an attempt was cut off, the next one may repeat, and must not leave out.
    for pair in again.windows(2) {
        assert!(pair[1].as_u128() <= pair[0].as_u128() + 1, "{pair:?}");
    }
    again.sort();
    again.dedup();
    assert_exactly_once(&(1..=ROWS).map(uuid).collect::<Vec<_>>(), &again);
}

/// The events `1..=last`, each once and none of them as a replay.
async fn all_are_first_publications(fixture: &Fixture, last: u64) {
    fixture.holds(last).await;
    let (first, again) = split(&fixture.stored().await);
    assert_exactly_once(&(1..=last).map(uuid).collect::<Vec<_>>(), &first);
    assert!(again.is_empty(), "{again:?}");
}

#[tokio::test]
async fn a_fresh_lane_publishes_also_what_is_before_the_place_to_begin_again() {
    let mut fixture = Fixture::new().await;
    fixture.insert(1, 100).await;
    let from = position(&fixture).await["server_lsn"].to_string();
    let relay = fixture.run_with(&["--from", from.trim_matches('"')]);
    all_are_first_publications(&fixture, 100).await;
    fixture.confirms(fixture.server_lsn().await).await;
    assert!(relay.log().contains("nothing to replay"), "{}", relay.log());
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_stream_made_again_gets_all_that_the_slot_has() {
    let mut fixture = Fixture::new().await;
    published(&mut fixture).await;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let name = fixture.stream_name().to_owned();
    context.delete_stream(&name).await.unwrap();
    fixture.setup().await;
    let from = position(&fixture).await["server_lsn"].to_string();
    let relay = fixture.run_with(&["--from", from.trim_matches('"')]);
    all_are_first_publications(&fixture, 30).await;
    assert!(
        relay.log().contains("published again now"),
        "{}",
        relay.log()
    );
    relay.stop().await;
}

#[tokio::test]
async fn a_position_is_a_place_to_begin_again() {
    let mut fixture = Fixture::new().await;
    let positions = published(&mut fixture).await;
    let from = positions[1]["position"].as_str().unwrap();
    assert!(from.ends_with(":10"), "{from}");
    let relay = fixture.run_with(&["--from", from]);
    fixture.holds(50).await;
    let lsn = positions[1]["acknowledged_lsn"].as_str().unwrap();
    let said = format!("from {lsn} up to there, marked as replay");
    assert!(relay.log().contains(&said), "{}", relay.log());
    relay.stop().await;
    let (_, again) = split(&fixture.stored().await);
    // The whole transaction.
    assert_exactly_once(&(11..=30).map(uuid).collect::<Vec<_>>(), &again);
}
