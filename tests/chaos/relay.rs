//! The relays: two places for a child process of the built binary, and somebody who looks after them.
//!
//! In: where the proxies listen. Out: `walrelay run`, started, killed, paused, stopped. Guarantee: a relay that ends as
//! it should not (exit code 2 or 4, a panic, 0 unasked) is told as the run's failure; one that ends with 1 is started
//! again, as a supervisor does; none outlives the test: a watchdog kills it should the test itself be killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tokio::process::{Child, Command};

use crate::history::History;
use crate::process::signal;

/// How long a relay may take to stop after SIGTERM: its own limit, and what a loaded machine adds.
const STOP_MAX: Duration = Duration::from_secs(20);
/// What a supervisor waits before it starts again what ended with 1.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// How often the relays are looked at, and how often their memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Kills the pid that it was told last when nobody is left to tell it another.
const WATCHDOG: &str =
    "while read -r next; do pid=$next; done; [ \"$pid\" = none ] || kill -KILL \"$pid\"";

/// Settings of a relay.
pub type Environment = Vec<(&'static str, String)>;

/// One place for a relay.
struct Place {
    child: Option<Child>,
    /// A relay is to run here.
    wanted: bool,
    restart_at: Option<Instant>,
    watchdog: std::process::Child,
}

/// A look at a relay's memory.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: Duration,
    /// VmRSS.
    pub kilobytes: u64,
}

/// All places.
pub struct Relays {
    places: Vec<Mutex<Place>>,
    /// A link to the built program: a build during a long run makes a new file. A copy may be busy while another test of this
    /// process starts a program.
    program: PathBuf,
    environments: Vec<Environment>,
    history: Arc<History>,
    failure: Mutex<Option<String>>,
    samples: Mutex<Vec<Sample>>,
    ends: Mutex<BTreeMap<String, u64>>,
}

impl Relays {
    pub fn new(environments: Vec<Environment>, history: Arc<History>) -> anyhow::Result<Relays> {
        let program = history.folder().join("walrelay");
        std::fs::hard_link(env!("CARGO_BIN_EXE_walrelay"), &program)
            .context("cannot link the program")?;
        let places = environments.iter().map(|_| Ok(Mutex::new(Place::new()?)));
        let places = places.collect::<anyhow::Result<_>>()?;
        Ok(Relays {
            program,
            places,
            environments,
            history,
            failure: Mutex::default(),
            samples: Mutex::default(),
            ends: Mutex::default(),
        })
    }

