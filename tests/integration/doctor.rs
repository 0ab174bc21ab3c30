//! `walrelay doctor` against servers that are well, that will hurt, that are away, and with half of the rights.

use serde_json::Value;
use walrelay::postgres::findings::Kind;

use crate::statements::statements;
use crate::support::{Fixture, Output};

async fn doctor(fixture: &Fixture) -> (Output, Value) {
    let output = fixture.walrelay(&["doctor", "--json"]).await;
    let report =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, report)
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().expect("a list");
    let codes = findings.iter();
    let codes = codes.map(|finding| finding["code"].as_str().expect("a code"));
    let mut codes: Vec<&str> = codes.collect();
    codes.sort_unstable();
    codes
}

/// The one remedy of a code, as SQL.
fn sql<'r>(report: &'r Value, code: &str) -> &'r str {
    let findings = report["findings"].as_array().expect("a list");
    let of_code = |finding: &&Value| finding["code"] == code;
    let found = findings.iter().find(of_code).expect(code);
    found["mend"].as_str().expect("a remedy")
}

#[tokio::test]
async fn a_server_that_is_well_and_one_that_will_hurt() {
    let mut fixture = Fixture::with_settings(&[("max_slot_wal_keep_size", "64GB")]).await;
    let (output, report) = doctor(&fixture).await;
    assert_eq!(codes(&report), Vec::<&str>::new(), "{report}");
    assert_eq!(output.code, Some(0));
    // A relay that runs reads its slot: that is no finding.
    let mut relay = fixture.run();
    relay.streams().await;
    let (output, report) = doctor(&fixture).await;
    assert_eq!((output.code, codes(&report)), (Some(0), vec![]), "{report}");
    let again = fixture.walrelay(&["setup"]).await.success();
    assert_eq!(again.stderr, "", "{again:?}");
    relay.stop().await;

    // Which of them a server knows depends on its version.
    let mut expected = vec!["column"];
    for (code, name, value) in [
        ("slot-limit", "max_slot_wal_keep_size", "-1"),
        ("idle-slot-timeout", "idle_replication_slot_timeout", "'1d'"),
    ] {
        let is_known = "SELECT current_setting($1, true) IS NOT NULL";
        let is_known = fixture.sql.query_one(is_known, &[&name]).await.unwrap();
        if is_known.get(0) {
            expected.push(code);
            let sql = format!("ALTER SYSTEM SET {name} = {value}");
            fixture.sql.batch_execute(&sql).await.unwrap();
        }
    }
    let harm = "ALTER TABLE outbox_events ALTER event_type DROP NOT NULL; SELECT pg_reload_conf()";
    fixture.sql.batch_execute(harm).await.unwrap();
    expected.sort_unstable();
    let (output, report) = doctor(&fixture).await;
    assert_eq!(codes(&report), expected, "{report}");
    assert_eq!(output.code, Some(1));
    // What is printed for a person has the same.
    let text = fixture.walrelay(&["doctor"]).await;
    for code in &expected {
        assert!(text.stdout.contains(&format!("[{code}]")), "{text:?}");
    }
    // And each remedy, typed as it is printed, cures.
    for code in expected {
        let mend = sql(&report, code);
        for statement in statements(mend) {
            let typed = fixture.sql.batch_execute(&statement).await;
            typed.expect(&statement);
        }
    }
    let (_, report) = doctor(&fixture).await;
    assert_eq!(codes(&report), Vec::<&str>::new(), "{report}");
}

#[tokio::test]
async fn nothing_is_there_yet() {
    let fixture = Fixture::bare().await;
    let (output, report) = doctor(&fixture).await;
    assert_eq!(output.code, Some(1), "{report}");
    let codes = codes(&report);
    assert!(codes.contains(&"slot-missing"), "{report}");
    assert!(codes.contains(&"stream"), "{report}");
    let tail = fixture.walrelay(&["tail"]).await;
    assert!(tail.stderr.contains("walrelay setup makes it"), "{tail:?}");
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    let name = &fixture.name;
    let stream = format!(
        "there is no stream {}\nwhat to do    run walrelay setup",
        fixture.stream_name()
    );
    for said in [
        format!("no publication {name} and no replication slot \"{name}\""),
        stream,
        format!("slot          {name}, missing\n"),
    ] {
        assert!(status.stdout.contains(&said), "{said}: {}", status.stdout);
    }
    fixture.setup().await;
    let status = fixture.walrelay(&["status"]).await;
    assert!(!status.stdout.contains("missing"), "{}", status.stdout);
}

