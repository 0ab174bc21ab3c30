//! The relay's ways into Postgres: TCP and Unix sockets, trust, cleartext, md5 and SCRAM-SHA-256.

use walrelay::local::{Authentication, LocalNats, NatsOptions, PasswordMethod, PostgresOptions};

use crate::support::{Fixture, Servers, assert_exactly_once, binaries, uuid};

const PASSWORD: &str = "p@ss: wörd/100%";

/// Streams a few events.
async fn works(fixture: &mut Fixture, first: u64) {
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(first, first + 2).await;
    fixture.holds(first + 2).await;
    relay.stop().await;
    let expected: Vec<_> = (1..=first + 2).map(uuid).collect();
    assert_exactly_once(&expected, &fixture.stored_ids().await);
}

async fn with_password(method: PasswordMethod, hba: Option<&str>) -> Fixture {
    let options = PostgresOptions {
        authentication: Authentication::Password {
            method,
            password: PASSWORD.to_owned(),
        },
        hba: hba.map(str::to_owned),
        fsync: false,
        ..PostgresOptions::default()
    };
    let fixture = Fixture::bare_on(Servers::with(options).await).await;
    fixture.setup().await;
    fixture
}

#[tokio::test]
async fn scram() {
    works(
        &mut with_password(PasswordMethod::ScramSha256, None).await,
        1,
    )
    .await;
}

#[tokio::test]
async fn md5() {
    works(&mut with_password(PasswordMethod::Md5, None).await, 1).await;
}

#[tokio::test]
async fn cleartext_password() {
    let hba = "host all all 127.0.0.1/32 password\nhost replication all 127.0.0.1/32 password\n";
    works(
        &mut with_password(PasswordMethod::ScramSha256, Some(hba)).await,
        1,
    )
    .await;
}

#[tokio::test]
async fn a_password_from_the_environment_or_a_file() {
    let mut fixture = with_password(PasswordMethod::ScramSha256, None).await;
    let port = fixture.servers().postgres.port();
    let url = format!(
        "host=127.0.0.1 port={port} user=postgres dbname={}",
        fixture.name
    );
    fixture.set("WALRELAY_POSTGRES_URL", url);
    fixture.set("PGPASSWORD", PASSWORD);
    works(&mut fixture, 1).await;
    fixture.unset("PGPASSWORD");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    fixture.set("WALRELAY_POSTGRES_PASSWORD_FILE", file.to_str().unwrap());
    works(&mut fixture, 4).await;
}

/// As while they are changed on one server of a cluster after the other.
#[tokio::test]
async fn one_of_the_nats_servers_refuses_the_credentials() {
    let options = NatsOptions {
        config_extra: "authorization { user: other, password: another }".to_owned(),
        ..NatsOptions::default()
    };
    let refusing = LocalNats::start(&binaries(), options).await.unwrap();
    let mut fixture = Fixture::new().await;
    let taking = fixture.servers().nats.url();
    for (servers, first) in [
        ([refusing.url(), taking.clone()], 1),
        ([taking, refusing.url()], 4),
    ] {
        fixture.set("WALRELAY_NATS_URL", servers.join(","));
        for _ in 0..4 {
            fixture.walrelay(&["position"]).await.success();
        }
        works(&mut fixture, first).await;
    }
    fixture.set("WALRELAY_NATS_URL", refusing.url());
    for command in ["position", "run"] {
        let output = fixture.walrelay(&[command]).await;
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        let said = output
            .stderr
            .lines()
            .filter(|line| line.contains("refused the credentials"));
        assert_eq!(said.count(), 1, "{}", output.stderr);
        assert!(!output.stderr.contains("async_nats"), "{}", output.stderr);
    }
}

#[tokio::test]
async fn a_unix_socket() {
    let mut fixture = Fixture::new().await;
    let postgres = &fixture.servers().postgres;
    let (folder, port) = (postgres.socket_dir().display().to_string(), postgres.port());
    let name = fixture.name.clone();
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        format!("host={folder} port={port} user=postgres dbname={name}"),
    );
    works(&mut fixture, 1).await;

    // As libpq has them in the environment.
    fixture.unset("WALRELAY_POSTGRES_URL");
    fixture.set("PGHOST", folder);
    fixture.set("PGPORT", port.to_string());
    fixture.set("PGUSER", "postgres");
    fixture.set("PGDATABASE", name);
    works(&mut fixture, 4).await;
}
