//! `walrelay bench`: how fast a user's own servers are with walrelay between them.
//!
//! In: a rate or a backlog. Out: throughput, latency percentiles, the relay's CPU. Guarantees: it writes only into a table
//! that it made itself and removes afterwards together with slot, publication and stream, unless `--existing` tells it to
//! write into the configured one; it never takes a table of that name that somebody else made.
//!
//! All times are of this process' one clock: a transaction's latency begins when its INSERT is due and ends when a
//! consumer in this process has its last event from the stream. So it contains the commit and the delivery, and no clocks' skew.

mod load;
mod own;
mod report;
mod watch;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::exit::{Exit, UsageError};
use super::values;
use crate::relay::settings::Settings;
use load::Load;
use own::{Own, RelayThread};
use report::Report;
use watch::Watch;

const EXAMPLES: &str = "\
Examples:
  walrelay bench                                       1,000 transactions a second for 10 seconds
  walrelay bench --rate 5000 --rows 10 --duration 60s  5,000 transactions of 10 events a second
  walrelay bench --backlog 500000 --rows 10            500,000 events first, then drained
  walrelay bench --payload 10KiB --json                larger events; the result as JSON
  walrelay bench --existing --relay-pid 4711           through the relay that runs already

It makes table public.walrelay_bench, slot and publication walrelay_bench and stream
WALRELAY_BENCH, runs a relay of its own between them, and removes them all. With --existing the
rows stay in your table and the events in your stream.

Exit code 0: measured. 1: it failed, for example because not all events arrived. 2: wrong usage or
configuration.";

/// Longest wait for the events to arrive after the last one was committed, without any arriving.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Measure throughput and latency on your own servers.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Transactions a second, all sessions together.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = values::count::<u32>(1..=1_000_000))]
    rate: u32,

    /// How long to write at that rate.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    duration: Duration,

    /// Commit so many events first, and then measure how fast they are drained, instead of a rate.
    #[arg(long, value_name = "EVENTS", value_parser = values::count::<u64>(1..=u64::MAX), conflicts_with_all = ["rate", "duration", "existing"])]
    backlog: Option<u64>,

    /// Events in each transaction.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::count::<u32>(1..=100_000))]
    rows: u32,

    /// Size of an event's payload, such as 300B or 10KiB; most of it random text.
    #[arg(long, value_name = "SIZE", default_value = "150B", value_parser = parse_size)]
    payload: usize,

    /// Sessions that commit at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = values::count::<u32>(1..=500))]
    sessions: u32,

    /// Write into the configured table, through the relay that runs already. The rows and the events stay.
    #[arg(long)]
    existing: bool,

    /// The running relay's process id, to tell its CPU time (on this machine, with --existing).
    #[arg(long, value_name = "PID", requires = "existing", value_parser = values::count::<u32>(1..=u64::from(u32::MAX)))]
    relay_pid: Option<u32>,

    /// The result as JSON.
    #[arg(long)]
    json: bool,
}

fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" | "k" | "K" => 1_024,
        "MB" => 1_000_000,
        "MiB" => 1_048_576,
        other => {
            return Err(format!(
                "{other:?} is not a unit: use B, KB, KiB, MB or MiB"
            ));
        }
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|bytes| (1..=64 << 20).contains(bytes))
        .ok_or_else(|| format!("{text:?} is not a size from 1B to 64MiB"))
}

/// Runs the command.
///
/// # Errors
/// The servers cannot be reached or refuse, a table of that name is somebody else's, or events do not arrive.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    if args.existing {
        let relay = args.relay_pid.map(own::process_cpu);
        if args.relay_pid.is_some() && relay.flatten().is_none() {
            return Err(UsageError(
                "--relay-pid: no such process, or no /proc on this system".into(),
            )
            .into());
        }
        let report = at_rate(&args, settings, || {
            args.relay_pid.and_then(own::process_cpu)
        })
        .await?;
        return report.print(args.json);
    }
    let own = Own::make(settings).await?;
    let measured = on_own(&args, &own).await;
    // Also after a failure; what made it fail is said first.
    let removed = own.remove().await;
    let report = measured?;
    removed.context("measured, but not everything could be removed")?;
    report.print(args.json)
}

async fn on_own(args: &Args, own: &Own) -> Result<Report, anyhow::Error> {
    match args.backlog {
        None => {
            let relay = RelayThread::start(&own.settings)?;
            let measured = at_rate(args, &own.settings, || relay.cpu()).await;
            relay.stop().await?;
            measured
        }
        Some(events) => backlog(args, own, events).await,
    }
}

/// Commits at a fixed rate, whatever the answers take, and waits for all of it to arrive.
async fn at_rate(
    args: &Args,
    settings: &Settings,
    cpu: impl Fn() -> Option<Duration>,
) -> Result<Report, anyhow::Error> {
    let mut watch = Watch::start(&settings.nats).await?;
    let load = Load::new(settings, args.rows, args.payload);
    // Through the relay once, so that its start is not measured.
    let first = load.warm_up().await?;
    watch
        .arrives(&first, SILENCE_MAX)
        .await
        .context("the first event did not arrive: is the relay running?")?;
    let cpu_before = cpu();
    let begin = Instant::now();
    let transactions = load
        .at_rate(args.rate, args.sessions, args.duration, watch.sent())
        .await?;
    let committing = begin.elapsed();
    watch.catches_up(transactions, SILENCE_MAX).await?;
    let took = begin.elapsed();
    let cpu = cpu()
        .zip(cpu_before)
        .map(|(after, before)| after.saturating_sub(before));
    Ok(Report::at_rate(
        args.rate,
        args.rows,
        transactions * u64::from(args.rows),
        committing,
        took,
        watch.latencies()?,
        cpu,
    ))
}

/// Commits everything while no relay runs, then lets one run.
async fn backlog(args: &Args, own: &Own, events: u64) -> Result<Report, anyhow::Error> {
    let load = Load::new(&own.settings, args.rows, args.payload);
    load.all(events, args.sessions).await?;
    let begin = Instant::now();
    let relay = RelayThread::start(&own.settings)?;
    let stored = own.fills(events, SILENCE_MAX).await;
    let took = begin.elapsed();
    let cpu = relay.cpu();
    relay.stop().await?;
    stored?;
    Ok(Report::backlog(args.rows, events, took, cpu))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!(parse_size("150B"), Ok(150));
        assert_eq!(parse_size("10KiB"), Ok(10_240));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        for bad in ["", "0", "B", "1GB", "65MiB", "-1", "1.5KB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
