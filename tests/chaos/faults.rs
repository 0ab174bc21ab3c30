//! What is done to the servers, the links and the relays.
//!
//! In: the world, randomness by the seed. Out: a round that begins, lasts, and is over when the call returns. Strikes on
//! different parts overlap; some attacks need the stage for themselves, since they say how far the broker was set back
//! or what was removed.

use std::time::Duration;

use anyhow::Context as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use crate::process::Paused;
use crate::proxy::Mode;
use crate::servers::WAL_SENDER_TIMEOUT;
use crate::strikes::{PARTS, Part, fork, publish_foreign, running, sleep, span, strike};
use crate::verdict::id_of;
use crate::world::{Lane, STREAM, World};

/// A store may be set back by so much less than the hold-back: what copying, killing and starting take.
const ROLLBACK_MARGIN: Duration = Duration::from_secs(7);
/// Between two transactions that are none of the relay's.
const NOISE_INTERVAL: Duration = Duration::from_millis(300);
/// What killing the nodes takes at most.
const KILL_MAX: Duration = Duration::from_secs(1);
/// The lane record follows the stream within a second; the end of a stream is removed only when it has.
const RECORD_PAUSE: Duration = Duration::from_millis(2_500);

/// One round: a few faults at once, or one that needs the stage for itself; at times while the application is at rest.
pub async fn round(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let rest = random.random_bool(0.25).then(|| span(random, 500..20_000));
    let resting = async {
        if let Some(rest) = rest {
            idle(world, rest).await;
        }
    };
    let (attacked, ()) = tokio::join!(attack(world, random), resting);
    attacked?;
    world.heal().await
}

async fn attack(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let drawn = random.random_range(0..24);
    let drawn = match &*world.only {
        "" => drawn,
        "zombie" => 0,
        "rollback" => 2,
        "tail" => 4,
        "rivals" => 5,
        "foreign" => return publish_foreign(world, random).await,
        _ => 7,
    };
    match drawn {
        0 | 1 => zombie(world, random).await,
        2 | 3 => roll_back(world, random).await,
        4 => remove_tail(world, random).await,
        5 | 6 => rivals(world, random).await,
        _ => {
            let mut parts = PARTS.to_vec();
            parts.shuffle(random);
            parts.truncate(*[1, 1, 2, 2, 3, 4].choose(random).expect("not empty"));
            let strikes = parts.into_iter().map(|part| {
                let random = fork(random);
                strike(world, part, random)
            });
            for struck in futures_util::future::join_all(strikes).await {
                struck?;
            }
            Ok(())
        }
    }
}

/// No events for a while, only WAL that is none of the relay's.
async fn idle(world: &World, rest: Duration) {
    world
        .history
        .fault("idle", format!("no events for {rest:?}"));
    let noise = async {
        let _quiet = world.writer.gate.write().await;
        loop {
            // Where the database is away, nothing is written: as good an idleness as any.
            let _ = make_noise(world).await;
            tokio::time::sleep(NOISE_INTERVAL).await;
        }
    };
    let _ = tokio::time::timeout(rest, noise).await;
}

async fn make_noise(world: &World) -> anyhow::Result<()> {
    let client = world.postgres.connect().await?;
    client
        .batch_execute("insert into noise (text) values ('idle'); checkpoint; select pg_log_standby_snapshot()")
        .await?;
    Ok(())
}

/// A relay is frozen, or all its connections are, until another has taken the slot over; then it goes on where it was, or
/// what it had sent arrives late.
async fn zombie(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let (relays, old) = (&world.relays, running(world));
    let (new, links) = (1 - old, &world.links[old]);
    let frozen = WAL_SENDER_TIMEOUT + span(random, 1_500..6_000);
    let paused = if random.random_bool(0.5) {
        world.history.fault(
            "zombie",
            format!("place {old} frozen for {frozen:?}, place {new} takes over"),
        );
        Some(Paused::new(relays.pid(old).into_iter().collect()).await)
    } else {
        world.history.fault(
            "zombie's messages",
            format!("links of place {old} frozen for {frozen:?}, place {new} takes over"),
        );
        links.all().for_each(|proxy| proxy.set(Mode::Freeze));
        None
    };
    relays.start(new)?;
    tokio::time::sleep(frozen).await;
    let busy = random.random_bool(0.4).then(|| {
        *[Part::BrokerLink, Part::PostgresLink, Part::Broker]
            .choose(random)
            .expect("not empty")
    });
    drop(paused);
    links.broker.iter().for_each(|proxy| proxy.set(Mode::Pass));
    world.history.note(format!("place {old} goes on"));
    sleep(random, 0..1_500).await;
    links.postgres.set(Mode::Pass);
    if let Some(part) = busy {
        strike(world, part, fork(random)).await?;
    }
    sleep(random, 500..4_000).await;
    leave_one(world, random).await
}

