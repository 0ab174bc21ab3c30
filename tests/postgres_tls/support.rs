//! A Postgres with TLS, and the three clients that try it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use walrelay::environment::Environment;
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};
use walrelay::postgres::client;
use walrelay::postgres::conninfo::{Conninfo, ConninfoError};
use walrelay::postgres::error::ReplicationError;
use walrelay::postgres::session::SqlError;
use walrelay::postgres::startup::{self, SessionSettings};

use crate::certificates::Pair;

/// What became of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Plain,
    Tls,
    Refused,
}

const QUERY: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// A server with these lines of pg_hba.conf, and this certificate if it is to have TLS.
pub async fn server(
    pair: Option<&Pair>,
    hba: &str,
    settings: &[(&str, &str)],
    client_authority: Option<&str>,
) -> LocalPostgres {
    let mut options = PostgresOptions {
        hba: Some(format!("local all all trust\n{hba}\n")),
        fsync: false,
        ..Default::default()
    };
    let mut set = |name: &str, value: &str| options.settings.push((name.into(), value.into()));
    if pair.is_some() {
        set("ssl", "on");
    }
    if client_authority.is_some() {
        set("ssl_ca_file", "clients.crt");
    }
    for (name, value) in settings {
        set(name, value);
    }
    if let Some(Pair { certificate, key }) = pair {
        options.files = vec![
            ("server.crt".to_owned(), certificate.clone()),
            ("server.key".to_owned(), key.clone()),
        ];
    }
    if let Some(authority) = client_authority {
        options
            .files
            .push(("clients.crt".to_owned(), authority.to_owned()));
    }
    LocalPostgres::start(&binaries(), options).await.unwrap()
}

pub fn binaries() -> ServerBinaries {
    ServerBinaries::find().unwrap().with_postgres_tls().unwrap()
}

/// A folder that is the user's home, with these files, which nobody else may read.
pub fn home(files: &[(&str, &str)]) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    home
}

/// The text of a connection string: `{home}` stands for the folder.
pub fn conninfo_text(server: &LocalPostgres, home: &Path, parameters: &str) -> String {
    format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres connect_timeout=20 {}",
        server.port(),
        parameters.replace("{home}", home.to_str().unwrap())
    )
}

pub fn conninfo(text: &str, home: &Path) -> Result<Conninfo, ConninfoError> {
    let environment = Environment::new([("HOME", home.to_str().unwrap())]);
    Conninfo::resolve(Some(text), None, &environment).map(|(conninfo, _)| conninfo)
}

/// What psql makes of it, and what it says.
pub async fn psql(text: &str, home: &Path) -> (Outcome, String) {
    let output = tokio::process::Command::new(binaries().postgres("psql"))
        .args([
            "--no-psqlrc",
            "--tuples-only",
            "--no-align",
            "-w",
            "-c",
            QUERY,
            text,
        ])
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let outcome = match (output.status.success(), output.stdout.first()) {
        (true, Some(b't')) => Outcome::Tls,
        (true, _) => Outcome::Plain,
        (false, _) => Outcome::Refused,
    };
    (outcome, said)
}

/// Plain SQL.
pub async fn sql(conninfo: &Conninfo) -> Result<Outcome, SqlError> {
    let client = client::connect(conninfo).await?;
    let row = client.query_one(QUERY, &[]).await?;
    Ok(match row.get(0) {
        true => Outcome::Tls,
        false => Outcome::Plain,
    })
}

/// Replication.
pub async fn replication(conninfo: &Conninfo) -> Result<Outcome, ReplicationError> {
    let mut session = startup::connect(conninfo, &SessionSettings::default()).await?;
    let rows = session.simple_query(QUERY).await?;
    Ok(match rows[0][0].as_deref() {
        Some("t") => Outcome::Tls,
        _ => Outcome::Plain,
    })
}
