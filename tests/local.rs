//! The local servers that every other test stands on: started, stopped, killed, started again, and gone when dropped.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walrelay::local::{
    Authentication, LocalError, LocalNats, LocalNatsCluster, LocalPostgres, Mode, NatsOptions,
    PasswordMethod, PostgresOptions, ServerBinaries,
};

fn binaries() -> ServerBinaries {
    ServerBinaries::find().expect("the servers are there: run scripts/servers.sh")
}

async fn count(postgres: &LocalPostgres) -> i64 {
    let client = postgres.connect("postgres").await.expect("connects");
    client
        .query_one("select count(*) from kept", &[])
        .await
        .expect("counts")
        .get(0)
}

async fn setting(postgres: &LocalPostgres, name: &str) -> String {
    let client = postgres.connect("postgres").await.expect("connects");
    client
        .query_one("select current_setting($1)", &[&name])
        .await
        .expect("has the setting")
        .get(0)
}

async fn system_identifier(postgres: &LocalPostgres) -> i64 {
    let client = postgres.connect("postgres").await.expect("connects");
    let row = client
        .query_one("select system_identifier from pg_control_system()", &[])
        .await;
    row.expect("tells its identifier").get(0)
}

/// Whether a process with that pid is there and not a zombie.
fn alive(pid: u32) -> bool {
    let output = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .expect("runs ps");
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}

#[tokio::test]
async fn postgres_keeps_its_data_over_stop_and_kill() {
    let mut postgres = LocalPostgres::start(&binaries(), PostgresOptions::default())
        .await
        .expect("starts");
    let (port, pid) = (postgres.port(), postgres.pid());
    let client = postgres.connect("postgres").await.expect("connects");
    client
        .batch_execute("create table kept (n int); insert into kept values (1)")
        .await
        .expect("writes");
    assert_eq!(setting(&postgres, "wal_level").await, "logical");
    assert_eq!(setting(&postgres, "fsync").await, "on");
    assert!(
        postgres.socket_dir().as_os_str().len() < 80,
        "a socket's path must stay below 103 bytes"
    );
    assert!(
        postgres
            .socket_dir()
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    );

    let took = postgres.stop(Mode::Fast).await.expect("stops");
    assert!(took > Duration::ZERO);
    assert_eq!(postgres.pid(), None);
    assert!(
        client.query_one("select 1", &[]).await.is_err(),
        "a fast stop disconnects"
    );
    postgres.start_again().await.expect("starts again");
    assert_eq!(postgres.port(), port);
    assert_ne!(postgres.pid(), pid);
    assert_eq!(count(&postgres).await, 1);

    let client = postgres.connect("postgres").await.expect("connects");
    client
        .batch_execute("insert into kept values (2)")
        .await
        .expect("writes");
    postgres.kill();
    assert!(
        client.query_one("select 1", &[]).await.is_err(),
        "a kill disconnects"
    );
    postgres.start_again().await.expect("recovers");
    assert_eq!(count(&postgres).await, 2);
    assert!(postgres.log_tail().contains("ready to accept connections"));

    postgres.stop(Mode::Immediate).await.expect("stops");
    postgres.start_again().await.expect("recovers");
    assert_eq!(count(&postgres).await, 2);
}

#[tokio::test]
async fn a_smart_stop_waits_for_its_clients() {
    let mut postgres = LocalPostgres::start(&binaries(), PostgresOptions::default())
        .await
        .expect("starts");
    let client = postgres.connect("postgres").await.expect("connects");
    let stopped = postgres
        .stop_within(Mode::Smart, Duration::from_millis(300))
        .await;
    assert!(
        matches!(stopped, Err(LocalError::Stop { .. })),
        "{stopped:?}"
    );
    assert!(
        client.query_one("select 1", &[]).await.is_ok(),
        "the client is still served"
    );
    drop(client);
    postgres
        .stop(Mode::Smart)
        .await
        .expect("stops when the client has left");
}

