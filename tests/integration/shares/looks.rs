//! What a relay has seen of its share may be over by the time that it goes by it: a share that comes or goes meanwhile ends no relay.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::load::{are_owned, reshard, shares, stops, two_shares};

/// Passes connections on to a server. While it is shut, one that its clients have said enough on is held.
struct Gate {
    port: u16,
    is_shut: watch::Sender<bool>,
    held: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Gate {
    /// `is_enough` is asked what a client has said by now, with what it says next.
    async fn start(server: u16, is_enough: fn(&[u8]) -> bool) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_shut, shut) = watch::channel(false);
        let held = Arc::new(Notify::new());
        let tell = Arc::clone(&held);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (shut, tell) = (shut.clone(), Arc::clone(&tell));
                tokio::spawn(pass(client, server, is_enough, shut, tell));
            }
        });
        Gate {
            port,
            is_shut,
            held,
            task,
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    client: TcpStream,
    server: u16,
    is_enough: fn(&[u8]) -> bool,
    mut shut: watch::Receiver<bool>,
    tell: Arc<Notify>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server)).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut said = Vec::new();
    loop {
        let mut piece = [0; 8192];
        let len = from_client.read(&mut piece).await?;
        if len == 0 {
            return to_server.shutdown().await;
        }
        said.extend_from_slice(&piece[..len]);
        if *shut.borrow() && is_enough(&said) {
            tell.notify_one();
            // The sender goes with the gate.
            let _opened = shut.wait_for(|is_shut| !is_shut).await;
        }
        to_server.write_all(&piece[..len]).await?;
    }
}

fn says(said: &[u8], words: &str) -> bool {
    said.windows(words.len())
        .any(|part| part == words.as_bytes())
}

/// It waits for NATS, behind its look at the catalog.
#[tokio::test]
async fn a_slot_that_goes_while_its_relay_starts_ends_no_relay() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    // What the shares had before is waited for.
    let others = ["0", "1"].map(|share| fixture.run_with(&["--share", share]));
    let (url, port) = (fixture.servers().nats.url(), fixture.servers().nats.port());
    let gate = Gate::start(port, |said| says(said, "CONNECT")).await;
    gate.is_shut.send_replace(true);
    let through = url.replace(&port.to_string(), &gate.port.to_string());
    fixture.set("WALRELAY_NATS_URL", through);
    fixture.set("WALRELAY_NATS_CONNECT_TIMEOUT", "5min");
    let mut relay = fixture.run_with(&["--share", "3"]);
    gate.held.notified().await;
    fixture.set("WALRELAY_NATS_URL", url);
    reshard(&fixture, "2").await;
    gate.is_shut.send_replace(false);
    relay.logs("does not exist").await;
    relay
        .logs("the outbox has 2 shares, and relay.shares is 4")
        .await;
    stops(relay).await;
    for other in others {
        stops(other).await;
    }
}

/// It has seen that there is no slot, and not yet that there are as many shares again.
#[tokio::test]
async fn a_share_that_comes_during_a_look_halts_no_relay() {
    let mut fixture = two_shares(true).await;
    reshard(&fixture, "4").await;
    shares(&mut fixture, 4);
    let others = ["0", "1", "3"].map(|share| fixture.run_with(&["--share", share]));
    let direct = fixture.servers().postgres.url(&fixture.name);
    let port = fixture.servers().postgres.port();
    // The wait for a share says the latter alone.
    let is_between = |said: &[u8]| {
        says(said, "pg_replication_slots") && says(said, "SELECT p.pubname::text, pg_get_expr")
    };
    let gate = Gate::start(port, is_between).await;
    fixture.set(
        "WALRELAY_POSTGRES_URL",
        format!(
            "postgres://postgres@127.0.0.1:{}/{}?sslmode=disable",
            gate.port, fixture.name
        ),
    );
    let mut relay = fixture.run_with(&["--share", "2"]);
    relay.streams().await;
    fixture.set("WALRELAY_POSTGRES_URL", direct);
    reshard(&fixture, "2").await;
    relay
        .logs("the outbox has 2 shares, and relay.shares is 4")
        .await;
    gate.is_shut.send_replace(true);
    gate.held.notified().await;
    reshard(&fixture, "4").await;
    gate.is_shut.send_replace(false);
    are_owned(&fixture, 4).await;
    stops(relay).await;
    for other in others {
        stops(other).await;
    }
}
