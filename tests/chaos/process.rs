//! Signals to processes that this test started, and what /proc says of them.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal to a process of ours.
pub fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    {
        let _ = kill_process(pid, signal);
    }
}

/// Processes that are stopped (SIGSTOP); they go on when this is dropped.
pub struct Paused(Vec<u32>);

impl Paused {
    /// Stops them, and waits until they are.
    pub async fn new(pids: Vec<u32>) -> Paused {
        for pid in &pids {
            signal(Some(*pid), Signal::STOP);
        }
        let paused = Paused(pids);
        while paused
            .0
            .iter()
            .any(|pid| matches!(state(*pid), Some(state) if state != 'T' && state != 'Z'))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        paused
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in &self.0 {
            signal(Some(*pid), Signal::CONT);
        }
    }
}

/// `pid (name) state ppid …`, and the name may hold anything: proc_pid_stat(5).
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn state(pid: u32) -> Option<char> {
    stat(pid).map(|(state, _)| state)
}

/// The children of a process whose command line contains `name`.
pub fn children(parent: u32, name: &str) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|(_, ppid)| ppid == parent))
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(name))
        })
        .collect()
}