#[tokio::test]
async fn postgres_takes_settings_passwords_and_an_identity() {
    for method in [PasswordMethod::ScramSha256, PasswordMethod::Md5] {
        let options = PostgresOptions {
            settings: vec![
                ("application_name".into(), r"it's a \ test".into()),
                ("max_slot_wal_keep_size".into(), "64MB".into()),
            ],
            authentication: Authentication::Password {
                method,
                password: "p@ss w/örd".into(),
            },
            ..PostgresOptions::default()
        };
        let postgres = LocalPostgres::start(&binaries(), options)
            .await
            .expect("starts");
        assert_eq!(setting(&postgres, "max_slot_wal_keep_size").await, "64MB");
        assert_eq!(
            setting(&postgres, "application_name").await,
            r"it's a \ test"
        );
        let wrong = postgres.url("postgres").replace("p%40ss", "other");
        assert!(
            tokio_postgres::connect(&wrong, tokio_postgres::NoTls)
                .await
                .is_err(),
            "a wrong password is refused"
        );
    }
    let copy = LocalPostgres::start(&binaries(), PostgresOptions::default())
        .await
        .expect("starts");
    let other_copy = LocalPostgres::start(&binaries(), PostgresOptions::default())
        .await
        .expect("starts");
    let options = PostgresOptions {
        own_identity: true,
        ..PostgresOptions::default()
    };
    let own = LocalPostgres::start(&binaries(), options)
        .await
        .expect("starts");
    assert_eq!(
        system_identifier(&copy).await,
        system_identifier(&other_copy).await
    );
    assert_ne!(
        system_identifier(&copy).await,
        system_identifier(&own).await
    );
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why_in_its_log() {
    let options = PostgresOptions {
        settings: vec![("no_such_setting".into(), "1".into())],
        ..PostgresOptions::default()
    };
    match LocalPostgres::start(&binaries(), options).await {
        Err(LocalError::Start { log, .. }) => assert!(log.contains("no_such_setting"), "{log}"),
        other => panic!("{other:?}"),
    }
    let options = NatsOptions {
        config_extra: "no_such_key: {".into(),
        ..NatsOptions::default()
    };
    match LocalNats::start(&binaries(), options).await {
        Err(LocalError::Start { log, .. }) => assert!(!log.is_empty()),
        other => panic!("{other:?}"),
    }
}

async fn jetstream(url: &str) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(url).await.expect("connects"))
}

#[tokio::test]
async fn nats_keeps_its_stream_over_stop_and_kill() {
    let mut nats = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("starts");
    let port = nats.port();
    let config = || async_nats::jetstream::stream::Config {
        name: "KEPT".into(),
        subjects: vec!["kept".into()],
        ..Default::default()
    };
    let context = jetstream(&nats.url()).await;
    context
        .create_stream(config())
        .await
        .expect("makes the stream");
    context
        .publish("kept", "1".into())
        .await
        .expect("sends")
        .await
        .expect("is stored");

    nats.stop().await.expect("stops");
    nats.start_again().await.expect("starts again");
    assert_eq!(nats.port(), port);
    let context = jetstream(&nats.url()).await;
    context
        .publish("kept", "2".into())
        .await
        .expect("sends")
        .await
        .expect("is stored");

    nats.kill();
    assert_eq!(nats.pid(), None);
    nats.start_again().await.expect("starts again");
    let context = jetstream(&nats.url()).await;
    let stream = context.get_stream("KEPT").await.expect("is still there");
    assert_eq!(stream.cached_info().state.messages, 2);
    assert!(nats.store_dir().is_dir());

    nats.pause();
    let silent = tokio::time::timeout(Duration::from_millis(200), context.get_stream("KEPT")).await;
    assert!(silent.is_err(), "a paused server is silent");
    nats.resume();
    context.get_stream("KEPT").await.expect("answers again");
}

#[tokio::test]
async fn nats_reads_its_configuration_again() {
    let mut nats = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("starts");
    async_nats::connect(nats.url()).await.expect("connects");
    nats.reload("authorization { token: secret }".into())
        .await
        .expect("writes its configuration");
    let begin = Instant::now();
    while async_nats::connect(nats.url()).await.is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(60), "still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    async_nats::ConnectOptions::with_token("secret".into())
        .connect(nats.url())
        .await
        .expect("connects with the token");
    nats.kill();
    nats.start_again().await.expect("starts again");
    let refused = async_nats::connect(nats.url()).await;
    assert!(refused.is_err(), "what was reloaded lasts");
}

