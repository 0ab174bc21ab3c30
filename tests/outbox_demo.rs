//! `walrelay demo` as a process: its verdict, and what it leaves behind.

use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

fn demo() -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    demo.arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    demo
}

#[tokio::test]
async fn the_verdict_holds() {
    let output = demo().arg("--json").output().await.unwrap();
    let verdict: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
        });
    assert_eq!(verdict["holds"], true, "{verdict}");
    assert_eq!(verdict["committed"], verdict["in_the_stream"]);
    assert_eq!(output.status.code(), Some(0));
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_running() {
    // Settings of the person who runs it are none of the demo's, and a wrong one is no obstacle.
    let mut child = demo()
        .env("WALRELAY_RELAY_HOLD_BACK", "nonsense")
        .env("WALRELAY_POSTGRES_URL", "postgres://nowhere.invalid/x")
        .env("PGHOST", "nowhere.invalid")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://nowhere.invalid")
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut ports, mut relay) = (Vec::new(), None);
    // Up to the first events, so that all of it runs.
    loop {
        let line = lines.next_line().await.unwrap().expect("the demo goes on");
        for (before, _) in line.match_indices("port ") {
            let digits = line[before + 5..]
                .split(|c: char| !c.is_ascii_digit())
                .next()
                .unwrap();
            ports.push(digits.parse::<u16>().unwrap());
        }
        if let Some(pid) = line.trim().strip_prefix("`walrelay run`: process ") {
            relay = Pid::from_raw(pid.trim_end_matches('.').parse().unwrap());
        }
        if line.contains("outbox.lesson.published.v1") {
            break;
        }
    }
    let relay = relay.expect("the relay's pid was told");
    assert_eq!(ports.len(), 2);
    assert!(test_kill_process(relay).is_ok());
    assert!(
        ports
            .iter()
            .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok())
    );

    let demo = Pid::from_raw(child.id().unwrap() as i32).unwrap();
    kill_process(demo, Signal::INT).unwrap();
    assert_eq!(
        child.wait().await.unwrap().code(),
        Some(1),
        "no verdict, no success"
    );
    assert!(
        test_kill_process(relay).is_err(),
        "the relay is gone, and reaped"
    );
    assert!(
        ports
            .iter()
            .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_err())
    );
}
