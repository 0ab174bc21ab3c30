//! Databases whose text is not UTF-8, with rows that cannot be: such a row becomes a dead letter, and stops nothing.

use serde_json::json;

use crate::support::{Fixture, uuid};

/// An outbox in a database of this encoding, all of whose tables are published.
async fn database(encoding: &str) -> Fixture {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    let admin = fixture
        .servers()
        .postgres
        .connect("postgres")
        .await
        .unwrap();
    for sql in [
        format!("DROP DATABASE {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"),
    ] {
        admin.batch_execute(&sql).await.unwrap();
    }
    fixture.reconnect().await;
    let publication = format!(
        "CREATE PUBLICATION {name} FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root = true)"
    );
    for sql in [
        include_str!("../../sql/0001_outbox_events.sql"),
        &publication,
        "CREATE TABLE other (note text)",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    fixture.setup().await;
    fixture
}

/// Inserts the event `number`, its payload `{"city": …}` with these bytes.
async fn insert(fixture: &Fixture, number: u64, city: &[u8]) {
    let payload = [b"{\"city\": \"".as_slice(), city, b"\"}"].concat();
    let sql = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES ($1::text::uuid, gen_random_uuid(), 'a.b', convert_from($2, current_setting('server_encoding'))::jsonb)";
    let id = uuid(number).to_string();
    fixture.sql.execute(sql, &[&id, &payload]).await.unwrap();
}

/// The third event of four cannot be UTF-8, and neither can a row of another table before it.
async fn streams(encoding: &str, cities: [&[u8]; 4]) {
    let mut fixture = database(encoding).await;
    let mut relay = fixture.run();
    relay.streams().await;
    for (number, city) in (1..).zip(cities) {
        if number == 3 {
            let other =
                "INSERT INTO other VALUES (convert_from($1, current_setting('server_encoding')))";
            fixture.sql.execute(other, &[&city]).await.unwrap();
        }
        insert(&fixture, number, city).await;
    }
    fixture.holds(4).await;
    let stored = fixture.stored().await;
    for at in [0, 1, 3] {
        assert_eq!(stored[at].id(), uuid(at as u64 + 1));
        let city = ["Bern", "Z\u{fc}rich", "", "Genf"][at];
        assert_eq!(
            stored[at].field("payload_json"),
            json!({ "city": city }),
            "{encoding}"
        );
    }
    assert_eq!(stored[2].kind.as_deref(), Some("dead-letter"), "{encoding}");
    assert_eq!(stored[2].field("reason"), "no-text");
    assert_eq!(stored[2].field("id"), uuid(3).to_string());
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;

    // What the slot holds is looked into as well.
    insert(&fixture, 5, cities[2]).await;
    insert(&fixture, 6, cities[1]).await;
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["pending"], 2, "{report}");
    assert_eq!(report["missing"]["count"], 0, "{report}");
    // A row that has no message is published, with its text as it is; the one that is no text is named.
    let stream = crate::lane::stream_of(&fixture).await;
    for sequence in [2, 3] {
        assert!(stream.delete_message(sequence).await.unwrap());
    }
    let filled = fixture.walrelay(&["backfill", "--unjudged"]).await;
    assert!(
        filled.stderr.contains("payload has bytes that are no text"),
        "{}",
        filled.stderr
    );
    let relay = fixture.run();
    fixture.holds(5).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let again = stored
        .iter()
        .find(|message| message.kind.as_deref() == Some("backfill"));
    assert_eq!(
        again.unwrap().field("payload_json"),
        json!({ "city": "Z\u{fc}rich" })
    );
}

#[tokio::test]
async fn sql_ascii_promises_nothing() {
    streams(
        "SQL_ASCII",
        [b"Bern", "Z\u{fc}rich".as_bytes(), b"Z\xfcrich", b"Genf"],
    )
    .await;
}

#[tokio::test]
async fn a_byte_that_means_nothing() {
    streams("WIN1252", [b"Bern", b"Z\xfcrich", b"Z\x81rich", b"Genf"]).await;
}
