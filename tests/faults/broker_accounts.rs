//! What an operator of NATS can do to a running relay: limits and rights of its account, JetStream off, lame duck,
//! another leader.

use std::future::Future;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use walrelay::local::LocalNatsCluster;

use crate::lane::{
    Restraint, chain, ends_well, event_count, holds_events, jetstream, logs_from, move_to_cluster,
    running, set_up_on_three, share,
};
use crate::support::{Fixture, Relay, Servers, binaries, eventually, insert_sql};

const WATCH: Duration = Duration::from_millis(1_500);

/// One account, in which everybody is who gives no name.
fn account(jetstream: &str, permissions: &str) -> String {
    format!(
        "accounts {{
           A {{ jetstream: {jetstream}, users: [{{ user: a, password: a {permissions} }}] }}
         }}
         no_auth_user: a"
    )
}

/// A lane in that account, on servers of its own; nothing is confirmed.
async fn fixture() -> Fixture {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    nats.reload(account("enabled", "")).await.unwrap();
    nats.start_again().await.unwrap();
    fixture.nats = async_nats::connect(fixture.servers().nats.url())
        .await
        .unwrap();
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    fixture.setup().await;
    fixture
}

async fn reload(fixture: &mut Fixture, jetstream: &str, permissions: &str) {
    let text = account(jetstream, permissions);
    fixture.own_servers().nats.reload(text).await.unwrap();
}

async fn waits(relay: &mut Relay, logged: usize) {
    logs_from(relay, logged, "waiting: ").await;
    Restraint::of(relay).keeps(relay, WATCH).await;
    assert!(relay.runs());
}

#[tokio::test]
async fn publishing_is_forbidden_for_a_while() {
    let mut fixture = fixture().await;
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    let denied = format!(
        ", permissions: {{ publish: {{ deny: \"{}.>\" }} }}",
        fixture.name
    );
    reload(&mut fixture, "enabled", &denied).await;
    fixture.insert(11, 20).await;
    let log = logs_from(&mut relay, logged, "permission denied to publish to").await;
    assert!(log.contains("waiting: "), "{log}");
    waits(&mut relay, logged).await;
    reload(&mut fixture, "enabled", "").await;
    ends_well(&fixture, relay, 20).await;
}

#[tokio::test]
async fn a_dead_letter_that_is_refused_is_not_told_of() {
    const SAID: &str = "became a dead letter";
    let mut fixture = fixture().await;
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    let denied = ", permissions: { publish: { deny: \"walrelay.dead.>\" } }";
    reload(&mut fixture, "enabled", denied).await;
    let bad = insert_sql(11, 11).replace("lesson.published.v1", "has a space");
    fixture.sql.batch_execute(&bad).await.unwrap();
    waits(&mut relay, logged).await;
    assert!(!relay.log().contains(SAID), "{}", relay.log());
    reload(&mut fixture, "enabled", "").await;
    fixture.holds(11).await;
    relay.logs(SAID).await;
    assert_eq!(relay.log().matches(SAID).count(), 1, "{}", relay.log());
    relay.stop().await;
}

#[tokio::test]
async fn the_account_has_no_room() {
    let mut fixture = fixture().await;
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    reload(&mut fixture, "{ max_file: 20KB }", "").await;
    fixture.insert(11, 200).await;
    waits(&mut relay, logged).await;
    assert!(event_count(&fixture).await < 200);
    reload(&mut fixture, "enabled", "").await;
    ends_well(&fixture, relay, 200).await;
}

#[tokio::test]
async fn jetstream_is_off_for_a_while() {
    let mut fixture = fixture().await;
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    reload(&mut fixture, "disabled", "").await;
    fixture.insert(11, 20).await;
    waits(&mut relay, logged).await;
    reload(&mut fixture, "enabled", "").await;
    ends_well(&fixture, relay, 20).await;
}

#[tokio::test]
async fn a_lame_duck_server() {
    let mut fixture = Fixture::own().await;
    fixture.set("WALRELAY_RELAY_HOLD_BACK", "1h");
    let mut relay = running(&mut fixture, 10).await;
    let logged = relay.log().len();
    let pid = fixture.own_servers().nats.pid().unwrap();
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::USR2).unwrap();
    logs_from(&mut relay, logged, "lame duck").await;
    fixture.insert(11, 20).await;
    waits(&mut relay, logged).await;
    fixture.own_servers().nats.kill();
    fixture.own_servers().nats.start_again().await.unwrap();
    ends_well(&fixture, relay, 20).await;
}

/// The node that leads the lane's stream.
async fn leader(fixture: &Fixture, cluster: &LocalNatsCluster) -> usize {
    eventually("the stream has a leader", async || {
        let stream = jetstream(fixture).get_stream(fixture.stream_name()).await;
        let name = stream
            .ok()?
            .cached_info()
            .cluster
            .as_ref()?
            .leader
            .clone()?;
        cluster.nodes().iter().position(|node| node.name() == name)
    })
    .await
}

/// Events of one load, in transactions of [`TRANSACTION`].
const LOAD: u64 = 1_000;
const TRANSACTION: u64 = 4;

/// Commits the next load, and has `fault` strike when some of it has come through.
async fn under_load(fixture: &Fixture, last: &mut u64, fault: impl Future<Output = ()>) {
    let (first, end) = (*last + 1, *last + LOAD);
    let load = async {
        for first in (first..end).step_by(TRANSACTION as usize) {
            fixture.insert(first, first + TRANSACTION - 1).await;
        }
    };
    let strike = async {
        holds_events(fixture, first + LOAD / 20).await;
        fault.await;
    };
    tokio::join!(load, strike);
    holds_events(fixture, end).await;
    *last = end;
}

async fn leaders_change(fixture: &mut Fixture, cluster: &mut LocalNatsCluster, publish: &str) {
    // Nobody waits for so long: a new leader is told.
    fixture.set("WALRELAY_RELAY_ACK_TIMEOUT", "5m");
    let mut relay = fixture.run();
    relay.logs(&format!("publish=\"{publish}\"")).await;
    let mut last = 0;
    for _ in 0..2 {
        let step_down = format!("$JS.API.STREAM.LEADER.STEPDOWN.{}", fixture.stream_name());
        let steps_down = async {
            fixture.nats.request(step_down, "".into()).await.unwrap();
        };
        under_load(fixture, &mut last, steps_down).await;
        let leader = leader(fixture, cluster).await;
        under_load(fixture, &mut last, async { cluster.node(leader).kill() }).await;
        cluster.node(leader).start_again().await.unwrap();
        cluster.wait_for_leader().await.unwrap();
    }
    ends_well(fixture, relay, last).await;
}

#[tokio::test]
async fn leaders_of_three_replicas_change() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let mut own = Fixture::bare().await;
    move_to_cluster(&mut own, &cluster).await;
    set_up_on_three(&own).await;
    leaders_change(&mut own, &mut cluster, "fast-ingest").await;

    let mut shared = Fixture::bare().await;
    move_to_cluster(&mut shared, &cluster).await;
    share(&mut [&mut shared], 3).await;
    leaders_change(&mut shared, &mut cluster, "atomic").await;
}

#[tokio::test]
async fn leaders_of_three_replicas_change_without_fast_ingest() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let mut fixture = Fixture::bare().await;
    move_to_cluster(&mut fixture, &cluster).await;
    chain(&fixture, 3).await;
    leaders_change(&mut fixture, &mut cluster, "chain").await;
}
