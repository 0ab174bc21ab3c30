//! `walrelay setup` and `walrelay teardown`, with both servers.

use std::fs::File;
use std::process::Stdio;

use rustix::process::Signal;
use walrelay::local::Mode;

use crate::support::{Fixture, Servers, assert_exactly_once, eventually, uuid};

/// Table, publication, slot, stream: which of them are there.
async fn there(fixture: &Fixture) -> [bool; 4] {
    let sql = "SELECT to_regclass('public.outbox_events') IS NOT NULL,
                      EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
                      EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
    let row = fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(fixture.stream_name()).await.is_ok();
    [row.get(0), row.get(1), row.get(2), stream]
}

#[tokio::test]
async fn setup_makes_what_is_missing_and_nothing_twice() {
    let mut fixture = Fixture::bare().await;
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    for sql in [
        "CREATE TABLE",
        "CREATE PUBLICATION",
        "pg_create_logical_replication_slot",
        "outbox_events",
    ] {
        assert!(dry.stdout.contains(sql), "{}", dry.stdout);
    }
    assert_eq!(there(&fixture).await, [false; 4]);

    let made = fixture.walrelay(&["setup"]).await.success();
    assert_eq!(there(&fixture).await, [true; 4]);
    // A line each; the lanes' records may have their stream from another test.
    for (part, name) in [
        ("table", "public.outbox_events"),
        ("publication", &fixture.name),
        ("replication slot", &fixture.name),
        ("stream", fixture.stream_name()),
    ] {
        let line = |line: &&str| line.starts_with(part) && line.contains(name);
        let line = made.stdout.lines().find(line).expect(part);
        assert!(line.contains(" made"), "{line}");
    }
    let confirmed = fixture.confirmed_lsn().await;

    let found = fixture.walrelay(&["setup"]).await.success();
    assert!(!found.stdout.contains("made"), "{}", found.stdout);
    assert_eq!(found.stderr, "");
    assert_eq!(fixture.confirmed_lsn().await, confirmed);
    let dry = fixture.walrelay(&["setup", "--dry-run"]).await.success();
    assert_eq!(dry.stdout.trim(), "");

    // A slip of the fingers, or a schema that was forgotten: another table is made only on demand.
    fixture
        .sql
        .batch_execute("CREATE SCHEMA app")
        .await
        .unwrap();
    fixture.name.push_str("_second");
    fixture.set("WALRELAY_NAME", fixture.name.clone());
    fixture.set(
        "WALRELAY_NATS_SUBJECT",
        format!("{}.{{event_type}}", fixture.name),
    );
    fixture.set("WALRELAY_NATS_STREAM", fixture.name.to_uppercase());
    let made = async |table: &str| {
        let sql = "SELECT to_regclass($1) IS NOT NULL";
        fixture
            .sql
            .query_one(sql, &[&table])
            .await
            .unwrap()
            .get::<_, bool>(0)
    };
    for table in ["public.outbox_event", "app.outbox_events"] {
        for command in ["setup", "run", "doctor", "status"] {
            let refused = fixture.walrelay(&[command, "--table", table]).await;
            assert_eq!(refused.code, Some(1), "{command} {}", refused.stderr);
            let said = refused.stdout + &refused.stderr;
            let mend = "set postgres.table to public.outbox_events where that table is meant";
            assert!(said.contains(mend), "{command}: {said}");
            assert!(
                said.contains("walrelay setup --create-table"),
                "{command}: {said}"
            );
        }
        assert!(!made(table).await);
    }
    // Who has left the quotes out is told of them, and nothing is made beside the table.
    let sql = "ALTER TABLE outbox_events RENAME TO \"Outbox_Events\"";
    fixture.sql.batch_execute(sql).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    let mend = "set postgres.table to 'public.\"Outbox_Events\"', with these double quotes";
    assert!(refused.stderr.contains(mend), "{}", refused.stderr);
    assert!(!made("public.outbox_events").await);
    let sql = "ALTER TABLE \"Outbox_Events\" RENAME TO outbox_events";
    fixture.sql.batch_execute(sql).await.unwrap();
    let meant = ["setup", "--table", "public.outbox_event", "--create-table"];
    fixture.walrelay(&meant).await.success();
    assert!(made("public.outbox_event").await);
}

