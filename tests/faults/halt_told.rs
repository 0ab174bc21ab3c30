//! What a person is told of a lane whose relay is gone: by `status`, `position` and `doctor`, from slot and lane record.

use serde_json::Value;

use crate::lane::judge_events;
use crate::postgres_says_no::{SMALL_WAL, lose_slot};
use crate::support::{Fixture, Output, Relay, insert_sql, uuid};

const NO_SUBJECT: &str = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'no..subject or so', '{}')";

async fn json(fixture: &Fixture, command: &str) -> (Output, Value) {
    let output = fixture.walrelay(&[command, "--json"]).await;
    let value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, value)
}

/// What `status` says of the lane, and its exit code.
async fn lane(fixture: &Fixture) -> (Option<i32>, Value) {
    let (output, value) = json(fixture, "status").await;
    assert_eq!(value["relay"], Value::Null, "{value}");
    (output.code, value["positions"]["lane"].clone())
}

/// Nothing is told of a halt.
async fn is_told_as_stopped(fixture: &Fixture) {
    let (_, stopped) = lane(fixture).await;
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    assert_eq!(stopped["reason"], Value::Null);
}

async fn halts(relay: &mut Relay) {
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
}

/// The remedy that `doctor` prints with the halt.
async fn doctors_remedy(fixture: &Fixture) -> Option<String> {
    let (_, report) = json(fixture, "doctor").await;
    let mut findings = report["findings"].as_array().expect("a list").iter();
    let halted = findings.find(|finding| finding["code"] == "halted")?;
    halted["mend"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_halt_is_told_with_its_remedy_until_an_epoch_begins() {
    let mut fixture = Fixture::new().await;
    let never_ran = lane(&fixture).await;
    assert_eq!(
        (never_ran.0, &never_ran.1["state"]),
        (Some(1), &"stopped".into())
    );
    fixture.set("WALRELAY_RELAY_ON_REJECT", "halt");
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    // Nobody answers at http.listen, and somebody reads the slot.
    let (code, running) = lane(&fixture).await;
    assert_eq!((code, &running["state"]), (Some(1), &"running".into()));
    assert!(running["active_pid"].is_number(), "{running}");
    fixture.sql.batch_execute(NO_SUBJECT).await.unwrap();
    halts(&mut relay).await;

    let (code, halted) = lane(&fixture).await;
    assert_eq!((code, &halted["state"]), (Some(1), &"halted".into()));
    let reason = halted["reason"].as_str().expect("a reason");
    assert!(reason.contains("cannot be published"), "{reason}");
    let remedy = halted["remedy"].as_str().expect("a remedy");
    assert!(
        remedy.starts_with("`walrelay dead-letters skip "),
        "{remedy}"
    );
    let (_, position) = json(&fixture, "position").await;
    for key in ["state", "reason", "remedy", "halted_at"] {
        assert_eq!(position["lane"][key], halted[key], "{key}");
    }
    assert_eq!(doctors_remedy(&fixture).await.as_deref(), Some(remedy));
    let text = fixture.walrelay(&["status"]).await.stdout;
    assert!(text.contains(reason) && text.contains(remedy), "{text}");

    // A start decides as before, and halts again.
    let mut relay = fixture.run();
    halts(&mut relay).await;
    // What is printed is typed.
    let command = remedy.split('`').nth(1).expect("a command");
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    fixture.walrelay(&arguments).await.success();
    let relay = fixture.run();
    fixture.insert(6, 7).await;
    fixture.holds(8).await;
    relay.stop().await;
    is_told_as_stopped(&fixture).await;
    assert_eq!(doctors_remedy(&fixture).await, None);
}

/// The records are gone, and how far the lane came cannot be known: there is no record that could tell of the halt.
#[tokio::test]
async fn a_halt_without_a_lane_record_is_told_until_an_epoch_begins() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    let relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    fixture.confirms(fixture.server_lsn().await).await;
    relay.stop().await;
    let jetstream = async_nats::jetstream::new(fixture.nats.clone());
    for name in [fixture.stream_name(), "WALRELAY"] {
        let stream = jetstream.get_stream(name).await.unwrap();
        stream.purge().await.unwrap();
    }
    for _ in 0..2 {
        let mut relay = fixture.run();
        halts(&mut relay).await;
        let (code, halted) = lane(&fixture).await;
        assert_eq!((code, &halted["state"]), (Some(1), &"halted".into()));
        let text = |key: &str| halted[key].as_str().expect("text").to_owned();
        assert!(
            relay.log().contains(&text("reason")),
            "{halted}: {}",
            relay.log()
        );
        assert_eq!(doctors_remedy(&fixture).await, Some(text("remedy")));
        let (_, position) = json(&fixture, "position").await;
        for key in ["state", "reason", "remedy", "halted_at"] {
            assert_eq!(position["lane"][key], halted[key], "{key}");
        }
    }
    fixture.walrelay(&["adopt", "--yes"]).await.success();
    let relay = fixture.run();
    fixture.insert(6, 6).await;
    fixture.holds(1).await;
    relay.stop().await;
    is_told_as_stopped(&fixture).await;
}

#[tokio::test]
async fn a_lost_slot_is_told_also_while_nats_is_away() {
    let mut fixture = Fixture::with_settings(&SMALL_WAL).await;
    let mut relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.kill();
    fixture
        .sql
        .batch_execute(&insert_sql(11, 20))
        .await
        .unwrap();
    lose_slot(&fixture).await;
    let (code, lost) = lane(&fixture).await;
    assert_eq!((code, &lost["state"]), (Some(1), &"slot_lost".into()));
    assert_eq!(lost["wal_status"], "lost");
    assert_eq!(lost["halted_at"], Value::Null);

    // The halt waits only so long for NATS.
    fixture.own_servers().nats.stop().await.unwrap();
    let mut relay = fixture.run();
    halts(&mut relay).await;
    let log = relay.log();
    assert!(log.contains("does not say why the relay halted"), "{log}");
    let (code, unseen) = lane(&fixture).await;
    assert_eq!((code, &unseen["state"]), (Some(1), &"slot_lost".into()));

    fixture.own_servers().nats.start_again().await.unwrap();
    let mut relay = fixture.run();
    halts(&mut relay).await;
    let (_, told) = lane(&fixture).await;
    assert_eq!(told["state"], "slot_lost");
    assert!(told["halted_at"].is_string(), "{told}");
    let remedy = told["remedy"].as_str().expect("a remedy");
    assert!(remedy.contains("walrelay teardown"), "{remedy}");
    assert!(doctors_remedy(&fixture).await.is_some());

    // Which the remedy says.
    fixture.begin_again().await;
    let relay = fixture.run();
    fixture.insert(21, 21).await;
    judge_events(&fixture, &(1..=21).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
    is_told_as_stopped(&fixture).await;
}

#[tokio::test]
async fn what_could_not_be_asked_is_not_called_stopped() {
    let mut fixture = Fixture::own().await;
    fixture.own_servers().nats.stop().await.unwrap();
    let (code, unknown) = lane(&fixture).await;
    assert_eq!((code, &unknown["state"]), (Some(3), &"unknown".into()));
    fixture.own_servers().postgres.kill();
    let (output, nothing) = json(&fixture, "status").await;
    assert_eq!(output.code, Some(3));
    assert_eq!(nothing["relay"], Value::Null);
    assert!(
        output.stderr.contains("cannot connect to"),
        "{}",
        output.stderr
    );
}
