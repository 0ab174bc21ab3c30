//! Names that shares need and somebody else has: nothing is changed before they are free, by what is printed.

use async_nats::jetstream;

use super::load::{SLOTS, count, edit, own_streams, reshard, shares, stops, two_shares, undivided};
use super::verdict::streams_of;
use crate::support::{Fixture, Output, eventually};

const PUBLICATIONS: &str = "FROM pg_publication";

/// The statement between these words, typed.
async fn types(fixture: &Fixture, refused: &Output, from: &str) {
    let (_, statement) = refused.stderr.rsplit_once(from).expect("a remedy");
    let (statement, _) = statement.split_once(';').expect("a statement");
    fixture.sql.batch_execute(statement).await.expect(statement);
}

async fn is_refused(fixture: &Fixture, command: &[&str], told: &[&str]) -> Output {
    let before = [
        count(fixture, SLOTS).await,
        count(fixture, PUBLICATIONS).await,
    ];
    let refused = fixture.walrelay(command).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    for text in told {
        assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
    }
    let after = [
        count(fixture, SLOTS).await,
        count(fixture, PUBLICATIONS).await,
    ];
    assert_eq!(after, before, "{}", refused.stderr);
    let stream = streams_of(fixture, 1).remove(0);
    let jetstream = jetstream::new(fixture.nats.clone());
    let is_there = jetstream.get_stream(&stream).await.is_ok();
    assert!(!is_there, "nothing is made");
    refused
}

/// Five more events of the other outbox, each of which its stream has once.
async fn events_of_another(fixture: &Fixture, other: &Fixture, all: u64) {
    let sql = "INSERT INTO outbox_other (id, aggregate_id, event_type, payload_json) \
               SELECT gen_random_uuid(), gen_random_uuid(), 'a', '{}' FROM generate_series(1, 5)";
    fixture.sql.batch_execute(sql).await.unwrap();
    eventually("the other outbox goes on", async || {
        (other.message_count().await == all).then_some(())
    })
    .await;
}

/// Another outbox of the database, whose slot and publication are called like a share.
#[tokio::test]
async fn another_outbox_that_is_called_like_a_share_gets_another_name() {
    let mut fixture = undivided().await;
    let mut other = Fixture::bare().await;
    other.set(
        "WALRELAY_POSTGRES_URL",
        fixture.servers().postgres.url(&fixture.name),
    );
    other.set("WALRELAY_POSTGRES_TABLE", "public.outbox_other");
    other.set("WALRELAY_NAME", format!("{}_1", fixture.name));
    other.setup().await;
    let relay = other.start(&["run"]);
    events_of_another(&fixture, &other, 5).await;

    let of_all = [
        fixture.stream_name().to_owned(),
        format!("{}.{{event_type}}", fixture.name),
    ];
    own_streams(&mut fixture, 2);
    let divide = ["reshard", "--shares", "2", "--undivided-stream"];
    let divide = [
        &divide[..],
        &[&of_all[0], "--undivided-subject", &of_all[1]],
    ]
    .concat();
    let told = [
        "public.outbox_other",
        "another outbox's",
        "run walrelay teardown",
    ];
    is_refused(&fixture, &divide, &told).await;
    // As it is printed.
    relay.stop().await;
    other.walrelay(&["teardown", "--yes"]).await.success();
    let context = jetstream::new(other.nats.clone());
    let stream = context.get_stream(other.stream_name()).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    let letters = format!("walrelay.dead.{}_1", fixture.name);
    config.subjects.retain(|subject| *subject != letters);
    context.update_stream(config).await.unwrap();
    let name = other.name.clone();
    other.set("WALRELAY_NAME", name);
    let asked = other.walrelay(&["setup"]).await;
    edit(&other, &asked.stderr).await;
    other.setup().await;
    let relay = other.run();
    fixture.walrelay(&divide).await.success();
    let relays = [relay, fixture.run()];
    events_of_another(&fixture, &other, 10).await;
    fixture.walrelay(&["verify"]).await.success();
    for relay in relays {
        stops(relay).await;
    }
}

