//! Two relays on one slot: the older one is frozen until the slot is another's, and thawed. It writes nothing more.

use std::collections::HashSet;
use std::net::SocketAddr;

use futures_util::{FutureExt as _, StreamExt as _};
use rustix::process::Signal;
use tokio_postgres::Client;
use walrelay::local::LocalNatsCluster;

use crate::foreign::ForeignPublisher;
use crate::lane::{
    chain, event_count, events, judge, logs_from, more_events, move_to_cluster, set_up_on_three,
    share,
};
use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay, Writer, binaries, eventually, site};

const EVENTS_BETWEEN: u64 = 300;
/// So many looks in a row that find the same.
const LOOKS: u32 = 20;

/// New connections to the database, the relay's too, are given up after a second of silence.
async fn impatient(sql: &Client, name: &str) {
    let setting = format!("ALTER DATABASE {name} SET wal_sender_timeout = '1s'");
    sql.batch_execute(&setting).await.unwrap();
}

/// What the relays send into the lane, stored or refused: whoever listens on the subjects sees it as JetStream does.
struct Wire {
    subscriber: async_nats::Subscriber,
    /// The positions that were sent.
    sent: HashSet<String>,
}

impl Wire {
    async fn listen(fixture: &Fixture) -> Wire {
        let subject = format!("{}.>", fixture.name);
        let subscriber = fixture.nats.subscribe(subject).await.unwrap();
        fixture.nats.flush().await.unwrap();
        Wire {
            subscriber,
            sent: HashSet::new(),
        }
    }

    /// Reads what has come so far.
    fn read(&mut self) {
        while let Some(Some(message)) = self.subscriber.next().now_or_never() {
            self.sent.insert(position(&message));
        }
    }

    /// Waits until one comes that was sent before.
    async fn again(&mut self) -> String {
        eventually("a position is sent again", async || {
            while let Some(Some(message)) = self.subscriber.next().now_or_never() {
                let position = position(&message);
                if !self.sent.insert(position.clone()) {
                    return Some(position);
                }
            }
            None
        })
        .await
    }
}

fn position(message: &async_nats::Message) -> String {
    let headers = message.headers.as_ref().expect("the lane's own");
    headers
        .get("Walrelay-Position")
        .expect("has one")
        .to_string()
}

/// A relay, the way to NATS that only it takes, and where it tells of itself.
async fn run(fixture: &mut Fixture) -> (Relay, Proxy, SocketAddr) {
    let port = fixture.nats.server_info().port;
    let link = Proxy::start(port).await.unwrap();
    let url = format!("nats://127.0.0.1:{}", link.port());
    fixture.set("WALRELAY_NATS_URL", url);
    let address = site::free_address();
    fixture.set("WALRELAY_HTTP_LISTEN", address.to_string());
    (fixture.run(), link, address)
}

/// Freezes the relay in mid-load with events on their way, has another one take the slot over and publish them, thaws the
/// first and lets what it had sent arrive.
async fn freeze_and_thaw(fixture: &mut Fixture) {
    impatient(&fixture.sql, &fixture.name).await;
    let (mut relay, mut link, mut address) = run(fixture).await;
    relay.streams().await;
    let writer = Writer::start(fixture).await;
    for _ in 0..3 {
        more_events(fixture, EVENTS_BETWEEN).await;
        let mut wire = Wire::listen(fixture).await;
        // What it sends from here on waits before the broker.
        link.set(Mode::HalfOpenUp);
        events_wait(address).await;
        relay.signal(Signal::STOP);
        let (mut next, next_link, next_address) = run(fixture).await;
        next.streams().await;
        more_events(fixture, EVENTS_BETWEEN).await;
        wire.read();
        let logged = relay.log().len();
        link.set(Mode::Pass);
        relay.signal(Signal::CONT);
        // They come to the broker behind the same ones of its successor, and it keeps these.
        let again = wire.again().await;
        // It says why it no longer publishes, and waits for the slot like any other.
        let log = logs_from(&mut relay, logged, "is in use").await;
        let why = log.lines().any(|line| {
            !line.contains("is in use")
                && (line.contains("waiting: ") || line.contains("starting again"))
        });
        assert!(why, "{log}");
        let stored = events(fixture).await;
        let copies = stored
            .iter()
            .filter(|message| again.ends_with(&format!(" {}", message.position)));
        assert_eq!(copies.count(), 1, "{again}");
        let before = event_count(fixture).await;
        eventually("the new one goes on", async || {
            (event_count(fixture).await > before + EVENTS_BETWEEN).then_some(())
        })
        .await;
        relay.kill();
        (relay, link, address) = (next, next_link, next_address);
    }
    judge(fixture, writer).await;
    relay.stop().await;
}

/// Waits until events that were sent stay without an answer, by the relay's own count.
async fn events_wait(address: SocketAddr) {
    let mut looks = (String::new(), 0);
    eventually("events wait for an answer", async || {
        let (_, metrics) = site::get(address, "/metrics").await?;
        let value = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(name))?;
            Some(line.rsplit(' ').next()?.to_owned())
        };
        let acknowledged = value("walrelay_events_acknowledged_total")?;
        if value("walrelay_in_flight_messages")? == "0" || acknowledged != looks.0 {
            looks = (acknowledged, 0);
        }
        looks.1 += 1;
        (looks.1 > LOOKS).then_some(())
    })
    .await;
}

#[tokio::test]
async fn on_a_stream_of_its_own() {
    let mut fixture = Fixture::new().await;
    freeze_and_thaw(&mut fixture).await;
}

#[tokio::test]
async fn on_a_stream_of_its_own_without_fast_ingest() {
    let mut fixture = Fixture::bare().await;
    chain(&fixture, 1).await;
    freeze_and_thaw(&mut fixture).await;
}

#[tokio::test]
async fn on_a_shared_stream() {
    let mut fixture = Fixture::bare().await;
    share(&mut [&mut fixture], 1).await;
    let foreign = ForeignPublisher::start(&fixture);
    freeze_and_thaw(&mut fixture).await;
    foreign.stop().await;
}

#[tokio::test]
async fn on_three_replicas() {
    let cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let mut own = Fixture::bare().await;
    move_to_cluster(&mut own, &cluster).await;
    set_up_on_three(&own).await;
    freeze_and_thaw(&mut own).await;

    let mut shared = Fixture::bare().await;
    move_to_cluster(&mut shared, &cluster).await;
    share(&mut [&mut shared], 3).await;
    let foreign = ForeignPublisher::start(&shared);
    freeze_and_thaw(&mut shared).await;
    foreign.stop().await;
}
