//! Several hosts and addresses, and which of them will do.

use std::collections::BTreeSet;

use walrelay::local::LocalPostgres;
use walrelay::postgres::client;
use walrelay::postgres::error::{ConnectError, ReplicationError};
use walrelay::postgres::session::SqlError;

use crate::certificates::SERVER;
use crate::support::{Outcome, conninfo, home, psql, replication, server, sql};

const ANYHOW: &str = "host all all 127.0.0.1/32 trust";

fn text(ports: &[u16], parameters: &str) -> String {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!(
        "host={hosts} port={} user=postgres dbname=postgres connect_timeout=20 {parameters}",
        ports.join(",")
    )
}

async fn port_of(text: &str) -> u16 {
    let home = home(&[]);
    let client = client::connect(&conninfo(text, home.path()).unwrap())
        .await
        .unwrap();
    let row = client
        .query_one("SELECT inet_server_port()", &[])
        .await
        .unwrap();
    u16::try_from(row.get::<_, i32>(0)).unwrap()
}

#[tokio::test]
async fn the_first_that_is_of_the_right_kind() {
    let read_only = [("default_transaction_read_only", "on")];
    let reader = server(None, ANYHOW, &read_only, None).await;
    let writer = server(Some(&SERVER.self_signed()), ANYHOW, &[], None).await;
    // Nobody listens on port 1.
    let ports = [1, reader.port(), writer.port()];
    for (wanted, expected) in [
        ("any", Some(&reader)),
        ("read-only", Some(&reader)),
        ("read-write", Some(&writer)),
        ("primary", Some(&reader)),
        ("prefer-standby", Some(&reader)),
        ("standby", None),
    ] {
        let text = text(&ports, &format!("target_session_attrs={wanted}"));
        let home = home(&[]);
        let (by_psql, said) = psql(&text, home.path()).await;
        let Some(expected) = expected else {
            assert_eq!(by_psql, Outcome::Refused, "{said}");
            let conninfo = conninfo(&text, home.path()).unwrap();
            let error = sql(&conninfo).await.unwrap_err();
            let told = |attempts: &[String]| {
                assert_eq!(attempts.len(), 3);
                for (attempt, port) in attempts.iter().zip(ports) {
                    assert!(attempt.contains(&format!("127.0.0.1:{port}")), "{attempt}");
                }
                assert!(attempts[1].contains("target_session_attrs"), "{attempts:?}");
            };
            match &error {
                SqlError::Connect(ConnectError::Several { attempts, .. }) => told(attempts),
                other => panic!("{other}"),
            }
            assert!(error.is_transient(), "a promotion may mend it");
            let error = replication(&conninfo).await.unwrap_err();
            match &error {
                ReplicationError::Connect(ConnectError::Several { attempts, .. }) => told(attempts),
                other => panic!("{other}"),
            }
            continue;
        };
        assert_eq!(port_of(&text).await, expected.port(), "{wanted}");
        let tls = LocalPostgres::port(expected) == writer.port();
        let outcome = if tls { Outcome::Tls } else { Outcome::Plain };
        assert_eq!(by_psql, outcome, "{wanted}: {said}");
        let conninfo = conninfo(&text, home.path()).unwrap();
        assert_eq!(replication(&conninfo).await.unwrap(), outcome, "{wanted}");
    }
}

#[tokio::test]
async fn a_random_one_where_load_is_to_be_balanced() {
    let (one, other) = (
        server(None, ANYHOW, &[], None).await,
        server(None, ANYHOW, &[], None).await,
    );
    let text = text(&[one.port(), other.port()], "load_balance_hosts=random");
    let mut found = BTreeSet::new();
    // That none of these takes the other one happens once in 10^12 runs.
    for _ in 0..40 {
        found.insert(port_of(&text).await);
    }
    assert_eq!(found, BTreeSet::from([one.port(), other.port()]));
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // It listens on 127.0.0.1 alone; where localhost is ::1 too, that comes first.
    let server = server(None, ANYHOW, &[], None).await;
    let text = format!(
        "host=localhost port={} user=postgres dbname=postgres",
        server.port()
    );
    assert_eq!(port_of(&text).await, server.port());
    let home = home(&[]);
    let nowhere = conninfo("host=no.such.host.invalid user=u", home.path()).unwrap();
    let error = sql(&nowhere).await.unwrap_err();
    assert!(
        matches!(error, SqlError::Connect(ConnectError::Reach { .. })),
        "{error}"
    );
    assert!(error.is_transient());
}
