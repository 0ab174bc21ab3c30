//! What fast ingest (nats-server 2.14, ADR-50) answers, by experiment.
//!
//! Replies are `<inbox>.<batch>.<flow>.fail.<seq>.<op>.$FI`; ops: 0 start, 1 append, 2 commit with a message,
//! 3 commit without, 4 ping.

use serde_json::{Value, json};
use walrelay::nats::connection::LaneConnection;
use walrelay::pipeline::end_search::Lookup;

use crate::experiments::{
    answers, commit, create_stream, err_code, last_seq, print, publish_foreign, push, seq, stream,
};
use crate::server::{Calls as _, SOON, Server};

/// One message of a fast batch; `last` is its expected sequence.
fn push_fast(
    connection: &mut LaneConnection,
    batch: &str,
    flow: u64,
    n: u64,
    op: u8,
    last: Option<u64>,
) {
    let token = format!("{batch}.{flow}.fail.{n}.{op}.$FI");
    let last = last.map(|last| last.to_string());
    let pairs = last
        .as_deref()
        .map(|last| ("Nats-Expected-Last-Sequence", last));
    push(connection, &token, "outbox.x", pairs.as_slice());
}

/// The flow ack of a fast batch.
fn flow_ack(token: &str, msgs: u64, seq: u64) -> (String, Value) {
    (
        token.to_owned(),
        json!({ "type": "ack", "msgs": msgs, "seq": seq }),
    )
}

async fn open() -> (Server, LaneConnection) {
    let server = Server::start("").await;
    let mut lane = server.connect().await;
    create_stream(&mut lane).await;
    (server, lane)
}

#[tokio::test]
async fn a_batch_of_one_message_commits_at_once() {
    let (_server, mut ours) = open().await;
    push_fast(&mut ours, "one", 100, 1, 2, Some(0));
    let stored = answers(&mut ours).await;
    print("(c) one message, op 2 at seq 1", &stored);
    assert_eq!(
        stored,
        [commit("one.100.fail.1.2.$FI", 1, 1)],
        "a single PubAck, no flow ack"
    );
    push_fast(&mut ours, "two", 100, 1, 2, Some(0));
    let refused = answers(&mut ours).await;
    print(
        "(c) one message, op 2 at seq 1, wrong expectation",
        &refused,
    );
    assert_eq!(err_code(&refused, "two.100.fail.1.2.$FI"), Some(10071));
    assert_eq!(last_seq(&mut ours).await, 1);
}

#[tokio::test]
async fn no_wait_for_the_first_answer_is_needed() {
    let (_server, mut ours) = open().await;
    push_fast(&mut ours, "b", 100, 1, 0, Some(0));
    push_fast(&mut ours, "b", 100, 2, 1, Some(1));
    push_fast(&mut ours, "b", 100, 3, 1, Some(2));
    push_fast(&mut ours, "b", 100, 4, 2, Some(3));
    let short = answers(&mut ours).await;
    print("(c) ops 0 1 1 2 in one write", &short);
    let expected = [
        flow_ack("b.100.fail.1.0.$FI", 100, 0),
        commit("b.100.fail.4.2.$FI", 4, 4),
    ];
    assert_eq!(short, expected);
    push_fast(&mut ours, "c", 100, 1, 0, Some(4));
    for n in 2..=2000 {
        push_fast(&mut ours, "c", 100, n, 1, Some(3 + n));
    }
    push_fast(&mut ours, "c", 100, 2001, 2, Some(2004));
    let long = answers(&mut ours).await;
    print("(c) 2,001 messages in one go, flow 100", &long);
    assert_eq!(
        long.len(),
        1 + 20 + 1,
        "the first answer, an ack each 100 messages, the commit"
    );
    assert_eq!(long[20], flow_ack("c.100.fail.2000.1.$FI", 100, 2000));
    assert_eq!(long[21], commit("c.100.fail.2001.2.$FI", 2001, 2005));
}

