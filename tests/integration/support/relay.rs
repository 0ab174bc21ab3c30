//! The program under test, as a child process.
//!
//! Its standard error goes to a file, which a failing test prints. It ends with the test: by the drop, and where the
//! test binary itself is killed by a watchdog, a `sh` that waits for the end of a pipe.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::wait::{SOON, eventually};

/// Reads a line or the end of the pipe; only at the end the process is still ours to kill.
const WATCHDOG: &str = r#"read line || kill -9 "$1" 2>/dev/null"#;

/// A running `walrelay run`.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    watchdog: Child,
    log: PathBuf,
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// Where it has not ended within [`SOON`].
    pub(crate) async fn of(command: &mut Command) -> Output {
        let mut command =
            tokio::process::Command::from(std::mem::replace(command, Command::new("")));
        command.kill_on_drop(true).stdin(Stdio::null());
        let output = tokio::time::timeout(SOON, command.output())
            .await
            .unwrap_or_else(|_| panic!("{command:?} still runs after {SOON:?}"))
            .expect("walrelay runs");
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// # Panics
    /// Where the command did not end with 0.
    pub(crate) fn success(self) -> Output {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// # Panics
    /// Where the command did not end with 1, or has not said this.
    pub(crate) fn refused(self, told: &str) -> Output {
        assert_eq!(self.code, Some(1), "{}\n{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(told), "{told}: {}", self.stderr);
        self
    }
}

impl Relay {
    /// Starts `command`, which logs to `log`.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Relay {
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log's folder is there");
        let child = command
            .stdin(Stdio::null())
            .stdout(stderr.try_clone().expect("a second handle"))
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .expect("walrelay runs");
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "sh", &child.id().to_string()])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh runs");
        Relay {
            child,
            watchdog,
            log,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error and standard output so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log is there")
    }

    /// Waits until the log has a line with `needle`.
    pub(crate) async fn logs(&mut self, needle: &str) {
        eventually(format!("{needle:?} in the log"), async || {
            if self.log().contains(needle) {
                return Some(());
            }
            let ended = self.child.try_wait().expect("it is our child");
            assert_eq!(ended, None, "the relay ended without {needle:?}");
            None
        })
        .await;
    }

    /// Waits until it streams.
    pub(crate) async fn streams(&mut self) {
        self.logs("streaming, behind").await;
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("it is there: nobody has reaped it");
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn ends(&mut self) -> Option<i32> {
        let status: ExitStatus = eventually("the relay ends", async || {
            self.child.try_wait().expect("it is our child")
        })
        .await;
        status.code()
    }

    /// SIGTERM once it is up, and waits for a clean end.
    ///
    /// # Panics
    /// Where the exit code is not 0.
    pub(crate) async fn stop(mut self) {
        self.is_up().await;
        self.signal(Signal::TERM);
        assert_eq!(self.ends().await, Some(0), "{}", self.log());
    }

    /// Waits until it streams, or waits for something. Before that, it may have no handler for a signal, which would end it as it ends
    /// anything.
    pub(crate) async fn is_up(&self) {
        eventually("the relay is up", async || {
            let log = self.log();
            (log.contains("streaming, behind") || log.contains("waiting: ")).then_some(())
        })
        .await;
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// A line such as `VmHWM` of `/proc/<pid>/status`, in kB; `None` where there is no /proc.
    pub(crate) fn status_kib(&self, line: &str) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let value = text.lines().find_map(|found| found.strip_prefix(line))?;
        value
            .trim_start_matches(':')
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .ok()
    }

    /// Its CPU time so far in clock ticks of 10 ms; `None` where there is no /proc.
    pub(crate) fn cpu_ticks(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        // proc_pid_stat(5): utime and stime are the fields 14 and 15, the third one is the first behind the name.
        let mut fields = after_name.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        Some(ticks()? + ticks()?)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let begin = Instant::now();
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(mut pipe) = self.watchdog.stdin.take() {
            let _ = pipe.write_all(b"gone\n");
        }
        let _ = self.watchdog.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- log of the relay, ended after {:?} ---\n{}",
                begin.elapsed(),
                fs::read_to_string(&self.log).unwrap_or_default()
            );
        }
    }
}