#[tokio::test]
async fn setup_counts_the_rows_that_the_slot_will_not_bring() {
    let mut fixture = Fixture::bare().await;
    let sql = include_str!("../../sql/0001_outbox_events.sql");
    fixture.sql.batch_execute(sql).await.unwrap();
    fixture.insert(1, 12).await;
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(made.stdout.contains("12 rows"), "{}", made.stdout);
    fixture.insert(13, 20).await;
    let relay = fixture.run();
    fixture.holds(8).await;
    relay.stop().await;
    assert_exactly_once(
        &(13..=20).map(uuid).collect::<Vec<_>>(),
        &fixture.stored_ids().await,
    );
}

#[tokio::test]
async fn run_can_set_up_by_itself() {
    let mut fixture = Fixture::bare().await;
    let mut relay = fixture.run_with(&["--setup"]);
    relay.streams().await;
    assert_eq!(there(&fixture).await, [true; 4]);
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
}

#[tokio::test]
async fn run_waits_with_its_setup_for_servers_that_are_away() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.own_servers().nats.stop().await.unwrap();
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    let mut relay = fixture.run_with(&["--setup"]);
    relay
        .logs("waiting: setup: cannot connect to postgres://")
        .await;
    fixture.own_servers().postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    relay.logs("waiting: setup: cannot connect to NATS").await;
    // A line for each change: Postgres may also say that it is still starting up.
    let lines = relay.log().matches("waiting: ").count();
    assert!((2..=3).contains(&lines), "{}", relay.log());
    fixture.own_servers().nats.start_again().await.unwrap();
    relay.streams().await;
    assert_eq!(there(&fixture).await, [true; 4]);
    relay.stop().await;
}

#[tokio::test]
async fn a_signal_ends_a_run_that_still_sets_up_and_leaves_no_slot_behind() {
    let mut fixture = Fixture::bare().await;
    let writer = fixture.begins("CREATE TABLE held (id int)").await;
    let mut relay = fixture.run_with(&["--setup"]);
    // The transaction without an end keeps the slot from being made.
    relay.logs("the slot waits").await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0));
    assert!(relay.log().contains("stopped"), "{}", relay.log());
    writer.batch_execute("ROLLBACK").await.unwrap();
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%create_logical_replication_slot%'
                 AND datname = $1 AND state = 'active' AND pid <> pg_backend_pid()";
    eventually("nobody makes a slot", async || {
        let row = fixture
            .sql
            .query_one(waits, &[&fixture.name])
            .await
            .unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    let [_, _, slot, _] = there(&fixture).await;
    assert!(!slot);
}

#[tokio::test]
async fn setup_refuses_what_does_not_fit_and_makes_nothing() {
    let fixture = Fixture::bare().await;
    let create = "SELECT pg_create_physical_replication_slot($1)";
    fixture
        .sql
        .query_one(create, &[&fixture.name])
        .await
        .unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("physical"), "{}", refused.stderr);
    assert_eq!(there(&fixture).await, [false, false, true, false]);
}

