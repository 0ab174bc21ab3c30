//! The stream of the lanes' records, configured so that it loses or refuses them: `setup` and `run` refuse it in the same
//! words, a running relay waits, and the remedy that is printed mends it.

use serde_json::{Value, json};

use crate::support::{Fixture, Relay, Servers, assert_exactly_once, eventually, uuid};

async fn api(fixture: &Fixture, what: &str, body: &Value) -> Value {
    let subject = format!("$JS.API.STREAM.{what}.WALRELAY");
    let answer = fixture.nats.request(subject, body.to_string().into()).await;
    serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON")
}

/// Types what is printed behind the words.
async fn type_remedy(fixture: &Fixture, said: &str, config: &Value) {
    let (_, command) = said
        .split_once("nats stream ")
        .unwrap_or_else(|| panic!("no command in {said}"));
    let command = command.lines().next().expect("a line").trim();
    let flag = command
        .strip_prefix("edit WALRELAY --")
        .unwrap_or_else(|| panic!("{command}"));
    let (key, value) = match flag {
        "max-age=0s" => ("max_age", json!(0)),
        "max-msgs=-1" => ("max_msgs", json!(-1)),
        "max-bytes=1048576" => ("max_bytes", json!(1_048_576)),
        "max-msg-size=-1" => ("max_msg_size", json!(-1)),
        "no-transform" => ("subject_transform", Value::Null),
        "ack" => ("no_ack", json!(false)),
        _ => panic!("nobody has typed {flag}"),
    };
    let mut mended = config.clone();
    mended[key] = value;
    let answer = api(fixture, "UPDATE", &mended).await;
    assert!(answer["error"].is_null(), "{answer}");
}

async fn logs(relay: &mut Relay, from: usize, words: &str) {
    eventually(format!("{words:?} in the log"), async || {
        relay.log()[from..].contains(words).then_some(())
    })
    .await;
    assert!(relay.runs());
}

/// The edit, under a running relay and at a start; what is committed meanwhile comes once it is mended.
async fn edited(key: &str, value: Value, words: &str) {
    // Every lane of a server has its record there.
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    let mut config = api(&fixture, "INFO", &json!({})).await["config"].clone();
    config[key] = value;
    let logged = relay.log().len();
    let answer = api(&fixture, "UPDATE", &config).await;
    assert!(answer["error"].is_null(), "{key}: {answer}");
    // Any new connection looks: this one's walsender is ended.
    let sql =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1";
    fixture.sql.query_one(sql, &[&fixture.name]).await.unwrap();
    fixture.insert(6, 10).await;
    logs(&mut relay, logged, words).await;

    let setup = fixture.walrelay(&["setup"]).await;
    assert_eq!(setup.code, Some(1), "{key}: {}", setup.stderr);
    relay.kill();
    let run = fixture.walrelay(&["run"]).await;
    assert_eq!(run.code, Some(1), "{key}: {}", run.stderr);
    for said in [&setup.stderr, &run.stderr] {
        assert!(
            said.contains(words) && said.contains("WALRELAY"),
            "{key}: {said}"
        );
    }
    type_remedy(&fixture, &run.stderr, &config).await;
    let relay = fixture.run();
    fixture.holds(10).await;
    relay.stop().await;
    let expected: Vec<_> = (1..=10).map(uuid).collect();
    assert_exactly_once(&expected, &fixture.stored_ids().await);
    fixture.walrelay(&["setup"]).await.success();
}

#[tokio::test]
async fn a_record_stream_that_loses_records_is_refused_and_mended() {
    let transform = json!({"src": "walrelay.lane.>", "dest": "elsewhere.>"});
    for (key, value, words) in [
        (
            "max_age",
            json!(3_600_000_000_000_u64),
            "max_age lets records expire",
        ),
        ("max_msgs", json!(5), "max_msgs is 5"),
        ("max_bytes", json!(50_000), "max_bytes is 50000"),
        ("max_msg_size", json!(5_000), "max_msg_size is 5000"),
        ("no_ack", json!(true), "does not acknowledge"),
        ("subject_transform", transform, "not found again"),
    ] {
        edited(key, value, words).await;
    }
}
