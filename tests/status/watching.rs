//! `walrelay status --watch`.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::platform::Platform;
use crate::site::free_address;
use crate::{LIMIT, wait_for};

#[tokio::test]
async fn into_a_pipe_a_line_a_look_until_a_signal_or_until_nobody_reads() {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    let start = |arguments: &[&str]| {
        let mut child = (platform.command(arguments).stdout(Stdio::piped()))
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        (child, lines)
    };
    let (mut child, mut lines) = start(&["status", "--watch=100ms"]);
    let mut line_with = async |text: &str| {
        let found = async {
            loop {
                let line = lines.next_line().await.expect("UTF-8").expect("a line");
                if line.contains(text) {
                    return line;
                }
            }
        };
        let found = timeout(LIMIT, found).await;
        found.unwrap_or_else(|_| panic!("a line with {text}"))
    };
    line_with(" walrelay streaming events=0 ").await;
    platform.insert(20).await;
    let line = line_with(" walrelay streaming events=20 ").await;
    assert!(
        !line.contains('\x1b') && line.contains("lag_seconds="),
        "{line}"
    );
    // A look that fails ends nothing.
    relay.stop().await;
    line_with("no relay answers").await;
    let pid = i32::try_from(child.id().expect("it runs")).expect("a pid");
    kill_process(Pid::from_raw(pid).expect("not 0"), Signal::INT).expect("signalled");
    let ended = timeout(LIMIT, child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("waited for").code(), Some(0));

    let (mut child, mut lines) = start(&["status", "--watch=1h", "--json"]);
    let line = timeout(LIMIT, lines.next_line()).await.expect("in time");
    let line = line.expect("UTF-8").expect("a line");
    let json: serde_json::Value = serde_json::from_str(&line).expect("one JSON object a line");
    assert_eq!(json["positions"]["lane"]["state"], "stopped");
    drop(lines);
    let ended = timeout(LIMIT, child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("waited for").code(), Some(0));
    platform.expect(&["status", "--watch=1ms"], 2).await;
}
