//! Postgres loses, refuses or changes what the relay reads from: it halts and says so, or goes on, and never passes
//! over rows in silence where Postgres lets it know.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use rustix::process::Signal;

use crate::lane::{Restraint, holds_events, judge, judge_events, logs_from, more_events, share};
use crate::remedies::{mend, types};
use crate::support::{Fixture, Relay, Servers, Writer, eventually, uuid};

/// Ends the relay's replication connection while it cannot take a new one.
async fn without_the_slot(fixture: &Fixture, relay: &Relay) {
    relay.signal(Signal::STOP);
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active";
    eventually("nobody reads from the slot", async || {
        let rows = fixture.sql.query(end, &[&fixture.name]).await.unwrap();
        rows.is_empty().then_some(())
    })
    .await;
}

async fn running(fixture: &mut Fixture) -> Relay {
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    holds_events(fixture, 10).await;
    relay
}

async fn halts(relay: &mut Relay, words: &[&str]) {
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let log = relay.log();
    let halted = log.lines().rfind(|line| line.contains("halted: "));
    let halted = halted.unwrap_or_else(|| panic!("{log}"));
    for word in words {
        assert!(halted.contains(word), "no {word:?} in {halted}");
    }
}

#[tokio::test]
async fn the_slot_is_dropped_under_it() {
    let mut fixture = Fixture::new().await;
    let mut relay = running(&mut fixture).await;
    without_the_slot(&fixture, &relay).await;
    let drop = "SELECT pg_drop_replication_slot($1)";
    fixture.sql.query(drop, &[&fixture.name]).await.unwrap();
    fixture.insert(11, 11).await;
    relay.signal(Signal::CONT);
    halts(&mut relay, &["no replication slot", "walrelay backfill"]).await;
    // And one of the same name does not hold what is between: the relay does not take it for the old one.
    let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
    fixture.sql.query(create, &[&fixture.name]).await.unwrap();
    let mut relay = fixture.run();
    halts(&mut relay, &["walrelay adopt"]).await;
    assert_eq!(fixture.message_count().await, 10);
}

/// A slot that is not read loses its WAL soon.
pub(crate) const SMALL_WAL: [(&str, &str); 3] = [
    ("max_slot_wal_keep_size", "1MB"),
    ("min_wal_size", "32MB"),
    ("max_wal_size", "32MB"),
];

