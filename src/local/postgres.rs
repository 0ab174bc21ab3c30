//! A Postgres server of one's own.
//!
//! In: [`PostgresOptions`]. Out: a running [`LocalPostgres`] with logical decoding on, its superuser `postgres`, on
//! loopback and on a Unix socket. Apart from what logical replication asks for, and the options, it is configured as
//! Postgres is by default, durability included.

use std::fmt::{self, Write as _};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use tokio_postgres::NoTls;

use super::folder::Folder;
use super::process::{
    POLL_INTERVAL, Process, STOP_LIMIT, children_of, free_port, kill_by_pid, log_tail, port_taken,
};
use super::template::{Init, RunAs, SUPERUSER, command, give, make_data, reachable_home};
use super::{LocalError, ServerBinaries};

const SERVER: &str = "Postgres";
/// How often another port is tried when the chosen one was taken in the meantime.
const PORT_TRIES_MAX: usize = 5;
/// How long a start after a kill waits for the last backend to let go of the shared memory.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);

/// How a local Postgres is to be.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Lines of `postgresql.conf`, behind our own, so that they win.
    pub settings: Vec<(String, String)>,
    /// How clients prove who they are; [`Authentication::Trust`] by default.
    pub authentication: Authentication,
    /// The whole of `pg_hba.conf`, instead of what initdb writes for `authentication`.
    pub hba: Option<String>,
    /// Files for the data folder, by name and content, which only the server may read: certificates and keys.
    pub files: Vec<(String, String)>,
    /// Whether commits reach the disk; on by default, as in production. Off is quicker, and loses nothing in a
    /// [`LocalPostgres::kill`], only in a power failure.
    pub fsync: bool,
    /// Whether initdb runs for this server alone, which takes a second: clusters otherwise are copies of one, and
    /// share its system identifier. Off by default.
    pub own_identity: bool,
}

impl Default for PostgresOptions {
    fn default() -> PostgresOptions {
        PostgresOptions {
            settings: Vec::new(),
            authentication: Authentication::Trust,
            hba: None,
            files: Vec::new(),
            fsync: true,
            own_identity: false,
        }
    }
}

/// How clients of a local Postgres prove who they are.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Everybody is who they say.
    #[default]
    Trust,
    /// The superuser has a password, and so must everybody else.
    Password {
        /// How the password crosses the wire.
        method: PasswordMethod,
        /// The superuser's password.
        password: String,
    },
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authentication::Trust => f.write_str("Trust"),
            Authentication::Password { method, .. } => write!(f, "Password({method:?}, ***)"),
        }
    }
}

/// How a password crosses the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordMethod {
    /// `scram-sha-256`, Postgres' default.
    ScramSha256,
    /// `md5`, as older clusters have it.
    Md5,
}

/// How a Postgres is asked to stop, in the words of `pg_ctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Waits for all clients to leave.
    Smart,
    /// Disconnects clients, and waits for walsenders until they have received all WAL.
    Fast,
    /// Without a checkpoint: the next start recovers.
    Immediate,
}

/// A Postgres server of one's own; gone when dropped.
#[derive(Debug)]
pub struct LocalPostgres {
    // Before the folder: the server ends before its data go.
    process: Option<Process>,
    folder: Folder,
    binaries: ServerBinaries,
    home: PathBuf,
    user: Option<RunAs>,
    authentication: Authentication,
    port: u16,
}

