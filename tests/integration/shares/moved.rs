//! Shares with a stream each that `walrelay move` takes elsewhere, one after the other: no change of their number while some are here and
//! some there, and what is printed takes all of them there.

use async_nats::jetstream;
use serde_json::{Value, json};

use super::load::{
    CARRY_NOTHING, SLOTS, are_owned, change_alone, count, reshard, shares, stops, two_shares,
};
use crate::support::{Fixture, Output, eventually};

const PUBLICATIONS: &str = "FROM pg_publication";
const INSERT: &str = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
    SELECT gen_random_uuid(), gen_random_uuid(), 'a', '{}' FROM generate_series(1, 200)";

/// As `nats.stream` has those to which shares are moved.
fn new_streams(fixture: &Fixture) -> String {
    fixture.stream_name().replace("{share}", "NEW_{share}")
}

async fn moves(fixture: &Fixture, new: &str, share: u32) -> Output {
    let number = share.to_string();
    let to = new.replace("{share}", &number);
    let moving = ["move", "--yes", "--share", &number, "--to-stream", &to];
    fixture.walrelay(&moving).await.success()
}

/// What stands between these words.
fn between<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let (_, rest) = text
        .split_once(begin)
        .unwrap_or_else(|| panic!("{begin}: {text}"));
    rest.split_once(end)
        .unwrap_or_else(|| panic!("{end}: {text}"))
        .0
}

/// Without anybody to ask.
fn agreed(line: &str) -> String {
    line.replace("walrelay move", "walrelay move --yes")
}

async fn catalog(fixture: &Fixture) -> [i64; 3] {
    [
        count(fixture, SLOTS).await,
        count(fixture, PUBLICATIONS).await,
        count(fixture, CARRY_NOTHING).await,
    ]
}

async fn is_refused(fixture: &Fixture, to: &str) -> String {
    let before = catalog(fixture).await;
    let refused = fixture.walrelay(&["reshard", "--shares", to]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert_eq!(catalog(fixture).await, before, "{}", refused.stderr);
    refused.stderr
}

/// Types what is printed: all shares are moved, and their number is changed with the new configuration.
async fn types_all(fixture: &mut Fixture, refused: &str, new: &str, others: &[u32], to: u32) {
    let moving = between(refused, "Run ", ", with relay.shares");
    assert_eq!(
        moving.matches("walrelay move").count(),
        others.len(),
        "{moving}"
    );
    for share in others {
        assert!(moving.contains(&format!("--share {share} ")), "{moving}");
    }
    fixture.types(&agreed(moving)).await.success();
    let stream = between(refused, "nats.stream = \"", "\"");
    assert_eq!(stream, new);
    fixture.set("WALRELAY_NATS_STREAM", stream);
    let relay = fixture.run();
    let (_, line) = refused
        .rsplit_once("run walrelay reshard")
        .expect("a command");
    fixture
        .types(&format!("walrelay reshard{line}"))
        .await
        .success();
    shares(fixture, to);
    relay.stop().await;
    goes_on(fixture, to).await;
}

/// All of it is published, and more.
async fn goes_on(fixture: &mut Fixture, lanes: u32) {
    let relay = fixture.run();
    are_owned(fixture, i64::from(lanes)).await;
    assert_eq!(
        catalog(fixture).await,
        [i64::from(lanes), i64::from(lanes), 0]
    );
    fixture.sql.batch_execute(INSERT).await.unwrap();
    eventually("all is published", async || {
        let verified = fixture.walrelay(&["verify"]).await;
        (verified.code == Some(0)).then_some(())
    })
    .await;
    stops(relay).await;
}

#[tokio::test]
async fn nothing_is_divided_while_one_of_them_has_moved() {
    let mut fixture = two_shares(true).await;
    let mut relay = fixture.run();
    fixture.sql.batch_execute(INSERT).await.unwrap();
    let new = new_streams(&fixture);
    moves(&fixture, &new, 0).await;
    let told = is_refused(&fixture, "4").await;
    let lives = new.replace("{share}", "0");
    let lives = format!(
        "share 0 (slot {}_0) lives in stream {lives}, ",
        fixture.name
    );
    assert!(told.contains(&lives), "{told}");
    // Neither by the second run, nor with the configuration of the one that has moved.
    assert_eq!(is_refused(&fixture, "4").await, told);
    let old = fixture.stream_name().to_owned();
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let elsewhere = is_refused(&fixture, "4").await;
    assert!(
        elsewhere.contains(&old.replace("{share}", "1")),
        "{elsewhere}"
    );
    fixture.set("WALRELAY_NATS_STREAM", old);
    let line = between(&elsewhere, "run ", ", while");
    let typed = fixture.types(line).await;
    assert_eq!(typed.stderr, told);
    types_all(&mut fixture, &told, &new, &[1], 4).await;
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
}

/// The state that an earlier version left behind: others wait for a share that has moved.
#[tokio::test]
async fn shares_that_wait_for_one_that_has_moved_go_on() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.sql.batch_execute(INSERT).await.unwrap();
    let new = new_streams(&fixture);
    moves(&fixture, &new, 0).await;
    let told = is_refused(&fixture, "2").await;
    types_all(&mut fixture, &told, &new, &[1, 2, 3], 2).await;
}

