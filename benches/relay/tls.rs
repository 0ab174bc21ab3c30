//! A backlog drained over TLS with Postgres and in plain text, in turns, beside `pg_recvlogical` over TLS.

use crate::drain::{self, by_pg_recvlogical, by_walrelay};
use crate::lane::{Lane, PAYLOAD};
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Rows a transaction.
const ROWS: u64 = 10;

pub async fn backlog(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("backlog of {events} events over TLS: filling");
    let mut lane = Lane::new(servers, "tls").await?;
    lane.fill(events, ROWS, PAYLOAD).await?;
    let (mut plain, mut encrypted, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for (sslmode, drained) in [("disable", &mut plain), ("require", &mut encrypted)] {
            let stream = format!("TLS_{sslmode}_{round}");
            lane.sslmode = sslmode;
            drained.push(by_walrelay(&mut lane, &stream, events).await?);
            servers.jetstream.delete_stream(&stream).await?;
        }
        theirs.push(by_pg_recvlogical(&mut lane).await?.0);
    }
    let seconds = |drained: &[drain::Drained]| -> Vec<f64> {
        drained.iter().map(|drained| drained.seconds).collect()
    };
    let (plain_seconds, seconds) = (seconds(&plain), seconds(&encrypted));
    let rate = |seconds: &[f64]| Cell::rate(events as f64 / median(seconds));
    let header = [
        "plain, events/s",
        "spread",
        "TLS, events/s",
        "spread",
        "TLS to plain",
        "pg_recvlogical over TLS, events/s",
        "ratio",
        "relay CPU plain, µs an event",
        "relay CPU TLS",
        "walsender CPU plain",
        "walsender CPU TLS",
    ];
    report.table("Over TLS with Postgres", &header).push(vec![
        rate(&plain_seconds),
        Cell::text(spread(&plain_seconds)),
        rate(&seconds),
        Cell::text(spread(&seconds)),
        Cell::number(median(&drain::ratios(&plain_seconds, &seconds)), 2),
        rate(&theirs),
        Cell::number(median(&drain::ratios(&theirs, &seconds)), 2),
        drain::per_event(&plain, events, |drained| drained.cpu_us),
        drain::per_event(&encrypted, events, |drained| drained.cpu_us),
        drain::per_event(&plain, events, |drained| drained.walsender_cpu_us),
        drain::per_event(&encrypted, events, |drained| drained.walsender_cpu_us),
    ]);
    lane.close().await
}