/// Parts that have gone since setup are named, and what is printed makes them again.
#[tokio::test]
async fn what_is_missing_of_a_lane_is_told_by_status() {
    let fixture = Fixture::new().await;
    let stream = fixture.stream_name();
    let jetstream = async_nats::jetstream::new(fixture.nats.clone());
    jetstream.delete_stream(stream).await.unwrap();
    let drop = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    for said in [
        format!("missing       there is no stream {stream}\nwhat to do    run walrelay setup"),
        format!(
            "missing       there is no publication {0} in database {0}\nwhat to do    run walrelay teardown, walrelay setup and walrelay \
             adopt, then walrelay backfill",
            fixture.name
        ),
        format!("\nstream        {stream}, missing"),
    ] {
        assert!(status.stdout.contains(&said), "{said}: {}", status.stdout);
    }
    let json = fixture.walrelay(&["status", "--json"]).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let missing = json["positions"]["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 2, "{json}");
    for typed in [
        &["teardown", "--yes"][..],
        &["setup"],
        &["adopt", "--yes"],
        &["backfill"],
    ] {
        fixture.walrelay(typed).await.success();
    }
    let status = fixture.walrelay(&["status"]).await;
    assert!(!status.stdout.contains("missing"), "{}", status.stdout);
}

/// Names that are no table's: nothing is proposed that Postgres refuses.
#[tokio::test]
async fn what_is_no_table_is_called_what_it_is() {
    let fixture = Fixture::new().await;
    let made = "CREATE VIEW a_view AS SELECT * FROM outbox_events;
                CREATE MATERIALIZED VIEW kept AS SELECT * FROM outbox_events;
                CREATE FOREIGN DATA WRAPPER far; CREATE SERVER there FOREIGN DATA WRAPPER far;
                CREATE FOREIGN TABLE far_away (id uuid) SERVER there;
                CREATE SEQUENCE numbers;";
    fixture.sql.batch_execute(made).await.unwrap();
    for (name, is) in [
        ("a_view", "is a view: "),
        ("kept", "is a materialized view: "),
        ("far_away", "is a foreign table: "),
        ("numbers", "is a sequence"),
    ] {
        let table = ["doctor", "--json", "--table", name];
        let output = fixture.walrelay(&table).await;
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let codes = codes(&report);
        assert!(codes.contains(&"table-mismatch"), "{report}");
        assert!(!codes.contains(&"publication-mismatch"), "{report}");
        assert_eq!(output.code, Some(1), "{report}");
        let setup = fixture.walrelay(&["setup", "--table", name]).await;
        assert!(setup.stderr.contains(is), "{}", setup.stderr);
        assert_eq!(setup.stderr.lines().count(), 1, "{}", setup.stderr);
    }
}

/// What the publication leaves out is seen at a glance.
#[tokio::test]
async fn a_row_filter_is_shown() {
    let fixture = Fixture::new().await;
    let filter = format!(
        "ALTER PUBLICATION {} SET TABLE outbox_events WHERE (event_version > 1)",
        fixture.name
    );
    fixture.sql.batch_execute(&filter).await.unwrap();
    let said = fixture.walrelay(&["doctor"]).await.stdout;
    let shown = "of public.outbox_events the rows for which (event_version > 1)";
    assert!(said.contains(shown), "{said}");
}

/// It says what it could not look at, and does not hang.
#[tokio::test]
async fn servers_that_are_away_and_a_role_that_sees_little() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_NATS_URL", "nats://127.0.0.1:1");
    let (output, report) = doctor(&fixture).await;
    assert_eq!(output.code, Some(3), "{report}");
    let unseen = report["not_seen"][0].as_str().expect("one");
    assert!(unseen.starts_with("NATS: "), "{unseen}");
    let status = fixture.walrelay(&["status"]).await;
    let told = status
        .stdout
        .lines()
        .find(|line| line.starts_with("stream"));
    assert!(
        told.is_some_and(|line| line.ends_with("not seen")),
        "{status:?}"
    );
    assert!(!report["looked_at"].as_array().expect("a list").is_empty());

    let name = fixture.name.clone();
    let sql = format!("CREATE ROLE {name}_small LOGIN REPLICATION");
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        fixture
            .servers()
            .postgres
            .url(&name)
            .replacen("postgres@", &format!("{name}_small@"), 1),
    );
    fixture.set("WALRELAY_NATS_URL", fixture.servers().nats.url());
    let (output, report) = doctor(&fixture).await;
    assert_eq!(output.code, Some(3), "{report}");
    assert!(codes(&report).contains(&"privilege"), "{report}");
    let unseen = report["not_seen"][0].as_str().expect("one");
    assert!(unseen.contains("pg_read_all_stats"), "{unseen}");
}

