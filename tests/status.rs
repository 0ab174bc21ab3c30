//! Metrics, health, the status page and `walrelay status` against a running relay.

#[path = "status/first_page.rs"]
mod first_page;
#[path = "status/hostile.rs"]
mod hostile;
mod platform;
#[path = "status/prometheus.rs"]
mod prometheus;
mod site;
#[path = "status/systemd.rs"]
#[cfg(target_os = "linux")]
mod systemd;
#[path = "status/watching.rs"]
mod watching;

use platform::Platform;
use postgres_types::PgLsn;
use rustix::process::Signal;
use site::{free_address, get, get_with};
use std::net::SocketAddr;
use std::time::Duration;
use walrelay::local::Mode;

const LIMIT: Duration = Duration::from_secs(180);

async fn wait_for(address: SocketAddr, path: &str, wanted: impl Fn(&str, &str) -> bool) -> String {
    let reached = async {
        loop {
            if let Some((status, body)) = get(address, path).await
                && wanted(&status, &body)
            {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, reached)
        .await
        .unwrap_or_else(|_| panic!("{path} gets there in time"))
}

#[tokio::test]
async fn a_running_relay_tells_what_it_does() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    platform.expect(&["status"], 1).await;
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    platform.insert(20).await;
    let metrics = wait_for(address, "/metrics", |_, body| {
        body.contains("walrelay_events_acknowledged_total{relay=\"walrelay\"} 20\n")
    })
    .await;
    for line in [
        "walrelay_events_published_total{relay=\"walrelay\"} 20",
        "walrelay_transactions_total{relay=\"walrelay\"} 1",
        "walrelay_streaming{relay=\"walrelay\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let no_lag = |_: &str, body: &str| body.contains("walrelay_lag_bytes{relay=\"walrelay\"} 0\n");
    wait_for(address, "/metrics", no_lag).await;
    let confirmed = |_: &str, body: &str| {
        let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let marks = &status["marks"];
        marks["confirmed_lsn"] == marks["acknowledged_lsn"] && marks["in_flight"] == 0
    };
    wait_for(address, "/status.json", confirmed).await;
    assert_eq!(get(address, "/livez").await.expect("alive").0, "200");
    let (code, page) = get(address, "/").await.expect("a page");
    assert!(code == "200" && page.contains("streaming"), "{page}");

    let text = platform.expect(&["status"], 0).await;
    assert!(
        text.contains("fast-ingest") && text.contains("streaming"),
        "{text}"
    );
    let json = platform.output(&["status", "--json"]).await.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one JSON object");
    assert_eq!(json["relay"]["totals"]["acknowledged"], 20);

    // The relay of another database has slot and stream of the same names.
    platform
        .sql
        .batch_execute("CREATE DATABASE other")
        .await
        .expect("made");
    let other = platform.postgres.url("other");
    let text = platform
        .expect(&["status", "--database-url", &other], 1)
        .await;
    assert!(
        text.contains("has slot walrelay of database postgres"),
        "{text}"
    );
    assert!(!text.contains("streaming"), "{text}");
    // Its slot is none of this lane, whoever reads it.
    is_of_another_database(&platform, &other, "status").await;
    is_of_another_database(&platform, &other, "position").await;

    // A second relay at the same address says which key is at fault.
    let text = platform.expect(&["run"], 1).await;
    assert!(text.contains("http.listen"), "{text}");
    relay.stop().await;
}

async fn is_of_another_database(platform: &Platform, url: &str, command: &str) {
    let flags = [command, "--database-url", url];
    let text = platform.expect(&flags, 1).await;
    assert!(
        text.contains("belongs to the database postgres, not other")
            && text.contains("set name, or postgres.slot"),
        "{text}"
    );
    assert!(!text.contains("reads the slot"), "{text}");
    let flags = [command, "--json", "--database-url", url];
    let output = platform.output(&flags).await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let positions = match command {
        "status" => &json["positions"],
        _ => &json,
    };
    assert_eq!(positions["lane"]["state"], "slot_foreign", "{json}");
    assert_eq!(positions["confirmed_lsn"], serde_json::Value::Null);
}

/// The slot is read, and whether what is read is published, NATS alone would tell.
#[tokio::test]
async fn without_nats_no_status_is_told_as_seen() {
    let mut platform = Platform::start().await;
    let relay = platform.relay();
    platform.insert(1).await;
    platform.wait_for(1).await;
    platform.set("NATS_URL", &format!("nats://{}", free_address()));
    let text = platform.expect(&["status"], 3).await;
    assert!(text.contains("reads the slot"), "{text}");
    relay.stop().await;
    platform.expect(&["status"], 3).await;
}

/// A relay would not start.
#[tokio::test]
async fn a_publication_without_the_table_is_told_by_status() {
    let platform = Platform::start().await;
    let drop = "ALTER PUBLICATION walrelay DROP TABLE outbox_events";
    platform.sql.batch_execute(drop).await.expect("dropped");
    let text = platform.expect(&["status"], 1).await;
    let (_, remedy) = text.split_once("does not hold table").expect(&text);
    let (_, sql) = remedy.split_once("run ").expect("a remedy");
    let sql = sql.lines().next().expect("a line");
    platform.sql.batch_execute(sql).await.expect("it is SQL");
    let text = platform.expect(&["status"], 1).await;
    assert!(!text.contains("does not hold"), "{text}");
    let relay = platform.relay();
    platform.insert(1).await;
    platform.wait_for(1).await;
    relay.stop().await;
}

/// The value of a sample without labels of its own.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    let start = format!("{name}{{relay=\"walrelay\"}} ");
    let value = (metrics.lines()).find_map(|line| line.strip_prefix(&start))?;
    value.parse().ok()
}

#[tokio::test]
async fn latency_counts_from_the_commit_and_believes_no_origin() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    // A backlog that is older than the process.
    platform.insert(20).await;
    let older = "SELECT pg_sleep(3)";
    platform.sql.batch_execute(older).await.expect("it waits");
    let relay = platform.relay();
    let count = "walrelay_commit_to_ack_seconds_count";
    let unknown = "walrelay_commit_times_unknown_total";
    let counted = |_: &str, body: &str| sample(body, count) == Some(1.0);
    let metrics = wait_for(address, "/metrics", counted).await;
    let sum = sample(&metrics, "walrelay_commit_to_ack_seconds_sum");
    assert!(sum >= Some(3.0), "{metrics}");
    assert_eq!(sample(&metrics, unknown), Some(0.0));
    // Server and relay are on this machine.
    let offset = sample(&metrics, "walrelay_postgres_clock_offset_seconds");
    assert!(offset.is_some_and(|offset| offset.abs() < 1.0), "{metrics}");

    let origin =
        "SELECT pg_replication_origin_create('o'); SELECT pg_replication_origin_session_setup('o')";
    platform.sql.batch_execute(origin).await.expect("an origin");
    platform.insert(1).await;
    let not_believed = |_: &str, body: &str| sample(body, unknown) == Some(1.0);
    let metrics = wait_for(address, "/metrics", not_believed).await;
    assert_eq!(sample(&metrics, count), Some(1.0), "{metrics}");

    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let open = get_with(address, "/metrics", accept)
        .await
        .expect("metrics");
    assert!(open.1.ends_with("\n# EOF\n"), "{}", open.1);
    assert!(open.1.contains("# TYPE walrelay_transactions counter\n"));
    relay.stop().await;
}

