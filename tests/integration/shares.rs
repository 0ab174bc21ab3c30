//! `relay.shares`: one configuration, several lanes, each with a share of the aggregates (row filters, Postgres 15+).

mod at_once;
mod beside;
mod by_hand;
mod commands;
mod filters;
mod interrupted;
mod left;
mod letters;
mod load;
mod looks;
mod moved;
mod names;
mod other_nats;
#[cfg(target_os = "linux")]
mod rates;
mod reshard;
mod restored;
mod tables;
mod teardown;
mod undivided;
mod verdict;

use std::collections::HashMap;
use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;
use uuid::Uuid;

use crate::support::{
    Fixture, Output, Relay, Servers, Writer, assert_exactly_once, eventually, options, site, uuid,
};

const SHARES: usize = 4;

/// Four shares; with `own_streams` a stream each.
fn divide(fixture: &mut Fixture, own_streams: bool) {
    fixture.set("WALRELAY_RELAY_SHARES", SHARES.to_string());
    if own_streams {
        let name = fixture.name.clone();
        fixture.set(
            "WALRELAY_NATS_STREAM",
            format!("{}_{{share}}", name.to_uppercase()),
        );
        fixture.set(
            "WALRELAY_NATS_SUBJECT",
            format!("{name}.{{share}}.{{event_type}}"),
        );
    }
}

/// What the stream of one share holds, where each has its own.
async fn stored_ids(fixture: &mut Fixture, share: usize) -> Vec<Uuid> {
    let whole = fixture.stream_name().to_owned();
    fixture.set(
        "WALRELAY_NATS_STREAM",
        whole.replace("{share}", &share.to_string()),
    );
    let ids = fixture.stored_ids().await;
    fixture.set("WALRELAY_NATS_STREAM", whole);
    ids
}

/// The events of the lanes' common stream, without fences.
async fn events(fixture: &Fixture) -> Vec<Uuid> {
    let root = format!("{}.", fixture.name);
    let stored = fixture.stored().await;
    let events = stored
        .iter()
        .filter(|message| message.subject.starts_with(&root));
    events.map(|message| message.id()).collect()
}

/// The share of each row's aggregate, by its id.
async fn shares(fixture: &Fixture) -> HashMap<Uuid, usize> {
    let query = "SELECT id, uuid_hash(aggregate_id) & 3 FROM outbox_events";
    let rows = fixture.sql.query(query, &[]).await.unwrap();
    rows.iter()
        .map(|row| (row.get(0), row.get::<_, i32>(1) as usize))
        .collect()
}

/// Waits until the shares' slots are read.
async fn all_stream(fixture: &Fixture) {
    load::are_owned(fixture, SHARES as i64).await;
}

/// What a path of the relay's own site answers.
async fn get(address: SocketAddr, path: &str) -> String {
    site::get(address, path).await.expect("it answers").1
}

