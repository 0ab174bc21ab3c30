//! Passwords that change while walrelay runs, and the private key's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use walrelay::environment::Environment;
use walrelay::local::{Authentication, LocalPostgres, PasswordMethod, PostgresOptions};
use walrelay::postgres::conninfo::{Conninfo, PasswordCommand, PasswordSource};
use walrelay::postgres::error::ConnectError;
use walrelay::postgres::session::SqlError;
use walrelay::tls::TlsError;

use crate::certificates::SERVER;
use crate::support::{
    Outcome, binaries, conninfo, conninfo_text, home, psql, replication, server, sql,
};

async fn password_server() -> LocalPostgres {
    let options = PostgresOptions {
        authentication: Authentication::Password {
            method: PasswordMethod::ScramSha256,
            password: "first".to_owned(),
        },
        fsync: false,
        ..Default::default()
    };
    LocalPostgres::start(&binaries(), options).await.unwrap()
}

fn with(server: &LocalPostgres, source: PasswordSource) -> Conninfo {
    let text = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        server.port()
    );
    Conninfo::resolve(Some(&text), Some(source), &Environment::default())
        .unwrap()
        .0
}

fn command(words: &[&str]) -> PasswordSource {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    PasswordSource::Command(PasswordCommand::new(words).unwrap())
}

#[tokio::test]
async fn a_changed_password_counts_from_the_next_connect_on() {
    let server = password_server().await;
    let home = home(&[("password", "first\n"), (".pgpass", "*:*:*:*:first\n")]);
    let file = home.path().join("password");
    let conninfos = [
        with(&server, command(&["cat", file.to_str().unwrap()])),
        with(&server, PasswordSource::File(file.clone())),
        with(
            &server,
            PasswordSource::PasswordFile(home.path().join(".pgpass")),
        ),
    ];
    for conninfo in &conninfos {
        assert_eq!(sql(conninfo).await.unwrap(), Outcome::Plain);
        assert_eq!(replication(conninfo).await.unwrap(), Outcome::Plain);
    }
    let admin = server.connect("postgres").await.unwrap();
    let change = "ALTER ROLE postgres PASSWORD 'second'";
    admin.batch_execute(change).await.unwrap();
    let origins = [
        "postgres.password_command".to_owned(),
        format!("the file {}", file.display()),
        format!(
            "the password file {}",
            home.path().join(".pgpass").display()
        ),
    ];
    for (conninfo, origin) in conninfos.iter().zip(origins) {
        let error = sql(conninfo).await.unwrap_err();
        assert_eq!(error.code(), Some("28P01"), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("the password came from {origin}")),
            "{text}"
        );
        assert!(
            !text.contains("PGPASSWORD") && !text.contains("first"),
            "{text}"
        );
    }
    fs::write(&file, "second").unwrap();
    fs::write(home.path().join(".pgpass"), "*:*:*:*:second\n").unwrap();
    for conninfo in &conninfos {
        assert_eq!(sql(conninfo).await.unwrap(), Outcome::Plain);
        assert_eq!(replication(conninfo).await.unwrap(), Outcome::Plain);
    }
}

#[tokio::test]
async fn a_slow_command_is_no_silence_of_the_server() {
    let server = password_server().await;
    // Longer than a look at a server process may take, and a statement that is looked at meanwhile.
    let conninfo = with(&server, command(&["sh", "-c", "sleep 6; echo first"]));
    let client = walrelay::postgres::client::connect(&conninfo)
        .await
        .unwrap();
    let row = client.query_one("SELECT pg_sleep(9)::text", &[]).await;
    assert!(row.is_ok(), "{row:?}");
}

/// What it has started may live on with its output.
#[tokio::test]
async fn a_command_has_ended_when_it_has() {
    let server = password_server().await;
    let conninfo = with(&server, command(&["sh", "-c", "echo first; sleep 20 &"]));
    assert_eq!(sql(&conninfo).await.unwrap(), Outcome::Plain);
}

#[tokio::test]
async fn a_command_that_fails_is_told_without_what_it_prints() {
    let server = password_server().await;
    let script = "echo hunter2; echo hunter2 >&2; exit 3";
    for (words, is_transient, said) in [
        (
            &["sh", "-c", script][..],
            true,
            "`sh` has failed (exit status: 3)",
        ),
        (&["true"], true, "holds no password"),
        (&["yes", "hunter2"], true, "prints more than 65536 bytes"),
        (&["/no/such/program", "hunter2"], false, "by its full path"),
    ] {
        let conninfo = with(&server, command(words));
        let error = sql(&conninfo).await.unwrap_err();
        let text = format!("{error} {error:?} {conninfo:?}");
        assert!(text.contains(said) && !text.contains("hunter2"), "{text}");
        assert_eq!(error.is_transient(), is_transient, "{text}");
        assert!(matches!(
            error,
            SqlError::Connect(ConnectError::Password(_))
        ));
        let error = replication(&conninfo).await.unwrap_err();
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
}

#[tokio::test]
async fn a_private_key_that_others_may_read_is_refused() {
    let pair = SERVER.self_signed();
    let server = server(Some(&pair), "host all all 127.0.0.1/32 trust", &[], None).await;
    let own = SERVER.self_signed();
    let home = home(&[("own.crt", &own.certificate), ("own.key", &own.key)]);
    let key = home.path().join("own.key");
    let parameters = "sslmode=require sslcert={home}/own.crt sslkey={home}/own.key";
    let text = conninfo_text(&server, home.path(), parameters);
    // Without sslkey it is libpq's own file that is wanted, and not there.
    let without = text.split(" sslkey=").next().unwrap();
    let (by_psql, said) = psql(without, home.path()).await;
    assert_eq!(by_psql, Outcome::Refused, "{said}");
    let error = sql(&conninfo(without, home.path()).unwrap())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("postgresql.key"), "{error}");
    let conninfo = conninfo(&text, home.path()).unwrap();
    for mode in [0o644, 0o602] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let (by_psql, said) = psql(&text, home.path()).await;
        assert_eq!(by_psql, Outcome::Refused, "{said}");
        let error = sql(&conninfo).await.unwrap_err();
        assert!(
            matches!(&error, SqlError::Connect(ConnectError::Tls(TlsError::KeyMode { path })) if *path == key)
        );
        // The remedy that it prints.
        assert!(
            error
                .to_string()
                .contains(&format!("run chmod 0600 {}", key.display()))
        );
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(psql(&text, home.path()).await.0, Outcome::Tls);
    assert_eq!(sql(&conninfo).await.unwrap(), Outcome::Tls);
    assert_eq!(replication(&conninfo).await.unwrap(), Outcome::Tls);
}
