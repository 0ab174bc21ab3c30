//! Runs of `walrelay reshard` that meet each other, or a share that is not as a run has left it.

use async_nats::jetstream;
use uuid::Uuid;

use super::load::{
    SLOTS, are_owned, change_alone, count, end_as_printed, has, own_streams, reshard, set_up,
    shares, stops, takes_dead_letters_of, two_shares,
};
use super::verdict::{events_of, streams_of, verdict};
use crate::support::{Fixture, Relay, Stored, eventually, uuid};

/// Two shares that have become four, under one relay.
async fn four_shares(hold_back: &str) -> (Fixture, Relay) {
    let mut fixture = two_shares(false).await;
    takes_dead_letters_of(&fixture, "4").await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
    shares(&mut fixture, 4);
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    are_owned(&fixture, 4).await;
    (fixture, relay)
}

fn ids(last: u64) -> Vec<Uuid> {
    (1..=last).map(uuid).collect()
}

/// An older run that waits for the end of two shares would drop what a newer one has made of them again.
#[tokio::test]
async fn a_second_run_is_refused_while_one_is_at_work() {
    let (fixture, relay) = four_shares("1h").await;
    fixture.insert(1, 100).await;
    let mut first = fixture.start(&["reshard", "--shares", "2"]);
    first
        .logs("waiting until what share 2 and share 3 had")
        .await;
    let refused = fixture.walrelay(&["reshard", "--shares", "4"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(first.runs());
    end_as_printed(&fixture, &refused).await;
    assert_eq!(first.ends().await, Some(1), "{}", first.log());
    reshard(&fixture, "4").await;
    fixture.insert(101, 200).await;
    verdict(&fixture, &ids(200), &streams_of(&fixture, 1)).await;
    assert_eq!(count(&fixture, SLOTS).await, 4);
    stops(relay).await;
}

/// Without the record of share 2, as a power failure of NATS can take it in its first seconds.
async fn lose_record(fixture: &Fixture) {
    let jetstream = jetstream::new(fixture.nats.clone());
    let records = jetstream.get_stream("WALRELAY").await.unwrap();
    let record = format!("walrelay.lane.{}.{}_2", fixture.stream_name(), fixture.name);
    let purged = records.purge().filter(record).await.unwrap();
    assert!(purged.purged > 0);
}

#[tokio::test]
async fn a_share_whose_record_is_lost_keeps_its_slot_until_its_rows_are_published() {
    for is_changed in [false, true] {
        let (mut fixture, relay) = four_shares("0s").await;
        fixture.insert(1, 100).await;
        verdict(&fixture, &ids(100), &streams_of(&fixture, 1)).await;
        stops(relay).await;
        fixture.insert(101, 200).await;
        let to_two = ["reshard", "--shares", "2"];
        if is_changed {
            change_alone(&fixture, &to_two).await;
        }
        lose_record(&fixture).await;
        let refused = fixture.walrelay(&to_two).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert_eq!(count(&fixture, SLOTS).await, 4, "{}", refused.stderr);
        let remedy = "walrelay adopt --share 2, with relay.shares = 4";
        assert!(refused.stderr.contains(remedy), "{}", refused.stderr);
        let adopt = ["adopt", "--share", "2", "--yes"];
        fixture.walrelay(&adopt).await.success();
        let relay = fixture.run();
        reshard(&fixture, "2").await;
        verdict(&fixture, &ids(200), &streams_of(&fixture, 1)).await;
        fixture.insert(201, 210).await;
        verdict(&fixture, &ids(210), &streams_of(&fixture, 1)).await;
        assert_eq!(count(&fixture, SLOTS).await, 2);
        stops(relay).await;
    }
}

/// Relays that keep rows have published all that the shares had: no other relay looks at their streams again.
#[tokio::test]
async fn rows_of_a_share_that_is_no_more_are_deleted() {
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    fixture.insert(1, 100).await;
    verdict(&fixture, &ids(100), &streams_of(&fixture, 4)).await;
    let of_leaving = "FROM outbox_events WHERE uuid_hash(aggregate_id) & 3 >= 2";
    assert!(count(&fixture, of_leaving).await > 0);
    fixture.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, of_leaving).await, 0);
    stops(relay).await;
    shares(&mut fixture, 2);
    let relay = fixture.run();
    has(&fixture, "all rows are deleted", "FROM outbox_events", 0).await;
    stops(relay).await;
}

