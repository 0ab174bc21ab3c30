//! A stream that was moved: a mirror or a source that became the stream. Whatever the way, the relay goes on by itself or
//! halts; and what `adopt` does by itself then loses and doubles nothing that the slot has.

mod platform;

use std::time::Duration;

use async_nats::jetstream::stream::{Config, Source};
use futures_util::StreamExt as _;
use platform::Platform;

const LIMIT: Duration = Duration::from_secs(180);

/// How the stream is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Mirror,
    Source,
}

/// A lane that has published ten transactions of five events each, its relay stopped.
async fn published(shared: bool, hold_back: &str) -> Platform {
    let mut platform = Platform::servers().await;
    platform.set("WALRELAY_RELAY_HOLD_BACK", hold_back);
    platform.set("WALRELAY_NATS_SHARED", &shared.to_string());
    platform.expect(&["setup"], 0).await;
    for _ in 0..10 {
        platform.insert(5).await;
    }
    platform.relay_until_events(50).await;
    platform
}

async fn config(platform: &Platform, name: &str) -> Config {
    let stream = platform.jetstream.get_stream(name).await.expect("a stream");
    stream.cached_info().config.clone()
}

async fn edit(platform: &Platform, config: Config) {
    let edited = platform.jetstream.update_stream(config).await;
    edited.expect("nats-server takes the edit");
}

/// Makes `name` a copy of `origin`, as far as that has come.
async fn copy(platform: &Platform, way: Way, origin: &str, name: &str) {
    let from = Source {
        name: origin.to_owned(),
        ..Source::default()
    };
    let (mirror, sources) = match way {
        Way::Mirror => (Some(from), None),
        Way::Source => (None, Some(vec![from])),
    };
    // A mirror may not take batches.
    let made = platform.jetstream.create_stream(Config {
        name: name.to_owned(),
        subjects: Vec::new(),
        mirror,
        sources,
        allow_atomic_publish: false,
        allow_batch_publish: false,
        ..config(platform, origin).await
    });
    made.await.expect("a copy");
    let count = platform.messages_in(origin).await;
    platform.holds_in(name, count).await;
}

async fn delete(platform: &Platform, name: &str) {
    let deleted = platform.jetstream.delete_stream(name).await;
    assert!(deleted.expect("an answer").success);
}

async fn follows_no_more(platform: &Platform, name: &str) {
    let mut config = config(platform, name).await;
    (config.mirror, config.sources) = (None, None);
    edit(platform, config).await;
}

/// The copy follows no more; its origin is gone, and it stands in its place.
async fn promote(platform: &mut Platform, origin: &str, name: &str) {
    let config = Config {
        name: name.to_owned(),
        ..config(platform, origin).await
    };
    delete(platform, origin).await;
    edit(platform, config).await;
    platform.set("WALRELAY_NATS_STREAM", name);
}

/// `nats stream edit`, as the finding that a fence of the new name is not taken prints it.
async fn takes_the_new_fence(platform: &Platform, name: &str) {
    let mut config = config(platform, name).await;
    config.subjects.push(format!("walrelay.fence.{name}.*"));
    edit(platform, config).await;
}

async fn halts(platform: &Platform) {
    let before = platform.last_sequence().await;
    let text = platform.expect(&["run"], 4).await;
    assert!(text.contains("`walrelay adopt`"), "{text}");
    assert_eq!(
        platform.last_sequence().await,
        before,
        "nothing is published"
    );
}

/// Everything is in the stream once, `missing` events apart.
async fn judge(platform: &Platform, events: u64, missing: u64) {
    let report = platform.verify(i32::from(missing > 0)).await;
    assert_eq!(report["events"], events, "{report}");
    assert_eq!(report["missing"]["count"], missing, "{report}");
    for verdict in ["doubled", "phantom", "out_of_order", "unjudged"] {
        assert_eq!(report[verdict]["count"], 0, "{verdict} in {report}");
    }
}

