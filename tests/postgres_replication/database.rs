//! A server, and how it is reached.

use std::time::Duration;

use walrelay::environment::Environment;
use walrelay::local::{LocalPostgres, PostgresOptions, ServerBinaries};
use walrelay::postgres::conninfo::{Conninfo, Host, HostPort};
use walrelay::postgres::error::ReplicationError;
use walrelay::postgres::replication::Session;
use walrelay::postgres::startup::{SessionSettings, connect};
use walrelay::secret::Secret;

/// Long enough for a loaded machine; nothing waits for it to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn server(hba: Option<&str>) -> LocalPostgres {
    let options = PostgresOptions {
        hba: hba.map(str::to_owned),
        fsync: false,
        ..Default::default()
    };
    LocalPostgres::start(&ServerBinaries::find().unwrap(), options)
        .await
        .unwrap()
}

pub(crate) fn tcp(port: u16) -> HostPort {
    HostPort {
        host: Host::Tcp("127.0.0.1".to_owned()),
        hostaddr: None,
        port,
    }
}

pub(crate) fn conninfo(server: &LocalPostgres, user: &str, password: Option<&str>) -> Conninfo {
    let text = format!(
        "host=127.0.0.1 port={} user={user} dbname=postgres connect_timeout={}",
        server.port(),
        LIMIT.as_secs()
    );
    let password = password.map(|password| Secret::from(password).into());
    let resolved = Conninfo::resolve(Some(&text), password, &Environment::default());
    resolved.unwrap().0
}

pub(crate) async fn session(conninfo: &Conninfo) -> Result<Session, ReplicationError> {
    connect(conninfo, &SessionSettings::default()).await
}
