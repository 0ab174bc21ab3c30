//! What shares cost and bring, measured: one backlog, drained by 1, 2, 4 and 8 of them. By hand, since it takes minutes and says
//! something only in a release build.

use std::time::Instant;

use async_nats::jetstream;

use super::divide;
use crate::support::wait::eventually_within;
use crate::support::{Fixture, Servers, options};

const EVENTS: u64 = 200_000;
const PER_TRANSACTION: u64 = 10;

/// Events a second, and microseconds of CPU an event.
struct Cost {
    rate: f64,
    relay: f64,
    walsenders: f64,
    nats: f64,
}

/// Of a process so far, in microseconds.
fn cpu_us(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs, on Linux");
    let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
    // A tick is 10 ms.
    ticks as f64 * 10_000.0
}

/// In a database of its own.
async fn drained(shares: u32) -> Cost {
    let mut fixture =
        Fixture::bare_on(Servers::with(options(&[("max_wal_size", "8GB")])).await).await;
    if shares > 1 {
        divide(&mut fixture, true);
        fixture.set("WALRELAY_RELAY_SHARES", shares.to_string());
    }
    fixture.setup().await;
    let backlog = format!(
        "DO $$ BEGIN FOR i IN 1..{} LOOP
           INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)
           SELECT gen_random_uuid(), gen_random_uuid(), 'lesson.published.v1', jsonb_build_object('title', repeat('x', 150))
           FROM generate_series(1, {PER_TRANSACTION});
           COMMIT;
         END LOOP; END $$",
        EVENTS / PER_TRANSACTION
    );
    fixture.sql.batch_execute(&backlog).await.unwrap();
    fixture.sql.batch_execute("CHECKPOINT").await.unwrap();
    let streams: Vec<String> = match shares {
        1 => vec![fixture.stream_name().to_owned()],
        _ => (0..shares)
            .map(|share| fixture.stream_name().replace("{share}", &share.to_string()))
            .collect(),
    };
    let context = jetstream::new(fixture.nats.clone());
    let nats_pid = fixture.servers().nats.pid().expect("it runs");
    let before = cpu_us(nats_pid);
    let begin = Instant::now();
    let relay = fixture.run();
    eventually_within(
        std::time::Duration::from_secs(300),
        "it is drained",
        async || {
            let mut count = 0;
            for name in &streams {
                let mut stream = context.get_stream(name).await.ok()?;
                count += stream.info().await.ok()?.state.messages;
            }
            (count >= EVENTS).then_some(())
        },
    )
    .await;
    let seconds = begin.elapsed().as_secs_f64();
    let walsenders = "SELECT active_pid FROM pg_replication_slots WHERE active";
    let walsenders = fixture.sql.query(walsenders, &[]).await.unwrap();
    let pids = walsenders.iter().map(|row| row.get::<_, i32>(0));
    let events = EVENTS as f64;
    let cost = Cost {
        rate: events / seconds,
        relay: cpu_us(relay.pid()) / events,
        walsenders: pids.map(|pid| cpu_us(pid as u32)).sum::<f64>() / events,
        nats: (cpu_us(nats_pid) - before) / events,
    };
    relay.stop().await;
    cost
}

#[tokio::test]
#[ignore = "measures for minutes, in a release build: make shares"]
async fn one_two_four_and_eight_shares_drain_a_backlog() {
    for round in 1..=3 {
        for shares in [1, 2, 4, 8] {
            let cost = drained(shares).await;
            eprintln!(
                "round {round}, {shares} shares: {:.0}/s; CPU of relay {:.2}, of all walsenders {:.2}, of nats-server {:.2}",
                cost.rate, cost.relay, cost.walsenders, cost.nats
            );
        }
    }
}
