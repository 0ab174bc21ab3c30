//! `walrelay setup` and `walrelay run` as child processes of the demo.
//!
//! In: where the demo's servers are. Out: the very program that runs in production, started, killed, stopped.
//! Guarantee: no relay outlives the demo: it is killed when dropped, and by a watchdog should the demo itself be killed.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// How much of the relay's log an error shows.
const LOG_LINES_MAX: usize = 30;

/// How long a relay may take to stop after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(15);

/// How long a killed relay may take to be gone, and how often that is looked at.
const REAP_MAX: Duration = Duration::from_secs(5);
const REAP_INTERVAL: Duration = Duration::from_millis(3);

/// Remembers the last pid that it was told, and kills it when nobody is left to tell it another: `sh` and a pipe, since
/// the system calls that tie a child's life to its parent's are Linux' alone.
const WATCHDOG: &str =
    "while read -r next; do pid=$next; done; [ \"$pid\" = none ] || kill -KILL \"$pid\"";

/// The relay as a child process.
pub(super) struct Relay {
    program: PathBuf,
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
    watchdog: std::process::Child,
}

impl Relay {
    pub(super) fn new(database_url: &str, nats_url: &str, hold_back: &str) -> anyhow::Result<Self> {
        let program =
            std::env::current_exe().context("cannot find the running program's executable")?;
        let watchdog = {
            use std::os::unix::process::CommandExt as _;
            std::process::Command::new("/bin/sh")
                .args(["-c", WATCHDOG])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .context("cannot run /bin/sh")?
        };
        let environment = vec![
            ("WALRELAY_POSTGRES_URL", database_url.to_owned()),
            ("WALRELAY_NATS_URL", nats_url.to_owned()),
            ("WALRELAY_HTTP_LISTEN", String::new()),
            ("WALRELAY_RELAY_HOLD_BACK", hold_back.to_owned()),
            // A person is watching.
            ("WALRELAY_RELAY_BACKOFF_MAX", "500ms".to_owned()),
            ("WALRELAY_RELAY_STATUS_INTERVAL", "500ms".to_owned()),
        ];
        Ok(Self {
            program,
            environment,
            child: None,
            log: Arc::default(),
            watchdog,
        })
    }

    /// The program with one command and with the demo's settings alone: no file, nothing inherited.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        for (inherited, _) in std::env::vars_os() {
            let name = inherited.to_string_lossy();
            if name.starts_with("WALRELAY_")
                || name.starts_with("PG")
                || name.starts_with("OTEL_")
                || name == "DATABASE_URL"
                || name == "NATS_URL"
            {
                command.env_remove(&inherited);
            }
        }
        command
            .args([name, "--config", "/dev/null"])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal is for the demo, which then stops the relay.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs `walrelay setup`.
    ///
    /// # Errors
    /// What it wrote, where it does not end with 0.
    pub(super) async fn setup(&self) -> anyhow::Result<()> {
        let output = self
            .command("setup")
            .output()
            .await
            .context("cannot run `walrelay setup`")?;
        if !output.status.success() {
            bail!(
                "`walrelay setup` ended with {}:\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Starts `walrelay run`.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let mut child = self
            .command("run")
            .spawn()
            .context("cannot run `walrelay run`")?;
        keep(child.stdout.take(), &self.log);
        keep(child.stderr.take(), &self.log);
        let pid = child.id();
        self.child = Some(child);
        self.tell_watchdog(pid)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("cannot kill the relay")?;
        }
        self.tell_watchdog(None)
    }

    /// SIGTERM; its exit code, or none where it had to be killed.
    pub(super) async fn stop(&mut self) -> anyhow::Result<Option<i32>> {
        let Some(mut child) = self.child.take() else {
            return Ok(None);
        };
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).context("cannot send SIGTERM to the relay")?;
        }
        let code = match tokio::time::timeout(STOP_MAX, child.wait()).await {
            Ok(status) => status.context("cannot wait for the relay")?.code(),
            Err(_) => {
                child.kill().await.context("cannot kill the relay")?;
                None
            }
        };
        self.tell_watchdog(None)?;
        Ok(code)
    }

    /// # Errors
    /// Where the relay ended though nobody asked it to.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        let Some(status) = child
            .try_wait()
            .context("cannot tell whether the relay runs")?
        else {
            return Ok(());
        };
        self.child = None;
        self.tell_watchdog(None)?;
        bail!("`walrelay run` ended with {status}:\n{}", self.log_tail())
    }

    /// The last lines that the relay wrote.
    pub(super) fn log_tail(&self) -> String {
        let log = self.log.lock().expect("no holder of the lock panics");
        log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    fn tell_watchdog(&mut self, pid: Option<u32>) -> anyhow::Result<()> {
        let line = pid.map_or_else(|| "none\n".to_owned(), |pid| format!("{pid}\n"));
        let pipe = self
            .watchdog
            .stdin
            .as_mut()
            .expect("the pipe lasts until the drop");
        pipe.write_all(line.as_bytes())
            .context("cannot reach the relay's watchdog")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
            // Reaped here, so that nothing of it is left, and its pid is another's only when the watchdog is gone too.
            let begin = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < REAP_MAX {
                std::thread::sleep(REAP_INTERVAL);
            }
            let _ = self.tell_watchdog(None);
        }
        // The end of its input ends the watchdog.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Keeps the last lines of one of the relay's outputs; ends with it.
fn keep(
    output: Option<impl AsyncRead + Unpin + Send + 'static>,
    log: &Arc<Mutex<VecDeque<String>>>,
) {
    let Some(output) = output else { return };
    let log = Arc::clone(log);
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut log = log.lock().expect("no holder of the lock panics");
            if log.len() == LOG_LINES_MAX {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
}
