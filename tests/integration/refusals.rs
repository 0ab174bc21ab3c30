//! What cannot get better by waiting ends `run` at the start: exit code 1 and one message that says what is wrong,
//! where, and what mends it.

use walrelay::local::{Authentication, PasswordMethod, PostgresOptions};

use crate::support::{Fixture, Output, Servers};

/// # Panics
/// Unless `walrelay run` ends with 1 and one error that has all of `words`.
async fn refuses(fixture: &Fixture, words: &[&str]) {
    let output = fixture.walrelay(&["run"]).await;
    one_error(&output, 1, words);
}

fn one_error(output: &Output, code: i32, words: &[&str]) {
    let Output { stdout, stderr, .. } = output;
    assert_eq!(output.code, Some(code), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert_eq!(stdout, "");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
}

#[tokio::test]
async fn a_wrong_password() {
    let options = PostgresOptions {
        authentication: Authentication::Password {
            method: PasswordMethod::ScramSha256,
            password: "correct horse".to_owned(),
        },
        ..PostgresOptions::default()
    };
    let mut fixture = Fixture::bare_on(Servers::with(options).await).await;
    fixture.setup().await;
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set("WALRELAY_POSTGRES_URL", url.replace("horse", "battery"));
    refuses(
        &fixture,
        &[
            "cannot connect to postgres://postgres:",
            "password authentication failed",
            "28P01",
            "ALTER ROLE postgres PASSWORD",
        ],
    )
    .await;
    let output = fixture.walrelay(&["run"]).await;
    assert!(!output.stderr.contains("battery"), "{}", output.stderr);

    fixture.set("WALRELAY_POSTGRES_URL", url.replace(":correct%20horse", ""));
    let missing = [
        "cannot connect to postgres://postgres@",
        "asks for a password of user \"postgres\"",
        "PGPASSWORD",
    ];
    refuses(&fixture, &missing).await;
}

#[tokio::test]
async fn a_missing_database() {
    let mut fixture = Fixture::new().await;
    let url = fixture.servers().postgres.url("nowhere");
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let words = [
        "cannot connect to postgres://",
        "\"nowhere\" does not exist",
        "3D000",
        "CREATE DATABASE nowhere;",
    ];
    refuses(&fixture, &words).await;
}

#[tokio::test]
async fn a_missing_role() {
    let mut fixture = Fixture::new().await;
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        url.replace("//postgres@", "//nobody@"),
    );
    let words = [
        "cannot connect to postgres://nobody@",
        "role \"nobody\" does not exist",
        "28000",
        "CREATE ROLE nobody LOGIN REPLICATION;",
    ];
    refuses(&fixture, &words).await;
}

#[tokio::test]
async fn a_role_that_may_not_replicate() {
    let mut fixture = Fixture::new().await;
    let role = format!("{}_app", fixture.name);
    let sql = format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON outbox_events TO {role}");
    fixture.sql.batch_execute(&sql).await.unwrap();
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        url.replace("//postgres@", &format!("//{role}@")),
    );
    let remedy = format!("ALTER ROLE {role} REPLICATION");
    refuses(&fixture, &[&remedy]).await;
    let dry = fixture
        .walrelay(&["reshard", "--shares", "2", "--dry-run"])
        .await;
    assert_eq!(dry.code, Some(1), "{}", dry.stderr);
    assert!(dry.stderr.contains(&remedy), "{}", dry.stderr);
    let sql = format!("ALTER ROLE {role} REPLICATION");
    fixture.sql.batch_execute(&sql).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    relay.stop().await;
}

#[tokio::test]
async fn a_missing_slot() {
    let fixture = Fixture::new().await;
    let drop = "SELECT pg_drop_replication_slot($1)";
    fixture.sql.query_one(drop, &[&fixture.name]).await.unwrap();
    refuses(
        &fixture,
        &["no replication slot", &fixture.name, "walrelay setup"],
    )
    .await;
}

#[tokio::test]
async fn a_slot_with_another_plugin() {
    let fixture = Fixture::new().await;
    let drop = "SELECT pg_drop_replication_slot($1)";
    fixture.sql.query_one(drop, &[&fixture.name]).await.unwrap();
    let create = "SELECT pg_create_logical_replication_slot($1, 'test_decoding')";
    fixture
        .sql
        .query_one(create, &[&fixture.name])
        .await
        .unwrap();
    refuses(
        &fixture,
        &["test_decoding", "not pgoutput", "walrelay setup"],
    )
    .await;
}

