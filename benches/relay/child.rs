//! A process under measurement: its log, its CPU time, its memory.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A running process; killed by the drop.
pub struct Child {
    child: std::process::Child,
    pub spawned: Instant,
    lines: Receiver<(Instant, String)>,
}

/// CPU time of a process so far, in microseconds; `None` where there is no /proc. The kernel counts in 10 ms.
pub fn cpu_us(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) * 10_000.0)
}

/// Largest resident memory of a process so far, in MiB; `None` where there is no /proc.
pub fn peak_mib(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

impl Child {
    pub fn spawn(mut command: Command) -> anyhow::Result<Child> {
        let spawned = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().context("a pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        Ok(Child {
            child,
            spawned,
            lines,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time from the start to the line that says that it streams.
    pub async fn streaming_after(&mut self) -> anyhow::Result<Duration> {
        let mut log = String::new();
        while self.spawned.elapsed() < LIMIT {
            match self.lines.try_recv() {
                Ok((at, line)) if line.contains("streaming, behind") => {
                    return Ok(at - self.spawned);
                }
                Ok((_, line)) => log.push_str(&line),
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    tokio::time::sleep(POLL_INTERVAL).await
                }
                Err(std::sync::mpsc::TryRecvError::Disconnected) => break,
            }
        }
        bail!("it does not stream: {log}")
    }

    /// What it has logged since the last look.
    pub fn log(&self) -> String {
        let lines: Vec<_> = self.lines.try_iter().map(|(_, line)| line).collect();
        lines.join("\n")
    }

    /// Waits for the process' end by itself; its CPU time in microseconds, read before it is reaped.
    pub async fn ended(&mut self) -> anyhow::Result<(Duration, Option<f64>)> {
        let begin = Instant::now();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
            let zombie = stat.is_ok_and(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('Z'))
            });
            let took = self.spawned.elapsed();
            let cpu = if zombie { cpu_us(self.pid()) } else { None };
            if (zombie || !cfg!(target_os = "linux"))
                && let Some(status) = self.child.try_wait()?
            {
                anyhow::ensure!(status.success(), "{status}: {}", self.log());
                return Ok((took, cpu));
            }
            anyhow::ensure!(begin.elapsed() < LIMIT, "still runs after {LIMIT:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// SIGTERM, and waits for a clean end; the CPU time of its whole life in microseconds.
    pub async fn stop(mut self) -> anyhow::Result<Option<f64>> {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(Pid::from_raw)
            .context("a pid")?;
        kill_process(pid, Signal::TERM)?;
        Ok(self.ended().await?.1)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
