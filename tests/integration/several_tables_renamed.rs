//! A further table that is renamed, or taken away: its messages stay its own, and every command finds them.

use serde_json::json;

use crate::several_tables::{FURTHER, audit, bare, each, order, reports, told};
use crate::support::{Fixture, Output, insert_sql};

fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    let said = format!("{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(said.contains(word), "{word}: {output:?}");
    }
}

/// The entry of `journal` with what the remedy says in place of its name.
fn mended(config: &str, refused: &Output) -> String {
    let remedy = "set name = \"public.audit\" and table = \"public.journal\"";
    assert!(refused.stderr.contains(remedy), "{refused:?}");
    let lines = remedy.strip_prefix("set ").unwrap().replace(" and ", "\n");
    config.replace("name = \"public.journal\"", &lines)
}

#[tokio::test]
async fn a_further_table_that_was_renamed_keeps_its_messages() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let dead = "INSERT INTO audit (who, what, body) VALUES ('w9', NULL, '{}')".to_owned();
    let all = [&each(1)[..], &each(2), &[dead]].concat().join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(7).await;
    relay.stop().await;

    // A row comes before the relay knows the new name.
    let renamed = format!(
        "ALTER TABLE audit RENAME TO journal; {}",
        audit(3).replace("audit", "journal")
    );
    fixture.sql.batch_execute(&renamed).await.unwrap();
    let missing = fixture.walrelay(&["run"]).await;
    let key = "set table in the entry of public.audit in [[source.tables]] to that";
    assert_says(&missing, 1, &["there is no table public.audit", key]);

    // As another outbox, its messages would be nobody's: told, and nothing is done.
    let all = FURTHER.replace("NAME", &fixture.name);
    let as_another = all.replace("public.audit", "public.journal");
    fixture.configure(&as_another);
    let halted = fixture.walrelay(&["run"]).await;
    assert_says(&halted, 4, &["the lane knows table public.journal"]);
    for command in [
        &["verify"][..],
        &["verify", "--repair"],
        &["backfill"],
        &["erase", "--aggregate-id", "w1", "--yes"],
        &["dead-letters", "retry", "--all"],
        &["prune", "--older-than", "7d"],
    ] {
        let refused = fixture.walrelay(command).await;
        assert_says(&refused, 1, &["the lane knows table public.journal"]);
        mended(&as_another, &refused);
    }
    assert_eq!(fixture.message_count().await, 7);

    fixture.configure(&mended(&as_another, &halted));
    let mut relay = fixture.run();
    relay.streams().await;
    let more = audit(4).replace("audit", "journal");
    fixture.sql.batch_execute(&more).await.unwrap();
    fixture.holds(9).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert!(
        stored[7..]
            .iter()
            .all(|it| told(it).0 == Some("public.audit"))
    );
    let mend = "UPDATE journal SET what = 'read.v1'";
    fixture.sql.batch_execute(mend).await.unwrap();
    let retried = fixture
        .walrelay(&["dead-letters", "retry", "--all"])
        .await
        .success();
    assert!(retried.stdout.contains("published"), "{retried:?}");
    fixture.walrelay(&["verify"]).await.success();
    fixture.walrelay(&["verify", "--repair"]).await.success();
    let erase = ["erase", "--aggregate-id", "w1", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await.success();
    let audit = reports(&erased).pop().unwrap();
    assert_eq!(audit["rows"], json!(1), "{audit}");
    assert_eq!(audit["streams"][0]["events"], json!([1]));
    fixture.walrelay(&["verify"]).await.success();
}

/// Without the table of audit, and with the one of orders.
fn without_audit(fixture: &Fixture) -> String {
    let all = FURTHER.replace("NAME", &fixture.name);
    all.split_once("\n\n").expect("two tables").0.to_owned()
}

/// The relay has passed everything, and its record tells so.
async fn settles(fixture: &mut Fixture, count: u64, row: u64) {
    let mut relay = fixture.run();
    relay.streams().await;
    fixture
        .sql
        .batch_execute(&insert_sql(row, row))
        .await
        .unwrap();
    fixture.holds(count).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
}

