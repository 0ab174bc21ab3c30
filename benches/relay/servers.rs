//! One Postgres and one nats-server for the whole run, and connections to them.

use std::path::PathBuf;

use anyhow::Context as _;
use async_nats::jetstream;
use tempfile::TempDir;
use tokio_postgres::Client;
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};

/// Servers as they are by default, durability included; only WAL may grow further before a checkpoint.
pub struct Servers {
    pub postgres: LocalPostgres,
    pub nats: LocalNats,
    pub jetstream: jetstream::Context,
    pub folder: TempDir,
}

/// Beside wal_level and the like, which the local servers set.
pub const SETTINGS: [(&str, &str); 2] = [("max_wal_size", "8GB"), ("checkpoint_timeout", "30min")];

const CERTIFICATE: &str = "server.crt";

impl Servers {
    pub async fn start() -> anyhow::Result<Servers> {
        let (postgres, nats) = (PostgresOptions::default(), NatsOptions::default());
        Servers::start_as(ServerBinaries::find()?, postgres, nats).await
    }

    /// The same with TLS on both sides for those who ask for it.
    pub async fn start_with_tls() -> anyhow::Result<Servers> {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let own = rcgen::generate_simple_self_signed(names)?;
        let files = vec![
            (CERTIFICATE.to_owned(), own.cert.pem()),
            ("server.key".to_owned(), own.signing_key.serialize_pem()),
        ];
        let postgres = PostgresOptions {
            settings: vec![("ssl".to_owned(), "on".to_owned())],
            files: files.clone(),
            ..PostgresOptions::default()
        };
        let tls = format!("cert_file: \"{CERTIFICATE}\", key_file: \"server.key\"");
        let nats = NatsOptions {
            config_extra: format!("tls {{ {tls} }}\nallow_non_tls: true"),
            files,
            ..NatsOptions::default()
        };
        let binaries = ServerBinaries::find()?.with_postgres_tls()?;
        Servers::start_as(binaries, postgres, nats).await
    }

    /// The certificate of those with TLS, signed by itself.
    pub fn certificate(&self) -> PathBuf {
        self.nats.file(CERTIFICATE)
    }

    async fn start_as(
        binaries: ServerBinaries,
        mut options: PostgresOptions,
        nats: NatsOptions,
    ) -> anyhow::Result<Servers> {
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        options.settings.extend(settings);
        let postgres = LocalPostgres::start(&binaries, options).await?;
        let nats = LocalNats::start(&binaries, nats).await?;
        let client = async_nats::connect(nats.url())
            .await
            .context("connect to nats-server")?;
        Ok(Servers {
            postgres,
            nats,
            jetstream: jetstream::new(client),
            folder: TempDir::new()?,
        })
    }

    /// The first column of the first row, as text.
    pub async fn text(client: &Client, sql: &str) -> anyhow::Result<String> {
        use tokio_postgres::SimpleQueryMessage::Row;
        let answer = client.simple_query(sql).await?;
        let row = answer.iter().find_map(|message| match message {
            Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.with_context(|| format!("no answer to {sql}"))
    }
}
