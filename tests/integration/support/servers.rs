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
        let postgres = LocalPostgres::start(&binaries, encrypted(postgres))
            .await
            .expect("Postgres starts");
        let nats = LocalNats::start(&binaries, NatsOptions::default())
            .await
            .expect("nats-server starts");
        Servers { postgres, nats }
    }
}

pub(crate) fn binaries() -> ServerBinaries {
    let binaries = ServerBinaries::find().expect("Postgres and nats-server are there");
    match over_tls() {
        true => binaries
            .with_postgres_tls()
            .expect("scripts/servers.sh --tls"),
        false => binaries,
    }
}

/// `WALRELAY_TEST_TLS=1` runs the whole suite with a relay that connects to Postgres over TLS alone.
pub(crate) fn over_tls() -> bool {
    std::env::var_os("WALRELAY_TEST_TLS").is_some()
}

/// The same with TLS, where the suite runs over it.
pub(crate) fn encrypted(mut postgres: PostgresOptions) -> PostgresOptions {
    if over_tls() {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut file = |name: &str, content| postgres.files.push((name.to_owned(), content));
        file("server.crt", own.cert.pem());
        file("server.key", own.signing_key.serialize_pem());
        postgres.settings.push(("ssl".to_owned(), "on".to_owned()));
    }
    postgres
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