#[tokio::test]
async fn messages_of_a_table_that_was_taken_away_are_erased_and_it_comes_back_under_its_name() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [audit(1), audit(2), order(1)].join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(3).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    fixture.configure(&without_audit(&fixture));
    settles(&mut fixture, 4, 91).await;
    fixture.walrelay(&["verify"]).await.success();

    let erase = ["erase", "--aggregate-id", "w2", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await;
    let receipt = &reports(&erased)[0];
    assert_eq!(receipt["of_unnamed"], json!({"public.audit": 1}));
    assert_eq!(receipt["streams"][0]["events"], json!([2]), "{receipt}");
    // No uuid: the lane's own table has none of it, and that is told.
    assert_eq!(
        receipt["left_out"][0]["table"],
        json!("public.outbox_events")
    );
    assert_says(
        &erased,
        0,
        &[
            "messages of public.audit are among them",
            "rows of public.outbox_events are left out",
        ],
    );
    let left: Vec<u64> = fixture
        .stored()
        .await
        .iter()
        .map(|it| it.sequence)
        .collect();
    assert_eq!(left, [1, 3, 4]);

    // Its messages are its own still, so it comes back under that name only.
    let renamed = "ALTER TABLE audit RENAME TO journal";
    fixture.sql.batch_execute(renamed).await.unwrap();
    let all = FURTHER.replace("NAME", &fixture.name);
    let as_another = all.replace("public.audit", "public.journal");
    fixture.configure(&as_another);
    let halted = fixture.walrelay(&["run"]).await;
    assert_eq!(halted.code, Some(4), "{halted:?}");
    fixture.configure(&mended(&as_another, &halted));
    settles(&mut fixture, 4, 92).await;
    let found = fixture.walrelay(&["verify", "--json"]).await;
    let audit = reports(&found).pop().unwrap();
    // The row of the erased message; the other one has its message.
    assert_eq!(audit["missing"]["count"], json!(1), "{audit}");
}

