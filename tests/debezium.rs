//! Taking over from Debezium: its slot, its publication, the stream that its NATS sink wrote to.

mod platform;

use async_nats::HeaderMap;
use platform::Platform;

const ROWS: usize = 9;

/// The objects as Debezium makes them with its defaults, and the rows 1 to 9, of which the slot was told that those up
/// to `confirmed` are done.
async fn left_by_debezium(confirmed: usize) -> Platform {
    let mut platform = Platform::servers().await;
    for (name, value) in [
        ("WALRELAY_PRESET", "debezium"),
        ("WALRELAY_POSTGRES_TABLE", "public.outbox"),
        ("WALRELAY_POSTGRES_SLOT", "debezium"),
        ("WALRELAY_POSTGRES_PUBLICATION", "dbz_publication"),
        ("WALRELAY_NATS_STREAM", "DebeziumStream"),
    ] {
        platform.set(name, value);
    }
    for statement in [
        "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
             type varchar(255) NOT NULL, payload jsonb)",
        "CREATE PUBLICATION dbz_publication FOR ALL TABLES",
        "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')",
    ] {
        platform.sql.batch_execute(statement).await.unwrap();
    }
    for row in 1..=ROWS {
        insert(&platform, row).await;
        if row == confirmed {
            let advance = "SELECT pg_replication_slot_advance('debezium', pg_current_wal_lsn())";
            platform.sql.batch_execute(advance).await.unwrap();
        }
    }
    let mut stream = async_nats::jetstream::stream::Config {
        name: "DebeziumStream".to_owned(),
        subjects: vec!["outbox.event.>".to_owned()],
        ..Default::default()
    };
    platform.jetstream.create_stream(&stream).await.unwrap();
    let refused = platform.expect(&["setup"], 1).await;
    let edit = "nats stream edit DebeziumStream --subjects='outbox.event.>' --subjects='walrelay.dead.debezium'";
    assert!(refused.contains(edit), "{refused}");
    stream.subjects.push("walrelay.dead.debezium".to_owned());
    platform.jetstream.update_stream(&stream).await.unwrap();
    platform
}

fn id(row: usize) -> String {
    format!("00000000-0000-0000-0000-{row:012}")
}

/// Inserts a row and updates it, which makes one event.
async fn insert(platform: &Platform, row: usize) {
    let id = id(row);
    let insert = format!(
        "INSERT INTO outbox VALUES ('{id}', 'order', '{row}', 'made', '{{\"n\": {row}}}');
         UPDATE outbox SET type = 'seen' WHERE id = '{id}'"
    );
    platform.sql.batch_execute(&insert).await.unwrap();
}

/// Publishes a row as Debezium Server's sink does: the header's form depends on its configuration.
async fn publish(platform: &Platform, row: usize, form: &str) {
    let mut headers = HeaderMap::new();
    headers.insert("id", form.replace("ID", &id(row)).as_str());
    headers.insert("__debezium.context.taskId", "\"0\"");
    let body = format!("{{\"n\": {row}}}").into_bytes();
    platform.publish("outbox.event.order", headers, body).await;
}

/// The ids in the stream, in its order, without what is no event.
async fn ids(platform: &Platform) -> Vec<String> {
    let stream = platform.stream().await;
    let mut ids = Vec::new();
    for sequence in 1..=platform.last_sequence().await {
        let message = stream.get_raw_message(sequence).await.unwrap();
        if message.subject.as_str() == "outbox.event.order" {
            let header = message
                .headers
                .get("id")
                .expect("an id")
                .as_str()
                .to_owned();
            let at = header.find("0000").expect("a UUID");
            ids.push(header[at..at + 36].to_owned());
        }
    }
    ids
}

async fn runs_until(platform: &Platform, events: usize) {
    let relay = platform.relay();
    let all = async {
        while ids(platform).await.len() < events {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), all)
        .await
        .expect("all events come");
    relay.stop().await;
}

/// Debezium has published from the slot: of what is printed that statement is typed, and no start halts for it.
async fn writes_down_that_the_slot_has_passed_events(platform: &Platform) {
    let mend = async || {
        let output = platform.output(&["doctor", "--json"]).await;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("a list");
        let mut found = findings.iter();
        let found = found.find(|finding| finding["code"] == "unwritten-beginning")?;
        Some(found["mend"].as_str().expect("a remedy").to_owned())
    };
    let told = mend().await.expect("it is told");
    let (_, sql) = told.rsplit_once("run COMMENT").expect("a statement");
    let (sql, _) = sql.split_once(';').expect("its end");
    assert!(sql.ends_with("begins at 0/0'"), "{told}");
    let sql = format!("COMMENT{sql}");
    platform.sql.batch_execute(&sql).await.expect(&sql);
    assert_eq!(mend().await, None);
}