impl LocalPostgres {
    /// Starts a new, empty cluster.
    ///
    /// # Errors
    /// [`LocalError::Start`] when initdb or the server fails, for example on a setting that does not exist;
    /// [`LocalError::Io`] when the system refuses a folder or a process.
    ///
    /// # Panics
    /// Outside a tokio runtime whose timer is enabled.
    pub async fn start(
        binaries: &ServerBinaries,
        options: PostgresOptions,
    ) -> Result<LocalPostgres, LocalError> {
        let source = binaries.clone();
        let (folder, home, user, authentication) =
            tokio::task::spawn_blocking(move || LocalPostgres::prepare(&source, options))
                .await
                .expect("preparing does not panic")?;
        let binaries = binaries.clone();
        let mut postgres = LocalPostgres {
            process: None,
            folder,
            binaries,
            home,
            user,
            authentication,
            port: 0,
        };
        for tries_left in (0..PORT_TRIES_MAX).rev() {
            postgres.port = free_port()?;
            match postgres.launch().await {
                Err(error) if port_taken(&error) && tries_left > 0 => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(postgres)
    }

    /// Makes the folder with the cluster and its configuration; takes its time.
    fn prepare(
        binaries: &ServerBinaries,
        options: PostgresOptions,
    ) -> Result<(Folder, PathBuf, Option<RunAs>, Authentication), LocalError> {
        let user = RunAs::choose()?;
        let home = reachable_home(binaries.postgres_home(), user)?;
        let folder = Folder::new("postgres")?;
        give(folder.path(), user)?;
        let (auth, password) = match &options.authentication {
            Authentication::Trust => ("trust", None),
            Authentication::Password {
                method: PasswordMethod::ScramSha256,
                password,
            } => ("scram-sha-256", Some(password.clone())),
            Authentication::Password {
                method: PasswordMethod::Md5,
                password,
            } => ("md5", Some(password.clone())),
        };
        let data = folder.path().join("data");
        make_data(
            &home,
            user,
            &Init { auth, password },
            options.own_identity,
            &data,
        )?;

        let configuration = data.join("postgresql.conf");
        let settings = configuration_lines(folder.path(), &options);
        fs::read_to_string(&configuration)
            .and_then(|initial| fs::write(&configuration, initial + &settings))
            .map_err(LocalError::io(format!("write {}", configuration.display())))?;
        if let Some(hba) = &options.hba {
            let file = data.join("pg_hba.conf");
            fs::write(&file, hba).map_err(LocalError::io(format!("write {}", file.display())))?;
        }
        for (name, content) in &options.files {
            let file = data.join(name);
            let failed = || LocalError::io(format!("write {}", file.display()));
            fs::write(&file, content).map_err(failed())?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(failed())?;
            give(&file, user)?;
        }
        Ok((folder, home, user, options.authentication))
    }

    /// Starts the server on the port that is set, and waits until it accepts connections.
    async fn launch(&mut self) -> Result<(), LocalError> {
        let mut postgres = command(&self.home.join("bin/postgres"), self.user);
        postgres
            .arg("-D")
            .arg(self.data_dir())
            .arg("-p")
            .arg(self.port.to_string());
        let mut process = Process::spawn(SERVER, postgres, &self.log())?;
        self.folder.runs(Some(process.id()))?;
        let status = self.data_dir().join("postmaster.pid");
        let started = process
            .wait_ready(|process| accepts_connections(&status, process.id()))
            .await;
        if started.is_err() {
            self.folder.runs(None)?;
        }
        started?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks the server to stop, and waits until it has; how long that took. Nothing happens to one that is stopped.
    ///
    /// # Errors
    /// [`LocalError::Stop`] when it still runs after a minute.
    pub async fn stop(&mut self, mode: Mode) -> Result<Duration, LocalError> {
        self.stop_within(mode, STOP_LIMIT).await
    }

    /// As [`LocalPostgres::stop`], with another limit than a minute.
    ///
    /// # Errors
    /// [`LocalError::Stop`] when it still runs after `limit`; it goes on stopping.
    pub async fn stop_within(
        &mut self,
        mode: Mode,
        limit: Duration,
    ) -> Result<Duration, LocalError> {
        let begin = Instant::now();
        if let Some(process) = &mut self.process {
            process.signal(match mode {
                Mode::Smart => Signal::TERM,
                Mode::Fast => Signal::INT,
                Mode::Immediate => Signal::QUIT,
            });
            process.wait_end(limit).await?;
            self.process = None;
            self.folder.runs(None)?;
        }
        Ok(begin.elapsed())
    }

    /// SIGKILL to the postmaster and all its children in one moment, as by the failure of the machine (without the
    /// loss of what the disk had not yet). [`LocalPostgres::start_again`] then recovers.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A stopped postmaster neither reacts to the death of a child nor starts another one.
            process.signal(Signal::STOP);
            for child in children_of(process.id()) {
                kill_by_pid(child);
            }
            process.kill();
            let _ = self.folder.runs(None);
        }
    }

    /// Starts the stopped or killed server on the same data and port. Nothing happens to one that runs.
    ///
    /// # Errors
    /// [`LocalError::Start`] when it does not become ready.
    pub async fn start_again(&mut self) -> Result<(), LocalError> {
        if self.process.as_mut().is_some_and(Process::runs) {
            return Ok(());
        }
        self.process = None;
        let begin = Instant::now();
        loop {
            match self.launch().await {
                Err(error) if still_held(&error) && begin.elapsed() < LEFTOVER_LIMIT => {
                    tokio::time::sleep(POLL_INTERVAL).await
                }
                result => return result,
            }
        }
    }

    /// A connection as superuser to the database `dbname`, driven by a task of its own.
    ///
    /// # Errors
    /// What the server answers, for example that there is no such database.
    pub async fn connect(
        &self,
        dbname: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(dbname), NoTls).await?;
        // Ends with the client; its errors reach the client's own calls.
        tokio::spawn(connection);
        Ok(client)
    }

    /// `postgres://postgres[:password]@127.0.0.1:port/dbname`.
    pub fn url(&self, dbname: &str) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let password = match &self.authentication {
            Authentication::Trust => String::new(),
            Authentication::Password { password, .. } => format!(":{}", encoded(password)),
        };
        format!(
            "postgres://{SUPERUSER}{password}@127.0.0.1:{}/{}",
            self.port,
            encoded(dbname)
        )
    }

    /// The TCP port on 127.0.0.1; the same after every start.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket, for `host`; its path is short enough for one.
    pub fn socket_dir(&self) -> &Path {
        self.folder.path()
    }

    /// `PGDATA`.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The postmaster's pid; `None` when it was stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log())
    }

    /// The path of one of Postgres' programs, such as `pg_recvlogical`; older versions come without clients.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.binaries.postgres(name)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("postgres.log")
    }
}

/// What we add to initdb's `postgresql.conf`.
fn configuration_lines(socket_dir: &Path, options: &PostgresOptions) -> String {
    let own = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", &socket_dir.to_string_lossy()),
        ("wal_level", "logical"),
        // Many tests share a server, and each has a slot of its own.
        ("max_replication_slots", "1000"),
        ("max_wal_senders", "100"),
        ("fsync", if options.fsync { "on" } else { "off" }),
    ];
    let given = options
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let mut lines = String::from("\n# Local server of walrelay\n");
    for (name, value) in own.into_iter().chain(given) {
        let value = value.replace('\\', r"\\").replace('\'', "''");
        writeln!(lines, "{name} = '{value}'").expect("writing to a String does not fail");
    }
    lines
}

/// Whether the postmaster `pid` says that it accepts connections: `ready` in line 8 of its lock file, which is what
/// `pg_ctl --wait` reads too (manual, "postmaster.pid" in Database File Layout).
fn accepts_connections(status: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(status) else {
        return false;
    };
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// Whether a start failed only because the processes of a killed server have not all gone yet.
fn still_held(error: &LocalError) -> bool {
    matches!(error, LocalError::Start { log, .. }
        if log.contains("pre-existing shared memory block") || log.contains("lock file \"postmaster.pid\" already exists"))
}
