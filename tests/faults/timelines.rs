//! A standby takes over that lacks the newest WAL, or the database is recovered to an earlier point: what the lane may go
//! on with, and what a person has to look at.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use walrelay::local::Mode;

use crate::broker_loses::copy;
use crate::lane::judge_events;
use crate::support::{Fixture, eventually, uuid};

/// Stops Postgres, changes its data folder, and starts it again.
pub(crate) async fn restart_with(fixture: &mut Fixture, change: impl FnOnce(&Path)) {
    let data = fixture.servers().postgres.data_dir();
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    change(&data);
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
}

/// A lane that has published ten events and confirmed WAL without events behind them; then a standby that has the
/// events, but not that WAL, is promoted in the primary's place.
async fn promoted() -> Fixture {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let standby = fixture
        .servers()
        .postgres
        .data_dir()
        .with_file_name("standby");
    restart_with(&mut fixture, |data| copy(data, &standby)).await;
    let relay = fixture.run();
    goes_on_without_events(&fixture).await;
    relay.stop().await;
    promote(&mut fixture, &standby).await;
    fixture
}

/// Writes 10 MB of WAL of another table, and waits until it is confirmed.
async fn goes_on_without_events(fixture: &Fixture) {
    let other = "CREATE TABLE other AS SELECT repeat('x', 500) FROM generate_series(1, 20000)";
    fixture.sql.batch_execute(other).await.unwrap();
    fixture.confirms(fixture.server_lsn().await).await;
}

/// The server's place is taken by a standby with this data, which is promoted.
async fn promote(fixture: &mut Fixture, standby: &Path) {
    restart_with(fixture, |data| {
        copy(standby, data);
        std::fs::write(data.join("standby.signal"), "").unwrap();
    })
    .await;
    let promote = "SELECT pg_promote()";
    fixture.sql.query(promote, &[]).await.unwrap();
    is_promoted(fixture).await;
}

pub(crate) async fn is_promoted(fixture: &Fixture) {
    eventually("the server is promoted", async || {
        let row = fixture
            .sql
            .query_one("SELECT pg_is_in_recovery()", &[])
            .await;
        (!row.unwrap().get::<_, bool>(0)).then_some(())
    })
    .await;
}

/// A lane that has published twenty events; then a base backup with five of them is recovered to where there were ten.
/// `pg_basebackup` leaves the slots out, a snapshot of the storage has them.
async fn recovered(with_slot: bool) -> Fixture {
    // Both commands run in the data folder.
    let settings = [
        ("archive_mode", "on"),
        ("archive_command", "cp %p ../archive/%f"),
        ("restore_command", "cp ../archive/%f %p"),
    ];
    let mut fixture = Fixture::with_settings(&settings).await;
    let data = fixture.servers().postgres.data_dir();
    let archive = data.with_file_name("archive");
    std::fs::create_dir(&archive).unwrap();
    // The server may be another user than the test.
    std::fs::set_permissions(&archive, Permissions::from_mode(0o777)).unwrap();
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let base = data.with_file_name("base");
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    copy(&data, &base);
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    let relay = fixture.run();
    fixture.insert(6, 10).await;
    let target = fixture.server_lsn().await;
    fixture.insert(11, 20).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    assert_eq!(fixture.message_count().await, 20);

    let current = "SELECT pg_walfile_name(pg_current_wal_lsn())";
    let row = fixture.sql.query_one(current, &[]).await.unwrap();
    let last: String = row.get(0);
    let switch = "SELECT pg_switch_wal()";
    fixture.sql.query(switch, &[]).await.unwrap();
    eventually(format!("{last} is archived"), async || {
        archive.join(&last).exists().then_some(())
    })
    .await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    copy(&base, &data);
    if !with_slot {
        let slot = data.join("pg_replslot").join(&fixture.name);
        std::fs::remove_dir_all(slot).unwrap();
    }
    std::fs::write(data.join("recovery.signal"), "").unwrap();
    let lines = format!("recovery_target_lsn = '{target}'\nrecovery_target_action = 'promote'\n");
    let mut configuration = File::options()
        .append(true)
        .open(data.join("postgresql.auto.conf"))
        .unwrap();
    configuration.write_all(lines.as_bytes()).unwrap();
    fixture.own_servers().postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    is_promoted(&fixture).await;
    let rows = "SELECT count(*) FROM outbox_events";
    let row = fixture.sql.query_one(rows, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 10, "recovered to {target}");
    fixture
}

