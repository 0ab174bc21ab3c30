//! `walrelay reshard`: another number of shares while writers write, and the order of each aggregate.

use async_nats::jetstream;
use rustix::process::Signal;
use uuid::Uuid;

use super::divide;
use super::load::{
    CARRY_NOTHING, SLOTS, are_owned, change_alone, count, has, more, reshard, shares, stops,
    takes_dead_letters_of, two_shares, two_shares_on, writing,
};
use super::verdict::{all_is_erased, events_of, streams_of, verdict};
use crate::support::{Fixture, Servers, Writer, eventually, uuid};

#[tokio::test]
async fn twice_as_many_and_half_as_many_under_load() {
    twice_and_half(false).await;
}

#[tokio::test]
async fn with_a_stream_each_an_aggregate_is_in_order_over_all_of_them() {
    twice_and_half(true).await;
}

/// The instances need not know: one has the old number of shares, one the highest.
async fn twice_and_half(own_streams: bool) {
    let mut fixture = two_shares(own_streams).await;
    if !own_streams {
        takes_dead_letters_of(&fixture, "8").await;
    }
    let old = fixture.run();
    shares(&mut fixture, 8);
    let new = fixture.run();
    let writer = Writer::start(&fixture).await;
    // Share 0 is there all the time.
    let first = streams_of(&fixture, 1).remove(0);
    more(&fixture, &writer, &first).await;
    let dry = fixture
        .walrelay(&["reshard", "--shares", "4", "--dry-run"])
        .await
        .success();
    assert!(dry.stdout.contains("& 3) = 2"), "{}", dry.stdout);
    assert_eq!(count(&fixture, SLOTS).await, 2, "nothing was made");
    for (to, slots) in [("4", 4), ("8", 8), ("4", 4)] {
        let told = reshard(&fixture, to).await.stdout;
        let publications = told.lines().filter(|line| line.starts_with("publication"));
        for line in publications {
            assert!(line.ends_with(" made"), "{line}");
        }
        assert_eq!(count(&fixture, SLOTS).await, slots);
        assert_eq!(count(&fixture, "FROM pg_publication").await, slots);
        are_owned(&fixture, slots).await;
        more(&fixture, &writer, &first).await;
    }
    let committed = writer.stop(&fixture).await;
    let streams = streams_of(&fixture, if own_streams { 8 } else { 1 });
    verdict(&fixture, &committed, &streams).await;
    for relay in [old, new] {
        stops(relay).await;
    }
}

/// It waits for a transaction that has written to the table, and can be taken back until then.
#[tokio::test]
async fn before_the_change_it_is_taken_back() {
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    let writer = writing(&fixture).await;
    fixture
        .walrelay(&["reshard", "--shares", "4", "--wait", "1s"])
        .await
        .refused("as they were");
    assert_eq!(count(&fixture, SLOTS).await, 4, "they are ready");
    fixture.insert(1, 20).await;
    writer.batch_execute("COMMIT").await.unwrap();
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 2);
    reshard(&fixture, "4").await;
    assert_eq!(count(&fixture, SLOTS).await, 4);
    stops(relay).await;
}

/// Where every instance has the lower number already, nobody but the command relays what is left of the other shares. It dies.
#[tokio::test]
async fn a_share_that_is_no_more_is_published_by_the_command_though_it_dies() {
    let mut fixture = two_shares(false).await;
    takes_dead_letters_of(&fixture, "4").await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    let writer = Writer::start(&fixture).await;
    eventually("some events are committed", async || {
        (writer.committed() >= 500).then_some(())
    })
    .await;
    // None of them is published yet, and shares 2 and 3 never are by this relay.
    shares(&mut fixture, 2);
    let mut relay = fixture.run();
    // The command publishes them, and does not come to its end before it is killed.
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut command = fixture.start(&["reshard", "--shares", "2"]);
    has(&fixture, "the publications are changed", CARRY_NOTHING, 2).await;
    command.kill();
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    let committed = writer.stop(&fixture).await;
    verdict(&fixture, &committed, &streams_of(&fixture, 1)).await;
    // A share comes again, under the number that one had before.
    shares(&mut fixture, 4);
    relay.signal(Signal::TERM);
    relay.ends().await;
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    are_owned(&fixture, 4).await;
    stops(relay).await;
}