/// A slot that nobody reads keeps WAL until the disk is full: what is refused must be refused before.
#[tokio::test]
async fn setup_makes_nothing_where_another_stream_has_the_subjects() {
    let fixture = Fixture::bare().await;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let other = format!("OTHER_{}", fixture.name);
    let config = async_nats::jetstream::stream::Config {
        name: other.clone(),
        subjects: vec![format!("{}.lesson.>", fixture.name)],
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    let preset = [
        "setup",
        "--subject",
        &format!("{}.lesson.{{aggregatetype}}", fixture.name),
    ];
    let refused = fixture.walrelay(&preset).await;
    // One that begins with the slot's name would be the other one's too.
    let own = "such as events.{aggregatetype}";
    assert!(refused.stderr.contains(own), "{}", refused.stderr);
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    for word in ["already takes", &other, "nats.subject"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    assert_eq!(there(&fixture).await, [false; 4]);
    context.delete_stream(other).await.unwrap();
    fixture.setup().await;
}

#[tokio::test]
async fn setup_of_a_second_relay_is_not_led_into_the_stream_of_the_first() {
    let mut fixture = Fixture::new().await;
    let owner = fixture.name.clone();
    fixture.name.push_str("_second");
    fixture.set("WALRELAY_NAME", fixture.name.clone());
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    for word in [&format!("slot {owner}"), "nats.stream and nats.subject"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    // A stream of its own is not enough: the subjects are the first one's.
    fixture.set("WALRELAY_NATS_STREAM", fixture.name.to_uppercase());
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("nats.subject"),
        "{}",
        refused.stderr
    );
    assert_eq!(there(&fixture).await, [true, false, false, false]);

    let subject = format!("{}.{{event_type}}", fixture.name);
    fixture.set("WALRELAY_NATS_SUBJECT", subject);
    fixture.setup().await;
    assert_eq!(there(&fixture).await, [true; 4]);
}

/// Takes the lane's record away, as an interrupted setup leaves it.
async fn forget(fixture: &Fixture) {
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let records = context.get_stream("WALRELAY").await.unwrap();
    let subject = format!("walrelay.lane.{}.{}", fixture.stream_name(), fixture.name);
    assert_eq!(records.purge().filter(subject).await.unwrap().purged, 1);
}

#[tokio::test]
async fn setup_records_a_slot_that_was_there_only_before_anything_is_published() {
    let mut fixture = Fixture::new().await;
    forget(&fixture).await;
    let made = fixture.walrelay(&["setup"]).await.success();
    let line = made.stdout.lines().find(|line| line.contains("made"));
    assert!(
        line.unwrap_or_default().starts_with("lane record"),
        "{}",
        made.stdout
    );

    fixture.insert(1, 5).await;
    let relay = fixture.run();
    fixture.holds(5).await;
    relay.stop().await;
    // The record of an unused slot would tell the relay not to look for these five, and it would publish again those
    // that are held back.
    forget(&fixture).await;
    let found = fixture.walrelay(&["setup"]).await.success();
    assert!(!found.stdout.contains("made"), "{}", found.stdout);
}

#[tokio::test]
async fn the_slot_of_another_database_is_named_and_left_alone() {
    let other = Fixture::new().await;
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_POSTGRES_SLOT", other.name.as_str());
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains(&format!("database {}", other.name)),
        "{}",
        refused.stderr
    );
    let refused = fixture.walrelay(&["teardown", "--yes"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        !refused.stderr.contains("walrelay setup"),
        "{}",
        refused.stderr
    );
    assert_eq!(there(&other).await, [true; 4]);
}

#[tokio::test]
async fn teardown_removes_what_setup_made_and_the_rest_when_named() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    relay.streams().await;
    let busy = fixture.walrelay(&["teardown", "--yes"]).await;
    assert_eq!(busy.code, Some(1), "{}", busy.stderr);
    assert_eq!(there(&fixture).await, [true; 4]);
    relay.stop().await;

    // Nobody is there to be asked.
    let asked = fixture.walrelay(&["teardown"]).await;
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
    assert_eq!(there(&fixture).await, [true; 4]);

    fixture.walrelay(&["teardown", "--yes"]).await.success();
    assert_eq!(there(&fixture).await, [true, false, false, true]);
    fixture.walrelay(&["teardown", "--yes"]).await.success();
    // A new slot for an old stream may have missed events: a person has to say that it goes on.
    fixture.setup().await;
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    // The flags name table and stream, as in setup.
    let (stream, table) = (fixture.stream_name().to_owned(), "public.outbox_events");
    fixture.unset("WALRELAY_NATS_STREAM");
    let named = ["--table", table, "--stream", &stream];
    let drop = ["teardown", "--yes", "--drop-table", "--drop-stream"];
    fixture
        .walrelay(&[drop.as_slice(), &named].concat())
        .await
        .success();
    fixture.set("WALRELAY_NATS_STREAM", stream);
    assert_eq!(there(&fixture).await, [false; 4]);

    // And the whole way again.
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    relay.stop().await;
}

/// The exit code of a command whose standard output goes there.
fn code_into(fixture: &Fixture, arguments: &[&str], stdout: impl Into<Stdio>) -> Option<i32> {
    let mut command = fixture.command(arguments);
    let status = command.stdin(Stdio::null()).stdout(stdout).status();
    status.expect("walrelay runs").code()
}

#[tokio::test]
async fn setup_and_teardown_finish_what_they_do_when_nobody_reads() {
    let fixture = Fixture::bare().await;
    let closed = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    assert_eq!(code_into(&fixture, &["setup"], closed()), Some(0));
    assert_eq!(there(&fixture).await, [true; 4]);
    let again = fixture.walrelay(&["setup"]).await.success();
    assert!(!again.stdout.contains("made"), "{}", again.stdout);
    assert_eq!(code_into(&fixture, &["position"], closed()), Some(0));

    let arguments = ["teardown", "--yes", "--drop-table", "--drop-stream"];
    assert_eq!(code_into(&fixture, &arguments, closed()), Some(0));
    assert_eq!(there(&fixture).await, [false; 4]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_no_half_of_the_work() {
    // The device that is always full is Linux'.
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        return;
    };
    let fixture = Fixture::bare().await;
    let full = || full.try_clone().expect("a second handle");
    assert_eq!(code_into(&fixture, &["setup"], full()), Some(1));
    assert_eq!(there(&fixture).await, [true; 4]);
    assert_eq!(code_into(&fixture, &["position"], full()), Some(1));
    let arguments = ["teardown", "--yes"];
    assert_eq!(code_into(&fixture, &arguments, full()), Some(1));
    assert_eq!(there(&fixture).await, [true, false, false, true]);
}

#[tokio::test]
async fn a_wide_column_of_versions_is_told_its_limit() {
    let fixture = Fixture::bare().await;
    let table = "CREATE TABLE outbox_events (
        id uuid PRIMARY KEY, aggregate_id uuid NOT NULL, event_type text NOT NULL, event_version int NOT NULL,
        occurred_at timestamptz NOT NULL, payload_json jsonb NOT NULL)";
    fixture.sql.batch_execute(table).await.unwrap();
    let said = fixture.walrelay(&["setup"]).await.success().stdout;
    let words = "event_version of public.outbox_events is int4: an event's version is a number from 0 to 255";
    assert!(said.contains(words), "{said}");

    // In a format that does not carry it, there is none.
    let mut fixture = Fixture::bare().await;
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.set("WALRELAY_MESSAGE_FORMAT", "payload");
    let said = fixture.walrelay(&["setup"]).await.success().stdout;
    assert!(!said.contains(words), "{said}");
    let mut relay = fixture.run();
    relay.streams().await;
    let row = "INSERT INTO outbox_events VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', -1, now(), '{}')";
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    assert_eq!(fixture.stored().await[0].kind, None);
}

/// What the server computes: carried by a publication from Postgres 18 on, where it is stored.
#[tokio::test]
async fn a_generated_column_is_published_or_refused_before_anything_is_made() {
    let mut fixture = Fixture::bare().await;
    let version: String = fixture
        .sql
        .query_one("SHOW server_version_num", &[])
        .await
        .unwrap()
        .get(0);
    let is_carried = version.parse::<u32>().unwrap() >= 180_000;
    let table = "CREATE TABLE outbox_events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregate_id uuid NOT NULL DEFAULT gen_random_uuid(),
        event_type text NOT NULL DEFAULT 'made', event_version smallint NOT NULL DEFAULT 1, occurred_at timestamptz NOT NULL DEFAULT now(),
        raw jsonb NOT NULL, payload_json jsonb NOT NULL GENERATED ALWAYS AS (raw -> 'event') STORED)";
    fixture.sql.batch_execute(table).await.unwrap();
    let name = fixture.name.clone();
    if !is_carried {
        let refused = fixture.walrelay(&["setup"]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(
            refused
                .stderr
                .contains("name a column in [columns] that is not generated")
        );
        let made = "SELECT count(*) FROM pg_publication";
        let made: i64 = fixture.sql.query_one(made, &[]).await.unwrap().get(0);
        assert_eq!(made, 0);
        return;
    }
    fixture.setup().await;
    let row = r#"INSERT INTO outbox_events (raw) VALUES ('{"event": {"n": 7}}')"#;
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.relay_until(1).await;
    assert_eq!(fixture.stored().await[0].payload(), r#"{"n": 7}"#);

    // Of a publication that somebody has made, the remedy that is printed.
    let without = format!("ALTER PUBLICATION {name} SET (publish_generated_columns = none)");
    fixture.sql.batch_execute(&without).await.unwrap();
    let refused = fixture.walrelay(&["run"]).await;
    let said = &refused.stderr;
    assert!(said.contains("does not send column payload_json"), "{said}");
    let begin = said.find("ALTER PUBLICATION").expect("a remedy");
    let end = said[begin..].find("COMMIT;").expect("its end") + begin + "COMMIT;".len();
    fixture.sql.batch_execute(&said[begin..end]).await.unwrap();
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.relay_until(2).await;

    let is_virtual = "ALTER TABLE outbox_events DROP COLUMN payload_json;
        ALTER TABLE outbox_events ADD COLUMN payload_json text GENERATED ALWAYS AS ('{}') VIRTUAL";
    fixture.sql.batch_execute(is_virtual).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("name a column in [columns] that is not generated"),
        "{refused:?}"
    );
}

/// An ALTER would give it a second payload, and make each row a dead letter.
#[tokio::test]
async fn an_empty_table_of_somebody_elses_is_mapped() {
    let mut fixture = Fixture::bare().await;
    let table = "CREATE TABLE outbox_events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregate_id uuid NOT NULL DEFAULT gen_random_uuid(),
        event_type text NOT NULL DEFAULT 'made', occurred_at timestamptz NOT NULL DEFAULT now(), payload text NOT NULL)";
    // Whoever writes to it fills no column that it does not have now, and keeps what is set already.
    let other = "CREATE TABLE t20 (id uuid PRIMARY KEY, a text, what text NOT NULL, payload_json jsonb NOT NULL)";
    fixture.sql.batch_execute(other).await.unwrap();
    fixture.configure("[columns]\naggregate_id = \"a\"");
    for command in [["setup", "--table", "t20"], ["run", "--table", "t20"]] {
        let refused = fixture.walrelay(&command).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(!refused.stderr.contains("ALTER TABLE"), "{refused:?}");
        let root = &fixture.name;
        let columns = "[columns]\nid = \"id\"  # uuid\naggregate_id = \"a\"  # text, may be null, and a row with a null becomes a dead letter\n\
             event_type = \"\"\nevent_version = \"\"\n\
             occurred_at = \"\"  # the time of the commit\npayload = \"payload_json\"  # jsonb\n[nats]  # ";
        let subject = format!("\nsubject = \"{root}.{{aggregate_id:token}}\"\n");
        for proposed in [columns, &subject] {
            assert!(refused.stderr.contains(proposed), "{refused:?}");
        }
    }
    fixture.configure("");
    fixture.sql.batch_execute(table).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(!refused.stderr.contains("ALTER TABLE"), "{refused:?}");
    let begin = refused.stderr.find("\n[columns]").expect("a proposal");
    let proposed: Vec<&str> = refused.stderr[begin + 1..]
        .lines()
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .take_while(|line| line.starts_with('[') || line.contains(" = "))
        .collect();
    fixture.configure(&proposed.join("\n"));
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture
        .sql
        .batch_execute("INSERT INTO outbox_events (payload) VALUES ('{\"n\": 1}')")
        .await
        .unwrap();
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].kind, None, "{stored:?}");
    assert_eq!(stored[0].payload(), r#"{"n": 1}"#);
}

