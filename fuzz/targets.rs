//! What reads bytes or text of somebody else's: each must end, without a panic, whatever it gets, and what it accepts must come
//! back the same from what walrelay writes of it.
//!
//! `tests/frames/corpora.rs` runs them on `corpus/` and on damaged copies of it in `make test`; `cargo fuzz run NAME` looks for more.

use std::time::Duration;
use std::{fs, io};

use bytes::BytesMut;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use walrelay::config::{self, Flags, Key};
use walrelay::environment::Environment;
use walrelay::event::EventEnvelope;
use walrelay::nats::api::{StoredMessage, StreamInfo};
use walrelay::nats::headers::Headers;
use walrelay::nats::protocol::{Op, Parser};
use walrelay::pipeline::copy_both::{self, ReplicationMessage};
use walrelay::pipeline::limit::SizeLimit;
use walrelay::pipeline::oversized::ColumnFilter;
use walrelay::pipeline::pgoutput::{self, Message};
use walrelay::pipeline::position::{self, Position};
use walrelay::pipeline::publish::{
    Body, EventId, Message as Row, Mode, Origin, Window, WindowLimits, WindowSettings,
};
use walrelay::pipeline::record::{LaneRecord, RecordOrNote};
use walrelay::postgres::client;
use walrelay::postgres::conninfo::Conninfo;
use walrelay::postgres::error::ServerError;
use walrelay::postgres::startup::{self, SessionSettings};

/// A target and the folder of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 10] = [
    ("startup", startup),
    ("replication", replication),
    ("server_error", server_error),
    ("nats", nats),
    ("acks", acks),
    ("api", api),
    ("envelope", envelope),
    ("configuration", configuration),
    ("conninfo", conninfo),
    ("lsn", lsn),
];

/// What a client chooses for SCRAM is as long as this, and takes its place in what the server sends.
const NONCE: &str = "NONCE-NONCE-NONCE-NONCE-";

const NONCE_TIMEOUT: Duration = Duration::from_millis(20);

thread_local! {
    /// Where the server of `startup` listens.
    static STARTUP: (Runtime, UnixListener, TempDir) = {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let _inside = runtime.enter();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).expect("a socket");
        drop(_inside);
        (runtime, listener, folder)
    };
}

/// All that a Postgres server sends from the start-up on, to the replication connection and to plain SQL.
pub fn startup(bytes: &[u8]) {
    STARTUP.with(|(runtime, listener, folder)| {
        let text = format!("host={} user=u password=pencil", folder.path().display());
        let conninfo = Conninfo::resolve(Some(&text), None, &Environment::default());
        let (conninfo, _) = conninfo.expect("a connection string");
        let settings = SessionSettings::default();
        runtime.block_on(async {
            tokio::select! {
                () = say_to_everyone(listener, bytes) => unreachable!("it listens for ever"),
                () = async {
                    let _ = startup::connect(&conninfo, &settings).await;
                    let _ = client::connect(&conninfo).await;
                } => {}
            }
        });
    });
}

async fn say_to_everyone(listener: &UnixListener, bytes: &[u8]) {
    loop {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        // Who has heard enough hangs up.
        let _ = say(&mut socket, bytes).await;
    }
}

async fn say(socket: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let mut heard = Vec::new();
    let at = bytes
        .windows(NONCE.len())
        .position(|found| found == NONCE.as_bytes());
    if let Some(at) = at {
        socket.write_all(&bytes[..at]).await?;
        let nonce = loop {
            // A client that was asked for something else waits too.
            let read = timeout(NONCE_TIMEOUT, socket.read_buf(&mut heard)).await??;
            if read == 0 {
                return Ok(());
            }
            if let Some((_, nonce)) = String::from_utf8_lossy(&heard).split_once(",r=") {
                break nonce.to_owned();
            }
        };
        socket.write_all(nonce.as_bytes()).await?;
    }
    let behind = at.map_or(0, |at| at + NONCE.len());
    socket.write_all(&bytes[behind..]).await?;
    socket.shutdown().await?;
    while socket.read_buf(&mut heard).await? > 0 {}
    Ok(())
}

/// A CopyData payload: the frame of replication, and pgoutput in it.
pub fn replication(payload: &[u8]) {
    // The way of a payload that is too large to be kept.
    let mut filter = ColumnFilter::new(10, 100);
    payload.chunks(7).for_each(|piece| filter.chunk(piece));
    let shortened = filter.finish();
    for payload in [payload, &shortened] {
        let Ok(ReplicationMessage::XLogData { data, .. }) = copy_both::decode(payload) else {
            continue;
        };
        if let Ok(Message::Insert { row, .. }) = pgoutput::decode(data) {
            let mut columns = 0;
            let read = row.for_each(|_, _| columns += 1);
            assert!(read.is_err() || columns == row.len());
        }
    }
}

/// The body of an ErrorResponse.
pub fn server_error(body: &[u8]) {
    if let Ok(error) = ServerError::parse(body) {
        let _ = error.to_string();
    }
}

