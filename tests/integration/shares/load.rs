//! What the tests of a changing number of shares have in common: the outbox, the command, and what is waited for.

use async_nats::jetstream;
use rustix::process::Signal;
use tokio_postgres::Client;

use super::{divide, get};
use crate::support::{Fixture, Output, Relay, Writer, eventually, site};

/// Events are of twenty aggregates, whoever writes them.
pub(super) const FEW_AGGREGATES: &str = "
CREATE FUNCTION few() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  NEW.aggregate_id := ('00000000-0000-4000-8000-' || lpad((abs(hashtext(NEW.id::text)) % 20)::text, 12, '0'))::uuid;
  RETURN NEW;
END $$;
CREATE TRIGGER few BEFORE INSERT ON outbox_events FOR EACH ROW EXECUTE FUNCTION few();";

pub(super) const SLOTS: &str = "FROM pg_replication_slots WHERE database = current_database()";
/// Publications of shares that are none yet, or no more.
pub(super) const CARRY_NOTHING: &str = "FROM pg_publication_tables WHERE rowfilter = 'false'";

pub(super) fn shares(fixture: &mut Fixture, count: u32) {
    fixture.set("WALRELAY_RELAY_SHARES", count.to_string());
}

/// Two shares, set up; relays confirm at once.
pub(super) async fn two_shares(own_streams: bool) -> Fixture {
    two_shares_on(Fixture::bare().await, own_streams).await
}

pub(super) async fn two_shares_on(mut fixture: Fixture, own_streams: bool) -> Fixture {
    divide(&mut fixture, own_streams);
    shares(&mut fixture, 2);
    set_up(fixture).await
}

/// One lane of all rows, set up, whose relay confirms at once.
pub(super) async fn undivided() -> Fixture {
    set_up(Fixture::bare().await).await
}

/// As it is configured; relays confirm at once.
pub(super) async fn set_up(mut fixture: Fixture) -> Fixture {
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "0s");
    fixture.setup().await;
    fixture.sql.batch_execute(FEW_AGGREGATES).await.unwrap();
    fixture
}

/// From now on the configuration is of so many shares, with a stream each; of one, as it was.
pub(super) fn own_streams(fixture: &mut Fixture, count: u32) {
    let name = fixture.name.clone();
    let (stream, subject) = match count {
        1 => (name.to_uppercase(), format!("{name}.{{event_type}}")),
        _ => (
            format!("{}_{{share}}", name.to_uppercase()),
            format!("divided_{name}.{{share}}.{{event_type}}"),
        ),
    };
    fixture.set("WALRELAY_NATS_STREAM", stream);
    fixture.set("WALRELAY_NATS_SUBJECT", subject);
    shares(fixture, count);
}

pub(super) async fn reshard(fixture: &Fixture, to: &str) -> Output {
    fixture
        .walrelay(&["reshard", "--shares", to])
        .await
        .success()
}

/// A share that no process has is not well, however well the process is that leaves it to others.
#[tokio::test]
async fn a_share_that_nobody_has_is_not_told_as_well() {
    let mut fixture = two_shares(true).await;
    fixture.set("WALRELAY_RELAY_MAX_SHARES_PER_INSTANCE", "1");
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    let first = fixture.run();
    are_owned(&fixture, 1).await;
    eventually("the other share is left to others", async || {
        let told = get(address, "/status.json").await;
        told.contains("max_shares_per_instance").then_some(())
    })
    .await;
    let status = fixture.walrelay(&["status"]).await;
    assert_eq!(status.code, Some(1), "{status:?}");
    for said in ["nobody reads slot", "raise relay.max_shares_per_instance"] {
        assert!(status.stderr.contains(said), "{status:?}");
    }
    fixture.set("WALRELAY_HTTP_LISTEN", "");
    let second = fixture.run();
    are_owned(&fixture, 2).await;
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    fixture.walrelay(&["status"]).await.success();
    for relay in [first, second] {
        stops(relay).await;
    }
}

/// Changes the publications as a command does that is killed there: by what it prints.
pub(super) async fn change_alone(fixture: &Fixture, command: &[&str]) {
    let dry = [command, &["--dry-run"]].concat();
    let dry = fixture.walrelay(&dry).await.success().stdout;
    let (change, _) = dry.split_once("COMMIT;").expect("a transaction");
    let change = format!("{change}COMMIT;");
    fixture.sql.batch_execute(&change).await.unwrap();
}

