//! A primary and its standby, real ones, that change places under load: what becomes of the slot, and of the events.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use tokio_postgres::Client;
use walrelay::local::{LocalPostgres, Mode};

use crate::lane::{logs_from, more_events};
use crate::support::{
    Fixture, Relay, Servers, Writer, assert_exactly_once, binaries, eventually, options, uuid,
};
use crate::timelines::{as_owner, is_promoted};

/// The same on both servers, since either comes to be the primary. `peer` is the physical slot of the one that is the standby.
const SETTINGS: [(&str, &str); 6] = [
    ("synchronized_standby_slots", "peer"),
    ("primary_slot_name", "peer"),
    ("sync_replication_slots", "on"),
    ("hot_standby_feedback", "on"),
    // For pg_rewind.
    ("wal_log_hints", "on"),
    ("wal_keep_size", "1GB"),
];
const MAKE_PEER: &str = "SELECT pg_create_physical_replication_slot('peer', true)";
/// More than all rounds take.
const EVENTS_MAX: u64 = 1_000_000;

/// A lane on the server that is the primary, and the other one.
struct Pair {
    fixture: Fixture,
    other: LocalPostgres,
}

/// A program of Postgres, which has to succeed.
pub(crate) fn succeeds(command: &mut Command) {
    let done = command.output().expect("the program is there");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}

/// Where a standby gets its WAL and the state of the slots from.
fn conninfo(primary: &LocalPostgres) -> String {
    let port = primary.port();
    format!("host=127.0.0.1 port={port} user=postgres dbname=postgres")
}

/// Makes what is in the data folder a standby of this primary.
fn follow(data: &Path, primary: &LocalPostgres) {
    let line = format!("primary_conninfo = '{}'\n", conninfo(primary));
    let mut configuration = std::fs::File::options()
        .append(true)
        .open(data.join("postgresql.auto.conf"))
        .unwrap();
    configuration.write_all(line.as_bytes()).unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
}

impl Pair {
    /// On Postgres `major`, set up with these further arguments, and with these synchronous standbys.
    async fn start(major: u32, synchronous: &str, setup: &[&str]) -> Pair {
        let binaries = binaries().with_postgres_major(major).expect("it is there");
        let servers = Servers::of(binaries.clone(), options(&SETTINGS)).await;
        let fixture = Fixture::bare_on(servers).await;
        fixture.sql.batch_execute(MAKE_PEER).await.unwrap();
        // For its folder and its port.
        let other = LocalPostgres::start(&binaries, options(&[])).await;
        let mut pair = Pair {
            other: other.expect("Postgres starts"),
            fixture,
        };
        let names = format!("ALTER SYSTEM SET synchronous_standby_names = '{synchronous}'");
        pair.fixture.sql.batch_execute(&names).await.unwrap();
        pair.copy_primary().await;
        // Not before: a commit waits for the standby.
        let reload = "SELECT pg_reload_conf()";
        pair.fixture.sql.batch_execute(reload).await.unwrap();
        let url = pair.url();
        pair.fixture.set("WALRELAY_POSTGRES_URL", url);
        let made = pair.fixture.walrelay(&[&["setup"], setup].concat()).await;
        made.success();
        pair
    }

