//! The servers under attack: one Postgres, and one nats-server or a cluster of three.
//!
//! In: what is to happen to which of them. Out: it has happened. Each is behind a lock, so that faults on different
//! servers overlap and faults on one do not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Mutex;
use walrelay::local::{
    LocalNats, LocalNatsCluster, LocalPostgres, Mode, NatsOptions, PostgresOptions, ServerBinaries,
};
use walrelay::nats::address::NatsAddress;
use walrelay::nats::admin::Admin;
use walrelay::nats::login::Login;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::tls::Roots;

use crate::event::MAX_PAYLOAD_BYTES;
use crate::process::{Paused, children};
use crate::secure;

/// Postgres gives up a silent relay after this.
pub const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the test itself waits for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// One Postgres.
pub struct Postgres {
    server: Mutex<LocalPostgres>,
    pub url: String,
    pub port: u16,
}

impl Postgres {
    pub async fn start(binaries: &ServerBinaries) -> anyhow::Result<Postgres> {
        let settings = [
            (
                "wal_sender_timeout",
                format!("{}ms", WAL_SENDER_TIMEOUT.as_millis()),
            ),
            // Crash recovery and idle WAL are part of it.
            ("checkpoint_timeout", "30s".to_owned()),
            ("log_replication_commands", "on".to_owned()),
        ];
        let mut options = PostgresOptions {
            settings: settings
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            // Only processes die here, never the machine.
            fsync: false,
            ..PostgresOptions::default()
        };
        if secure::is_wanted() {
            secure::postgres(&mut options, true);
        }
        let server = LocalPostgres::start(binaries, options).await?;
        if secure::is_wanted() {
            secure::set_password(&server).await;
        }
        Ok(Postgres {
            url: server.url("postgres"),
            port: server.port(),
            server: Mutex::new(server),
        })
    }

    /// A connection that goes past the proxy, and past the lock: a paused server answers to nobody.
    pub async fn connect(&self) -> anyhow::Result<tokio_postgres::Client> {
        let connect = tokio_postgres::connect(&self.url, tokio_postgres::NoTls);
        let (client, connection) = tokio::time::timeout(CONNECT_MAX, connect).await??;
        tokio::spawn(connection);
        Ok(client)
    }

    /// SIGKILL to postmaster and children.
    pub async fn kill(&self) {
        self.server.lock().await.kill();
    }

    pub async fn stop(&self, mode: Mode) -> anyhow::Result<Duration> {
        Ok(self.server.lock().await.stop(mode).await?)
    }

    pub async fn start_again(&self) -> anyhow::Result<()> {
        Ok(self.server.lock().await.start_again().await?)
    }

    /// The processes that send WAL.
    pub async fn walsenders(&self) -> Vec<u32> {
        let pid = self.server.lock().await.pid();
        pid.map_or_else(Vec::new, |pid| children(pid, "walsender"))
    }

    /// Stops the postmaster and all that it has started, until the guard is dropped.
    pub async fn pause(&self) -> Paused {
        let pid = self.server.lock().await.pid();
        let mut pids = pid.map_or_else(Vec::new, |pid| children(pid, ""));
        pids.extend(pid);
        Paused::new(pids).await
    }

    pub async fn log_tail(&self) -> String {
        self.server.lock().await.log_tail()
    }
}

/// One nats-server, or several.
pub struct Broker {
    nodes: Nodes,
    pub ports: Vec<u16>,
    pub access: Access,
}

/// How to get in.
#[derive(Clone, Default)]
pub struct Access {
    /// What the relay is told; empty where nothing is asked for.
    pub environment: Vec<(&'static str, String)>,
    files: Option<[PathBuf; 2]>,
}

impl Access {
    fn of(nats: &LocalNats) -> Access {
        if !secure::is_wanted() {
            return Access::default();
        }
        Access {
            environment: secure::environment(nats).to_vec(),
            files: Some(secure::files(nats)),
        }
    }