#[test]
fn a_postgres_that_was_not_fetched_is_missing() {
    let found = binaries().with_postgres_major(9);
    assert!(
        matches!(found, Err(LocalError::Missing { .. })),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_cluster_elects_and_elects_again() {
    let mut cluster = LocalNatsCluster::start(&binaries(), 3)
        .await
        .expect("elects");
    let leader = cluster.leader().await.expect("has a leader");
    let context = jetstream(&cluster.nodes()[(leader + 1) % 3].url()).await;
    let config = async_nats::jetstream::stream::Config {
        name: "REPLICATED".into(),
        subjects: vec!["replicated".into()],
        num_replicas: 3,
        ..Default::default()
    };
    context
        .create_stream(config)
        .await
        .expect("makes the stream");
    // The node that we talk to may hear of the stream's subjects a moment later: "no responders" till then.
    let begin = Instant::now();
    while let Err(error) = context
        .publish("replicated", "1".into())
        .await
        .expect("sends")
        .await
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    cluster.node(leader).kill();
    let next = cluster.wait_for_leader().await.expect("elects again");
    assert_ne!(next, leader);
    cluster
        .node(leader)
        .start_again()
        .await
        .expect("comes back");
    cluster.wait_for_leader().await.expect("agrees again");
}

/// Both servers; the one of NATS does not hear when it is told to end.
async fn both_with_nats_paused() -> (LocalPostgres, LocalNats) {
    let postgres = LocalPostgres::start(&binaries(), PostgresOptions::default())
        .await
        .expect("starts");
    let mut nats = LocalNats::start(&binaries(), NatsOptions::default())
        .await
        .expect("starts");
    nats.pause();
    (postgres, nats)
}

#[tokio::test]
async fn a_drop_leaves_nothing_also_in_a_panic() {
    let (postgres, nats) = both_with_nats_paused().await;
    let pids = [postgres.pid().expect("runs"), nats.pid().expect("runs")];
    let folders = [
        postgres.socket_dir().to_owned(),
        nats.store_dir().parent().expect("has a folder").to_owned(),
    ];
    let panicked = tokio::spawn(async move {
        let _servers = (postgres, nats);
        panic!("on purpose");
    });
    assert!(panicked.await.is_err());
    assert!(!pids.into_iter().any(alive), "the servers are gone");
    assert!(
        !folders.iter().any(|folder| folder.exists()),
        "their folders are gone"
    );
}

/// Set for the child alone, so that a run of all ignored tests does not wait for ever.
const OWNER: &str = "LOCAL_TEST_OWNER";

/// The part of the next test that is killed: starts both servers, says where they are, and waits for its end.
#[tokio::test]
#[ignore = "runs as a child of a_killed_owner_takes_its_servers_along"]
async fn owner_that_is_killed() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let (postgres, nats) = both_with_nats_paused().await;
    let (postgres_pid, nats_pid) = (postgres.pid().expect("runs"), nats.pid().expect("runs"));
    println!("\nowned {postgres_pid} {}", postgres.socket_dir().display());
    println!(
        "owned {nats_pid} {}",
        nats.store_dir().parent().expect("has a folder").display()
    );
    println!("owned all");
    std::future::pending::<()>().await;
}

#[test]
fn a_killed_owner_takes_its_servers_along() {
    use std::io::{BufRead, BufReader};

    let mut owner = Command::new(std::env::current_exe().expect("this test's executable"))
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "owner_that_is_killed",
        ])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts itself");
    let lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
    let mut owned = Vec::new();
    for line in lines.map(|line| line.expect("is text")) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["owned", "all"] => break,
            ["owned", pid, folder] => {
                owned.push((pid.parse::<u32>().expect("a pid"), folder.to_owned()))
            }
            _ => {}
        }
    }
    assert_eq!(owned.len(), 2, "the owner told both servers");
    assert!(
        owned
            .iter()
            .all(|(pid, folder)| alive(*pid) && Path::new(folder).exists())
    );

    owner.kill().expect("SIGKILL");
    owner.wait().expect("is reaped");
    let begin = Instant::now();
    while owned
        .iter()
        .any(|(pid, folder)| alive(*pid) || Path::new(folder).exists())
    {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "still there: {owned:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
