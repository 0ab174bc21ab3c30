//! The lane's connection and its API requests.

use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpListener;
use tokio::time::timeout;
use walrelay::nats::address::{NatsAddress, NatsAuth};
use walrelay::nats::api::{DEFAULT_PREFIX, StreamApi};
use walrelay::nats::connection::{ConnectError, LaneConnection, RequestError};
use walrelay::nats::protocol::{Msg, Op};
use walrelay::nats::settings::ConnectionSettings;
use walrelay::nats::{encode, headers};
use walrelay::pipeline::end_search::Lookup;

use crate::experiments::{create_stream, stream};
use crate::server::{CallError, Calls as _, SOON, Server, queue};

/// The next operation within [`SOON`], other than the INFO that every client gets again behind its CONNECT.
async fn next(connection: &mut LaneConnection) -> Op {
    let wait = async {
        loop {
            match connection.next_op().expect("the protocol") {
                Some(Op::Info(info)) if !info.lame_duck_mode => {}
                Some(op) => return op,
                None => drop(connection.exchange().await.expect("an open connection")),
            }
        }
    };
    timeout(SOON, wait).await.expect("an operation comes")
}

async fn next_msg(connection: &mut LaneConnection) -> Msg {
    match next(connection).await {
        Op::Msg(msg) => msg,
        other => panic!("{other:?} instead of a message"),
    }
}

/// Publishes into stream S and waits for the ack.
async fn publish(connection: &mut LaneConnection, pairs: &[(&str, &str)], payload: &[u8]) {
    let mut block = BytesMut::new();
    headers::write_block(&mut block, pairs);
    let ack = connection
        .request("outbox.x", Some(&block), payload, SOON)
        .await
        .expect("an ack");
    assert!(
        ack.payload.starts_with(b"{\"stream\":\"S\""),
        "{:?}",
        ack.payload
    );
}

#[tokio::test]
async fn opens_with_a_fresh_inbox_each_time() {
    let server = Server::start("").await;
    let (one, other) = (server.connect().await, server.connect().await);
    assert!(one.info().jetstream && one.info().headers && one.info().version.at_least(2, 14));
    assert!(one.inbox().starts_with("_INBOX.") && one.inbox() != other.inbox());
    one.close().await;
}

async fn open(servers: &[NatsAddress], limit: Duration) -> Result<LaneConnection, ConnectError> {
    let mut settings = ConnectionSettings::new(servers.to_vec(), NatsAuth::None);
    settings.connect_timeout = limit;
    LaneConnection::open(&settings, "t", &[]).await
}

#[tokio::test]
async fn tries_the_servers_in_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let dead = NatsAddress {
        host: "127.0.0.1".into(),
        port,
        tls: false,
    };
    let error = open(std::slice::from_ref(&dead), SOON).await;
    let error = error.expect_err("nobody listens");
    assert!(matches!(error, ConnectError::Unreachable { .. }) && error.is_transient());
    let server = Server::start("").await;
    let servers = [dead, server.address()];
    let lane = open(&servers, SOON).await.expect("the second");
    assert_eq!(lane.server(), &server.address());
    assert!(matches!(open(&[], SOON).await, Err(ConnectError::NoServer)));
}

#[tokio::test]
async fn a_silent_server_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let address = NatsAddress {
        host: "127.0.0.1".into(),
        port,
        tls: false,
    };
    let limit = Duration::from_millis(50);
    let error = open(&[address], limit).await.expect_err("silence");
    assert!(matches!(error, ConnectError::Timeout { .. }) && error.is_transient());
}

