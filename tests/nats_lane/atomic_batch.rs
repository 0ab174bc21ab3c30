//! What atomic batches (nats-server 2.12) fenced by the lane's own subject answer, by experiment.

use serde_json::{Value, json};
use walrelay::nats::connection::LaneConnection;

use crate::experiments::{
    answers, commit, create_stream, err_code, last_seq, print, publish_foreign, publish_foreign_on,
    push, seq, update_stream,
};
use crate::server::Server;

/// One message of a batch of three: events on two subjects, then the commit on the lane's own subject.
fn push_message(connection: &mut LaneConnection, batch: &str, n: u64, last: u64) {
    let (token, n_text, last) = (format!("{batch}-{n}"), n.to_string(), last.to_string());
    let mut pairs = vec![
        ("Nats-Batch-Id", batch),
        ("Nats-Batch-Sequence", n_text.as_str()),
    ];
    let subject = match n {
        1 => "outbox.x",
        2 => "outbox.y",
        _ => {
            pairs.push(("Nats-Expected-Last-Subject-Sequence", &last));
            pairs.push(("Nats-Batch-Commit", "1"));
            "walrelay.lane.s"
        }
    };
    push(connection, &token, subject, &pairs);
}

/// A whole batch that expects `last` to be the last sequence on the lane's subject.
fn push_batch(connection: &mut LaneConnection, batch: &str, last: u64) {
    (1..=3).for_each(|n| push_message(connection, batch, n, last));
}

async fn publish_batch(
    connection: &mut LaneConnection,
    batch: &str,
    last: u64,
) -> Vec<(String, Value)> {
    push_batch(connection, batch, last);
    let answers = answers(connection).await;
    print(&format!("(d) batch {batch}, expects {last}"), &answers);
    answers
}

/// The answers to a batch that was taken: an empty payload to each message but the last.
fn accepted(batch: &str, seq: u64) -> [(String, Value); 3] {
    let empty = |n| (format!("{batch}-{n}"), json!({ "status": null }));
    [empty(1), empty(2), commit(&format!("{batch}-3"), 3, seq)]
}

#[tokio::test]
async fn a_batch_is_fenced_by_the_lane_subject_that_it_commits_on() {
    let server = Server::start("").await;
    let mut ours = server.connect().await;
    create_stream(&mut ours).await;
    assert_eq!(
        publish_batch(&mut ours, "first", 0).await,
        accepted("first", 3)
    );
    let stale = publish_batch(&mut ours, "stale", 0).await;
    assert_eq!(err_code(&stale, "stale-3"), Some(10071));
    assert_eq!(
        last_seq(&mut ours).await,
        3,
        "nothing of the stale batch is stored"
    );
    assert_eq!(
        publish_batch(&mut ours, "third", 3).await,
        accepted("third", 6)
    );
    // Back to back, without waiting for the commit in between.
    push_batch(&mut ours, "fourth", 6);
    push_batch(&mut ours, "fifth", 9);
    let both = answers(&mut ours).await;
    print("(d) two batches pipelined, expect 6 and 9", &both);
    assert_eq!(
        both,
        [accepted("fourth", 9), accepted("fifth", 12)].concat()
    );
}

#[tokio::test]
async fn other_writers_do_not_break_a_batch() {
    let server = Server::start("").await;
    let (mut ours, mut foreign) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    push_message(&mut ours, "b", 1, 0);
    assert_eq!(answers(&mut ours).await.len(), 1);
    publish_foreign(&mut foreign, &[]).await;
    push_message(&mut ours, "b", 2, 0);
    push_message(&mut ours, "b", 3, 0);
    let between = answers(&mut ours).await;
    print(
        "(d) a foreign message between the messages of a batch",
        &between,
    );
    assert_eq!(
        between[1],
        commit("b-3", 3, 4),
        "the batch lies together behind the foreign message"
    );
}

#[tokio::test]
async fn another_relays_fence_refuses_all_pipelined_batches() {
    let server = Server::start("").await;
    let (mut ours, mut other) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    push_batch(&mut ours, "a", 0);
    assert_eq!(answers(&mut ours).await, accepted("a", 3));
    publish_foreign_on(&mut other, "walrelay.lane.s").await;
    push_batch(&mut ours, "b", 3);
    push_batch(&mut ours, "c", 6);
    let refused = answers(&mut ours).await;
    print("(d) two pipelined batches of a fenced relay", &refused);
    assert_eq!(
        (err_code(&refused, "b-3"), err_code(&refused, "c-3")),
        (Some(10071), Some(10071))
    );
    assert_eq!(last_seq(&mut ours).await, 4);
}

