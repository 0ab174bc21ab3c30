//! The whole relay beside its limits, on servers of its own; docs/performance.md says what is measured and how.
//!
//! `after_publish` takes EVENTS / 500 seconds, and `otlp` wants the feature and a build without it (`make bench-otlp`): they run
//! only where they are named.
//!
//! In: the number of events of a backlog, and which parts to run. Out: a table and a plot in `benches/results/`.
//! `cargo bench --bench relay -- [EVENTS] [--rounds N] [--only drain,publish,shared,bulk,verify,polling,latency,memory,sizes,start,tls,after_publish,otlp] [--out FOLDER]`

mod after_publish;
mod bulk;
mod child;
mod drain;
mod lane;
mod latency;
mod machine;
mod otlp;
mod peer;
mod plot;
mod polling;
mod publish;
mod report;
mod servers;
mod shared;
mod tls;

use std::path::PathBuf;

use anyhow::Context as _;
use report::Report;
use servers::Servers;

/// What a person may choose.
struct Choice {
    events: u64,
    rounds: usize,
    parts: Option<Vec<String>>,
    folder: PathBuf,
}

impl Choice {
    fn of_arguments() -> anyhow::Result<Choice> {
        let mut choice = Choice {
            events: 1_000_000,
            rounds: 3,
            parts: None,
            folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results"),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                // cargo's own.
                "--bench" => {}
                "--rounds" => choice.rounds = value()?.parse::<usize>().context("--rounds")?.max(1),
                "--only" => choice.parts = Some(value()?.split(',').map(str::to_owned).collect()),
                "--out" => choice.folder = value()?.into(),
                number => {
                    choice.events = number
                        .parse()
                        .with_context(|| format!("{number:?} is not a number of events"))?;
                }
            }
        }
        Ok(choice)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts
            .as_ref()
            .is_none_or(|parts| parts.iter().any(|wanted| wanted == part))
    }
}

fn main() -> anyhow::Result<()> {
    let choice = Choice::of_arguments()?;
    // As the relay itself: one thread, so that the bench takes no more than one core from what it measures.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(&choice))
}

async fn run(choice: &Choice) -> anyhow::Result<()> {
    let servers = Servers::start().await?;
    let mut report = Report::new(machine::describe(&servers, choice.events, choice.rounds).await?);
    let (events, rounds) = (choice.events, choice.rounds);
    if choice.wants("drain") || choice.wants("start") {
        for rows in [10, 1, 1_000] {
            drain::backlog(&servers, events, rows, rounds, &mut report).await?;
        }
    }
    if choice.wants("publish") {
        publish::lanes(&servers, events.min(500_000), rounds, &mut report).await?;
    }
    if choice.wants("shared") {
        shared::backlog(&servers, events.min(500_000), rounds, &mut report).await?;
    }
    if choice.wants("bulk") {
        bulk::ranges(&servers, events.min(500_000), rounds, &mut report).await?;
        bulk::beside_relay(&servers, events.min(500_000), &mut report).await?;
    }
    if choice.wants("verify") {
        bulk::verify(&servers, events, &mut report).await?;
    }
    if choice.parts.is_some() && choice.wants("after_publish") {
        after_publish::settings(&servers, events, &mut report).await?;
    }
    if choice.parts.is_some() && choice.wants("otlp") {
        otlp::export(&servers, events, rounds, &mut report).await?;
    }
    if choice.wants("polling") {
        polling::dispatcher(&servers, (events / 50).max(1_000), &mut report).await?;
    }
    if choice.wants("latency") {
        latency::steady(&servers, 2_000, 8, &mut report).await?;
        latency::lone(&servers, 60, &mut report).await?;
    }
    if choice.wants("memory") {
        drain::one_transaction(&servers, events, &mut report).await?;
        drain::large_events(&servers, 300, &mut report).await?;
    }
    if choice.wants("sizes") {
        drain::sizes(&servers, events, rounds.min(2), &mut report).await?;
    }
    if choice.wants("tls") {
        let with_tls = Servers::start_with_tls().await?;
        tls::backlog(&with_tls, events, rounds, &mut report).await?;
    }
    report.machine.close();
    let written = report.write(&choice.folder)?;
    println!("\n{}", report.markdown(""));
    println!("written: {}", written.display());
    Ok(())
}
