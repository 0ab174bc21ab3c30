//! Postgres and NATS: shared by the whole binary, or a test's own where it kills, stops or configures them.

use tokio::sync::OnceCell;
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions, ServerBinaries};

/// One server of each kind.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) postgres: LocalPostgres,
    pub(crate) nats: LocalNats,
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

    /// New ones of these programs.
    pub(crate) async fn of(binaries: ServerBinaries, postgres: PostgresOptions) -> Servers {
        let postgres = LocalPostgres::start(&binaries, postgres)
            .await
            .expect("Postgres starts");
        let nats = LocalNats::start(&binaries, NatsOptions::default())
            .await
            .expect("nats-server starts");
        Servers { postgres, nats }
    }
}

pub(crate) fn binaries() -> ServerBinaries {
    ServerBinaries::find().expect("Postgres and nats-server are there")
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