#[tokio::test]
async fn a_waiting_relay_is_alive_and_not_ready() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    platform.nats.kill();
    let reason = wait_for(address, "/readyz", |status, _| status == "503").await;
    assert!(reason.starts_with("waiting: NATS"), "{reason}");
    assert_eq!(get(address, "/healthz").await.expect("alive").0, "200");
    let metrics = get(address, "/metrics").await.expect("metrics").1;
    assert!(metrics.contains("walrelay_streaming{relay=\"walrelay\"} 0"));
    assert!(!metrics.contains("class=\"transient\"} 0"), "{metrics}");
    // What the server writes meanwhile is lag, although no relay receives it.
    platform.insert(5_000).await;
    let lag = |_: &str, body: &str| {
        let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let lsn = |value: &serde_json::Value| {
            let text = value.as_str().expect("an LSN");
            text.parse::<PgLsn>().map(u64::from).expect("an LSN")
        };
        lsn(&status["server_lsn"]) > lsn(&status["marks"]["acknowledged_lsn"]) + 500_000
            && status["lag_seconds"].as_u64() > Some(0)
            && status["slot_wal"]["wal_status"] == "reserved"
    };
    wait_for(address, "/status.json", lag).await;
    let metrics = get(address, "/metrics").await.expect("metrics").1;
    assert!(
        !metrics.contains("walrelay_lag_bytes{relay=\"walrelay\"} 0"),
        "{metrics}"
    );
    let text = platform.expect(&["status"], 1).await;
    assert!(text.contains(" behind, for "), "{text}");
    relay.stop().await;
}