#[tokio::test]
async fn under_another_name_the_relay_halts_and_adopt_finds_the_place() {
    for shared in [false, true] {
        for way in [Way::Mirror, Way::Source] {
            eprintln!("shared: {shared}, {way:?}");
            let mut platform = published(shared, "1h").await;
            copy(&platform, way, "OUTBOX", "MOVED").await;
            promote(&mut platform, "OUTBOX", "MOVED").await;
            if shared {
                let text = platform.expect(&["run"], 1).await;
                assert!(text.contains("walrelay.fence.MOVED.walrelay"), "{text}");
                takes_the_new_fence(&platform, "MOVED").await;
            }
            platform.insert(3).await;
            halts(&platform).await;
            let text = platform.expect(&["position"], 0).await;
            assert!(text.contains("a copy of the one at"), "{text}");
            let text = platform.expect(&["adopt", "--yes"], 0).await;
            assert!(text.contains("a copy: of a mirror"), "{text}");
            assert!(text.contains("slot and stream have in common"), "{text}");
            platform.relay_until_events(53).await;
            judge(&platform, 53, 0).await;
            // The next start needs nobody.
            platform.insert(2).await;
            platform.relay_until_events(55).await;
            judge(&platform, 55, 0).await;
        }
    }
}

/// A mirror of a mirror, so that the name is the old one: the record and, in a shared stream, the fences are the lane's.
#[tokio::test]
async fn under_its_own_name() {
    for shared in [false, true] {
        let platform = published(shared, "1h").await;
        copy(&platform, Way::Mirror, "OUTBOX", "KEPT").await;
        follows_no_more(&platform, "KEPT").await;
        let origin = config(&platform, "OUTBOX").await;
        delete(&platform, "OUTBOX").await;
        copy(&platform, Way::Mirror, "KEPT", "OUTBOX").await;
        delete(&platform, "KEPT").await;
        edit(&platform, origin).await;
        platform.insert(3).await;
        // A mirror keeps the order: its last fence tells what stands before it.
        if !shared {
            halts(&platform).await;
            platform.expect(&["adopt", "--yes"], 0).await;
        }
        platform.relay_until_events(53).await;
        judge(&platform, 53, 0).await;
    }
}

/// What the copy had not yet taken comes from the slot, or is said to be missing where the slot has let go of it.
#[tokio::test]
async fn a_copy_that_had_not_caught_up() {
    for (shared, hold_back) in [(false, "1h"), (true, "1h"), (false, "0s"), (true, "0s")] {
        eprintln!("shared: {shared}, {hold_back}");
        let mut platform = published(shared, hold_back).await;
        copy(&platform, Way::Mirror, "OUTBOX", "MOVED").await;
        follows_no_more(&platform, "MOVED").await;
        platform.insert(5).await;
        platform.insert(5).await;
        platform.relay_until_events(60).await;
        promote(&mut platform, "OUTBOX", "MOVED").await;
        if shared {
            takes_the_new_fence(&platform, "MOVED").await;
        }
        platform.insert(3).await;
        halts(&platform).await;
        let text = platform.expect(&["adopt", "--yes"], 0).await;
        if hold_back == "1h" {
            assert!(text.contains("slot and stream have in common"), "{text}");
            platform.relay_until_events(63).await;
            judge(&platform, 63, 0).await;
            continue;
        }
        assert!(
            text.contains("are not in the stream may be missing"),
            "{text}"
        );
        platform.relay_until_events(53).await;
        judge(&platform, 53, 10).await;
        platform.expect(&["backfill"], 0).await;
        assert_eq!(platform.verify(0).await["missing"]["count"], 0);
    }
}

/// A batch reaches a mirror one message at a time, its fence last, and without what marks it as a batch.
#[tokio::test]
async fn a_mirror_cut_in_the_middle_of_a_batch() {
    let platform = published(true, "1h").await;
    platform.insert(20).await;
    platform.relay_until_events(70).await;
    let mut taken = Vec::new();
    for sequence in 1..=platform.last_sequence().await - 8 {
        let stream = platform.stream().await;
        let message = stream.get_raw_message(sequence).await.expect("a message");
        let headers = platform.message(sequence).await.0;
        taken.push((message.subject, headers, message.payload));
    }
    // On a busy machine the rows may have made several batches, and one may end there.
    while taken
        .pop_if(|(_, headers, _)| headers.get("Walrelay-Position").is_none())
        .is_some()
    {}
    assert!(taken.len() > 50, "{}", taken.len());
    let origin = config(&platform, "OUTBOX").await;
    delete(&platform, "OUTBOX").await;
    platform
        .jetstream
        .create_stream(origin)
        .await
        .expect("made");
    for (subject, headers, payload) in taken {
        platform.publish(&subject, headers, payload.to_vec()).await;
    }
    platform.insert(3).await;
    halts(&platform).await;
    platform.expect(&["adopt", "--yes"], 0).await;
    platform.relay_until_events(73).await;
    judge(&platform, 73, 0).await;
}