#[tokio::test]
async fn a_restart_of_the_server_is_noticed() {
    let mut server = Server::start("").await;
    let mut lane = server.connect().await;
    create_stream(&mut lane).await;
    publish(&mut lane, &[], b"{}").await;
    server.restart().await;
    timeout(SOON, lane.exchange())
        .await
        .expect("at once")
        .expect_err("the connection is lost");
    let error = lane
        .request("$JS.API.INFO", None, b"", SOON)
        .await
        .expect_err("still lost");
    assert!(matches!(error, RequestError::Io(_)) && error.is_transient());
    let mut lane = server.connect().await;
    let info = stream()
        .info(&mut lane, SOON)
        .await
        .expect("the stream is still there");
    assert_eq!((info.state.messages, info.state.last_seq), (1, 1));
}

#[tokio::test]
async fn asks_the_api_and_reads_messages() {
    let server = Server::start("").await;
    let mut lane = server.connect().await;
    let error = stream()
        .info(&mut lane, SOON)
        .await
        .expect_err("no stream yet");
    assert!(
        error
            .api()
            .is_some_and(|error| error.is_stream_not_found() && !error.is_transient())
    );
    create_stream(&mut lane).await;
    let created = stream().info(&mut lane, SOON).await.expect("an answer");
    assert_eq!(created.config.subjects, ["outbox.>", "walrelay.>"]);
    assert!(
        created.config.allow_batched && created.config.allow_atomic && created.config.allow_direct
    );
    assert_eq!(created.config.retention, "limits");
    assert_eq!(
        stream()
            .message(&mut lane, Lookup::Last("*.>"), SOON)
            .await
            .expect("an answer"),
        None
    );
    publish(&mut lane, &[("Walrelay-Position", "s 0/1:0")], b"{\"a\":1}").await;
    publish(&mut lane, &[("Walrelay-Position", "s 0/1:1")], b"{\"a\":2}").await;
    publish(&mut lane, &[], b"").await;
    let message = stream()
        .message(&mut lane, Lookup::Message(2), SOON)
        .await
        .expect("an answer")
        .expect("stored");
    assert_eq!(message.header("Walrelay-Position"), Some(&b"s 0/1:1"[..]));
    assert_eq!(
        (message.subject.as_str(), &message.data[..]),
        ("outbox.x", &b"{\"a\":2}"[..])
    );
    let delete = br#"{"seq":3,"no_erase":true}"#;
    lane.request("$JS.API.STREAM.MSG.DELETE.S", None, delete, SOON)
        .await
        .expect("an answer");
    assert_eq!(
        stream()
            .message(&mut lane, Lookup::Message(3), SOON)
            .await
            .expect("an answer"),
        None
    );
    assert_eq!(
        stream()
            .message(&mut lane, Lookup::Message(99), SOON)
            .await
            .expect("an answer"),
        None
    );
    let last = stream()
        .message(&mut lane, Lookup::Last("*.>"), SOON)
        .await
        .expect("an answer");
    assert_eq!(last.expect("the one before").seq, 2);
    let info = stream().info(&mut lane, SOON).await.expect("an answer");
    assert_eq!(
        (info.state.last_seq, info.state.messages, info.created),
        (3, 2, created.created)
    );
}

#[tokio::test]
async fn asks_while_streaming() {
    let server = Server::start("").await;
    let mut lane = server.connect().await;
    create_stream(&mut lane).await;
    let request = stream().info_request();
    queue(&mut lane, "probe", &request.subject, &request.payload);
    let msg = next_msg(&mut lane).await;
    assert_eq!(msg.below(lane.inbox()), Some(&b"probe"[..]));
    assert!(walrelay::nats::api::StreamInfo::parse(&msg.payload).is_ok());
    lane.queue_ping();
    assert_eq!(next(&mut lane).await, Op::Pong);
}

