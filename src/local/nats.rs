//! A nats-server of one's own, with JetStream.
//!
//! In: [`NatsOptions`]. Out: a running [`LocalNats`] on loopback, with a store and a monitoring port of its own.
//! Apart from the options it is configured as nats-server is by default: acknowledged messages reach the disk within
//! two minutes, not at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::folder::Folder;
use super::process::{Process, STOP_LIMIT, free_port, log_tail, port_taken};
use super::{LocalError, ServerBinaries};

const SERVER: &str = "nats-server";
/// How often other ports are tried when the chosen ones were taken in the meantime.
pub(super) const PORT_TRIES_MAX: usize = 5;

/// How a local nats-server is to be.
#[derive(Debug, Clone, Default)]
pub struct NatsOptions {
    /// Configuration at the top level, such as `authorization { token: t }` or `max_payload: 64KB`.
    pub config_extra: String,
    /// Configuration inside the `jetstream` block, such as `sync_interval: always`.
    pub jetstream_extra: String,
    /// Files for the folder that the server runs in, by name and content, which nobody else may read: certificates and keys.
    pub files: Vec<(String, String)>,
}

/// A nats-server of one's own; gone when dropped.
#[derive(Debug)]
pub struct LocalNats {
    // Before the folder: the server ends before its store goes.
    process: Option<Process>,
    folder: Folder,
    binaries: ServerBinaries,
    options: NatsOptions,
    name: String,
    port: u16,
    monitor_port: u16,
    /// The `cluster` block of a node.
    cluster: String,
}

impl LocalNats {
    /// Starts a server with an empty store.
    ///
    /// # Errors
    /// [`LocalError::Start`] when the server does not become ready, for example on a configuration that it does not
    /// understand; [`LocalError::Io`] when the system refuses a folder or a process.
    ///
    /// # Panics
    /// Outside a tokio runtime whose timer is enabled.
    pub async fn start(
        binaries: &ServerBinaries,
        options: NatsOptions,
    ) -> Result<LocalNats, LocalError> {
        let mut tries_left = PORT_TRIES_MAX;
        loop {
            tries_left -= 1;
            let mut nats =
                LocalNats::prepare(binaries, options.clone(), "local".to_owned(), String::new())?;
            match nats.launch().await {
                Err(error) if port_taken(&error) && tries_left > 0 => {}
                result => return result.map(|()| nats),
            }
        }
    }

    /// Makes the folder and chooses the ports; nothing runs yet.
    pub(super) fn prepare(
        binaries: &ServerBinaries,
        options: NatsOptions,
        name: String,
        cluster: String,
    ) -> Result<LocalNats, LocalError> {
        let folder = Folder::new("nats")?;
        for (name, content) in &options.files {
            let file = folder.path().join(name);
            fs::write(&file, content)
                .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)))
                .map_err(LocalError::io(format!("write {}", file.display())))?;
        }
        Ok(LocalNats {
            process: None,
            folder,
            binaries: binaries.clone(),
            options,
            name,
            port: free_port()?,
            monitor_port: free_port()?,
            cluster,
        })
    }

    /// Writes the configuration, starts the server, and waits until it accepts connections.
    pub(super) async fn launch(&mut self) -> Result<(), LocalError> {
        self.write_configuration()?;
        let mut nats = Command::new(self.binaries.nats_server());
        nats.arg("--config")
            .arg(self.configuration_file())
            .current_dir(self.folder.path());
        let mut process = Process::spawn(SERVER, nats, &self.log())?;
        self.folder.runs(Some(process.id()))?;
        // Its last word before it serves: JetStream has recovered by then.
        let started = process
            .wait_ready(|process| process.log().contains("Server is ready"))
            .await;
        if started.is_err() {
            self.folder.runs(None)?;
        }
        started?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks the server to stop (SIGTERM), and waits until it has; how long that took. Nothing happens to one that is
    /// stopped; one that is paused goes on first.
    ///
    /// # Errors
    /// [`LocalError::Stop`] when it still runs after a minute.
    pub async fn stop(&mut self) -> Result<Duration, LocalError> {
        let begin = Instant::now();
        if let Some(process) = &mut self.process {
            process.signal(Signal::TERM);
            process.signal(Signal::CONT);
            process.wait_end(STOP_LIMIT).await?;
            self.process = None;
            self.folder.runs(None)?;
        }
        Ok(begin.elapsed())
    }

    /// SIGKILL. What the server had written stays, also what it had not synced: the machine lives on.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            let _ = self.folder.runs(None);
        }
    }

    /// Starts the stopped or killed server on the same port and store. Nothing happens to one that runs.
    ///
    /// # Errors
    /// [`LocalError::Start`] when it does not become ready.
    pub async fn start_again(&mut self) -> Result<(), LocalError> {
        if self.process.as_mut().is_some_and(Process::runs) {
            return Ok(());
        }
        self.process = None;
        self.launch().await
    }

    /// The same with another build of the server, as in an upgrade.
    ///
    /// # Errors
    /// As [`Self::start_again`].
    pub async fn start_again_as(&mut self, binaries: &ServerBinaries) -> Result<(), LocalError> {
        self.binaries = binaries.clone();
        self.start_again().await
    }

    /// Halts the process where it is (SIGSTOP): its connections stay open and silent.
    pub fn pause(&mut self) {
        if let Some(process) = &mut self.process {
            process.pause();
        }
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Sets [`NatsOptions::config_extra`] anew, has a running server read it (SIGHUP), and waits until its log says
    /// that it did, or could not: what cannot change in a running server makes it keep what it had until its next start.
    ///
    /// # Errors
    /// [`LocalError::Io`] when the file cannot be written, [`LocalError::Start`] when the server ends or keeps silent.
    pub async fn reload(&mut self, config_extra: String) -> Result<(), LocalError> {
        self.options.config_extra = config_extra;
        self.write_configuration()?;
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        // "Reloaded server configuration", or "Failed to reload server configuration: …".
        let reloads = |process: &Process| process.log().matches(" server configuration").count();
        let before = reloads(process);
        process.signal(Signal::HUP);
        process
            .wait_ready(|process| reloads(process) > before)
            .await
    }

    /// `nats://127.0.0.1:port`, without credentials.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port of clients on 127.0.0.1; the same after every start.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's name; in a cluster `node-0`, `node-1`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// JetStream's `store_dir`, for those who want to spoil it.
    pub fn store_dir(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// One of [`NatsOptions::files`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The server's pid; `None` when it was stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log())
    }

    /// Where monitoring listens, host:port.
    pub fn monitoring(&self) -> String {
        format!("127.0.0.1:{}", self.monitor_port)
    }

    /// What monitoring answers on `path`; `None` when it does not answer with JSON.
    pub(super) async fn monitor(&self, path: &str) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(self.monitoring()).await.ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await
            .ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        serde_json::from_slice(&answer[body..]).ok()
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(process) = &mut self.process {
            process.signal(signal);
        }
    }

    fn write_configuration(&self) -> Result<(), LocalError> {
        let file = self.configuration_file();
        let text = format!(
            "server_name: \"{}\"\nlisten: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\n\
             jetstream {{\n  store_dir: \"{}\"\n{}\n}}\n{}\n{}\n",
            self.name,
            self.port,
            self.monitor_port,
            self.store_dir().display(),
            self.options.jetstream_extra,
            self.cluster,
            self.options.config_extra,
        );
        fs::write(&file, text).map_err(LocalError::io(format!("write {}", file.display())))
    }

    fn configuration_file(&self) -> PathBuf {
        self.folder.path().join("nats.conf")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("nats.log")
    }
}
