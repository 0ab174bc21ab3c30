//! The application's triggers, where walrelay changes or deletes rows: they run as in any other session, and what they keep is told.

mod platform;
mod statements;

use std::time::Duration;

use platform::Platform;
use statements::statements;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(180);
const AGGREGATE: &str = "11111111-1111-4111-8111-111111111111";
const PRUNE: [&str; 3] = ["prune", "--older-than", "0s"];
const ERASE: [&str; 4] = ["erase", "--aggregate-id", AGGREGATE, "--yes"];

/// Notes each row that is changed or deleted, by names without a schema.
const AUDIT: &str = "CREATE TABLE audited (what text);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO audited VALUES (TG_OP || TG_WHEN); RETURN coalesce(NEW, OLD); END $$;
    CREATE TRIGGER early BEFORE UPDATE OR DELETE ON outbox_events FOR EACH ROW EXECUTE FUNCTION audit();
    CREATE CONSTRAINT TRIGGER late AFTER UPDATE OR DELETE ON outbox_events DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION audit();
    ALTER TABLE audited ENABLE ROW LEVEL SECURITY;
    CREATE POLICY anybody ON audited WITH CHECK (true);
    CREATE ROLE eraser LOGIN REPLICATION;
    GRANT SELECT, DELETE ON outbox_events TO eraser;
    GRANT INSERT ON audited TO eraser;
    ALTER TABLE outbox_events ADD COLUMN dispatched_at timestamptz";

/// Keeps each row, and notes that somebody wanted to delete it.
const KEEP: &str = "ALTER TABLE outbox_events ADD COLUMN deleted boolean;
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE outbox_events SET deleted = true WHERE id = OLD.id; RETURN NULL; END $$;
    CREATE TRIGGER \"Soft\" BEFORE DELETE ON outbox_events FOR EACH ROW EXECUTE FUNCTION keep()";

async fn count(platform: &Platform, from: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {from}");
    platform.number(&query).await
}

async fn reaches(platform: &Platform, from: &str, wanted: i64) {
    let query = format!("SELECT count(*) FROM {from}");
    platform.counts(&query, wanted).await;
}

async fn insert(platform: &Platform, rows: u32) {
    let insert = format!(
        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
         SELECT gen_random_uuid(), '{AGGREGATE}', 'lesson.published.v1', '{{}}' FROM generate_series(1, {rows})"
    );
    platform.sql.batch_execute(&insert).await.expect("inserted");
}

async fn run_sql(platform: &Platform, sql: &str) {
    platform.sql.batch_execute(sql).await.expect(sql);
}

/// What lets the rows go, and what is for afterwards.
fn remedy(said: &str) -> (String, String) {
    let typed = statements(said);
    let [off, on] = &typed[..] else {
        panic!("{typed:?} in {said}")
    };
    (off.clone(), on.clone())
}

#[tokio::test]
async fn triggers_find_what_they_find_under_the_application() {
    let mut platform = Platform::start().await;
    run_sql(&platform, AUDIT).await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "mark");
    let relay = platform.relay();
    insert(&platform, 3).await;
    for when in ["BEFORE", "AFTER"] {
        let noted = format!("audited WHERE what = 'UPDATE{when}'");
        reaches(&platform, &noted, 3).await;
    }
    relay.stop().await;
    assert_eq!(
        count(&platform, "outbox_events WHERE dispatched_at IS NULL").await,
        0
    );

    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let relay = platform.relay();
    insert(&platform, 4).await;
    reaches(&platform, "audited WHERE what = 'DELETEAFTER'", 7).await;
    relay.stop().await;
    assert_eq!(count(&platform, "outbox_events").await, 0);

    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "keep");
    let relay = platform.relay();
    // Who is not the audit's owner is subject to its policies.
    let url = platform.postgres.url("postgres");
    platform.set("DATABASE_URL", &url.replacen("postgres@", "eraser@", 1));
    for (command, noted) in [(&PRUNE[..], 12), (&ERASE[..], 17)] {
        insert(&platform, 5).await;
        platform.wait_for(u64::try_from(noted).unwrap()).await;
        platform.expect(command, 0).await;
        for when in ["BEFORE", "AFTER"] {
            let of_deletion = format!("audited WHERE what = 'DELETE{when}'");
            assert_eq!(count(&platform, &of_deletion).await, noted, "{command:?}");
        }
        assert_eq!(count(&platform, "outbox_events").await, 0);
    }
    relay.stop().await;
}