/// Its relay is started again before it has published anything.
#[tokio::test]
async fn a_share_that_is_one_again_is_not_held_up_by_a_copy_of_what_it_had_before() {
    let (mut fixture, relay) = four_shares("0s").await;
    fixture.insert(1, 100).await;
    verdict(&fixture, &ids(100), &streams_of(&fixture, 1)).await;
    reshard(&fixture, "2").await;
    reshard(&fixture, "4").await;
    are_owned(&fixture, 4).await;
    let sequence = copies_an_event_of(&fixture, &format!("{}_2", fixture.name)).await;
    stops(relay).await;
    let relay = fixture.run();
    fixture.insert(101, 200).await;
    let streams = streams_of(&fixture, 1);
    eventually("each share has gone on", async || {
        let events = events_of(&fixture, &streams).await;
        (events[0].len() == 201).then_some(())
    })
    .await;
    let jetstream = jetstream::new(fixture.nats.clone());
    let stream = jetstream.get_stream(fixture.stream_name()).await.unwrap();
    assert!(stream.delete_message(sequence).await.unwrap());
    verdict(&fixture, &ids(200), &streams).await;
    stops(relay).await;
}

/// As a consumer does that publishes again what it has received: with the headers, but for NATS' own.
async fn copies_an_event_of(fixture: &Fixture, slot: &str) -> u64 {
    let is_of_slot =
        |event: &&Stored| event.headers["Walrelay-Position"].starts_with(&format!("{slot} "));
    let events = events_of(fixture, &streams_of(fixture, 1)).await;
    let event = events[0].iter().find(is_of_slot).expect("it has published");
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in &event.headers {
        headers.insert(name.as_str(), value.as_str());
    }
    let jetstream = jetstream::new(fixture.nats.clone());
    let sent =
        jetstream.publish_with_headers(event.subject.clone(), headers, event.body.clone().into());
    sent.await.unwrap().await.unwrap().sequence
}

/// A crash of Postgres, before the slot of a share that is at its end was dropped, sets that back to where it was last on disk.
#[tokio::test]
async fn a_slot_that_a_crash_has_set_back_behind_its_end_is_dropped() {
    for to in ["2", "4"] {
        let (fixture, relay) = four_shares("0s").await;
        let slot = format!("{}_3", fixture.name);
        let disk = format!("disk_{}", fixture.name);
        let sql = async |sql: String| fixture.sql.batch_execute(&sql).await.expect(&sql);
        let copy = |from: &str, to: &str| {
            format!("SELECT pg_copy_logical_replication_slot('{from}', '{to}')")
        };
        sql(copy(&slot, &disk)).await;
        fixture.insert(1, 100).await;
        verdict(&fixture, &ids(100), &streams_of(&fixture, 1)).await;
        reshard(&fixture, "2").await;
        sql(format!(
            "CREATE PUBLICATION {slot} FOR TABLE outbox_events WHERE (false) WITH (publish = 'insert')"
        ))
        .await;
        sql(copy(&disk, &slot)).await;
        sql(format!("SELECT pg_drop_replication_slot('{disk}')")).await;
        reshard(&fixture, to).await;
        fixture.insert(101, 200).await;
        verdict(&fixture, &ids(200), &streams_of(&fixture, 1)).await;
        assert_eq!(count(&fixture, SLOTS).await.to_string(), to);
        stops(relay).await;
    }
}

/// The command was killed when it had made the publication of a share, and neither its slot nor its stream.
#[tokio::test]
async fn a_share_that_is_nothing_but_a_publication_goes_again() {
    let mut fixture = Fixture::bare().await;
    own_streams(&mut fixture, 2);
    let mut fixture = set_up(fixture).await;
    fixture.insert(1, 100).await;
    shares(&mut fixture, 4);
    let dry = ["reshard", "--shares", "4", "--dry-run"];
    let dry = fixture.walrelay(&dry).await.success().stdout;
    let (create, _) = dry.split_once("\n--").expect("the first share's");
    fixture.sql.batch_execute(create).await.expect(create);
    let of_outbox = format!(
        "FROM pg_publication WHERE starts_with(pubname, '{}_')",
        fixture.name
    );
    assert_eq!(count(&fixture, &of_outbox).await, 3, "{create}");

    shares(&mut fixture, 2);
    let setup = fixture.walrelay(&["setup"]).await.success();
    let told = setup.stdout + &setup.stderr;
    assert!(told.contains("walrelay reshard --shares 2"), "{told}");
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, &of_outbox).await, 2);
    let relay = fixture.run();
    verdict(&fixture, &ids(100), &streams_of(&fixture, 2)).await;
    stops(relay).await;
}
