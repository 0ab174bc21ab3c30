//! A backlog drained into a stream of the lane's own, and into one that others may write to, in turns.

use crate::drain::{by_walrelay, per_event, ratios};
use crate::lane::{Lane, PAYLOAD};
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Rows of a transaction.
const ROWS: u64 = 10;

/// What the batches of a shared stream cost beside fast ingest.
pub async fn backlog(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("backlog of {events} events for a shared stream: filling");
    let mut lane = Lane::new(servers, "shared").await?;
    lane.fill(events, ROWS, PAYLOAD).await?;
    let mut drained = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for (shared, drained) in [false, true].into_iter().zip(&mut drained) {
            lane.shared = shared;
            let stream = format!("SHARED_{shared}_{round}").to_uppercase();
            drained.push(by_walrelay(&mut lane, &stream, events).await?);
            servers.jetstream.delete_stream(&stream).await?;
        }
    }
    let rates = drained.each_ref().map(|drained| {
        let rates = drained.iter().map(|one| events as f64 / one.seconds);
        rates.collect::<Vec<_>>()
    });
    let names = ["of its own", "shared"];
    for ((name, rates_of), drained) in names.into_iter().zip(&rates).zip(&drained) {
        let table = report.table(
            "A shared stream",
            &[
                "stream",
                "events/s",
                "spread",
                "of its own",
                "relay CPU, µs an event",
                "walsender CPU",
                "nats-server CPU",
            ],
        );
        table.push(vec![
            Cell::text(name.to_owned()),
            Cell::rate(median(rates_of)),
            Cell::text(spread(rates_of)),
            Cell::number(median(&ratios(rates_of, &rates[0])), 2),
            per_event(drained, events, |one| one.cpu_us),
            per_event(drained, events, |one| one.walsender_cpu_us),
            per_event(drained, events, |one| one.nats_cpu_us),
        ]);
    }
    lane.close().await
}
