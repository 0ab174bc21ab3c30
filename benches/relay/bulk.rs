//! Ranges that are published again, beside bare fast ingest, in turns: `backfill` of the table, `replay` of the stream.
//!
//! Whole processes are measured, from their start to their end: connecting, comparing table and stream, and reading back belong
//! to it.

use std::time::Instant;

use walrelay::pipeline::publish::Mode;

use crate::lane::{Lane, PAYLOAD};
use crate::publish;
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Bytes of an event of the backlog in its envelope.
const EVENT_BYTES: usize = 370;

/// A table of rows that no slot holds.
pub async fn ranges(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("{events} rows are backfilled and replayed");
    let mut lane = Lane::new(servers, "bulk").await?;
    lane.fill(events, 10, PAYLOAD).await?;
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        let (bare, stream) = (format!("BULK_BARE_{round}"), format!("BULK_{round}"));
        let seconds = publish::bare(&lane, Mode::FastIngest, &bare, events, EVENT_BYTES).await?;
        rates[0].push(events as f64 / seconds);
        let slot = format!("bulk_rows_{round}");
        lane.setup(&slot, &stream)?;
        let from = ["replay", "--yes", "--from", "2000-01-01T00:00:00Z"];
        for (command, of_command) in [&["backfill"][..], &from].into_iter().zip(&mut rates[1..]) {
            let begin = Instant::now();
            let output = lane.walrelay(command, &slot, &stream).output()?;
            anyhow::ensure!(
                output.status.success(),
                "walrelay {command:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            of_command.push(events as f64 / begin.elapsed().as_secs_f64());
        }
        for name in [stream.clone(), format!("{stream}_REPLAY")] {
            let mut found = servers.jetstream.get_stream(&name).await?;
            let stored = found.info().await?.state.messages;
            anyhow::ensure!(stored == events, "stream {name} has {stored} messages");
            servers.jetstream.delete_stream(&name).await?;
        }
        lane.drop_slot(&slot).await?;
    }
    tell(&rates, report);
    lane.close().await
}

fn tell(rates: &[Vec<f64>; 3], report: &mut Report) {
    let names = ["bare fast ingest", "backfill", "replay"];
    for (name, of_name) in names.into_iter().zip(rates) {
        let table = report.table(
            "Ranges published again",
            &["what", "events/s", "spread", "of bare fast ingest"],
        );
        table.push(vec![
            Cell::text(name.to_owned()),
            Cell::rate(median(of_name)),
            Cell::text(spread(of_name)),
            Cell::number(median(of_name) / median(&rates[0]), 2),
        ]);
    }
}