#[tokio::test]
async fn a_predicted_fence_meets_a_foreign_message_on_a_shared_stream() {
    let server = Server::start("").await;
    let (mut ours, mut foreign) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    push_batch(&mut ours, "a", 0);
    assert_eq!(answers(&mut ours).await, accepted("a", 3));
    publish_foreign(&mut foreign, &[]).await;
    // Predicted from 3: the lane's subject is then at 7, not at 6.
    push_batch(&mut ours, "b", 3);
    push_batch(&mut ours, "c", 6);
    let answers = answers(&mut ours).await;
    print("(d) a predicted fence behind a foreign message", &answers);
    assert_eq!(seq(&answers, "b-3"), Some(7));
    assert_eq!(
        err_code(&answers, "c-3"),
        Some(10071),
        "refused whole, nothing is skipped"
    );
    assert_eq!(last_seq(&mut ours).await, 7);
}

#[tokio::test]
async fn a_predicted_fence_lets_a_batch_through_behind_a_refused_one() {
    let server = Server::start("").await;
    let (mut ours, mut other) = (server.connect().await, server.connect().await);
    create_stream(&mut ours).await;
    push_batch(&mut ours, "a", 0);
    assert_eq!(answers(&mut ours).await, accepted("a", 3));
    // The other relay's record has just the sequence that ours was predicted to have.
    publish_foreign(&mut other, &[]).await;
    publish_foreign(&mut other, &[]).await;
    publish_foreign_on(&mut other, "walrelay.lane.s").await;
    push_batch(&mut ours, "b", 3);
    push_batch(&mut ours, "c", 6);
    let answers = answers(&mut ours).await;
    print(
        "(d) another relay's record at the predicted sequence",
        &answers,
    );
    assert_eq!(err_code(&answers, "b-3"), Some(10071));
    assert_eq!(
        seq(&answers, "c-3"),
        Some(9),
        "batch b is skipped: one batch in flight"
    );
}

/// A message that is refused or missing: nothing of its batch is stored.
#[tokio::test]
async fn a_refused_message_ends_its_batch() {
    let server = Server::start("").await;
    let mut ours = server.connect().await;
    create_stream(&mut ours).await;
    update_stream(&mut ours, &json!({"max_msg_size": 300})).await;
    let large = "x".repeat(400);
    push_message(&mut ours, "large", 1, 0);
    push(
        &mut ours,
        "large-2",
        "outbox.y",
        &[
            ("Nats-Batch-Id", "large"),
            ("Nats-Batch-Sequence", "2"),
            ("Large", &large),
        ],
    );
    push_message(&mut ours, "large", 3, 0);
    let refused = answers(&mut ours).await;
    print("(d) message 2 of 3 is too large", &refused);
    assert_eq!(err_code(&refused, "large-2"), Some(10054), "at once");
    assert_eq!(err_code(&refused, "large-3"), Some(10176));

    update_stream(
        &mut ours,
        &json!({"max_msg_size": -1, "max_msgs": 2, "discard": "new"}),
    )
    .await;
    push_batch(&mut ours, "full", 0);
    let refused = answers(&mut ours).await;
    print("(d) the stream has room for 2 of 3", &refused);
    assert_eq!(err_code(&refused, "full-3"), Some(10077), "at the commit");

    push_message(&mut ours, "gap", 1, 0);
    push_message(&mut ours, "gap", 3, 0);
    let refused = answers(&mut ours).await;
    print("(d) message 2 of 3 is missing", &refused);
    assert_eq!(err_code(&refused, "gap-3"), Some(10176));
    push_message(&mut ours, "unknown", 2, 0);
    push_message(&mut ours, "unknown", 3, 0);
    let refused = answers(&mut ours).await;
    print("(d) message 1 of 3 is missing", &refused);
    assert_eq!(err_code(&refused, "unknown-2"), Some(10176));
    assert_eq!(last_seq(&mut ours).await, 0);
}
