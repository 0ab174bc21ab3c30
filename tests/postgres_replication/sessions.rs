//! Finding the server, and authentication.

use std::time::Duration;

use walrelay::postgres::client;
use walrelay::postgres::conninfo::{Conninfo, Host, HostPort, TargetSessionAttrs};
use walrelay::postgres::error::{AuthenticationError, ReplicationError};

use crate::database::{conninfo, server, session, tcp};

#[tokio::test]
async fn passes_over_a_server_of_the_wrong_kind() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);
    let writable = Conninfo {
        target_session_attrs: TargetSessionAttrs::ReadWrite,
        ..there.clone()
    };
    session(&writable).await.unwrap();
    let read_only = Conninfo {
        target_session_attrs: TargetSessionAttrs::ReadOnly,
        ..there
    };
    let error = session(&read_only).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Connect { .. }) && error.is_transient());
}

#[tokio::test]
async fn authenticates_by_every_method() {
    let hba = "local all all trust
               host all postgres 127.0.0.1/32 trust
               host all clear 127.0.0.1/32 password
               host all hashed 127.0.0.1/32 md5
               host all scram 127.0.0.1/32 scram-sha-256
               host all rejected 127.0.0.1/32 reject";
    let server = server(Some(hba)).await;
    let sql = server.connect("postgres").await.unwrap();
    sql.batch_execute(
        "SET password_encryption = 'md5';
         CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'pencil';
         SET password_encryption = 'scram-sha-256';
         CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE scram LOGIN REPLICATION PASSWORD 'pencil';
         CREATE ROLE rejected LOGIN REPLICATION; CREATE ROLE plain LOGIN;",
    )
    .await
    .unwrap();

    for (user, password) in [
        ("postgres", None),
        ("clear", Some("pencil")),
        ("hashed", Some("pencil")),
        ("scram", Some("pencil")),
    ] {
        let mut session = session(&conninfo(&server, user, password))
            .await
            .unwrap_or_else(|e| panic!("{user}: {e}"));
        let identity = session.identify_system().await.unwrap();
        assert_eq!(
            (identity.timeline, identity.dbname.as_str()),
            (1, "postgres")
        );
        assert!(identity.system_identifier > 0 && u64::from(identity.wal_flush_lsn) > 0);
        assert!(session.server().server_version_num >= 140_000 && session.server().backend_pid > 0);
        let setting = session.simple_query("SHOW TimeZone").await.unwrap();
        assert_eq!(setting, [[Some("UTC".to_owned())]]);
    }

    for user in ["clear", "hashed", "scram"] {
        let wrong = session(&conninfo(&server, user, Some("pen")))
            .await
            .unwrap_err();
        assert_eq!(wrong.server().unwrap().code, "28P01", "{user}");
        assert!(!wrong.is_transient());
        assert!(
            !format!("{wrong} {wrong:?}").contains("pen\""),
            "a password in the error"
        );
        let missing = session(&conninfo(&server, user, None)).await.unwrap_err();
        assert!(matches!(
            missing,
            ReplicationError::Authentication(AuthenticationError::PasswordMissing { user: named }) if named == user
        ));
    }
    let rejected = session(&conninfo(&server, "rejected", None))
        .await
        .unwrap_err();
    assert!(rejected.server().unwrap().code == "28000" && !rejected.is_transient());
}

