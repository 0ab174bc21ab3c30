//! What `setup` says of a table of walrelay's own with a column that cannot serve, typed as it is printed: the application's INSERT
//! then gives an event.

use crate::support::{Fixture, Output, uuid};

/// The statements that are printed.
fn statements(output: &Output) -> Vec<&str> {
    let parts = output.stderr.split("run ALTER TABLE ").skip(1);
    parts
        .map(|part| &part[..=part.find(';').expect("its end")])
        .collect()
}

const ID: &str = "id uuid PRIMARY KEY";
const AGGREGATE_ID: &str = "aggregate_id uuid NOT NULL";
const EVENT_TYPE: &str = "event_type text NOT NULL";
const EVENT_VERSION: &str = "event_version smallint NOT NULL DEFAULT 1";
const OCCURRED_AT: &str = "occurred_at timestamptz NOT NULL DEFAULT now()";
const PAYLOAD: &str = "payload_json jsonb NOT NULL";

/// The table with the column in place of its own of that name, or without it.
fn table(name: &str, column: &str) -> String {
    let own = [
        ID,
        AGGREGATE_ID,
        EVENT_TYPE,
        EVENT_VERSION,
        OCCURRED_AT,
        PAYLOAD,
    ];
    let columns = own.map(|it| match it.starts_with(name) {
        true => column,
        false => it,
    });
    let columns: Vec<&str> = columns.into_iter().filter(|it| !it.is_empty()).collect();
    format!("CREATE TABLE outbox_events ({})", columns.join(", "))
}

#[tokio::test]
async fn what_is_typed_as_printed_makes_the_table_one_that_takes_inserts() {
    for (name, column) in [
        ("id", ""),
        ("aggregate_id", ""),
        ("event_type", ""),
        ("event_version", ""),
        ("occurred_at", ""),
        ("payload_json", ""),
        ("event_version", "event_version text NOT NULL DEFAULT '1'"),
        (
            "occurred_at",
            "occurred_at text NOT NULL DEFAULT now()::text",
        ),
        (
            "occurred_at",
            "occurred_at timestamp NOT NULL DEFAULT now()",
        ),
        (
            "occurred_at",
            "occurred_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc')",
        ),
        ("occurred_at", "occurred_at timestamp NOT NULL"),
    ] {
        let fixture = Fixture::bare().await;
        let sql = table(name, column);
        fixture.sql.batch_execute(&sql).await.unwrap();
        let first = fixture.walrelay(&["setup"]).await;
        let printed = statements(&first);
        assert_eq!(printed.len(), 1, "{sql}: {first:?}");
        let statement = format!("ALTER TABLE {}", printed[0]);
        fixture
            .sql
            .batch_execute(&statement)
            .await
            .expect(&statement);
        let second = fixture.walrelay(&["setup"]).await;
        assert_eq!(second.code, Some(0), "{sql}: {second:?}");
        assert_eq!(statements(&second), [""; 0], "{sql}");
        takes_inserts(fixture, &sql, column.ends_with("NOT NULL")).await;
    }
}

/// A column without a default is to be given.
async fn takes_inserts(mut fixture: Fixture, sql: &str, is_given: bool) {
    let mut relay = fixture.run();
    relay.streams().await;
    let (column, value) = match is_given {
        true => (", occurred_at", ", now()"),
        false => ("", ""),
    };
    // Whatever the session's time zone.
    let insert = format!(
        "BEGIN; SET LOCAL timezone = 'Asia/Kathmandu';
         INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json{column}) VALUES ('{0}', '{0}', 'a.b', '{{}}'{value});
         DO $$ BEGIN ASSERT (SELECT occurred_at = now() FROM outbox_events); END $$;
         COMMIT",
        uuid(1)
    );
    fixture.sql.batch_execute(&insert).await.expect(sql);
    fixture.holds(1).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].kind, None, "{sql}: {}", stored[0].body);
    assert_eq!(stored[0].field("event_version"), 1);
}

/// Postgres refuses to alter its type.
#[tokio::test]
async fn nobody_is_told_to_alter_the_key_of_a_partition() {
    let mut fixture = Fixture::bare().await;
    let timestamp = table(
        "occurred_at",
        "occurred_at timestamp NOT NULL DEFAULT now()",
    );
    let sql = format!(
        "{} PARTITION BY RANGE (occurred_at);
         CREATE TABLE all_events PARTITION OF outbox_events FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
        timestamp.replace("PRIMARY KEY", "NOT NULL")
    );
    fixture.sql.batch_execute(&sql).await.unwrap();
    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    assert_eq!(statements(&setup), [""; 0], "{setup:?}");
    assert!(setup.stderr.contains("is taken as UTC"), "{setup:?}");
    fixture.insert(1, 1).await;
    fixture.relay_until(1).await;
    assert_eq!(fixture.stored().await[0].kind, None);
}