#[tokio::test]
async fn a_slot_of_another_database() {
    let mut fixture = Fixture::new().await;
    let other = Fixture::new().await;
    fixture.set("WALRELAY_POSTGRES_SLOT", other.name.as_str());
    refuses(
        &fixture,
        &["belongs to the database", &other.name, "postgres.slot"],
    )
    .await;
}

#[tokio::test]
async fn a_missing_publication() {
    let fixture = Fixture::new().await;
    let drop = format!("DROP PUBLICATION {}", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    refuses(
        &fixture,
        &["no publication", &fixture.name, "walrelay setup"],
    )
    .await;
}

#[tokio::test]
async fn a_publication_without_the_table() {
    let fixture = Fixture::new().await;
    let name = &fixture.name;
    let sql = format!("CREATE TABLE other (id int); ALTER PUBLICATION {name} SET TABLE other");
    fixture.sql.batch_execute(&sql).await.unwrap();
    let mend = format!("ALTER PUBLICATION {name} ADD TABLE public.outbox_events");
    refuses(&fixture, &[&mend]).await;
    fixture.sql.batch_execute(&mend).await.unwrap();
    let sql = format!("ALTER PUBLICATION {name} SET (publish = 'delete')");
    fixture.sql.batch_execute(&sql).await.unwrap();
    let mend = format!("ALTER PUBLICATION {name} SET (publish = 'insert')");
    refuses(&fixture, &[&mend]).await;
}

#[tokio::test]
async fn a_missing_table() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_POSTGRES_TABLE", "app.events");
    let words = ["no table", "app.events", "walrelay setup", "postgres.table"];
    refuses(&fixture, &words).await;
}

#[tokio::test]
async fn a_table_that_cannot_serve() {
    let fixture = Fixture::new().await;
    for (harm, mend, repair) in [
        (
            "ALTER TABLE outbox_events DROP COLUMN event_type",
            "ALTER TABLE public.outbox_events ADD COLUMN event_type text",
            "ALTER TABLE outbox_events ADD event_type text NOT NULL",
        ),
        (
            "ALTER TABLE outbox_events ALTER id TYPE boolean USING true",
            "ALTER TABLE public.outbox_events ALTER COLUMN id TYPE uuid",
            "ALTER TABLE outbox_events ALTER id TYPE uuid USING gen_random_uuid()",
        ),
        (
            "ALTER TABLE outbox_events ALTER payload_json TYPE int USING 1",
            "ALTER TABLE public.outbox_events ALTER COLUMN payload_json TYPE jsonb",
            "ALTER TABLE outbox_events ALTER payload_json TYPE jsonb USING '{}'",
        ),
        (
            "ALTER TABLE outbox_events ALTER occurred_at DROP DEFAULT, ALTER occurred_at TYPE text",
            "ALTER TABLE public.outbox_events ALTER COLUMN occurred_at TYPE timestamptz",
            "ALTER TABLE outbox_events ALTER occurred_at TYPE timestamptz USING now()",
        ),
        (
            "ALTER TABLE outbox_events ALTER event_version DROP DEFAULT, ALTER event_version TYPE boolean USING true",
            "ALTER TABLE public.outbox_events ALTER COLUMN event_version TYPE smallint",
            "ALTER TABLE outbox_events ALTER event_version TYPE smallint USING 1",
        ),
    ] {
        fixture.sql.batch_execute(harm).await.unwrap();
        refuses(&fixture, &[mend]).await;
        fixture.sql.batch_execute(repair).await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_stream() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_NATS_STREAM", "NOWHERE");
    refuses(&fixture, &["NOWHERE", "walrelay setup"]).await;
}

#[tokio::test]
async fn a_stream_without_the_subjects() {
    let mut fixture = Fixture::new().await;
    fixture.set("WALRELAY_NATS_SUBJECT", "elsewhere.{event_type}");
    refuses(&fixture, &[fixture.stream_name(), "elsewhere.>"]).await;
}

#[tokio::test]
async fn a_wal_level_that_is_not_logical() {
    let settings = [("wal_level".to_owned(), "replica".to_owned())];
    let options = PostgresOptions {
        settings: settings.to_vec(),
        ..PostgresOptions::default()
    };
    let fixture = Fixture::bare_on(Servers::with(options).await).await;
    let mend = "ALTER SYSTEM SET wal_level = logical";
    let setup = fixture.walrelay(&["setup"]).await;
    one_error(&setup, 1, &[mend, "restart"]);
    let sql = include_str!("../../sql/0001_outbox_events.sql");
    fixture.sql.batch_execute(sql).await.unwrap();
    let sql = format!(
        "CREATE PUBLICATION {} FOR TABLE outbox_events",
        fixture.name
    );
    fixture.sql.batch_execute(&sql).await.unwrap();
    // There is no slot either, and cannot be; both are said, each by itself.
    let run = fixture.walrelay(&["run"]).await;
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.stderr.matches("error: ").count(), 2, "{run:?}");
    for word in [mend, "restart Postgres", "no replication slot"] {
        assert!(run.stderr.contains(word), "{run:?}");
    }
}