#[tokio::test]
async fn the_tail_is_confirmed_by_a_commit_only() {
    let (_server, mut ours) = open().await;
    push_fast(&mut ours, "d", 100, 1, 0, None);
    push_fast(&mut ours, "d", 100, 2, 1, None);
    let open = answers(&mut ours).await;
    print("(c) ops 0 1, then silence", &open);
    assert_eq!(open, [flow_ack("d.100.fail.1.0.$FI", 100, 0)]);
    push_fast(&mut ours, "d", 100, 2, 4, None);
    let ping = answers(&mut ours).await;
    print("(c) op 4 (ping) at seq 2", &ping);
    assert_eq!(
        ping,
        [flow_ack("d.100.fail.2.4.$FI", 100, 0)],
        "the last flow ack once more"
    );
    push_fast(&mut ours, "d", 100, 3, 3, None);
    let end = answers(&mut ours).await;
    print("(c) op 3 at seq 3", &end);
    assert_eq!(
        end,
        [commit("d.100.fail.3.3.$FI", 2, 2)],
        "its own message is not stored"
    );
    push_fast(&mut ours, "d", 100, 4, 1, None);
    let late = answers(&mut ours).await;
    print("(c) op 1 behind the commit", &late);
    assert_eq!(err_code(&late, "d.100.fail.4.1.$FI"), Some(10208));
    assert_eq!(last_seq(&mut ours).await, 2);
}

#[tokio::test]
async fn the_flow_token_sets_the_frequency_of_acks() {
    let (_server, mut ours) = open().await;
    // 0 means 10, and no more than 500 are granted to a sole publisher.
    for (flow, granted) in [
        (0, 10),
        (1, 1),
        (10, 10),
        (100, 100),
        (500, 500),
        (1000, 500),
    ] {
        let batch = format!("f{flow}");
        push_fast(&mut ours, &batch, flow, 1, 0, None);
        let first = answers(&mut ours).await;
        print(&format!("(c) flow {flow}: first"), &first);
        assert_eq!(first[0].1, flow_ack("", granted, 0).1);
        for n in 2..=1200 {
            push_fast(&mut ours, &batch, flow, n, 1, None);
        }
        let acks = answers(&mut ours).await;
        let seqs: Vec<_> = acks
            .iter()
            .filter_map(|(_, ack)| ack["seq"].as_u64())
            .collect();
        eprintln!(
            "   {} acks for 1,199 messages: {:?} …",
            seqs.len(),
            &seqs[..2]
        );
        // With 1 the first message was confirmed above.
        assert_eq!(seqs.len() as u64, 1200 / granted - u64::from(granted == 1));
        assert!(seqs.iter().all(|seq| seq % granted == 0));
        push_fast(&mut ours, &batch, flow, 1201, 2, None);
        let end = answers(&mut ours).await;
        assert_eq!((end.len(), &end[0].1["count"]), (1, &json!(1201)));
    }
}

#[tokio::test]
async fn a_second_publisher_changes_the_flow() {
    let (server, mut ours) = open().await;
    let mut theirs = server.connect().await;
    push_fast(&mut ours, "a", 500, 1, 0, None);
    print("(c) first publisher", &answers(&mut ours).await);
    push_fast(&mut theirs, "z", 500, 1, 0, None);
    let slow = answers(&mut theirs).await;
    print("(c) second publisher", &slow);
    assert_eq!(
        slow[0],
        flow_ack("z.500.fail.1.0.$FI", 1, 0),
        "it starts slowly"
    );
    let granted = |answers: &[(String, Value)]| -> Vec<_> {
        answers
            .iter()
            .filter_map(|(_, ack)| ack["msgs"].as_u64())
            .collect()
    };
    for n in 2..=1100 {
        push_fast(&mut ours, "a", 500, n, 1, None);
    }
    let shared = answers(&mut ours).await;
    print("(c) first publisher with a second one", &shared);
    assert_eq!(granted(&shared), [250, 250, 250], "from 500 on it has half");
    for n in 2..=1100 {
        push_fast(&mut theirs, "z", 500, n, 1, None);
    }
    let grown = answers(&mut theirs).await;
    print("(c) second publisher, 1,099 more", &grown);
    assert_eq!(
        granted(&grown),
        [4, 8, 16, 32, 64, 128, 250, 250, 250, 250],
        "doubles up to half"
    );
}