#[tokio::test]
async fn says_when_nobody_answers() {
    let server = Server::start("").await;
    let mut lane = server.connect().await;
    let error = lane
        .request("nobody.listens", None, b"", SOON)
        .await
        .expect_err("nobody");
    assert!(matches!(error, RequestError::NoResponders { .. }));
    queue(&mut lane, "again", "nobody.listens", b"");
    let msg = next_msg(&mut lane).await;
    assert_eq!(
        (msg.below(lane.inbox()), msg.status()),
        (Some(&b"again"[..]), Some(503))
    );
    let other = StreamApi::new(DEFAULT_PREFIX, "ABSENT").expect("a legal name");
    let error = other
        .message(&mut lane, Lookup::Message(1), SOON)
        .await
        .expect_err("no such stream");
    assert!(error.api().is_some_and(|error| error.is_stream_not_found()));
}

#[tokio::test]
async fn a_request_to_a_paused_server_times_out() {
    let mut server = Server::start("").await;
    let mut lane = server.connect().await;
    create_stream(&mut lane).await;
    server.pause();
    let limit = Duration::from_millis(100);
    let error = stream().info(&mut lane, limit).await.expect_err("silence");
    assert!(
        matches!(&error, CallError::Request(request) if request.is_transient()),
        "{error:?}"
    );
    server.resume();
    // The late answer of the first request is not taken for the second one's.
    let last = stream()
        .message(&mut lane, Lookup::Last("*.>"), SOON)
        .await
        .expect("an answer");
    assert_eq!(last, None);
}

#[tokio::test]
async fn partial_writes_to_a_paused_server_lose_nothing() {
    const MESSAGES: u64 = 48;
    let mut server = Server::start("").await;
    let mut lane = server.connect().await;
    create_stream(&mut lane).await;
    server.pause();
    let payload = vec![b'x'; 1_000_000];
    for n in 0..MESSAGES {
        let reply = format!("{}.{n}", lane.inbox());
        encode::publish(lane.outgoing(), "outbox.x", Some(&reply), &payload);
    }
    let all = lane.pending_bytes();
    // Each future is dropped where the kernel has no more room: that must neither lose nor repeat a byte.
    while timeout(Duration::from_millis(50), lane.write_some())
        .await
        .is_ok()
    {}
    assert!(lane.pending_bytes() > 0 && lane.pending_bytes() < all);
    server.resume();
    for n in 0..MESSAGES {
        let msg = next_msg(&mut lane).await;
        assert_eq!(msg.below(lane.inbox()), Some(n.to_string().as_bytes()));
    }
    assert_eq!(lane.pending_bytes(), 0);
    let message = stream()
        .message(&mut lane, Lookup::Message(MESSAGES), SOON)
        .await
        .expect("an answer");
    assert!(message.expect("stored").data == payload);
}

#[tokio::test]
async fn too_large_a_payload_ends_the_connection() {
    let server = Server::start("max_payload: 1024").await;
    let mut lane = server.connect().await;
    assert_eq!(lane.info().max_payload, 1024);
    encode::publish(lane.outgoing(), "outbox.x", None, &[b'x'; 1025]);
    let Op::Err(text) = next(&mut lane).await else {
        panic!("an error comes first")
    };
    assert!(text.contains("Payload"), "{text}");
    timeout(SOON, lane.exchange())
        .await
        .expect("at once")
        .expect_err("the server hangs up");
}

#[tokio::test]
async fn answers_the_servers_pings() {
    let server = Server::start("ping_interval: \"50ms\"\nping_max: 1").await;
    let mut lane = server.connect().await;
    // A client that does not answer is cut off after two intervals.
    let silence = timeout(Duration::from_millis(600), async {
        loop {
            while let Some(op) = lane.next_op().expect("the protocol") {
                assert!(!matches!(op, Op::Ping | Op::Err(_)), "{op:?}");
            }
            lane.exchange().await.expect("an open connection");
        }
    });
    silence.await.expect_err("nothing ends it");
}

#[tokio::test]
async fn lame_duck_mode_is_announced() {
    let server = Server::start("").await;
    let mut lane = server.connect().await;
    server.lame_duck();
    assert!(matches!(next(&mut lane).await, Op::Info(info) if info.lame_duck_mode));
    assert!(lane.info().lame_duck_mode);
}