/// The time of the commit is taken in its place.
#[tokio::test]
async fn a_key_of_a_partition_that_cannot_serve_is_mapped() {
    let mut fixture = Fixture::bare().await;
    let text = table("occurred_at", "occurred_at text NOT NULL DEFAULT 'a'");
    let sql = format!(
        "{} PARTITION BY LIST (occurred_at);
         CREATE TABLE all_events PARTITION OF outbox_events DEFAULT",
        text.replace("PRIMARY KEY", "NOT NULL")
    );
    fixture.sql.batch_execute(&sql).await.unwrap();
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(statements(&refused), [""; 0], "{refused:?}");
    let (_, toml) = refused.stderr.split_once("right:\n").expect("a proposal");
    let toml: Vec<&str> = toml
        .lines()
        .take_while(|line| !line.starts_with("warning") && !line.starts_with("error"))
        .collect();
    fixture.configure(&toml.join("\n"));
    fixture.setup().await;
    fixture.insert(1, 1).await;
    fixture.relay_until(1).await;
    assert_eq!(fixture.stored().await[0].kind, None);
}

/// The lane has published, and then a column gets another name.
async fn published(altered: &str) -> Fixture {
    let mut fixture = Fixture::new().await;
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    fixture.sql.batch_execute(altered).await.expect(altered);
    fixture
}

/// What commands say of it, the same everywhere.
async fn says(fixture: &Fixture, what: &str) -> Output {
    for command in ["run", "doctor"] {
        let refused = fixture.walrelay(&[command]).await;
        let told = refused.stdout + &refused.stderr;
        assert!(told.contains(what), "{command}: {told}");
    }
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains(what), "{refused:?}");
    assert!(!refused.stderr.contains("did you mean"), "{refused:?}");
    refused
}

/// Inserts into whatever the payload is called.
async fn goes_on(fixture: &mut Fixture, payload: &str) {
    let mut relay = fixture.run();
    relay.streams().await;
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, {payload})
         VALUES (gen_random_uuid(), gen_random_uuid(), 'a.b', '{{\"n\": 4}}')"
    );
    fixture.sql.batch_execute(&insert).await.expect(&insert);
    fixture.holds(4).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    assert_eq!(stored[3].payload(), r#"{"n": 4}"#, "{:?}", stored[3]);
}

/// Rows while no relay runs, with these columns for id and payload.
async fn writes(fixture: &Fixture, id: &str, payload: &str, count: u32) {
    let insert = format!(
        "INSERT INTO outbox_events ({id}, aggregate_id, event_type, {payload})
         SELECT gen_random_uuid(), gen_random_uuid(), 'a.b', '{{}}' FROM generate_series(1, {count})"
    );
    fixture.sql.batch_execute(&insert).await.expect(&insert);
}

/// The setting as it is printed, in its section.
fn setting(output: &Output) -> String {
    let (_, setting) = output.stderr.split_once("set ").expect("a setting");
    let words: Vec<&str> = setting.splitn(4, ' ').collect();
    let [field, "=", column, _] = words[..] else {
        panic!("{output:?}");
    };
    format!("[columns]\n{field} = {column}\n")
}

/// All rows are published in their order, and so many became dead letters first.
async fn published_with(fixture: &mut Fixture, events: usize, dead_letters: usize) {
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.holds(events as u64).await;
    relay.stop().await;
    let stored = fixture.stored().await;
    let dead = |kind: &Option<String>| kind.as_deref() == Some("dead-letter");
    let found = stored.iter().filter(|message| dead(&message.kind)).count();
    assert_eq!(found, dead_letters, "{stored:?}");
    if dead_letters == 0 {
        is_clean(fixture).await;
    }
}