fn reports(output: &Output) -> Vec<Value> {
    let lines = output.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// All commands work on all shares, also those of a partitioned table, or on one of them.
#[tokio::test]
async fn each_share_has_a_lane_and_commands_work_on_all() {
    let mut fixture = Fixture::bare().await;
    let partitioned = include_str!("../../sql/outbox_events_partitioned.sql");
    fixture.sql.batch_execute(partitioned).await.unwrap();
    fixture.insert(1, 80).await;
    divide(&mut fixture, true);
    let plan = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    assert_eq!(plan.stdout.matches("CREATE PUBLICATION").count(), SHARES);
    fixture.walrelay(&["setup"]).await.success();
    // Postgres prints the filters as they are expected: a second time all is found, and nothing is said against it.
    let again = fixture.walrelay(&["setup"]).await.success();
    assert!(
        !again.stdout.contains("made") && !again.stderr.contains("error"),
        "{again:?}"
    );
    let healthy = fixture.walrelay(&["doctor", "--json"]).await;
    assert!(!healthy.stdout.contains("row-filter"), "{}", healthy.stdout);

    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    let mut relay = fixture.run();
    all_stream(&fixture).await;
    fixture.insert(81, 160).await;
    let shares = shares(&fixture).await;
    let of = |share: usize, first: u64, last: u64| -> Vec<Uuid> {
        (first..=last)
            .map(uuid)
            .filter(|id| shares[id] == share)
            .collect()
    };
    for share in 0..SHARES {
        let expected = of(share, 81, 160);
        eventually(format!("share {share} has its events"), async || {
            (stored_ids(&mut fixture, share).await.len() >= expected.len()).then_some(())
        })
        .await;
        assert_eq!(stored_ids(&mut fixture, share).await, expected);
    }
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stderr);
    let missing: Vec<u64> = reports(&verified)
        .iter()
        .map(|report| report["missing"]["count"].as_u64().unwrap())
        .collect();
    let before: Vec<u64> = (0..SHARES)
        .map(|share| of(share, 1, 80).len() as u64)
        .collect();
    assert_eq!(missing, before);
    let status = fixture.walrelay(&["status", "--json"]).await.success();
    let states: Vec<Value> = reports(&status)
        .iter()
        .map(|report| report["relay"]["state"].clone())
        .collect();
    assert_eq!(states, [const { "streaming" }; SHARES]);
    assert!(get(address, "/readyz").await.contains("share 3: streaming"));
    let metrics = get(address, "/metrics").await;
    for share in 0..SHARES {
        let streaming = format!(
            "walrelay_streaming{{relay=\"{}\",share=\"{share}\"}} 1",
            fixture.name
        );
        assert!(metrics.contains(&streaming), "{metrics}");
    }
    assert_eq!(get(address, "/").await.matches("<h1>").count(), SHARES);
    // One of them alone.
    fixture
        .walrelay(&["backfill", "--share", "2"])
        .await
        .success();
    fixture
        .walrelay(&["verify", "--share", "2"])
        .await
        .success();
    fixture.walrelay(&["backfill"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    let status = fixture.walrelay(&["position", "--json"]).await.success();
    assert_eq!(reports(&status).len(), SHARES);
    // What is about one lane asks which.
    let which = fixture.walrelay(&["dead-letters", "list"]).await;
    assert_eq!(which.code, Some(2), "{}", which.stderr);
    assert!(which.stderr.contains("--share"), "{}", which.stderr);
    fixture
        .walrelay(&["dead-letters", "list", "--share", "3"])
        .await
        .success();
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    let left =
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
                       + (SELECT count(*) FROM pg_publication)";
    let left = fixture.sql.query_one(left, &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}

/// Two processes have two shares each; when one dies, the other takes its shares over, as far as it may.
#[tokio::test]
async fn instances_spread_over_the_shares_and_take_over() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    fixture.set("WALRELAY_RELAY_MAX_SHARES_PER_INSTANCE", "2");
    let mut first = fixture.run();
    let mut second = fixture.run();
    all_stream(&fixture).await;
    let streaming = |relay: &Relay| relay.log().matches("streaming, behind").count();
    eventually("each has two", async || {
        (streaming(&first) == 2 && streaming(&second) == 2).then_some(())
    })
    .await;
    let writer = Writer::start(&fixture).await;
    eventually("1,000 events are committed", async || {
        (writer.committed() >= 1_000).then_some(())
    })
    .await;
    first.kill();
    fixture.set("WALRELAY_RELAY_MAX_SHARES_PER_INSTANCE", "4");
    let third = fixture.run();
    all_stream(&fixture).await;
    // It stops in good order with its shares, and the third has all.
    second.signal(Signal::TERM);
    assert_eq!(second.ends().await, Some(0));
    all_stream(&fixture).await;
    let committed = writer.stop(&fixture).await;
    eventually("all events are in the stream", async || {
        (events(&fixture).await.len() >= committed.len()).then_some(())
    })
    .await;
    let (shares, stored) = (shares(&fixture).await, events(&fixture).await);
    assert_eq!(stored.len(), committed.len());
    for share in 0..SHARES {
        let of_share = |ids: &[Uuid]| -> Vec<Uuid> {
            ids.iter()
                .copied()
                .filter(|id| shares[id] == share)
                .collect()
        };
        assert_exactly_once(&of_share(&committed), &of_share(&stored));
    }
    fixture.walrelay(&["verify"]).await.success();
    third.stop().await;
}

#[tokio::test]
async fn another_number_of_shares_at_once_is_told() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    fixture.set("WALRELAY_RELAY_SHARES", "8");
    fixture
        .walrelay(&["setup"])
        .await
        .refused("set relay.shares = 4");
    let row = fixture.sql.query_one(slots, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 4, "nothing was made");
    // Shares that there are not are waited for; those that there are, are relayed.
    let mut relay = fixture.run();
    let of_share_5 = format!(
        "or run walrelay reshard --shares 8 slot=\"{}_5\"",
        fixture.name
    );
    relay.logs(&of_share_5).await;
    all_stream(&fixture).await;
    relay.stop().await;
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture
        .walrelay(&["setup"])
        .await
        .refused("set relay.shares = 4");
    let mut relay = fixture.run();
    relay.logs("set relay.shares = 4").await;
    relay.stop().await;
}

/// An outbox may have the name of another one with a number behind it.
#[tokio::test]
async fn the_slot_of_another_outbox_is_none_of_the_shares() {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    let other =
        format!("CREATE TABLE other (id int); CREATE PUBLICATION \"{name}_5\" FOR TABLE other");
    let slot = format!("SELECT pg_create_logical_replication_slot('{name}_5', 'pgoutput')");
    for sql in [other, slot] {
        fixture.sql.batch_execute(&sql).await.unwrap();
    }
    divide(&mut fixture, false);
    fixture.setup().await;
    // By its slot alone, nothing tells whose it is.
    let without = format!("DROP PUBLICATION \"{name}_5\"");
    fixture.sql.batch_execute(&without).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let said = format!(
        "if no other outbox has this slot, run its relay and stop it once it has published everything, and then run SELECT \
         pg_drop_replication_slot('{name}_5');"
    );
    assert!(refused.stderr.contains(&said), "{}", refused.stderr);
    let drop = format!("SELECT pg_drop_replication_slot('{name}_5');");
    fixture.sql.batch_execute(&drop).await.unwrap();
    fixture.setup().await;
}

#[tokio::test]
async fn a_server_without_room_for_all_slots_gets_none() {
    let settings = [("max_replication_slots", "3")];
    let mut fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
    divide(&mut fixture, true);
    fixture
        .walrelay(&["setup"])
        .await
        .refused("max_replication_slots = 4");
    let made = "SELECT count(*) FROM pg_publication";
    let made = fixture.sql.query_one(made, &[]).await.unwrap();
    assert_eq!(made.get::<_, i64>(0), 0);
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture.setup().await;
}

#[tokio::test]
async fn a_share_that_is_pinned_twice_waits() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, false);
    fixture.setup().await;
    let mut first = fixture.run_with(&["--share", "1"]);
    first.streams().await;
    let mut second = fixture.run_with(&["--share", "1"]);
    second.logs("is in use").await;
    first.stop().await;
    second.streams().await;
    second.stop().await;
}

