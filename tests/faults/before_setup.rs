//! What `setup` cannot have is known before it has made anything; and a NATS without JetStream, which no command can use.

use walrelay::local::{LocalNats, NatsOptions};

use crate::support::{Fixture, Output, Servers, binaries, options};

async fn without_jetstream() -> LocalNats {
    let options = NatsOptions {
        config_extra: "jetstream: disabled".to_owned(),
        ..NatsOptions::default()
    };
    let nats = LocalNats::start(&binaries(), options).await;
    nats.expect("nats-server starts")
}

#[tokio::test]
async fn each_command_says_that_jetstream_is_to_be_enabled() {
    const WHAT: &str =
        "nobody answers on $JS.API.>: enable JetStream on the server and for the account";
    let mut fixture = Fixture::new().await;
    let nats = without_jetstream().await;
    fixture.set("WALRELAY_NATS_URL", nats.url());
    fixture.without_tls_and_login_of_nats();
    // It may be an election, so the relay waits.
    let mut relay = fixture.run();
    relay.logs("enable JetStream on the server").await;
    relay.stop().await;
    let doctor = fixture.walrelay(&["doctor"]).await;
    assert_eq!(doctor.code, Some(3), "{doctor:?}");
    assert_eq!(doctor.stdout.matches(WHAT).count(), 1, "{}", doctor.stdout);
    assert!(
        !doctor.stdout.contains("no responders"),
        "{}",
        doctor.stdout
    );
    for command in [
        &["setup"][..],
        &["backfill", "--dry-run"],
        &["verify"],
        &["status"],
        &["position"],
        &["dead-letters", "list"],
        &["replay", "--from", "0/1", "--dry-run"],
        &["adopt", "--yes"],
        &[
            "erase",
            "--aggregate-id",
            "4c1d5cf0-8d5a-4b36-9f4c-0b2c0ef6bb8a",
            "--yes",
        ],
        &["teardown", "--yes", "--drop-stream"],
        &["bench", "--duration", "1s"],
    ] {
        let said = fixture.walrelay(command).await;
        assert!(!matches!(said.code, Some(0 | 2)), "{said:?}");
        assert!(said.stderr.contains(WHAT), "{command:?}: {}", said.stderr);
        assert!(
            !said.stderr.contains("no responders"),
            "{command:?}: {}",
            said.stderr
        );
    }
}

/// The database, as far as `setup` makes something in it, and the streams.
async fn nothing_is_made(fixture: &Fixture) {
    let query = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_tables WHERE schemaname = 'public')
                 + (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical')";
    let made: i64 = fixture.sql.query_one(query, &[]).await.unwrap().get(0);
    assert_eq!(made, 0);
    let jetstream = async_nats::jetstream::new(fixture.nats.clone());
    let account = jetstream.query_account().await.unwrap();
    assert_eq!(account.streams, 0);
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.code, Some(1), "{output:?}");
    for words in words {
        assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
    }
}

#[tokio::test]
async fn a_server_without_a_free_slot() {
    let settings = [("max_replication_slots", "1")];
    let fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
    let take = "SELECT pg_create_physical_replication_slot('others')";
    fixture.sql.batch_execute(take).await.unwrap();
    let output = fixture.walrelay(&["setup"]).await;
    refused(
        &output,
        &[
            "2 replication slots are wanted, 1 of them taken, and the server has 1",
            "ALTER SYSTEM SET max_replication_slots = 2;",
        ],
    );
    nothing_is_made(&fixture).await;
    // The other way on, as it is printed.
    let (_, printed) = output.stderr.split_once("nobody needs: ").expect("a query");
    let (list, _) = printed.split_once(';').expect("a query");
    let listed = fixture.sql.query_one(list, &[]).await.unwrap();
    let (name, active): (String, bool) = (listed.get(0), listed.get(1));
    assert!(!active);
    let drop = format!("SELECT pg_drop_replication_slot('{name}')");
    fixture.sql.batch_execute(&drop).await.unwrap();
    fixture.setup().await;
    // Its own is there.
    fixture.setup().await;
}

#[tokio::test]
async fn more_replicas_than_jetstream_has_servers() {
    let fixture = Fixture::bare_on(Servers::own().await).await;
    let output = fixture.walrelay(&["setup", "--replicas", "3"]).await;
    refused(&output, &["of 3 replicas, as --replicas says"]);
    nothing_is_made(&fixture).await;
    fixture.setup().await;
}
