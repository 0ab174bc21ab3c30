//! The unit, and what a running relay tells systemd.

use std::collections::BTreeSet;
use std::fs;

use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use crate::LIMIT;
use crate::platform::Platform;

const UNIT: &str = "deploy/systemd/walrelay.service";

/// A supervisor's socket, and the notices that have come.
struct Supervisor {
    socket: UnixDatagram,
    heard: BTreeSet<String>,
}

impl Supervisor {
    /// Waits until there was a notice with this line.
    async fn hears(&mut self, line: impl Fn(&str) -> bool) -> String {
        let heard = async {
            loop {
                if let Some(found) = self.heard.iter().find(|found| line(found)) {
                    return found.clone();
                }
                let mut notice = [0; 4096];
                let length = self.socket.recv(&mut notice).await.expect("a notice");
                let notice = str::from_utf8(&notice[..length]).expect("UTF-8");
                self.heard.extend(notice.lines().map(str::to_owned));
            }
        };
        let heard = timeout(LIMIT, heard).await;
        heard.unwrap_or_else(|_| panic!("only {:?}", self.heard))
    }
}

#[tokio::test]
async fn systemd_is_told_that_it_is_ready_what_it_waits_for_and_that_it_lives() {
    let mut platform = Platform::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let heard = BTreeSet::new();
    let mut supervisor = Supervisor { socket, heard };
    platform.set("NOTIFY_SOCKET", path.to_str().expect("UTF-8"));
    platform.set("WATCHDOG_USEC", "200000");
    platform.set("WALRELAY_HTTP_LISTEN", "");
    let relay = platform.relay();
    supervisor.hears(|line| line == "READY=1").await;
    supervisor.hears(|line| line == "WATCHDOG=1").await;
    supervisor.hears(|line| line == "STATUS=streaming").await;
    platform.nats.kill();
    let told = supervisor.hears(|line| line.contains("waiting: NATS"));
    assert!(told.await.starts_with("STATUS="));
    relay.stop().await;
    supervisor.hears(|line| line == "STOPPING=1").await;
}

/// Where there is no systemd, nobody runs the unit.
#[tokio::test]
async fn the_unit_is_one_that_systemd_reads_and_exposes_little() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.await.is_err() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("walrelay.service");
    let text = fs::read_to_string(UNIT).expect("the unit");
    assert!(text.contains("\nRestartPreventExitStatus=2 4\n"));
    let here = text.replace("/usr/bin/walrelay", env!("CARGO_BIN_EXE_walrelay"));
    assert_ne!(here, text);
    fs::write(&unit, here).expect("written");
    let judged = async |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(arguments).arg(&unit).output().await;
        let output = output.expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(output.status.success(), "{text}");
        text
    };
    let found = judged(&["verify", "--man=no"]).await;
    assert!(!found.contains("walrelay.service:"), "{found}");
    // In tenths; 96 is the worst.
    judged(&["security", "--offline=yes", "--no-pager", "--threshold=20"]).await;
}