/// By hand, without `reshard`.
#[tokio::test]
async fn the_number_of_shares_is_changed_in_a_pause_of_the_writers() {
    let mut fixture = Fixture::bare().await;
    divide(&mut fixture, true);
    fixture.set("WALRELAY_RELAY_SHARES", "2");
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 40).await;
    let end = fixture.server_lsn().await;
    let behind = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn < $1";
    eventually("both slots are confirmed", async || {
        let row = fixture.sql.query_one(behind, &[&end]).await.unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    relay.stop().await;
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    fixture.set("WALRELAY_RELAY_SHARES", SHARES.to_string());
    let made = fixture.walrelay(&["setup"]).await.success();
    assert_eq!(
        made.stdout
            .matches("until walrelay adopt has been run")
            .count(),
        2,
        "{}",
        made.stdout
    );
    for share in ["0", "1"] {
        fixture
            .walrelay(&["adopt", "--yes", "--share", share])
            .await
            .success();
    }
    let relay = fixture.run();
    all_stream(&fixture).await;
    fixture.insert(41, 80).await;
    let shares = shares(&fixture).await;
    for share in 0..SHARES {
        let events = |divisor: usize, first: u64, last: u64| {
            let ids = (first..=last).map(uuid);
            ids.filter(|id| shares[id] % divisor == share)
                .collect::<Vec<_>>()
        };
        let expected = [events(2, 1, 40), events(SHARES, 41, 80)].concat();
        eventually(format!("share {share} has its events"), async || {
            (stored_ids(&mut fixture, share).await.len() >= expected.len()).then_some(())
        })
        .await;
        assert_eq!(stored_ids(&mut fixture, share).await, expected);
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_configuration_that_divides_nothing_is_wrong() {
    let mut fixture = Fixture::bare().await;
    for (settings, needle) in [
        (&[("WALRELAY_RELAY_SHARES", "3")][..], "power of two"),
        (&[("WALRELAY_RELAY_SHARES", "0")], "power of two"),
        (&[("WALRELAY_RELAY_SHARES", "512")], "power of two"),
        (
            &[
                ("WALRELAY_RELAY_SHARES", "4"),
                ("WALRELAY_RELAY_SHARE", "4"),
            ],
            "below relay.shares",
        ),
        (
            &[
                ("WALRELAY_RELAY_SHARES", "4"),
                ("WALRELAY_NATS_STREAM", "A_{share}"),
            ],
            "nats.subject",
        ),
        (
            &[
                ("WALRELAY_RELAY_SHARES", "1"),
                ("WALRELAY_NATS_STREAM", "A_{share}"),
            ],
            "relay.shares is 1",
        ),
        (
            &[
                ("WALRELAY_RELAY_SHARES", "4"),
                ("WALRELAY_NATS_STREAM", "A_{shard}"),
                ("WALRELAY_NATS_SUBJECT", "a.{share}.{event_type}"),
            ],
            "did you mean {share}?",
        ),
        (
            &[("WALRELAY_NATS_STREAM", "A_{tenant}")],
            "{tenant} is none\n",
        ),
        (
            &[("WALRELAY_NATS_STREAM", "A_{share")],
            "one has no partner",
        ),
        (
            &[
                ("WALRELAY_RELAY_SHARES", "4"),
                ("WALRELAY_COLUMNS_AGGREGATE_ID", ""),
            ],
            "tells a row's share",
        ),
        (
            &[("WALRELAY_RELAY_MAX_SHARES_PER_INSTANCE", "0")],
            "1 to 256",
        ),
    ] {
        for (name, value) in settings {
            fixture.set(name, *value);
        }
        let refused = fixture.walrelay(&["config", "check"]).await;
        assert_eq!(refused.code, Some(2), "{settings:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains(needle),
            "{settings:?}: {}",
            refused.stderr
        );
        for (name, _) in settings {
            fixture.unset(name);
        }
        fixture.set("WALRELAY_NATS_STREAM", "OUTBOX");
    }
}

/// Without the publication nothing tells whose the rows are.
#[tokio::test]
async fn backfill_needs_the_publication() {
    let fixture = Fixture::new().await;
    fixture.insert(1, 3).await;
    let drop = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    let which = "tells which rows are this stream's";
    fixture.walrelay(&["backfill"]).await.refused(which);
    assert_eq!(fixture.message_count().await, 0);
}