    async fn copy_primary(&mut self) {
        self.other.stop(Mode::Immediate).await.unwrap();
        let data = self.other.data_dir();
        for entry in std::fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => std::fs::remove_dir_all(path).unwrap(),
                false => std::fs::remove_file(path).unwrap(),
            }
        }
        let primary = &self.fixture.servers().postgres;
        let program = primary.bin("pg_basebackup");
        succeeds(
            as_owner(&data, &program)
                .args(["--checkpoint", "fast", "--wal-method", "stream"])
                .args(["--dbname", &conninfo(primary)])
                .arg("--pgdata")
                .arg(&data),
        );
        follow(&data, primary);
        self.other.start_again().await.unwrap();
    }

    /// Both servers, and the one of them that takes writes.
    fn url(&self) -> String {
        let primary = &self.fixture.servers().postgres;
        let (here, there) = (primary.port(), self.other.port());
        let name = &self.fixture.name;
        format!(
            "postgres://postgres@127.0.0.1:{here},127.0.0.1:{there}/{name}?target_session_attrs=read-write"
        )
    }

    async fn standby(&self) -> Client {
        let connected = self.other.connect("postgres").await;
        connected.expect("the standby takes readers")
    }

    /// Waits until the standby has the slot, for good.
    async fn slot_is_synced(&self) {
        let sql = "SELECT FROM pg_replication_slots
                   WHERE slot_name = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL";
        let standby = self.standby().await;
        // By itself the server writes what that waits for every 15 seconds.
        let running = "SELECT pg_log_standby_snapshot()";
        eventually("the standby has the slot", async || {
            self.fixture.sql.batch_execute(running).await.unwrap();
            standby.query_opt(sql, &[&self.fixture.name]).await.unwrap()
        })
        .await;
    }

    /// The primary dies, and its standby is promoted.
    async fn fail_over(&mut self) {
        let postgres = &mut self.fixture.own_servers().postgres;
        postgres.kill();
        std::mem::swap(postgres, &mut self.other);
        self.fixture.reconnect().await;
        let promote = "SELECT pg_promote()";
        self.fixture.sql.query(promote, &[]).await.unwrap();
        is_promoted(&self.fixture).await;
    }

    /// The old primary comes back as the standby of the new one.
    async fn rejoin(&mut self) {
        let primary = &self.fixture.servers().postgres;
        let data = self.other.data_dir();
        let program = primary.bin("pg_rewind");
        succeeds(
            as_owner(&data, &program)
                .args(["--source-server", &conninfo(primary)])
                .arg("--target-pgdata")
                .arg(&data),
        );
        follow(&data, primary);
        self.fixture.sql.batch_execute(MAKE_PEER).await.unwrap();
        self.other.start_again().await.unwrap();
    }

    /// So many promotions under load. All that the last primary has is in the stream, in its order, and nothing else.
    async fn change_places(&mut self, times: usize, relay: &mut Relay) {
        let writer = Writer::start_at(&self.fixture, &self.url(), EVENTS_MAX).await;
        for round in 1..=times {
            more_events(&self.fixture, 200).await;
            let begun = Instant::now();
            self.slot_is_synced().await;
            let synced = begun.elapsed();

            let logged = relay.log().len();
            self.fail_over().await;
            let promoted = begun.elapsed() - synced;

            self.rejoin().await;

            logs_from(relay, logged, "streaming").await;
            let rest = begun.elapsed() - synced - promoted;
            eprintln!(
                "{round}: slot synced {synced:.1?}, promoted {promoted:.1?}, rejoined and streaming {rest:.1?}"
            );
        }
        more_events(&self.fixture, 200).await;
        let told = writer.committed();
        let committed = writer.stop(&self.fixture).await;
        if self.is_synchronous().await {
            assert!(committed.len() as u64 >= told, "Postgres lost a commit");
        }
        self.fixture.holds(committed.len() as u64).await;
        assert_exactly_once(&committed, &self.fixture.stored_ids().await);
    }

    async fn is_synchronous(&self) -> bool {
        let sql = "SELECT current_setting('synchronous_standby_names') <> ''";
        let row = self.fixture.sql.query_one(sql, &[]).await;
        row.unwrap().get(0)
    }
}

#[tokio::test]
async fn a_standby_with_the_slot_takes_over_under_load() {
    let mut pair = Pair::start(18, "", &["--failover"]).await;
    let mut relay = pair.fixture.run();
    pair.change_places(1, &mut relay).await;
    relay.stop().await;
    pair.fixture.walrelay(&["verify"]).await.success();
}

/// The commands in a text, in their order, each once.
fn commands(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for part in text.split("walrelay ").skip(1) {
        let name = part.split(|c: char| !c.is_ascii_lowercase()).next();
        found.extend(name.filter(|name| !found.contains(name)));
    }
    found
}

/// What the relay then says is typed as it is printed.
async fn a_standby_without_the_slot_takes_over(major: u32) {
    let mut pair = Pair::start(major, "", &[]).await;
    let mut relay = pair.fixture.run();
    pair.fixture.insert(1, 10).await;
    pair.fixture.holds(10).await;
    let lsn = pair.fixture.server_lsn().await;
    let standby = pair.standby().await;
    let replayed = "SELECT pg_last_wal_replay_lsn() >= $1";
    eventually("the standby has the events", async || {
        let row = standby.query_one(replayed, &[&lsn]).await.unwrap();
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    pair.fail_over().await;
    pair.fixture.insert(11, 20).await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    let log = relay.log();
    let (_, said) = log.split_once("halted: ").expect("a remedy");
    let typed = commands(said.lines().next().unwrap());
    assert_eq!(typed, ["setup", "adopt", "backfill"], "{said}");
    for name in typed {
        let yes: &[&str] = if name == "adopt" { &["--yes"] } else { &[] };
        let done = pair.fixture.walrelay(&[&[name], yes].concat()).await;
        done.success();
    }
    let relay = pair.fixture.run();
    pair.fixture.insert(21, 30).await;
    pair.fixture.holds(30).await;
    relay.stop().await;
    assert_exactly_once(
        &(1..=30).map(uuid).collect::<Vec<_>>(),
        &pair.fixture.stored_ids().await,
    );
}

#[tokio::test]
#[ignore = "needs Postgres 17: make failover"]
async fn without_the_slot_the_commands_that_are_printed_help() {
    for major in [17, 18] {
        a_standby_without_the_slot_takes_over(major).await;
    }
}

/// Ten times, on this Postgres.
async fn two_servers_change_places(major: u32, standby_names: &str, hold_back: &str) {
    let mut pair = Pair::start(major, standby_names, &["--failover"]).await;
    pair.fixture.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
    let mut relay = pair.fixture.run();
    pair.change_places(10, &mut relay).await;
    relay.stop().await;
    pair.fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
#[ignore = "needs Postgres 17, and minutes: make failover"]
async fn two_servers_change_places_again_and_again_synchronously() {
    for major in [17, 18] {
        two_servers_change_places(major, "*", "0s").await;
    }
}

#[tokio::test]
#[ignore = "needs Postgres 17, and minutes: make failover"]
async fn two_servers_change_places_again_and_again_asynchronously() {
    for major in [17, 18] {
        two_servers_change_places(major, "", "2s").await;
    }
}
