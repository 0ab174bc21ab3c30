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

/// How many partitions the table has.
async fn partitions(fixture: &Fixture) -> i64 {
    let query = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox_events'::regclass";
    let row = fixture.sql.query_one(query, &[]).await;
    row.expect("counted").get(0)
}

/// Prunes a table that the extension of `folder` keeps, as `kept` has told it, of a published row from `day`: the row goes, and
/// every partition stays.
async fn only_rows_go(folder: &Path, layout: &str, kept: &str, day: &str) -> Fixture {
    let path = format!("{}:$system", folder.display());
    let servers = Servers::with(options(&[("extension_control_path", &path)])).await;
    let mut fixture = Fixture::bare_on(servers).await;
    let extension = "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman";
    for made in [layout, extension, kept] {
        fixture.sql.batch_execute(made).await.expect("made");
    }
    fixture.setup().await;
    let relay = fixture.run();
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json, occurred_at)
         VALUES (gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', '{{}}', {day})"
    );
    fixture.sql.batch_execute(&insert).await.expect("inserted");
    fixture.holds(1).await;
    let before = partitions(&fixture).await;
    let pruned = fixture.prune(&["--older-than", "7d", "--json"]).await;
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
    let query = "SELECT count(*) FROM outbox_events";
    let row = fixture.sql.query_one(query, &[]).await;
    assert_eq!(row.expect("it is there").get::<_, i64>(0), 0);
    assert_eq!(partitions(&fixture).await, before);
    relay.stop().await;
    fixture
}

#[tokio::test]
async fn what_pg_partman_keeps_is_left_alone() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    write_extension(folder.path());
    let layout = include_str!("../../sql/outbox_events_partitioned.sql");
    let kept = "CREATE TABLE old PARTITION OF outbox_events FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
                INSERT INTO partman.part_config VALUES ('public.outbox_events')";
    only_rows_go(folder.path(), layout, kept, "'2020-01-01 12:00'").await;
}

#[tokio::test]
#[ignore = "needs pg_partman 4: WALRELAY_PARTMAN names the folder that has its files below extension/"]
async fn what_the_real_pg_partman_keeps_goes_by_its_own_retention() {
    let folder = std::env::var("WALRELAY_PARTMAN").expect("WALRELAY_PARTMAN names a folder");
    let layout =
        "CREATE TABLE outbox_events (LIKE plain INCLUDING ALL) PARTITION BY RANGE (occurred_at)";
    let plain = walrelay::outbox::SCHEMA_SQL.replace("outbox_events", "plain");
    let key = "ALTER TABLE plain DROP CONSTRAINT plain_pkey, ADD PRIMARY KEY (id, occurred_at)";
    let layout = format!("{plain}; {key}; {layout}");
    let kept = "SELECT partman.create_parent('public.outbox_events', 'occurred_at', 'native', 'daily',
                                             p_start_partition := (now() - interval '10 days')::text);
                UPDATE partman.part_config SET retention = '7 days', retention_keep_table = false";
    let day = "now() - interval '9 days'";
    let fixture = only_rows_go(Path::new(&folder), &layout, kept, day).await;
    let before = partitions(&fixture).await;
    let maintain = "SELECT partman.run_maintenance('public.outbox_events')";
    fixture.sql.batch_execute(maintain).await.expect("it runs");
    assert!(partitions(&fixture).await < before);
}