/// It is no question of rights.
#[tokio::test]
async fn a_schema_that_is_missing_and_a_name_that_wants_quotes() {
    let fixture = Fixture::bare().await;
    let sql = "CREATE SCHEMA \"Shop\"; CREATE TABLE \"Shop\".\"Events\" (id int)";
    fixture.sql.batch_execute(sql).await.unwrap();
    let setup = fixture.walrelay(&["setup", "--table", "nope.log"]).await;
    one_error(
        &setup,
        1,
        &["there is no schema nope", "CREATE SCHEMA nope;"],
    );
    let setup = fixture.walrelay(&["setup", "--table", "Shop.Events"]).await;
    one_error(
        &setup,
        1,
        &[
            "there is no table shop.events",
            "set postgres.table to '\"Shop\".\"Events\"'",
        ],
    );
}

#[tokio::test]
async fn wrong_nats_credentials() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.without_tls_and_login_of_nats();
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    nats.reload("authorization { user: relay, password: right }".to_owned())
        .await
        .unwrap();
    nats.start_again().await.unwrap();
    fixture.set("WALRELAY_NATS_USER", "relay");
    fixture.set("WALRELAY_NATS_PASSWORD", "right");
    fixture.setup().await;
    fixture.unset("WALRELAY_NATS_USER");
    fixture.unset("WALRELAY_NATS_PASSWORD");
    refuses(&fixture, &["refused", "127.0.0.1"]).await;
    fixture.set("WALRELAY_NATS_USER", "relay");
    fixture.set("WALRELAY_NATS_PASSWORD", "wrong");
    refuses(&fixture, &["refused"]).await;
    fixture.set("WALRELAY_NATS_PASSWORD", "right");
    let mut relay = fixture.run();
    relay.streams().await;
    relay.stop().await;
}

#[tokio::test]
async fn wrong_configuration_ends_with_2() {
    let mut fixture = Fixture::new().await;
    for (name, value) in [
        ("WALRELAY_POSTGRES_URL", "postgres://localhost:99999/app"),
        ("WALRELAY_NATS_URL", "http://localhost"),
        ("WALRELAY_NATS_STREAM", "a b"),
        ("WALRELAY_RELAY_HOLD_BACK", "soon"),
        ("WALRELAY_RELAY_WINDOW_MESSAGES", "0"),
        ("WALRELAY_POSTGRES_SLOT", "Slot"),
    ] {
        let mut command = fixture.command(&["run"]);
        command.env(name, value);
        one_error(&Output::of(&mut command).await, 2, &[name]);
    }
    let flag = fixture.walrelay(&["run", "--no-such-flag"]).await;
    assert_eq!(flag.code, Some(2), "{}", flag.stderr);
    let lsn = fixture.walrelay(&["run", "--from", "yesterday"]).await;
    assert_eq!(lsn.code, Some(2), "{}", lsn.stderr);
    fixture.set("WALRELAY_RELAY_ON_REJECT", "ignore");
    let choice = fixture.walrelay(&["run"]).await;
    one_error(&choice, 2, &["dead_letter", "halt"]);
}
