//! A NATS without JetStream, which no command can use.

use walrelay::local::{LocalNats, NatsOptions};

use crate::support::{Fixture, binaries};

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