/// Shares that are no more live where they were, and the others have moved.
#[tokio::test]
async fn what_is_left_of_shares_is_ended_where_they_live() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    fixture.sql.batch_execute(INSERT).await.unwrap();
    change_alone(&fixture, &["reshard", "--shares", "2"]).await;
    let new = new_streams(&fixture);
    for share in [0, 1] {
        moves(&fixture, &new, share).await;
    }
    shares(&mut fixture, 2);
    let old = fixture.stream_name().to_owned();
    fixture.set("WALRELAY_NATS_STREAM", new);
    let relay = fixture.run();
    let refused = fixture.walrelay(&["backfill"]).await.stderr;
    let line = between(&refused, "run walrelay reshard", ",");
    let refused = fixture.types(&format!("walrelay reshard{line}")).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let lives = format!("lives in stream {}", old.replace("{share}", "2"));
    assert!(refused.stderr.contains(&lives), "{}", refused.stderr);
    let line = between(&refused.stderr, ": run ", ", while relays");
    fixture.types(line).await.success();
    stops(relay).await;
    goes_on(&mut fixture, 2).await;
}

/// A move that was stopped half way is ended by what is printed.
#[tokio::test]
async fn one_that_is_on_its_way_is_taken_there_first() {
    let mut fixture = two_shares(true).await;
    fixture.sql.batch_execute(INSERT).await.unwrap();
    let new = new_streams(&fixture);
    moves(&fixture, &new, 1).await;
    let [from, to] = [fixture.stream_name(), &new].map(|name| name.replace("{share}", "0"));
    // As it leaves the record where it is killed before it has made the target.
    let context = jetstream::new(fixture.nats.clone());
    let records = context.get_stream("WALRELAY").await.unwrap();
    let subject = |stream: &str| format!("walrelay.lane.{stream}.{}_0", fixture.name);
    let stored = records
        .get_last_raw_message_by_subject(&subject(&from))
        .await
        .unwrap();
    let mut record: Value = serde_json::from_slice(&stored.payload).unwrap();
    record["moved"] = json!({"from": {"stream": from, "created": record["created"]}});
    record["stream"] = json!(to);
    let stored = context
        .publish(subject(&to), record.to_string().into())
        .await;
    stored.unwrap().await.unwrap();
    fixture.set("WALRELAY_NATS_STREAM", new);
    let told = is_refused(&fixture, "4").await;
    let line = between(&told, "run ", ", which ends that move");
    fixture.types(&agreed(line)).await.success();
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    relay.stop().await;
    shares(&mut fixture, 4);
    goes_on(&mut fixture, 4).await;
}