    /// Runs `walrelay setup`.
    pub async fn setup(&self) -> anyhow::Result<()> {
        let output = self
            .command(0, "setup")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .await?;
        if !output.status.success() {
            bail!(
                "walrelay setup: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// The program with the run's settings alone.
    pub fn command(&self, place: usize, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        for (inherited, _) in std::env::vars_os() {
            let name = inherited.to_string_lossy();
            if name.starts_with("WALRELAY_")
                || name.starts_with("PG")
                || name == "DATABASE_URL"
                || name == "NATS_URL"
            {
                command.env_remove(&inherited);
            }
        }
        command
            .args([name, "--config", "/dev/null"])
            .envs(
                self.environments[place]
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    pub fn log(&self, place: usize) -> PathBuf {
        self.history.folder().join(format!("relay-{place}.log"))
    }

    /// Starts a relay, unless one runs here.
    pub fn start(&self, place: usize) -> anyhow::Result<()> {
        let mut here = self.place(place);
        here.wanted = true;
        here.restart_at = None;
        if here.child.is_some() {
            return Ok(());
        }
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(self.log(place))?;
        writeln!(
            log,
            "--- start at {:.3}s",
            self.history.elapsed().as_secs_f64()
        )?;
        let child = self
            .command(place, "run")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run walrelay")?;
        here.watch(child.id());
        here.child = Some(child);
        Ok(())
    }

    /// Whether a relay is to run here.
    pub fn is_wanted(&self, place: usize) -> bool {
        self.place(place).wanted
    }

    pub fn pid(&self, place: usize) -> Option<u32> {
        self.place(place).child.as_ref().and_then(Child::id)
    }

    /// SIGKILL.
    pub async fn kill(&self, place: usize) {
        let Some(mut child) = self.take(place) else {
            return;
        };
        let _ = child.kill().await;
        self.place(place).watch(None);
    }

    /// SIGTERM; how long it took.
    ///
    /// # Errors
    /// It did not end with 0 (or 1, where it had never begun to stream), or not in time.
    pub async fn stop(&self, place: usize) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let Some(mut child) = self.take(place) else {
            return Ok(Duration::ZERO);
        };
        signal(child.id(), Signal::TERM);
        let ended = tokio::time::timeout(STOP_MAX, child.wait()).await;
        let _ = child.start_kill();
        self.place(place).watch(None);
        match ended {
            Ok(Ok(status)) if matches!(status.code(), Some(0 | 1)) => Ok(begin.elapsed()),
            // It had hardly been started, and did not listen to signals yet.
            Ok(Ok(status)) if status.signal() == Some(Signal::TERM.as_raw()) => Ok(begin.elapsed()),
            Ok(Ok(status)) => bail!("relay {place} ended with {status} after SIGTERM"),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("relay {place} still ran {STOP_MAX:?} after SIGTERM"),
        }
    }

    fn take(&self, place: usize) -> Option<Child> {
        let mut here = self.place(place);
        here.wanted = false;
        here.restart_at = None;
        here.child.take()
    }

    fn place(&self, place: usize) -> std::sync::MutexGuard<'_, Place> {
        self.places[place].lock().expect("no holder panics")
    }

    /// What went wrong, if anything has.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no holder panics").clone()
    }

    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no holder panics").clone()
    }

    /// Exit codes of relays that ended by themselves.
    pub fn ends(&self) -> BTreeMap<String, u64> {
        self.ends.lock().expect("no holder panics").clone()
    }

    /// Looks after the relays for ever.
    pub async fn tend(self: Arc<Relays>) {
        let mut sampled = Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            for place in 0..self.places.len() {
                self.look(place);
            }
            if sampled.elapsed() >= SAMPLE_INTERVAL {
                sampled = Instant::now();
                self.sample();
            }
        }
    }

    fn look(&self, place: usize) {
        let mut here = self.place(place);
        let ended = here
            .child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            here.child = None;
            here.watch(None);
            here.restart_at = Some(Instant::now() + RESTART_PAUSE);
            self.ended(place, status);
        }
        let due = here.restart_at.is_some_and(|at| Instant::now() >= at);
        let wanted = here.wanted;
        drop(here);
        if due
            && wanted
            && let Err(error) = self.start(place)
        {
            self.fail(format!("{error:#}"));
        }
    }

    fn ended(&self, place: usize, status: ExitStatus) {
        self.history
            .note(format!("relay {place} ended by itself with {status}"));
        *self
            .ends
            .lock()
            .expect("no holder panics")
            .entry(status.to_string())
            .or_default() += 1;
        if status.code() != Some(1) || status.signal().is_some() {
            self.fail(format!("relay {place} ended with {status}"));
        }
    }

    fn fail(&self, text: String) {
        self.failure
            .lock()
            .expect("no holder panics")
            .get_or_insert(text);
    }

    fn sample(&self) {
        for place in 0..self.places.len() {
            let Some(pid) = self.pid(place) else { continue };
            let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            let kilobytes = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            if let Some(kilobytes) = kilobytes {
                self.samples.lock().expect("no holder panics").push(Sample {
                    at: self.history.elapsed(),
                    kilobytes,
                });
            }
        }
    }
}

impl Place {
    fn new() -> anyhow::Result<Place> {
        let watchdog = std::process::Command::new("/bin/sh")
            .args(["-c", WATCHDOG])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut place = Place {
            child: None,
            wanted: false,
            restart_at: None,
            watchdog,
        };
        place.watch(None);
        Ok(place)
    }

    fn watch(&mut self, pid: Option<u32>) {
        let line = pid.map_or_else(|| "none\n".to_owned(), |pid| format!("{pid}\n"));
        if let Some(pipe) = &mut self.watchdog.stdin {
            let _ = pipe.write_all(line.as_bytes());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
            let begin = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        self.watch(None);
        // The end of its input ends the watchdog.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}
