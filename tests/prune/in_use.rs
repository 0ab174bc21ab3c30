//! A partition that somebody reads while it is to go.

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::command::{LIMIT, PRUNE, pruned, waiting};
use crate::ended::remedy;
use crate::partitions::{insert_at, old_partition, partitioned};
use crate::platform::{Platform, Relay, ends, signal};

/// Partitions of ten and of nine days ago, with three and two rows, all published, in a table without a default partition; their names.
async fn old() -> (Platform, Relay, [String; 2]) {
    let platform = partitioned().await;
    let without_default = "DROP TABLE public.outbox_events_default";
    let dropped = platform.sql.batch_execute(without_default).await;
    dropped.expect("dropped");
    let (first, time) = old_partition(&platform, 10).await;
    let (second, later) = old_partition(&platform, 9).await;
    platform.expect(&["setup"], 0).await;
    let relay = platform.relay();
    insert_at(&platform, "gen_random_uuid()", &time, 3).await;
    insert_at(&platform, "gen_random_uuid()", &later, 2).await;
    platform.insert(1).await;
    platform.wait_for(6).await;
    (platform, relay, [first, second])
}

/// A session whose open transaction has read it, and its process.
async fn reading(platform: &Platform, table: &str) -> (tokio_postgres::Client, i32) {
    let read = format!("SELECT count(*) FROM {table}");
    let session = platform.begins(&read).await;
    let pid = session.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid = pid.expect("a number").get(0);
    (session, pid)
}

/// Runs the SQL that the note gives as what ends whoever is in the way, and waits until it has.
async fn cure(platform: &Platform, note: &str, pid: i32) {
    assert!(note.contains(&format!("pid {pid}")), "{note}");
    let (_, sql) = note.split_once("or run ").expect(note);
    let (sql, then) = sql.split_once("; ").expect(note);
    assert_eq!(then, "run this again then");
    platform.sql.query(sql, &[]).await.expect("it is SQL");
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    platform.counts(&gone, 0).await;
}

/// Waits until a statement of this run that begins so waits for a lock.
async fn waits_for_a_lock(platform: &Platform, mut prune: Child, begin: &str) -> Child {
    let is_over = tokio::select! {
        _ = prune.wait() => true,
        () = platform.waits_for_a_lock(begin) => false,
    };
    if is_over {
        panic!("it waits for no lock: {:?}", ends(prune).await);
    }
    prune
}

/// Reads its standard error up to the line that has this.
async fn says(mut prune: Child, part: &str) -> (Child, String) {
    let mut lines = BufReader::new(prune.stderr.take().expect("piped")).lines();
    let said = async {
        loop {
            let line = lines.next_line().await.expect("it is read");
            let line = line.expect("it says that before its end");
            if line.contains(part) {
                return line;
            }
        }
    };
    let said = tokio::time::timeout(LIMIT, said).await;
    let said = said.expect("it says that in time");
    prune.stderr = Some(lines.into_inner().into_inner());
    (prune, said)
}

/// Nothing of a prune is left at work in the server.
async fn nothing_is_left_at_work(platform: &Platform) {
    let at_work = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walrelay' \
                   AND (query LIKE 'ALTER TABLE%' OR query LIKE '%LOCK TABLE%') AND state <> 'idle'";
    platform.counts(at_work, 0).await;
}

#[tokio::test]
async fn who_reads_what_is_to_be_detached_is_named_by_the_first_run() {
    let (platform, relay, [first, second]) = old().await;
    let (_reading, pid) = reading(&platform, &first).await;
    let done = pruned(&platform, &["--wait", "2s"], 1).await;
    assert_eq!((&done["done"], &done["rows"]), (&json!(false), &json!(2)));
    let notes = done["notes"].as_array().expect("a list");
    let notes: Vec<&str> = notes.iter().filter_map(Value::as_str).collect();
    let begin = format!("{first} is still being detached from public.outbox_events: ");
    assert!(notes[0].starts_with(&begin), "{notes:?}");
    let begin = format!("{second} is not detached while {first} is still being detached");
    assert!(notes[1].starts_with(&begin), "{notes:?}");
    nothing_is_left_at_work(&platform).await;

    cure(&platform, notes[0], pid).await;
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([first, second]));
    assert_eq!(platform.rows().await, 1);
    relay.stop().await;
    platform.verify(0).await;
}

/// Of one partition, and of the whole table.
#[tokio::test]
async fn a_prune_that_waits_for_a_reader_is_stopped_by_a_signal() {
    let (platform, relay, [first, second]) = old().await;
    for (table, sent) in [
        (first.as_str(), Signal::TERM),
        ("outbox_events", Signal::INT),
    ] {
        let (session, pid) = reading(&platform, table).await;
        let prune = platform.spawn(PRUNE);
        let prune = waits_for_a_lock(&platform, prune, "ALTER TABLE").await;
        signal(&prune, sent);
        let output = ends(prune).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("nobody sees the rows of {first}"))
                && said.contains("run this again"),
            "{said}"
        );
        assert!(!said.contains("second signal"), "{said}");
        nothing_is_left_at_work(&platform).await;
        drop(session);
        let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        platform.counts(&gone, 0).await;
        let sql = remedy(&platform).await.expect("it is told");
        platform.sql.batch_execute(&sql).await.expect("it is SQL");
        assert_eq!(platform.rows().await, 6);
    }
    let done = pruned(&platform, &[], 0).await;
    assert_eq!(done["partitions"], json!([first, second]));
    assert_eq!(platform.rows().await, 1);
    relay.stop().await;
    platform.verify(0).await;
}

/// The relay with another hold-back, once it reads the slot.
async fn relay_with(platform: &mut Platform, relay: Relay, hold_back: &str) -> Relay {
    relay.stop().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
    let relay = platform.relay();
    let read = "SELECT count(*) FROM pg_replication_slots WHERE active";
    platform.counts(read, 1).await;
    relay
}

/// It is detached already, and somebody has begun to read it while the slots were waited for.
#[tokio::test]
async fn who_reads_what_is_to_be_dropped_is_named_and_a_signal_ends_the_wait() {
    let (mut platform, mut relay, [first, second]) = old().await;
    for sent in [Some(Signal::TERM), None] {
        relay = relay_with(&mut platform, relay, "1h").await;
        platform.insert(1).await;
        let prune = waiting(&platform).await;
        let (_session, pid) = reading(&platform, &first).await;
        relay = relay_with(&mut platform, relay, "0s").await;
        platform
            .waits_for_a_lock("BEGIN; SET LOCAL lock_timeout")
            .await;
        let (prune, told) = says(prune, "can be dropped: ").await;
        assert!(
            told.contains(&first) && told.contains(&format!("pid {pid}")),
            "{told}"
        );
        match sent {
            Some(sent) => signal(&prune, sent),
            None => {
                let (_, sql) = told.split_once("or run ").expect(&told);
                platform.sql.query(sql, &[]).await.expect("it is SQL");
            }
        }
        let output = ends(prune).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), said.contains("run this again")),
            (Some(i32::from(sent.is_some())), sent.is_some()),
            "{said}"
        );
        nothing_is_left_at_work(&platform).await;
    }
    let gone = format!(
        "SELECT count(*) FROM pg_class WHERE oid IN (to_regclass('{first}'), to_regclass('{second}'))"
    );
    assert_eq!(platform.number(&gone).await, 0);
    relay.stop().await;
    platform.verify(0).await;
}