/// A stream that hardly takes an event, and one that does not take the rows that there are.
#[tokio::test]
async fn set_up_tells_of_messages_that_the_stream_does_not_take() {
    let fixture = Fixture::new().await;
    let context = async_nats::jetstream::new(fixture.nats.clone());
    let stream = context.get_stream(fixture.stream_name()).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_message_size = 100;
    context.update_stream(&config).await.unwrap();
    let edit = format!("nats stream edit {} --max-msg-size=", fixture.stream_name());
    for large in [false, true] {
        if large {
            let row = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
                VALUES (gen_random_uuid(), gen_random_uuid(), 'a', to_jsonb(repeat('x', 12000)))";
            fixture.sql.batch_execute(row).await.unwrap();
        }
        let doctor = fixture.walrelay(&["doctor"]).await;
        assert!(doctor.stdout.contains(&edit), "{}", doctor.stdout);
        let setup = fixture.walrelay(&["setup"]).await.success();
        let (_, bytes) = setup.stderr.split_once(&edit).expect(&setup.stderr);
        config.max_message_size = bytes.trim().parse().expect("a number");
        context.update_stream(&config).await.unwrap();
        let setup = fixture.walrelay(&["setup"]).await.success();
        assert!(!setup.stderr.contains("max-msg-size"), "{}", setup.stderr);
    }
}