/// Two relays at once, for a while.
async fn rivals(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let (relays, first) = (&world.relays, running(world));
    world
        .history
        .fault("two relays", format!("place {} beside {first}", 1 - first));
    relays.start(1 - first)?;
    sleep(random, 200..3_000).await;
    if random.random_bool(0.6) {
        let part = *PARTS[1..].choose(random).expect("not empty");
        strike(world, part, fork(random)).await?;
    }
    leave_one(world, random).await
}

/// Of two relays one goes, in one way or another.
async fn leave_one(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let place = random.random_range(0..2);
    if random.random_bool(0.5) {
        world.history.note(format!("place {place} is killed"));
        world.relays.kill(place).await;
    } else {
        let took = world.relays.stop(place).await?;
        world
            .history
            .note(format!("place {place} stopped after {took:?}"));
    }
    world.relays.start(1 - place)
}

/// The broker comes back without what it had acknowledged lately.
async fn roll_back(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let back_max = world.hold_back.saturating_sub(ROLLBACK_MARGIN);
    let back = span(random, 200..back_max.as_millis() as u64);
    let also = random.random_bool(0.6).then(|| {
        *[
            Part::Relay,
            Part::Relay,
            Part::PostgresLink,
            Part::BrokerLink,
            Part::Postgres,
        ]
        .choose(random)
        .expect("not empty")
    });
    // A replica that forgets is beyond what a cluster promises; a stream without replicas is one node's alone, and its
    // loss is then nothing that a client of another node would notice.
    let nodes: Vec<usize> = match world.replicas {
        1 => vec![random.random_range(0..world.broker.size())],
        _ => (0..world.broker.size()).collect(),
    };
    let begin = std::time::Instant::now();
    world.broker.copy_stores(&nodes).await?;
    world.history.note(format!(
        "the broker's store was copied, in {:?}",
        begin.elapsed()
    ));
    let meanwhile = async {
        if let Some(part) = also
            && random.random_bool(0.5)
        {
            let strike = strike(world, part, fork(random));
            // What takes longer is healed behind the restore.
            let _ = tokio::time::timeout(back, strike).await;
            world.heal().await?;
        }
        anyhow::Ok(())
    };
    let (meanwhile, ()) = tokio::join!(meanwhile, tokio::time::sleep(back));
    meanwhile?;
    if begin.elapsed() + KILL_MAX > world.hold_back {
        world.history.note("the copy has become too old");
        return Ok(());
    }
    world.history.fault(
        "store rollback",
        format!("nodes {nodes:?} by {:?}, beside {also:?}", begin.elapsed()),
    );
    let mut beside = fork(random);
    let away = span(random, 0..1_500);
    let beside = async {
        match also {
            Some(Part::Relay) => strike(world, Part::Relay, fork(&mut beside)).await,
            _ => Ok(()),
        }
    };
    let (rolled, beside) = tokio::join!(world.broker.roll_back(&nodes, away), beside);
    let age = begin.elapsed();
    rolled.context("cannot set the broker's store back")?;
    world
        .history
        .note(format!("the broker is back, its store {age:?} old"));
    beside
}

/// The stream's last messages are removed, while the relay runs; often it is killed behind that.
async fn remove_tail(world: &World, random: &mut StdRng) -> anyhow::Result<()> {
    let quiet = world.writer.gate.write().await;
    world.wait_until_caught_up().await?;
    tokio::time::sleep(RECORD_PAUSE).await;
    let client = world.broker.connect().await?;
    let mut stream = async_nats::jetstream::new(client)
        .get_stream(STREAM)
        .await?;
    let last = stream.info().await?.state.last_sequence;
    let mut removed = 0;
    for sequence in (last.saturating_sub(random.random_range(0..4))..=last).rev() {
        let Ok(message) = stream.get_raw_message(sequence).await else {
            break;
        };
        match id_of(&message.payload) {
            Some(id) => {
                world.removed.lock().expect("no holder panics").insert(id);
            }
            None if message.subject.starts_with("walrelay.fence.") => {}
            // A foreign message's: how far the lane came could not be known without it.
            None => break,
        }
        let deleted = stream.delete_message(sequence).await;
        anyhow::ensure!(
            deleted.is_ok(),
            "cannot remove message {sequence}: {deleted:?}"
        );
        removed += 1;
    }
    world
        .history
        .fault("tail removed", format!("{removed} messages up to {last}"));
    let place = running(world);
    if world.lane == Lane::Shared {
        // Between others' messages a removed end leaves no gap: only a relay that has stopped in good order, or goes on,
        // knows that it was the end, and one that was killed halts.
        world
            .history
            .note(format!("and the relay started anew, place {place}"));
        world.relays.stop(place).await?;
        world.relays.start(place)?;
    } else if random.random_bool(0.7) {
        world
            .history
            .note(format!("and the relay killed, place {place}"));
        world.relays.kill(place).await;
        sleep(random, 0..500).await;
        world.relays.start(place)?;
    }
    drop(quiet);
    Ok(())
}
