//! Logins that change under a running relay, and the servers that a cluster tells of.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nkeys::KeyPair;
use walrelay::local::{LocalNats, LocalNatsCluster, NatsOptions};
use walrelay::nats::address::NatsAuth;
use walrelay::nats::admin::{Admin, AdminError};
use walrelay::nats::connection::{ConnectError, LaneConnection};
use walrelay::nats::login::{Login, LoginError};
use walrelay::nats::settings::ConnectionSettings;

use crate::support::{Fixture, Servers, assert_exactly_once, binaries, eventually, secure, uuid};
use crate::tls::Files;

fn nkeys(pair: &KeyPair) -> String {
    format!(
        "authorization {{ users: [{{ nkey: {} }}, {{ user: tester, password: p }}] }}\nno_auth_user: tester",
        pair.public_key()
    )
}

#[tokio::test]
async fn a_seed_that_was_rotated_counts_from_the_next_connection_on() {
    let (first, second) = (KeyPair::new_user(), KeyPair::new_user());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.nk");
    fs::write(&path, first.seed().unwrap()).unwrap();
    let options = NatsOptions {
        config_extra: nkeys(&first),
        ..NatsOptions::default()
    };
    let mut server = LocalNats::start(&binaries(), options).await.unwrap();
    let servers = vec![server.url().parse().unwrap()];
    let settings = ConnectionSettings::new(servers, Login::NkeySeed(path.clone()));
    let lane = async || LaneConnection::open(&settings, "t", &[]).await;
    lane().await.unwrap();
    let admin = Admin::connect(&settings).await.unwrap();
    server.reload(nkeys(&second)).await.unwrap();
    let Err(AdminError::Auth { what_to_check, .. }) = Admin::connect(&settings).await else {
        panic!("the key is no user's");
    };
    let Err(ConnectError::Auth { text, .. }) = lane().await else {
        panic!("the key is no user's");
    };
    assert!(text.ends_with(&what_to_check), "{text}");
    // What is to be put there, put there.
    let (_, user) = what_to_check.split_once("put ").expect("a remedy");
    let (user, _) = user.split_once(" into authorization.users").unwrap();
    let mended = nkeys(&second).replace("{ user: tester", &format!("{user}, {{ user: tester"));
    server.reload(mended).await.unwrap();
    lane().await.unwrap();
    server.reload(nkeys(&second)).await.unwrap();
    assert!(matches!(lane().await, Err(ConnectError::Auth { .. })));
    fs::write(&path, second.seed().unwrap()).unwrap();
    lane().await.unwrap();
    // The same client, which the reload has thrown out.
    eventually("the client is back", async || {
        admin.client().flush().await.ok()
    })
    .await;
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        lane().await,
        Err(ConnectError::Login(LoginError::File { .. }))
    ));
    assert!(matches!(
        Admin::connect(&settings).await,
        Err(AdminError::Login(LoginError::File { .. }))
    ));
}

#[tokio::test]
async fn a_running_relay_waits_for_the_rotated_password() {
    let users = |password: &str| {
        format!(
            "authorization {{ users: [{{ user: relay, password: {password} }}, {{ user: tester, password: p }}] }}\nno_auth_user: tester"
        )
    };
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    nats.reload(users("first")).await.unwrap();
    nats.start_again().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, "first\n").unwrap();
    fixture.nats = async_nats::connect(fixture.servers().nats.url())
        .await
        .unwrap();
    fixture.set("WALRELAY_NATS_USER", "relay");
    fixture.set("WALRELAY_NATS_PASSWORD_FILE", path.display().to_string());
    fixture.setup().await;
    let mut relay = fixture.run();
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    fixture
        .own_servers()
        .nats
        .reload(users("second"))
        .await
        .unwrap();
    relay.logs("refused the credentials").await;
    assert!(relay.runs());
    fs::write(&path, "second\n").unwrap();
    fixture.insert(6, 10).await;
    fixture.holds(10).await;
    let log = relay.log();
    assert_eq!(log.matches("refused the credentials").count(), 1, "{log}");
    assert!(
        !log.contains("second") && !log.contains("password: first"),
        "{log}"
    );
    relay.stop().await;
}

