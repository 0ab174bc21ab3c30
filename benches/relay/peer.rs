//! mq-bridge (PyPI), where it is installed: the same backlog by another relay, with its own defaults.
//!
//! In: a backlog. Out: how long it took, its CPU time, its memory. It is run by `python3`, or by what `MQ_BRIDGE_PYTHON`
//! names, as its quick start does. It publishes without order, and without a check for doubles.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Context as _;
use async_nats::jetstream::stream::Config;

use crate::child::{Child, cpu_us, peak_mib};
use crate::drain::{Drained, filled};
use crate::lane::Lane;

/// A thousand rows a batch, four at a time, suited it best when tried.
const SCRIPT: &str = r#"
import sys
from mq_bridge import Route
url, nats, publication, slot, subject, stream = sys.argv[1:]
Route.from_config({"routes": {"bench": {
    "input": {"postgres_cdc": {"url": url, "publication": publication, "slot_name": slot,
                               "create_slot": False, "create_publication": False}},
    "output": {"nats": {"url": nats, "subject": subject, "stream": stream}},
    "batch_size": 1000, "concurrency": 4}}}, "bench").run()
"#;

fn python() -> OsString {
    std::env::var_os("MQ_BRIDGE_PYTHON").unwrap_or_else(|| "python3".into())
}

/// Its version; `None` where it is not installed.
pub fn version() -> Option<String> {
    let code = "import importlib.metadata as m; print(m.version('mq-bridge'))";
    let output = Command::new(python()).args(["-c", code]).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Drains the backlog, from the start of the process to the last message in a stream of its own.
pub async fn drain(lane: &mut Lane<'_>, events: u64) -> anyhow::Result<Drained> {
    const STREAM: &str = "PEER";
    let slot = lane.slot().await?;
    let jetstream = &lane.servers.jetstream;
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec!["peer.>".to_owned()],
        ..Config::default()
    };
    jetstream.create_stream(config).await?;
    let mut command = Command::new(python());
    command.args(["-c", SCRIPT]).args([
        &lane.servers.postgres.url(&lane.name),
        &lane.servers.nats.url(),
        &lane.name,
        &slot,
        "peer.events",
        STREAM,
    ]);
    let child = Child::spawn(command)?;
    filled(lane.servers, STREAM, events)
        .await
        .context("mq-bridge")?;
    let drained = Drained {
        seconds: child.spawned.elapsed().as_secs_f64(),
        cpu_us: cpu_us(child.pid()),
        peak_mib: peak_mib(child.pid()),
        nats_cpu_us: None,
        walsender_cpu_us: None,
    };
    // It is not asked to stop in good order: what that takes is not measured.
    drop(child);
    jetstream.delete_stream(STREAM).await?;
    lane.free(&slot).await?;
    lane.drop_slot(&slot).await?;
    Ok(drained)
}
