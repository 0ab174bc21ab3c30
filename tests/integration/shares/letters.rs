//! Open dead letters of shares that are no more: with the share that has their rows, and counted by its relay alone.

use std::net::SocketAddr;

use rustix::process::Signal;

use super::get;
use super::load::{letters, reshard, shares, stops, takes_dead_letters_of, two_shares};
use crate::support::{Fixture, Relay, eventually, site};

/// A relay of one share, with a site of its own.
async fn run(fixture: &mut Fixture, share: &str) -> (Relay, SocketAddr) {
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    let mut relay = fixture.run_with(&["--share", share]);
    relay.logs("status page").await;
    (relay, address)
}

/// What the metric says there; none where it says nothing.
async fn open_at(address: SocketAddr) -> Option<u64> {
    let metrics = get(address, "/metrics").await;
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with("walrelay_dead_letters_open{"))?;
    let (_, value) = line.rsplit_once(' ').expect("a value");
    Some(value.parse().expect("a number"))
}

/// What `prune` names of the letters that it keeps is typed as it is printed.
#[tokio::test]
async fn what_prune_says_of_letters_names_their_share() {
    let mut fixture = two_shares(true).await;
    let relay = fixture.run();
    fixture.insert(1, 40).await;
    let bad = "DROP TRIGGER few ON outbox_events;
        INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), aggregate_id, 'has a space', '{}' FROM outbox_events
        WHERE (uuid_hash(aggregate_id) & 1) = 1 LIMIT 1;
        UPDATE outbox_events SET occurred_at = now() - interval '10 days'";
    fixture.sql.batch_execute(bad).await.unwrap();
    let counted = eventually("the letter is there", async || {
        let list = fixture
            .walrelay(&["dead-letters", "list", "--share", "1"])
            .await;
        list.stdout.contains("has a space").then_some(())
    });
    counted.await;
    let pruned = fixture.prune(&["--older-than", "7d"]).await.success();
    let (_, line) = pruned.stdout.split_once("see walrelay ").expect("a hint");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["dead-letters", "list", "--share", "1"]);
    let list = fixture.walrelay(&words).await.success();
    assert!(list.stdout.contains("has a space"), "{}", list.stdout);
    relay.stop().await;
}

#[tokio::test]
async fn each_letter_is_counted_by_one_relay_and_shown_on_its_page() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    // Share 2 takes rows over from this one.
    let first = run(&mut fixture, "0").await;
    let third = run(&mut fixture, "3").await;
    let pair = [run(&mut fixture, "1").await, run(&mut fixture, "1").await];
    fixture.insert(1, 60).await;
    // Of share 3, and later of share 1.
    let bad = "DROP TRIGGER few ON outbox_events;
        INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
        SELECT gen_random_uuid(), aggregate_id, 'has a space', '{}' FROM outbox_events
        WHERE (uuid_hash(aggregate_id) & 3) = 3 LIMIT 2";
    fixture.sql.batch_execute(bad).await.unwrap();
    eventually("its relay counts them", async || {
        (open_at(third.1).await == Some(2)).then_some(())
    })
    .await;
    reshard(&fixture, "2").await;
    // One of the two has the slot, the other one stands by.
    let by_one = async |count: u64, pair: &[(Relay, SocketAddr); 2]| {
        eventually(format!("one of the two counts {count}"), async || {
            match (open_at(pair[0].1).await, open_at(pair[1].1).await) {
                (Some(found), None) if found == count => Some(0),
                (None, Some(found)) if found == count => Some(1),
                _ => None,
            }
        })
        .await
    };
    let owner = by_one(2, &pair).await;
    eventually(
        "a relay of a share that is no more counts nothing",
        async || open_at(third.1).await.is_none().then_some(()),
    )
    .await;
    let told = format!("of slot {}_3", fixture.name);
    assert_eq!(get(pair[owner].1, "/").await.matches(&told).count(), 2);

    // The other one has the share now, and the one that had it counts no more once it is awake.
    pair[owner].0.signal(Signal::STOP);
    eventually("the other one counts", async || {
        (open_at(pair[1 - owner].1).await == Some(2)).then_some(())
    })
    .await;
    pair[owner].0.signal(Signal::CONT);
    assert_eq!(by_one(2, &pair).await, 1 - owner);
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    shares(&mut fixture, 2);
    let discard = [&discard[..], &["--share", "1"]].concat();
    fixture.walrelay(&discard).await.success();
    by_one(0, &pair).await;
    let [one, other] = pair;
    for relay in [first.0, one.0, other.0, third.0] {
        relay.stop().await;
    }
}

/// They are told with those of the share that has the rows now, and what `doctor` says is typed.
#[tokio::test]
async fn dead_letters_of_a_share_that_is_no_more_are_shown_and_closed() {
    for own_streams in [true, false] {
        let mut fixture = two_shares(own_streams).await;
        if !own_streams {
            takes_dead_letters_of(&fixture, "4").await;
        }
        reshard(&fixture, "4").await;
        shares(&mut fixture, 4);
        let relay = fixture.run();
        // Of share 3, and later of share 1.
        let share = "(uuid_hash(aggregate_id) & 3) = 3";
        fixture.insert(1, 60).await;
        let bad = "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
            SELECT gen_random_uuid(), aggregate_id, 'has a space', '{}' FROM outbox_events WHERE";
        let bad = format!("{bad} {share} LIMIT 2");
        // The trigger would give them another aggregate.
        let sql = format!("DROP TRIGGER few ON outbox_events; {bad}");
        fixture.sql.batch_execute(&sql).await.unwrap();
        reshard(&fixture, "2").await;
        shares(&mut fixture, 2);

        let doctor = fixture.walrelay(&["doctor"]).await;
        let told = format!("2 dead letters of slot {}_3", fixture.name);
        assert!(doctor.stdout.contains(&told), "{}", doctor.stdout);
        let (_, typed) = doctor
            .stdout
            .split_once("walrelay dead-letters list ")
            .unwrap();
        let typed: Vec<&str> = typed.split(' ').take(2).collect();
        assert_eq!(typed, ["--share", "1"]);
        let of_share =
            |command: &[&'static str]| [&["dead-letters"], command, &["--share", "1"]].concat();
        let found = fixture.walrelay(&["verify"]).await;
        assert_eq!(found.code, Some(1), "{}", found.stderr);
        let told = format!("of slot {}_3, whose share is no more", fixture.name);
        assert_eq!(found.stdout.matches(&told).count(), 2, "{}", found.stdout);
        let positions = letters(&fixture, &["--share", "1"]).await;
        assert_eq!(positions.len(), 2);

        let mend = [
            "dead-letters",
            "retry",
            &positions[0],
            "--set",
            "event_type=mended",
        ];
        fixture
            .walrelay(&[&mend[..], &["--share", "1"]].concat())
            .await
            .success();
        let again = ["dead-letters", "retry", &positions[0], "--share", "1"];
        assert_eq!(
            fixture.walrelay(&again).await.code,
            Some(1),
            "it was retried"
        );
        let discard = of_share(&["discard", "--all", "--reason", "a test"]);
        fixture.walrelay(&discard).await.success();
        fixture.walrelay(&["verify"]).await.success();
        assert!(letters(&fixture, &["--share", "1"]).await.is_empty());
        stops(relay).await;
    }
}
