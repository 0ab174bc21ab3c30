//! The order in which old rows are published, wherever they stand in the table.

use std::ops::RangeInclusive;

use uuid::Uuid;
use walrelay::bulk::Sourced;
use walrelay::bulk::table::{Wanted, source};
use walrelay::postgres::inserted::Tid;

use crate::embedded::{database_url, settings};
use crate::support::{Fixture, insert_sql, uuid};

/// Commits these, with values of so many bytes.
async fn insert(fixture: &Fixture, rows: RangeInclusive<u64>, bytes: usize) {
    let note = format!("jsonb_build_object('note', repeat('x', {bytes}))");
    let sql = insert_sql(*rows.start(), *rows.end()).replace("jsonb_build_object('n', n)", &note);
    fixture.sql.batch_execute(&sql).await.unwrap();
}

/// Where a row stands.
async fn tid(fixture: &Fixture, id: Uuid) -> Tid {
    let sql = "SELECT ctid::text FROM outbox_events WHERE id = $1";
    let row = fixture.sql.query_one(sql, &[&id]).await.unwrap();
    row.get::<_, &str>(0).parse().expect("a place")
}

/// Also where younger rows stand before older ones, and where those have to be kept meanwhile have too many bytes for that.
#[tokio::test]
async fn the_oldest_transaction_comes_first_wherever_its_rows_stand() {
    for bytes in [10, 40_000] {
        let fixture = Fixture::with_table().await;
        let sql = "ALTER TABLE outbox_events SET (autovacuum_enabled = off)";
        fixture.sql.batch_execute(sql).await.unwrap();
        insert(&fixture, 1..=150, bytes).await;
        for first in (151..=300).step_by(15) {
            insert(&fixture, first..=first + 14, bytes).await;
        }
        let sql = format!("DELETE FROM outbox_events WHERE id < '{}'", uuid(151));
        fixture.sql.batch_execute(&sql).await.unwrap();
        fixture
            .sql
            .batch_execute("VACUUM outbox_events")
            .await
            .unwrap();
        insert(&fixture, 301..=450, bytes).await;
        assert!(tid(&fixture, uuid(301)).await < tid(&fixture, uuid(151)).await);

        fixture.setup().await;
        fixture.walrelay(&["backfill"]).await.success();
        let expected: Vec<Uuid> = (151..=450).map(uuid).collect();
        assert_eq!(fixture.stored_ids().await, expected, "{bytes} bytes");
    }
}

/// In the order of its commands, as the relay publishes it, also where a row stands in front of one that came before it: Postgres
/// puts it where it fits.
#[tokio::test]
async fn a_transaction_comes_as_its_rows_were_inserted() {
    let fixture = Fixture::with_table().await;
    let plain = "ALTER TABLE outbox_events ALTER payload_json SET STORAGE PLAIN";
    fixture.sql.batch_execute(plain).await.unwrap();
    // A block is filled but for a little, and then another one.
    for (number, bytes) in [(1, 1_850), (2, 1_850), (3, 1_850), (4, 1_350)] {
        insert(&fixture, number..=number, bytes).await;
    }
    for number in 5..=8 {
        insert(&fixture, number..=number, 1_850).await;
    }
    let numbers = [19, 11, 15];
    let inserts = [(19, 150), (11, 500), (15, 10)].map(|(number, bytes)| {
        let note = format!("jsonb_build_object('note', repeat('x', {bytes}))");
        insert_sql(number, number).replace("jsonb_build_object('n', n)", &note) + ";"
    });
    let sql = format!("BEGIN; {} COMMIT", inserts.concat());
    fixture.sql.batch_execute(&sql).await.unwrap();
    assert!(tid(&fixture, uuid(11)).await < tid(&fixture, uuid(19)).await);
    fixture.setup().await;
    fixture.walrelay(&["backfill"]).await.success();
    let expected: Vec<Uuid> = (1..=8).chain(numbers).map(uuid).collect();
    assert_eq!(fixture.stored_ids().await, expected);
}

/// Between the look at the table and the reading of its rows.
#[tokio::test]
async fn rows_that_move_meanwhile_come_and_those_that_go_are_named() {
    let fixture = Fixture::with_table().await;
    insert(&fixture, 1..=100, 10).await;
    let mut wanted = Vec::new();
    for number in 1..=100 {
        let id = uuid(number);
        wanted.push(Wanted {
            name: id.to_string(),
            tid: tid(&fixture, id).await,
        });
    }
    // Larger than what is free in the blocks of all: most stand behind them then.
    let sql = format!(
        "UPDATE outbox_events SET event_type = repeat('x', 1500) WHERE id BETWEEN '{}' AND '{}'; \
         DELETE FROM outbox_events WHERE id = '{}'",
        uuid(30),
        uuid(70),
        uuid(80)
    );
    fixture.sql.batch_execute(&sql).await.unwrap();
    assert!(tid(&fixture, uuid(70)).await.block > wanted[99].tid.block);
    fixture.setup().await;

    let settings = settings(&fixture, &database_url(&fixture));
    let mut source = source(&settings, wanted.into_iter().map(Ok));
    let (mut found, mut gone) = (Vec::new(), Vec::new());
    while let Some(chunk) = source.recv().await {
        for sourced in chunk.expect("rows") {
            match sourced {
                Sourced::Item(item) => found.push(item.name),
                Sourced::Gone { name } => gone.push(name),
                other => panic!("{other:?}"),
            }
        }
    }
    let name = |number| uuid(number).to_string();
    let stayed: Vec<String> = (1..=29).chain(71..=79).chain(81..=100).map(name).collect();
    let (moved, of_others): (Vec<String>, _) =
        found.into_iter().partition(|it| !stayed.contains(it));
    assert_eq!(of_others, stayed);
    // Each is the youngest now.
    assert_eq!(moved, (30..=70).map(name).collect::<Vec<_>>());
    assert_eq!(gone, [name(80)]);
}

/// The ids are what the relay has made of them.
#[tokio::test]
async fn ids_of_a_domain_over_padded_text_are_those_of_their_messages() {
    let mut fixture = Fixture::with_table().await;
    let sql = "CREATE DOMAIN padded AS char(20);
               ALTER TABLE outbox_events ALTER id TYPE padded USING left(id::text, 20)";
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.setup().await;
    let relay = fixture.run();
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                  SELECT 'k' || n, gen_random_uuid(), 'lesson.published.v1', '{}' FROM generate_series(1, 10) AS n";
    fixture.sql.batch_execute(insert).await.unwrap();
    fixture.holds(10).await;
    fixture.walrelay(&["verify"]).await.success();
    fixture.walrelay(&["backfill"]).await.success();
    assert_eq!(fixture.message_count().await, 10);
    relay.stop().await;
}
