//! What `setup` proposes for a table of somebody else's, pasted as it is printed.

use crate::support::{Fixture, Output};

/// The lines to paste.
fn proposal(refused: &Output) -> String {
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let lines = refused.stderr.split_once("right:\n");
    let (_, lines) = lines.unwrap_or_else(|| panic!("no proposal: {refused:?}"));
    let is_toml = |line: &&str| !line.starts_with("warning") && !line.starts_with("error");
    lines
        .lines()
        .take_while(is_toml)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// A table with a row.
async fn with_rows(table: &str, row: &str) -> Fixture {
    let mut fixture = Fixture::bare().await;
    let both = format!("{table}; {row}");
    fixture.sql.batch_execute(&both).await.unwrap();
    fixture.set("WALRELAY_POSTGRES_TABLE", "public.events");
    fixture
}

#[tokio::test]
async fn columns_of_other_names_are_guessed_by_type_and_key() {
    for (table, row, subject, guessed) in [
        (
            "CREATE TABLE events (pk uuid PRIMARY KEY DEFAULT gen_random_uuid(), topic varchar(99) NOT NULL, key varchar(99) NOT NULL,
                value text NOT NULL, headers jsonb, ts bigint NOT NULL)",
            "INSERT INTO events (topic, key, value, ts) VALUES ('made', 'k', '{}', 1)",
            "made",
            "id = \"pk\"  # uuid, a guess: it is the primary key",
        ),
        (
            "CREATE TABLE events (event_uuid uuid PRIMARY KEY DEFAULT gen_random_uuid(), entity_id bigint NOT NULL,
                event_name text NOT NULL, version int NOT NULL, event_body json NOT NULL, event_time timestamptz NOT NULL)",
            "INSERT INTO events (entity_id, event_name, version, event_body, event_time) VALUES (1, 'made', 1, '{}', now())",
            "made",
            "payload = \"event_body\"  # json, a guess: the only JSON",
        ),
        (
            "CREATE TABLE events (eid uuid DEFAULT gen_random_uuid(), agg text NOT NULL, kind text NOT NULL,
                at timestamptz NOT NULL, body jsonb NOT NULL)",
            "INSERT INTO events (agg, kind, at, body) VALUES ('a', 'made', now(), '{}')",
            "made",
            "aggregate_id = \"agg\"  # text",
        ),
        (
            "CREATE TABLE events (row_no uuid DEFAULT gen_random_uuid(), happened timestamptz NOT NULL, processed timestamptz,
                raw_data bytea NOT NULL, note text)",
            "INSERT INTO events (happened, raw_data) VALUES (now(), '\\x7b7d')",
            "events",
            "occurred_at = \"happened\"  # timestamp with time zone, a guess: the only time",
        ),
    ] {
        let mut fixture = with_rows(table, row).await;
        let refused = fixture.walrelay(&["setup"]).await;
        let toml = proposal(&refused);
        assert!(toml.contains(guessed), "{toml}");
        if toml.contains("subject = ") {
            fixture.unset("WALRELAY_NATS_SUBJECT");
        }
        fixture.configure(&toml);
        fixture.setup().await;
        fixture.sql.batch_execute(row).await.unwrap();
        fixture.relay_until(1).await;
        let stored = fixture.stored().await;
        assert_eq!(stored[0].subject, format!("{}.{subject}", fixture.name));
    }
}

