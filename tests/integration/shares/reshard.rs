//! `walrelay reshard`: another number of shares while writers write, and the order of each aggregate.

use std::collections::HashMap;

use async_nats::jetstream;
use postgres_types::PgLsn;
use rustix::process::Signal;
use uuid::Uuid;

use super::divide;
use crate::support::{Fixture, Output, Relay, Servers, Stored, Writer, eventually, uuid};

/// Events are of twenty aggregates, whoever writes them.
pub(super) const FEW_AGGREGATES: &str = "
CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  NEW.aggregate_id := ('00000000-0000-4000-8000-' || lpad((abs(hashtext(NEW.id::text)) % 20)::text, 12, '0'))::uuid;
  RETURN NEW;
END $$;
CREATE TRIGGER few BEFORE INSERT ON outbox_events FOR EACH ROW EXECUTE FUNCTION few();";

pub(super) fn shares(fixture: &mut Fixture, count: u32) {
    fixture.set("WALRELAY_RELAY_SHARES", count.to_string());
}

/// Two shares, set up; relays confirm at once.
pub(super) async fn two_shares(own_streams: bool) -> Fixture {
    two_shares_on(Fixture::bare().await, own_streams).await
}

async fn two_shares_on(mut fixture: Fixture, own_streams: bool) -> Fixture {
    divide(&mut fixture, own_streams);
    shares(&mut fixture, 2);
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    fixture.setup().await;
    fixture.sql.batch_execute(FEW_AGGREGATES).await.unwrap();
    fixture
}

/// A stream of all shares has to take the dead letters of the new ones: what is printed is typed.
pub(super) async fn takes_dead_letters_of(fixture: &Fixture, shares: &str) {
    let refused = fixture.walrelay(&["reshard", "--shares", shares]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let name = fixture.stream_name();
    let edit = format!("nats stream edit {name} ");
    let (_, flags) = refused.stderr.split_once(&edit).expect("a command");
    let flags = flags.lines().next().unwrap().split("--subjects='").skip(1);
    let jetstream = jetstream::new(fixture.nats.clone());
    let stream = jetstream.get_stream(name).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.subjects = flags
        .map(|flag| flag.split('\'').next().unwrap().to_owned())
        .collect();
    jetstream.update_stream(config).await.unwrap();
    assert_eq!(count(fixture, SLOTS).await, 2, "nothing was made");
}

pub(super) async fn count(fixture: &Fixture, query: &str) -> i64 {
    let query = format!("SELECT count(*) {query}");
    fixture.sql.query_one(&query, &[]).await.unwrap().get(0)
}

pub(super) const SLOTS: &str = "FROM pg_replication_slots WHERE database = current_database()";

/// The streams of so many shares.
pub(super) fn streams_of(fixture: &Fixture, count: u32) -> Vec<String> {
    let name = |share: u32| fixture.stream_name().replace("{share}", &share.to_string());
    (0..count).map(name).collect()
}

/// Of those that are there, without fences, each in its own order.
pub(super) async fn events_of(fixture: &Fixture, streams: &[String]) -> Vec<Vec<Stored>> {
    let mut all = Vec::new();
    for name in streams {
        let mut stored = fixture.stored_in(name).await;
        stored.retain(|message| !message.subject.starts_with("walrelay."));
        all.push(stored);
    }
    all
}

/// What a consumer of several streams sorts by.
fn position(event: &Stored) -> (PgLsn, u32) {
    let (lsn, ordinal) = event.position.split_once(':').expect("a position");
    let lsn = lsn.parse().expect("an LSN");
    (lsn, ordinal.parse().expect("an ordinal"))
}

/// Each committed event is in the streams once. The order of every aggregate is that of the commits: in each stream, and over all
/// of them by position and by when they were stored.
pub(super) async fn verdict(fixture: &Fixture, committed: &[Uuid], streams: &[String]) {
    let all = eventually("all events are in the streams", async || {
        let all = events_of(fixture, streams).await;
        let stored: usize = all.iter().map(Vec::len).sum();
        (stored >= committed.len()).then_some(all)
    })
    .await;
    let mut stored: Vec<Uuid> = all.iter().flatten().map(Stored::id).collect();
    let mut expected = committed.to_vec();
    stored.sort_unstable();
    expected.sort_unstable();
    assert_eq!(stored, expected, "each once");
    let ranks: HashMap<&Uuid, usize> = committed.iter().zip(0..).collect();
    let rows = fixture
        .sql
        .query("SELECT id, aggregate_id FROM outbox_events", &[]);
    let rows = rows.await.unwrap();
    let aggregates: HashMap<Uuid, Uuid> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let in_order = |events: &mut dyn Iterator<Item = &Stored>, by: &str| {
        let mut last: HashMap<Uuid, usize> = HashMap::new();
        for id in events.map(Stored::id) {
            let before = last.insert(aggregates[&id], ranks[&id]);
            assert!(before < Some(ranks[&id]), "{id} is out of order by {by}");
        }
    };
    for events in &all {
        in_order(&mut events.iter(), "sequence");
    }
    let mut merged: Vec<&Stored> = all.iter().flatten().collect();
    merged.sort_by_key(|event| position(event));
    in_order(&mut merged.iter().copied(), "position");
    // A stable sort: of what was stored in one moment by one batch, by position.
    merged.sort_by_key(|event| event.stored_ns);
    in_order(&mut merged.iter().copied(), "time");
}

pub(super) async fn reshard(fixture: &Fixture, to: &str) -> Output {
    fixture
        .walrelay(&["reshard", "--shares", to])
        .await
        .success()
}

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
    let more = async |fixture: &Fixture| {
        let begin = writer.committed();
        // Share 0 is there all the time.
        let first = &streams_of(fixture, 1)[0];
        let stored = fixture.message_count_of(first).await;
        eventually("events go on", async || {
            let grown = fixture.message_count_of(first).await >= stored + 30;
            (grown && writer.committed() >= begin + 300).then_some(())
        })
        .await;
    };
    more(&fixture).await;
    let dry = fixture
        .walrelay(&["reshard", "--shares", "4", "--dry-run"])
        .await
        .success();
    assert!(dry.stdout.contains("& 3) = 2"), "{}", dry.stdout);
    assert_eq!(count(&fixture, SLOTS).await, 2, "nothing was made");
    for (to, slots) in [("4", 4), ("8", 8), ("4", 4)] {
        reshard(&fixture, to).await;
        assert_eq!(count(&fixture, SLOTS).await, slots);
        assert_eq!(count(&fixture, "FROM pg_publication").await, slots);
        eventually("each share has an owner", async || {
            let owned = count(&fixture, &format!("{SLOTS} AND active")).await;
            (owned == slots).then_some(())
        })
        .await;
        more(&fixture).await;
    }
    let committed = writer.stop(&fixture).await;
    let streams = streams_of(&fixture, if own_streams { 8 } else { 1 });
    verdict(&fixture, &committed, &streams).await;
    for relay in [old, new] {
        stops(relay).await;
    }
}