/// The command died at the change and nobody runs it again. A later one takes the slots from the relay that reads them.
#[tokio::test]
async fn relays_publish_the_rest_of_a_share_that_is_no_more_without_the_command() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.insert(1, 100).await;
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    fixture.insert(101, 200).await;
    let relay = fixture.run();
    let committed: Vec<Uuid> = (1..=200).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    are_owned(&fixture, 4).await;
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    assert_eq!(count(&fixture, "FROM pg_publication").await, 2);
    stops(relay).await;
}

/// The command was killed while Postgres made a slot, or behind that: no record tells where it begins.
#[tokio::test]
async fn a_slot_that_a_killed_command_has_left_is_made_again() {
    let mut fixture = two_shares(false).await;
    takes_dead_letters_of(&fixture, "4").await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    fixture.insert(1, 100).await;
    // Shares 2 and 3 leave records behind.
    reshard(&fixture, "2").await;
    fixture.insert(101, 200).await;
    let name = fixture.name.clone();
    let slot =
        move |n| format!("SELECT pg_create_logical_replication_slot('{name}_{n}', 'pgoutput')");
    let publication = format!(
        "CREATE PUBLICATION {}_3 FOR TABLE outbox_events WHERE (false) WITH (publish = 'insert')",
        fixture.name
    );
    for sql in [&publication, &slot(3)] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    // It is taken back.
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    fixture.sql.batch_execute(&slot(3)).await.unwrap();
    let other = fixture.connect().await;
    let open = "BEGIN; SELECT pg_current_xact_id()";
    other.batch_execute(open).await.unwrap();
    let killed = fixture.connect().await;
    let making = tokio::spawn(async move { killed.batch_execute(&slot(2)).await.unwrap() });
    let half = format!("{SLOTS} AND active AND confirmed_flush_lsn IS NULL");
    has(&fixture, "a slot is half made", &half, 1).await;
    let mut command = fixture.start(&["reshard", "--shares", "4"]);
    has(
        &fixture,
        "it has made the publication",
        "FROM pg_publication",
        3,
    )
    .await;
    other.batch_execute("COMMIT").await.unwrap();
    making.await.unwrap();
    assert_eq!(command.ends().await, Some(0), "{}", command.log());
    fixture.insert(201, 300).await;
    let committed: Vec<Uuid> = (1..=300).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 1)).await;
    stops(relay).await;
}

/// What another share had published before the change is no more missing than anything else.
#[tokio::test]
async fn nothing_is_missing_behind_a_change_and_nothing_is_published_again() {
    for own_streams in [false, true] {
        let mut fixture = two_shares(own_streams).await;
        shares(&mut fixture, 4);
        if !own_streams {
            takes_dead_letters_of(&fixture, "4").await;
        }
        let relay = fixture.run();
        fixture.insert(1, 40).await;
        let committed: Vec<Uuid> = (1..=40).map(uuid).collect();
        let streams = streams_of(&fixture, if own_streams { 4 } else { 1 });
        let first = if own_streams { &streams[..2] } else { &streams };
        verdict(&fixture, &committed, first).await;
        for count in [4, 2] {
            reshard(&fixture, &count.to_string()).await;
            shares(&mut fixture, count);
            fixture.walrelay(&["verify"]).await.success();
            let backfill = fixture.walrelay(&["backfill"]).await.success();
            assert_eq!(
                backfill.stdout.matches("0 rows are not in").count(),
                count as usize,
                "{}",
                backfill.stdout
            );
        }
        verdict(&fixture, &committed, &streams).await;
        all_is_erased(&fixture, &streams).await;
        fixture.insert(41, 60).await;
        if own_streams {
            let jetstream = jetstream::new(fixture.nats.clone());
            jetstream.delete_stream(&streams[3]).await.unwrap();
            let unsure = fixture.walrelay(&["verify"]).await;
            assert_eq!(unsure.code, Some(3), "{}", unsure.stderr);
            assert!(unsure.stderr.contains("--since"), "{}", unsure.stderr);
        }
        stops(relay).await;
    }
}

