//! The relay inside an application: what its handle tells.

use std::process::Command;

use walrelay::relay::board::StatusWatch;
use walrelay::relay::settings::{OnReject, Settings};
use walrelay::relay::status::{State, Status};
use walrelay::relay::{Outcome, spawn};

use crate::support::{Fixture, secure};

/// Set in the process that a test starts of itself.
const CHILD: &str = "WALRELAY_TEST_CHILD";

pub(crate) fn settings(fixture: &Fixture, database: &str) -> Settings {
    let servers = fixture.servers();
    let mut settings = Settings::of_urls(database, &servers.nats.url()).expect("URLs");
    if secure::is_wanted() {
        secure::nats_connection(&mut settings.nats.connection, &servers.nats);
    }
    settings.name.clone_from(&fixture.name);
    settings.postgres.slot.clone_from(&fixture.name);
    settings.postgres.publication.clone_from(&fixture.name);
    settings.nats.stream = fixture.stream_name().to_owned();
    settings.nats.subject = format!("{}.{{event_type}}", fixture.name)
        .parse()
        .expect("a subject");
    settings
}

pub(crate) fn database_url(fixture: &Fixture) -> String {
    let servers = fixture.servers();
    let url = servers.postgres.url(&fixture.name);
    match secure::is_wanted() {
        true => secure::postgres_url(&url, &servers.nats),
        false => url,
    }
}

async fn becomes(watch: &mut StatusWatch, wanted: impl Fn(&Status) -> bool) -> Status {
    let reached = async {
        loop {
            let status = watch.changed().await;
            if wanted(&status) {
                return status;
            }
        }
    };
    let limit = std::time::Duration::from_secs(60);
    let reached = tokio::time::timeout(limit, reached).await;
    reached.unwrap_or_else(|_| panic!("it stays {:?}", watch.status()))
}

#[tokio::test]
async fn a_relay_that_cannot_start_says_so_before_anybody_stops_it() {
    let fixture = Fixture::new().await;
    let port = fixture.servers().postgres.port();
    let url = format!("postgres://nobody:wrong@127.0.0.1:{port}/{}", fixture.name);
    let mut relay = spawn(settings(&fixture, &url));
    let failed = becomes(&mut relay.watch(), |status| status.state == State::Failed).await;
    let reason = failed.reason.expect("a reason");
    assert!(
        reason.contains("nobody") && !reason.contains("wrong"),
        "{reason}"
    );
    for _ in 0..2 {
        let ended = relay.ended().await.as_ref().expect_err("it cannot start");
        assert!(format!("{ended:#}").contains("nobody"), "{ended:#}");
    }
    assert!(relay.stop().await.is_err());
}

#[tokio::test]
async fn state_progress_and_the_end_are_told() {
    let fixture = Fixture::new().await;
    let url = database_url(&fixture);
    let relay = spawn(settings(&fixture, &url));
    let mut watch = relay.watch();
    becomes(&mut watch, |status| status.state == State::Streaming).await;
    fixture.insert(1, 5).await;
    let status = becomes(&mut watch, |status| status.totals.acknowledged == 5).await;
    assert_eq!(status.totals.published, 5);
    assert!(
        status.position.is_some() && status.marks.acknowledged_lsn > 0,
        "{status:?}"
    );
    assert!(matches!(relay.stop().await, Ok(Outcome::Stopped)));
    assert_eq!(watch.status().state, State::Stopped);
}

#[tokio::test]
async fn a_halt_ends_the_relay_with_its_reason() {
    let fixture = Fixture::new().await;
    let url = database_url(&fixture);
    let mut settings = settings(&fixture, &url);
    settings.relay.on_reject = OnReject::Halt;
    let mut relay = spawn(settings);
    let mut watch = relay.watch();
    becomes(&mut watch, |status| status.state == State::Streaming).await;
    let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
               VALUES (gen_random_uuid(), gen_random_uuid(), 'two words', '{}')";
    fixture.sql.batch_execute(bad).await.unwrap();
    let halted = becomes(&mut watch, |status| status.state == State::Halted).await;
    assert!(halted.reason.expect("a reason").contains("two words"));
    assert!(matches!(relay.ended().await, Ok(Outcome::Halted(_))));
}

#[test]
fn settings_of_urls_obey_no_variable() {
    let name = "embedded::settings_of_urls_obey_no_variable";
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name])
            .env(CHILD, "1")
            .env("WALRELAY_RELAY_HOLD_BACK", "7s")
            .env("WALRELAY_POSTGRES_SLOT", "of_the_environment")
            .env("WALRELAY_CONFIG", "/nowhere.toml")
            .env("PGUSER", "of_the_environment")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let settings = Settings::of_urls("postgres://localhost/app", "nats://localhost").expect("URLs");
    assert_eq!(
        settings.relay.hold_back,
        std::time::Duration::from_secs(180)
    );
    assert_eq!(settings.postgres.slot, "walrelay");
    assert!(!format!("{}", settings.postgres.conninfo).contains("of_the_environment"));
}