/// What cannot be told is left open: the rest is proposed all the same.
#[tokio::test]
async fn one_field_that_several_columns_may_be_withholds_no_proposal() {
    let table = "CREATE TABLE events (eid uuid DEFAULT gen_random_uuid(), agg text NOT NULL, kind text NOT NULL,
        at timestamptz NOT NULL DEFAULT now(), a jsonb NOT NULL, b jsonb NOT NULL)";
    let row = "INSERT INTO events (agg, kind, a, b) VALUES ('a', 'made', '{}', '{\"n\": 1}')";
    let mut fixture = with_rows(table, row).await;
    let refused = fixture.walrelay(&["setup"]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for line in [
        "id = \"eid\"  # uuid",
        "# payload = \"a\"  # jsonb",
        "# payload = \"b\"  # jsonb",
    ] {
        assert!(
            refused.stderr.lines().any(|told| told.starts_with(line)),
            "{line}: {refused:?}"
        );
    }
    let toml = proposal(&refused);
    fixture.configure(&toml.replace("# payload = \"b\"", "payload = \"b\""));
    fixture.setup().await;
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.relay_until(1).await;
    assert_eq!(fixture.stored().await[0].payload(), r#"{"n": 1}"#);
}

/// TOML has a section once: the error names it, and the comment of the proposal says where its line belongs.
#[tokio::test]
async fn the_proposal_goes_into_a_file_that_has_its_section() {
    let row = "INSERT INTO events (body) VALUES ('{}')";
    let table = "CREATE TABLE events (id bigserial PRIMARY KEY, body jsonb NOT NULL)";
    let mut fixture = with_rows(table, row).await;
    fixture.unset("WALRELAY_NATS_SUBJECT");
    let own = format!("[nats]\nsubject = \"{}.{{event_type}}\"\n", fixture.name);
    fixture.configure(&own);
    let refused = fixture.walrelay(&["setup"]).await;
    let toml = proposal(&refused);
    fixture.configure(&format!("{own}{toml}"));
    let twice = fixture.walrelay(&["setup"]).await;
    assert_eq!(twice.code, Some(2), "{twice:?}");
    let line = 2
        + 1
        + toml
            .lines()
            .position(|line| line.starts_with("[nats]"))
            .expect("a section");
    let words = format!("walrelay.toml:{line}: not TOML: duplicate key `nats`");
    assert!(twice.stderr.contains(&words), "{twice:?}");
    let (columns, nats) = toml.split_once("[nats]").expect("a section");
    assert!(
        nats.contains("put the next line into it, in place of its subject"),
        "{toml}"
    );
    let (_, subject) = nats.split_once('\n').expect("a line");
    fixture.configure(&format!("[nats]\n{subject}{columns}"));
    fixture.setup().await;
    // Without the section, it is pasted as it is.
    fixture.configure(&toml);
    fixture.setup().await;
}

#[tokio::test]
async fn a_subject_that_names_a_column_under_another_name_is_mended_too() {
    let table = "CREATE TABLE events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregate_type text NOT NULL,
        aggregate_id text NOT NULL, type text NOT NULL, payload jsonb NOT NULL)";
    let row = "INSERT INTO events (aggregate_type, aggregate_id, type, payload) VALUES ('order', '1', 'made', '{}')";
    let mut fixture = with_rows(table, row).await;
    fixture.unset("WALRELAY_NATS_SUBJECT");
    let preset = "preset = \"debezium\"\n";
    let nats = format!("[nats]\nsubject = \"{}.{{aggregatetype}}\"\n", fixture.name);
    fixture.configure(&format!("{preset}{nats}"));
    let refused = fixture.walrelay(&["setup"]).await;
    let toml = proposal(&refused);
    fixture.configure(&format!("{preset}{toml}"));
    fixture.setup().await;
    fixture.sql.batch_execute(row).await.unwrap();
    fixture.relay_until(1).await;
    let stored = fixture.stored().await;
    assert_eq!(stored[0].subject, format!("{}.order", fixture.name));
    assert_eq!(stored[0].body, "{}");
}

/// As `run` says it.
#[tokio::test]
async fn commands_name_the_key_of_an_id_that_the_table_does_not_have() {
    let mut fixture = Fixture::new().await;
    fixture.setup().await;
    fixture.insert(1, 1).await;
    fixture.set("WALRELAY_COLUMNS_ID", "Idd");
    let erase = [
        "erase",
        "--aggregate-id",
        "00000000-0000-0000-0000-000000000001",
        "--yes",
    ];
    for command in [
        &["verify"][..],
        &["prune", "--older-than", "1d"],
        &["backfill"],
        &erase,
    ] {
        let refused = fixture.walrelay(command).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
        for words in [
            "outbox_events has no column \"Idd\"",
            "[columns]\nid = \"id\"",
        ] {
            assert!(refused.stderr.contains(words), "{command:?}: {refused:?}");
        }
        assert!(!refused.stderr.contains("42703"), "{refused:?}");
    }
}
