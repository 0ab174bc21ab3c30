//! A backlog drained in plain text, over TLS with Postgres, and over TLS with both, in turns, beside `pg_recvlogical` over
//! TLS; and the start over TLS.

use crate::drain::{self, Drained, by_pg_recvlogical, by_walrelay};
use crate::lane::{Lane, PAYLOAD};
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Rows a transaction.
const ROWS: u64 = 10;

/// Name, `sslmode`, whether NATS is spoken to over TLS too.
const WAYS: [(&str, &str, bool); 3] = [
    ("plain", "disable", false),
    ("TLS with Postgres", "require", false),
    ("TLS with both", "require", true),
];

pub async fn backlog(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("backlog of {events} events over TLS: filling");
    let mut lane = Lane::new(servers, "tls").await?;
    lane.fill(events, ROWS, PAYLOAD).await?;
    let mut drained: [Vec<Drained>; 3] = Default::default();
    let mut theirs = Vec::new();
    for round in 0..rounds {
        for ((name, sslmode, nats), drained) in WAYS.iter().zip(&mut drained) {
            let stream = format!("TLS_{round}_{sslmode}_{nats}");
            lane.sslmode = sslmode;
            lane.nats_certificate = nats.then(|| servers.certificate());
            drained.push(by_walrelay(&mut lane, &stream, events).await?);
            servers.jetstream.delete_stream(&stream).await?;
            eprintln!(
                "  {name}: {:.2} s",
                drained.last().map_or(0.0, |last| last.seconds)
            );
        }
        theirs.push(by_pg_recvlogical(&mut lane).await?.0);
    }
    for ((name, ..), of_way) in WAYS.iter().zip(&drained) {
        row(report, name, events, of_way, &drained[0], &theirs);
    }
    let took = drain::starts(&mut lane, "TLS", events).await?;
    drain::report_starts(report, "TLS with both", events, &took);
    lane.close().await
}

fn row(
    report: &mut Report,
    name: &str,
    events: u64,
    drained: &[Drained],
    plain: &[Drained],
    theirs: &[f64],
) {
    let seconds = |drained: &[Drained]| -> Vec<f64> {
        drained.iter().map(|drained| drained.seconds).collect()
    };
    let cpu = |drained: &[Drained]| -> Option<Vec<f64>> {
        drained.iter().map(|drained| drained.cpu_us).collect()
    };
    let cpu_to_plain = cpu(drained)
        .zip(cpu(plain))
        .map(|(ours, plain)| median(&drain::ratios(&ours, &plain)));
    let ours = seconds(drained);
    let header = [
        "connections",
        "events/s",
        "spread",
        "to plain",
        "to pg_recvlogical over TLS",
        "relay CPU, µs an event",
        "to plain",
        "walsender CPU",
        "nats-server CPU",
    ];
    report.table("Over TLS", &header).push(vec![
        Cell::text(name.to_owned()),
        Cell::rate(events as f64 / median(&ours)),
        Cell::text(spread(&ours)),
        Cell::number(median(&drain::ratios(&seconds(plain), &ours)), 2),
        Cell::number(median(&drain::ratios(theirs, &ours)), 2),
        drain::per_event(drained, events, |drained| drained.cpu_us),
        Cell::maybe(cpu_to_plain, 2),
        drain::per_event(drained, events, |drained| drained.walsender_cpu_us),
        drain::per_event(drained, events, |drained| drained.nats_cpu_us),
    ]);
}
