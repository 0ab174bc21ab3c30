//! What was measured, for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::stdout;

/// One measurement.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    mode: &'static str,
    events: u64,
    rows_a_transaction: u32,
    /// From the first commit to the last arrival, or from the relay's start to the last message stored.
    seconds: f64,
    events_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    transactions_per_second_wanted: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transactions_per_second_reached: Option<f64>,
    /// From the moment at which the INSERT was due to the consumer's receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<Latency>,
    /// Absent where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    relay_cpu_us_an_event: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    fn of(micros: &Histogram<u64>) -> Latency {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1_000.0;
        Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros.max() as f64 / 1_000.0,
        }
    }
}

fn per_event(cpu: Option<Duration>, events: u64) -> Option<f64> {
    Some(cpu?.as_secs_f64() * 1e6 / events.max(1) as f64)
}

impl Report {
    pub(super) fn at_rate(
        rate: u32,
        rows: u32,
        events: u64,
        committing: Duration,
        took: Duration,
        latencies: Histogram<u64>,
        cpu: Option<Duration>,
    ) -> Report {
        let transactions = events as f64 / f64::from(rows);
        Report {
            mode: "rate",
            events,
            rows_a_transaction: rows,
            seconds: took.as_secs_f64(),
            events_per_second: events as f64 / took.as_secs_f64(),
            transactions_per_second_wanted: Some(rate),
            transactions_per_second_reached: Some(transactions / committing.as_secs_f64()),
            latency_ms: Some(Latency::of(&latencies)),
            relay_cpu_us_an_event: per_event(cpu, events),
        }
    }

    pub(super) fn backlog(rows: u32, events: u64, took: Duration, cpu: Option<Duration>) -> Report {
        Report {
            mode: "backlog",
            events,
            rows_a_transaction: rows,
            seconds: took.as_secs_f64(),
            events_per_second: events as f64 / took.as_secs_f64(),
            transactions_per_second_wanted: None,
            transactions_per_second_reached: None,
            latency_ms: None,
            relay_cpu_us_an_event: per_event(cpu, events),
        }
    }

    /// Prints it.
    pub(super) fn print(&self, json: bool) -> Result<Exit, anyhow::Error> {
        let text = if json {
            serde_json::to_string(self)? + "\n"
        } else {
            self.text()
        };
        stdout::write(&text)?;
        Ok(Exit::Done)
    }

    fn text(&self) -> String {
        let mut text = format!(
            "events       {} in {:.2} s, {} a transaction\nthroughput   {:.0} events/s\n",
            self.events, self.seconds, self.rows_a_transaction, self.events_per_second
        );
        if let (Some(wanted), Some(reached)) = (
            self.transactions_per_second_wanted,
            self.transactions_per_second_reached,
        ) {
            let _ = writeln!(
                text,
                "load         {reached:.0} transactions/s of {wanted} wanted"
            );
        }
        if let Some(latency) = &self.latency_ms {
            let _ = writeln!(
                text,
                "latency      p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2} (INSERT due → consumer)",
                latency.p50, latency.p90, latency.p99, latency.p999, latency.max
            );
        }
        if let Some(cpu) = self.relay_cpu_us_an_event {
            let _ = writeln!(text, "relay CPU    {cpu:.2} µs an event");
        }
        text
    }
}
