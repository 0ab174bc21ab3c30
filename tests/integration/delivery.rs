//! What committed is what arrives: rolled back rows, COPY, large and concurrent transactions.

use futures_util::SinkExt as _;

use crate::support::{Fixture, Relay, Writer, assert_exactly_once, uuid};

/// Most resident memory of a debug build that may pass a transaction of 200,000 rows.
const FLAT_MEMORY_KIB: u64 = 64 * 1024;

#[tokio::test]
async fn rolled_back_rows_do_not_appear() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    let insert = |first, last| crate::support::insert_sql(first, last);
    let script = [
        insert(1, 2),
        format!("BEGIN; {}; ROLLBACK", insert(100, 102)),
        format!(
            "BEGIN; {}; SAVEPOINT a; {}; SAVEPOINT b; {}; ROLLBACK TO b; {}; ROLLBACK TO a; {}; COMMIT",
            insert(3, 3),
            insert(200, 201),
            insert(202, 202),
            insert(203, 203),
            insert(4, 4),
        ),
        format!(
            "BEGIN; {}; SAVEPOINT a; {}; RELEASE a; COMMIT",
            insert(5, 5),
            insert(6, 6)
        ),
        "BEGIN; DELETE FROM outbox_events WHERE payload_json->>'n' = '1';
         UPDATE outbox_events SET event_type = 'changed'; COMMIT"
            .to_owned(),
        format!("BEGIN; {}; DELETE FROM outbox_events; COMMIT", insert(7, 7)),
        insert(8, 8),
    ];
    for sql in &script {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.holds(8).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    assert_exactly_once(&(1..=8).map(uuid).collect::<Vec<_>>(), &ids);
    let subject = format!("{}.lesson.published.v1", fixture.name);
    assert!(stored.iter().all(|message| message.subject == subject));
    assert!(stored.iter().all(|message| message.kind.is_none()));
    assert_eq!(stored[7].payload(), r#"{"n": 8}"#);
}

#[tokio::test]
async fn a_copy_keeps_its_order_under_one_lsn() {
    const ROWS: u64 = 10_000;
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    let sink = fixture
        .sql
        .copy_in("COPY outbox_events (id, aggregate_id, event_type, payload_json) FROM STDIN")
        .await
        .unwrap();
    let mut sink = std::pin::pin!(sink);
    let lines: String = (1..=ROWS)
        .map(|n| format!("{}\t{}\tcopied.v1\t{{\"n\": {n}}}\n", uuid(n), uuid(n)))
        .collect();
    sink.send(bytes::Bytes::from(lines)).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), ROWS);

    fixture.holds(ROWS).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let ids: Vec<_> = stored.iter().map(|message| message.id()).collect();
    assert_exactly_once(&(1..=ROWS).map(uuid).collect::<Vec<_>>(), &ids);
    let (lsn, _) = stored[0].position.split_once(':').unwrap();
    for (index, message) in stored.iter().enumerate() {
        assert_eq!(message.position, format!("{lsn}:{}", index + 1));
    }
}

/// The events `1..=rows` are there once, and the relay has never needed much for them.
async fn passes_in_flat_memory(fixture: &Fixture, relay: Relay, rows: u64) {
    fixture.holds(rows).await;
    let peak = relay.status_kib("VmHWM");
    relay.stop().await;
    let ids = fixture.stored_ids().await;
    assert_exactly_once(&(1..=rows).map(uuid).collect::<Vec<_>>(), &ids);
    if let Some(peak) = peak {
        eprintln!("{peak} kB at the peak");
        assert!(peak < FLAT_MEMORY_KIB, "{peak} kB at the peak");
    }
}

#[tokio::test]
async fn a_transaction_of_200_000_rows_passes_in_flat_memory() {
    const ROWS: u64 = 200_000;
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, ROWS).await;
    passes_in_flat_memory(&fixture, relay, ROWS).await;
}

#[tokio::test]
async fn concurrent_transactions_arrive_in_commit_order() {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();

    // Begun first, committed last.
    let (first, second) = (fixture.connect().await, fixture.connect().await);
    let insert = |first, last| crate::support::insert_sql(first, last);
    first
        .batch_execute(&format!("BEGIN; {}", insert(3, 4)))
        .await
        .unwrap();
    second
        .batch_execute(&format!("BEGIN; {}", insert(1, 1)))
        .await
        .unwrap();
    first.batch_execute(&insert(5, 5)).await.unwrap();
    second
        .batch_execute(&format!("{}; COMMIT", insert(2, 2)))
        .await
        .unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    fixture.holds(5).await;

    let writer = Writer::start(&fixture).await;
    fixture.holds(3_000).await;
    let mut committed: Vec<_> = (1..=5).map(uuid).collect();
    committed.extend(writer.stop(&fixture).await);
    fixture.holds(committed.len() as u64).await;
    relay.stop().await;
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}

#[tokio::test]
async fn a_backlog_waits_in_the_slot_not_in_memory() {
    const TRANSACTIONS: u64 = 1_000;
    const ROWS: u64 = 100 * TRANSACTIONS;
    let mut fixture = Fixture::own().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.own_servers().nats.stop().await.unwrap();
    for transaction in 0..TRANSACTIONS {
        fixture
            .insert(transaction * 100 + 1, transaction * 100 + 100)
            .await;
    }
    fixture.own_servers().nats.start_again().await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
    passes_in_flat_memory(&fixture, relay, ROWS).await;
}
