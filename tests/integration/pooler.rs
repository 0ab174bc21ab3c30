//! A pooler between walrelay and Postgres.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::Fixture;

/// What PgBouncer 1.18 answers to a start-up packet with `replication` in it, captured from it.
const REFUSAL: &[u8] =
    b"E\0\0\0\x46SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";

/// Passes plain sessions on, and refuses replication as PgBouncer does.
struct Pooler {
    port: u16,
    task: JoinHandle<()>,
}

impl Pooler {
    async fn start(server: u16) -> Pooler {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server));
            }
        });
        Pooler { port, task }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, server: u16) -> std::io::Result<()> {
    let mut packet = vec![0; client.read_u32().await? as usize - 4];
    client.read_exact(&mut packet).await?;
    if packet.windows(12).any(|word| word == b"replication\0") {
        return client.write_all(REFUSAL).await;
    }
    let mut server = TcpStream::connect(("127.0.0.1", server)).await?;
    server.write_u32(packet.len() as u32 + 4).await?;
    server.write_all(&packet).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn a_pooler_without_replication_is_named() {
    let mut fixture = Fixture::bare().await;
    let pooler = Pooler::start(fixture.servers().postgres.port()).await;
    let direct = fixture.servers().postgres.url(&fixture.name);
    // TLS it would have to end itself.
    let pooled = format!(
        "postgres://postgres@127.0.0.1:{}/{}?sslmode=disable",
        pooler.port, fixture.name
    );
    for command in ["setup", "run"] {
        fixture.set("WALRELAY_POSTGRES_URL", &*pooled);
        let refused = fixture.walrelay(&[command]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let lines = refused.stderr.lines();
        let named: Vec<&str> = lines.filter(|line| line.contains("PgBouncer")).collect();
        let mend = "address of Postgres itself in postgres.url";
        assert!(
            matches!(named[..], [line] if line.contains(mend)),
            "{refused:?}"
        );
        fixture.set("WALRELAY_POSTGRES_URL", &*direct);
        fixture.setup().await;
    }
    fixture.set("WALRELAY_POSTGRES_URL", &*pooled);
    fixture.walrelay(&["verify"]).await.success();
}