#[tokio::test]
async fn a_recovery_to_an_earlier_point_is_looked_at_by_a_person() {
    for with_slot in [true, false] {
        let mut fixture = recovered(with_slot).await;
        fixture.insert(31, 33).await;
        if !with_slot {
            let made = fixture.walrelay(&["setup"]).await.success();
            assert!(made.stdout.contains("walrelay adopt"), "{}", made.stdout);
        }
        fixture.insert(34, 35).await;
        // Again and again the same.
        for _ in 0..2 {
            let mut relay = fixture.run();
            assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
            assert!(relay.log().contains("walrelay adopt"), "{}", relay.log());
            assert_eq!(fixture.message_count().await, 20, "nothing was published");
        }
        fixture.walrelay(&["adopt", "--yes"]).await.success();
        let relay = fixture.run();
        eventually("it goes on", async || {
            let stored = fixture.stored().await;
            let last = uuid(35).to_string();
            stored.last()?.body.contains(&last).then_some(())
        })
        .await;
        relay.stop().await;
        if !with_slot {
            fixture.walrelay(&["backfill"]).await.success();
        }
        // What was published and is in no table any more has a name.
        let verified = fixture.walrelay(&["verify", "--json"]).await;
        assert_eq!(verified.code, Some(1), "{}", verified.stdout);
        let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
        let count = |what: &str| report[what]["count"].as_u64().unwrap();
        assert_eq!(count("phantom"), 10, "{report}");
        let named = report["phantom"]["examples"][0]["id"].as_str().unwrap();
        assert!((11..=20).any(|n| uuid(n).to_string() == named), "{report}");
        for what in ["missing", "doubled", "out_of_order"] {
            assert_eq!(count(what), 0, "{what}: {report}");
        }
    }
}