/// The streams of shares that were no more stayed where they were: they are taken to the others by what is printed.
#[tokio::test]
async fn shares_that_come_again_find_their_former_streams_moved_as_is_printed() {
    let mut fixture = two_shares(true).await;
    let relay = fixture.run();
    for to in ["4", "2"] {
        reshard(&fixture, to).await;
        fixture.sql.batch_execute(INSERT).await.unwrap();
    }
    let new = new_streams(&fixture);
    for share in [0, 1] {
        moves(&fixture, &new, share).await;
    }
    drop(relay);
    let old = fixture.stream_name().to_owned();
    for share in ["2", "3"] {
        fixture.set("WALRELAY_NATS_STREAM", new.as_str());
        shares(&mut fixture, 2);
        let told = is_refused(&fixture, "4").await;
        let of_share = format!("walrelay move --share {share} ");
        let line = between(&told, "run ", " with the configuration of that one");
        assert!(line.starts_with(&of_share), "{told}");
        let number = between(&told, "relay.shares = ", " or more");
        fixture.set("WALRELAY_NATS_STREAM", old.as_str());
        shares(&mut fixture, number.parse().unwrap());
        fixture.types(&agreed(line)).await.success();
    }
    fixture.set("WALRELAY_NATS_STREAM", new);
    shares(&mut fixture, 2);
    let relay = fixture.run();
    reshard(&fixture, "4").await;
    relay.stop().await;
    shares(&mut fixture, 4);
    goes_on(&mut fixture, 4).await;
}

/// Whether a stream of this NATS has a message with this text.
async fn is_stored(fixture: &Fixture, streams: &[String], text: &str) -> bool {
    let context = jetstream::new(fixture.nats.clone());
    for name in streams {
        let Ok(stream) = context.get_stream(name).await else {
            continue;
        };
        for sequence in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(sequence).await;
            let body = message.map(|message| message.payload.to_vec());
            if String::from_utf8_lossy(&body.unwrap_or_default()).contains(text) {
                return true;
            }
        }
    }
    false
}

/// An aggregate may be of any share: one that is erased from the stream of another share would lose its row, and keep its messages.
#[tokio::test]
async fn no_aggregate_is_erased_from_one_share_alone() {
    let mut fixture = two_shares(true).await;
    let relay = fixture.run();
    fixture.sql.batch_execute(INSERT).await.unwrap();
    let row = "SELECT aggregate_id::text FROM outbox_events WHERE (uuid_hash(aggregate_id) & 1) = 1 LIMIT 1";
    let aggregate: String = fixture.sql.query_one(row, &[]).await.unwrap().get(0);
    let erase = ["erase", "--yes", "--json", "--aggregate-id", &aggregate];
    let old = fixture.stream_name().to_owned();
    let new = new_streams(&fixture);
    let streams: Vec<String> = [&old, &new]
        .into_iter()
        .flat_map(|name| ["0", "1"].map(|share| name.replace("{share}", share)))
        .collect();
    let rows = format!("FROM outbox_events WHERE aggregate_id = '{aggregate}'");
    eventually("all is published", async || {
        let [first, second] = [&streams[0], &streams[1]];
        let all = fixture.message_count_of(first).await + fixture.message_count_of(second).await;
        (all == 200).then_some(())
    })
    .await;
    let of_aggregate = count(&fixture, &rows).await;
    let is_refused = async |fixture: &Fixture, share: &[&str]| {
        let refused = fixture.walrelay(&[&erase, share].concat()).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert_eq!(refused.stdout, "", "there is no receipt");
        assert!(is_stored(fixture, &streams, &aggregate).await);
        assert_eq!(count(fixture, &rows).await, of_aggregate);
        refused.stderr
    };
    let all = "leave out --share and relay.share";
    for share in ["0", "1"] {
        for dry in [&[][..], &["--dry-run"]] {
            let told = is_refused(&fixture, &[&["--share", share], dry].concat()).await;
            assert!(told.ends_with(&format!("{all}\n")), "{told}");
        }
    }
    stops(relay).await;

    // While they are partly moved, a relay of each needs relay.share: no configuration has all of them.
    moves(&fixture, &new, 0).await;
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    fixture.set("WALRELAY_RELAY_SHARE", "0");
    let told = is_refused(&fixture, &[]).await;
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    fixture.set("WALRELAY_RELAY_SHARE", "1");
    assert_eq!(is_refused(&fixture, &[]).await, told);
    let prune = ["prune", "--older-than", "1d"];
    let kept = fixture.walrelay(&prune).await;
    assert_eq!(kept.code, Some(2), "{kept:?}");
    fixture.unset("WALRELAY_RELAY_SHARE");
    // With the new one, for all shares, each command has a remedy that is about the share which is not there.
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    for command in [&erase[..], &prune, &["backfill"], &["verify", "--repair"]] {
        let refused = fixture.walrelay(command).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
        let line = between(&refused.stderr, "in another stream, `", "`, with the");
        assert!(line.starts_with("walrelay move --share 1 "), "{line}");
        fixture.set("WALRELAY_NATS_STREAM", old.as_str());
        let moved = fixture.types(&format!("{line} --dry-run")).await;
        moved.success();
        fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    }
    fixture.set("WALRELAY_NATS_STREAM", old.as_str());
    for more in [told.as_str(), kept.stderr.as_str()] {
        assert!(more.contains(all), "{more}");
        let line = between(more, "have moved too, by ", " with the configuration of");
        assert_eq!(between(line, "--share ", " "), "1");
        fixture.types(&agreed(line)).await.success();
    }
    fixture.set("WALRELAY_NATS_STREAM", new.as_str());
    let erased = fixture.walrelay(&erase).await.success();
    let receipt: Value = serde_json::from_str(&erased.stdout).unwrap();
    assert_eq!(receipt["done"], json!(true), "{receipt}");
    assert!(!is_stored(&fixture, &streams, &aggregate).await);
    goes_on(&mut fixture, 2).await;
}

