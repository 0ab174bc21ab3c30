//! What systemd is told of a running relay (sd_notify(3)): that it is ready, what it does, that it still turns, and that it stops.
//!
//! In: the socket and the watchdog's time from the environment, the relays' boards. Out: datagrams, by a task on the relay's
//! thread. Guarantee: nothing without the socket; a supervisor that does not read costs the relay nothing.

use std::collections::BTreeSet;
use std::env;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::relay::Shutdown;
use crate::relay::board::Board;
use crate::relay::status::State;

/// How often the boards are looked at, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Tells until it is dropped.
pub(super) struct Supervised(tokio::task::JoinHandle<()>);

impl Drop for Supervised {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the supervisor where there is one.
pub(super) fn tell(boards: Vec<Board>, shutdown: Shutdown) -> Option<Supervised> {
    let socket = env::var("NOTIFY_SOCKET").ok()?;
    let notices = match Notices::to(&socket) {
        Ok(notices) => notices,
        Err(error) => {
            tracing::warn!("NOTIFY_SOCKET={socket}: the supervisor is told nothing: {error}");
            return None;
        }
    };
    let variable = |name| env::var(name).ok();
    let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    Some(Supervised(tokio::spawn(run(
        notices, watchdog, boards, shutdown,
    ))))
}

/// How long the supervisor waits for a sign of life of this process.
fn watchdog(us: Option<String>, pid: Option<String>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
    let us = us.filter(|_| is_ours)?.parse().ok()?;
    (us > 0).then(|| Duration::from_micros(us))
}

struct Notices {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Notices {
    fn to(name: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let address = address(name)?;
        Ok(Notices { socket, address })
    }

    fn send(&self, notice: &str) {
        // It is told again, or has gone.
        let _ = self.socket.send_to_addr(notice.as_bytes(), &self.address);
    }
}

#[cfg(target_os = "linux")]
fn address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(not(target_os = "linux"))]
fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_pathname(name)
}

async fn run(
    notices: Notices,
    watchdog: Option<Duration>,
    boards: Vec<Board>,
    mut shutdown: Shutdown,
) {
    // Twice in the time that it waits, as sd_watchdog_enabled(3) asks for.
    let pause = watchdog.map_or(LOOK_INTERVAL, |limit| (limit / 2).min(LOOK_INTERVAL));
    let mut looks = interval(pause.max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    let (mut is_ready, mut is_stopping) = (false, false);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = shutdown.wait(), if !is_stopping => {
                is_stopping = true;
                notices.send("STOPPING=1\n");
            }
        }
        let mut does = BTreeSet::new();
        for board in &boards {
            let status = board.status();
            is_ready |= !matches!(
                status.state,
                State::Starting | State::Failed | State::Stopped
            );
            does.insert(match status.reason {
                Some(reason) => format!("{}: {reason}", status.state.name()),
                None => status.state.name().to_owned(),
            });
        }
        let does = Vec::from_iter(does).join("; ").replace('\n', " ");
        let mut notice = format!("STATUS={does}\n");
        if is_ready {
            notice.push_str("READY=1\n");
        }
        if notice != told {
            notices.send(&notice);
            told = notice;
        }
        if watchdog.is_some() {
            notices.send("WATCHDOG=1\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let us = || Some("30000000".to_owned());
        let own = std::process::id().to_string();
        assert_eq!(watchdog(us(), None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(us(), Some(own)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(us(), Some("0".to_owned())), None);
        assert_eq!(watchdog(Some("0".to_owned()), None), None);
        assert_eq!(watchdog(Some("soon".to_owned()), None), None);
        assert_eq!(watchdog(None, None), None);
    }
}
