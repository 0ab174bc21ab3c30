//! Several relays side by side, each with a share of the rows, by configuration alone (row filters, Postgres 15+).

use std::collections::HashMap;

use uuid::Uuid;

use crate::support::{Fixture, Relay, Servers, Writer, assert_exactly_once, eventually, uuid};

/// The lane of one share: name, publication, slot and stream.
fn configure(fixture: &mut Fixture, share: usize) {
    let name = format!("{}_{share}", fixture.name);
    fixture.set("WALRELAY_NAME", &name);
    fixture.set("WALRELAY_NATS_STREAM", name.to_uppercase());
    fixture.set("WALRELAY_NATS_SUBJECT", format!("{name}.{{event_type}}"));
}

/// The ids of the table's rows that are this share's, in the order of [`uuid`] for those of [`Fixture::insert`].
async fn share_of(fixture: &Fixture, share: i32, shares: i32) -> Vec<Uuid> {
    let query = "SELECT id FROM outbox_events WHERE (uuid_hash(aggregate_id) & ($2::int - 1)) = $1 ORDER BY id";
    let rows = fixture.sql.query(query, &[&share, &shares]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// `verify` and `backfill` know a share from the row filter, also that of a partitioned table.
#[tokio::test]
async fn each_share_is_verified_and_backfilled_by_itself() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let partitioned = include_str!("../../sql/outbox_events_partitioned.sql");
    fixture.sql.batch_execute(partitioned).await.unwrap();
    fixture.insert(1, 80).await;
    let publications = include_str!("../../sql/sharded_publications.sql").replace(
        "PUBLICATION walrelay",
        &format!("PUBLICATION {}", fixture.name),
    );
    fixture.sql.batch_execute(&publications).await.unwrap();
    let mut relays = Vec::new();
    for share in 0..4 {
        configure(&mut fixture, share);
        let made = fixture.walrelay(&["setup"]).await.success();
        let rows = share_of(&fixture, share as i32, 4).await.len();
        assert!(
            made.stdout.contains(&format!("{rows} rows are already")),
            "{}",
            made.stdout
        );
        relays.push(fixture.run());
    }
    fixture.insert(81, 160).await;
    for (share, relay) in relays.into_iter().enumerate() {
        configure(&mut fixture, share);
        let (mut before, mut since) = (Vec::new(), Vec::new());
        for id in share_of(&fixture, share as i32, 4).await {
            if id <= uuid(80) {
                &mut before
            } else {
                &mut since
            }
            .push(id);
        }
        fixture.holds(since.len() as u64).await;
        let verified = fixture.walrelay(&["verify", "--json"]).await;
        assert_eq!(verified.code, Some(1), "{}", verified.stderr);
        let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
        assert_eq!(report["missing"]["count"], before.len(), "{report}");
        assert_eq!(report["phantom"]["count"], 0, "{report}");

        let filled = fixture.walrelay(&["backfill"]).await.success();
        let all = format!("{0} of {0} rows", before.len());
        assert!(filled.stdout.contains(&all), "{}", filled.stdout);
        let mut stored = fixture.stored_ids().await;
        stored.sort_unstable();
        assert_eq!(stored, [before, since].concat());
        fixture.walrelay(&["verify"]).await.success();
        relay.stop().await;
        // What setup would not make again is named before it goes.
        let asked = fixture.walrelay(&["teardown"]).await;
        let filter = format!("& 3) = {share}");
        assert!(asked.stdout.contains(&filter), "{}", asked.stdout);
    }
}

/// Without the publication nothing tells whose the rows are.
#[tokio::test]
async fn backfill_needs_the_publication() {
    let fixture = Fixture::new().await;
    fixture.insert(1, 3).await;
    let drop = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    let refused = fixture.walrelay(&["backfill"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("row filter"), "{}", refused.stderr);
    assert_eq!(fixture.message_count().await, 0);
}

#[tokio::test]
async fn two_relays_share_the_rows() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture
        .sql
        .batch_execute(include_str!("../../sql/0001_outbox_events.sql"))
        .await
        .unwrap();
    let mut relays: Vec<Relay> = Vec::new();
    for share in 0..2 {
        let publication = format!(
            "CREATE PUBLICATION {}_{share} FOR TABLE outbox_events
             WHERE ((uuid_hash(aggregate_id) & 1) = {share}) WITH (publish = 'insert')",
            fixture.name
        );
        fixture.sql.batch_execute(&publication).await.unwrap();
        configure(&mut fixture, share);
        fixture.setup().await;
        let mut relay = fixture.run();
        relay.streams().await;
        relays.push(relay);
    }
    let writer = Writer::start(&fixture).await;
    eventually("2,000 events are committed", async || {
        (writer.committed() >= 2_000).then_some(())
    })
    .await;
    // One of them dies and comes back; the other does not notice.
    relays[1].kill();
    relays[1] = fixture.run();
    let committed = writer.stop(&fixture).await;

    let rows = fixture
        .sql
        .query(
            "SELECT id, uuid_hash(aggregate_id) & 1 FROM outbox_events",
            &[],
        )
        .await
        .unwrap();
    let shares: HashMap<Uuid, i32> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (share, relay) in relays.into_iter().enumerate() {
        configure(&mut fixture, share);
        let expected: Vec<Uuid> = committed
            .iter()
            .copied()
            .filter(|id| shares[id] == share as i32)
            .collect();
        assert!(expected.len() > committed.len() / 3, "the shares are even");
        fixture.holds(expected.len() as u64).await;
        let clean = fixture.walrelay(&["verify"]).await.success();
        assert!(clean.stdout.contains("clean"), "{}", clean.stdout);
        relay.stop().await;
        assert_exactly_once(&expected, &fixture.stored_ids().await);
    }
}