    /// For the test's own connections.
    pub fn options(&self) -> async_nats::ConnectOptions {
        self.files
            .as_ref()
            .map_or_else(async_nats::ConnectOptions::new, |[roots, _]| {
                secure::client(roots)
            })
    }
}

enum Nodes {
    One(Box<Mutex<LocalNats>>),
    Cluster(Mutex<LocalNatsCluster>),
}

impl Broker {
    pub async fn start(binaries: &ServerBinaries, cluster: bool) -> anyhow::Result<Broker> {
        let mut options = NatsOptions {
            config_extra: format!("max_payload: {MAX_PAYLOAD_BYTES}"),
            ..NatsOptions::default()
        };
        if secure::is_wanted() {
            secure::nats(&mut options);
        }
        if cluster {
            let cluster = LocalNatsCluster::start_with(binaries, 3, options).await?;
            Ok(Broker {
                ports: cluster.nodes().iter().map(LocalNats::port).collect(),
                access: cluster.nodes().first().map(Access::of).unwrap_or_default(),
                nodes: Nodes::Cluster(Mutex::new(cluster)),
            })
        } else {
            let server = LocalNats::start(binaries, options).await?;
            Ok(Broker {
                ports: vec![server.port()],
                access: Access::of(&server),
                nodes: Nodes::One(Box::new(Mutex::new(server))),
            })
        }
    }

    pub fn size(&self) -> usize {
        self.ports.len()
    }

    async fn with<R>(&self, node: usize, act: impl AsyncFnOnce(&mut LocalNats) -> R) -> R {
        match &self.nodes {
            Nodes::One(server) => act(&mut *server.lock().await).await,
            Nodes::Cluster(cluster) => act(cluster.lock().await.node(node)).await,
        }
    }

    pub async fn kill(&self, node: usize) {
        self.with(node, async |server| server.kill()).await;
    }

    pub async fn stop(&self, node: usize) -> anyhow::Result<Duration> {
        Ok(self.with(node, async |server| server.stop().await).await?)
    }

    pub async fn start_again(&self, node: usize) -> anyhow::Result<()> {
        Ok(self
            .with(node, async |server| server.start_again().await)
            .await?)
    }

    /// Stops these nodes until the guard is dropped.
    pub async fn pause(&self, nodes: &[usize]) -> Paused {
        let mut pids = Vec::new();
        for node in nodes {
            pids.extend(self.with(*node, async |server| server.pid()).await);
        }
        Paused::new(pids).await
    }

    pub async fn log_tail(&self, node: usize) -> String {
        self.with(node, async |server| server.log_tail()).await
    }

    /// The URLs of all nodes.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        urls.join(",")
    }

    /// As the commands connect.
    pub async fn admin(&self) -> anyhow::Result<Admin> {
        let (servers, auth) = NatsAddress::parse_urls(&self.url())?;
        let mut settings = ConnectionSettings::new(servers, auth);
        if let Some([roots, credentials]) = self.access.files.clone() {
            settings.login = Login::Credentials(credentials);
            settings.tls.roots = Roots::File(roots);
            settings.tls.required = true;
        }
        Ok(Admin::connect(&settings).await?)
    }

    pub async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        let urls: Vec<async_nats::ServerAddr> = self
            .url()
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        self.access
            .options()
            .connection_timeout(Duration::from_secs(2))
            .request_timeout(Some(Duration::from_secs(3)))
            .connect(urls)
            .await
            .context("cannot connect to the broker")
    }

    /// Copies the stores of these nodes as they are at one moment.
    pub async fn copy_stores(&self, nodes: &[usize]) -> anyhow::Result<()> {
        let paused = self.pause(nodes).await;
        for &node in nodes {
            let store = self.with(node, async |server| server.store_dir()).await;
            let copy = copy_of(&store);
            tokio::task::spawn_blocking(move || {
                let _ = std::fs::remove_dir_all(&copy);
                copy_folder(&store, &copy)
            })
            .await?
            .context("cannot copy the store")?;
        }
        drop(paused);
        Ok(())
    }

    /// Kills these nodes and starts them again on the copies that [`Broker::copy_stores`] made.
    pub async fn roll_back(&self, nodes: &[usize], away: Duration) -> anyhow::Result<()> {
        for &node in nodes {
            self.kill(node).await;
        }
        tokio::time::sleep(away).await;
        for &node in nodes {
            let store = self.with(node, async |server| server.store_dir()).await;
            std::fs::remove_dir_all(&store)?;
            std::fs::rename(copy_of(&store), &store)?;
        }
        for &node in nodes {
            self.start_again(node).await?;
        }
        Ok(())
    }
}

fn copy_of(store: &Path) -> PathBuf {
    store.with_extension("copy")
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
