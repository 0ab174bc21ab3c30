//! Partitions that somebody else keeps.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::{Fixture, Servers, options};

/// An extension of pg_partman's name with the table by which it knows its parents.
fn write_extension(folder: &Path) {
    let extension = folder.join("extension");
    fs::create_dir(&extension).expect("the folder is there");
    let files = [
        (
            "pg_partman.control",
            "default_version = '1.0'\nrelocatable = false\n",
        ),
        (
            "pg_partman--1.0.sql",
            "CREATE TABLE @extschema@.part_config (parent_table text PRIMARY KEY);\n",
        ),
    ];
    for (name, text) in files {
        fs::write(extension.join(name), text).expect("it is written");
    }
    // Postgres may run as another user.
    for folder in [folder, &extension] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    }
}

#[tokio::test]
async fn what_pg_partman_keeps_is_left_alone() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    write_extension(folder.path());
    let path = format!("{}:$system", folder.path().display());
    let servers = Servers::with(options(&[("extension_control_path", &path)])).await;
    let mut fixture = Fixture::bare_on(servers).await;
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    fixture.sql.batch_execute(layout).await.expect("made");
    let old = "CREATE TABLE old PARTITION OF outbox_events FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
               CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
               INSERT INTO partman.part_config VALUES ('public.outbox_events')";
    fixture.sql.batch_execute(old).await.expect("made");
    fixture.setup().await;
    let relay = fixture.run();
    let insert = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at)
                  VALUES (gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{}', '2020-01-01 12:00')";
    fixture.sql.batch_execute(insert).await.expect("inserted");
    fixture.holds(1).await;
    let pruned = fixture
        .walrelay(&["prune", "--older-than", "7d", "--json"])
        .await;
    let report: serde_json::Value =
        serde_json::from_str(&pruned.success().stdout).expect("one JSON object");
    assert_eq!(
        (&report["rows"], &report["partitions"]),
        (&1.into(), &serde_json::json!([]))
    );
    let note = report["notes"][0].as_str().expect("a note");
    assert!(
        note.starts_with("pg_partman keeps the partitions"),
        "{note}"
    );
    let row = fixture.sql.query_one("SELECT count(*) FROM old", &[]).await;
    assert_eq!(row.expect("it is there").get::<_, i64>(0), 0);
    relay.stop().await;
}