/// The column of the only table that is left can have no such id.
#[tokio::test]
async fn messages_of_a_table_that_was_taken_away_are_erased_beside_a_table_of_other_ids() {
    let mut fixture = bare().await;
    let all = FURTHER.replace("NAME", &fixture.name);
    let (_, audit_alone) = all.split_once("\n\n").expect("two tables");
    fixture.configure(audit_alone);
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let both = [audit(1), audit(2)].join(";");
    fixture.sql.batch_execute(&both).await.unwrap();
    fixture.holds(2).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    fixture.configure("");
    settles(&mut fixture, 3, 91).await;
    let erase = ["erase", "--aggregate-id", "w2", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await;
    assert_says(&erased, 0, &["rows of public.outbox_events are left out"]);
    let receipt = &reports(&erased)[0];
    assert_eq!(receipt["of_unnamed"], json!({"public.audit": 1}));
    assert_eq!(receipt["streams"][0]["events"], json!([2]), "{receipt}");
}

/// In Debezium's format a message tells no aggregate: without its table, nothing does.
#[tokio::test]
async fn an_erasure_is_not_done_where_a_table_that_was_taken_away_would_tell() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let all = [order(1), audit(1)].join(";");
    fixture.sql.batch_execute(&all).await.unwrap();
    fixture.holds(2).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let all = FURTHER.replace("NAME", &fixture.name);
    let without_orders = all.split_once("\n\n").expect("two tables").1.to_owned();
    fixture.configure(&without_orders);
    settles(&mut fixture, 3, 91).await;
    let erase = ["erase", "--aggregate-id", "o1", "--yes", "--json"];
    let erased = fixture.walrelay(&erase).await;
    let words = [
        "1 message stays of public.orders",
        "give public.orders an entry in [[source.tables]] again, with name = \"public.orders\"",
    ];
    assert_says(&erased, 1, &words);
    let receipt = &reports(&erased)[0];
    assert_eq!(receipt["untold"], json!({"public.orders": 1}));
    assert_eq!(receipt["done"], json!(false));
    fixture.configure(&all);
    let erased = fixture.walrelay(&erase).await.success();
    let orders = &reports(&erased)[0];
    assert_eq!(
        (&orders["rows"], &orders["done"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(orders["streams"][0]["events"], json!([1]), "{orders}");
}

#[tokio::test]
async fn an_aggregate_is_taken_as_messages_show_it() {
    let mut fixture = Fixture::bare().await;
    let tables = "CREATE TABLE raw (no bigserial PRIMARY KEY, who bytea NOT NULL, what text NOT NULL, body jsonb NOT NULL);
        CREATE TABLE small (no bigserial PRIMARY KEY, who smallint NOT NULL, what text NOT NULL, body jsonb NOT NULL);
        CREATE TABLE cut (no bigserial PRIMARY KEY, who varchar(3) NOT NULL, what text NOT NULL, body jsonb NOT NULL)";
    fixture.sql.batch_execute(tables).await.unwrap();
    let columns = "columns = { id = \"no\", aggregate_id = \"who\", event_type = \"what\", event_version = \"\", \
                   occurred_at = \"\", payload = \"body\" }";
    let entry = |name: &str| format!("[[source.tables]]\nname = \"public.{name}\"\n{columns}\n");
    fixture.configure(&["raw", "small", "cut"].map(entry).concat());
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let uuid = "0192f7a0-0000-7000-8000-000000000001";
    let row = |table: &str, who: &str| {
        format!("INSERT INTO {table} (who, what, body) VALUES ({who}, 'read.v1', '{{}}')")
    };
    let rows = [
        row("raw", "'\\x02'"),
        row("raw", "'\\x02'"),
        row("raw", &format!("decode(replace('{uuid}', '-', ''), 'hex')")),
        row("small", "7"),
        row("cut", "'abc'"),
        row("raw", "'\\x03'"),
    ];
    fixture.sql.batch_execute(&rows.join(";")).await.unwrap();
    fixture.holds(6).await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].field("aggregate_id"), json!("Ag=="));
    let erase = |id| ["erase", "--yes", "--json", "--aggregate-id", id];
    let mut left = 6;
    for (id, table, rows) in [
        ("Ag==", "raw", 2),
        (uuid, "raw", 1),
        ("7", "small", 1),
        ("\\x03", "raw", 1),
    ] {
        let erased = fixture.walrelay(&erase(id)).await.success();
        let reports = reports(&erased);
        let name = json!(format!("public.{table}"));
        let report = reports.iter().find(|report| report["table"] == name);
        let report = report.unwrap_or_else(|| panic!("{erased:?}"));
        assert_eq!(report["rows"], json!(rows), "{id}: {report}");
        left -= rows;
        assert_eq!(fixture.stored().await.len(), left, "{id}");
        assert!(erased.stderr.contains("are left out"), "{erased:?}");
    }
    // No cast cuts it to another aggregate's.
    let erased = fixture.walrelay(&erase("abcd")).await.success();
    assert!(
        reports(&erased)
            .iter()
            .all(|report| report["rows"] == json!(0)),
        "{erased:?}"
    );
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
    // Messages of the one that was taken away may have it all the same.
    fixture.configure(&["raw", "small"].map(entry).concat());
    let erased = fixture.walrelay(&erase("99999")).await;
    let words = "rows of public.small are left out, none can be the aggregate's: --aggregate-id: \"99999\" is no smallint, which column who is";
    assert_says(&erased, 0, &[words]);
}

#[tokio::test]
async fn dead_letters_tell_their_table_and_a_backfill_the_table_to_add() {
    let mut fixture = bare().await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let dead = "INSERT INTO audit (who, what, body) VALUES ('w1', NULL, '{}');
        INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) VALUES (gen_random_uuid(), gen_random_uuid(), 'a b', '{}')";
    fixture.sql.batch_execute(dead).await.unwrap();
    fixture.holds(2).await;
    relay.stop().await;
    let list = fixture.walrelay(&["dead-letters", "list"]).await.success();
    let lines: Vec<&str> = list.stdout.lines().collect();
    assert!(lines[0].contains("TABLE"), "{list:?}");
    assert!(lines[1].contains("public.audit"), "{list:?}");
    assert!(!lines[2].contains("public."), "{list:?}");
    let list = fixture.walrelay(&["dead-letters", "list", "--json"]).await;
    let letters = reports(&list);
    assert_eq!(letters[0]["table"], json!("public.audit"));
    assert_eq!(letters[1].get("table"), None);
    let position = letters[0]["position"].as_str().unwrap();
    let show = fixture.walrelay(&["dead-letters", "show", position]).await;
    assert!(show.stdout.contains("public.audit"), "{show:?}");

    let name = &fixture.name;
    let narrow = format!("ALTER PUBLICATION {name} DROP TABLE audit");
    fixture.sql.batch_execute(&narrow).await.unwrap();
    let refused = fixture.walrelay(&["backfill", "--dry-run"]).await;
    let mend = format!("ALTER PUBLICATION {name} ADD TABLE public.audit;");
    assert_says(&refused, 1, &[&mend]);
    assert!(!refused.stderr.contains("walrelay setup"), "{refused:?}");
    fixture.sql.batch_execute(&mend).await.unwrap();
    fixture.walrelay(&["backfill", "--dry-run"]).await.success();

    // Taken away, a letter says how its table comes back.
    fixture.configure(&without_audit(&fixture));
    let retry = ["dead-letters", "retry", position];
    let refused = fixture.walrelay(&retry).await;
    let entry = "put an entry with name = \"public.audit\" there";
    assert_says(&refused, 1, &[entry, "walrelay dead-letters discard"]);
    // As it is printed.
    let (_, discard) =
        (refused.stderr.split_once("walrelay dead-letters discard ")).expect("a remedy");
    let (position, _) = discard
        .split_once(" --reason 'its table is named no more'")
        .expect("a reason");
    let discard = [
        "dead-letters",
        "discard",
        position,
        "--reason",
        "its table is named no more",
    ];
    fixture.walrelay(&discard).await.success();
}
