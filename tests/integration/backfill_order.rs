//! The order in which old rows are published, wherever they stand in the table.

use std::ops::RangeInclusive;

use uuid::Uuid;
use walrelay::bulk::Sourced;
use walrelay::bulk::table::{Wanted, source};
use walrelay::postgres::tid::Tid;

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

/// In the order of its rows, as the relay publishes it.
#[tokio::test]
async fn a_transaction_comes_as_its_rows_were_inserted() {
    let fixture = Fixture::with_table().await;
    let numbers = [7, 3, 9, 1];
    let inserts = numbers.map(|number| insert_sql(number, number) + ";");
    let sql = format!("BEGIN; {} COMMIT", inserts.concat());
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.setup().await;
    fixture.walrelay(&["backfill"]).await.success();
    assert_eq!(fixture.stored_ids().await, numbers.map(uuid));
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
                Sourced::Rejected { name, why } => gone.push((name, why)),
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
    let [(name, why)] = &gone[..] else {
        panic!("one is gone: {gone:?}");
    };
    assert_eq!(*name, uuid(80).to_string());
    assert!(why.contains("no longer in"), "{why}");
}
