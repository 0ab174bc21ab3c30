//! A URL that names several servers: the relay's two sessions may come to different ones.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{
    Fixture, Servers, assert_exactly_once, binaries, options, start_postgres, uuid,
};

/// A port that leads to one of two servers.
struct Switch {
    port: u16,
    splits: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Switch {
    /// Every other connection, from the first on, goes to `other` while it splits, and all else to `lane`.
    async fn start(lane: u16, other: u16) -> Switch {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let splits = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn({
            let splits = splits.clone();
            async move {
                for count in 0_u64.. {
                    let (mut client, _) = listener.accept().await.unwrap();
                    let is_other = count.is_multiple_of(2) && splits.load(Ordering::Relaxed);
                    let port = if is_other { other } else { lane };
                    tokio::spawn(async move {
                        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                        tokio::io::copy_bidirectional(&mut client, &mut server).await
                    });
                }
            }
        });
        Switch { port, splits, task }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn sessions_on_different_servers_are_no_verdict() {
    let mut fixture = Fixture::bare_on(Servers::own().await).await;
    fixture.setup().await;
    // Further on than the other server will ever be.
    let wal = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 50000000))";
    fixture.sql.batch_execute(wal).await.unwrap();
    let relay = fixture.run();
    fixture.insert(1, 10).await;
    fixture.holds(10).await;
    relay.stop().await;

    // It has all that the relay asks for, under the same names.
    let other = start_postgres(&binaries(), options(&[])).await;
    let admin = other.connect("postgres").await.unwrap();
    let create = format!("CREATE DATABASE {}", fixture.name);
    admin.batch_execute(&create).await.unwrap();
    let name = &fixture.name;
    let make = format!(
        "{}; CREATE PUBLICATION {name} FOR TABLE outbox_events WITH (publish = 'insert', publish_via_partition_root = true)",
        walrelay::outbox::SCHEMA_SQL
    );
    let sql = other.connect(name).await.unwrap();
    sql.batch_execute(&make).await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
    sql.query(slot, &[name]).await.unwrap();

    let lane = &fixture.servers().postgres;
    let switch = Switch::start(lane.port(), other.port()).await;
    let url = lane.url(&fixture.name);
    let url = url.replace(&lane.port().to_string(), &switch.port.to_string());
    fixture.set("WALRELAY_POSTGRES_URL", url);
    let mut relay = fixture.run();
    relay.logs("on different servers").await;
    assert!(relay.runs());
    switch.splits.store(false, Ordering::Relaxed);
    relay.streams().await;
    fixture.insert(11, 20).await;
    fixture.holds(20).await;
    relay.stop().await;
    let committed: Vec<_> = (1..=20).map(uuid).collect();
    assert_exactly_once(&committed, &fixture.stored_ids().await);
}
