//! What it was measured on. No names of hosts or paths: results are committed.

use std::process::Command;

use crate::peer;
use crate::servers::{SETTINGS, Servers};

/// Machine, versions and settings, line by line.
pub struct Machine {
    pub date: String,
    cpu: String,
    cores: usize,
    pub lines: Vec<(&'static str, String)>,
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let linux = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim().to_owned());
    linux
        .or_else(|| {
            let output = Command::new("sysctl")
                .args(["-n", "machdep.cpu.brand_string"])
                .output()
                .ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })
        .filter(|model| !model.is_empty())
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The load of the last minute and of the last 15, as the system tells it.
fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .map(|text| {
            text.split_whitespace()
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .unwrap_or_else(|_| "unknown".to_owned())
}

/// At the beginning of a run.
pub async fn describe(servers: &Servers, events: u64, rounds: usize) -> anyhow::Result<Machine> {
    let sql = servers.postgres.connect("postgres").await?;
    let postgres = Servers::text(&sql, "SHOW server_version").await?;
    let nats = servers.jetstream.client().server_info().version;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = cpu_model();
    let settings: Vec<String> = SETTINGS
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    Ok(Machine {
        date: chrono::Utc::now().format("%Y-%m-%d").to_string(),
        lines: vec![
            (
                "machine",
                format!("{cores} cores, {cpu}, {}", std::env::consts::OS),
            ),
            ("load average (1, 5, 15 minutes) before the run", load()),
            (
                "servers",
                format!(
                    "Postgres {postgres}, nats-server {nats}, both on this machine; defaults (fsync on) but {}",
                    settings.join(", ")
                ),
            ),
            (
                "walrelay",
                "release build, default settings; exactly once as always".to_owned(),
            ),
            (
                "backlog",
                format!("{events} events of about 370 bytes, {rounds} rounds"),
            ),
            (
                "mq-bridge",
                peer::version().unwrap_or_else(|| "not installed, so not compared".to_owned()),
            ),
        ],
        cpu,
        cores,
    })
}

impl Machine {
    /// At the end of a run.
    pub fn close(&mut self) {
        self.lines.insert(2, ("load average after the run", load()));
    }

    /// `2026-11-23-amd-epyc-2-cores`
    pub fn file_name(&self) -> String {
        let cpu: String = self
            .cpu
            .to_lowercase()
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let words: Vec<&str> = cpu
            .split('-')
            .filter(|word| !word.is_empty())
            .take(3)
            .collect();
        format!("{}-{}-{}-cores", self.date, words.join("-"), self.cores)
    }
}