/// The server ends the connection at that moment, and lets nobody in with the same JWT.
#[tokio::test]
async fn a_running_relay_waits_for_the_successor_of_an_expired_jwt() {
    let mut fixture = Fixture::bare_on(Servers::with_logins_of_nats().await).await;
    let [roots, lasting] = secure::files(&fixture.servers().nats);
    fixture.set("WALRELAY_NATS_TLS_CA", roots.display().to_string());
    fixture.set("WALRELAY_NATS_CREDENTIALS", lasting.display().to_string());
    fixture.setup().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.creds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Long enough for the start on a busy machine.
    fs::write(&path, secure::credentials_until(now.as_secs() + 8)).unwrap();
    fixture.set("WALRELAY_NATS_CREDENTIALS", path.display().to_string());
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5).await;
    fixture.holds(5).await;
    relay.logs("refused the credentials").await;
    assert!(relay.runs());
    // In one step: half a file is refused too.
    let whole = folder.path().join("successor.creds");
    fs::copy(&lasting, &whole).unwrap();
    fs::rename(&whole, &path).unwrap();
    fixture.insert(6, 10).await;
    fixture.holds(10).await;
    let log = relay.log();
    assert_eq!(log.matches("refused the credentials").count(), 1, "{log}");
    let told = format!("the JWT in {} expired at ", path.display());
    assert!(log.contains(&told), "{log}");
    relay.stop().await;
    let ids: Vec<_> = (1..=10).map(uuid).collect();
    assert_exactly_once(&ids, &fixture.stored_ids().await);
    // The commands say the same.
    fs::write(&path, secure::credentials_until(now.as_secs() - 60)).unwrap();
    let refused = fixture.walrelay(&["position"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(&told), "{}", refused.stderr);
}

#[tokio::test]
async fn the_servers_that_a_cluster_tells_of_are_tried_too() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3).await.unwrap();
    let first = cluster.nodes()[0].url().parse().unwrap();
    let settings = ConnectionSettings::new(vec![first], NatsAuth::None);
    let advertised = eventually("all nodes are told of", async || {
        let lane = LaneConnection::open(&settings, "t", &[]).await.ok()?;
        Some(lane.advertised()).filter(|told| told.len() == 3)
    })
    .await;
    cluster.node(0).kill();
    let alone = LaneConnection::open(&settings, "t", &[]).await;
    assert!(matches!(alone, Err(ConnectError::Unreachable { .. })));
    let lane = LaneConnection::open(&settings, "t", &advertised)
        .await
        .unwrap();
    assert_ne!(lane.server(), &settings.servers[0]);
}

/// TLS with a client's certificate, credentials and an inbox of one's own, through the whole program.
#[tokio::test]
async fn the_whole_program_over_tls_with_a_login() {
    let files = Files::new();
    let pair = KeyPair::new_user();
    let seed = files.path("user.nk");
    fs::write(&seed, pair.seed().unwrap()).unwrap();
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    let permissions = format!(
        "permissions: {{ publish: \">\", subscribe: [\"mine.>\", \"{}.>\"] }}",
        fixture.name
    );
    let nats = &mut fixture.own_servers().nats;
    nats.stop().await.unwrap();
    let users = format!(
        "authorization {{ users: [{{ nkey: {}, {permissions} }}] }}",
        pair.public_key()
    );
    let text = format!("{users}\n{}", files.server("server", "verify: true"));
    nats.reload(text).await.unwrap();
    nats.start_again().await.unwrap();
    let port = nats.port();
    fixture.set("WALRELAY_NATS_URL", format!("tls://localhost:{port}"));
    for (key, file) in [
        ("WALRELAY_NATS_TLS_CA", "ca.crt"),
        ("WALRELAY_NATS_TLS_CERT", "client.crt"),
        ("WALRELAY_NATS_TLS_KEY", "client.key"),
        ("WALRELAY_NATS_NKEY_SEED", "user.nk"),
    ] {
        fixture.set(key, files.path(file).display().to_string());
    }
    fixture.set("WALRELAY_NATS_INBOX_PREFIX", "mine");
    fixture.setup().await;
    let mut relay = fixture.run();
    relay.streams().await;
    fixture.insert(1, 5_000).await;
    let verified = eventually("all are there", async || {
        let output = fixture.walrelay(&["verify"]).await;
        (output.code == Some(0)).then_some(output)
    })
    .await;
    assert!(verified.stdout.contains("5000"), "{verified:?}");
    let tail = ["tail", "--since", "all", "--count", "1"];
    fixture.walrelay(&tail).await.success();
    relay.stop().await;
}