/// Writes WAL until the slot, which nobody reads, is lost.
pub(crate) async fn lose_slot(fixture: &Fixture) {
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = $1";
    eventually("the slot is lost", async || {
        // Little of it is sent: a walsender that is ended while a frozen relay leaves its socket full never comes to its end.
        let wal = "SELECT pg_switch_wal(); SELECT pg_logical_emit_message(false, 'test', 'x'); \
                   SELECT pg_switch_wal(); CHECKPOINT";
        fixture.sql.batch_execute(wal).await.unwrap();
        let row = fixture.sql.query_one(lost, &[&fixture.name]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_slot_is_invalidated() {
    for frozen in [false, true] {
        let mut fixture = Fixture::with_settings(&SMALL_WAL).await;
        fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
        let mut relay = running(&mut fixture).await;
        if frozen {
            relay.signal(Signal::STOP);
        } else {
            relay.kill();
        }
        lose_slot(&fixture).await;
        if frozen {
            relay.signal(Signal::CONT);
        } else {
            relay = fixture.run();
        }
        halts(&mut relay, &["lost"]).await;
        // For good.
        let mut relay = fixture.run();
        halts(&mut relay, &["lost", "walrelay setup", "walrelay backfill"]).await;
        assert_eq!(fixture.message_count().await, 10);
    }
}

#[tokio::test]
async fn a_publication_that_was_away_for_some_rows() {
    let mut fixture = Fixture::new().await;
    let name = fixture.name.clone();
    // Postgres 18 says it in a warning, which must not depend on what role or database have set.
    let quiet = format!("ALTER DATABASE {name} SET client_min_messages = error");
    fixture.sql.batch_execute(&quiet).await.unwrap();
    let mut relay = running(&mut fixture).await;
    // Dropped and made again before the relay reads any of it.
    relay.signal(Signal::STOP);
    let away = [
        format!("DROP PUBLICATION {name}"),
        crate::support::insert_sql(11, 12),
        format!("CREATE PUBLICATION {name} FOR TABLE outbox_events WITH (publish = 'insert')"),
        crate::support::insert_sql(13, 14),
    ];
    for sql in &away {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    relay.signal(Signal::CONT);
    halts(&mut relay, &["publication", "walrelay teardown"]).await;
    assert_eq!(fixture.message_count().await, 10);
    // For good, and what the message says is a way out.
    let mut relay = fixture.run();
    halts(&mut relay, &["publication", "walrelay teardown"]).await;
    // Postgres 18 suggests to create it, which does not help.
    assert!(!relay.log().contains("hint:"), "{}", relay.log());
    fixture.begin_again().await;
    let relay = fixture.run();
    fixture.insert(15, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_publication_without_the_table() {
    let mut fixture = Fixture::new().await;
    let mut relay = running(&mut fixture).await;
    let name = fixture.name.clone();
    let sql = format!("CREATE TABLE other (id int); ALTER PUBLICATION {name} SET TABLE other");
    let logged = relay.log().len();
    fixture.sql.batch_execute(&sql).await.unwrap();
    logs_from(&mut relay, logged, "ADD TABLE public.outbox_events").await;
    Restraint::of(&relay)
        .keeps(&relay, Duration::from_secs(1))
        .await;
    let sql = format!("ALTER PUBLICATION {name} ADD TABLE outbox_events");
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.insert(11, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    assert!(relay.log().contains("walrelay verify"), "{}", relay.log());
    relay.stop().await;
}

/// Takes the table out of the publication for the row `number`, which Postgres then never sends.
async fn away_for(fixture: &Fixture, number: u64) {
    let name = &fixture.name;
    for sql in [
        format!("ALTER PUBLICATION {name} DROP TABLE outbox_events"),
        crate::support::insert_sql(number, number),
        format!("ALTER PUBLICATION {name} ADD TABLE outbox_events"),
    ] {
        fixture.sql.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_table_that_was_out_of_the_publication_for_a_moment() {
    let mut fixture = Fixture::new().await;
    let mut relay = running(&mut fixture).await;
    let logged = relay.log().len();
    away_for(&fixture, 11).await;
    logs_from(&mut relay, logged, "walrelay verify").await;
    fixture.insert(12, 12).await;
    holds_events(&fixture, 11).await;
    // Said once: the next start finds nothing changed.
    relay.kill();
    let mut relay = fixture.run();
    relay.streams().await;
    assert!(!relay.log().contains("walrelay verify"), "{}", relay.log());
    // And also when it happens while no relay runs.
    relay.stop().await;
    away_for(&fixture, 13).await;
    let mut relay = fixture.run();
    relay.streams().await;
    assert!(relay.log().contains("walrelay verify"), "{}", relay.log());
    relay.stop().await;
    let verify = fixture.walrelay(&["verify"]).await;
    assert_ne!(verify.code, Some(0), "{}", verify.stdout);
    for missing in [uuid(11), uuid(13)] {
        let said = verify.stdout.contains(&missing.to_string());
        assert!(said, "{}{}", verify.stdout, verify.stderr);
    }
}

#[tokio::test]
async fn a_table_that_is_renamed_and_renamed_back() {
    let mut fixture = Fixture::new().await;
    let mut relay = running(&mut fixture).await;
    let renamed = format!(
        "ALTER TABLE outbox_events RENAME TO moved; {}",
        crate::support::insert_sql(11, 12).replace("outbox_events", "moved")
    );
    let logged = relay.log().len();
    fixture.sql.batch_execute(&renamed).await.unwrap();
    holds_events(&fixture, 12).await;
    without_the_slot(&fixture, &relay).await;
    relay.signal(Signal::CONT);
    logs_from(&mut relay, logged, "no table public.outbox_events").await;
    let back = "ALTER TABLE moved RENAME TO outbox_events";
    fixture.sql.batch_execute(back).await.unwrap();
    fixture.insert(13, 14).await;
    judge_events(&fixture, &(1..=14).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_table_that_is_dropped() {
    let mut fixture = Fixture::new().await;
    let mut relay = running(&mut fixture).await;
    let logged = relay.log().len();
    fixture.insert(11, 12).await;
    let drop = "DROP TABLE outbox_events";
    fixture.sql.batch_execute(drop).await.unwrap();
    let log = logs_from(&mut relay, logged, "waiting: there is no table").await;
    assert!(log.contains("walrelay setup --dry-run"), "{log}");
    Restraint::of(&relay)
        .keeps(&relay, Duration::from_secs(1))
        .await;
    let table = include_str!("../../sql/0001_outbox_events.sql");
    fixture.sql.batch_execute(table).await.unwrap();
    // The publication went with the table's entry.
    logs_from(&mut relay, logged, "ADD TABLE public.outbox_events").await;
    let sql = format!("ALTER PUBLICATION {} ADD TABLE outbox_events", fixture.name);
    fixture.sql.batch_execute(&sql).await.unwrap();
    fixture.insert(13, 20).await;
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_table_that_is_dropped_and_made_again() {
    let mut fixture = Fixture::bare().await;
    let table = include_str!("../../sql/0001_outbox_events.sql");
    let publication = format!("CREATE PUBLICATION {} FOR ALL TABLES", fixture.name);
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.sql.batch_execute(&publication).await.unwrap();
    fixture.setup().await;
    let mut relay = running(&mut fixture).await;
    // In one go; and with the relay away, behind an event that nobody has decoded.
    for round in 0..2 {
        let first = 11 + 2 * round;
        if round == 1 {
            relay.kill();
            fixture.insert(first, first).await;
        }
        fixture
            .sql
            .batch_execute("DROP TABLE outbox_events")
            .await
            .unwrap();
        fixture.sql.batch_execute(table).await.unwrap();
        fixture.insert(first + round, first + 1).await;
        if round == 1 {
            relay = fixture.run();
        }
        holds_events(&fixture, first + 1).await;
    }
    judge_events(&fixture, &(1..=14).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn postgres_crashes_under_a_shared_lane() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    share(&mut [&mut fixture], 1).await;
    let mut relay = fixture.run();
    let writer = Writer::start(&fixture).await;
    for _ in 0..3 {
        more_events(&fixture, 200).await;
        fixture.own_servers().postgres.kill();
        fixture.own_servers().postgres.start_again().await.unwrap();
    }
    more_events(&fixture, 200).await;
    assert!(relay.runs());
    judge(&fixture, writer).await;
    relay.stop().await;
}

#[tokio::test]
async fn rows_that_postgres_will_never_send() {
    let mut fixture = Fixture::bare().await;
    let name = fixture.name.clone();
    let table = "CREATE TABLE outbox_events (
            id uuid, aggregate_id uuid, event_type text NOT NULL, event_version smallint NOT NULL DEFAULT 1,
            occurred_at timestamptz NOT NULL DEFAULT now(), payload_json jsonb NOT NULL
        ) PARTITION BY RANGE (occurred_at);
        CREATE TABLE leaf PARTITION OF outbox_events DEFAULT";
    fixture.sql.batch_execute(table).await.unwrap();
    fixture.setup().await;
    let leaf = "CREATE UNLOGGED TABLE unlogged_leaf PARTITION OF outbox_events
                FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')";
    fixture.sql.batch_execute(leaf).await.unwrap();
    let refused = fixture.walrelay(&["run"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("ALTER TABLE public.unlogged_leaf SET LOGGED"),
        "{}",
        refused.stderr
    );
    fixture
        .sql
        .batch_execute("DROP TABLE unlogged_leaf")
        .await
        .unwrap();

    // A filter that a NULL escapes.
    let filter = format!(
        "ALTER PUBLICATION {name} SET TABLE outbox_events
         WHERE (aggregate_id <> '00000000-0000-0000-0000-000000000000')"
    );
    fixture.sql.batch_execute(&filter).await.unwrap();
    let mut relay = fixture.run();
    relay.streams().await;
    assert!(
        relay.log().contains("whose aggregate_id is null"),
        "{}",
        relay.log()
    );
    // Just such a row, and one behind it that comes.
    let rows = "INSERT INTO outbox_events (id, event_type, payload_json) VALUES (lpad('1', 32, '0')::uuid, 'a', '{}')";
    fixture.sql.batch_execute(rows).await.unwrap();
    fixture.insert(2, 2).await;
    fixture.holds(1).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_eq!(fixture.stored_ids().await, [uuid(2)]);
    // To verify it is no row of the publication, like any other that the filter leaves out: the start's warning stands.
    let verified = fixture.walrelay(&["verify", "--json"]).await.success();
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    let filter = format!("ALTER PUBLICATION {name} SET TABLE outbox_events");
    fixture.sql.batch_execute(&filter).await.unwrap();
    assert_eq!(report["rows"], 1, "{report}");
    // Without the filter it is.
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(report["missing"]["count"], 1, "{report}");
    let missing = &report["missing"]["examples"][0]["id"];
    assert_eq!(*missing, uuid(1).to_string(), "{report}");
}

/// A standby that is down holds the lane up, and is no reason to halt.
#[tokio::test]
async fn a_standby_that_postgres_waits_for_is_down() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.walrelay(&["setup", "--failover"]).await.success();
    let mut relay = running(&mut fixture).await;
    let logged = relay.log().len();
    for sql in [
        "SELECT pg_create_physical_replication_slot('standby_1', true)",
        "ALTER SYSTEM SET synchronized_standby_slots = 'standby_1'",
        "SELECT pg_reload_conf()",
    ] {
        fixture.sql.batch_execute(sql).await.unwrap();
    }
    // The walsender may take the reload after the row.
    let mut inserted = 10;
    eventually("the relay says that Postgres waits", async || {
        inserted += 1;
        fixture.insert(inserted, inserted).await;
        relay.log()[logged..].contains("standby_1").then_some(())
    })
    .await;
    // Postgres repeats it with each status update; without its slot it says something else.
    let log = |relay: &Relay| relay.log()[logged..].to_owned();
    let drop = "SELECT pg_drop_replication_slot('standby_1')";
    fixture.sql.batch_execute(drop).await.unwrap();
    eventually("the relay says that the slot is not there", async || {
        let waits = log(&relay).matches("sends nothing more").count();
        (waits >= 2).then_some(())
    })
    .await;
    let remedy = mend(&fixture, "standby-slots").await;
    types(&fixture, &remedy.expect("the standby is away")).await;
    assert_eq!(mend(&fixture, "standby-slots").await, None);
    judge_events(&fixture, &(1..=inserted).map(uuid).collect::<Vec<_>>()).await;
    relay.logs("Postgres sends on").await;
    let said = log(&relay);
    assert_eq!(said.matches("sends nothing more").count(), 2, "{said}");
    assert_eq!(said.matches("Postgres sends on").count(), 1, "{said}");
    relay.stop().await;
}

#[tokio::test]
async fn a_catalog_that_is_out_of_sight_is_told() {
    let mut fixture = Fixture::new().await;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = port.local_addr().unwrap().to_string();
    drop(port);
    fixture.set("WALRELAY_HTTP_LISTEN", listen);
    let mut relay = running(&mut fixture).await;
    fixture.walrelay(&["status"]).await.success();
    let logged = relay.log().len();
    fixture
        .sql
        .batch_execute("BEGIN; LOCK TABLE outbox_events")
        .await
        .unwrap();
    logs_from(&mut relay, logged, "has not been seen for 30s").await;
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(1), "{}", status.stdout);
    assert!(status.stdout.contains("streaming since"), "{status:?}");
    assert!(status.stdout.contains("a lock on the table"), "{status:?}");
    fixture.insert(11, 20).await;
    fixture.sql.batch_execute("COMMIT").await.unwrap();
    logs_from(&mut relay, logged, "the catalog is seen again").await;
    fixture.walrelay(&["status"]).await.success();
    judge_events(&fixture, &(1..=20).map(uuid).collect::<Vec<_>>()).await;
    let log = relay.log();
    assert_eq!(log.matches("has not been seen").count(), 1, "{log}");
    relay.stop().await;
}

/// At its start nothing can be looked at, and who is in the way is told, with what ends it.
#[tokio::test]
async fn a_lock_that_keeps_a_relay_from_its_start_is_told_with_its_holder() {
    let mut fixture = Fixture::new().await;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = port.local_addr().unwrap().to_string();
    drop(port);
    fixture.set("WALRELAY_HTTP_LISTEN", listen);
    fixture.insert(1, 10).await;
    let holder = fixture.connect().await;
    holder
        .batch_execute("BEGIN; LOCK TABLE outbox_events")
        .await
        .unwrap();
    let pid: i32 = holder
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let mut relay = fixture.run();
    let told = format!("is locked (ACCESS EXCLUSIVE) by process {pid} of Postgres");
    relay.logs(&told).await;
    let status = fixture.walrelay(&["status"]).await;
    assert!(status.stdout.contains(&told), "{status:?}");
    let doctor = fixture.walrelay(&["doctor", "--json"]).await;
    assert_eq!(doctor.code, Some(3), "{}", doctor.stdout);
    let report: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let has = |code: &str| findings.iter().find(|finding| finding["code"] == code);
    // What needs no lock is looked at nevertheless.
    assert!(has("slot-limit").is_some(), "{report}");
    let remedy = has("locked").expect("the lock")["mend"].as_str().unwrap();
    let end = format!("SELECT pg_terminate_backend({pid});");
    assert!(remedy.ends_with(&end), "{remedy}");
    fixture.sql.batch_execute(&end).await.unwrap();
    judge_events(&fixture, &(1..=10).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_time_out_for_slots_that_nobody_reads_is_warned_of() {
    let settings = [("idle_replication_slot_timeout", "3min")];
    let mut fixture = Fixture::with_settings(&settings).await;
    let warning = "idle_replication_slot_timeout is 3min";
    let said = fixture.walrelay(&["setup"]).await.success();
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains(warning), "{said}");
    let mut relay = fixture.run();
    relay.logs(warning).await;
    relay.stop().await;
    let (_, remedy) = said.split_once("so long").unwrap();
    let (_, remedy) = remedy.split_once("run ").unwrap();
    let remedy = remedy.lines().next().unwrap();
    for statement in remedy.split_inclusive(';') {
        fixture.sql.batch_execute(statement).await.unwrap();
    }
    eventually("the server has read it", async || {
        let said = fixture.walrelay(&["setup"]).await.success();
        (!format!("{}{}", said.stdout, said.stderr).contains(warning)).then_some(())
    })
    .await;
}
