//! Signals of a command that runs until it is told to end.
//!
//! In: the process' signals. Out: a [`Shutdown`]. Guarantee: none of the signals that people and supervisors send ends the
//! command without a line.

use std::fs;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::relay::{Shutdown, ShutdownHandle};

/// What SIGHUP does.
pub(super) enum Hangup {
    /// The terminal is gone: the command stops. Under nohup it goes on.
    Stops,
    /// Something is read again.
    Reads(Box<dyn Fn() + Send>),
}

/// Listens from now on. The first signal to stop is told by the [`Shutdown`], the second ends the process at once.
pub(super) fn listen(hangup: Hangup) -> Result<Shutdown, anyhow::Error> {
    let signals = Signals::listen(hangup)?;
    let (handle, shutdown) = Shutdown::new();
    tokio::spawn(signals.forward(handle));
    Ok(shutdown)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user_1: Signal,
    user_2: Signal,
    on_hangup: Hangup,
    /// It was ignored when the process began, as nohup has it.
    no_hangup: bool,
}

enum Sent {
    Stop(&'static str),
    Hangup,
    Other(&'static str),
}

impl Signals {
    fn listen(on_hangup: Hangup) -> Result<Self, anyhow::Error> {
        let no_hangup = ignores_hangup();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            hangup: listen(SignalKind::hangup())?,
            user_1: listen(SignalKind::user_defined1())?,
            user_2: listen(SignalKind::user_defined2())?,
            on_hangup,
            no_hangup,
        })
    }

    async fn next(&mut self) -> Sent {
        tokio::select! {
            _ = self.terminate.recv() => Sent::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Sent::Stop("SIGINT"),
            _ = self.quit.recv() => Sent::Stop("SIGQUIT"),
            _ = self.hangup.recv() => Sent::Hangup,
            _ = self.user_1.recv() => Sent::Other("SIGUSR1"),
            _ = self.user_2.recv() => Sent::Other("SIGUSR2"),
        }
    }

    async fn next_stop(&mut self) -> &'static str {
        loop {
            match (self.next().await, &self.on_hangup) {
                (Sent::Stop(name), _) => return name,
                (Sent::Hangup, Hangup::Reads(read)) => read(),
                (Sent::Hangup, Hangup::Stops) if self.no_hangup => {}
                (Sent::Hangup, Hangup::Stops) => return "SIGHUP",
                (Sent::Other(name), _) => {
                    tracing::info!("{name} is ignored; SIGTERM, SIGINT and SIGQUIT stop walrelay");
                }
            }
        }
    }

    async fn forward(mut self, handle: ShutdownHandle) {
        let name = self.next_stop().await;
        tracing::info!("{name}: stopping");
        handle.stop();
        let name = self.next_stop().await;
        tracing::warn!("second signal ({name}): ending at once");
        std::process::exit(1);
    }
}

/// Whether the process was started with SIGHUP ignored; false where there is no /proc to tell.
fn ignores_hangup() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignored(&status, 1))
}

/// Whether `status` of proc(5) has the signal of this number among the ignored ones.
fn ignored(status: &str, number: u32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (number - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_read_from_the_mask() {
        let status = "Name:\twalrelay\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignored(status, 1));
        assert!(ignored(status, 13));
        assert!(!ignored(status, 2));
        assert!(!ignored("Name:\twalrelay\n", 1));
    }
}