/// A password that is kept with more iterations than are computed, and what the refusal says to do.
#[tokio::test]
async fn a_proof_that_takes_too_long_is_refused_until_the_password_is_kept_anew() {
    let hba = "local all all trust
               host all postgres 127.0.0.1/32 trust
               host all slow 127.0.0.1/32 scram-sha-256";
    let server = server(Some(hba)).await;
    let sql = server.connect("postgres").await.unwrap();
    // Whoever makes the password may make it on another server: only Postgres 16 and later have the setting.
    let known = "SELECT current_setting('scram_iterations', true) IS NOT NULL";
    if !sql.query_one(known, &[]).await.unwrap().get::<_, bool>(0) {
        return;
    }
    let role = "SET scram_iterations = 1000001; CREATE ROLE slow LOGIN REPLICATION PASSWORD 'pencil'; RESET scram_iterations";
    sql.batch_execute(role).await.unwrap();
    let conninfo = conninfo(&server, "slow", Some("pencil"));
    let refused = session(&conninfo).await.unwrap_err();
    assert!(!refused.is_transient());
    assert!(matches!(
        refused,
        ReplicationError::Authentication(AuthenticationError::Iterations {
            asked: 1_000_001,
            ..
        })
    ));
    let text = refused.to_string();
    let (_, remedy) = text.split_once("run ").expect(&text);
    let (statements, _) = remedy.rsplit_once(';').expect(remedy);
    let typed = statements
        .replacen('…', "slow", 1)
        .replacen('…', "pencil", 1);
    assert!(!typed.contains('…'), "{typed}");
    sql.batch_execute(&typed).await.expect(&typed);
    session(&conninfo).await.unwrap();
}

/// A walsender that is ended waits so long for a client that reads nothing. A unix socket has no such time.
#[tokio::test]
async fn a_client_that_reads_nothing_is_endured_for_a_while() {
    let server = server(None).await;
    let tcp = conninfo(&server, "postgres", None);
    let hosts = vec![HostPort {
        host: Host::Unix(server.socket_dir().to_owned()),
        hostaddr: None,
        port: server.port(),
    }];
    let unix = Conninfo {
        hosts,
        ..tcp.clone()
    };
    let show = async |conninfo: &Conninfo| {
        let mut session = session(conninfo).await.unwrap();
        let rows = session.simple_query("SHOW tcp_user_timeout").await.unwrap();
        rows[0][0].clone().unwrap()
    };
    let (on_linux, unset) = (cfg!(target_os = "linux"), "0");
    assert_eq!(show(&unix).await, unset);
    assert_eq!(show(&tcp).await, if on_linux { "900000" } else { unset });
    let admin = server.connect("postgres").await.unwrap();
    let set = "ALTER ROLE postgres SET tcp_user_timeout = '7s'";
    admin.batch_execute(set).await.unwrap();
    assert_eq!(show(&tcp).await, if on_linux { "7000" } else { unset });
}

#[tokio::test]
async fn finds_the_server_or_says_why_not() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);

    let unix = HostPort {
        host: Host::Unix(server.socket_dir().to_owned()),
        hostaddr: None,
        port: server.port(),
    };
    session(&Conninfo {
        hosts: vec![unix],
        ..there.clone()
    })
    .await
    .unwrap();

    // Nobody listens on port 1.
    session(&Conninfo {
        hosts: vec![tcp(1), tcp(server.port())],
        ..there.clone()
    })
    .await
    .unwrap();
    let nobody = session(&Conninfo {
        hosts: vec![tcp(1)],
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(nobody, ReplicationError::Connect { .. }) && nobody.is_transient());

    let missing = session(&Conninfo {
        dbname: "nowhere".to_owned(),
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(missing.server().unwrap().code == "3D000" && !missing.is_transient());

    // A listener that never answers costs the connect timeout, not more.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let short = Conninfo {
        hosts: vec![tcp(port)],
        connect_timeout: Duration::from_millis(50),
        ..there
    };
    let late = session(&short).await.unwrap_err();
    assert!(matches!(late, ReplicationError::Timeout { .. }) && late.is_transient());
}

#[tokio::test]
async fn plain_sql_says_what_the_server_said() {
    let server = server(None).await;
    let there = conninfo(&server, "postgres", None);
    let sql = client::connect(&there).await.unwrap();
    let name = sql
        .query_one("SELECT current_setting('application_name')", &[])
        .await
        .unwrap();
    assert_eq!(name.get::<_, &str>(0), "walrelay");

    let missing = client::connect(&Conninfo {
        dbname: "nowhere".to_owned(),
        ..there.clone()
    })
    .await
    .unwrap_err();
    assert!(missing.code() == Some("3D000") && !missing.is_transient());
    let nobody = client::connect(&Conninfo {
        hosts: vec![tcp(1)],
        ..there
    })
    .await
    .unwrap_err();
    assert!(nobody.is_transient());
}