#[tokio::test]
async fn a_foreign_message_ends_a_batch() {
    let (server, mut ours) = open().await;
    let mut foreign = server.connect().await;
    push_fast(&mut ours, "b", 100, 1, 0, Some(0));
    push_fast(&mut ours, "b", 100, 2, 1, Some(1));
    push_fast(&mut ours, "b", 100, 3, 1, Some(2));
    assert_eq!(
        answers(&mut ours).await,
        [flow_ack("b.100.fail.1.0.$FI", 100, 0)]
    );
    publish_foreign(&mut foreign, &[]).await;
    push_fast(&mut ours, "b", 100, 4, 1, Some(3));
    push_fast(&mut ours, "b", 100, 5, 1, Some(4));
    push_fast(&mut ours, "b", 100, 6, 1, Some(5));
    push_fast(&mut ours, "b", 100, 7, 2, Some(6));
    let answers = answers(&mut ours).await;
    print("(c) a foreign message at 4, expectation on each", &answers);
    let error = json!({ "code": 400, "err_code": 10071, "description": "wrong last sequence: 4" });
    let refused = json!({ "type": "err", "seq": 4, "error": error });
    assert_eq!(answers[0], ("b.100.fail.4.1.$FI".to_owned(), refused));
    assert_eq!(
        answers[1],
        commit("b.100.fail.4.1.$FI", 3, 3),
        "the prefix, on the refused reply"
    );
    for token in [
        "b.100.fail.5.1.$FI",
        "b.100.fail.6.1.$FI",
        "b.100.fail.7.2.$FI",
    ] {
        assert_eq!(err_code(&answers, token), Some(10208));
    }
    assert_eq!(answers.len(), 5);
    assert_eq!(
        last_seq(&mut ours).await,
        4,
        "nothing of ours behind the foreign message"
    );
    let last = stream()
        .message(&mut ours, Lookup::Message(4), SOON)
        .await
        .expect("an answer");
    assert_eq!(last.expect("stored").subject, "outbox.foreign");
}

#[tokio::test]
async fn a_second_batch_may_follow_a_commit_at_once() {
    let (_server, mut ours) = open().await;
    push_fast(&mut ours, "b1", 100, 1, 0, Some(0));
    push_fast(&mut ours, "b1", 100, 2, 2, Some(1));
    push_fast(&mut ours, "b2", 100, 1, 0, Some(2));
    push_fast(&mut ours, "b2", 100, 2, 2, Some(3));
    push_fast(&mut ours, "b3", 100, 1, 2, Some(4));
    let answers = answers(&mut ours).await;
    print("(c) three batches in one write", &answers);
    assert_eq!(seq(&answers, "b1.100.fail.2.2.$FI"), Some(2));
    assert_eq!(seq(&answers, "b2.100.fail.2.2.$FI"), Some(4));
    assert_eq!(seq(&answers, "b3.100.fail.1.2.$FI"), Some(5));
}