#[tokio::test]
async fn what_debezium_published_and_did_not_confirm_does_not_come_twice() {
    let with_schema = r#"{"schema":{"type":"string","optional":false},"payload":"ID"}"#;
    for (form, confirmed, published) in [("\"ID\"", 2, 5), (with_schema, 2, ROWS), ("ID", 4, 4)] {
        let platform = left_by_debezium(confirmed).await;
        for row in 1..=published {
            publish(&platform, row, form).await;
        }
        let text = platform.expect(&["setup"], 0).await;
        assert!(!text.contains("may be null"), "{text}");
        let text = platform.expect(&["adopt", "--debezium", "--yes"], 0).await;
        let says = match published > confirmed {
            true => "the last row that slot and stream have in common",
            false => "slot and stream have no row in common",
        };
        assert!(text.contains(says), "{text}");
        writes_down_that_the_slot_has_passed_events(&platform).await;
        insert(&platform, ROWS + 1).await;
        runs_until(&platform, ROWS + 1).await;
        let all = |rows| (1..=rows).map(id).collect::<Vec<String>>();
        assert_eq!(ids(&platform).await, all(ROWS + 1));
        let report = platform.verify(0).await;
        assert_eq!(report["events"], ROWS + 1, "{report}");
        // Another adoption keeps what it knows of Debezium.
        platform.expect(&["adopt", "--yes"], 0).await;
        insert(&platform, ROWS + 2).await;
        runs_until(&platform, ROWS + 2).await;
        assert_eq!(ids(&platform).await, all(ROWS + 2));
        platform.verify(0).await;
    }
}

/// What Debezium's `create-stream` makes is in memory, which cannot be changed: its copy serves.
#[tokio::test]
async fn a_stream_in_memory_is_copied_to_disk_first() {
    use async_nats::jetstream::stream::{Config, Source, StorageType};
    let mut platform = left_by_debezium(2).await;
    let memory = |subject: &str| Config {
        name: "InMemory".to_owned(),
        subjects: vec![subject.to_owned()],
        storage: StorageType::Memory,
        ..Config::default()
    };
    platform
        .jetstream
        .delete_stream("DebeziumStream")
        .await
        .unwrap();
    platform
        .jetstream
        .create_stream(memory("outbox.event.>"))
        .await
        .unwrap();
    for row in 1..=5 {
        publish(&platform, row, "\"ID\"").await;
    }
    platform.set("WALRELAY_NATS_STREAM", "InMemory");
    let refused = platform.expect(&["setup"], 1).await;
    assert!(refused.contains("memory"), "{refused}");

    let mut copy = Config {
        name: "DebeziumStream".to_owned(),
        sources: Some(vec![Source {
            name: "InMemory".to_owned(),
            ..Source::default()
        }]),
        ..Config::default()
    };
    platform.jetstream.create_stream(&copy).await.unwrap();
    platform.set("WALRELAY_NATS_STREAM", "DebeziumStream");
    platform.wait_for(5).await;
    platform
        .jetstream
        .update_stream(memory("old"))
        .await
        .unwrap();
    copy.sources = None;
    copy.subjects = vec![
        "outbox.event.>".to_owned(),
        "walrelay.dead.debezium".to_owned(),
    ];
    platform.jetstream.update_stream(&copy).await.unwrap();

    platform.expect(&["setup"], 0).await;
    platform.expect(&["adopt", "--debezium", "--yes"], 0).await;
    runs_until(&platform, ROWS).await;
    assert_eq!(ids(&platform).await, (1..=ROWS).map(id).collect::<Vec<_>>());
    assert_eq!(platform.verify(0).await["events"], ROWS);
}

/// Debezium publishes at least once; and a row that it never published, for its payload was null, is found.
#[tokio::test]
async fn what_debezium_doubled_or_left_out_is_named() {
    let platform = left_by_debezium(3).await;
    for row in [1, 3, 4, 4, 6] {
        publish(&platform, row, "\"ID\"").await;
    }
    platform.expect(&["setup"], 0).await;
    let text = platform.expect(&["adopt", "--debezium", "--yes"], 0).await;
    assert!(
        text.contains("Before it the slot has 1 event that the stream has not"),
        "{text}"
    );
    runs_until(&platform, 5 + 3).await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 2, "{report}");
    assert_eq!(report["doubled"]["count"], 1, "{report}");
    platform.expect(&["backfill"], 0).await;
    let report = platform.verify(1).await;
    assert_eq!(report["missing"]["count"], 0, "{report}");
}