#[tokio::test]
async fn the_slot_came_over() {
    let mut fixture = promoted().await;
    fixture.insert(11, 15).await;
    let relay = fixture.run();
    judge_events(&fixture, &(1..=15).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

#[tokio::test]
async fn a_slot_that_was_made_after_the_promotion_is_looked_at_by_a_person() {
    let mut fixture = promoted().await;
    fixture.insert(11, 15).await;
    let drop = format!("SELECT pg_drop_replication_slot('{}')", fixture.name);
    fixture.sql.batch_execute(&drop).await.unwrap();
    let made = fixture.walrelay(&["setup"]).await.success();
    assert!(made.stdout.contains("walrelay adopt"), "{}", made.stdout);
    fixture.insert(16, 18).await;
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(relay.log().contains("made it anew"), "{}", relay.log());
    assert_eq!(fixture.message_count().await, 10, "nothing was published");
    goes_on_with_the_rest(&mut fixture, 13).await;
}

/// Of a slot that was made behind five or seven events: `adopt`, `run` and `backfill` bring all of them, each once.
async fn goes_on_with_the_rest(fixture: &mut Fixture, count: u64) {
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.holds(count).await;
    relay.stop().await;
    fixture.walrelay(&["backfill"]).await.success();
    let verified = fixture.walrelay(&["verify", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(
        (&report["missing"]["count"], &report["doubled"]["count"]),
        (&0.into(), &0.into()),
        "{report}"
    );
}

/// A is promoted and lost, then B, which never followed A: both call their timeline 2.
#[tokio::test]
async fn a_second_standby_that_took_the_same_timeline_is_looked_at_by_a_person() {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let data = fixture.servers().postgres.data_dir();
    let (first, second) = (data.with_file_name("a"), data.with_file_name("b"));
    restart_with(&mut fixture, |data| copy(data, &second)).await;
    let some = "CREATE TABLE a_little AS SELECT repeat('x', 500) FROM generate_series(1, 100)";
    fixture.sql.batch_execute(some).await.unwrap();
    restart_with(&mut fixture, |data| copy(data, &first)).await;
    promote(&mut fixture, &first).await;
    let relay = fixture.run();
    goes_on_without_events(&fixture).await;
    relay.stop().await;

    promote(&mut fixture, &second).await;
    fixture.insert(11, 17).await;
    let again = format!(
        "SELECT pg_drop_replication_slot('{0}'); \
         SELECT pg_create_logical_replication_slot('{0}', 'pgoutput')",
        fixture.name
    );
    fixture.sql.batch_execute(&again).await.unwrap();
    fixture.insert(18, 20).await;
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(
        relay.log().contains("on another timeline"),
        "{}",
        relay.log()
    );
    assert_eq!(fixture.message_count().await, 10, "nothing was published");
    goes_on_with_the_rest(&mut fixture, 13).await;
}

/// The same, where B kept the slot, from before A's promotion.
#[tokio::test]
async fn a_second_standby_with_the_lanes_slot_goes_on() {
    let mut fixture = Fixture::own().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let second = fixture.servers().postgres.data_dir().with_file_name("b");
    restart_with(&mut fixture, |data| copy(data, &second)).await;
    promote(&mut fixture, &second).await;
    let relay = fixture.run();
    goes_on_without_events(&fixture).await;
    relay.stop().await;
    promote(&mut fixture, &second).await;
    fixture.insert(11, 15).await;
    let relay = fixture.run();
    judge_events(&fixture, &(1..=15).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}

/// A program of Postgres, run as the user of its data.
pub(crate) fn as_owner(data: &Path, program: &Path) -> Command {
    let owner = std::fs::metadata(data).unwrap();
    let mut command = Command::new(program);
    command.current_dir(data);
    if rustix::process::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
}

/// The old primary is rewound to follow the new one, and is promoted again later. `pg_rewind` takes all of its slots.
#[tokio::test]
async fn a_primary_that_was_rewound_has_no_slot_and_goes_on_with_a_new_one() {
    let mut fixture = Fixture::with_settings(&[("wal_keep_size", "1GB")]).await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let data = fixture.servers().postgres.data_dir();
    let (standby, old) = (data.with_file_name("standby"), data.with_file_name("old"));
    restart_with(&mut fixture, |data| copy(data, &standby)).await;
    let relay = fixture.run();
    goes_on_without_events(&fixture).await;
    relay.stop().await;
    restart_with(&mut fixture, |data| copy(data, &old)).await;
    promote(&mut fixture, &standby).await;
    let relay = fixture.run();
    fixture.insert(11, 15).await;
    judge_events(&fixture, &(1..=15).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    fixture.insert(16, 20).await;
    let rewind = fixture.servers().postgres.bin("pg_rewind");
    restart_with(&mut fixture, |data| {
        let done = as_owner(data, &rewind)
            .arg("--source-pgdata")
            .arg(data)
            .arg("--target-pgdata")
            .arg(&old)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
    })
    .await;
    promote(&mut fixture, &old).await;
    fixture.insert(21, 25).await;

    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(
        relay.log().contains("run walrelay setup"),
        "{}",
        relay.log()
    );
    fixture.walrelay(&["setup"]).await.success();
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert_eq!(fixture.message_count().await, 15, "nothing was published");
    for command in [&["adopt", "--yes"][..], &["backfill"]] {
        fixture.walrelay(command).await.success();
    }
    let relay = fixture.run();
    fixture.insert(26, 27).await;
    fixture.holds(27).await;
    relay.stop().await;
    fixture.walrelay(&["verify"]).await.success();
}
