//! What answers in a server's place.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use walrelay::postgres::error::{ConnectError, ReplicationError};
use walrelay::postgres::session::SqlError;

use crate::support::{conninfo, home, replication, sql};

/// Answers each request for TLS with these bytes, and then listens on.
async fn answering(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 8];
                if stream.read_exact(&mut request).await.is_ok() {
                    assert_eq!(request, *b"\0\0\0\x08\x04\xd2\x16\x2f", "SSLRequest");
                    stream.write_all(bytes).await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn what_comes_before_tls_is_not_believed() {
    for (bytes, is_transient, said) in [
        (&b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I"[..], false, "tampering"),
        (b"NR\0\0\0\x08\0\0\0\0", false, "tampering"),
        (b"ESFATAL\0C28000\0Mhunter2\0\0", true, "its log says which"),
        (b"HTTP/1.1 400 Bad Request\r\n", false, "no Postgres server"),
        (b"N", false, "offers no TLS"),
    ] {
        let port = answering(bytes).await;
        let text = format!("host=127.0.0.1 port={port} user=u sslmode=require connect_timeout=20");
        let home = home(&[]);
        let conninfo = conninfo(&text, home.path()).unwrap();
        let by_sql = sql(&conninfo).await.unwrap_err();
        let by_replication = replication(&conninfo).await.unwrap_err();
        assert!(matches!(
            by_sql,
            SqlError::Connect(ConnectError::Handshake { .. } | ConnectError::NotOffered { .. })
        ));
        assert!(matches!(by_replication, ReplicationError::Connect(_)));
        assert_eq!(by_sql.to_string(), by_replication.to_string());
        assert!(by_sql.to_string().contains(said), "{by_sql}");
        assert!(!by_sql.to_string().contains("hunter2"), "{by_sql}");
        assert_eq!(by_sql.is_transient(), is_transient, "{by_sql}");
        assert_eq!(by_replication.is_transient(), is_transient, "{by_sql}");
    }
}

#[tokio::test]
async fn another_program_on_the_port_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            // As NATS: it speaks first. The client may have gone by the end.
            let info = b"INFO {\"server_id\":\"N\"}\r\n";
            socket.write_all(info).await.unwrap();
            tokio::spawn(async move { socket.read_to_end(&mut Vec::new()).await });
        }
    });
    for mode in ["disable", "prefer", "require"] {
        let text = format!("host=127.0.0.1 port={port} user=u sslmode={mode} connect_timeout=20");
        let home = home(&[]);
        let error = sql(&conninfo(&text, home.path()).unwrap())
            .await
            .unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("no Postgres server: check host and port"),
            "{mode}: {said}"
        );
        assert!(!said.contains("pg_hba.conf"), "{mode}: {said}");
    }
}