async fn is_clean(fixture: &Fixture) {
    let verify = fixture.walrelay(&["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
}

#[tokio::test]
async fn a_column_that_was_renamed_is_told_by_its_new_name() {
    for (field, name, now) in [
        ("payload", "payload_json", "body"),
        ("id", "id", "event_id"),
    ] {
        let mut fixture = published("SELECT").await;
        writes(&fixture, "id", "payload_json", 5).await;
        let rename = format!("ALTER TABLE outbox_events RENAME {name} TO {now}");
        fixture.sql.batch_execute(&rename).await.unwrap();
        let named = |column| if column == name { now } else { column };
        writes(&fixture, named("id"), named("payload_json"), 6).await;
        let what = format!("has no column {name} any more: it is called {now}");
        let refused = says(&fixture, &what).await;
        // Rows that were written since have the new name in the WAL.
        assert_eq!(statements(&refused), [""; 0], "{refused:?}");
        let setting = setting(&refused);
        assert_eq!(setting, format!("[columns]\n{field} = {now:?}\n"));
        fixture.configure(&setting);
        fixture.setup().await;
        published_with(&mut fixture, 14, 0).await;
    }
}

#[tokio::test]
async fn for_a_column_that_was_dropped_those_are_named_that_came_later() {
    for (fills, replace) in [
        (
            "",
            "ALTER TABLE outbox_events ADD content jsonb NOT NULL DEFAULT '{}', ADD note text;
             UPDATE outbox_events SET content = payload_json; ALTER TABLE outbox_events DROP payload_json",
        ),
        (
            "UPDATE outbox_events SET content = '{}' WHERE content IS NULL",
            "ALTER TABLE outbox_events DROP payload_json; ALTER TABLE outbox_events ADD content jsonb",
        ),
    ] {
        let mut fixture = published("SELECT").await;
        writes(&fixture, "id", "payload_json", 5).await;
        fixture.sql.batch_execute(replace).await.unwrap();
        writes(&fixture, "id", "content", 6).await;
        let what = "has no column payload_json any more: it was dropped";
        let refused = says(&fixture, what).await;
        let told = "rows from before it came that are not published yet become dead letters: fill it in those rows, then run \
                    walrelay dead-letters retry --all";
        assert!(refused.stderr.contains(told), "{refused:?}");
        fixture.configure(&setting(&refused));
        fixture.setup().await;
        published_with(&mut fixture, 14, 5).await;
        fixture.sql.batch_execute(fills).await.unwrap();
        let retry = fixture.walrelay(&["dead-letters", "retry", "--all"]).await;
        assert_eq!(retry.code, Some(0), "{retry:?}");
        is_clean(&fixture).await;
    }
}

/// Nobody knows what the column was called.
#[tokio::test]
async fn of_a_column_that_was_renamed_before_anything_is_published_it_is_said_what_becomes_of_the_rows()
 {
    let pasted = |refused: &Output| {
        let (_, toml) = refused.stderr.split_once("right:\n").expect("a proposal");
        toml.to_owned()
    };
    for (name, now) in [("payload_json", "body"), ("id", "event_id")] {
        let mut fixture = Fixture::new().await;
        let rename =
            |from: &str, to: &str| format!("ALTER TABLE outbox_events RENAME {from} TO {to}");
        writes(&fixture, "id", "payload_json", 5).await;
        fixture.sql.batch_execute(&rename(name, now)).await.unwrap();
        let refused = fixture.walrelay(&["run"]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let told =
            "rename it back, let the relay publish them, then rename it again and use the lines";
        assert!(refused.stderr.contains(told), "{refused:?}");
        fixture.sql.batch_execute(&rename(now, name)).await.unwrap();
        published_with(&mut fixture, 5, 0).await;
        fixture.sql.batch_execute(&rename(name, now)).await.unwrap();
        fixture.configure(&pasted(&refused));
        let named = |column| if column == name { now } else { column };
        writes(&fixture, named("id"), named("payload_json"), 6).await;
        published_with(&mut fixture, 11, 0).await;
    }
}

#[tokio::test]
async fn a_further_column_that_was_renamed_is_told_too() {
    let mut fixture = Fixture::bare().await;
    let table = include_str!("../../sql/0001_outbox_events.sql");
    fixture.sql.batch_execute(table).await.unwrap();
    let tenant = "ALTER TABLE outbox_events ADD tenant text NOT NULL DEFAULT 't', ADD tenants int";
    fixture.sql.batch_execute(tenant).await.unwrap();
    fixture.set("WALRELAY_MESSAGE_HEADERS", "{ Tenant = 'tenant' }");
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    let rename = "ALTER TABLE outbox_events RENAME tenant TO customer";
    fixture.sql.batch_execute(rename).await.unwrap();
    let refused = says(
        &fixture,
        "has no column tenant any more: it is called customer",
    )
    .await;
    let instead = "name \"customer\" in its place in message.headers or message.fields";
    assert!(refused.stderr.contains(instead), "{refused:?}");
    fixture.set("WALRELAY_MESSAGE_HEADERS", "{ Tenant = 'customer' }");
    fixture.setup().await;
    goes_on(&mut fixture, "payload_json").await;
}