/// It is said of that table alone.
#[tokio::test]
async fn a_table_without_the_columns_is_not_measured_and_the_next_one_is() {
    let mut fixture = Fixture::bare().await;
    let sql = "CREATE TABLE main (nr int, what jsonb); INSERT INTO main VALUES (1, '{}');
        CREATE TABLE more (id uuid, aggregate_id uuid, event_type text, event_version smallint, occurred_at timestamptz, payload_json jsonb);
        INSERT INTO more VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', 1, now(), '{}')";
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.main");
    fixture.configure("[[source.tables]]\nname = 'public.more'\n");
    let (_, report) = doctor(&fixture).await;
    let unseen = report["not_seen"].to_string();
    let words = "how large rows of public.main are: it has no column id, aggregate_id, event_type, event_version, occurred_at, payload_json";
    assert!(unseen.contains(words), "{unseen}");
    assert!(!unseen.contains("ERROR"), "{unseen}");
    let seen = report["looked_at"].to_string();
    assert!(
        seen.contains("table public.more: its row makes about"),
        "{seen}"
    );
}

#[tokio::test]
async fn of_two_tables_the_one_that_is_locked_is_named() {
    let mut fixture = Fixture::with_table().await;
    let more = "CREATE TABLE more (LIKE outbox_events INCLUDING ALL)";
    fixture.sql.batch_execute(more).await.unwrap();
    fixture.configure("[[source.tables]]\nname = 'public.more'\n");
    let _locker = fixture.begins("LOCK TABLE more").await;
    let (output, report) = doctor(&fixture).await;
    assert_eq!(output.code, Some(3), "{report}");
    let unseen = report["not_seen"].to_string();
    let words = "publication, tables and rights, since public.more is locked";
    assert!(unseen.contains(words), "{unseen}");
}

/// Also where the columns are the user's own: who has mistyped a name is not told to make a second table.
#[tokio::test]
async fn a_table_of_nearly_that_name_is_named() {
    let mut fixture = Fixture::bare().await;
    let queue = "CREATE TABLE event_queue (nr uuid, aggregate_id uuid, event_type text, event_version smallint, occurred_at timestamptz, \
               payload_json jsonb)";
    fixture.sql.batch_execute(queue).await.unwrap();
    fixture.configure("[columns]\nid = 'nr'\n");
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.event_queu");
    let (_, report) = doctor(&fixture).await;
    let mend = sql(&report, "slot-missing");
    let words = "set postgres.table to public.event_queue where that table is meant";
    assert!(mend.contains(words), "{mend}");
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{setup:?}");
    assert_eq!(setup.stderr.matches(words).count(), 1, "{setup:?}");
}

#[tokio::test]
async fn a_database_that_takes_few_connections() {
    let fixture = Fixture::new().await;
    let limit = format!("ALTER DATABASE {} CONNECTION LIMIT 2", fixture.name);
    fixture.sql.batch_execute(&limit).await.unwrap();
    let (_, report) = doctor(&fixture).await;
    let mend = sql(&report, "places");
    let (_, mend) = mend.split_once("run ").expect("a statement");
    fixture.sql.batch_execute(mend).await.unwrap();
    let (_, report) = doctor(&fixture).await;
    assert!(!codes(&report).contains(&"places"), "{report}");
}

/// What a backfill published is gone, and no relay has written since how far the lane came.
#[tokio::test]
async fn a_halt_is_told_before_the_start_that_it_ends() {
    let mut fixture = Fixture::with_table().await;
    fixture.insert(1, 3).await;
    fixture.setup().await;
    fixture.walrelay(&["backfill"]).await.success();
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(fixture.stream_name()).await;
    stream.unwrap().purge().await.unwrap();
    fixture.insert(4, 5).await;
    let (output, report) = doctor(&fixture).await;
    assert_eq!(output.code, Some(1), "{report}");
    let mend = sql(&report, "halted");
    assert!(mend.contains("`walrelay adopt` goes on"), "{mend}");
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4));
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let (_, report) = doctor(&fixture).await;
    assert!(!codes(&report).contains(&"halted"), "{report}");
    let relay = fixture.run();
    fixture.holds(2).await;
    relay.stop().await;
}

#[test]
fn each_code_has_its_place_in_the_documents() {
    let page = include_str!("../../docs/doctor.md");
    let own = [
        "stream",
        "replicas",
        "storage-limit",
        "retention",
        "locked",
        "dead-letters",
        "message-size",
        "sync-interval",
        "version",
        "clock",
        "exposed",
        "halted",
        "waiting",
    ];
    let codes = Kind::ALL.iter().map(|kind| kind.code()).chain(own);
    for code in codes {
        assert!(page.contains(&format!("| `{code}` |")), "{code}");
    }
}