/// What a trigger is given beyond its own search path, the statement around it is not: it is read before.
#[tokio::test]
async fn an_operator_of_the_application_does_not_choose_rows() {
    let mut platform = Platform::start().await;
    let trap = "ALTER TABLE outbox_events ALTER COLUMN id TYPE varchar;
        CREATE FUNCTION public.never(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.never);
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
        CREATE TRIGGER early BEFORE DELETE ON outbox_events FOR EACH ROW EXECUTE FUNCTION nothing()";
    run_sql(&platform, trap).await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    insert(&platform, 3).await;
    let by_the_trap = "outbox_events WHERE id = ANY (SELECT id FROM outbox_events)";
    assert_eq!(count(&platform, by_the_trap).await, 0);
    let relay = platform.relay();
    reaches(&platform, "outbox_events", 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_a_trigger_keeps_are_told_by_commands() {
    let platform = Platform::start().await;
    run_sql(&platform, KEEP).await;
    let relay = platform.relay();
    let mut published = 0;
    for command in [&PRUNE[..], &ERASE[..]] {
        insert(&platform, 3).await;
        published += 3;
        platform.wait_for(published).await;
        let said = platform.expect(command, 1).await;
        assert!(said.contains("trigger \"Soft\""), "{said}");
        assert_eq!(count(&platform, "outbox_events").await, 3);
        let (off, on) = remedy(&said);
        run_sql(&platform, &off).await;
        platform.expect(command, 0).await;
        assert_eq!(count(&platform, "outbox_events").await, 0);
        run_sql(&platform, &on).await;
    }
    let enabled = "pg_trigger WHERE tgname = 'Soft' AND tgenabled = 'O'";
    assert_eq!(count(&platform, enabled).await, 1);
    // A rule does the same.
    let rule = "DROP TRIGGER \"Soft\" ON outbox_events;
        CREATE RULE stays AS ON DELETE TO outbox_events DO INSTEAD NOTHING";
    run_sql(&platform, rule).await;
    insert(&platform, 3).await;
    platform.wait_for(published + 3).await;
    for command in [&PRUNE[..], &ERASE[..]] {
        let said = platform.expect(command, 1).await;
        assert!(said.contains("rule stays"), "{said}");
    }
    let said = platform.expect(&ERASE, 1).await;
    run_sql(&platform, &remedy(&said).0).await;
    platform.expect(&ERASE, 0).await;
    assert_eq!(count(&platform, "outbox_events").await, 0);
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_a_trigger_keeps_are_told_by_the_relay() {
    let mut platform = Platform::start().await;
    run_sql(&platform, KEEP).await;
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    let mut relay = platform
        .command(&["run"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the relay starts");
    insert(&platform, 3).await;
    let mut log = BufReader::new(relay.stderr.take().expect("it was asked for")).lines();
    let told = async {
        loop {
            let line = log.next_line().await.expect("read").expect("it runs on");
            if line.contains("published rows are not deleted") {
                return line;
            }
        }
    };
    let told = tokio::time::timeout(LIMIT, told).await.expect("told");
    assert!(told.contains("trigger \"Soft\""), "{told}");
    let (off, _) = remedy(&told);
    assert_eq!(count(&platform, "outbox_events").await, 3);
    run_sql(&platform, &off).await;
    reaches(&platform, "outbox_events", 0).await;
    relay.kill().await.expect("it ends");
}