/// Somebody who has the table as an insert has it, in a transaction without an id: for the end of one with an id, the making of a slot
/// would wait as well.
pub(super) async fn writing(fixture: &Fixture) -> Client {
    let lock = "LOCK TABLE outbox_events IN ROW EXCLUSIVE MODE";
    fixture.begins(lock).await
}

/// Ends the run that is at work as it is printed, for when its machine is gone.
pub(super) async fn end_as_printed(fixture: &Fixture, refused: &Output) {
    let (_, remedy) = refused
        .stderr
        .split_once("Where its machine is gone, ")
        .expect("it says what to do");
    let (sql, _) = remedy.split_once(" ends it").expect("a statement");
    fixture.sql.batch_execute(sql).await.expect(sql);
}

/// Flags of a printed `nats stream edit`, done.
pub(super) async fn edit(fixture: &Fixture, printed: &str) {
    let name = fixture.stream_name();
    let (_, flags) = printed
        .split_once(&format!("nats stream edit {name} "))
        .unwrap_or_else(|| panic!("no command in {printed}"));
    let flags = flags.lines().next().unwrap();
    let jetstream = jetstream::new(fixture.nats.clone());
    let stream = jetstream.get_stream(name).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    let subjects = flags.split("--subjects='").skip(1);
    let subjects: Vec<String> = subjects
        .map(|flag| flag.split('\'').next().unwrap().to_owned())
        .collect();
    if !subjects.is_empty() {
        config.subjects = subjects;
    }
    config.allow_atomic_publish |= flags.contains("--allow-batch");
    jetstream.update_stream(config).await.unwrap();
}

/// A stream of all shares has to take the dead letters of the new ones: what is printed is typed.
pub(super) async fn takes_dead_letters_of(fixture: &Fixture, shares: &str) {
    let refused = fixture.walrelay(&["reshard", "--shares", shares]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    edit(fixture, &refused.stderr).await;
    assert_eq!(count(fixture, SLOTS).await, 2, "nothing was made");
}

pub(super) async fn count(fixture: &Fixture, query: &str) -> i64 {
    let query = format!("SELECT count(*) {query}");
    fixture.sql.query_one(&query, &[]).await.unwrap().get(0)
}

/// Waits until the catalog has come so far.
pub(super) async fn has(fixture: &Fixture, what: &str, query: &str, wanted: i64) {
    eventually(what, async || {
        (count(fixture, query).await == wanted).then_some(())
    })
    .await;
}

/// Kills the command once it has brought the catalog so far; it may also have come to its end before anybody has looked.
pub(super) async fn kill_at(
    fixture: &Fixture,
    mut command: Relay,
    what: &str,
    query: &str,
    wanted: i64,
) {
    let has_ended = eventually(what, async || {
        let has_ended = !command.runs();
        let is_there = has_ended || count(fixture, query).await >= wanted;
        is_there.then_some(has_ended)
    })
    .await;
    match has_ended {
        true => assert_eq!(command.ends().await, Some(0), "{}", command.log()),
        false => command.kill(),
    }
}

/// Waits until each lane of so many is read.
pub(super) async fn are_owned(fixture: &Fixture, lanes: i64) {
    let owned = format!("{SLOTS} AND active");
    has(fixture, "each lane has an owner", &owned, lanes).await;
}

/// Waits until the writer has committed more, and events go on in a stream of a lane that is there all the time.
pub(super) async fn more(fixture: &Fixture, writer: &Writer, stream: &str) {
    let begin = writer.committed();
    let stored = fixture.message_count_of(stream).await;
    eventually("events go on", async || {
        let grown = fixture.message_count_of(stream).await >= stored + 30;
        (grown && writer.committed() >= begin + 300).then_some(())
    })
    .await;
}

/// With a lane that waits, it ends with 0: no lane has halted. And none has told of a loss.
pub(super) async fn stops(mut relay: Relay) {
    relay.is_up().await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ends().await, Some(0), "{}", relay.log());
    // A Postgres that is kept waiting for long may be said to have lost the connection.
    let log = relay.log().replace("has lost the connection", "");
    assert!(!log.contains("has lost"), "{log}");
}

/// Positions of those that are open.
pub(super) async fn letters(fixture: &Fixture, further: &[&str]) -> Vec<String> {
    let list = [&["dead-letters", "list", "--json"], further].concat();
    let listed = fixture.walrelay(&list).await.success();
    let lines = listed.stdout.lines();
    lines
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|letter| letter["position"].as_str().unwrap().to_owned())
        .collect()
}
