//! What the program tells a person to type, typed as it is printed, where no other test does.

use walrelay::local::Mode;

use crate::statements::statements;
use crate::support::{Fixture, Servers, eventually, options, uuid};

async fn types(fixture: &Fixture, text: &str) {
    let statements = statements(text);
    assert_ne!(statements, Vec::<String>::new(), "{text}");
    for statement in statements {
        fixture
            .sql
            .batch_execute(&statement)
            .await
            .expect(&statement);
    }
}

/// The remedy of the finding with this code, as `doctor` has it.
async fn mend(fixture: &Fixture, code: &str) -> Option<String> {
    let output = fixture.walrelay(&["doctor", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("a report");
    let findings = report["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["code"] == code)?;
    Some(found["mend"].as_str().expect("a remedy").to_owned())
}

/// A database and a role that are not there.
#[tokio::test]
async fn what_a_refused_connection_says() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let url = fixture.servers().postgres.url("nowhere");
    let url = url.replace("//postgres@", "//nobody@");
    fixture.set("WALRELAY_POSTGRES_URL", url);
    for missing in ["nobody", "nowhere"] {
        let output = fixture.walrelay(&["run"]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains(missing), "{}", output.stderr);
        let (_, remedy) = output.stderr.rsplit_once("or run ").expect("a remedy");
        // For a role, what makes it; the other half is for one that is there.
        let remedy = remedy.split_once(';').expect("a statement").0;
        types(&fixture, &format!("{remedy};")).await;
    }
    let output = fixture.walrelay(&["run"]).await;
    assert!(
        output.stderr.contains("walrelay setup"),
        "{}",
        output.stderr
    );
}

/// Places that others have taken.
#[tokio::test]
async fn what_doctor_says_of_places() {
    let settings = [
        ("max_replication_slots", "1"),
        ("max_slot_wal_keep_size", "64GB"),
    ];
    let servers = Servers::with(options(&settings)).await;
    let mut fixture = Fixture::bare_on(servers).await;
    let taken = "SELECT pg_create_physical_replication_slot('others'); ALTER ROLE postgres CONNECTION LIMIT 3";
    fixture.sql.batch_execute(taken).await.unwrap();
    let all = mend(&fixture, "places").await.expect("it is full");
    types(&fixture, &all).await;
    let postgres = &mut fixture.own_servers().postgres;
    postgres.stop(Mode::Fast).await.unwrap();
    postgres.start_again().await.unwrap();
    fixture.reconnect().await;
    let limit = mend(&fixture, "places").await.expect("the role is limited");
    assert!(limit.contains("CONNECTION LIMIT"), "{limit}");
    types(&fixture, &limit).await;
    assert_eq!(mend(&fixture, "places").await, None);
    fixture.setup().await;
    let relay = fixture.run();
    fixture.insert(1, 3).await;
    fixture.holds(3).await;
    relay.stop().await;
    assert_eq!(fixture.stored_ids().await, [1, 2, 3].map(uuid));
}

/// What was written to disk once is counted for ever, unless somebody counts anew.
#[tokio::test]
async fn what_doctor_says_of_a_transaction_that_was_spilled() {
    let settings = [
        ("logical_decoding_work_mem", "64kB"),
        ("max_slot_wal_keep_size", "64GB"),
    ];
    let mut fixture = Fixture::bare_on(Servers::with(options(&settings)).await).await;
    fixture.setup().await;
    assert_eq!(mend(&fixture, "spill").await, None);
    // The relay has memory of its own; what looks into the slot has the server's.
    fixture.insert(1, 5_000).await;
    fixture.walrelay(&["verify"]).await;
    let remedy = eventually("it is counted", async || mend(&fixture, "spill").await).await;
    let relay = fixture.run();
    fixture.holds(5_000).await;
    types(&fixture, &remedy).await;
    assert_eq!(mend(&fixture, "spill").await, None);
    relay.stop().await;
    assert_eq!(mend(&fixture, "spill").await, None);
}

/// The name of a slot that another database of the server has.
#[tokio::test]
async fn what_the_slot_of_another_database_needs() {
    let first = Fixture::new().await;
    let mut second = Fixture::bare().await;
    second.set("WALRELAY_POSTGRES_SLOT", first.name.clone());
    let output = second.walrelay(&["setup"]).await;
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("postgres.slot"), "{}", output.stderr);
    second.unset("WALRELAY_POSTGRES_SLOT");
    second.setup().await;
    let relay = second.run();
    second.insert(1, 2).await;
    second.holds(2).await;
    relay.stop().await;
}
