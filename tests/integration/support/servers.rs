//! Postgres and NATS: shared by the whole binary, or a test's own where it kills, stops or configures them.

use tokio::sync::OnceCell;
use walrelay::local::{
    Authentication, LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries,
};

use super::secure;

/// One server of each kind.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) postgres: LocalPostgres,
    pub(crate) nats: LocalNats,
    /// The superuser's login over TLS is bound to the channel.
    pub(super) binds: bool,
    /// NATS takes nothing but TLS and a JWT.
    pub(super) has_logins_of_nats: bool,
}

/// Never dropped; the servers' own watchdogs end them with this process.
static SHARED: OnceCell<Servers> = OnceCell::const_new();

impl Servers {
    /// The servers that all tests share.
    pub(crate) async fn shared() -> &'static Servers {
        SHARED.get_or_init(Servers::own).await
    }

    /// New ones.
    pub(crate) async fn own() -> Servers {
        Servers::with(options(&[])).await
    }

    /// New ones, with this Postgres.
    pub(crate) async fn with(postgres: PostgresOptions) -> Servers {
        Servers::of(binaries(), postgres).await
    }

    /// New ones, whose NATS takes nothing but TLS and a JWT.
    #[allow(dead_code)] // The tests of logins use it.
    pub(crate) async fn with_logins_of_nats() -> Servers {
        let mut servers = Servers::own().await;
        let mut options = NatsOptions::default();
        secure::nats(&mut options);
        let nats = LocalNats::start(&binaries(), options).await;
        servers.nats = nats.expect("nats-server starts");
        servers.has_logins_of_nats = true;
        servers
    }

    /// Kills the NATS server, or has it stop in good order, and starts it again.
    pub(crate) async fn restart_nats(&mut self, kill: bool) {
        match kill {
            true => self.nats.kill(),
            false => drop(self.nats.stop().await.expect("it stops")),
        }
        self.nats.start_again().await.expect("it starts again");
    }

    /// New ones of these programs.
    pub(crate) async fn of(binaries: ServerBinaries, postgres: PostgresOptions) -> Servers {
        let binds = secure::is_wanted() && !has_logins(&postgres);
        let postgres = start_postgres(&binaries, postgres).await;
        let mut options = NatsOptions::default();
        if secure::is_wanted() {
            secure::nats(&mut options);
        }
        let nats = LocalNats::start(&binaries, options)
            .await
            .expect("nats-server starts");
        Servers {
            postgres,
            nats,
            binds,
            has_logins_of_nats: secure::is_wanted(),
        }
    }
}

/// A Postgres; secure where the suite is to be, unless the options have logins of their own.
pub(crate) async fn start_postgres(
    binaries: &ServerBinaries,
    mut options: PostgresOptions,
) -> LocalPostgres {
    let wanted = secure::is_wanted();
    let has_logins = has_logins(&options);
    if wanted {
        secure::postgres(&mut options, !has_logins);
    }
    let server = LocalPostgres::start(binaries, options).await;
    let server = server.expect("Postgres starts");
    if wanted && !has_logins {
        secure::set_password(&server).await;
    }
    server
}

fn has_logins(options: &PostgresOptions) -> bool {
    options.hba.is_some() || options.authentication != Authentication::Trust
}

pub(crate) fn binaries() -> ServerBinaries {
    let binaries = ServerBinaries::find().expect("Postgres and nats-server are there");
    match secure::is_wanted() {
        true => binaries
            .with_postgres_tls()
            .expect("scripts/servers.sh --tls"),
        false => binaries,
    }
}

/// Options of a Postgres with these settings; without fsync, since no test here pulls the plug.
pub(crate) fn options(settings: &[(&str, &str)]) -> PostgresOptions {
    PostgresOptions {
        settings: settings
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        fsync: false,
        ..PostgresOptions::default()
    }
}
