//! The other versions of Postgres and nats-server that are supported; `make versions` fetches them.

use crate::support::{
    Fixture, Servers, Writer, assert_exactly_once, binaries, insert_sql, options, uuid,
};

#[tokio::test]
#[ignore = "needs Postgres 14 to 17: make versions"]
async fn every_supported_version_streams_through_kills() {
    for major in 14..=17 {
        let binaries = binaries().with_postgres_major(major).expect("it is there");
        let mut fixture = Fixture::bare_on(Servers::of(binaries, options(&[])).await).await;
        fixture.setup().await;
        fixture.setup().await;
        let mut relay = fixture.run();
        relay.streams().await;
        let start = format!("postgres=\"{major}.");
        assert!(relay.log().contains(&start), "{}", relay.log());
        let writer = Writer::start(&fixture).await;
        fixture.holds(500).await;
        relay.kill();
        let mut relay = fixture.run();
        fixture.holds(fixture.message_count().await + 500).await;
        let postgres = &mut fixture.own_servers().postgres;
        postgres.kill();
        postgres.start_again().await.expect("it recovers");
        let committed = writer.stop(&fixture).await;
        fixture.reconnect().await;
        fixture.holds(committed.len() as u64).await;
        fixture.confirms(fixture.server_lsn().await).await;
        assert!(relay.runs());
        relay.stop().await;
        assert_exactly_once(&committed, &fixture.stored_ids().await);
        fixture.walrelay(&["position"]).await.success();
        fixture.walrelay(&["teardown", "--yes"]).await.success();
    }
}

#[tokio::test]
#[ignore = "needs Postgres 14 to 17: scripts/servers.sh --all-postgres"]
async fn every_supported_version_tells_of_rows_that_are_never_sent() {
    const NAMED: &str = "`walrelay verify` names them";
    for major in 14..=17 {
        let binaries = binaries().with_postgres_major(major).expect("it is there");
        let mut fixture = Fixture::bare_on(Servers::of(binaries, options(&[])).await).await;
        let publication = format!("CREATE PUBLICATION {} FOR ALL TABLES", fixture.name);
        let table = include_str!("../../sql/0001_outbox_events.sql");
        for sql in [table, &publication] {
            fixture.sql.batch_execute(sql).await.unwrap();
        }
        fixture.setup().await;
        let relay = fixture.run();
        fixture.insert(1, 10).await;
        fixture.holds(10).await;
        relay.stop().await;

        let unlogged = format!(
            "ALTER TABLE outbox_events SET UNLOGGED; {}; ALTER TABLE outbox_events SET LOGGED",
            insert_sql(11, 11)
        );
        for (sql, says) in [
            ("VACUUM FULL outbox_events", false),
            ("CLUSTER outbox_events USING outbox_events_pkey", false),
            (&unlogged, true),
        ] {
            fixture.sql.batch_execute(sql).await.unwrap();
            let mut relay = fixture.run();
            relay.streams().await;
            assert_eq!(relay.log().contains(NAMED), says, "{major}: {sql}");
            relay.stop().await;
        }

        let drop = format!("DROP PUBLICATION {}", fixture.name);
        for sql in [
            &drop,
            &insert_sql(12, 12),
            &publication,
            &insert_sql(13, 13),
        ] {
            fixture.sql.batch_execute(sql).await.unwrap();
        }
        let mut relay = fixture.run();
        assert_eq!(relay.ends().await, Some(4), "{major}: {}", relay.log());
        assert!(relay.log().contains("walrelay teardown"), "{major}");
        // So do the commands that read the slot.
        let verified = fixture.walrelay(&["verify"]).await;
        assert_eq!(verified.code, Some(3), "{major}: {}", verified.stderr);
        assert!(
            verified.stderr.contains("walrelay teardown"),
            "{major}: {}",
            verified.stderr
        );
        fixture.begin_again().await;
        let relay = fixture.run();
        fixture.insert(14, 14).await;
        fixture.holds(14).await;
        relay.stop().await;
        let committed: Vec<_> = (1..=14).map(uuid).collect();
        assert_exactly_once(&committed, &fixture.stored_ids().await);
        fixture.walrelay(&["verify"]).await.success();
    }
}

#[tokio::test]
#[ignore = "needs nats-server 2.10 to 2.15: make versions"]
async fn every_supported_version_of_nats_is_streamed_to_through_kills() {
    for (minor, publish) in [
        (10, "chain"),
        (11, "chain"),
        (12, "chain"),
        (14, "fast-ingest"),
        (15, "fast-ingest"),
    ] {
        let binaries = binaries().with_nats_minor(minor).expect("it is there");
        let mut fixture = Fixture::bare_on(Servers::of(binaries, options(&[])).await).await;
        fixture.setup().await;
        fixture.setup().await;
        let mut relay = fixture.run();
        relay.streams().await;
        for said in [
            format!("nats=\"2.{minor}."),
            format!("publish=\"{publish}\""),
        ] {
            assert!(relay.log().contains(&said), "{}", relay.log());
        }
        let writer = Writer::start(&fixture).await;
        fixture.holds(500).await;
        relay.kill();
        let mut relay = fixture.run();
        fixture.holds(fixture.message_count().await + 500).await;
        let nats = &mut fixture.own_servers().nats;
        nats.kill();
        nats.start_again().await.expect("it recovers");
        let committed = writer.stop(&fixture).await;
        fixture.holds(committed.len() as u64).await;
        assert!(relay.runs());
        relay.stop().await;
        assert_exactly_once(&committed, &fixture.stored_ids().await);
        for command in [
            &["position"][..],
            &["verify"],
            &["tail", "--since", "all", "--count", "1"],
            &["teardown", "--yes"],
        ] {
            fixture.walrelay(command).await.success();
        }
    }
}