/// With a lane that waits, it ends with 0: no lane has halted.
pub(super) async fn stops(mut relay: Relay) {
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0), "{}", relay.log());
}

/// It waits for a transaction that has written to the table, and can be taken back until then.
#[tokio::test]
async fn before_the_change_it_is_taken_back() {
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    let relay = fixture.run();
    let mut other = fixture.connect().await;
    let open = other.transaction().await.unwrap();
    // As an insert has it; to make a slot would wait for that one too.
    let lock = "LOCK TABLE outbox_events IN ROW EXCLUSIVE MODE";
    open.batch_execute(lock).await.unwrap();
    let refused = fixture
        .walrelay(&["reshard", "--shares", "4", "--wait", "1s"])
        .await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("as they were"),
        "{}",
        refused.stderr
    );
    assert_eq!(count(&fixture, SLOTS).await, 4, "they are ready");
    fixture.insert(1, 20).await;
    open.commit().await.unwrap();
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
    let stage = "SELECT count(*) FROM pg_publication_tables WHERE rowfilter = 'false'";
    let mut command = fixture.start(&["reshard", "--shares", "2"]);
    eventually("the publications are changed", async || {
        let row = fixture.sql.query_one(stage, &[]).await.unwrap();
        (row.get::<_, i64>(0) == 2).then_some(())
    })
    .await;
    command.kill();
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
    eventually("each share has an owner", async || {
        (count(&fixture, &format!("{SLOTS} AND active")).await == 4).then_some(())
    })
    .await;
    stops(relay).await;
}

/// The command died at the change and nobody runs it again. A later one takes the slots from the relay that reads them.
#[tokio::test]
async fn relays_publish_the_rest_of_a_share_that_is_no_more_without_the_command() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.insert(1, 100).await;
    let dry = ["reshard", "--shares", "2", "--dry-run"];
    let dry = fixture.walrelay(&dry).await.success().stdout;
    let (change, _) = dry.split_once("COMMIT;").expect("a transaction");
    let change = format!("{change}COMMIT;");
    fixture.sql.batch_execute(&change).await.unwrap();
    fixture.insert(101, 200).await;
    let relay = fixture.run();
    let committed: Vec<Uuid> = (1..=200).map(uuid).collect();
    verdict(&fixture, &committed, &streams_of(&fixture, 4)).await;
    assert_eq!(count(&fixture, &format!("{SLOTS} AND active")).await, 4);
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
    eventually("a slot is half made", async || {
        (count(&fixture, &half).await == 1).then_some(())
    })
    .await;
    let mut command = fixture.start(&["reshard", "--shares", "4"]);
    eventually("it has made the publication", async || {
        (count(&fixture, "FROM pg_publication").await == 3).then_some(())
    })
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
        // An aggregate goes from the streams of all shares that there ever were.
        let row = "SELECT aggregate_id::text FROM outbox_events GROUP BY 1";
        for row in fixture.sql.query(row, &[]).await.unwrap() {
            let aggregate: String = row.get(0);
            let erase = ["erase", "--yes", "--json", "--aggregate-id", &aggregate];
            fixture.walrelay(&erase).await.success();
        }
        let left = events_of(&fixture, &streams).await;
        assert!(left.iter().all(Vec::is_empty), "{left:?}");
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
