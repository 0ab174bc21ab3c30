//! `walrelay erase` and what a command had sent that was killed, frozen or stopped before it: on a slow link it is still on its way when
//! the erasure is done, and it is not stored behind it.

use async_nats::Client;
use futures_util::StreamExt as _;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Child;
use uuid::Uuid;

use crate::aggregate::{SECRET, TYPE, erase, insert_of, is_stored};
use crate::beside::LIMIT;
use crate::copies::make;
use crate::platform::{Platform, Relay, ends, signal};
use crate::proxy::{Mode, Proxy};

/// Beside the aggregate's own events, which go with the first.
const OTHERS: u32 = 200;

/// A command whose messages are held back on their way; what it had sent before has arrived.
struct Held {
    command: Child,
    proxy: Proxy,
    nats: Client,
}

/// How it ends, or stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Killed,
    Frozen,
    /// By SIGINT.
    Stopped,
}

impl Held {
    /// Starts it, and waits until a message with these bytes is on its way.
    async fn start(platform: &Platform, arguments: &[&str], bytes: &'static str) -> Held {
        let nats = async_nats::connect(platform.nats.url()).await;
        let nats = nats.expect("a connection");
        let proxy = Proxy::start(nats.server_info().port).await;
        let proxy = proxy.expect("a proxy");
        proxy.set(Mode::HoldAt(bytes));
        let mut command = platform.command(arguments);
        command.env("NATS_URL", format!("nats://127.0.0.1:{}", proxy.port()));
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        let command = command.spawn().expect("it starts");
        in_time(proxy.catches(1)).await;
        Held {
            command,
            proxy,
            nats,
        }
    }

    async fn leaves(&mut self, way: Way) {
        match way {
            Way::Killed => self.command.kill().await.expect("killed"),
            Way::Frozen => signal(&self.command, Signal::STOP),
            Way::Stopped => {
                signal(&self.command, Signal::INT);
                in_time(self.command.wait()).await.expect("it ends");
            }
        }
    }

