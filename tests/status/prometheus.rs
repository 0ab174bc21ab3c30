//! Metrics, alerts and dashboard under Prometheus' own tools: the parser of its Python client, and promtool.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::platform::{Platform, insert_of_type};
use crate::site::{free_address, get_with};
use crate::wait_for;

const RULES: &str = "deploy/prometheus/walrelay.rules.yml";
const DASHBOARD: &str = "deploy/grafana/walrelay.json";
const RUNBOOK: &str = "docs/runbook.md";

/// What `scripts/servers.sh --prometheus` fetches.
fn tools() -> PathBuf {
    let servers = std::env::var_os("WALRELAY_SERVERS").map_or(".servers".into(), PathBuf::from);
    let tools = servers.join("prometheus");
    assert!(
        tools.join("promtool").exists(),
        "scripts/servers.sh --prometheus fetches it"
    );
    tools.canonicalize().expect("a folder")
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("a file of the repository")
}

/// Runs a tool that must be content; returns its standard output.
async fn content(mut command: Command, input: &str) -> String {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.expect("the tool starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("written");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{errors}\n{input}");
    told
}

async fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new(tools().join("promtool"));
    command.args(arguments);
    content(command, input).await;
}

/// The families of an exposition, as the official parser of this format reads them.
async fn parsed(format: &str, exposition: &str) -> serde_json::Map<String, Value> {
    let mut command = Command::new("python3");
    command
        .args(["tests/status/read_metrics.py", format])
        .env("PYTHONPATH", tools())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let json = content(command, exposition).await;
    serde_json::from_str(&json).expect("an object")
}

/// Names of metrics in PromQL, or wherever else words are.
fn names(text: &str) -> BTreeSet<&str> {
    let is_of_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.split(|character| !is_of_name(character))
        .filter(|word| word.starts_with("walrelay_") || word.starts_with("process_"))
        .collect()
}

/// The names of all samples, of which a histogram has three.
fn sample_names(families: &serde_json::Map<String, Value>) -> BTreeSet<&str> {
    let samples = families
        .values()
        .flat_map(|family| family["samples"].as_array().expect("a list"));
    samples
        .map(|sample| sample[0].as_str().expect("a name"))
        .collect()
}

/// Of these samples, what stands for the family.
fn value(families: &serde_json::Map<String, Value>, family: &str, sample: &str) -> f64 {
    let samples = families[family]["samples"].as_array().expect("a list");
    let found = samples.iter().find(|found| found[0] == sample);
    let found = found.unwrap_or_else(|| panic!("{family} has no {sample}"));
    assert_eq!(found[1]["relay"], "walrelay", "{found}");
    found[2].as_f64().expect("a number")
}

/// A relay of which each metric is known: one with a limit for its slot, rows that are deleted, and a dead letter.
async fn expositions() -> [String; 2] {
    let mut platform = Platform::start().await;
    for sql in [
        "ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'",
        "SELECT pg_reload_conf()",
    ] {
        platform.sql.batch_execute(sql).await.expect("it is SQL");
    }
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    platform.set("WALRELAY_OUTBOX_AFTER_PUBLISH", "delete");
    platform.insert(20).await;
    insert_of_type(&platform.sql, "has a space").await;
    let relay = platform.relay();
    let prometheus = wait_for(address, "/metrics", |_, body| {
        body.contains("walrelay_commit_to_ack_seconds_count{relay=\"walrelay\"} 2\n")
            && body.contains("walrelay_slot_safe_bytes{")
            && body.contains("walrelay_after_publish_lag_messages{")
            && body.contains("walrelay_postgres_clock_offset_seconds{")
            && body.contains("walrelay_dead_letters_open{relay=\"walrelay\"} 1\n")
    })
    .await;
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let open_metrics = get_with(address, "/metrics", accept).await;
    relay.stop().await;
    [prometheus, open_metrics.expect("metrics").1]
}

#[tokio::test]
async fn prometheus_reads_the_metrics_and_alerts_and_dashboard_name_no_others() {
    let [text_format, open_metrics] = expositions().await;
    promtool(&["check", "metrics"], &text_format).await;
    let families = parsed("prometheus", &text_format).await;
    let open_families = parsed("openmetrics", &open_metrics).await;
    assert_eq!(
        families.keys().collect::<Vec<_>>(),
        open_families.keys().collect::<Vec<_>>()
    );
    for families in [&families, &open_families] {
        let published = "walrelay_events_published";
        let total = format!("{published}_total");
        assert_eq!(value(families, published, &total), 21.0);
        assert_eq!(families[published]["type"], "counter");
        let batches = "walrelay_batches";
        assert!(value(families, batches, &format!("{batches}_total")) >= 1.0);
        let bytes = "walrelay_published_bytes";
        let bytes = value(families, bytes, &format!("{bytes}_total"));
        assert!(bytes > 21.0 * 150.0, "{bytes} bytes");
        let window = "walrelay_window_messages";
        assert!(value(families, window, window) > 1.0);
        let latency = "walrelay_commit_to_ack_seconds";
        assert_eq!(families[latency]["type"], "histogram");
        assert_eq!(value(families, latency, &format!("{latency}_count")), 2.0);
    }
    // Counters whose labels nobody has met yet have no sample.
    let mut known = sample_names(&families);
    known.extend(names(&text_format));
    for file in [RULES, DASHBOARD] {
        let text = text(file);
        let used = names(&text);
        assert!(used.len() > 10, "{file} uses {used:?}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} uses {unknown:?}");
    }
    let runbook = text(RUNBOOK);
    let told = names(&runbook);
    for (family, of) in &families {
        let end = if of["type"] == "counter" {
            "_total"
        } else {
            ""
        };
        let name = format!("{family}{end}");
        assert!(told.contains(name.as_str()), "{RUNBOOK} lacks {name}");
    }
}

#[tokio::test]
async fn each_alert_fires_for_what_it_is_about_and_has_an_entry_in_the_runbook() {
    promtool(&["check", "config", "deploy/prometheus/prometheus.yml"], "").await;
    let tests = "deploy/prometheus/walrelay.rules.test.yml";
    promtool(&["test", "rules", tests], "").await;
    let (rules, tests, runbook) = (text(RULES), text(tests), text(RUNBOOK));
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        let link = format!("runbook: {RUNBOOK}#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert} has no link");
        assert!(
            runbook.contains(&format!("\n### {alert}\n")),
            "{alert} has no entry"
        );
        let fires = format!("alertname: {alert}\n");
        assert!(tests.contains(&fires), "no test lets {alert} fire");
    }
}