/// All that a nats-server sends, in one piece and in two.
pub fn nats(bytes: &[u8]) {
    let read = |pieces: &[&[u8]]| {
        let (mut parser, mut received) = (Parser::default(), BytesMut::new());
        let mut ops = Vec::new();
        for piece in pieces {
            received.extend_from_slice(piece);
            loop {
                match parser.next(&mut received) {
                    Ok(Some(op)) => ops.push(format!("{op:?}")),
                    Ok(None) => break,
                    Err(error) => return (ops, error.to_string()),
                }
            }
        }
        (ops, String::new())
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    assert_eq!(read(&[bytes]), read(&[first, second]));
    if let Some(headers) = Headers::parse(bytes) {
        let _ = (headers.status(), headers.iter().count());
    }
}

/// Answers to messages in flight, as a server sends them: whatever they say, no more is acknowledged than was sent.
pub fn acks(bytes: &[u8]) {
    const SENT: u64 = 3;
    for mode in [Mode::FastIngest, Mode::Chain, Mode::Atomic] {
        let mut window = Window::new(window_settings(mode), 0);
        let mut out = BytesMut::new();
        for row in 1..=SENT {
            let position = Position {
                commit_lsn: (row * 8).into(),
                ordinal: 1,
            };
            let row = Origin {
                position,
                event_id: EventId::of(b"1"),
                outbox: 0,
                first_publication: true,
            };
            let message = Row {
                subject: b"outbox.a",
                headers: b"Walrelay-Position: s 0/8:1\r\n",
                body: Body::Bytes(b"{}"),
            };
            let sent = window.publish(&mut out, &message, row, Duration::ZERO);
            sent.expect("small");
        }
        window.end_turn(&mut out, true, None);
        let (mut parser, mut received) = (Parser::default(), BytesMut::from(bytes));
        let mut acknowledged = 0;
        while let Ok(Some(op)) = parser.next(&mut received) {
            let Op::Msg(msg) = op else { continue };
            let Some(token) = msg.below("_INBOX.x") else {
                continue;
            };
            let answer = window.answer(token, msg.status(), &msg.payload, Duration::ZERO, |_| {
                acknowledged += 1
            });
            if answer.is_err() {
                break;
            }
        }
        assert!(acknowledged <= SENT);
    }
}

/// JetStream's answers to what the relay asks, and what it has stored of its own.
pub fn api(payload: &[u8]) {
    let _ = StreamInfo::parse(payload);
    if let Ok(Some(message)) = StoredMessage::parse(payload) {
        let _ = message.header("Walrelay-Position");
    }
    if let Ok(record) = LaneRecord::from_json(payload) {
        let again = LaneRecord::from_json(&record.to_json()).expect("its own");
        assert_eq!(record.to_json(), again.to_json());
    }
    let _ = RecordOrNote::from_json(payload);
}

/// An event as a consumer gets it.
pub fn envelope(body: &[u8]) {
    if let Ok(envelope) = EventEnvelope::from_slice(body) {
        let json = envelope.to_json().expect("it was JSON");
        let again = EventEnvelope::from_slice(json.as_bytes()).expect("its own");
        assert_eq!(again.to_json().expect("JSON"), json);
    }
}

/// Lines `NAME=value` of the environment, and behind a line `---` the file.
pub fn configuration(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let (lines, file) = match text.split_once("---\n") {
        Some((lines, file)) => (lines, Some(file)),
        None => (text, None),
    };
    // None may name a file of this machine.
    let variables = lines
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("WALRELAY_") && !name.ends_with("_FILE"))
        .filter(|(name, _)| *name != "WALRELAY_CONFIG");
    let environment = Environment::new(variables);
    let path = std::env::temp_dir().join(format!("walrelay-fuzz-{}.toml", std::process::id()));
    fs::write(&path, file.unwrap_or_default()).expect("a temporary file");
    let flags = Flags {
        config: Some(path.clone()),
        ..Flags::default()
    };
    let loaded = config::load(&flags, &environment);
    fs::remove_file(path).expect("it is ours");
    match loaded {
        Ok(loaded) => drop(loaded.shown(Key::LogLevel).cloned()),
        Err(error) => drop(error.to_string()),
    }
}

/// A connection string, with a password that no error may show.
pub fn conninfo(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    // Neither may name a file of this machine.
    if text.contains("service") || text.contains("passfile") {
        return;
    }
    let _ = Conninfo::resolve(Some(text), None, &Environment::new([("PGUSER", "u")]));
}

/// LSNs and positions.
pub fn lsn(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    if let Ok(found) = text.parse::<Position>() {
        assert_eq!(found.to_string().parse::<Position>(), Ok(found));
    }
    if let Ok((slot, found)) = position::parse_header(text) {
        let written = format!("{slot} {found}");
        assert_eq!(position::parse_header(&written), Ok((slot, found)));
    }
}

fn window_settings(mode: Mode) -> WindowSettings {
    WindowSettings {
        mode,
        stream: "S".into(),
        slot: "s".to_owned(),
        fence_subject: "walrelay.fence.S.s".to_owned(),
        tables: Vec::new(),
        limits: WindowLimits {
            inbox: "_INBOX.x".to_owned(),
            epoch_token: "e".to_owned(),
            messages_max: 10,
            one_by_one: 0,
            batch_messages_max: None,
            bytes_max: 1 << 20,
            message_limit: SizeLimit::smaller(10_000, None),
            ack_timeout: Duration::from_secs(5),
        },
    }
}