/// A consumer's copies say nothing new: the relay goes on by itself.
#[tokio::test]
async fn a_redrive_is_no_move() {
    for shared in [false, true] {
        let platform = published(shared, "1h").await;
        let stream = platform.stream().await;
        let event = stream.get_raw_message(5).await.expect("an event");
        let headers = platform.message(5).await.0;
        let body = event.payload.to_vec();
        let last = platform.publish(&event.subject, headers, body).await;
        platform.insert(3).await;
        platform.relay_until_events(54).await;
        // A fence has no payload; on a busy machine the relay may have begun twice.
        let mut behind = Vec::new();
        for sequence in last + 1..=platform.last_sequence().await {
            let message = stream.get_raw_message(sequence).await.expect("a message");
            behind.push(message.payload);
        }
        behind.retain(|payload| !payload.is_empty());
        assert_eq!(behind.len(), 3, "nothing is published again");
        assert!(!behind.contains(&event.payload));
    }
}

/// As `nats stream backup` and `nats stream restore` do it. nats-server 2.15 gives the restored stream a new creation time
/// and forgets the ids of its duplicate window, 2.14 keeps both.
#[tokio::test]
async fn a_backup_that_is_restored_needs_nobody() {
    for (shared, behind) in [(false, 0), (true, 0), (false, 5), (true, 5)] {
        eprintln!("shared: {shared}, {behind} events behind the backup");
        let platform = published(shared, "1h").await;
        let backup = backup(&platform).await;
        if behind > 0 {
            platform.insert(behind).await;
            platform.relay_until_events(50 + behind as usize).await;
        }
        delete(&platform, "OUTBOX").await;
        restore(&platform, backup).await;
        platform.insert(3).await;
        platform.relay_until_events(53 + behind as usize).await;
        judge(&platform, 53 + u64::from(behind), 0).await;
    }
}

/// A stream's backup: its configuration and state, and its data in chunks.
struct Backup {
    about: serde_json::Value,
    chunks: Vec<bytes::Bytes>,
}

async fn request(
    platform: &Platform,
    subject: &str,
    body: &serde_json::Value,
) -> serde_json::Value {
    let client = platform.jetstream.client();
    let request = client.request(subject.to_owned(), body.to_string().into());
    let answer = request.await.expect("an answer");
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(answer.get("error").is_none(), "{subject}: {answer}");
    answer
}

async fn backup(platform: &Platform) -> Backup {
    let client = platform.jetstream.client();
    let inbox = client.new_inbox();
    let mut delivered = client.subscribe(inbox.clone()).await.expect("subscribed");
    let wanted = serde_json::json!({"deliver_subject": inbox, "no_consumers": true});
    let about = request(platform, "$JS.API.STREAM.SNAPSHOT.OUTBOX", &wanted).await;
    let mut chunks = Vec::new();
    let all = async {
        while let Some(chunk) = delivered.next().await {
            if chunk.payload.is_empty() {
                break;
            }
            chunks.push(chunk.payload);
            if let Some(reply) = chunk.reply {
                client.publish(reply, "".into()).await.expect("sent");
            }
        }
    };
    tokio::time::timeout(LIMIT, all).await.expect("all of it");
    Backup { about, chunks }
}

async fn restore(platform: &Platform, backup: Backup) {
    let about =
        serde_json::json!({"config": backup.about["config"], "state": backup.about["state"]});
    let taken = request(platform, "$JS.API.STREAM.RESTORE.OUTBOX", &about).await;
    let subject = taken["deliver_subject"]
        .as_str()
        .expect("a subject")
        .to_owned();
    let client = platform.jetstream.client();
    for chunk in backup.chunks {
        let sent = client.request(subject.clone(), chunk).await;
        sent.expect("taken");
    }
    let end = client.request(subject, "".into()).await.expect("an answer");
    let answer: serde_json::Value = serde_json::from_slice(&end.payload).expect("JSON");
    assert!(answer.get("error").is_none(), "{answer}");
}