#[tokio::test]
async fn a_batch_sent_behind_an_unanswered_commit_skips_one_message_behind_a_foreign_message() {
    let (server, mut ours) = open().await;
    let mut foreign = server.connect().await;
    push_fast(&mut ours, "b1", 100, 1, 0, Some(0));
    assert_eq!(answers(&mut ours).await.len(), 1);
    publish_foreign(&mut foreign, &[]).await;
    push_fast(&mut ours, "b1", 100, 2, 2, Some(1));
    push_fast(&mut ours, "b2", 100, 1, 2, Some(2));
    let answers = answers(&mut ours).await;
    print(
        "(c) a foreign message before the commit, the next batch already sent",
        &answers,
    );
    assert_eq!(err_code(&answers, "b1.100.fail.2.2.$FI"), Some(10071));
    assert_eq!(
        seq(&answers, "b2.100.fail.1.2.$FI"),
        Some(3),
        "it expects the foreign message's sequence"
    );
}

/// One message of a fast batch with an id of its own, or the expectation of one.
fn push_linked(connection: &mut LaneConnection, token: &str, last: u64, link: (&str, &str)) {
    let last = last.to_string();
    let pairs = [("Nats-Expected-Last-Sequence", last.as_str()), link];
    push(connection, token, "outbox.x", &pairs);
}

#[tokio::test]
async fn an_id_that_links_two_batches_refuses_the_second_behind_a_foreign_message() {
    for is_foreign in [false, true] {
        let (server, mut ours) = open().await;
        let mut foreign = server.connect().await;
        push_fast(&mut ours, "b1", 100, 1, 0, Some(0));
        assert_eq!(answers(&mut ours).await.len(), 1);
        if is_foreign {
            publish_foreign(&mut foreign, &[]).await;
        }
        push_linked(
            &mut ours,
            "b1.100.fail.2.2.$FI",
            1,
            ("Nats-Msg-Id", "epoch.1"),
        );
        push_linked(
            &mut ours,
            "b2.100.fail.1.0.$FI",
            2,
            ("Nats-Expected-Last-Msg-Id", "epoch.1"),
        );
        push_fast(&mut ours, "b2", 100, 2, 1, Some(3));
        push_linked(
            &mut ours,
            "b2.100.fail.3.2.$FI",
            4,
            ("Nats-Msg-Id", "epoch.2"),
        );
        push_linked(
            &mut ours,
            "b3.100.fail.1.2.$FI",
            5,
            ("Nats-Expected-Last-Msg-Id", "epoch.2"),
        );
        let answers = answers(&mut ours).await;
        print(
            &format!("(c) batches linked by an id, foreign message: {is_foreign}"),
            &answers,
        );
        if is_foreign {
            assert_eq!(
                answers[1],
                commit("b1.100.fail.2.2.$FI", 1, 1),
                "the prefix of the first"
            );
            // The flow ack of a start comes before its message is looked at.
            assert_eq!(answers[2], flow_ack("b2.100.fail.1.0.$FI", 100, 0));
            assert_eq!(answers[3].1["error"]["err_code"], 10070);
            assert_eq!(err_code(&answers, "b3.100.fail.1.2.$FI"), Some(10071));
            assert_eq!(
                last_seq(&mut ours).await,
                2,
                "nothing of ours behind the foreign message"
            );
        } else {
            assert_eq!(seq(&answers, "b3.100.fail.1.2.$FI"), Some(6));
        }
    }
}

#[tokio::test]
async fn a_batch_whose_first_message_is_refused_takes_no_second() {
    let (server, mut ours) = open().await;
    let mut foreign = server.connect().await;
    publish_foreign(&mut foreign, &[]).await;
    push_fast(&mut ours, "b", 100, 1, 0, Some(0));
    push_fast(&mut ours, "b", 100, 2, 1, Some(1));
    push_fast(&mut ours, "b", 100, 3, 1, Some(2));
    push_fast(&mut ours, "b", 100, 4, 2, Some(3));
    let answers = answers(&mut ours).await;
    print("(c) the first message refused by its sequence", &answers);
    assert_eq!(
        answers[0],
        flow_ack("b.100.fail.1.0.$FI", 100, 0),
        "before the refusal"
    );
    assert_eq!(answers[1].1["error"]["err_code"], 10071);
    for token in [
        "b.100.fail.2.1.$FI",
        "b.100.fail.3.1.$FI",
        "b.100.fail.4.2.$FI",
    ] {
        assert_eq!(err_code(&answers, token), Some(10208));
    }
    assert_eq!(last_seq(&mut ours).await, 1);
}