/// What was dropped is made anew as it is printed; the relay goes on, and nothing that is written then is missing.
#[tokio::test]
async fn a_table_that_was_dropped_is_made_anew_as_it_is_printed() {
    let mut fixture = Fixture::new().await;
    let mut relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    let drop = "DROP TABLE outbox_events";
    fixture.sql.batch_execute(drop).await.unwrap();
    relay.logs("there is no table public.outbox_events").await;
    // Each names the next step.
    let dry = ["setup", "--dry-run"];
    for said in [
        relay.log(),
        fixture.walrelay(&["status"]).await.stdout,
        fixture.walrelay(&["doctor"]).await.stdout,
    ] {
        assert!(said.contains("walrelay setup --dry-run"), "{said}");
    }
    let refused = fixture.walrelay(&dry).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let said = &refused.stderr;
    let (_, sql) = said.split_once("run BEGIN;").expect(said);
    let (sql, _) = sql.split_once("COMMIT;").expect(said);
    let sql = format!("BEGIN;{sql}COMMIT;");
    assert!(!said.contains("name that is free"), "{said}");
    assert_eq!(fixture.walrelay(&["setup"]).await.code, Some(1));
    fixture.sql.batch_execute(&sql).await.expect(&sql);
    fixture.insert(4, 6).await;
    fixture.holds(6).await;
    fixture.walrelay(&["setup"]).await.success();
    fixture.walrelay(&["verify"]).await.success();
    relay.stop().await;
    let relay = fixture.run();
    fixture.insert(7, 7).await;
    fixture.holds(7).await;
    assert_exactly_once(
        &(1..=7).map(uuid).collect::<Vec<_>>(),
        &fixture.stored_ids().await,
    );
    relay.stop().await;
}

/// It makes dead letters of such rows.
#[tokio::test]
async fn a_column_of_the_subject_that_may_be_null_is_told_and_mended_as_printed() {
    let mut fixture = Fixture::new().await;
    let add = "ALTER TABLE outbox_events ADD tenant text";
    fixture.sql.batch_execute(add).await.unwrap();
    let subject = format!("{}.{{tenant:token}}.{{event_type}}", fixture.name);
    fixture.set("WALRELAY_NATS_SUBJECT", subject);
    let said = fixture.walrelay(&["setup"]).await.success().stderr;
    let (_, mend) = said.split_once("since nats.subject names it").expect(&said);
    let (_, sql) = mend.split_once("run ").expect(mend);
    let sql = sql.lines().next().expect("a line");
    let doctor = fixture.walrelay(&["doctor"]).await.stdout;
    assert!(doctor.contains("since nats.subject names it"), "{doctor}");
    fixture.sql.batch_execute(sql).await.expect(sql);
    let said = fixture.walrelay(&["setup"]).await.success().stderr;
    assert!(!said.contains("names it"), "{said}");
}
