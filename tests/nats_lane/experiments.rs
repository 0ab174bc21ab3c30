//! What JetStream does with pipelined ordinary publishes, by experiment: the lanes are built on these answers.
//! Run with `--nocapture` to see them.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::time::timeout;
use walrelay::nats::api::{DEFAULT_PREFIX, StreamApi, StreamInfo};
use walrelay::nats::connection::LaneConnection;
use walrelay::nats::protocol::{Msg, Op};
use walrelay::nats::{encode, headers};

use crate::server::{Calls as _, SOON, Server};

/// How long must pass without an answer before we take it that there is none.
const QUIET: Duration = Duration::from_millis(400);

/// Creates stream S of `outbox.>` and `walrelay.>` with everything allowed.
pub(crate) async fn create_stream(connection: &mut LaneConnection) {
    configure_stream(connection, "CREATE", &json!({})).await;
}

/// Changes some of its configuration.
pub(crate) async fn update_stream(connection: &mut LaneConnection, changes: &Value) {
    configure_stream(connection, "UPDATE", changes).await;
}

async fn configure_stream(connection: &mut LaneConnection, verb: &str, changes: &Value) {
    let mut config = json!({
        "name": "S", "subjects": ["outbox.>", "walrelay.>"], "retention": "limits", "storage": "file",
        "discard": "old", "num_replicas": 1, "allow_direct": true, "allow_batched": true, "allow_atomic": true,
    });
    let changes = changes.as_object().expect("an object").clone();
    config.as_object_mut().expect("one too").extend(changes);
    let subject = format!("$JS.API.STREAM.{verb}.S");
    let answer = connection
        .request(&subject, None, config.to_string().as_bytes(), SOON)
        .await
        .expect("an answer");
    StreamInfo::parse(&answer.payload).expect("the configuration is taken");
}

pub(crate) fn stream() -> StreamApi {
    StreamApi::new(DEFAULT_PREFIX, "S").expect("a legal name")
}

/// Appends one message with a reply below our inbox.
pub(crate) fn push(
    connection: &mut LaneConnection,
    token: &str,
    subject: &str,
    pairs: &[(&str, &str)],
) {
    let reply = format!("{}.{token}", connection.inbox());
    let mut block = BytesMut::new();
    headers::write_block(&mut block, pairs);
    encode::publish_with_headers(connection.outgoing(), subject, Some(&reply), &block, b"{}");
}

/// An ordinary publish that expects `last`.
fn push_chained(connection: &mut LaneConnection, token: &str, last: u64) {
    let last = last.to_string();
    push(
        connection,
        token,
        "outbox.x",
        &[("Nats-Expected-Last-Sequence", &last)],
    );
}

/// Everything that arrives until nothing has for [`QUIET`]: token and body, in order.
pub(crate) async fn answers(connection: &mut LaneConnection) -> Vec<(String, Value)> {
    let mut answers = Vec::new();
    loop {
        while let Some(op) = connection.next_op().expect("the protocol") {
            if let Op::Msg(msg) = op {
                answers.push(answer(connection, &msg));
            }
        }
        match timeout(QUIET, connection.exchange()).await {
            Ok(result) => drop(result.expect("an open connection")),
            Err(_) => return answers,
        }
    }
}

fn answer(connection: &LaneConnection, msg: &Msg) -> (String, Value) {
    let token = msg.below(connection.inbox()).expect("below our inbox");
    let token = String::from_utf8(token.to_vec()).expect("text");
    let body =
        serde_json::from_slice(&msg.payload).unwrap_or_else(|_| json!({"status": msg.status()}));
    (token, body)
}

pub(crate) fn print(title: &str, answers: &[(String, Value)]) {
    eprintln!("== {title}");
    for (token, body) in answers {
        eprintln!("   {token:<24} {body}");
    }
}

/// One message of somebody else's.
pub(crate) async fn publish_foreign(connection: &mut LaneConnection, pairs: &[(&str, &str)]) {
    push(connection, "foreign", "outbox.foreign", pairs);
    assert!(answers(connection).await[0].1["seq"].is_u64());
}

/// One message of somebody else's on `subject`.
pub(crate) async fn publish_foreign_on(connection: &mut LaneConnection, subject: &str) {
    push(connection, "foreign", subject, &[]);
    assert!(answers(connection).await[0].1["seq"].is_u64());
}

pub(crate) async fn last_seq(connection: &mut LaneConnection) -> u64 {
    stream()
        .info(connection, SOON)
        .await
        .expect("an answer")
        .state
        .last_seq
}

