//! A relay in a network namespace of its own, at the other end of a cable that can be pulled: packets are dropped, and no socket
//! is closed. By hand, since it takes root.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lane::{holds_events, judge_events, logs_from};
use crate::proxy::Proxy;
use crate::support::{Fixture, Relay, Servers, options, uuid};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 2);
const NAMESPACE: &str = "walrelay-test";
const PLUG: &str = "walrelay-test0";

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    command.status().expect("iproute2 is there").success()
}

/// Gone when dropped.
struct Cable;

impl Cable {
    fn lay() -> Cable {
        let cable = Cable;
        for step in [
            format!("netns add {NAMESPACE}"),
            format!("link add {PLUG} type veth peer name eth0 netns {NAMESPACE}"),
            format!("addr add {HERE}/30 dev {PLUG}"),
            format!("link set {PLUG} up"),
            format!("-n {NAMESPACE} addr add {THERE}/30 dev eth0"),
            format!("-n {NAMESPACE} link set lo up"),
            format!("-n {NAMESPACE} link set eth0 up"),
        ] {
            assert!(ip(&step), "ip {step}: as root only");
        }
        cable
    }

    fn pull(&self) {
        assert!(ip(&format!("link set {PLUG} down")));
    }

    fn plug_in(&self) {
        assert!(ip(&format!("link set {PLUG} up")));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        ip(&format!("netns del {NAMESPACE}"));
    }
}

/// A lane, and the way to its NATS from the other end.
async fn lane() -> (Fixture, Proxy) {
    let mut postgres = options(&[("listen_addresses", "*")]);
    postgres.hba = Some(format!(
        "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all {THERE}/32 trust\n\
         local replication all trust\nhost replication all 127.0.0.1/32 trust\nhost replication all {THERE}/32 trust"
    ));
    let fixture = Fixture::bare_on(Servers::with(postgres).await).await;
    fixture.setup().await;
    let name = &fixture.name;
    let patient = format!("ALTER DATABASE {name} SET wal_sender_timeout = 0");
    fixture.sql.batch_execute(&patient).await.unwrap();
    let nats = Proxy::start_at(HERE, fixture.nats.server_info().port);
    let nats = nats.await.expect("a free port");
    (fixture, nats)
}

/// A relay at the other end.
fn run_there(fixture: &mut Fixture, nats: &Proxy) -> Relay {
    let url = fixture.servers().postgres.url(&fixture.name);
    let url = url.replace("127.0.0.1", &HERE.to_string());
    fixture.set("WALRELAY_POSTGRES_URL", url);
    fixture.set(
        "WALRELAY_NATS_URL",
        format!("nats://{HERE}:{}", nats.port()),
    );
    let program = env!("CARGO_BIN_EXE_walrelay");
    let relay = fixture.run_by("ip", &["netns", "exec", NAMESPACE, program, "run"]);
    let url = fixture.servers().postgres.url(&fixture.name);
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let nats = fixture.servers().nats.url();
    fixture.set("WALRELAY_NATS_URL", nats);
    relay
}

#[tokio::test]
#[ignore = "lays a cable to a network namespace, as root: make cable"]
async fn a_pulled_cable_is_told_and_streamed_over_again() {
    let cable = Cable::lay();
    let (mut fixture, nats) = lane().await;
    let mut relay = run_there(&mut fixture, &nats);
    relay.streams().await;
    let mut last = 10;
    fixture.insert(1, last).await;
    holds_events(&fixture, last).await;
    for _ in 0..3 {
        let logged = relay.log().len();
        cable.pull();
        let begin = Instant::now();
        logs_from(&mut relay, logged, "waiting: ").await;
        let said = begin.elapsed();
        fixture.insert(last + 1, last + 10).await;
        last += 10;
        cable.plug_in();
        let begin = Instant::now();
        holds_events(&fixture, last).await;
        eprintln!("said after {said:?}, back after {:?}", begin.elapsed());
    }
    judge_events(&fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
    relay.stop().await;
}

/// How a relay goes away.
#[derive(Debug, Clone, Copy)]
enum Way {
    Killed,
    Frozen,
    CutOff,
    Stopped,
}

/// Ten of each under load, and the worst and the median of the time until the next relay streams.
#[tokio::test]
#[ignore = "lays a cable to a network namespace, as root: make cable"]
async fn takeovers_are_timed() {
    const EVENTS: u64 = 2_000;
    let cable = Cable::lay();
    for way in [Way::Killed, Way::Frozen, Way::CutOff, Way::Stopped] {
        let (mut fixture, nats) = lane().await;
        let (mut last, mut took) = (0, Vec::new());
        for _ in 0..10 {
            let mut relay = run_there(&mut fixture, &nats);
            relay.streams().await;
            let mut next = fixture.run();
            next.logs("is in use").await;
            fixture.insert(last + 1, last + EVENTS).await;
            match way {
                Way::Killed => relay.kill(),
                Way::Frozen => relay.signal(Signal::STOP),
                Way::CutOff => cable.pull(),
                Way::Stopped => relay.signal(Signal::TERM),
            }
            let begin = Instant::now();
            next.streams().await;
            took.push(begin.elapsed());
            last += 2 * EVENTS;
            fixture.insert(last - EVENTS + 1, last).await;
            holds_events(&fixture, last).await;
            relay.kill();
            if let Way::CutOff = way {
                cable.plug_in();
            }
            next.stop().await;
        }
        took.sort();
        let seconds = |time: Duration| time.as_secs_f64();
        eprintln!(
            "{way:?}: median {:.2} s, worst {:.2} s",
            seconds(took[took.len() / 2]),
            seconds(took[took.len() - 1])
        );
        judge_events(&fixture, &(1..=last).map(uuid).collect::<Vec<_>>()).await;
    }
}
