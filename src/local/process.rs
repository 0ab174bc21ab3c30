//! One server process: its pid, its log, its end.
//!
//! In: a command. Out: signals to the process, never to a pid that it no longer has; the last lines of its log.
//! Dropping a [`Process`] ends it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::LocalError;

/// How often a server's state is looked at: short beside the quickest start (Postgres: 50 ms).
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(3);
/// How long a server gets for becoming ready: a recovery after a kill with much WAL is the slowest.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server gets for stopping before that counts as failed.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a dropped server gets before SIGKILL.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// How much of a log an error carries.
const LOG_LINES_MAX: usize = 20;
const LOG_BYTES_MAX: u64 = 8 * 1024;

/// A running (or just ended) server.
#[derive(Debug)]
pub(super) struct Process {
    server: &'static str,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
    /// Where the log began for this process.
    log_start: u64,
}

impl Process {
    /// Starts `command` with its output appended to `log`, in a process group of its own, so that a Ctrl-C in the
    /// terminal reaches only us.
    pub(super) fn spawn(
        server: &'static str,
        mut command: Command,
        log: &Path,
    ) -> Result<Process, LocalError> {
        let open = || {
            let file = File::options().create(true).append(true).open(log)?;
            Ok((file.metadata()?.len(), file.try_clone()?, file))
        };
        let (log_start, stdout, stderr) =
            open().map_err(LocalError::io(format!("open {}", log.display())))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(LocalError::io(format!("run {program}")))?;
        Ok(Process {
            server,
            child,
            ended: None,
            log: log.to_owned(),
            log_start,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        if self.ended.is_none() {
            // An error means that there is no such child: as good as ended.
            self.ended = self
                .child
                .try_wait()
                .unwrap_or_else(|_| Some(ExitStatus::default()));
        }
        self.ended.is_none()
    }

    /// Sends a signal, unless the process has ended: until it is reaped its pid cannot be another's.
    pub(super) fn signal(&mut self, signal: Signal) {
        if self.runs()
            && let Some(pid) = self.pid()
        {
            let _ = kill_process(pid, signal);
        }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// What this process has written to its log.
    pub(super) fn log(&self) -> String {
        read_from(&self.log, self.log_start).unwrap_or_default()
    }

    /// The end of the process' log.
    pub(super) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// [`LocalError::Start`] when the process ends, or is not ready in time.
    pub(super) async fn wait_ready(
        &mut self,
        mut ready: impl FnMut(&Process) -> bool,
    ) -> Result<(), LocalError> {
        let begin = Instant::now();
        loop {
            let runs = self.runs();
            if runs && ready(self) {
                return Ok(());
            }
            let reason = match self.ended {
                Some(status) => format!("it ended with {status}"),
                None if begin.elapsed() > START_LIMIT => {
                    format!("not ready after {}s", START_LIMIT.as_secs())
                }
                None => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    continue;
                }
            };
            return Err(LocalError::Start {
                server: self.server.to_owned(),
                reason,
                log: self.log_tail(),
            });
        }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// [`LocalError::Stop`] when it has not after `limit`; it goes on running.
    pub(super) async fn wait_end(&mut self, limit: Duration) -> Result<(), LocalError> {
        let begin = Instant::now();
        while self.runs() {
            if begin.elapsed() > limit {
                return Err(LocalError::Stop {
                    server: self.server.to_owned(),
                    limit,
                    log: self.log_tail(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// SIGSTOP, and waits until it has taken effect: until then the process may still answer.
    pub(super) fn pause(&mut self) {
        self.signal(Signal::STOP);
        if let Some(pid) = self.pid() {
            // Its end, too, ends this wait, and is left to be reaped.
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED);
        }
    }

    /// SIGKILL, and reaps.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.ended.is_none() {
            self.ended = self.child.wait().ok().or(Some(ExitStatus::default()));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // At once, but so that Postgres takes its children and its shared memory along.
        self.signal(Signal::QUIT);
        self.signal(Signal::CONT);
        let begin = Instant::now();
        while self.runs() && begin.elapsed() < DROP_LIMIT {
            std::thread::sleep(POLL_INTERVAL);
        }
        self.kill();
    }
}

/// The last lines of the file `log`; empty where there is none.
pub(super) fn log_tail(log: &Path) -> String {
    let bytes = fs::metadata(log).map_or(0, |metadata| metadata.len());
    let text = read_from(log, bytes.saturating_sub(LOG_BYTES_MAX)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
}

fn read_from(log: &Path, start: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A port that nobody listens on, outside the range from which systems take ports for outgoing connections: so that
/// nobody takes it between a stop and the next start either.
pub(super) fn free_port() -> Result<u16, LocalError> {
    const TRIES_MAX: usize = 100;
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let port = rand::random_range(20_000..32_000);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    let source = last.expect("there was at least one attempt");
    Err(LocalError::io("find a free port on 127.0.0.1")(source))
}

/// Whether a server's log says that its port was taken: between our look and its own bind another may come.
pub(super) fn port_taken(error: &LocalError) -> bool {
    matches!(error, LocalError::Start { log, .. } if log.to_ascii_lowercase().contains("address already in use"))
}

/// The direct children of the process `pid`.
pub(super) fn children_of(pid: u32) -> Vec<u32> {
    let parent = pid.to_string();
    let Ok(processes) = fs::read_dir("/proc") else {
        return children_by_ps(&parent);
    };
    let mut children = Vec::new();
    for process in processes.flatten() {
        let Some(id) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // `pid (name) state ppid …`, and the name may hold anything: proc_pid_stat(5).
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else {
            continue;
        };
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if after_name.split_whitespace().nth(1) == Some(parent.as_str()) {
            children.push(id);
        }
    }
    children
}

/// The same where there is no /proc (macOS).
fn children_by_ps(parent: &str) -> Vec<u32> {
    let output = Command::new("ps")
        .args(["-A", "-o", "pid=", "-o", "ppid="])
        .output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let child = |line: &str| {
        let mut words = line.split_whitespace();
        let id = words.next()?.parse().ok()?;
        (words.next() == Some(parent)).then_some(id)
    };
    text.lines().filter_map(child).collect()
}

/// SIGKILL to a process that is known to be there, such as a child of a stopped parent.
pub(super) fn kill_by_pid(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