/// The PubAck that ends a batch, fast or atomic.
pub(crate) fn commit(token: &str, count: u64, seq: u64) -> (String, Value) {
    let batch = token.split(['.', '-']).next();
    (
        token.to_owned(),
        json!({ "stream": "S", "batch": batch, "count": count, "seq": seq }),
    )
}

/// The error code of an answer to a token.
pub(crate) fn err_code(answers: &[(String, Value)], token: &str) -> Option<u64> {
    let (_, body) = answers.iter().find(|(found, _)| found == token)?;
    body["error"]["err_code"].as_u64()
}

pub(crate) fn seq(answers: &[(String, Value)], token: &str) -> Option<u64> {
    answers.iter().find(|(found, _)| found == token)?.1["seq"].as_u64()
}

#[tokio::test]
async fn a_chained_sequence_alone_skips_one_message_behind_a_foreign_message() {
    let server = Server::start("").await;
    let (mut ours, mut foreign) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    for last in 0..3 {
        push_chained(&mut ours, &format!("m{}", last + 1), last);
    }
    print(
        "(a) chain, before the foreign message",
        &answers(&mut ours).await,
    );
    publish_foreign(&mut foreign, &[]).await;
    for last in 3..6 {
        push_chained(&mut ours, &format!("m{}", last + 1), last);
    }
    let answers = answers(&mut ours).await;
    print("(a) chain, behind the foreign message at 4", &answers);
    assert_eq!(err_code(&answers, "m4"), Some(10071));
    assert_eq!(
        seq(&answers, "m5"),
        Some(5),
        "its expectation is the foreign message's sequence"
    );
    assert_eq!(seq(&answers, "m6"), Some(6));
}

/// A publish with an id, the chain of sequences and the chain of ids.
fn push_twice_chained(connection: &mut LaneConnection, n: u64, previous: Option<u64>) {
    let (id, last) = (format!("epoch.{n}"), (n - 1).to_string());
    let previous = previous.map(|n| format!("epoch.{n}"));
    let mut pairs = vec![
        ("Nats-Expected-Last-Sequence", last.as_str()),
        ("Nats-Msg-Id", &id),
    ];
    if let Some(previous) = &previous {
        pairs.push(("Nats-Expected-Last-Msg-Id", previous));
    }
    push(connection, &format!("m{n}"), "outbox.x", &pairs);
}

#[tokio::test]
async fn a_chain_of_ids_besides_refuses_everything_behind_a_foreign_message() {
    for foreign_id in [None, Some("other.1")] {
        let server = Server::start("").await;
        let (mut ours, mut foreign) = (server.connect().await, server.connect().await);
        create_stream(&mut ours).await;
        push_twice_chained(&mut ours, 1, None);
        push_twice_chained(&mut ours, 2, Some(1));
        push_twice_chained(&mut ours, 3, Some(2));
        let before = answers(&mut ours).await;
        print("(b) both chains, before the foreign message", &before);
        assert_eq!(seq(&before, "m3"), Some(3));
        let pairs: Vec<_> = foreign_id
            .map(|id| ("Nats-Msg-Id", id))
            .into_iter()
            .collect();
        publish_foreign(&mut foreign, &pairs).await;
        for n in 4..8 {
            push_twice_chained(&mut ours, n, Some(n - 1));
        }
        let behind = answers(&mut ours).await;
        print(
            &format!("(b) both chains, behind a foreign message with id {foreign_id:?}"),
            &behind,
        );
        assert_eq!(err_code(&behind, "m4"), Some(10071));
        for token in ["m5", "m6", "m7"] {
            assert!(
                err_code(&behind, token).is_some(),
                "{token} must be refused"
            );
        }
        assert_eq!(last_seq(&mut ours).await, 4);
    }
}

#[tokio::test]
async fn the_first_of_an_epoch_may_be_displaced_by_a_foreign_message() {
    let server = Server::start("").await;
    let (mut ours, mut foreign) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    publish_foreign(&mut foreign, &[]).await;
    // An epoch that read the tail as 0: its first message has no id to expect.
    push_twice_chained(&mut ours, 1, None);
    push_twice_chained(&mut ours, 2, Some(1));
    push_twice_chained(&mut ours, 3, Some(2));
    let answers = answers(&mut ours).await;
    print(
        "(b) a foreign message before the first of the epoch",
        &answers,
    );
    assert_eq!(err_code(&answers, "m1"), Some(10071));
    assert!(err_code(&answers, "m2").is_some() && err_code(&answers, "m3").is_some());
    assert_eq!(last_seq(&mut ours).await, 1);
}