    /// What was held back arrives, and the server has answered to it.
    async fn arrives(self, way: Way, stream: &str) {
        let answers = self.nats.subscribe("_INBOX.>").await;
        let mut answers = answers.expect("subscribed");
        // The server knows the subscription once it gives us what we send.
        let own = "_INBOX.on_the_way";
        let sent = self.nats.publish(own, "".into()).await;
        sent.expect("sent");
        let mut next = async || in_time(answers.next()).await.expect("an answer");
        while next().await.subject.as_str() != own {}
        self.proxy.set(Mode::Pass);
        let stored = format!(r#"{{"stream":"{stream}""#);
        loop {
            let answer = next().await;
            let told = String::from_utf8_lossy(&answer.payload).into_owned();
            // A batch is acknowledged before its first message is looked at.
            let is_open = told.starts_with(r#"{"type":"ack","seq":0"#);
            let is_of_batch = answer.subject.as_str().ends_with(".$FI") && !is_open;
            if is_of_batch || told.contains("wrong last sequence") || told.starts_with(&stored) {
                break;
            }
        }
        if way == Way::Frozen {
            signal(&self.command, Signal::CONT);
            let output = ends(self.command).await;
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            // Its lease is gone, and so is its place in the stream: it tells what it has seen first.
            let told = ["walrelay erase", "another command has published (fenced)"];
            assert!(told.iter().any(|told| said.contains(told)), "{said}");
        }
    }
}

async fn in_time<T>(awaited: impl Future<Output = T>) -> T {
    let awaited = tokio::time::timeout(LIMIT, awaited).await;
    awaited.expect("it comes in time")
}

/// An aggregate whose events the stream has in front of others.
async fn published() -> (Platform, Relay, Uuid) {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    // The stream still has its first message afterwards, so that it can give the whole range.
    platform.insert(1).await;
    insert_of(&platform, user, TYPE, 3).await;
    platform.insert(OTHERS - 1).await;
    platform.wait_for(u64::from(OTHERS) + 3).await;
    (platform, relay, user)
}

async fn is_erased(platform: &Platform, user: Uuid) -> Value {
    let receipt = erase(platform, user, &["--yes"], 0).await;
    assert_eq!(receipt["done"], json!(true), "{receipt}");
    receipt
}

/// Nothing has come back.
async fn stays_erased(platform: &Platform, user: Uuid) {
    let dry = erase(platform, user, &["--dry-run"], 0).await;
    assert_eq!(dry["rows"], json!(0), "{dry}");
    for stream in dry["streams"].as_array().expect("a list") {
        assert_eq!(stream["events"], json!([]), "{dry}");
    }
    assert!(!is_stored(platform, SECRET));
}

async fn a_replay_stays_out(way: Way, to: &[&str], stream: &str, subjects: Option<&[&str]>) {
    let (platform, relay, user) = published().await;
    if let Some(subjects) = subjects {
        // As others make it: without fast ingest.
        make(&platform, stream, subjects).await;
    }
    let replay = [&["replay", "--yes", "--from", "0/1"][..], to].concat();
    let mut held = Held::start(&platform, &replay, "Walrelay-Kind: replay").await;
    held.leaves(way).await;
    let receipt = is_erased(&platform, user).await;
    assert_eq!(receipt["streams"][1]["stream"], stream, "{receipt}");
    held.arrives(way, stream).await;
    stays_erased(&platform, user).await;
    // What shut it out is no event, and nobody has to read it.
    assert_eq!(platform.messages_in(stream).await, 0);
    platform.expect(&replay, 0).await;
    assert_eq!(platform.messages_in(stream).await, u64::from(OTHERS));
    stays_erased(&platform, user).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_a_frozen_replay_has_sent_is_not_stored_behind_it() {
    a_replay_stays_out(Way::Frozen, &[], "OUTBOX_REPLAY", None).await;
}

#[tokio::test]
async fn what_a_killed_replay_has_sent_is_not_stored_behind_it() {
    a_replay_stays_out(Way::Killed, &[], "OUTBOX_REPLAY", None).await;
}

/// Its lease is given back over another connection than its messages go.
#[tokio::test]
async fn what_a_stopped_replay_has_sent_is_not_stored_behind_it() {
    a_replay_stays_out(Way::Stopped, &[], "OUTBOX_REPLAY", None).await;
}

/// Each message expects the one before; and the stream takes one subject alone.
#[tokio::test]
async fn what_a_replay_has_sent_one_by_one_is_not_stored_behind_it() {
    let to = ["--stream", "AGAIN", "--subject", "again.all"];
    a_replay_stays_out(Way::Killed, &to, "AGAIN", Some(&["again.all"])).await;
}

/// To the lane's own stream, beside a relay that is idle, and without one.
#[tokio::test]
async fn what_a_killed_backfill_has_sent_is_not_stored_behind_it() {
    for is_run in [true, false] {
        let platform = Platform::servers().await;
        let table = include_str!("../../sql/0001_outbox_events.sql");
        platform.sql.batch_execute(table).await.expect("made");
        let user = Uuid::new_v4();
        insert_of(&platform, user, TYPE, 3).await;
        platform.insert(OTHERS).await;
        platform.expect(&["setup"], 0).await;
        let relay = platform.relay();
        platform.insert(1).await;
        platform.wait_for(1).await;
        let relay = match is_run {
            true => Some(relay),
            false => {
                relay.stop().await;
                None
            }
        };
        let backfill = ["backfill"];
        let mut held = Held::start(&platform, &backfill, "Walrelay-Kind: backfill").await;
        held.leaves(Way::Killed).await;
        is_erased(&platform, user).await;
        held.arrives(Way::Killed, "OUTBOX").await;
        stays_erased(&platform, user).await;
        platform.expect(&backfill, 0).await;
        let relay = relay.unwrap_or_else(|| platform.relay());
        platform.verify(0).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn what_a_frozen_retry_has_sent_is_not_stored_behind_it() {
    let platform = Platform::start().await;
    let relay = platform.relay();
    let user = Uuid::new_v4();
    insert_of(&platform, user, "no subject", 3).await;
    let others = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json) \
                  SELECT gen_random_uuid(), gen_random_uuid(), 'no subject', '{}' FROM generate_series(1, 20)";
    platform.sql.batch_execute(others).await.expect("inserted");
    platform.wait_for(23).await;
    let mend = "UPDATE outbox_events SET event_type = 'a.mended'";
    platform.sql.batch_execute(mend).await.expect("mended");
    let retry = ["dead-letters", "retry", "--all"];
    let mut held = Held::start(&platform, &retry, "Walrelay-Kind: retry").await;
    held.leaves(Way::Frozen).await;
    is_erased(&platform, user).await;
    held.arrives(Way::Frozen, "OUTBOX").await;
    stays_erased(&platform, user).await;
    platform.expect(&retry, 0).await;
    relay.stop().await;
    platform.verify(0).await;
}