#[tokio::test]
async fn a_publication_that_is_called_like_a_share_is_renamed() {
    let table = "CREATE TABLE theirs (id int)";
    let theirs = |fixture: &Fixture, number: u32| {
        format!(
            "CREATE PUBLICATION {}_{number} FOR TABLE theirs",
            fixture.name
        )
    };
    // By the set-up of shares.
    let mut fixture = Fixture::bare().await;
    own_streams(&mut fixture, 4);
    fixture.sql.batch_execute(table).await.unwrap();
    let made = theirs(&fixture, 1);
    fixture.sql.batch_execute(&made).await.unwrap();
    let refused = is_refused(&fixture, &["setup"], &["is of public.theirs"]).await;
    types(&fixture, &refused, "else run ").await;
    fixture.setup().await;
    assert_eq!(count(&fixture, PUBLICATIONS).await, 5);

    // By another number of them.
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    fixture.sql.batch_execute(table).await.unwrap();
    let made = theirs(&fixture, 3);
    fixture.sql.batch_execute(&made).await.unwrap();
    let refused = fixture.walrelay(&["reshard", "--shares", "4"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(count(&fixture, SLOTS).await, 2, "{}", refused.stderr);
    types(&fixture, &refused, "where nobody reads it, run ").await;
    reshard(&fixture, "4").await;
    assert_eq!(count(&fixture, SLOTS).await, 4);
}

/// Slots are the server's, not the database's.
#[tokio::test]
async fn a_slot_of_another_database_that_is_called_like_a_share() {
    let mut fixture = two_shares(true).await;
    shares(&mut fixture, 4);
    let elsewhere = fixture.servers().postgres.connect("postgres").await;
    let elsewhere = elsewhere.expect("connects");
    let slot = format!(
        "SELECT pg_create_logical_replication_slot('{}_3', 'pgoutput')",
        fixture.name
    );
    elsewhere.batch_execute(&slot).await.unwrap();
    let refused = fixture.walrelay(&["reshard", "--shares", "4"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(count(&fixture, PUBLICATIONS).await, 2);
    let told = "in database postgres";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    types(&fixture, &refused, "where nobody needs it, run ").await;
    reshard(&fixture, "4").await;
    assert_eq!(count(&fixture, SLOTS).await, 4);
}

/// The publication of a share under a slot of one's own: its rows would be published twice.
#[tokio::test]
async fn a_publication_of_a_share_is_not_read_by_another_slot() {
    let mut fixture = two_shares(true).await;
    let mut other = Fixture::bare().await;
    let url = fixture.servers().postgres.url(&fixture.name);
    other.set("WALRELAY_POSTGRES_URL", url);
    other.set(
        "WALRELAY_POSTGRES_PUBLICATION",
        format!("{}_0", fixture.name),
    );
    let told = ["publication", "set relay.shares = 2"];
    is_refused(&other, &["setup"], &told).await;
    let slot = format!(
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
        other.name
    );
    fixture.sql.batch_execute(&slot).await.unwrap();
    is_refused(&other, &["run"], &told).await;
    let drop = format!("SELECT pg_drop_replication_slot('{}')", other.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    // That of a share which came later.
    shares(&mut fixture, 4);
    reshard(&fixture, "4").await;
    other.set(
        "WALRELAY_POSTGRES_PUBLICATION",
        format!("{}_3", fixture.name),
    );
    let refused = is_refused(&other, &["setup"], &["set relay.shares = 4"]).await;
    // As it says.
    let (_, publication) = refused
        .stderr
        .split_once("postgres.publication = \"")
        .expect("a remedy");
    let (publication, _) = publication.split_once('"').unwrap();
    other.set("WALRELAY_POSTGRES_PUBLICATION", publication);
    other.set("WALRELAY_RELAY_SHARES", "4");
    other.set("WALRELAY_POSTGRES_SLOT", fixture.name.as_str());
    let name = fixture.name.clone();
    other.set(
        "WALRELAY_NATS_STREAM",
        format!("{}_{{share}}", name.to_uppercase()),
    );
    other.set(
        "WALRELAY_NATS_SUBJECT",
        format!("{name}.{{share}}.{{event_type}}"),
    );
    other.walrelay(&["setup"]).await.success();
    assert_eq!(count(&fixture, SLOTS).await, 4);
}
