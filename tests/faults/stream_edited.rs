//! The events' stream is edited while the relay runs, each key that matters: what nats-server takes, what the relay does
//! about it, and that nothing is lost or doubled once the edit is taken back.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::lane::{LANES, Lane, events, holds_events, judge_events, logs_from, set_up};
use crate::support::{Fixture, Stored, eventually, site, uuid};

/// The events before an edit, while it is there, and behind it.
const BEFORE: u64 = 10;
const MEANWHILE: u64 = 60;
const ALL: u64 = 70;

/// What comes of an edit.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// nats-server refuses it.
    Refused,
    /// The relay goes on.
    GoesOn,
    /// The relay waits and says these words, and so does `verify`; a new one ends with them.
    Waits(&'static str),
}

use Outcome::{GoesOn, Refused, Waits};

struct Edit {
    key: &'static str,
    value: fn(&Fixture) -> Value,
    outcome: Outcome,
}

const EDITS: [Edit; 12] = [
    Edit {
        key: "retention",
        value: |_| json!("interest"),
        outcome: Waits("retention is interest"),
    },
    Edit {
        key: "retention",
        value: |_| json!("workqueue"),
        outcome: Refused,
    },
    Edit {
        key: "no_ack",
        value: |_| json!(true),
        outcome: Waits("does not acknowledge"),
    },
    Edit {
        key: "subjects",
        value: |fixture| json!([format!("other.{}.>", fixture.name)]),
        outcome: Waits("the stream does not take"),
    },
    Edit {
        key: "persist_mode",
        value: |_| json!("async"),
        outcome: Refused,
    },
    Edit {
        key: "allow_msg_counter",
        value: |_| json!(true),
        outcome: Refused,
    },
    Edit {
        key: "mirror",
        value: |_| json!({"name": "WALRELAY"}),
        outcome: Refused,
    },
    Edit {
        key: "sources",
        value: |_| json!([{"name": "NOWHERE"}]),
        outcome: GoesOn,
    },
    Edit {
        key: "subject_transform",
        value: |fixture| {
            let name = &fixture.name;
            json!({"src": format!("{name}.>"), "dest": format!("{name}.moved.>")})
        },
        outcome: GoesOn,
    },
    Edit {
        key: "subject_transform",
        value: |fixture| {
            let name = &fixture.name;
            json!({"src": format!("walrelay.dead.{name}"), "dest": format!("{name}.dead")})
        },
        outcome: Waits("of walrelay.dead."),
    },
    Edit {
        key: "max_msg_size",
        value: |_| json!(20_000),
        outcome: GoesOn,
    },
    Edit {
        key: "max_msgs",
        value: |_| json!(5),
        outcome: GoesOn,
    },
];

/// Waits until `/readyz` answers with this status; the reason that it gives.
async fn ready(address: SocketAddr, status: &str) -> String {
    eventually(format!("/readyz answers {status}"), async || {
        let (answered, body) = site::get(address, "/readyz").await?;
        (answered == status).then_some(body)
    })
    .await
}

async fn api(fixture: &Fixture, what: &str, body: &Value) -> Value {
    let subject = format!("$JS.API.STREAM.{what}.{}", fixture.stream_name());
    let answer = fixture.nats.request(subject, body.to_string().into()).await;
    serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON")
}

async fn config(fixture: &Fixture) -> Value {
    api(fixture, "INFO", &json!({})).await["config"].clone()
}

/// Updates the stream; false where nats-server refuses.
async fn update(fixture: &Fixture, config: &Value) -> bool {
    api(fixture, "UPDATE", config).await["error"].is_null()
}

async fn ids(fixture: &Fixture) -> Vec<Uuid> {
    events(fixture).await.iter().map(Stored::id).collect()
}

/// Waits until this is the lane's last event; without a consumer, which would be an interest.
async fn ends_with(fixture: &Fixture, number: u64) {
    let last = json!({"last_by_subj": format!("{}.>", fixture.name)});
    eventually(format!("event {number} comes"), async || {
        let message = api(fixture, "MSG.GET", &last).await["message"].clone();
        let body = STANDARD.decode(message["data"].as_str()?).ok()?;
        let event: Value = serde_json::from_slice(&body).ok()?;
        (event["id"] == json!(uuid(number))).then_some(())
    })
    .await;
}

async fn edited(lane: Lane, edit: &Edit, restarts: bool) {
    let case = format!("{} in {lane:?}, {restarts}", edit.key);
    let mut fixture = Fixture::bare().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    set_up(&mut fixture, lane).await;
    let mut relay = fixture.run();
    fixture.insert(1, BEFORE).await;
    holds_events(&fixture, BEFORE).await;
    ready(address, "200").await;

    let before = config(&fixture).await;
    let mut changed = before.clone();
    changed[edit.key] = (edit.value)(&fixture);
    let logged = relay.log().len();
    let taken = update(&fixture, &changed).await;
    assert_eq!(taken, !matches!(edit.outcome, Refused), "{case}");
    fixture.insert(BEFORE + 1, MEANWHILE).await;
    if let Waits(words) = edit.outcome {
        let log = logs_from(&mut relay, logged, words).await;
        assert!(log.contains("waiting: "), "{case}: {log}");
        assert!(relay.runs(), "{case}");
        let reason = ready(address, "503").await;
        assert!(reason.contains(words), "{case}: {reason}");
        let verified = fixture.walrelay(&["verify", "--wait", "0s"]).await;
        assert_eq!(verified.code, Some(1), "{case}");
        let said = verified.stdout + &verified.stderr;
        assert!(said.contains(words), "{case}: {said}");
        if restarts {
            relay.kill();
            fixture.set("WALRELAY_HTTP_LISTEN", "");
            let run = fixture.walrelay(&["run"]).await;
            assert_eq!(run.code, Some(1), "{case}: {}", run.stderr);
            assert!(run.stderr.contains(words), "{case}: {}", run.stderr);
        }
    } else {
        ends_with(&fixture, MEANWHILE).await;
    }
    assert!(update(&fixture, &before).await, "{case}");
    if restarts {
        relay.kill();
        relay = fixture.run();
    }
    fixture.insert(MEANWHILE + 1, ALL).await;
    ends_with(&fixture, ALL).await;
    let removes = ["retention", "max_msgs"].contains(&edit.key) && taken;
    if removes {
        // The edit itself removes what was there, and that is gone; what comes behind the last look comes again.
        let ids = ids(&fixture).await;
        let first = ALL + 1 - ids.len() as u64;
        assert_eq!(ids, (first..=ALL).map(uuid).collect::<Vec<_>>(), "{case}");
        let last = if edit.key == "retention" {
            BEFORE + 1
        } else {
            MEANWHILE
        };
        assert!(first <= last, "{case}: begins at {first}");
    } else {
        judge_events(&fixture, &(1..=ALL).map(uuid).collect::<Vec<_>>()).await;
    }
    if !restarts {
        ready(address, "200").await;
    }
    relay.stop().await;
    // Each case has a slot of its own, and the other tests need theirs.
    fixture.walrelay(&["teardown", "--yes"]).await.success();
}

#[tokio::test]
async fn a_stream_that_is_edited_while_the_relay_runs() {
    for edit in &EDITS {
        for lane in LANES {
            for restarts in [false, true] {
                edited(lane, edit, restarts).await;
            }
        }
    }
}