#[tokio::test]
async fn open_dead_letters_are_counted_from_the_stream() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let open_is = async |count: u64| {
        let line = format!("walrelay_dead_letters_open{{relay=\"walrelay\"}} {count}\n");
        wait_for(address, "/metrics", |_, body| body.contains(&line)).await
    };
    let relay = platform.relay();
    open_is(0).await;
    for _ in 0..3 {
        platform::insert_of_type(&platform.sql, "has a space").await;
    }
    open_is(3).await;
    // Their rows are shown where one is asked for.
    let page = wait_for(address, "/", |_, page| page.contains("/dead-letters/0/3")).await;
    assert!(!page.contains("has a space"), "{page}");
    let masked = "event_type ••• 11 B";
    assert!(
        page.contains(masked) && page.contains("<b>subject</b>: mend the row"),
        "{page}"
    );
    let (code, row) = get(address, "/dead-letters/0/3").await.expect("a page");
    assert!(code == "200" && row.contains("has a space"), "{row}");
    for none in ["/dead-letters/0/4", "/dead-letters/1/3"] {
        assert_eq!(
            get(address, none).await.expect("an answer").0,
            "404",
            "{none}"
        );
    }
    relay.stop().await;

    // Another process knows them from the stream, and what commands write while it runs. Where others may ask it shows no row.
    platform.set(
        "WALRELAY_HTTP_LISTEN",
        &format!("0.0.0.0:{}", address.port()),
    );
    let relay = platform.relay();
    let metrics = open_is(3).await;
    let page = wait_for(address, "/", |_, page| page.contains(masked)).await;
    assert!(!page.contains("href=\"/dead-letters"), "{page}");
    let (code, _) = get(address, "/dead-letters/0/3").await.expect("an answer");
    assert_eq!(code, "403");
    assert!(
        !metrics.contains("walrelay_dead_letters_total{"),
        "{metrics}"
    );
    let list = platform.expect(&["dead-letters", "list"], 0).await;
    let position = list.lines().nth(1).expect("a letter");
    let position = position.split_whitespace().nth(1).expect("a position");
    let discard = ["dead-letters", "discard", position, "--reason", "a test"];
    platform.expect(&discard, 0).await;
    open_is(2).await;
    let text = platform.expect(&["status"], 0).await;
    assert!(
        text.contains("2 open, 0 since the start: walrelay dead-letters list"),
        "{text}"
    );
    let json = platform.output(&["status", "--json"]).await.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one JSON object");
    assert_eq!(json["relay"]["dead_letters_open"], 2);
    // What the stream loses nobody has closed.
    let purge = platform.stream().await;
    purge.purge().await.expect("purged");
    let text = platform.expect(&["dead-letters", "list"], 0).await;
    assert_eq!(text.matches("    gone  ").count(), 2, "{text}");
    let discard = ["dead-letters", "discard", "--all", "--reason", "a test"];
    platform.expect(&discard, 0).await;
    open_is(0).await;
    relay.stop().await;
}

/// The server's WAL goes on, or may, and nobody sees it.
#[tokio::test]
async fn what_nobody_sees_is_not_told_as_nothing() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let relay = platform.relay();
    let is_known = |body: &str| {
        body.contains("walrelay_lag_seconds{relay=\"walrelay\"} 0\n")
            && body.contains("walrelay_lag_bytes{relay=\"walrelay\"} 0\n")
    };
    wait_for(address, "/metrics", |_, body| is_known(body)).await;
    platform
        .postgres
        .stop(Mode::Immediate)
        .await
        .expect("stopped");
    let is_absent = |name: &str, body: &str| !body.contains(&format!("\n{name}{{"));
    wait_for(address, "/metrics", |_, body| {
        body.contains("walrelay_streaming{relay=\"walrelay\"} 0\n")
            && is_absent("walrelay_lag_seconds", body)
            && is_absent("walrelay_lag_bytes", body)
            && is_absent("walrelay_received_lag_bytes", body)
    })
    .await;
    let text = platform.expect(&["status"], 1).await;
    assert!(text.contains(" as of "), "{text}");
    assert_eq!(
        text.matches("not known how far behind").count(),
        2,
        "{text}"
    );
    let json = platform.output(&["status", "--json"]).await.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one JSON object");
    assert_eq!(json["relay"]["lag_seconds"], serde_json::Value::Null);
    platform.postgres.start_again().await.expect("started");
    wait_for(address, "/metrics", |_, body| is_known(body)).await;
    relay.stop().await;
}

/// One that stands by receives nothing.
#[tokio::test]
async fn a_standby_is_not_told_as_up_to_date() {
    let mut platform = Platform::start().await;
    let relay = platform.relay();
    platform.insert(1).await;
    platform.wait_for(1).await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let standby = platform.relay();
    wait_for(address, "/readyz", |_, body| body.starts_with("standby")).await;
    let text = platform.expect(&["status"], 0).await;
    assert!(
        text.contains("received      - (not known how far behind)"),
        "{text}"
    );
    let (_, metrics) = get(address, "/metrics").await.expect("metrics");
    assert!(
        !metrics.contains("walrelay_received_lag_bytes{"),
        "{metrics}"
    );
    standby.stop().await;
    relay.stop().await;
}

/// It is there, which is another thing than that nobody runs.
#[tokio::test]
async fn a_relay_that_stands_still_is_told_as_one_that_does_not_answer() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    relay.signal(Signal::STOP);
    let text = platform.expect(&["status"], 1).await;
    assert!(text.contains("not answering: what listens at"), "{text}");
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
    platform.sql.query(end, &[]).await.expect("ended");
    let json = platform.output(&["status", "--json"]).await.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one JSON object");
    let lane = &json["positions"]["lane"];
    assert_eq!(lane["state"], "not_answering", "{json}");
    assert!(
        lane["remedy"]
            .as_str()
            .is_some_and(|remedy| remedy.contains("kill -CONT PID"))
    );
    relay.signal(Signal::CONT);
    wait_for(address, "/readyz", |status, _| status == "200").await;
    relay.stop().await;
}
