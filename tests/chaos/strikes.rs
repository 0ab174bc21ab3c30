//! Faults that may overlap: each strikes one part, lasts, and is over when the call returns.
//!
//! In: the world, the part, randomness by the seed. Out: the fault has begun and ended; what it killed may still be
//! away, and comes back when the world is healed.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use walrelay::local::Mode as StopMode;

use crate::process::{Paused, signal};
use crate::proxy::{Mode, Proxy};
use crate::verdict::FOREIGN_SUBJECT;
use crate::world::{STREAM, World};

/// What a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Relay,
    Postgres,
    Broker,
    PostgresLink,
    BrokerLink,
}

pub const PARTS: [Part; 5] = [
    Part::Relay,
    Part::Postgres,
    Part::Broker,
    Part::PostgresLink,
    Part::BrokerLink,
];

/// Short times more often than long ones.
pub fn span(random: &mut StdRng, milliseconds: std::ops::Range<u64>) -> Duration {
    let part: f64 = random.random();
    let range = (milliseconds.end - milliseconds.start) as f64;
    Duration::from_millis(milliseconds.start + (range * part * part) as u64)
}

pub async fn sleep(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(span(random, milliseconds)).await;
}

/// A generator of its own for a fault that runs beside others.
pub fn fork(random: &mut StdRng) -> StdRng {
    use rand::SeedableRng as _;
    StdRng::seed_from_u64(random.random())
}

pub async fn strike(world: &World, part: Part, mut random: StdRng) -> anyhow::Result<()> {
    let random = &mut random;
    sleep(random, 0..1_000).await;
    match part {
        Part::Relay => strike_relay(world, random).await,
        Part::Postgres => strike_postgres(world, random).await,
        Part::Broker => strike_broker(world, random).await,
        Part::PostgresLink => {
            let place = running(world);
            let name = format!("place {place} to Postgres");
            strike_link(world, &name, &world.links[place].postgres, random).await;
            Ok(())
        }
        Part::BrokerLink => {
            let (place, node) = (running(world), random.random_range(0..world.broker.size()));
            let name = format!("place {place} to node {node}");
            strike_link(world, &name, &world.links[place].broker[node], random).await;
            Ok(())
        }
    }
}

/// The place where a relay runs.
pub fn running(world: &World) -> usize {
    usize::from(!world.relays.is_wanted(0))
}

async fn strike_relay(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let (history, relays, place) = (&world.history, &world.relays, running(world));
    match random.random_range(0..12) {
        10.. => {
            // In the middle of starting, of catching up, of anything.
            for _ in 0..random.random_range(3..12) {
                history.fault("relay SIGKILL", format!("place {place}, in a series"));
                relays.kill(place).await;
                relays.start(place)?;
                sleep(random, 5..600).await;
            }
            Ok(())
        }
        0..4 => {
            let away = span(random, 0..6_000);
            history.fault("relay SIGKILL", format!("place {place}, away {away:?}"));
            relays.kill(place).await;
            tokio::time::sleep(away).await;
            relays.start(place)
        }
        4..7 => {
            let away = span(random, 0..2_000);
            history.fault("relay SIGTERM", format!("place {place}, away {away:?}"));
            let took = relays.stop(place).await?;
            history.note(format!("relay {place} stopped after {took:?}"));
            tokio::time::sleep(away).await;
            relays.start(place)
        }
        _ => {
            let pause = span(random, 100..7_000);
            history.fault("relay SIGSTOP", format!("place {place} for {pause:?}"));
            let paused = Paused::new(relays.pid(place).into_iter().collect()).await;
            tokio::time::sleep(pause).await;
            drop(paused);
            Ok(())
        }
    }
}

async fn strike_postgres(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let (history, postgres) = (&world.history, &world.postgres);
    match random.random_range(0..14) {
        0..3 => {
            let away = span(random, 0..3_000);
            history.fault("Postgres SIGKILL", format!("all processes, away {away:?}"));
            postgres.kill().await;
            tokio::time::sleep(away).await;
            postgres.start_again().await
        }
        3..5 => {
            history.fault("Postgres stop fast", "");
            let took = postgres.stop(StopMode::Fast).await?;
            history.note(format!("Postgres stopped after {took:?}"));
            sleep(random, 0..2_000).await;
            postgres.start_again().await
        }
        5 => {
            history.fault("Postgres stop immediate", "");
            postgres.stop(StopMode::Immediate).await?;
            sleep(random, 0..1_000).await;
            postgres.start_again().await
        }
        6..8 => {
            let walsenders = postgres.walsenders().await;
            history.fault("walsender SIGKILL", format!("{walsenders:?}"));
            for pid in walsenders {
                signal(Some(pid), rustix::process::Signal::KILL);
            }
            Ok(())
        }
        8..10 => {
            let walsenders = postgres.walsenders().await;
            history.fault("walsender SIGTERM", format!("{walsenders:?}"));
            for pid in walsenders {
                signal(Some(pid), rustix::process::Signal::TERM);
            }
            Ok(())
        }
        10..12 => {
            let pause = span(random, 100..8_000);
            let walsenders = postgres.walsenders().await;
            history.fault("walsender SIGSTOP", format!("{walsenders:?} for {pause:?}"));
            let paused = Paused::new(walsenders).await;
            tokio::time::sleep(pause).await;
            drop(paused);
            Ok(())
        }
        _ => {
            let pause = span(random, 100..6_000);
            history.fault("Postgres SIGSTOP", format!("all processes for {pause:?}"));
            let paused = postgres.pause().await;
            tokio::time::sleep(pause).await;
            drop(paused);
            Ok(())
        }
    }
}