/// One configuration names the streams of all, and until all are there one for each share.
#[tokio::test]
async fn the_configuration_that_a_move_asks_for_is_that_of_all_shares() {
    let mut fixture = two_shares(true).await;
    let mut relay = fixture.run();
    are_owned(&fixture, 2).await;
    let other = format!(
        "{}_NEW",
        fixture
            .name
            .to_uppercase()
            .replace(|c: char| c.is_ascii_digit(), "X")
    );
    let moving = ["move", "--yes", "--share", "0", "--to-stream"];
    let refused = fixture.walrelay(&[&moving[..], &[&other]].concat()).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let (_, to) = refused
        .stderr
        .trim_end()
        .rsplit_once("--to-stream ")
        .expect("a name");
    let moved = fixture
        .walrelay(&[&moving[..], &[to]].concat())
        .await
        .success();
    let (_, needed) = moved.stdout.rsplit_once("moved: ").expect("it says so");
    let new = between(needed, "nats.stream = \"", "\"");
    assert_eq!(new, format!("{other}_{{share}}"));
    // As both say.
    relay.logs("halted: ").await;
    let halted = relay.log();
    assert_eq!(between(&halted, "Set `nats.stream = \"", "\""), new);
    let by_halt = between(&halted, "has moved too, by `", "` with this one");
    let by_move = between(needed, "are there too, by ", " with the configuration");
    let of_one = by_halt.replace("--share K", "--share 1");
    let of_one = of_one.strip_suffix('K').map(|line| format!("{line}1"));
    assert_eq!(of_one.as_deref(), Some(by_move));
    let status = fixture.walrelay(&["status", "--share", "0"]).await.stdout;
    assert!(
        status.contains(&format!("nats.stream = \"{new}\"")),
        "{status}"
    );
    let old = fixture.stream_name().to_owned();
    fixture.set("WALRELAY_NATS_STREAM", new);
    assert!(needed.contains("and relay.share = 0 until"), "{needed}");
    let first = fixture.run_with(&["--share", "0"]);
    are_owned(&fixture, 2).await;
    fixture.set("WALRELAY_NATS_STREAM", old);
    let moved = fixture.types(&agreed(by_move)).await.success();
    let (_, needed) = moved.stdout.rsplit_once("moved: ").expect("it says so");
    assert!(
        needed.ends_with(&format!("nats.stream = \"{new}\"\n")),
        "{needed}"
    );
    assert_eq!(relay.ends().await, Some(4), "{}", relay.log());
    fixture.set("WALRELAY_NATS_STREAM", new);
    first.stop().await;
    goes_on(&mut fixture, 2).await;
}