/// What cannot be read of a lane that had rows is no word that they are published.
#[tokio::test]
async fn a_lane_whose_record_cannot_be_read_is_waited_for() {
    // What stands in the records' stream is read by the commands of every lane.
    let mut fixture = two_shares_on(Fixture::bare_on(Servers::own().await).await, false).await;
    takes_dead_letters_of(&fixture, "4").await;
    fixture.insert(1, 40).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.insert(41, 80).await;
    let jetstream = jetstream::new(fixture.nats.clone());
    let unreadable = format!("walrelay.lane.OTHER.{}_0", fixture.name);
    let stored = jetstream.publish(unreadable.clone(), "no record".into());
    stored.await.unwrap().await.unwrap();
    // Share 2 has rows of share 0, which nobody publishes yet.
    let streams = streams_of(&fixture, 1);
    let mut early = fixture.run_with(&["--share", "2"]);
    early.logs("waiting until share 0").await;
    assert_eq!(events_of(&fixture, &streams).await[0].len(), 0);
    let records = jetstream.get_stream("WALRELAY").await.unwrap();
    records.purge().filter(unreadable).await.unwrap();
    let relay = fixture.run();
    let committed: Vec<Uuid> = (1..=80).map(uuid).collect();
    verdict(&fixture, &committed, &streams).await;
    stops(early).await;
    stops(relay).await;
}

/// Two outboxes in one database.
#[tokio::test]
async fn a_change_is_of_one_outbox() {
    let mut fixture = two_shares(false).await;
    takes_dead_letters_of(&fixture, "4").await;
    let mut other = Fixture::bare().await;
    divide(&mut other, false);
    shares(&mut other, 2);
    other.set(
        "WALRELAY_POSTGRES_URL",
        fixture.servers().postgres.url(&fixture.name),
    );
    other.set("WALRELAY_POSTGRES_TABLE", "public.outbox_other");
    other.setup().await;
    let relays = [fixture.run(), other.run()];
    reshard(&fixture, "4").await;
    let sql = "INSERT INTO outbox_other (id, aggregate_id, event_type, payload_json) \
               SELECT gen_random_uuid(), gen_random_uuid(), 'a', '{}' FROM generate_series(1, 20)";
    fixture.sql.batch_execute(sql).await.unwrap();
    eventually("the other outbox goes on", async || {
        (events_of(&other, &streams_of(&other, 1)).await[0].len() == 20).then_some(())
    })
    .await;
    for relay in relays {
        relay.stop().await;
    }
}

/// A lane that has moved has a record where it was, too: that one lives nowhere.
#[tokio::test]
async fn half_as_many_of_shares_that_have_moved() {
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    let mut relay = fixture.run();
    reshard(&fixture, "4").await;
    are_owned(&fixture, 4).await;
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), gen_random_uuid(), 'a', '{}' FROM generate_series(1, 40)";
    fixture.sql.batch_execute(insert).await.unwrap();
    let new = fixture.stream_name().replace("{share}", "NEW_{share}");
    for share in ["0", "1", "2", "3"] {
        let to = new.replace("{share}", share);
        let moving = ["move", "--yes", "--share", share, "--to-stream", &to];
        fixture.walrelay(&moving).await.success();
    }
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    fixture.set("WALRELAY_NATS_STREAM", new);
    let relay = fixture.run();
    are_owned(&fixture, 4).await;
    stops(relay).await;
    // Nobody reads shares 2 and 3: the command publishes what they have.
    fixture.sql.batch_execute(insert).await.unwrap();
    shares(&mut fixture, 2);
    let relay = fixture.run();
    reshard(&fixture, "2").await;
    assert_eq!(count(&fixture, SLOTS).await, 2);
    are_owned(&fixture, 2).await;
    fixture.walrelay(&["verify"]).await.success();
    stops(relay).await;
}