async fn strike_broker(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let (history, broker) = (&world.history, &world.broker);
    let mut nodes: Vec<usize> = (0..broker.size()).collect();
    nodes.shuffle(random);
    // Mostly one of a cluster; two, and there is no quorum; or all.
    nodes.truncate(*[1, 1, 1, 1, 2, 3].choose(random).expect("not empty"));
    match random.random_range(0..12) {
        0..4 => {
            let away = span(random, 0..4_000);
            history.fault("nats SIGKILL", format!("{nodes:?}, away {away:?}"));
            for node in &nodes {
                broker.kill(*node).await;
            }
            tokio::time::sleep(away).await;
            for node in &nodes {
                broker.start_again(*node).await?;
            }
            Ok(())
        }
        4..6 => {
            history.fault("nats SIGTERM", format!("{nodes:?}"));
            for node in &nodes {
                broker.stop(*node).await?;
            }
            sleep(random, 0..2_000).await;
            for node in &nodes {
                broker.start_again(*node).await?;
            }
            Ok(())
        }
        6..9 => {
            let pause = span(random, 100..13_000);
            history.fault("nats SIGSTOP", format!("{nodes:?} for {pause:?}"));
            let paused = broker.pause(&nodes).await;
            tokio::time::sleep(pause).await;
            drop(paused);
            Ok(())
        }
        9 if broker.size() > 1 => step_down(world).await,
        _ => publish_foreign(world, random).await,
    }
}

/// Another node becomes the leader of the stream.
async fn step_down(world: &World) -> anyhow::Result<()> {
    world.history.fault("nats leader change", "");
    if let Ok(client) = world.broker.connect().await {
        // Without an answer nothing has happened: as good a fault as any.
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
        let _ = client.request(subject, "".into()).await;
    }
    Ok(())
}

/// Somebody else writes into the stream.
pub async fn publish_foreign(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let count = random.random_range(1..6);
    world.history.fault("foreign", format!("{count} messages"));
    let Ok(client) = world.broker.connect().await else {
        return Ok(());
    };
    for number in 0..count {
        let body = format!("not of the relay, {number}");
        // Every other one as a consumer's redrive leaves it, with our own headers.
        let headers = match number % 2 {
            0 => HeaderMap::new(),
            _ => copied_headers(&client, random).await.unwrap_or_default(),
        };
        let _ = client
            .request_with_headers(FOREIGN_SUBJECT, headers, body.into())
            .await;
        sleep(random, 0..100).await;
    }
    Ok(())
}

/// Those of some message of the stream, but for NATS' own.
async fn copied_headers(client: &Client, random: &mut StdRng) -> anyhow::Result<HeaderMap> {
    let mut stream = async_nats::jetstream::new(client.clone())
        .get_stream(STREAM)
        .await?;
    let state = stream.info().await?.state.clone();
    let sequence = random.random_range(state.first_sequence..=state.last_sequence);
    let message = stream.get_raw_message(sequence).await?;
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter() {
        if let Some(value) = values
            .first()
            .filter(|_| name.to_string().starts_with("Walrelay-"))
        {
            headers.insert(name.clone(), value.clone());
        }
    }
    Ok(headers)
}

async fn strike_link(world: &World, name: &str, proxy: &Proxy, random: &mut StdRng) {
    let history = &world.history;
    let lasting = match random.random_range(0..12) {
        0..3 => {
            history.fault("link cut", name);
            proxy.cut();
            return;
        }
        3..5 => {
            let bytes = random.random_range(0..3_000);
            history.fault(
                "link cut in mid-frame",
                format!("{name}, after {bytes} bytes"),
            );
            proxy.set(Mode::Truncate(bytes));
            sleep(random, 50..500).await;
            proxy.set(Mode::Pass);
            return;
        }
        5 => {
            let pause = span(random, 100..8_000);
            history.fault("link frozen", format!("{name} for {pause:?}"));
            (Mode::Freeze, pause)
        }
        6 => {
            let pause = span(random, 1_000..14_000);
            history.fault(
                "link half open",
                format!("{name}, relay unheard for {pause:?}"),
            );
            (Mode::HalfOpenUp, pause)
        }
        7 => {
            let pause = span(random, 1_000..14_000);
            history.fault(
                "link half open",
                format!("{name}, server unheard for {pause:?}"),
            );
            (Mode::HalfOpenDown, pause)
        }
        8 => {
            let (late, pause) = (span(random, 5..700), span(random, 1_000..8_000));
            history.fault("link delayed", format!("{name} by {late:?} for {pause:?}"));
            (Mode::Delay(late), pause)
        }
        9 => {
            let bytes = random.random_range(20_000..400_000);
            let pause = span(random, 1_000..8_000);
            history.fault(
                "link throttled",
                format!("{name} to {bytes} B/s for {pause:?}"),
            );
            (Mode::Throttle(bytes), pause)
        }
        _ => {
            let pause = span(random, 100..4_000);
            history.fault("link refused", format!("{name} for {pause:?}"));
            proxy.cut();
            (Mode::Refuse, pause)
        }
    };
    proxy.set(lasting.0);
    tokio::time::sleep(lasting.1).await;
    proxy.set(Mode::Pass);
    if random.random_bool(0.5) {
        // What was frozen never comes back.
        proxy.cut();
    }
}