#[tokio::test]
async fn a_batch_whose_first_message_is_refused_by_its_id_stays_open() {
    let (server, mut ours) = open().await;
    let mut foreign = server.connect().await;
    publish_foreign(&mut foreign, &[]).await;
    push_linked(
        &mut ours,
        "b.100.fail.1.0.$FI",
        1,
        ("Nats-Expected-Last-Msg-Id", "epoch.1"),
    );
    let first = answers(&mut ours).await;
    print("(c) the first message refused by its id", &first);
    assert_eq!(first[1].1["error"]["err_code"], 10070);
    publish_foreign(&mut foreign, &[]).await;
    push_fast(&mut ours, "b", 100, 2, 1, Some(2));
    push_fast(&mut ours, "b", 100, 3, 2, Some(3));
    let rest = answers(&mut ours).await;
    print(
        "(c) another foreign message, then the second and third",
        &rest,
    );
    // The commit has the predicted count and sequence, and the first message is missing.
    assert_eq!(rest, [commit("b.100.fail.3.2.$FI", 3, 4)]);
    let first = stream()
        .message(&mut ours, Lookup::Message(2), SOON)
        .await
        .expect("an answer");
    assert_eq!(first.expect("stored").subject, "outbox.foreign");
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_a_batch() {
    let (server, mut ours) = open().await;
    let mut foreign = server.connect().await;
    let config = json!({ "name": "S", "subjects": ["outbox.>", "walrelay.>"], "storage": "file", "num_replicas": 1,
        "allow_batched": true, "allow_atomic": true, "allow_direct": true, "max_msg_size": 200 });
    let update = config.to_string();
    let subject = "$JS.API.STREAM.UPDATE.S";
    ours.request(subject, None, update.as_bytes(), SOON)
        .await
        .expect("an answer");
    let padding = "x".repeat(300);
    push_linked(&mut ours, "b.100.fail.1.0.$FI", 0, ("Padding", &padding));
    let first = answers(&mut ours).await;
    print("(c) the first message refused by its size", &first);
    assert_eq!(
        (first.len(), err_code(&first, "b.100.fail.1.0.$FI")),
        (1, Some(10054))
    );
    publish_foreign(&mut foreign, &[]).await;
    push_fast(&mut ours, "b", 100, 2, 1, Some(1));
    push_fast(&mut ours, "b", 100, 3, 2, Some(2));
    let rest = answers(&mut ours).await;
    print("(c) a foreign message, then the second and third", &rest);
    assert_eq!(
        err_code(&rest, "b.100.fail.2.1.$FI"),
        Some(10208),
        "the batch never began"
    );
    assert_eq!(last_seq(&mut ours).await, 1);
    push_fast(&mut ours, "c", 100, 1, 0, None);
    push_linked(&mut ours, "c.100.fail.2.1.$FI", 4, ("Padding", &padding));
    push_fast(&mut ours, "c", 100, 3, 1, None);
    push_fast(&mut ours, "c", 100, 4, 2, None);
    let gap = answers(&mut ours).await;
    print("(c) the second of four too large, no expectations", &gap);
    assert_eq!(err_code(&gap, "c.100.fail.2.1.$FI"), Some(10054));
    let third = "c.100.fail.3.1.$FI";
    assert_eq!(
        gap[2],
        (
            third.to_owned(),
            json!({ "type": "gap", "last_seq": 2, "seq": 3 })
        )
    );
    assert_eq!(gap[3], commit(third, 1, 2), "the gap ends the batch");
    assert_eq!(last_seq(&mut ours).await, 2);
}
