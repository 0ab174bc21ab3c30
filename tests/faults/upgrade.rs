//! `pg_upgrade` of the server under a lane, with its slot, as docs/operating.md has it.

use walrelay::local::{LocalPostgres, Mode};

use crate::failover::succeeds;
use crate::support::{Fixture, Servers, assert_exactly_once, binaries, options, uuid};
use crate::timelines::as_owner;

#[tokio::test]
#[ignore = "needs Postgres 17: make failover"]
async fn the_slot_comes_along() {
    let old = binaries().with_postgres_major(17).expect("it is there");
    let servers = Servers::of(old.clone(), options(&[])).await;
    let mut fixture = Fixture::bare_on(servers).await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.stop().await;

    // All writers are stopped. What is held back is confirmed.
    let end = fixture.server_lsn().await;
    let relay = fixture.run_with(&["--hold-back", "0s"]);
    fixture.confirms(end).await;
    relay.stop().await;

    let mut new = LocalPostgres::start(&binaries(), options(&[]))
        .await
        .expect("Postgres starts");
    new.stop(Mode::Fast).await.unwrap();
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    let (from, to) = (postgres.data_dir(), new.data_dir());
    // With 18 initdb has checksums, with 17 it had none.
    succeeds(
        as_owner(&to, &new.bin("pg_checksums"))
            .args(["--disable", "--pgdata"])
            .arg(&to),
    );
    let old_home = old.postgres("postgres");
    let new_home = new.bin("postgres");
    succeeds(
        as_owner(&from, &new.bin("pg_upgrade"))
            .args(["--username", "postgres"])
            .arg("--old-bindir")
            .arg(old_home.parent().unwrap())
            .arg("--new-bindir")
            .arg(new_home.parent().unwrap())
            .arg("--old-datadir")
            .arg(&from)
            .arg("--new-datadir")
            .arg(&to)
            .args(["--old-port", &postgres.port().to_string()])
            .args(["--new-port", &new.port().to_string()]),
    );
    std::mem::swap(postgres, &mut new);
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set("WALRELAY_POSTGRES_URL", url);

    // Another cluster behind the same names is looked at by a person.
    fixture.insert(11, 15).await;
    let mut relay = fixture.run();
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    assert!(relay.log().contains("walrelay adopt"), "{}", relay.log());
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.insert(16, 20).await;
    fixture.holds(20).await;
    relay.stop().await;
    let committed: Vec<_> = (1..=20).map(uuid).collect();
    assert_exactly_once(&committed, &fixture.stored_ids().await);
    fixture.walrelay(&["verify"]).await.success();
}
